"""Three genesis files from a manifest and public keys. No secret passes through here.

The keys come by the name that the layout gives them: ``public-0``, ``consortium-3``, ``relayer-1``
for processes; ``h07`` for a household's account, ``h07-meter`` for its devices; the wallet's own for
people (`PEOPLE`) and ``stake-0`` for the account behind ``public-0``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from gridtokenx.consortium.chain import (
    Account,
    Attestation,
    ConsortiumGenesis,
    Device,
    RelayerQuota,
)
from gridtokenx.consortium.market.parameters import MarketParameters
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.units import GRID, WATT
from gridtokenx.devices.fleet.roster import HouseholdEntry, Roster, household_name
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.clients import (
    DEFAULT_CLOCK_DRIFT_MS,
    DEFAULT_TRUSTING_PERIOD_MS,
    ClientGenesis,
    ClientKind,
)
from gridtokenx.lab.manifest import Manifest
from gridtokenx.ledger.identity import UNNAMED, derive_chain_id
from gridtokenx.oracle.chain.ledger import OracleGenesis
from gridtokenx.oracle.chain.parameters import FeedSpec, MeterParameters
from gridtokenx.oracle.feeds.market_data import ENERGY_PRICE
from gridtokenx.public.chain import Balance, PublicGenesis
from gridtokenx.public.staking import Candidate, Nomination

ALICE: Final = "alice"
BOB: Final = "bob"
OPERATOR: Final = "operator"
UTILITY: Final = "utility"
CUSTODIAN: Final = "custodian"
PEOPLE: Final = (ALICE, BOB, OPERATOR, UTILITY, CUSTODIAN)
WORKLOAD: Final = "workload"
"""The agents' own account that retires certificates and sends transfers."""

TOTAL_GRID: Final = 1_000_000_000
"""The guide's supply."""
STAKE_GRID: Final = 1_000_000
NOMINATOR_GRID: Final = 500_000
RELAYER_GRID: Final = 10_000
PERSON_GRID: Final = 100_000
PERSON_WATT: Final = 10_000
UTILITY_WATT: Final = 10_000_000

G = TypeVar("G", bound=msgspec.Struct)
Keys = Mapping[str, bytes]
"""Public keys by name."""


@dataclass(frozen=True, slots=True)
class Network:
    """The three chains of a network."""

    public: PublicGenesis
    consortium: ConsortiumGenesis
    oracle: OracleGenesis

    def by_chain(self) -> dict[str, PublicGenesis | ConsortiumGenesis | OracleGenesis]:
        """The same by chain name."""
        return {"public": self.public, "consortium": self.consortium, "oracle": self.oracle}


def make_network(manifest: Manifest, keys: Keys, roster: Roster, genesis_ms: int) -> Network:
    """All three genesis files, each knowing the others.

    Args:
        manifest: what the network is.
        keys: see the head of the file.
        roster: the households and their devices.
        genesis_ms: network time of genesis.
    """
    clock = GridClock(genesis_ms, manifest.time.start_ms, manifest.time.scale)
    public = _named(_public(manifest, keys, clock))
    consortium = _named(_consortium(manifest, keys, clock, roster))
    oracle = _named(_oracle(manifest, keys, clock))
    check_windows(consortium, oracle)
    replace = msgspec.structs.replace
    of_public = _client("public", public.chain_id, ClientKind.GRANDPA, public.validator_set)
    of_consortium = _client(
        "consortium", consortium.chain_id, ClientKind.PBFT, consortium.validator_set
    )
    of_oracle = _client("oracle", oracle.chain_id, ClientKind.PBFT, oracle.validator_set)
    return Network(
        public=replace(public, clients=_known_as("public", of_consortium, of_oracle)),
        consortium=replace(consortium, clients=_known_as("consortium", of_public, of_oracle)),
        oracle=replace(oracle, clients=_known_as("oracle", of_public, of_consortium)),
    )


def check_windows(consortium: ConsortiumGenesis, oracle: OracleGenesis) -> None:
    """Refuse chains that disagree on how long an interval may be corrected.

    Raises:
        LocalFault: says how; with a shorter window the consortium would settle without them.
    """
    settled = consortium.settlement.correction_window_intervals
    corrected = oracle.meters.correction_window
    if settled != corrected:
        raise LocalFault(
            f"consortium genesis: settlement.correction_window_intervals is {settled}, oracle "
            f"genesis: meters.correction_window is {corrected}; give both the same number"
        )


def _named(genesis: G) -> G:
    return msgspec.structs.replace(genesis, chain_id=derive_chain_id(genesis))


def _client(
    name: str, chain_id: bytes, kind: ClientKind, validators: ValidatorSet
) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty=name,
        chain_id=chain_id,
        kind=kind,
        set_id=validators.set_id,
        validators=validators.members,
        trusting_period_ms=DEFAULT_TRUSTING_PERIOD_MS,
        clock_drift_ms=DEFAULT_CLOCK_DRIFT_MS,
    )


def _known_as(name: str, *clients: ClientGenesis) -> tuple[ClientGenesis, ...]:
    return tuple(msgspec.structs.replace(client, counterparty=name) for client in clients)


# -- public ----------------------------------------------------------------------------------------


def _public(manifest: Manifest, keys: Keys, clock: GridClock) -> PublicGenesis:
    count = manifest.public.candidates or manifest.public.validators
    candidates = tuple(
        Candidate(account=keys[f"stake-{index}"], session_key=keys[f"public-{index}"])
        for index in range(count)
    )
    return PublicGenesis(
        chain_id=UNNAMED,
        clock=clock,
        validators=manifest.public.validators,
        candidates=candidates,
        nominations=tuple(_nominations(keys, candidates)),
        balances=tuple(_balances(manifest, keys, candidates)),
        clients=(),
        slot_ms=manifest.public.slot_ms,
        epoch_slots=manifest.public.epoch_slots,
        era_slots=manifest.public.era_slots,
        unbonding_eras=manifest.public.unbonding_eras,
    )


def _nominations(keys: Keys, candidates: tuple[Candidate, ...]) -> Iterator[Nomination]:
    for candidate in candidates:
        yield Nomination(
            voter=candidate.account, stake_ngrid=STAKE_GRID * GRID, targets=(candidate.account,)
        )
    accounts = tuple(candidate.account for candidate in candidates)
    for name, targets in ((ALICE, accounts[:2]), (BOB, accounts[1:17])):
        if targets:
            yield Nomination(
                voter=keys[name], stake_ngrid=NOMINATOR_GRID * GRID, targets=targets[:16]
            )


def _balances(
    manifest: Manifest, keys: Keys, candidates: tuple[Candidate, ...]
) -> Iterator[Balance]:
    amounts = {candidate.account: 2 * STAKE_GRID for candidate in candidates}
    amounts |= {keys[f"relayer-{i}"]: RELAYER_GRID for i in range(manifest.bridge.relayers)}
    amounts |= {keys[name]: NOMINATOR_GRID + PERSON_GRID for name in (ALICE, BOB)}
    amounts[keys[WORKLOAD]] = PERSON_GRID
    for name in _households(manifest):
        amounts[keys[name]] = 100
    amounts[keys[OPERATOR]] = TOTAL_GRID - sum(amounts.values())
    for account, amount in amounts.items():
        yield Balance(account=account, amount_ngrid=amount * GRID)


# -- consortium ------------------------------------------------------------------------------------


def _consortium(
    manifest: Manifest, keys: Keys, clock: GridClock, roster: Roster
) -> ConsortiumGenesis:
    accounts = tuple(_accounts(manifest, keys))
    opening = UTILITY_WATT * WATT + sum(account.opening_uwatt for account in accounts)
    return ConsortiumGenesis(
        chain_id=UNNAMED,
        validators=tuple(keys[f"consortium-{i}"] for i in range(manifest.consortium.replicas)),
        rotation_blocks=manifest.consortium.rotation_blocks or msgspec.UNSET,
        clock=clock,
        operator=keys[OPERATOR],
        utility=keys[UTILITY],
        utility_uwatt=UTILITY_WATT * WATT,
        attestation=Attestation(
            custodian=keys[CUSTODIAN],
            reserve_uwatt=opening,
            statement="Development reserve: no baht stands behind a local testnet.",
        ),
        accounts=accounts,
        devices=tuple(
            device for household in roster.households for device in _devices(keys, household)
        ),
        relayers=tuple(
            RelayerQuota(account=keys[f"relayer-{i}"]) for i in range(manifest.bridge.relayers)
        ),
        clients=(),
        market=MarketParameters(min_order_wh=manifest.market.minimum_order_wh),
    )


def _accounts(manifest: Manifest, keys: Keys) -> Iterator[Account]:
    for name in _households(manifest):
        yield Account(account=keys[name], opening_uwatt=manifest.market.opening_uwatt)
    for name in (ALICE, BOB, OPERATOR, WORKLOAD):
        yield Account(account=keys[name], opening_uwatt=PERSON_WATT * WATT)


def _devices(keys: Keys, household: HouseholdEntry) -> Iterator[Device]:
    spec = household.spec
    ratings = {DeviceKind.METER: spec.load.breaker_w}
    if spec.solar is not None:
        ratings[DeviceKind.SOLAR] = spec.solar.inverter_ac_w
    if spec.battery is not None:
        ratings[DeviceKind.BATTERY] = spec.battery.power_w
    for device in household.devices:
        yield Device(
            public_key=keys[device.key],
            owner=keys[household.name],
            zone=household.zone,
            kind=device.device_kind,
            rating_w=ratings[device.device_kind],
        )


def _households(manifest: Manifest) -> list[str]:
    return [household_name(index) for index in range(manifest.devices.households)]


# -- oracle ----------------------------------------------------------------------------------------


def _oracle(manifest: Manifest, keys: Keys, clock: GridClock) -> OracleGenesis:
    return OracleGenesis(
        chain_id=UNNAMED,
        validators=tuple(keys[f"oracle-{i}"] for i in range(manifest.oracle.nodes)),
        rotation_blocks=manifest.oracle.rotation_blocks or msgspec.UNSET,
        relayers=tuple(keys[f"relayer-{i}"] for i in range(manifest.bridge.relayers)),
        clock=clock,
        clients=(),
        meters=MeterParameters(grace_ms=manifest.oracle.grace_ms),
        feeds=(
            FeedSpec(
                feed=ENERGY_PRICE,
                unit="micro-WATT per kWh",
                minimum=500_000,
                maximum=20_000_000,
            ),
        ),
    )
