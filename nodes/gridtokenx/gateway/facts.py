"""What the genesis files say: who the chains are, how to read them, and how people call things."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from gridtokenx.consortium.chain import ConsortiumGenesis
from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock, interval_start_ms
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts, faced
from gridtokenx.ledger.blocks import EventRecord, Header
from gridtokenx.oracle.chain.ledger import OracleGenesis
from gridtokenx.public.chain import PublicGenesis
from gridtokenx.public.slots import read_claim

PUBLIC: Final = "public"
CONSORTIUM: Final = "consortium"
ORACLE: Final = "oracle"
ROUTES: Final = (
    "oracle-consortium",
    "consortium-oracle",
    "oracle-public",
    "public-consortium",
    "consortium-public",
)
ZONE_PREFIX: Final = "zone-"


@dataclass(frozen=True, slots=True)
class Chain:
    """One of the three chains, and what it calls things."""

    facts: ChainFacts
    leaders: Mapping[bytes, str]
    """A name for each validator's key: chain and position in genesis."""
    clients: Mapping[str, str]
    """The chain's clients: which of our chains each one follows."""

    @property
    def name(self) -> str:
        """The chain's name."""
        return self.facts.name

    @property
    def chain_id(self) -> bytes:
        """The chain's identity."""
        return self.facts.chain_id

    @property
    def validators(self) -> ValidatorSet:
        """The first validator set."""
        return self.facts.validators

    def leader(self, header: Header, validators: ValidatorSet) -> str | None:
        """Who made a final block: the slot's claimant, or the primary of the view.

        Args:
            header: of the block.
            validators: the set that finalised it.

        Returns:
            Its name, or the beginning of its key if it came after genesis; None if nobody can be named.
        """
        members = validators.members
        if header.set_id != validators.set_id:
            return None
        index = read_claim(header).authority if header.digest else header.round % len(members)
        if index >= len(members):
            return None
        return self.leaders.get(members[index], members[index].hex()[:12])

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
        return decode(decode(record, EventRecord).data, self.facts.ledger.event_union)


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The three chains, and the clock that they share."""

    name: str
    chains: Mapping[str, Chain]
    clock: GridClock
    utc_offset_minutes: int
    zones: tuple[int, ...]
    feed_units: Mapping[str, str]
    """What one unit of each feed's value is."""

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


def network_facts(name: str, chains: Mapping[str, ChainFacts]) -> NetworkFacts:
    """The facts of three chains that belong together.

    Args:
        name: what to call the network.
        chains: by name, all of `host.chains.CHAINS`.

    Raises:
        LocalFault: they are not of one network.
    """
    consortium, oracle = chains[CONSORTIUM].genesis, chains[ORACLE].genesis
    assert isinstance(consortium, ConsortiumGenesis), "the caller read the right files"
    assert isinstance(oracle, OracleGenesis), "the caller read the right files"
    if any(facts.clock != consortium.clock for facts in chains.values()):
        raise LocalFault(
            "the three genesis files have different clocks; give the three files of one network"
        )
    return NetworkFacts(
        name,
        {
            chain: Chain(facts, _leaders(facts), faced(facts, chains.values()))
            for chain, facts in chains.items()
        },
        consortium.clock,
        consortium.tariff.utc_offset_minutes,
        consortium.zones,
        {spec.feed: spec.unit for spec in oracle.feeds},
    )


def _leaders(facts: ChainFacts) -> dict[bytes, str]:
    """By position among the candidates or validators of genesis: the order of people's machines."""
    genesis = facts.genesis
    keys = (
        [candidate.session_key for candidate in genesis.candidates]
        if isinstance(genesis, PublicGenesis)
        else genesis.validators
    )
    return {key: f"{facts.name}-{index}" for index, key in enumerate(keys)}
