"""Runs one machine under asyncio.

Law of the file: **the machine is only ever called from one task, one event at a time, and what it
emits is carried out in the order that `core.outbox` gives.** A failure inside the machine or the store
ends the process (`MachineHalted`); it never becomes a result.

::

    links ──frames──> decode ──> verification() ──> signatures ──┐     votes first, gossip when none wait
    timers ──────────────────────────────────────────────────────┼──> step() ──> outbox ──> effects
    clients ──transactions──> signatures ────────────────────────┘                 │
                                        store ──durable──────────────────────────>─┘
"""

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, Wire, decode, encode
from gridtokenx.core.errors import BadSignature, GridTokenXError, LocalFault, RemoteFault
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Committed,
    Effect,
    Event,
    Log,
    Machine,
    Misbehaviour,
    NodeId,
    PeerConnected,
    Persist,
    Received,
    Reject,
    Send,
    SetTimer,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Verified,
    Visible,
    Write,
)
from gridtokenx.core.outbox import Outbox
from gridtokenx.host.checking import SignatureChecker
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.crashpoints import crash_point
from gridtokenx.host.follow_messages import BUSY
from gridtokenx.host.framing import Channel
from gridtokenx.host.link import Link
from gridtokenx.host.logs import LEVELS, Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.pending import GUESTS, PART_CHECKS, LongLines, Pending, Stash
from gridtokenx.host.storage import Store

BATCH_FRAMES: Final = 64
"""Frames taken before timers and clients get their turn."""
FRAMES_PER_LINK: Final = 16
BYTES_PER_LINK: Final = 256 * 1024
"""Taken of one link before others get their turn, or one frame that is larger."""
PATIENT_FRAMES: Final = 128
PATIENT_BYTES: Final = 2 * 1024 * 1024
"""Patient messages of one member, or of all guests, that wait here before links have to, and their size together."""
PATIENT_CHECKS: Final = 64
"""Signatures of patient messages that are checked before others get their turn: about 5 ms."""
BEHIND_BYTES: Final = 128 * 1024
"""Of patient messages: about 600 transactions, whose signatures take some 0.1 s to check."""
ROOM_S: Final = 1.0
"""How long a client's submission waits for a node that is behind."""
MAX_WAITING_SUBMISSIONS: Final = 4096
EVIDENCE: Final = "evidence"
"""The table in which the host keeps proofs of misbehaviour: sequence -> (kind, offender, proof)."""


class MachineHalted(GridTokenXError):
    """A machine failed in a way that it did not expect; nothing more may leave this process."""


class Links(Protocol):
    """What the driver needs of a network."""

    @property
    def members(self) -> Sequence[NodeId]:
        """Members to which a link is up."""
        ...

    @property
    def tolerated(self) -> int:
        """How many members may be faulty, linked or not."""
        ...

    def send(self, peer: bytes, channel: Channel, body: bytes) -> bool:
        """Queue a frame for a member."""
        ...

    def broadcast(self, channel: Channel, body: bytes) -> None:
        """Queue a frame for all members."""

    def fault(self, identity: bytes, fault: RemoteFault) -> None:
        """Count a member's fault."""


@dataclass(frozen=True, slots=True)
class DriverParts:
    """What a driver works with; all of it is shared with the rest of the process."""

    store: Store
    clock: NetworkClock
    checker: SignatureChecker
    metrics: Metrics
    log: Logger


class Driver:
    """One machine, its inputs and its effects.

    Args:
        machine: what is run.
        message_type: the union of messages that its peers may send.
        links: where its messages go.
        parts: store, clock and the like.
        on_committed: told of each final block, once it is durable.
        patient: types of messages that may wait while others are there, and be overtaken by them:
            gossip, of which there is much, must not hold up the votes on which the next block waits. It
            may overtake a message that is checked in parts, too.
    """

    def __init__(
        self,
        machine: Machine,
        message_type: object,
        links: Links,
        parts: DriverParts,
        on_committed: Callable[[Committed], None] = lambda _: None,
        patient: tuple[type[Wire], ...] = (),
    ) -> None:
        self._machine = machine
        self._patient_types = patient
        self._patient: dict[NodeId, deque[Pending]] = {}
        """A line for each member and one for guests: who sends much delays only itself."""
        self._patient_of: Counter[NodeId] = Counter()
        self._spent: Counter[NodeId] = Counter()
        """How much was taken of each line, in signatures, since none waited: who has had least is next."""
        self._behind_s = 0.0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._message_type = cast("type[Wire]", message_type)
        self._links = links
        self._parts = parts
        self._on_committed = on_committed
        self._outbox = Outbox()
        self._timers = _Timers()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_ms: int | None = None
        self._wake = asyncio.Event()
        self._ready: deque[Link] = deque()
        self._joined: deque[NodeId] = deque()
        self._submitted: deque[Submitted] = deque()
        self._stash = Stash()
        self._long, self._long_of_guests = LongLines(), LongLines()
        self._retry_stash = False
        self._failure: Exception | None = None
        self._evidence = itertools.count(_next_number(parts.store))

    # -- inputs ------------------------------------------------------------------------------------

    def frames_ready(self, link: Link) -> None:
        """A member's link has a frame to take."""
        if link not in self._ready:
            self._ready.append(link)
            self._wake.set()

    def peer_connected(self, peer: NodeId) -> None:
        """A link to a member is up."""
        self._joined.append(peer)
        self._wake.set()

    def submit(self, transactions: Sequence[Wire], *, everywhere: bool = False) -> None:
        """Hand over transactions whose signatures were checked.

        Args:
            transactions: what to submit.
            everywhere: see `Submitted`.

        Raises:
            RemoteFault: too many wait already.
        """
        if len(self._submitted) >= MAX_WAITING_SUBMISSIONS:
            raise RemoteFault(BUSY, "this node has too many submissions waiting; try another")
        self._submitted.append(Submitted(transactions, everywhere))
        self._wake.set()

    async def room(self) -> None:
        """Wait until a client's submission may be taken: what members passed on came first.

        Whoever takes more from clients than it can take in from members lags behind them further and
        further. Then what it knows the leader seems to omit, and a leader that lags so does omit it:
        an overload that no client was told of cost view after view.

        Raises:
            RemoteFault: it took too long.
        """
        try:
            async with asyncio.timeout_at(self._behind_s + ROOM_S):
                await self._has_room.wait()
        except TimeoutError:
            raise RemoteFault(
                BUSY, "more is submitted than this chain carries; try again"
            ) from None

    # -- the loop ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the machine until cancelled.

        Raises:
            MachineHalted: the machine failed.
        """
        self._step(Start())
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            await self._parts.store.below_bound()
            self._fire_timers()
            self._greet()
            self._take_submissions()
            await self._receive()
            self._look_for_room()
            self._set_alarm()
            if any(
                (
                    self._ready,
                    self._submitted,
                    self._joined,
                    self._patient,
                    self._long,
                    self._long_of_guests,
                )
            ):
                self._wake.set()
            if self._wake.is_set():  # else waiting is their turn
                await asyncio.sleep(0)  # sockets and the store's news get their turn

    def _fire_timers(self) -> None:
        now = self._parts.clock.now_ms()
        for name in self._timers.due(now):
            self._step(TimerFired(name))

    def _greet(self) -> None:
        while self._joined:
            self._step(PeerConnected(self._joined.popleft()))

    def _take_submissions(self) -> None:
        for _ in range(min(len(self._submitted), BATCH_FRAMES)):
            self._step(self._submitted.popleft())

    async def _receive(self) -> None:
        """One batch of frames, fairly from all links; then some of what is long, and some of the patient."""
        batch = self._batch()
        if batch:
            await self._check_and_step(batch)
        for lines in (self._long, self._long_of_guests):
            if lines:
                await self._check_part(lines)
        if self._patient:
            await self._check_and_step(self._some_patient())

    def _look_for_room(self) -> None:
        """Not while this node lags behind members, but for as many as may be faulty: those stop no client."""
        members = self._links.members
        waiting = sorted(self._patient_of[member] for member in members)
        honest = len(members) - self._links.tolerated
        if sum(waiting[: max(0, honest)]) > BEHIND_BYTES:
            if self._has_room.is_set():
                self._behind_s = asyncio.get_running_loop().time()
            self._has_room.clear()
        else:
            self._has_room.set()

    def _batch(self) -> list[Pending]:
        """What links hold, in order for each, less what is patient."""
        batch: list[Pending] = []
        if self._retry_stash:
            self._retry_stash = False
            batch += self._stash.empty()
        members = frozenset(self._links.members)
        passed_over: list[Link] = []
        for _ in range(len(self._ready)):
            if len(batch) >= BATCH_FRAMES:
                break
            link = self._ready.popleft()
            line = link.identity if link.identity in members else GUESTS
            waits = link.identity in self._long or link.identity in self._long_of_guests
            if waits or self._is_full(line):
                if not link.closed:
                    passed_over.append(link)
                continue
            for pending in self._take(link):
                pending.line = line
                if not isinstance(pending.message, self._patient_types):
                    batch.append(pending)
                elif self._name(pending):
                    self._line(line).append(pending)
                    self._patient_of[line] += pending.size
            if link.waiting and not link.closed:
                self._ready.append(link)
        self._ready.extendleft(
            reversed(passed_over)
        )  # first next time: one guest must not be it always
        return batch

    def _line(self, name: NodeId) -> deque[Pending]:
        """A line; one that was empty saved nothing up meanwhile, and is forgiven nothing."""
        if name not in self._patient:
            least = min((self._spent[each] for each in self._patient), default=0)
            self._spent[name] = max(self._spent[name], least)
            self._patient[name] = deque()
        return self._patient[name]

    def _some_patient(self) -> list[Pending]:
        """Of the line that has had least so far, few enough that nobody waits long behind them.

        By the signature and not by the frame: full frames of one would leave others one small one each.
        """
        taken: list[Pending] = []
        checks = 0
        while self._patient and len(taken) < BATCH_FRAMES:
            name = min(self._patient, key=self._spent.__getitem__)
            line = self._patient[name]
            cost = len(line[0].checks or ())
            checks += cost
            if taken and checks > PATIENT_CHECKS:
                break
            taken.append(line.popleft())
            self._spent[name] += 1 + cost
            if not line:
                del self._patient[name]
        if not self._patient:
            self._spent.clear()
        for pending in taken:
            self._patient_of[pending.line] -= pending.size
            if not self._patient_of[pending.line]:
                del self._patient_of[pending.line]
        return taken

    def _is_full(self, line: NodeId) -> bool:
        """Whether links of this line have to wait; no other does."""
        frames, size = len(self._patient.get(line, ())), self._patient_of[line]
        return frames >= PATIENT_FRAMES or size >= PATIENT_BYTES

    async def _check_and_step(self, batch: Iterable[Pending]) -> None:
        """One after the other, so that what the first of them make needless is not even checked.

        With threads that check, all are checked together before the first is taken.
        """
        checker = self._parts.checker
        if not checker.threaded:
            for pending in batch:
                if self._has_turn(pending):
                    self._step_if(pending, holds=checker.holds(pending.checks or ()))
            return
        named = [pending for pending in batch if self._has_turn(pending)]
        valid = await checker.all_valid([pending.checks or () for pending in named])
        for pending, holds in zip(named, valid, strict=True):
            self._step_if(pending, holds=holds)

    def _has_turn(self, pending: Pending) -> bool:
        """Whether its signatures are to be checked now; what is long, and what follows it, waits."""
        patient = isinstance(pending.message, self._patient_types)
        lines = self._long_of_guests if pending.line == GUESTS else self._long
        if patient or pending.sender not in lines:
            if not self._name(pending):
                return False
            if patient or not pending.is_long:
                return True
        lines.add(pending)
        return False

    async def _check_part(self, lines: LongLines) -> None:
        """Check a part of a long message; with the last part it is taken, and what waited behind it."""
        checker, pending = self._parts.checker, lines.first()
        part = pending.next_part(PART_CHECKS * max(1, checker.threads), checker.verifier.knows)
        (holds,) = await checker.all_valid([part])
        is_there = not holds or pending.has_more or self._name_again(pending)
        if holds and is_there and pending.has_more:
            lines.pass_on()
            return
        behind = lines.end()
        behind.popleft()
        if is_there:
            self._step_if(pending, holds=holds)
        await self._check_and_step(behind)

    def _name_again(self, pending: Pending) -> bool:
        """Now that its turn has come; whether it may go on, perhaps with more to check.

        Other messages were taken while it was checked: after a handover or two, what was nobody's
        business when it was named may count.
        """
        held = pending.forget_checks()
        if not self._name(pending):
            return False
        pending.spare(held)
        return True

    def _step_if(self, pending: Pending, *, holds: bool) -> None:
        """Take a message whose signatures hold; count a fault of its sender otherwise."""
        if holds:
            self._step(Received(Verified(pending.sender, pending.message)))
        else:
            name = type(pending.message).__name__
            self._links.fault(pending.sender, BadSignature(name))

    def _take(self, link: Link) -> list[Pending]:
        taken: list[Pending] = []
        size = 0
        for _ in range(FRAMES_PER_LINK):
            found = link.take() if size < BYTES_PER_LINK else None
            if found is None:
                break
            size += len(found[1])
            pending = self._decode(link.identity, *found)
            if pending is not None:
                taken.append(pending)
        return taken

    def _decode(self, sender: NodeId, channel: Channel, body: bytes) -> Pending | None:
        if channel is not Channel.MACHINE:
            self._links.fault(sender, RemoteFault("wrong-channel", f"{channel.name} of a member"))
            return None
        try:
            message = decode(body, self._message_type, MAX_MESSAGE_BYTES)
        except RemoteFault as fault:
            self._links.fault(sender, fault)
            return None
        self._parts.metrics.count("messages_received", kind=type(message).__name__)
        return Pending(sender, message, len(body))

    def _name(self, pending: Pending) -> bool:
        """Ask the machine which signatures a message stands on; whether it may go on."""
        if pending.checks is not None:
            return True
        sender, message = pending.sender, pending.message
        try:
            checks = self._machine.verification(message)
        except RemoteFault as fault:
            self._links.fault(sender, fault)
            return False
        except Exception as error:
            raise self._halted(error, f"verification of {type(message).__name__}") from error
        if isinstance(checks, Unknown):
            forgotten = self._stash.add(pending)
            if forgotten:
                self._parts.metrics.count("stash_dropped", forgotten)
            return False
        pending.checks = checks
        return True

    # -- the machine -------------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        crash_point("driver.before_step")
        try:
            effects = self._machine.step(self._parts.clock.now_ms(), event)
        except LocalFault:
            raise  # a damaged store says so itself
        except Exception as error:
            raise self._halted(error, type(event).__name__) from error
        crash_point("driver.after_step")
        for effect in self._outbox.push(effects):
            self._carry_out(effect)

    def _halted(self, error: Exception, during: str) -> MachineHalted:
        self._failure = error
        name = type(self._machine).__name__
        self._parts.metrics.count("machine_halted")
        return MachineHalted(f"{name} halted during {during}: {type(error).__name__}: {error}")

    def _durable(self) -> None:
        """The oldest outstanding `Persist` is on disk (called by the store, on this loop)."""
        released = self._outbox.durable()
        if self._failure is not None or not released:
            return
        crash_point("driver.before_send")
        try:
            for effect in released:
                self._carry_out(effect)
        except Exception as error:  # noqa: BLE001 - raised again by `run`, where somebody listens
            self._failure = error
            self._wake.set()

    # -- effects -----------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:  # one line per kind of effect
        match effect:
            case Persist(writes):
                self._parts.store.submit(writes, self._durable)
            case SetTimer(name, at_ms):
                self._timers.set(name, at_ms)
                self._set_alarm()
            case CancelTimer(name):
                self._timers.cancel(name)
            case Reject(peer, reason, detail):
                self._links.fault(peer, RemoteFault(reason, detail))
            case Log(level, event, fields):
                self._log(level, event, dict(fields))
            case _:
                self._show(effect)

    def _show(self, effect: Visible) -> None:
        match effect:
            case Send(to, message):
                self._count_sent(message)
                self._links.send(to, Channel.MACHINE, encode(message))
            case Broadcast(message):
                self._count_sent(message)
                self._links.broadcast(Channel.MACHINE, encode(message))
            case Committed():
                self._retry_stash = True
                self._wake.set()
                self._on_committed(effect)
            case Misbehaviour():
                self._keep_evidence(effect)

    def _count_sent(self, message: Wire) -> None:
        self._parts.metrics.count("messages_sent", kind=type(message).__name__)

    def _log(self, level: str, event: str, fields: dict[str, object]) -> None:
        write = getattr(self._parts.log, level if level in LEVELS else "info")
        write(event, **fields)

    def _keep_evidence(self, effect: Misbehaviour) -> None:
        self._parts.metrics.count("misbehaviour", kind=effect.kind)
        self._parts.log.warning("misbehaviour", kind=effect.kind, offender=effect.offender)
        key = next(self._evidence).to_bytes(8, "big")
        record = encode((effect.kind, effect.offender, encode(effect.evidence)))
        self._parts.store.submit((Write(EVIDENCE, key, record),), lambda: None)

    # -- timers ------------------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """Wake up when the next timer is due."""
        next_ms = self._timers.next_ms()
        if next_ms == self._alarm_ms:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_ms = next_ms
        if next_ms is not None:
            delay_s = max(0, next_ms - self._parts.clock.now_ms()) / 1000
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        """A timer may be due; if the clock says not yet, another alarm is set."""
        self._alarm = self._alarm_ms = None
        self._wake.set()


class _Timers:
    """Named timers; setting a name again replaces it, and a cancelled one never fires."""

    def __init__(self) -> None:
        self._at: dict[Hashable, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        self._order = itertools.count()

    def set(self, name: Hashable, at_ms: int) -> None:
        entry = (at_ms, next(self._order))
        self._at[name] = entry
        heapq.heappush(self._heap, (*entry, name))
        if len(self._heap) > 64 + 4 * len(self._at):
            self._heap = [(*entry, name) for name, entry in self._at.items()]
            heapq.heapify(self._heap)

    def cancel(self, name: Hashable) -> None:
        self._at.pop(name, None)

    def next_ms(self) -> int | None:
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> "_Due":
        return _Due(self, now_ms)

    def pop(self) -> Hashable:
        name = heapq.heappop(self._heap)[2]
        del self._at[name]
        return name


class _Due:
    """The timers that are due, found one by one: firing one may set, replace or cancel others.

    What is set meanwhile for the same instant waits for the next round, so that a machine whose
    timer sets itself again at once cannot starve its peers.
    """

    def __init__(self, timers: _Timers, now_ms: int) -> None:
        self._timers = timers
        self._now_ms = now_ms
        self._last = next(timers._order)  # noqa: SLF001 - one data structure in two parts

    def __iter__(self) -> "_Due":
        return self

    def __next__(self) -> Hashable:
        next_ms = self._timers.next_ms()
        if next_ms is None or next_ms > self._now_ms:
            raise StopIteration
        if self._timers._heap[0][1] > self._last:  # noqa: SLF001 - see above
            raise StopIteration
        return self._timers.pop()


def _next_number(store: Store) -> int:
    last = store.last(EVIDENCE)
    return 0 if last is None else int.from_bytes(last[0], "big") + 1
