"""`gtx agents`: the owners of the households, and what else a testnet's people do.

One process holds the account keys of all households, each in its own file, and apart from the
devices' keys, which only the fleet has. Each household bids for itself (`bidder.py`) from a
forecast made at set-up; the workload (`workload.py`) claims certificates and sends GRID over the
bridge.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_chain
from gridtokenx.consortium.market.module import Market
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Signer
from gridtokenx.devices.fleet.bidder import Bidder
from gridtokenx.devices.fleet.roster import HouseholdEntry, read_roster
from gridtokenx.devices.fleet.workload import Retirer, Route, Traveller
from gridtokenx.devices.models.bidding import Rules, temper_of
from gridtokenx.devices.models.forecast import Outlook
from gridtokenx.devices.models.profiles import Profile, unpack_profiles
from gridtokenx.host.chains import ChainAccess, ClientParts, open_access, read_chain, staleness
from gridtokenx.host.config import Setting
from gridtokenx.host.files import read_file
from gridtokenx.host.keyfile import KeyRing, find_password
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.settings import KeyedSettings, LinkSettings
from gridtokenx.host.tasks import Tasks
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.public.chain import PublicGenesis


class AgentsSettings(KeyedSettings, frozen=True, kw_only=True):
    """Settings of `gtx agents`."""

    roster: Annotated[Path, Setting("JSON file of households; their keys bear their names.")]
    forecasts: Annotated[Path, Setting("Forecast file, made by `gtx testnet init`.")]
    seed: Annotated[
        int, Setting("Seed of the run: decides how eager each household is.", minimum=0)
    ] = 1
    ahead: Annotated[
        int,
        Setting("How far ahead households bid.", unit="half hours", minimum=1, maximum=47),
    ] = 4
    bid: Annotated[bool, Setting("Whether households bid.")] = True
    retire: Annotated[bool, Setting("Whether some certificates are claimed.")] = True
    transfers: Annotated[bool, Setting("Whether GRID is sent over the bridge.")] = True
    workload: Annotated[str, Setting("Name of the key whose account sends the GRID.")] = "workload"
    public: LinkSettings
    consortium: LinkSettings


@dataclass(frozen=True, slots=True)
class World:
    """Both chains as this process sees them."""

    public: ChainAccess
    public_genesis: PublicGenesis
    consortium: ChainAccess
    consortium_genesis: ConsortiumGenesis
    market: Market

    @property
    def chains(self) -> tuple[ChainAccess, ChainAccess]:
        """Both."""
        return self.public, self.consortium


class Agents:
    """All agents of one process; `open_agents` makes them."""

    def __init__(self, world: World, workers: "Sequence[Worker]") -> None:
        self._world: Final = world
        self._workers: Final = workers

    async def run(self) -> None:
        """Act until cancelled."""
        tasks = Tasks()
        try:
            tasks.spawn(self._world.public.follower.run(), "follow public")
            tasks.spawn(self._world.consortium.follower.run(), "follow consortium")
            for worker in self._workers:
                tasks.spawn(worker.run(), type(worker).__name__)
            await tasks.watch()
        finally:
            await tasks.close()

    def readiness(self, now_ms: int) -> Readiness:
        """Whether both chains were heard of lately."""
        return Readiness.unless(
            reason
            for access in self._world.chains
            for reason in staleness(access.facts.name, access.follower, now_ms)
        )

    def heights(self) -> dict[str, object]:
        """How far each chain is known."""
        return {access.facts.name: access.follower.trust.height for access in self._world.chains}


async def run_agents(settings: AgentsSettings) -> None:
    """`gtx agents`: act for the households until cancelled.

    Raises:
        LocalFault: settings, files or keys that cannot be used.
    """
    role = open_role(settings, "agents")
    agents = open_agents(settings, role)
    async with role.serving(lambda: agents.readiness(role.clock.now_ms()), agents.heights):
        await agents.run()


def open_agents(settings: AgentsSettings, role: Role) -> Agents:
    """Read everything that agents start from.

    Raises:
        LocalFault: settings, files or keys that cannot be used.
    """
    world, households = _open_world(settings, role), _open_households(settings)
    role.log.info("agents", households=len(households))
    return Agents(world, list(_workers(settings, role, world, households)))


@dataclass(frozen=True, slots=True)
class HouseholdAgent:
    """What one household's agent has."""

    entry: HouseholdEntry
    signer: Signer
    forecast: Profile


Worker = Bidder | Retirer | Traveller


def _workers(
    settings: AgentsSettings, role: Role, world: World, households: Sequence[HouseholdAgent]
) -> Iterator[Worker]:
    if settings.bid:
        for household in households:
            yield _bidder(settings, role, world, household)
    if settings.retire:
        accounts = {
            each.signer.public_key: (each.entry.name, world.public.account(each.signer))
            for each in households
        }
        yield Retirer(world.public, accounts, role.metrics, role.log)
    if settings.transfers:
        yield _traveller(settings, role, world)


def _bidder(
    settings: AgentsSettings, role: Role, world: World, household: HouseholdAgent
) -> Bidder:
    genesis, entry = world.consortium_genesis, household.entry
    seed = settings.seed.to_bytes(8, "big")
    return Bidder(
        entry.name,
        entry.zone,
        world.consortium,
        world.consortium.account(household.signer),
        world.market,
        Rules(genesis.tariff, genesis.market),
        temper_of(seed, entry.profile),
        Outlook(entry.spec, household.forecast, genesis.clock.grid_epoch_ms),
        settings.ahead,
        role.clock,
        role.metrics,
        role.log,
    )


def _traveller(settings: AgentsSettings, role: Role, world: World) -> Traveller:
    signer = KeyRing.open(settings.keys, _password(settings)).signer(settings.workload)
    public, consortium = world.public_genesis, world.consortium_genesis
    route = Route(
        to_consortium=_client_of(public.clients, consortium.chain_id, "public", "consortium"),
        to_public=_client_of(consortium.clients, public.chain_id, "consortium", "public"),
    )
    return Traveller(
        (world.public, world.public.account(signer)),
        (world.consortium, world.consortium.account(signer)),
        route,
        public.slot_ms,
        role.clock,
        role.metrics,
        role.log,
    )


def _client_of(clients: Sequence[ClientGenesis], chain_id: bytes, here: str, there: str) -> str:
    for client in clients:
        if client.chain_id == chain_id:
            return client.client_id
    raise LocalFault(
        f"the {here} genesis has no client of the {there} genesis given: use those of one network"
    )


# -- opening ---------------------------------------------------------------------------------------


def _open_world(settings: AgentsSettings, role: Role) -> World:
    public = read_chain("public", settings.public.genesis)
    consortium = read_chain("consortium", settings.consortium.genesis)
    assert isinstance(public.genesis, PublicGenesis), "read as such"
    assert isinstance(consortium.genesis, ConsortiumGenesis), "read as such"
    parts = ClientParts(open_key_seed(settings), role.clock, role.metrics, role.log)
    return World(
        open_access(public, settings.public, parts),
        public.genesis,
        open_access(consortium, settings.consortium, parts),
        consortium.genesis,
        consortium_chain(consortium.genesis).market,
    )


def _open_households(settings: AgentsSettings) -> list[HouseholdAgent]:
    roster = read_roster(settings.roster)
    forecasts = unpack_profiles(read_file(settings.forecasts), str(settings.forecasts)).households
    ring = KeyRing.open(settings.keys, _password(settings))
    agents: list[HouseholdAgent] = []
    for entry in roster.households:
        if entry.profile >= len(forecasts):
            raise LocalFault(
                f"{settings.roster}: {entry.name} has forecast {entry.profile}, but "
                f"{settings.forecasts} holds {len(forecasts)}"
            )
        agents.append(HouseholdAgent(entry, ring.signer(entry.name), forecasts[entry.profile]))
    return agents


def _password(settings: AgentsSettings) -> str:
    return find_password(settings.keys, settings.keys_password_file, os.environ)
