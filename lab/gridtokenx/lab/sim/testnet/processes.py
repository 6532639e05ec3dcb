"""Processes of a simulated network: lives that begin and end, and the connections between them.

Law of the file: **a kill leaves nothing running, and tells nobody but by the network.** Each life of a
process has its own loop; when it ends, its connections end, and the other ends hear of it as far as
the network carries the word.

A connection is a stream, as TCP is: what the network loses is sent again, what overtakes waits. A
partition therefore stalls it, and ends it after a while.
"""

import asyncio
import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Effect, Event, Instant, Machine, NodeId, Reader, SignatureCheck
from gridtokenx.host.clock import NetworkClock
from gridtokenx.lab.sim.network import Envelope
from gridtokenx.lab.sim.testnet.loop import VirtualLoop, drive
from gridtokenx.lab.sim.testnet.meddling import Meddler
from gridtokenx.lab.sim.world import SimulatedNode, World

T = TypeVar("T")
FIRST_RESEND_MS: Final = 200
RESENDS: Final = 7
"""A frame is sent so often again, each time after twice the wait; then its connection is given up."""
OPENING_S: Final = 5.0
_BURIALS: Final = 32
"""A coroutine that is cancelled may wait for others, and be cancelled again, so often."""


class Carried(Wire, frozen=True, tag="sim.carried"):
    """A frame of a connection, as the network sees it."""

    body: bytes


class Idle:
    """The machine of a process that has none."""

    def verification(self, message: Wire) -> Sequence[SignatureCheck]:  # noqa: ARG002 - nothing to check
        """Nobody sends it anything."""
        return ()

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:  # noqa: ARG002 - no machine
        """Nothing happens."""
        return ()


class Life:
    """One life of a process, from its start to its end.

    Args:
        wires: of the network.
        node: what the world knows of the process.
        name: of the process.
    """

    def __init__(self, wires: "Wires", node: SimulatedNode, name: str) -> None:
        self.wires: Final = wires
        self.node: Final = node
        self.name: Final = name
        self.listeners: Final[dict[str, Callable[[End], None]]] = {}
        """By port: what takes a connection that somebody opened."""
        self.ends: Final[dict[End, None]] = {}
        self.clock: Final = NetworkClock(0, lambda: node.local_ms(wires.world.now))
        self.loop: Final = VirtualLoop(self.after, wires.now_s, self._failed)
        self._number = node.life
        self._over = False
        self._grave: deque[Callable[[], None]] | None = None

    @property
    def alive(self) -> bool:
        """Whether it lasts."""
        return self.node.life == self._number and self.node.alive

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something in this life, when so much time has passed and nothing is paused."""
        if self._grave is not None:
            if not delay_ms:
                self._grave.append(action)
            return
        if self._over:
            return
        self.wires.world.at(self.wires.world.now + delay_ms, partial(self.do, action))

    def do(self, action: Callable[[], None]) -> None:
        """Do something now, or when the pause is over; nothing after this life."""
        if not self.alive:
            return
        if self.node.paused:
            self.node.waiting.append(partial(self.do, action))
        else:
            action()

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        """Run a coroutine for as long as this life lasts; that it ends by an error ends the run."""
        drive(self.loop, coro, f"{self.name}: {name}").add_done_callback(self._finished)

    def over(self) -> None:
        """This life has ended: the others hear that its connections have."""
        self._over = True
        for end in tuple(self.ends):
            end.drop()

    def bury(self) -> None:
        """After the run: let every coroutine end, whatever it waits for. No time passes any more."""
        self._grave = deque()
        for _ in range(_BURIALS):
            for task in tuple(self.loop.tasks):
                task.cancel()
            while self._grave:
                self._grave.popleft()()
        for task in self.loop.tasks:
            coro = task.get_coro()
            if (
                inspect.iscoroutine(coro)
                and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
            ):
                coro.close()

    def _finished(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if self.alive and self._grave is None:
            self.wires.on_failure(self, error)


class Process:
    """A process of the network: what the world starts again after a crash.

    Args:
        wires: of the network.
        name: of the process, unique.
        id_: its node id.
        begin: begins a life: gets it with the disk, spawns what runs, returns the machine.
        network: the name of the chain whose nodes hear its broadcasts; empty for other processes.
        identity: whose twin it is, if it is one.
    """

    def __init__(
        self,
        wires: "Wires",
        name: str,
        id_: NodeId,
        begin: Callable[[Life, Reader], Machine],
        network: str,
        identity: NodeId = b"",
    ) -> None:
        self.name: Final = name
        self.id: Final = id_
        self.life: Life | None = None
        self.lives: Final[list[Life]] = []
        self._wires: Final = wires
        self._begin: Final = begin
        self.node: Final = wires.world.add(id_, self._build, network=network, identity=identity)
        wires.processes[id_] = self

    def _build(self, reader: Reader) -> Machine:
        self.life = Life(self._wires, self.node, self.name)
        self.lives.append(self.life)
        return self._begin(self.life, reader)

    def ended(self) -> None:
        """The world has ended its life."""
        life, self.life = self.life, None
        if life is not None:
            life.over()


class Wires:
    """All connections of a network.

    Args:
        world: carries what they carry.
        start_ms: when the loops' time begins.
    """

    def __init__(self, world: World, start_ms: Instant) -> None:
        self.world: Final = world
        self.processes: Final[dict[NodeId, Process]] = {}
        self.carried = 0
        self.meddlers: Final[dict[NodeId, list[Meddler]]] = {}
        """Who changes what a process sends."""
        self.on_failure: Callable[[Life, BaseException], None] = _raise
        self._start_ms: Final = start_ms
        self._trace: Final = hashlib.sha256()

    def now_s(self) -> float:
        """The world's time in seconds since the start of the run."""
        return (self.world.now - self._start_ms) / 1_000

    def trace_digest(self) -> str:
        """Hash of all frames that arrived, with their times."""
        return self._trace.hexdigest()

    async def dial(self, life: Life, to: NodeId, port: str) -> "End":
        """Open a connection.

        Raises:
            RemoteFault: nobody listens there, or no answer comes.
        """
        answer: asyncio.Future[End] = life.loop.create_future()
        self._knock(life, to, port, answer)
        try:
            async with asyncio.timeout(OPENING_S):
                return await answer
        except TimeoutError:
            raise RemoteFault("timeout", f"no answer within {OPENING_S:g} s") from None

    def _knock(self, life: Life, to: NodeId, port: str, answer: "asyncio.Future[End]") -> None:
        def arrived() -> None:
            host = self.processes[to].life
            listener = None if host is None else host.listeners.get(port)
            if host is None or listener is None:
                self.travel(to, life.node.id, b"nobody", refused)
                return
            near, far = End(self, life, to), End(self, host, life.node.id)
            near.peer, far.peer = far, near
            listener(far)
            self.travel(to, life.node.id, b"welcome", lambda: accepted(near), lambda: None)

        def refused() -> None:
            fault = RemoteFault("unreachable", "nobody listens there")
            life.do(lambda: None if answer.done() else answer.set_exception(fault))

        def accepted(near: End) -> None:
            if answer.done() or not life.alive:
                near.drop()
            else:
                life.do(lambda: settle(answer, near))

        self.travel(life.node.id, to, b"knock " + port.encode(), arrived, lambda: None)

    def travel(
        self,
        sender: NodeId,
        receiver: NodeId,
        body: bytes,
        arrived: Callable[[], None],
        given_up: Callable[[], None] | None = None,
    ) -> None:
        """Carry a frame; what the network loses is sent again as often as anybody waits for it.

        Args:
            sender: from whom.
            receiver: to whom.
            body: what.
            arrived: called when it is there.
            given_up: called when it was lost for good; None: it is sent only once.
        """
        message = Carried(body=body)

        def attempt(number: int) -> None:
            arrivals = self.world.network.arrivals(
                Envelope(self.world.now, sender, receiver, message)
            )
            if arrivals:
                self.world.at(min(arrivals), lambda: self._arrive(sender, receiver, body, arrived))
            elif given_up is None:
                return
            elif number < RESENDS:
                again_ms = self.world.now + (FIRST_RESEND_MS << number)
                self.world.at(again_ms, lambda: attempt(number + 1))
            else:
                given_up()

        attempt(0)

    def _arrive(
        self, sender: NodeId, receiver: NodeId, body: bytes, arrived: Callable[[], None]
    ) -> None:
        self.carried += 1
        self._trace.update(self.world.now.to_bytes(8, "big"))
        self._trace.update(sha256(sender, receiver, body))
        arrived()


class End:
    """One end of a connection; `peer` is the other one.

    Args:
        wires: of the network.
        life: whose end it is.
        far: node id of the other end.
    """

    def __init__(self, wires: Wires, life: Life, far: NodeId) -> None:
        self.peer: End
        self.far: Final = far
        self.closed = ""
        """Why it has ended; empty while it lasts."""
        self.on_frame: Callable[[bytes], None] = lambda _body: None
        self.on_closed: Callable[[str], None] = lambda _reason: None
        self._wires: Final = wires
        self._life: Final = life
        self._sent = 0
        self._taken = 0
        self._early: Final[dict[int, bytes]] = {}
        life.ends[self] = None

    def send(self, body: bytes) -> bool:
        """Send a frame; whether the connection lasts."""
        if self.closed:
            return False
        frames = [body]
        for meddler in self._wires.meddlers.get(self._life.node.id, ()):
            frames = [changed for frame in frames for changed in meddler.meddle(frame)]
        for frame in frames:
            self._send(frame)
        return True

    def _send(self, body: bytes) -> None:
        number, self._sent = self._sent, self._sent + 1
        self._wires.travel(
            self._life.node.id,
            self.far,
            body,
            lambda: self.peer._arrived(number, body),  # noqa: SLF001 - the same class's
            lambda: self._end("the other end cannot be reached"),
        )

    def close(self, reason: str) -> None:
        """End it from here; the other end hears of it."""
        if not self.closed:
            self._end(reason)
            self._tell()

    def drop(self) -> None:
        """Its life is over, or nobody wanted it: nothing more is done here."""
        if not self.closed:
            self.closed = "dropped"
            self._life.ends.pop(self, None)
            self._tell()

    def _tell(self) -> None:
        self._wires.travel(self._life.node.id, self.far, b"end", self.peer.hung_up)

    def hung_up(self) -> None:
        """The other end says that it has ended."""
        self._end("the other end closed it")

    def _arrived(self, number: int, body: bytes) -> None:
        if self.closed:
            self._tell()
            return
        self._early[number] = body
        while (following := self._early.pop(self._taken, None)) is not None:
            self._taken += 1
            self._life.do(partial(self._take, following))

    def _take(self, body: bytes) -> None:
        if not self.closed:
            self.on_frame(body)

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = reason
        self._life.ends.pop(self, None)
        self._life.do(lambda: self.on_closed(reason))


def settle(waiting: "asyncio.Future[T]", value: T) -> None:
    """Give a future its result, unless nobody waits for it any more."""
    if not waiting.done():
        waiting.set_result(value)


def _raise(_life: Life, error: BaseException) -> None:
    raise error
