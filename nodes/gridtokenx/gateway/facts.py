"""What the genesis files say: who the chains are, how to read them, and how people call things."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock, interval_start_ms
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.files import read_file
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.ledger.blocks import EventRecord, Header
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.public.chain import PublicGenesis, public_ledger
from gridtokenx.public.slots import read_claim

PUBLIC: Final = "public"
CONSORTIUM: Final = "consortium"
ORACLE: Final = "oracle"
CHAINS: Final = (PUBLIC, CONSORTIUM, ORACLE)
ROUTES: Final = (
    "oracle-consortium",
    "consortium-oracle",
    "oracle-public",
    "public-consortium",
    "consortium-public",
)
ZONE_PREFIX: Final = "zone-"

G = TypeVar("G", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """One chain."""

    name: str
    chain_id: bytes
    genesis_hash: bytes
    validators: ValidatorSet
    """The first set; headers hand over to later ones."""
    leaders: Mapping[bytes, str]
    """A name for each validator's key: chain and position in genesis."""
    clients: Mapping[str, str]
    """The chain's clients: which of our chains each one follows."""
    event_type: type[Wire]
    """The union of this chain's events."""
    fee_per_weight: int
    """In the smallest unit of the fee token; 0 on the oracle chain."""

    def leader(self, header: Header) -> str | None:
        """Who made a final block: the slot's claimant, or the primary of the view."""
        members = self.validators.members
        if header.set_id != self.validators.set_id:
            return None
        index = read_claim(header).authority if header.digest else header.round % len(members)
        return self.leaders.get(members[index]) if index < len(members) else None

    def route_to(self, client_id: str) -> str | None:
        """The route of a packet that this chain sends by one of its clients."""
        other = self.clients.get(client_id)
        return None if other is None else f"{self.name}-{other}"

    def route_from(self, client_id: str) -> str | None:
        """The route of a packet that this chain receives by one of its clients."""
        other = self.clients.get(client_id)
        return None if other is None else f"{other}-{self.name}"

    def decode_event(self, record: bytes) -> Wire:
        """The event in an encoded record.

        Raises:
            Malformed: this software does not know the event.
        """
        return decode(decode(record, EventRecord).data, self.event_type)


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The three chains, and the clock that they share."""

    name: str
    chains: Mapping[str, ChainFacts]
    clock: GridClock
    utc_offset_minutes: int
    zones: tuple[int, ...]

    def local_time(self, grid_ms: int) -> str:
        """A grid time as ISO text in the network's local time."""
        zone = timezone(timedelta(minutes=self.utc_offset_minutes))
        moment = datetime.fromtimestamp(grid_ms / 1000, UTC).astimezone(zone)
        return moment.isoformat(timespec="seconds")

    def interval_start(self, interval: int) -> str:
        """When an interval starts, as local ISO text."""
        return self.local_time(interval_start_ms(interval))

    def product(self, zone: int, interval: int) -> str:
        """A product's name: ``zone-0/2026-04-22T09:30``."""
        return f"{market_name(zone)}/{self.interval_start(interval)[:16]}"


def market_name(zone: int) -> str:
    """A zone's market."""
    return f"{ZONE_PREFIX}{zone}"


def load_facts(name: str, public: Path, consortium: Path, oracle: Path) -> NetworkFacts:
    """Read the three genesis files.

    Raises:
        LocalFault: one is unreadable, or they are not of one network.
    """
    return network_facts(
        name,
        _read(public, PublicGenesis),
        _read(consortium, ConsortiumGenesis),
        _read(oracle, OracleGenesis),
    )


def network_facts(
    name: str, public: PublicGenesis, consortium: ConsortiumGenesis, oracle: OracleGenesis
) -> NetworkFacts:
    """The facts of three genesis files that belong together.

    Raises:
        LocalFault: they do not.
    """
    names = {public.chain_id: PUBLIC, consortium.chain_id: CONSORTIUM, oracle.chain_id: ORACLE}
    if not public.clock == consortium.clock == oracle.clock:
        raise LocalFault("the three genesis files have different clocks: of one network, please")
    clock = consortium.clock
    ledgers = {
        PUBLIC: public_ledger(public),
        CONSORTIUM: consortium_ledger(consortium),
        ORACLE: oracle_ledger(oracle),
    }
    seats = {each.session_key: index for index, each in enumerate(public.candidates)}
    ordered = {key: index for index, key in enumerate(consortium.validators)}
    oracles = {key: index for index, key in enumerate(oracle.validators)}
    chains = (
        ChainFacts(
            PUBLIC,
            public.chain_id,
            ledgers[PUBLIC].genesis(clock.network_genesis_ms).hash,
            public.validator_set,
            _leaders(PUBLIC, seats),
            _clients(PUBLIC, public.clients, names),
            ledgers[PUBLIC].event_union,
            public.fee_per_weight_ngrid,
        ),
        ChainFacts(
            CONSORTIUM,
            consortium.chain_id,
            ledgers[CONSORTIUM].genesis(clock.network_genesis_ms).hash,
            consortium.validator_set,
            _leaders(CONSORTIUM, ordered),
            _clients(CONSORTIUM, consortium.clients, names),
            ledgers[CONSORTIUM].event_union,
            consortium.fee_uwatt_per_weight,
        ),
        ChainFacts(
            ORACLE,
            oracle.chain_id,
            ledgers[ORACLE].genesis(clock.network_genesis_ms).hash,
            oracle.validator_set,
            _leaders(ORACLE, oracles),
            _clients(ORACLE, oracle.clients, names),
            ledgers[ORACLE].event_union,
            0,
        ),
    )
    return NetworkFacts(
        name,
        {chain.name: chain for chain in chains},
        clock,
        consortium.tariff.utc_offset_minutes,
        consortium.zones,
    )


def _leaders(chain: str, positions: Mapping[bytes, int]) -> dict[bytes, str]:
    return {key: f"{chain}-{index}" for key, index in positions.items()}


def _clients(
    chain: str, clients: tuple[ClientGenesis, ...], names: Mapping[bytes, str]
) -> dict[str, str]:
    for client in clients:
        if client.chain_id not in names:
            raise LocalFault(
                f"{chain} genesis: its client {client.client_id!r} follows a chain of which no "
                "genesis file was given; give the three files of one network"
            )
    return {client.client_id: names[client.chain_id] for client in clients}


def _read(path: Path, type_: type[G]) -> G:
    return parse_genesis(read_file(path), type_, str(path))
