"""A deterministic world for any set of machines: virtual time, a seeded network, crashes.

Law of the file: **seed and calls determine everything.** One queue of things to happen, ordered by
(time, sequence number); one seeded source of randomness; no clock, no set iteration.

The world is the second driver of the machine contract (`core/machine.py`), so it owes the same
order: effects pass through the same `Outbox`, a message enters a machine only after its signatures
verified, a timer that was replaced or cancelled is not delivered, and a crash keeps exactly a prefix
of the batches that were written. It knows no protocol.

Two nodes may have one identity (twins): peers send to the identity, and both hear it.
"""

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Committed,
    Effect,
    Event,
    Instant,
    Log,
    Machine,
    Misbehaviour,
    NodeId,
    PeerConnected,
    Persist,
    Reader,
    Received,
    Reject,
    Send,
    SetTimer,
    SignatureCheck,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Verified,
)
from gridtokenx.core.outbox import Outbox
from gridtokenx.lab.sim.network import Envelope, LinkProfile, Network
from gridtokenx.lab.sim.store import SimulatedStore

START_MS: Final = 1_776_823_200_000
"""Default time of genesis: 22 April 2026, 02:00 UTC (09:00 in Bangkok)."""
_STASH_MESSAGES: Final = 256
_KNOWN_SIGNATURES: Final = 200_000
_MANY: Final = 2
"""A list of so many signatures is remembered as a whole."""
_SOUND_LISTS: Final = 1_024
_ENCODED_MESSAGES: Final = 4_096
_NOTES: Final = 512
"""So many pieces of the trace are hashed at once: the hash of the pieces together is the same."""
_MILLION: Final = 1_000_000

Build = Callable[[Reader], Machine]


@dataclass(slots=True)
class SimulatedNode:
    """One node: its disk outlives its machine, a machine lives from `start` to `crash`."""

    id: NodeId
    network: str
    build: Build
    clock_offset_ms: int
    store: SimulatedStore = field(default_factory=SimulatedStore)
    machine: Machine | None = None
    outbox: Outbox = field(default_factory=Outbox)
    life: int = 0
    timers: dict[Hashable, int] = field(default_factory=dict)
    stash: deque[tuple[NodeId, Wire]] = field(default_factory=lambda: deque(maxlen=_STASH_MESSAGES))
    disk_free_ms: Instant = 0
    """When the sync that is under way is done."""
    disk_next_ms: Instant = 0
    """When the one after it is done: it takes all batches that wait by then, as the real store does."""
    paused: bool = False
    waiting: deque[Callable[[], None]] = field(default_factory=deque)
    committed: list[Committed] = field(default_factory=list)
    misbehaviours: list[Misbehaviour] = field(default_factory=list)
    rejections: Counter[str] = field(default_factory=Counter)
    logs: deque[tuple[Instant, Log]] = field(default_factory=lambda: deque(maxlen=2_000))
    identity: NodeId = b""
    """Under which peers know it; its id, unless it is a twin."""
    drift_ppm: int = 0
    """How much too fast its clock runs, in millionths."""
    drift_from_ms: Instant = 0
    """Since when it does."""
    halted: Exception | None = None
    """What ended its last life, if not a crash from outside."""

    def local_ms(self, now: Instant) -> Instant:
        """What its clock shows."""
        shown = now + self.clock_offset_ms
        if self.drift_ppm:
            shown += (now - self.drift_from_ms) * self.drift_ppm // _MILLION
        return shown

    def sync_until_ms(self, now: Instant, duration_ms: int) -> Instant:
        """When a batch that is written now is durable, if a sync takes so long."""
        if now >= self.disk_free_ms:
            self.disk_free_ms, self.disk_next_ms = self.disk_next_ms, 0
        if now >= self.disk_free_ms:
            self.disk_free_ms = now + duration_ms
            return self.disk_free_ms
        if not self.disk_next_ms:
            self.disk_next_ms = self.disk_free_ms + duration_ms
        return self.disk_next_ms

    def set_drift(self, now: Instant, drift_ppm: int) -> None:
        """Let the clock run at another speed from now on."""
        self.clock_offset_ms = self.local_ms(now) - now
        self.drift_ppm, self.drift_from_ms = drift_ppm, now

    def until_ms(self, now: Instant, local_ms: Instant) -> int:
        """How long until its clock shows a time."""
        wait_ms = local_ms - self.local_ms(now)
        return max(0, -(-wait_ms * _MILLION // (_MILLION + self.drift_ppm)))

    @property
    def alive(self) -> bool:
        """Whether a machine is running."""
        return self.machine is not None


class World:
    """Nodes, network, disks and time.

    Args:
        seed: of every draw that the world makes.
        verifier: checks the signatures that machines name.
        profile: how links behave by default.
        disk_ms: least and greatest time until a batch is durable.
        start_ms: network time at the beginning.
        trace: keep a running hash of everything delivered (costs an encoding per message).
    """

    def __init__(
        self,
        seed: int,
        verifier: Verifier,
        *,
        profile: LinkProfile | None = None,
        disk_ms: tuple[int, int] = (0, 2),
        start_ms: Instant = START_MS,
        trace: bool = False,
    ) -> None:
        self.draw: Final = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.network: Final = Network(self.draw, profile or LinkProfile())
        self.nodes: Final[dict[NodeId, SimulatedNode]] = {}
        self.now: Instant = start_ms
        self.delivered = 0
        self.on_committed: Callable[[SimulatedNode, Committed], None] | None = None
        self.on_emitted: Callable[[SimulatedNode, Wire], None] | None = None
        """Hears of every message that leaves a node, before the network decides about it."""
        self.on_stepped: Callable[[SimulatedNode], None] | None = None
        """Called after every step of a machine."""
        self.on_halted: Callable[[SimulatedNode, Exception], None] | None = None
        """Called when a machine raised and its node ended; without it the exception goes through."""
        self._verifier = verifier
        self._disk_ms = disk_ms
        self._queue: list[tuple[Instant, int, Callable[[], None]]] = []
        self._sequence = 0
        self._known: dict[SignatureCheck, bool] = {}
        self._sound: dict[int, Sequence[SignatureCheck]] = {}
        self._trace = hashlib.sha256() if trace else None
        self._notes: list[bytes] = []
        self._encoded: dict[int, tuple[Wire, bytes]] = {}
        self._places: dict[NodeId, list[SimulatedNode]] = {}
        self._peers_of: dict[NodeId, list[SimulatedNode]] = {}

    # -- building ----------------------------------------------------------------------------------

    def add(
        self,
        node: NodeId,
        build: Build,
        *,
        network: str = "",
        clock_offset_ms: int = 0,
        identity: NodeId = b"",
    ) -> SimulatedNode:
        """Add a node, not yet started.

        Args:
            node: its identity.
            build: makes its machine from its disk: called at every start.
            network: `Broadcast` reaches the nodes of the same network.
            clock_offset_ms: what its clock shows beyond the world's time.
            identity: under which peers know it, if not `node`: it is a twin of that one.
        """
        made = SimulatedNode(node, network, build, clock_offset_ms, identity=identity or node)
        self.nodes[node] = made
        self._places.setdefault(made.identity, []).append(made)
        self._peers_of.clear()
        return made

    def start(self, *nodes: NodeId) -> None:
        """Start nodes (all that are down, if none is named): restored from their disks."""
        chosen = nodes or tuple(id_ for id_, node in self.nodes.items() if not node.alive)
        for id_ in chosen:
            self._start(self.nodes[id_])

    def crash(self, node: NodeId, keep: int | None = None, *, torn: bool = False) -> None:
        """Kill a node at once.

        Args:
            node: which.
            keep: how many of its not yet durable batches survive; drawn from the seed if None.
            torn: the batch after these is cut in the middle, on a disk that is not atomic.
        """
        victim = self.nodes[node]
        kept = self.draw.randint(0, victim.store.pending) if keep is None else keep
        victim.store.crash(kept, self.draw.randint(0, victim.store.next_batch()) if torn else 0)
        victim.machine = None
        victim.life += 1
        victim.timers.clear()
        victim.stash.clear()
        victim.waiting.clear()
        victim.paused = False

    def pause(self, node: NodeId) -> None:
        """Stop a node without ending it (SIGSTOP): everything that arrives waits."""
        self.nodes[node].paused = True

    def resume(self, node: NodeId) -> None:
        """Let a paused node go on: what waited happens now, in order."""
        target = self.nodes[node]
        target.paused = False
        waiting, target.waiting = target.waiting, deque()
        for action in waiting:
            self.at(self.now, action)

    # -- driving -----------------------------------------------------------------------------------

    def at(self, time_ms: Instant, action: Callable[[], None]) -> None:
        """Do something at a time; things of one time happen in the order they were asked for."""
        self._sequence += 1
        heapq.heappush(self._queue, (max(time_ms, self.now), self._sequence, action))

    def submit(
        self, node: NodeId, transactions: Sequence[Wire], *, everywhere: bool = False
    ) -> None:
        """Hand client transactions to a node, now; a node that is down hears nothing.

        Args:
            node: which.
            transactions: what.
            everywhere: see `Submitted`.
        """
        target = self.nodes[node]
        event = Submitted(tuple(transactions), everywhere)
        self._when_running(target, lambda: self._step(target, event))

    def run_for(self, duration_ms: int) -> None:
        """Let time pass."""
        end, queue, pop = self.now + duration_ms, self._queue, heapq.heappop
        while queue and queue[0][0] <= end:
            self.now, _, action = pop(queue)
            action()
        self.now = end

    def run_until(self, done: Callable[[], bool], limit_ms: int) -> bool:
        """Let time pass until `done`, at most so long; returns whether it was."""
        end, queue, pop = self.now + limit_ms, self._queue, heapq.heappop
        while not done():
            if not queue or queue[0][0] > end:
                self.now = end
                return done()
            self.now, _, action = pop(queue)
            action()
        return True

    def trace_digest(self) -> str:
        """Hash of everything that was delivered so far; needs `trace`."""
        if self._trace is None:
            raise AssertionError("the world was built without trace=True")
        self._trace.update(b"".join(self._notes))
        self._notes.clear()
        return self._trace.hexdigest()

    # -- events ------------------------------------------------------------------------------------

    def _start(self, node: SimulatedNode) -> None:
        if node.alive:
            raise AssertionError("the node is running; crash it first")
        node.life += 1
        node.outbox = Outbox()
        node.disk_free_ms, node.disk_next_ms = self.now, 0
        node.halted = None
        try:
            node.machine = node.build(node.store)
        except Exception as error:  # noqa: BLE001 - whatever ends a process ends its node
            self._halt(node, error)
            return
        life = node.life
        self._step(node, Start())
        for peer in self._peers(node):
            if peer.alive and node.life == life:
                self._greet(node, peer)
                self._greet(peer, node)

    def _greet(self, node: SimulatedNode, peer: SimulatedNode) -> None:
        delay_ms = self.network.profile.delay(self.draw)
        self._later(node, delay_ms, lambda: self._step(node, PeerConnected(peer.identity)))

    def _later(self, node: SimulatedNode, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something with this life of a node, unless it ends before."""
        self.at(self.now + delay_ms, partial(self._in_life, node, node.life, action))

    def _in_life(self, node: SimulatedNode, life: int, action: Callable[[], None]) -> None:
        if node.life == life:
            self._when_running(node, action)

    def _when_running(self, node: SimulatedNode, action: Callable[[], None]) -> None:
        if node.paused:
            node.waiting.append(action)
        elif node.alive:
            action()

    def _step(self, node: SimulatedNode, event: Event) -> None:
        if node.machine is None:
            return
        if self._trace is not None:
            self._note_event(node, event)
            if len(self._notes) >= _NOTES:
                self._trace.update(b"".join(self._notes))
                self._notes.clear()
        life = node.life
        shown_ms = node.local_ms(self.now) if node.drift_ppm else self.now + node.clock_offset_ms
        try:
            effects = node.machine.step(shown_ms, event)
        except Exception as error:  # noqa: BLE001 - whatever ends a process ends its node
            self._halt(node, error)
            return
        if effects:
            for effect in node.outbox.push(effects):
                if node.life == life:
                    self._carry_out(node, effect)
        if self.on_stepped is not None and node.life == life:
            self.on_stepped(node)

    def _halt(self, node: SimulatedNode, error: Exception) -> None:
        """A machine raised: its node ends, as a process would, and is not started by itself."""
        if self.on_halted is None:
            raise error
        self.crash(node.id)
        node.halted = error
        self.on_halted(node, error)

    def _deliver(self, sender: SimulatedNode, node: SimulatedNode, message: Wire) -> None:
        if self.network.parted and not self.network.connected(sender.id, node.id):
            return
        if node.paused:
            node.waiting.append(partial(self._verify, node, sender.identity, message))
        else:
            self._verify(node, sender.identity, message)

    def _verify(self, node: SimulatedNode, sender: NodeId, message: Wire) -> None:
        machine = node.machine
        if machine is None:
            return
        try:
            checks = machine.verification(message)
        except RemoteFault as fault:
            node.rejections[fault.reason] += 1
            return
        if isinstance(checks, Unknown):
            node.stash.append((sender, message))
            return
        if not self._hold(checks):
            node.rejections["bad-signature"] += 1
            return
        self.delivered += 1
        self._step(node, Received(Verified(sender, message)))

    def _hold(self, checks: Sequence[SignatureCheck]) -> bool:
        """Whether all of them do; machines that share what they name are told at once."""
        if len(checks) < _MANY:
            return all(map(self._holds, checks))
        if id(checks) in self._sound:
            return True
        if not all(map(self._holds, checks)):
            return False
        if len(self._sound) >= _SOUND_LISTS:
            self._sound.clear()
        self._sound[id(checks)] = checks
        return True

    def _holds(self, check: SignatureCheck) -> bool:
        known = self._known.get(check)
        if known is None:
            if len(self._known) >= _KNOWN_SIGNATURES:
                self._known.clear()
            known = self._verifier.verify(check.public_key, check.message, check.signature)
            self._known[check] = known
        return known

    # -- effects -----------------------------------------------------------------------------------

    def _carry_out(self, node: SimulatedNode, effect: Effect) -> None:
        match effect:
            case Broadcast(message):
                self._note_emitted(node, message)
                for peer in self._peers(node):
                    self._send(node, peer, message)
            case SetTimer(name, at_ms):
                self._set_timer(node, name, at_ms)
            case Persist():
                self._persist(node, effect)
            case Send(to, message):
                self._note_emitted(node, message)
                for place in self._places.get(to, ()):
                    self._send(node, place, message)
            case CancelTimer(name):
                node.timers.pop(name, None)
            case Committed():
                self._note_committed(node, effect)
            case Misbehaviour():
                node.misbehaviours.append(effect)
            case Reject(_, reason):
                node.rejections[reason] += 1
            case Log():
                node.logs.append((self.now, effect))

    def _persist(self, node: SimulatedNode, batch: Persist) -> None:
        if node.store.full:
            self._halt(node, LocalFault("the disk is full"))
            return
        node.store.write(batch.writes)
        duration_ms = self.draw.randint(*self._disk_ms)
        if node.store.delay_ms:
            duration_ms += self.draw.randint(0, node.store.delay_ms)
        done_ms = node.sync_until_ms(self.now, duration_ms)
        durable = partial(self._durable, node, node.life)
        self.at(done_ms, partial(self._in_life, node, node.life, durable))

    def _durable(self, node: SimulatedNode, life: int) -> None:
        """The oldest batch is on disk: what waited for it may leave."""
        if node.store.fails:
            self._halt(node, LocalFault("a sync failed"))
            return
        node.store.sync()
        for effect in node.outbox.durable():
            if node.life == life:
                self._carry_out(node, effect)

    def _note_emitted(self, node: SimulatedNode, message: Wire) -> None:
        if self.on_emitted is not None:
            self.on_emitted(node, message)

    def _send(self, node: SimulatedNode, to: SimulatedNode, message: Wire) -> None:
        if to.identity == node.identity:
            return
        envelope = Envelope(self.now, node.id, to.id, message)
        for arrival in self.network.arrivals(envelope):
            self.at(arrival, partial(self._deliver, node, to, message))

    def _set_timer(self, node: SimulatedNode, name: Hashable, at_ms: Instant) -> None:
        self._sequence += 1
        node.timers[name] = self._sequence
        fire = partial(self._fire, node, name, self._sequence)
        self.at(self.now + node.until_ms(self.now, at_ms), fire)

    def _fire(self, node: SimulatedNode, name: Hashable, generation: int) -> None:
        """A timer is due, unless it was cancelled or set again, or its life has ended."""
        if node.timers.get(name) != generation:
            return
        if node.paused:
            node.waiting.append(partial(self._fire, node, name, generation))
            return
        del node.timers[name]
        self._step(node, TimerFired(name))

    def _note_committed(self, node: SimulatedNode, effect: Committed) -> None:
        node.committed.append(effect)
        if self.on_committed is not None:
            self.on_committed(node, effect)
        waiting = list(node.stash)
        node.stash.clear()
        for sender, message in waiting:
            self._later(node, 0, partial(self._verify, node, sender, message))

    def _peers(self, node: SimulatedNode) -> Sequence[SimulatedNode]:
        found = self._peers_of.get(node.id)
        if found is None:
            found = self._peers_of[node.id] = [
                peer
                for peer in self.nodes.values()
                if peer.network == node.network and peer.identity != node.identity
            ]
        return found

    # -- the trace ---------------------------------------------------------------------------------

    def _note_event(self, node: SimulatedNode, event: Event) -> None:
        notes, now = self._notes, self.now.to_bytes(8, "big")
        if type(event) is Received:  # most are
            message = event.verified.message
            known = self._encoded.get(id(message))
            data = self._encode(message) if known is None else known[1]
            notes += (now, node.id, b"Received", event.verified.sender, data)
            return
        notes += (now, node.id, type(event).__name__.encode())
        match event:
            case TimerFired(name):
                notes.append(repr(name).encode())
            case Submitted(transactions):
                notes += map(self._encode, transactions)
            case PeerConnected(peer):
                notes.append(peer)
            case _:
                """Nothing more to tell."""

    def _encode(self, message: Wire) -> bytes:
        """The bytes of a message; most are delivered to many, so the newest are kept."""
        known = self._encoded.get(id(message))
        if known is None:
            if len(self._encoded) >= _ENCODED_MESSAGES:
                self._encoded.clear()
            known = self._encoded[id(message)] = (message, encode(message))
        return known[1]
