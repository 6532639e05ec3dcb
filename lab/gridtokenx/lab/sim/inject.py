"""Faults at work: when each starts, what it does to the world, and how it is undone.

Law of the file: **every fault knows how to end, and ending one leaves the others in force.** Two
faults that want a node down keep it down until both are over. Of the protocol this file knows what
`Subject` says: who leads, how far the chain is.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

from gridtokenx.core.machine import Instant, NodeId
from gridtokenx.lab.faults import (
    Behave,
    BitFlip,
    ClockDrift,
    ClockJump,
    ClockOffset,
    Crash,
    DiskFull,
    FailedSync,
    Fault,
    LostSync,
    OnLinks,
    Partition,
    Pause,
    RoundMutation,
    RoundPartition,
    SlowDisk,
    TornWrite,
    ViewPartition,
    Where,
    Wipe,
    kind_of,
)
from gridtokenx.lab.sim.history import Band, about
from gridtokenx.lab.sim.links import between, cut_of, rule_of, sides_of
from gridtokenx.lab.sim.network import Envelope, Rule, Verdict
from gridtokenx.lab.sim.world import SimulatedNode, World

Undo = Callable[[], None]


class Subject(Protocol):
    """What faults may ask about the system under test."""

    @property
    def places(self) -> Sequence[NodeId]:
        """Nodes by index; twins come after all others."""
        ...

    def leader(self) -> int:
        """Index of the node that leads now, as far as the honest know."""
        ...

    def next_leader(self) -> int:
        """Who would lead after it."""
        ...

    def height(self) -> int:
        """The highest that an honest node has committed."""
        ...

    def view(self) -> int:
        """The highest that an honest node works in."""
        ...

    def holds(self, condition: str) -> bool:
        """Whether a condition of the vocabulary holds for an honest node."""
        ...

    def round_of(self, envelope: Envelope) -> int | None:
        """The protocol's round of a message, in ByzzFuzz's sense."""
        ...

    def view_of(self, envelope: Envelope) -> tuple[int, int] | None:
        """View and phase that a message belongs to; None if to no view."""
        ...

    def misbehave(self, fault: Behave | RoundMutation, *, active: bool) -> None:
        """Switch a behaviour on or off."""
        ...


class Injector:
    """Carries out the faults of one run.

    Args:
        world: where.
        subject: the system under test.
        faults: in the order of the manifest.
        draw: of what they leave to chance.
        note: hears of every start and end, for the timeline.
        names: of nodes, by index, if they have any.
    """

    def __init__(
        self,
        world: World,
        subject: Subject,
        faults: Sequence[Fault],
        draw: random.Random,
        note: Callable[[str], None],
        names: Sequence[str] = (),
    ) -> None:
        self._world: Final = world
        self._subject: Final = subject
        self._faults: Final = faults
        self._draw: Final = draw
        self._note: Final = note
        self._names: Final = names
        self._armed: list[int] = []
        self.watches = False
        """Whether a condition may start a fault after any step."""
        self._undo: dict[int, Undo] = {}
        self._rules: dict[int, Rule] = {}
        self._down: Counter[NodeId] = Counter()
        self._paused: Counter[NodeId] = Counter()
        self._started: set[int] = set()
        self._spans: dict[int, tuple[Instant, Instant | None]] = {}
        self._over = False

    def begin(self) -> None:
        """Set every trigger."""
        start = self._world.now
        for number, fault in enumerate(self._faults):
            if fault.when and fault.at_ms:
                self._world.at(start + fault.at_ms, partial(self._arm, number))
            elif fault.at_height or fault.at_view or fault.when:
                self._arm(number)
            else:
                self._world.at(start + fault.at_ms, partial(self._start, number))

    def _arm(self, number: int) -> None:
        self._armed.append(number)
        self._note_watches()

    def _note_watches(self) -> None:
        self.watches = any(self._faults[number].when for number in self._armed)

    def observe(self) -> None:
        """Something changed: start what has been waiting for it (after the present step)."""
        due = [n for n in self._armed if self._due(self._faults[n])] if self._armed else ()
        for number in due:
            self._armed.remove(number)
            self._note_watches()
            self._world.at(self._world.now, partial(self._start, number))

    def bands(self, start: Instant) -> tuple[Band, ...]:
        """Every fault that came, in the order of the manifest; times since `start`, that of the run."""
        return tuple(
            Band(
                number=number + 1,
                kind=kind_of(self._faults[number]),
                about=about(self._faults[number], self._names),
                starts_ms=began - start,
                ends_ms=None if ended is None else ended - start,
            )
            for number, (began, ended) in sorted(self._spans.items())
        )

    def heal(self) -> None:
        """End everything but treason; nothing starts any more."""
        self._over = True
        for number in list(self._undo):
            if not isinstance(self._faults[number], Behave | RoundMutation):
                self._end(number)
        for node in self._world.nodes.values():
            node.set_drift(self._world.now, 0)
            node.clock_offset_ms = 0

    # -- starting and ending -----------------------------------------------------------------------

    def _due(self, fault: Fault) -> bool:
        if fault.when:
            return self._subject.holds(fault.when)
        if fault.at_height:
            return self._subject.height() >= fault.at_height
        return self._subject.view() >= fault.at_view

    def _start(self, number: int) -> None:
        fault = self._faults[number]
        treason = isinstance(fault, Behave | RoundMutation)
        if (self._over and not treason) or number in self._started:
            return
        self._started.add(number)
        self._note(f"fault {number + 1} starts: {about(fault, self._names)}")
        self._spans[number] = (self._world.now, None)
        self._undo[number] = self._carry_out(number, fault)
        if fault.for_ms:
            self._world.at(self._world.now + fault.for_ms, lambda: self._end(number))

    def _end(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            self._note(f"fault {number + 1} ends: {about(self._faults[number], self._names)}")
            self._spans[number] = (self._spans[number][0], self._world.now)
            undo()

    def _carry_out(self, number: int, fault: Fault) -> Undo:
        match fault:
            case Crash() | Wipe() | TornWrite():
                return self._kill(fault, fault.nodes)
            case Pause(nodes=nodes):
                return self._pause(nodes)
            case DiskFull() | FailedSync() | SlowDisk() | LostSync() | BitFlip():
                return self._break_disks(fault, fault.nodes)
            case ClockOffset() | ClockDrift() | ClockJump():
                return self._set_clocks(fault, fault.nodes)
            case Partition():
                return self._rule(number, self._cut(fault))
            case RoundPartition():
                return self._rule(number, self._cut_round(fault))
            case ViewPartition():
                return self._rule(number, self._cut_view(fault))
            case OnLinks():
                return self._rule(number, self._links(fault))
            case Behave() | RoundMutation():
                self._subject.misbehave(fault, active=True)
                return lambda: self._subject.misbehave(fault, active=False)
            case _:
                raise AssertionError(f"a fault of kind {kind_of(fault)} has nobody to do it")

    def _resolve(self, where: Iterable[Where]) -> list[int]:
        roles = {"leader": self._subject.leader, "next-leader": self._subject.next_leader}
        named = [roles[node]() if isinstance(node, str) else node for node in where]
        return list(dict.fromkeys(named))

    def _nodes(self, where: Iterable[Where]) -> list[SimulatedNode]:
        places = self._subject.places
        return [self._world.nodes[places[index]] for index in self._resolve(where)]

    # -- processes and disks -----------------------------------------------------------------------

    def _kill(self, fault: Crash | Wipe | TornWrite, where: Iterable[Where]) -> Undo:
        nodes = self._nodes(where)
        for node in nodes:
            self._world.crash(node.id, torn=isinstance(fault, TornWrite))
            if isinstance(fault, Wipe):
                node.store.wipe()
        return self._hold_down(nodes)

    def _hold_down(self, nodes: Sequence[SimulatedNode]) -> Undo:
        self._down.update(node.id for node in nodes)

        def undo() -> None:
            self._down.subtract(node.id for node in nodes)
            for node in nodes:
                self._start_node(node)

        return undo

    def _start_node(self, node: SimulatedNode) -> None:
        if self._down[node.id] <= 0 and not node.alive and not node.store.damaged:
            self._world.start(node.id)
            if self._paused[node.id] > 0:
                self._world.pause(node.id)

    def _pause(self, where: Iterable[Where]) -> Undo:
        nodes = self._nodes(where)
        self._paused.update(node.id for node in nodes)
        for node in nodes:
            self._world.pause(node.id)

        def undo() -> None:
            self._paused.subtract(node.id for node in nodes)
            for node in nodes:
                if self._paused[node.id] <= 0:
                    self._world.resume(node.id)

        return undo

    def _break_disks(self, fault: Fault, where: Iterable[Where]) -> Undo:
        nodes = self._nodes(where)
        for node in nodes:
            self._break_disk(fault, node, broken=True)

        def undo() -> None:
            for node in nodes:
                self._break_disk(fault, node, broken=False)
                self._start_node(node)

        return undo

    def _break_disk(self, fault: Fault, node: SimulatedNode, *, broken: bool) -> None:
        store = node.store
        match fault:
            case DiskFull():
                store.full = broken
            case FailedSync():
                store.fails = broken
            case SlowDisk(delay_ms=delay_ms):
                store.delay_ms = delay_ms if broken else 0
            case LostSync():
                store.lies = broken
                if not broken:
                    store.flush()
            case BitFlip() if broken:
                store.flip_bit(self._draw)
            case _:
                """What a flipped bit was, nobody knows."""

    # -- clocks ------------------------------------------------------------------------------------

    def _set_clocks(self, fault: Fault, where: Iterable[Where]) -> Undo:
        nodes = self._nodes(where)
        for node in nodes:
            self._set_clock(fault, node, sign=1)

        def undo() -> None:
            for node in nodes:
                self._set_clock(fault, node, sign=-1)

        return undo

    def _set_clock(self, fault: Fault, node: SimulatedNode, *, sign: int) -> None:
        match fault:
            case ClockOffset(offset_ms=offset_ms):
                node.clock_offset_ms += sign * offset_ms
            case ClockDrift(drift_ppm=drift_ppm):
                node.set_drift(self._world.now, node.drift_ppm + sign * drift_ppm)
            case ClockJump(jump_ms=jump_ms) if sign > 0:
                node.clock_offset_ms += jump_ms
            case _:
                """A jump is not taken back."""

    # -- links -------------------------------------------------------------------------------------

    def _rule(self, number: int, rule: Rule) -> Undo:
        if not self._rules:
            self._world.network.rules.append(self._verdict)
        self._rules[number] = rule
        self._rules = dict(sorted(self._rules.items()))
        return lambda: self._end_rule(number)

    def _end_rule(self, number: int) -> None:
        del self._rules[number]
        if not self._rules:
            self._world.network.rules.remove(self._verdict)

    def _verdict(self, envelope: Envelope) -> Verdict | None:
        for rule in self._rules.values():
            verdict = rule(envelope)
            if verdict is not None:
                return verdict
        return None

    def _cut(self, fault: Partition) -> Rule:
        return cut_of(fault, self._subject.places, self._resolve(fault.nodes), self._draw)

    def _cut_round(self, fault: RoundPartition) -> Rule:
        apart = between(sides_of(fault.sides, self._subject.places))
        return lambda e: apart(e) if self._subject.round_of(e) == fault.round else None

    def _cut_view(self, fault: ViewPartition) -> Rule:
        apart = between(sides_of(fault.sides, self._subject.places))

        def rule(envelope: Envelope) -> Verdict | None:
            place = self._subject.view_of(envelope)
            concerned = place is None or (place[0] == fault.view and place[1] >= fault.phase)
            return apart(envelope) if concerned else None

        return rule

    def _links(self, fault: OnLinks) -> Rule:
        """The rule of a fault of links, for the messages that it concerns."""
        places, draw, profile = self._subject.places, self._draw, self._world.network.profile
        senders = frozenset(places[i] for i in self._resolve(fault.senders))
        receivers = frozenset(places[i] for i in self._resolve(fault.receivers))
        return rule_of(fault, senders, receivers, draw, lambda: profile.delay(draw))
