"""Real links between replicas that can be cut, delayed and narrowed: one relay for each ordered pair.

A replica reaches another one at the relay's port; the relay passes the bytes on. It sees TLS records
and nothing inside. So the replicas' own links, queues, timeouts, redialing and handshakes meet what a
network does, with code that has no switch for it.

Law of the file: **a cut loses nothing and tells nobody**, as between two machines whose cable was
pulled: bytes wait where TCP would keep them, also the end of a connection, and new connections do not
come about. What waits when the link heals goes on in order.
"""

import asyncio
import random
import resource
import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.faults import Bandwidth, Delay
from gridtokenx.lab.ports import LOOPBACK

_HELD_BYTES: Final = 256 * 1024
"""So much waits in a relay; then the sender's own buffers fill, as TCP's window does."""
_BACKLOG: Final = 16
_FILES_PER_PAIR: Final = 3
"""A listener, and two ends of a connection; both ends of a pair may dial."""
_OTHER_FILES: Final = 512
Pair = tuple[int, int]
"""(sender, receiver), by index."""


@dataclass(slots=True)
class Way:
    """One direction between two replicas, and what is wrong with it."""

    cuts: set[int] = field(default_factory=set)
    """Numbers of the faults that cut it."""
    slow: dict[int, Delay | Bandwidth] = field(default_factory=dict)
    """Faults that slow it down; the first of the manifest counts."""
    free_s: float = 0.0
    """When everything before is through, where bandwidth is bounded."""

    def due_s(self, now_s: float, size: int, draw: random.Random) -> float:
        """When bytes that are sent now arrive."""
        if not self.slow:
            return now_s
        fault = self.slow[min(self.slow)]
        if isinstance(fault, Delay):
            return now_s + (fault.delay_ms + draw.randint(0, fault.jitter_ms)) / 1000
        self.free_s = max(self.free_s, now_s) + size / fault.bytes_per_s
        return self.free_s


class Relays:
    """All links of one run.

    Args:
        ports: where each replica listens, by index.
        draw: of jitter.
    """

    def __init__(self, ports: Sequence[int], draw: random.Random) -> None:
        self._ports: Final = ports
        self.draw: Final = draw
        size = len(ports)
        self.ways: Final[dict[Pair, Way]] = {
            (i, j): Way() for i in range(size) for j in range(size) if i != j
        }
        self._servers: list[asyncio.Server] = []
        self._joints: dict[Pair, set[_Joint]] = {pair: set() for pair in self.ways}
        """Connections by (dialer, listener)."""
        self.connecting: Final[set[asyncio.Task[None]]] = set()

    async def start(self) -> Mapping[Pair, int]:
        """Listen for every ordered pair; returns the ports by (dialer, listener).

        Raises:
            LocalFault: the system allows too few open files.
        """
        _allow_files(_FILES_PER_PAIR * len(self.ways) + _OTHER_FILES)
        loop, ports = asyncio.get_running_loop(), dict[Pair, int]()
        for pair in self.ways:
            listener = socket.create_server((LOOPBACK, 0), backlog=_BACKLOG)
            ports[pair] = int(listener.getsockname()[1])

            def joint(pair: Pair = pair) -> "_End":
                return _Joint(self, pair, self._ports[pair[1]]).dialer

            self._servers.append(await loop.create_server(joint, sock=listener))
        return ports

    async def close(self) -> None:
        """End all connections."""
        for server in self._servers:
            server.close()
        for joints in self._joints.values():
            for joint in tuple(joints):
                joint.abort()
        for task in self.connecting:
            task.cancel()
        await asyncio.gather(*self.connecting, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted let go of their sockets

    def cut(self, number: int, pairs: Iterable[Pair]) -> None:
        """Nothing more passes from the first to the second of each pair."""
        for pair in pairs:
            self.ways[pair].cuts.add(number)

    def slow(self, number: int, fault: Delay | Bandwidth, pairs: Iterable[Pair]) -> None:
        """What passes takes longer."""
        for pair in pairs:
            self.ways[pair].slow[number] = fault

    def end(self, number: int) -> None:
        """A fault is over: what waited goes on."""
        for pair, way in self.ways.items():
            if number in way.cuts or number in way.slow:
                way.cuts.discard(number)
                way.slow.pop(number, None)
                self._resume(pair)

    def _resume(self, pair: Pair) -> None:
        for joint in (*self._joints[pair], *self._joints[pair[1], pair[0]]):
            joint.go_on()

    def added(self, joint: "_Joint") -> None:
        """A replica has dialed another one."""
        self._joints[joint.pair].add(joint)

    def ended(self, joint: "_Joint") -> None:
        """A connection is no more."""
        self._joints[joint.pair].discard(joint)


class _Joint:
    """One connection: the dialer's end here, and the one to the listener."""

    def __init__(self, relays: Relays, pair: Pair, port: int) -> None:
        self.relays: Final = relays
        self.pair: Final = pair
        self._port: Final = port
        there, back = relays.ways[pair], relays.ways[pair[1], pair[0]]
        self.dialer: Final = _End(self, there)
        self.listener: Final = _End(self, back)
        self.dialer.other, self.listener.other = self.listener, self.dialer
        self._asked = False

    @property
    def _passable(self) -> bool:
        """A handshake needs both ways."""
        return not self.dialer.way.cuts and not self.listener.way.cuts

    def go_on(self) -> None:
        """Something has changed: connect, or pass on what waits."""
        if not self._asked and self._passable and self.dialer.connected:
            self._asked = True
            task = asyncio.ensure_future(self._connect())
            self.relays.connecting.add(task)
            task.add_done_callback(self.relays.connecting.discard)
        self.dialer.pump()
        self.listener.pump()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.listener, LOOPBACK, self._port)
        except OSError:  # nobody listens there now
            self.abort()

    def abort(self) -> None:
        """End both halves at once."""
        self.relays.ended(self)
        for end in (self.dialer, self.listener):
            end.abort()


class _End(asyncio.Protocol):
    """One half: what it receives travels one way, to the other half."""

    def __init__(self, joint: _Joint, way: Way) -> None:
        self.way: Final = way
        self.other: _End = self
        self._joint: Final = joint
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._last_s = 0.0
        self._reading = True
        self._blocked = False
        self._ended = False
        self._alarm: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._transport is not None and not self._ended

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection (called by asyncio)."""
        self._transport = cast("asyncio.Transport", transport)
        if self._joint.dialer is self:
            self._joint.relays.added(self._joint)
        self._joint.go_on()

    def data_received(self, data: bytes) -> None:
        """Put bytes on their way (called by asyncio)."""
        now_s = self._loop.time()
        due_s = self.way.due_s(now_s, len(data), self._joint.relays.draw)
        self._last_s = max(self._last_s, due_s)  # a stream is never out of order
        self._queue.append((self._last_s, data))
        self._held += len(data)
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The end of a connection travels as its last bytes do (called by asyncio)."""
        self._ended = True
        if self.other._transport is None:  # noqa: SLF001 - the other half
            self._joint.relays.ended(self._joint)  # it never came about: nobody has to hear of it
            self.other.abort()
        else:
            self.pump()

    def pause_writing(self) -> None:
        """The receiver takes no more for now (called by asyncio)."""
        self._blocked = True

    def resume_writing(self) -> None:
        """The receiver takes more (called by asyncio)."""
        self._blocked = False
        self.other.pump()

    # -- passing on --------------------------------------------------------------------------------

    def pump(self) -> None:
        """Pass on what is due, if the way is open."""
        target = self.other._transport  # noqa: SLF001 - the other half
        now_s = self._loop.time()
        if self.other._ended or (target is not None and target.is_closing()):  # noqa: SLF001
            self._queue.clear()  # nobody is there to hear it
            self._held = 0
        while self._queue and target is not None and not self.other._blocked:  # noqa: SLF001
            if self.way.cuts:
                break
            due_s, data = self._queue[0]
            if due_s > now_s:
                self._wake_at(due_s)
                break
            self._queue.popleft()
            self._held -= len(data)
            target.write(data)
        if self._ended and not self._queue and not self.way.cuts and target is not None:
            if not target.is_closing():
                target.close()
            self._joint.relays.ended(self._joint)
        self._consider_reading()

    def _wake_at(self, due_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(due_s, self.pump)

    def _consider_reading(self) -> None:
        if self._transport is None or self._ended or self._transport.is_closing():
            return
        if self._reading and self._held > _HELD_BYTES:
            self._reading = False
            self._transport.pause_reading()
        elif not self._reading and self._held <= _HELD_BYTES // 2:
            self._reading = True
            self._transport.resume_reading()

    def abort(self) -> None:
        """End now."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._queue.clear()
        if self._transport is not None:
            self._transport.abort()


def _allow_files(needed: int) -> None:
    """Raise this process's limit of open files, as far as that needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise LocalFault(
                f"{needed} open files are needed for the links of all pairs, the system allows {hard}:"
                " raise the limit (ulimit -Hn), or take fewer replicas"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
