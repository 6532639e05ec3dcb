"""The processes that are no nodes: relayers, agents, devices, market data.

Each `begin_...` begins one life: it makes the host's own objects over simulated connections and lets
them run. What must outlive a kill is given from outside.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from gridtokenx.bridge.process.chains import relayed, relaying_fee
from gridtokenx.bridge.process.driver import RelayChain, RelayerDriver
from gridtokenx.bridge.process.follower import FollowedChain
from gridtokenx.bridge.relayer.machine import Options, Relayer
from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_chain
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.gridtime import INTERVAL_MS, GridClock
from gridtokenx.core.keys import Signer, Verifier
from gridtokenx.core.machine import NodeId
from gridtokenx.core.units import ceil_div
from gridtokenx.devices.fleet.bidder import Bidder
from gridtokenx.devices.fleet.fleet import Fleet, Household, Login
from gridtokenx.devices.fleet.journal import COMPACT_AT, BoundaryRecord
from gridtokenx.devices.fleet.roster import Roster
from gridtokenx.devices.fleet.workload import Retirer, Route, Traveller
from gridtokenx.devices.models.bidding import Rules, temper_of
from gridtokenx.devices.models.forecast import Outlook
from gridtokenx.devices.models.profiles import Profile
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.client import ChainClient
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.lab.manifest import AHEAD_INTERVALS, Manifest
from gridtokenx.lab.sim.testnet.broker import broker_for
from gridtokenx.lab.sim.testnet.links import access, follow
from gridtokenx.lab.sim.testnet.processes import End, Idle, Life, settle
from gridtokenx.lab.sim.testnet.relayers import LyingChain, RelayerLie
from gridtokenx.lab.testnet.genesis import WORKLOAD
from gridtokenx.ledger.readings import RETAINED_BOUNDARIES
from gridtokenx.oracle.feeds.mapping import extract
from gridtokenx.oracle.feeds.market import Market
from gridtokenx.oracle.feeds.market_data import (
    day_ahead_csv,
    default_sources,
    index_txt,
    settled_xml,
    ticker_json,
)
from gridtokenx.public.chain import PublicGenesis

PRICES: Final = "prices"
READ_S: Final = 2.0
DOCUMENTS: Final = (ticker_json, day_ahead_csv, settled_xml, index_txt)
"""What the four sources serve, in the order of `default_sources`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all processes of the network know of it."""

    manifest: Manifest
    facts: Mapping[str, ChainFacts]
    nodes: Mapping[str, Sequence[NodeId]]
    """Node ids by chain."""
    signer: Callable[[str], Signer]
    """A key by the name that the layout gives it."""
    verifier: Verifier
    roster: Roster
    profiles: Sequence[Profile]
    forecasts: Sequence[Profile]
    metrics: dict[str, Metrics] = field(default_factory=dict)
    """By process; over all of its lives."""

    def count(self, name: str) -> Metrics:
        """The numbers of a process."""
        return self.metrics.setdefault(name, Metrics())

    @property
    def clock(self) -> GridClock:
        """The map between network time and grid time."""
        return self.facts["oracle"].clock


# -- relayers --------------------------------------------------------------------------------------


def begin_relayer(
    parts: Parts,
    life: Life,
    position: int,
    lies: Sequence[RelayerLie] = (),
    told: Counter[str] | None = None,
) -> Idle:
    """One relayer; see `bridge.process.run`.

    Args:
        parts: of the network.
        life: of the process.
        position: among relayers.
        lies: what it does, if it is a liar.
        told: counts what it did.
    """
    signer, metrics = parts.signer(life.name), parts.count(life.name)
    chains: dict[str, RelayChain] = {}
    for name, facts in parts.facts.items():
        follower = follow(
            life, facts, parts.nodes[name], signer, parts.verifier, metrics, first=position
        )
        nonces = facts.nonces(follower, signer.public_key, life.clock)
        chain = FollowedChain(
            follower,
            ChainClient(follower, signer, nonces, life.clock),
            facts.validators,
            parts.verifier,
            life.clock,
            relaying_fee(facts),
        )
        chains[name] = chain if told is None else LyingChain(name, chain, lies, told)
        life.spawn(follower.run(), f"follow {name}")
    options = Options(position=position, relayers=parts.manifest.bridge.relayers)
    machine = Relayer(relayed(list(parts.facts.values())), options)
    driver = RelayerDriver(machine, chains, life.clock, NullLogger(), metrics)
    life.spawn(driver.run(), "relay")
    return Idle()


# -- agents ----------------------------------------------------------------------------------------


def begin_agents(parts: Parts, life: Life) -> Idle:
    """The owners of the households, and what else people do; see `devices.fleet.agents`."""
    signer, metrics, log = parts.signer(life.name), parts.count(life.name), NullLogger()
    public, consortium = (
        access(life, parts.facts[name], parts.nodes[name], signer, parts.verifier, metrics)
        for name in ("public", "consortium")
    )
    genesis = parts.facts["consortium"].genesis
    assert isinstance(genesis, ConsortiumGenesis), "by that name"
    wanted, seed = parts.manifest.workload, parts.manifest.seed.to_bytes(8, "big")
    owners = {entry.name: parts.signer(entry.name) for entry in parts.roster.households}
    if wanted.bid:
        market = consortium_chain(genesis).market
        for entry in parts.roster.households:
            bidder = Bidder(
                entry.name,
                entry.zone,
                consortium,
                consortium.account(owners[entry.name]),
                market,
                Rules(genesis.tariff, genesis.market),
                temper_of(seed, entry.profile),
                Outlook(entry.spec, parts.forecasts[entry.profile], genesis.clock.grid_epoch_ms),
                AHEAD_INTERVALS,
                life.clock,
                metrics,
                log,
            )
            life.spawn(bidder.run(), f"bidder {entry.name}")
    if wanted.retire:
        accounts = {
            owner.public_key: (name, public.account(owner)) for name, owner in owners.items()
        }
        life.spawn(Retirer(public, accounts, metrics, log).run(), "retirer")
    if wanted.transfers:
        traveller = parts.signer(WORKLOAD)
        public_genesis = parts.facts["public"].genesis
        assert isinstance(public_genesis, PublicGenesis), "by that name"
        travels = Traveller(
            (public, public.account(traveller)),
            (consortium, consortium.account(traveller)),
            Route(to_consortium="consortium", to_public="public"),
            public_genesis.slot_ms,
            life.clock,
            metrics,
            log,
        )
        life.spawn(travels.run(), "traveller")
    return Idle()


# -- devices ---------------------------------------------------------------------------------------


class Records:
    """A household's journal: a disk that keeps what was written, across lives."""

    def __init__(self) -> None:
        self.records: list[BoundaryRecord] = []

    def append(self, record: BoundaryRecord) -> None:
        """Make a record durable."""
        self.records.append(record)
        if len(self.records) >= COMPACT_AT:
            del self.records[:-RETAINED_BOUNDARIES]

    def close(self) -> None:
        """Nothing to let go of."""


def begin_devices(
    parts: Parts, life: Life, journals: Mapping[str, Records], broker: NodeId
) -> Idle:
    """All households' devices; see `devices.fleet.fleet`."""
    address = broker_for(life, broker)
    first_boundary_ms = ceil_div(parts.clock.grid_epoch_ms, INTERVAL_MS) * INTERVAL_MS
    households = tuple(
        Household(
            entry,
            parts.profiles[entry.profile],
            {each.key: Login(parts.signer(each.key), address) for each in entry.devices},
            journals[entry.name],
            parts.facts["oracle"].chain_id,
            first_boundary_ms,
        )
        for entry in parts.roster.households
    )
    fleet = Fleet(
        households, None, life.clock.now_ms, parts.clock, parts.count(life.name), NullLogger()
    )
    life.spawn(fleet.run(), "fleet")
    return Idle()


# -- market data -----------------------------------------------------------------------------------


def begin_market_data(parts: Parts, life: Life) -> Idle:
    """Four sources of one price; see `oracle.feeds.market_data`."""
    market = Market(parts.manifest.seed)

    def accept(end: End) -> None:
        def answer(body: bytes) -> None:
            if len(body) != 1 or body[0] >= len(DOCUMENTS):
                end.close("no such document")
                return
            document = DOCUMENTS[body[0]](market, parts.clock.grid_ms(life.clock.now_ms()))
            end.send(document.encode())

        end.on_frame = answer

    life.listeners[PRICES] = accept
    return Idle()


class SimulatedSource:
    """One oracle's source of a price; see `oracle.process.observer.Source`.

    Args:
        parts: of the network.
        life: of the oracle.
        market_data: node id of who serves it.
        number: which of the four.
    """

    def __init__(self, parts: Parts, life: Life, market_data: NodeId, number: int) -> None:
        self._parts: Final = parts
        self._life: Final = life
        self._market_data: Final = market_data
        self._number: Final = number % len(DOCUMENTS)
        self._settings: Final = default_sources("http://market-data", "")[self._number]

    @property
    def name(self) -> str:
        """For the record."""
        return self._settings.name

    async def read(self) -> int:
        """The value now, in the feed's unit; `RemoteFault` if there is none."""
        document: asyncio.Future[bytes] = self._life.loop.create_future()
        end = await self._life.wires.dial(self._life, self._market_data, PRICES)
        end.on_frame = partial(settle, document)
        end.send(bytes((self._number,)))
        try:
            async with asyncio.timeout(READ_S):
                grid_ms = self._parts.clock.grid_ms(self._life.clock.now_ms())
                return extract(self._settings.mapping, await document, grid_ms)
        except TimeoutError:
            raise RemoteFault("source-timeout", f"{self.name}: no answer in time") from None
        finally:
            end.close("done")
