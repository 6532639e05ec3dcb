"""What really happened: counted and judged by re-executing the chains that the nodes left on disk.

Law of the file: **an invariant is judged under load**, at every block or at consistent cuts through
two chains, never only at the end when everything is quiet. The last word on each is a boolean with
the first sentence that contradicts it.
"""

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from gridtokenx.consortium.market.messages import AuctionCleared, PriceSignalUpdated
from gridtokenx.consortium.participants import Participants
from gridtokenx.consortium.settlement.messages import IntervalSettled, WindowClosed
from gridtokenx.consortium.settlement.module import Settlement
from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.machine import Reader
from gridtokenx.core.state_tree import StateTree
from gridtokenx.host.chains import ChainFacts, read_chain
from gridtokenx.interchain import calls
from gridtokenx.interchain.apps import attestation, meter_report
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.audit import conservation_gap
from gridtokenx.interchain.packets import Delivered, Packet
from gridtokenx.lab.replay import (
    ED25519,
    MAX_FULL_CHECKS,
    Divergence,
    Replayed,
    decoded_events,
    open_chain_store,
    replay,
)
from gridtokenx.lab.testnet.energy import Certified, Settled
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.records import base_height, final_height, load_block
from gridtokenx.ledger.runtime import Executed, Ledger, Module
from gridtokenx.ledger.state import State
from gridtokenx.oracle.chain.meters import IntervalClosed
from gridtokenx.public.rec import AttestationDeclined, CertificateIssued, CertificateRetired
from gridtokenx.public.staking import GRID_DENOM

HOME_CHAIN: Final = "public"
AWAY_CHAIN: Final = "consortium"
METERING_CHAIN: Final = "oracle"
REPLAYED: Final = (METERING_CHAIN, HOME_CHAIN, AWAY_CHAIN)
"""Each chain after those that it is judged by."""
M = TypeVar("M", bound=Module)


@dataclass(slots=True)
class Verdicts:
    """Invariants by name, with what contradicts them."""

    against: dict[str, list[str]] = field(default_factory=dict)

    def look(self, name: str) -> None:
        """Note that an invariant was looked at."""
        self.against.setdefault(name, [])

    def break_(self, name: str, sentence: str) -> None:
        """Note that an invariant does not hold."""
        self.against.setdefault(name, []).append(sentence)

    def judge(self, name: str, against: Iterable[str]) -> None:
        """Note that an invariant was looked at, with what contradicts it."""
        self.look(name)
        for sentence in against:
            self.break_(name, sentence)

    def as_booleans(self) -> dict[str, bool]:
        """Name -> whether it held wherever it was looked at."""
        return {name: not sentences for name, sentences in self.against.items()}


@dataclass(slots=True)
class Route:
    """Packets from one chain to another."""

    sent: set[bytes] = field(default_factory=set)
    delivered: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    acknowledged: Counter[bytes] = field(default_factory=Counter)
    timed_out: Counter[bytes] = field(default_factory=Counter)


@dataclass(slots=True)
class Audit:
    """Everything counted."""

    verdicts: Verdicts = field(default_factory=Verdicts)
    heights: dict[str, int] = field(default_factory=dict)
    intervals_ms: dict[str, list[int]] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    readings_verified: int = 0
    readings_refused: int = 0
    auctions_held: int = 0
    auctions_cleared: int = 0
    trades: int = 0
    traded_wh: int = 0
    traded_by_interval: Counter[int] = field(default_factory=Counter)
    price_signals: int = 0
    settled: dict[int, IntervalSettled] = field(default_factory=dict)
    energy: Settled = field(default_factory=Settled)
    certificates: Certified = field(default_factory=Certified)
    retired_wh: int = 0
    ends_ms: dict[str, int] = field(default_factory=dict)
    """Network time of each chain's last block."""
    home_states: list[tuple[int, StateTree, int]] = field(default_factory=list)
    """(home height, home state, latest away height that home had recorded)."""

    def route(self, source: str, destination: str) -> Route:
        """The packets from one chain to another."""
        return self.routes.setdefault(f"{source}-{destination}", Route())


@dataclass(frozen=True, slots=True)
class StoppedChain:
    """A chain of a network that has stopped."""

    facts: ChainFacts
    stores: Mapping[str, Callable[[], AbstractContextManager[Reader]]]
    """By node: opens its store; `LocalFault` if it is damaged."""


def audit(layout: Layout) -> Audit:
    """Replay and judge a stopped network."""
    genesis = {name: read_chain(name, layout.genesis_path(name)) for name in REPLAYED}
    return audit_chains({name: stopped_chain(layout, facts) for name, facts in genesis.items()})


def stopped_chain(layout: Layout, facts: ChainFacts) -> StoppedChain:
    """A chain of a network that was laid out on disk."""
    return StoppedChain(
        facts,
        {
            member.name: partial(_opened, layout.directory(member.name) / "data")
            for member in layout.nodes(facts.name)
        },
    )


def audit_chains(
    chains: Mapping[str, StoppedChain],
    verifier: Verifier = ED25519,
    full_checks: int = MAX_FULL_CHECKS,
) -> Audit:
    """Replay and judge the chains of a stopped network.

    Args:
        chains: by name.
        verifier: checks signatures; only simulated chains have another.
        full_checks: see `replay`.
    """
    result = Audit()
    for name in REPLAYED:
        _compare_nodes(chains[name], result)
        _replay_longest(chains[name], result, verifier, full_checks)
    _judge_packets(result)
    _judge_certificates(result)
    return result


# -- one chain -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[Reader]:
    store = open_chain_store(directory)
    try:
        yield store
    finally:
        store.close()


def _compare_nodes(chain: StoppedChain, result: Audit) -> None:
    """No two nodes finalised different blocks at one height."""
    name = chain.facts.name
    invariant = f"{name}_agreement"
    result.verdicts.look(invariant)
    seen: dict[int, bytes] = {}
    result.verdicts.look(f"{name}_stores")
    for node, open_store in chain.stores.items():
        try:
            with open_store() as store:
                for height, block_hash in _block_hashes(store):
                    if seen.setdefault(height, block_hash) != block_hash:
                        result.verdicts.break_(invariant, f"{node} differs at block {height}")
                        break
        except LocalFault as fault:  # one damaged store is no reason to judge none of the others
            result.verdicts.break_(f"{name}_stores", f"{node}: {fault}")


def _block_hashes(store: Reader) -> Iterator[tuple[int, bytes]]:
    for height in range(1, (final_height(store) or 0) + 1):
        block = load_block(store, height)
        if block is not None:
            yield height, block.hash


def _replay_longest(
    chain: StoppedChain, result: Audit, verifier: Verifier, full_checks: int
) -> None:
    name = chain.facts.name
    result.verdicts.look(f"{name}_reexecutes")
    result.verdicts.look(f"{name}_ledger")
    follower = _Follower(chain.facts, result)
    with chain.stores[_longest(chain)]() as store:
        try:
            for replayed in replay(chain.facts, store, None, verifier, full_checks):
                follower.take(replayed)
            follower.finish()
        except Divergence as divergence:
            result.verdicts.break_(f"{name}_reexecutes", str(divergence))


def _longest(chain: StoppedChain) -> str:
    """The node whose store tells most: one that has every block, as long as there is one."""
    heights: dict[str, tuple[bool, int]] = {}
    for node, open_store in chain.stores.items():
        with (
            contextlib.suppress(LocalFault),
            open_store() as store,
        ):  # `_compare_nodes` has named it
            heights[node] = (base_height(store) == 0, final_height(store) or 0)
    if not heights:
        raise LocalFault(f"no store of the {chain.facts.name} chain can be opened")
    return max(heights, key=lambda node: heights[node])


class _Follower:
    """Counts what happens on one chain."""

    def __init__(self, chain: ChainFacts, result: Audit) -> None:
        self._chain = chain
        self._result = result
        self._name = chain.name
        self._last_ms: int | None = None
        self._state = State(chain.genesis_block.state)
        self._away_height = 0
        self._home_states: dict[int, list[tuple[int, StateTree]]] = {}
        if self._name == AWAY_CHAIN:
            for height, tree, away in result.home_states:
                self._home_states.setdefault(away, []).append((height, tree))

    def take(self, replayed: Replayed) -> None:
        """One more block."""
        executed, result = replayed.executed, self._result
        for sentence in replayed.broken:
            result.verdicts.break_(f"{self._name}_ledger", sentence)
        result.heights[self._name] = executed.height
        result.ends_ms[self._name] = executed.header.timestamp_ms
        self._state = State(executed.state)
        self._take_time(executed.height, executed.header.timestamp_ms)
        if self._name == METERING_CHAIN:
            self._count_readings(replayed)
        for event in decoded_events(self._chain.ledger, executed):
            self._take_event(event)
        self._judge_conservation(executed.height, executed.state)

    def finish(self) -> None:
        """The chain has been replayed to its end."""
        name = "settled_as_reported"
        if self._name == METERING_CHAIN:
            self._result.verdicts.judge(name, self._result.energy.judge_reports())
        if self._name == AWAY_CHAIN:
            self._result.verdicts.look("settled_once")
            totals = _module(self._chain.ledger, Settlement).totals.get(self._state)
            self._result.verdicts.judge(name, self._result.energy.judge_total(totals.metered_wh))

    def _take_time(self, height: int, timestamp_ms: int) -> None:
        if self._last_ms is not None and height > 1:
            intervals = self._result.intervals_ms.setdefault(self._name, [])
            intervals.append(timestamp_ms - self._last_ms)
        self._last_ms = timestamp_ms

    def _count_readings(self, replayed: Replayed) -> None:
        executed, result = replayed.executed, self._result
        readings = {
            transaction.id
            for transaction in executed.block.transactions
            if any(
                isinstance(call, SubmitReading)
                for call in self._chain.ledger.decode_calls(transaction)
            )
        }
        for event in decoded_events(self._chain.ledger, executed):
            if isinstance(event, Executed) and event.transaction_id in readings:
                accepted = all(call.code == "ok" for call in event.results)
                result.readings_verified += accepted
                result.readings_refused += not accepted

    def _take_event(self, event: Wire) -> None:
        result = self._result
        match event:
            case AuctionCleared():
                result.auctions_held += 1
                result.auctions_cleared += event.price_uwatt_per_kwh is not None
                result.trades += event.trades
                result.traded_wh += event.volume_wh
                result.traded_by_interval[event.interval] += event.trades
            case PriceSignalUpdated():
                result.price_signals += 1
            case IntervalSettled():
                self._settle(event)
            case WindowClosed():
                result.energy.closed.add(event.interval)
            case IntervalClosed():
                outcome = event.outcome
                result.energy.outcomes[outcome.interval] = outcome
                result.certificates.outcomes.append((outcome.closed_ms, outcome.attested_wh))
            case CertificateIssued():
                result.certificates.issue(event)
            case AttestationDeclined():
                result.certificates.decline(event)
            case CertificateRetired():
                result.retired_wh += event.energy_wh
            case _:
                self._take_packet(event)

    def _settle(self, event: IntervalSettled) -> None:
        result, participants = self._result, _module(self._chain.ledger, Participants)

        def kind_of(device: bytes) -> DeviceKind | None:
            known = participants.device(self._state, device)
            return None if known is None else known.kind

        if event.interval in result.settled:
            result.verdicts.break_("settled_once", f"interval {event.interval} twice")
        result.settled[event.interval] = event
        result.verdicts.judge("settled_as_reported", result.energy.judge_batch(event, kind_of))

    def _take_packet(self, event: Wire) -> None:
        result, here = self._result, self._name
        match event:
            case calls.PacketSent():
                result.route(here, event.packet.source_client).sent.add(event.packet_id)
                self._take_sent(event.packet)
            case calls.PacketReceived():
                route = result.route(event.client_id, here)
                accepted = isinstance(event.acknowledgement, Delivered)
                (route.delivered if accepted else route.refused).add(event.packet_id)
            case calls.PacketAcknowledged():
                result.route(here, event.client_id).acknowledged[event.packet_id] += 1
            case calls.PacketTimedOut():
                result.route(here, event.client_id).timed_out[event.packet_id] += 1
            case calls.ClientUpdated() if here == HOME_CHAIN and event.client_id == AWAY_CHAIN:
                self._away_height = max(self._away_height, event.height)

    def _take_sent(self, packet: Packet) -> None:
        """Look into what tells of energy."""
        if packet.port == meter_report.PORT:
            self._result.energy.report(meter_report.decode_report(packet.payload))
        elif packet.port == attestation.PORT:
            batch = attestation.decode_attestations(packet.payload)
            self._result.certificates.attest(batch, self._result.ends_ms[self._name])

    def _judge_conservation(self, height: int, tree: StateTree) -> None:
        if self._name == HOME_CHAIN:
            self._result.home_states.append((height, tree, self._away_height))
            return
        if self._name != AWAY_CHAIN:
            return
        invariant = "grid_conserved_across_chains"
        for home_height, home in self._home_states.pop(height, ()):
            self._result.verdicts.look(invariant)
            gap = conservation_gap(home.get, tree.get, AWAY_CHAIN, HOME_CHAIN, GRID_DENOM)
            if gap:
                self._result.verdicts.break_(
                    invariant, f"off by {gap} at public {home_height}, consortium {height}"
                )


# -- across chains ---------------------------------------------------------------------------------


def _judge_packets(result: Audit) -> None:
    """Each packet ends at most once, and only what was sent arrives."""
    name = "packets_end_once"
    result.verdicts.look(name)
    for label, route in result.routes.items():
        arrived = route.delivered | route.refused
        for packet in arrived - route.sent:
            result.verdicts.break_(name, f"{label}: {packet.hex()[:16]} arrived but was never sent")
        for packet in route.timed_out.keys() & arrived:
            result.verdicts.break_(name, f"{label}: {packet.hex()[:16]} arrived and timed out")
        ended = route.acknowledged + route.timed_out
        for packet, count in ended.items():
            if count > 1:
                result.verdicts.break_(name, f"{label}: {packet.hex()[:16]} ended {count} times")


def _judge_certificates(result: Audit) -> None:
    """Certificates are exactly what was attested, each once, and in time."""
    book = result.certificates
    twice = (f"interval {interval} of {device.hex()[:16]} twice" for device, interval in book.twice)
    result.verdicts.judge("certified_once", twice)
    end_ms = min(result.ends_ms.get(name, 0) for name in (HOME_CHAIN, METERING_CHAIN))
    result.verdicts.judge("certified_as_attested", book.judge(end_ms))


def _module(ledger: Ledger, type_: type[M]) -> M:
    return next(module for module in ledger.modules if isinstance(module, type_))


def chain_summary(result: Audit, name: str) -> dict[str, int | None]:
    """Height and pace of a chain."""
    intervals = result.intervals_ms.get(name)
    height = result.heights.get(name, 0)
    return {
        "height": height,
        "finalized": height,
        "interval_p50_ms": int(statistics.median(intervals)) if intervals else None,
    }


def packet_summary(result: Audit) -> dict[str, dict[str, int]]:
    """Packets by route."""
    return {
        label: {
            "sent": len(route.sent),
            "delivered": len(route.delivered),
            "refused": len(route.refused),
            "timed_out": len(route.timed_out),
        }
        for label, route in sorted(result.routes.items())
    }
