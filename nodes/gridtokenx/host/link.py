"""One connection: frames in, frames out, both bounded.

Law of the file:

- **Reading** stops (and TCP pushes back) while the reader of this link is behind, or while the peer
  has used up its allowance of frames and bytes. Nothing is dropped.
- **Writing** is batched once per turn of the loop. What a slow peer does not take is kept up to a
  bound; beyond it the link is cut, so one slow peer can neither stall nor fill the others.
- **A link ends once**, with one reason, which everyone who waits on it gets.
- **Pings are answered at once**, with the time. Their answers say that the other end lives, and how
  far its clock is from ours.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.framing import Channel, FrameFault, Splitter, frame
from gridtokenx.host.handshake import (
    MAX_CONTROL_BYTES,
    Ping,
    Pong,
    Refused,
    read_control,
)

KIBIBYTE: Final = 1024
_WRITE_CHUNK: Final = 256 * KIBIBYTE
_SAMPLES: Final = 8


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of one link."""

    frame_bytes: int = MAX_MESSAGE_BYTES
    send_queue_bytes: int = 16 * 1024 * KIBIBYTE
    receive_queue_bytes: int = 2 * 1024 * KIBIBYTE
    receive_queue_frames: int = 1024
    frames_per_s: int = 4000
    bytes_per_s: int = 32 * 1024 * KIBIBYTE
    tls_s: float = 3.0
    """For the TLS session of one who dials us."""
    handshake_s: float = 5.0
    """For that and the first words together."""
    ping_s: float = 5.0
    """A ping is sent on a link on which we were silent for so long."""
    measure_s: float = 15.0
    """A ping is sent at least so often, to compare clocks."""
    silence_s: float = 20.0
    """A link on which nothing arrived for so long is dead."""
    frame_s: float = 20.0
    """The longest that one frame may take to arrive."""


class LinkClosed(RemoteFault):
    """The link has ended; `reason` says why."""


class Allowance:
    """A token bucket that is never empty for longer than it has to be."""

    def __init__(self, rate_per_s: float, now: float) -> None:
        self._rate = rate_per_s
        self._tokens = rate_per_s
        self._at = now

    def spend(self, amount: float, now: float) -> float:
        """Take `amount`; returns how many seconds to wait before taking more."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._tokens / self._rate)


class Link(asyncio.Protocol):
    """One connection, before and after its handshake."""

    def __init__(
        self,
        limits: LinkLimits,
        *,
        on_ready: Callable[["Link"], None] | None = None,
        on_fault: Callable[["Link", RemoteFault], None] | None = None,
        on_closed: Callable[["Link"], None] | None = None,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self.limits = limits
        self.identity = b""
        """The other end's proven key; empty until the handshake is over."""
        self.role = ""
        self.instance = b""
        """Which life of the other end, once it has proven itself."""
        self.dialed = False
        """Whether we opened it."""
        self.close_reason = ""
        self.refusal: Refused | None = None
        """What the other end said when it wanted the link no longer."""
        self.on_ready = on_ready
        self.on_fault = on_fault
        self.on_closed = on_closed
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._splitter = Splitter(MAX_CONTROL_BYTES)
        self._up = False
        self._inbox: deque[tuple[Channel, bytes]] = deque()
        self._inbox_bytes = 0
        self._arrival = asyncio.Event()
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._flush_scheduled = False
        self._write_paused = False
        self._read_paused = False
        self._throttle: asyncio.TimerHandle | None = None
        now = time.monotonic()
        self._frames = Allowance(limits.frames_per_s, now)
        self._bytes = Allowance(limits.bytes_per_s, now)
        self._made_at = self._heard_at = self._said_at = self._frame_began = now
        self._pinged = self._answered = 0
        self._pinged_at = now
        self._asked: dict[int, tuple[float, int]] = {}
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._pong = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Link {self.role} {self.identity.hex()[:12]} {self.close_reason or 'open'}>"

    # -- state -------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return bool(self.close_reason)

    @property
    def transport(self) -> asyncio.Transport:
        """The connection below."""
        assert self._transport is not None, "the link is not connected yet"
        return self._transport

    @property
    def certificate(self) -> bytes | None:
        """What the other end's TLS session showed, as DER."""
        session = self.transport.get_extra_info("ssl_object")
        shown: bytes | None = session.getpeercert(binary_form=True) if session is not None else None
        return shown

    @property
    def where(self) -> str:
        """The other end's address and for how long, for people."""
        name = self.transport.get_extra_info("peername") if self._transport is not None else None
        address = str(HostPort(*name[:2])) if name else "an unknown address"
        return f"{address} for {time.monotonic() - self._made_at:.0f} s"

    @property
    def offset_ms(self) -> int | None:
        """The other end's clock less ours, from the quickest of its last answers."""
        return min(self._samples)[1] if self._samples else None

    @property
    def connected(self) -> bool:
        """Whether there is a connection below."""
        return self._transport is not None

    @property
    def waiting(self) -> bool:
        """Whether a frame can be taken."""
        return bool(self._inbox)

    def accept_full_frames(self) -> None:
        """The other end has proven itself: what follows its last handshake frame may be large."""
        self._splitter.limit = self.limits.frame_bytes

    def restrict(self, limits: LinkLimits) -> None:
        """Other bounds from now on: clients and guests get less than members."""
        self.limits = limits
        now = time.monotonic()
        self._frames = Allowance(limits.frames_per_s, now)
        self._bytes = Allowance(limits.bytes_per_s, now)

    def raise_up(self, identity: bytes, role: str) -> None:
        """The handshake is over; from here on control frames are the link's own business."""
        self.identity, self.role = identity, role
        self._up = True
        self.accept_full_frames()
        early = tuple(self._inbox)
        self._inbox.clear()
        self._inbox_bytes = 0
        try:
            for channel, body in early:
                self._take_frame(channel, body)
        except RemoteFault as fault:
            self._fail(fault)

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection (called by asyncio)."""
        connection = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._transport = connection
        connection.set_write_buffer_limits(high=_WRITE_CHUNK)
        if self.closed:
            connection.abort()

    def data_received(self, data: bytes) -> None:
        """Split what arrived into frames (called by asyncio)."""
        if self.closed:
            return
        now = time.monotonic()
        self._heard_at = now
        if not self._splitter.unfinished:
            self._frame_began = now
        count = 0
        try:
            for channel, body in self._splitter.feed(data):
                count += 1
                self._frame_began = now
                self._take_frame(channel, body)
        except RemoteFault as fault:
            self._fail(fault)
            return
        wait = max(self._frames.spend(count, now), self._bytes.spend(len(data), now))
        if wait > 0:
            self._pause_for(wait)
        self._consider_reading()

    def eof_received(self) -> bool:
        """The other end has finished; so have we (called by asyncio)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (called by asyncio)."""
        self._end(f"connection lost: {exc}" if exc else "closed by the other end")

    def pause_writing(self) -> None:
        """The peer takes no more for now (called by asyncio)."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The peer takes more (called by asyncio)."""
        self._write_paused = False
        self._flush()

    # -- receiving ---------------------------------------------------------------------------------

    def take(self) -> tuple[Channel, bytes] | None:
        """The next frame, if one is there."""
        if not self._inbox:
            return None
        channel, body = self._inbox.popleft()
        self._inbox_bytes -= len(body)
        if not self._inbox:
            self._arrival.clear()
        self._consider_reading()
        return channel, body

    async def receive(self) -> tuple[Channel, bytes]:
        """Wait for the next frame.

        Raises:
            LinkClosed: the link has ended and nothing is left to take.
        """
        while True:
            found = self.take()
            if found is not None:
                return found
            if self.closed:
                raise LinkClosed("closed", self.close_reason)
            self._arrival.clear()  # what set it may be gone; a wait that never waits stops everybody
            await self._arrival.wait()

    def _take_frame(self, channel: Channel, body: bytes) -> None:
        if self._up and channel is Channel.CONTROL:
            self._take_control(body)
            return
        self._inbox.append((channel, body))
        self._inbox_bytes += len(body)
        self._arrival.set()
        if self.on_ready is not None and self._up:
            self.on_ready(self)

    def _take_control(self, body: bytes) -> None:
        message = read_control(body)
        match message:
            case Refused(reason, detail):
                self.refusal = message
                self.abort(f"refused: {reason}: {detail}")
            case Ping(number):
                self.send(Channel.CONTROL, encode(Pong(number=number, time_ms=self._now_ms())))
            case Pong(number, time_ms) if number <= self._pinged:
                self._take_pong(number, time_ms)
            case _:
                raise FrameFault("bad-handshake", f"{type(message).__name__} on a link that is up")

    def _take_pong(self, number: int, time_ms: int) -> None:
        self._answered = max(self._answered, number)
        asked = self._asked.pop(number, None)
        if asked is not None:
            way_s = time.monotonic() - asked[0]
            self._samples.append((way_s, time_ms - asked[1] - int(way_s * 500)))
        self._pong.set()

    def _consider_reading(self) -> None:
        """Read while there is room and allowance."""
        limits = self.limits
        full = (
            self._inbox_bytes > limits.receive_queue_bytes
            or len(self._inbox) > limits.receive_queue_frames
        )
        stop = self._throttle is not None or (
            full
            or (
                self._read_paused
                and (
                    self._inbox_bytes > limits.receive_queue_bytes // 2
                    or len(self._inbox) > limits.receive_queue_frames // 2
                )
            )
        )
        if stop == self._read_paused or self._transport is None or self._transport.is_closing():
            return
        self._read_paused = stop
        if stop:
            self._transport.pause_reading()
        else:
            self._heard_at = self._frame_began = time.monotonic()  # its silence was our doing
            self._transport.resume_reading()

    def _pause_for(self, seconds: float) -> None:
        if self._throttle is None:
            self._throttle = self._loop.call_later(seconds, self._end_throttle)

    def _end_throttle(self) -> None:
        self._throttle = None
        self._consider_reading()

    # -- sending -----------------------------------------------------------------------------------

    def send(self, channel: Channel, body: bytes) -> bool:
        """Queue a frame. Returns False if the link has ended (or just has, being too slow)."""
        return self.send_frame(frame(channel, body))

    def send_frame(self, data: bytes) -> bool:
        """`send`, for a frame that is built once and sent to many."""
        if self.closed:
            return False
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if self._outbox_bytes > self.limits.send_queue_bytes:
            self._fail(RemoteFault("slow-peer", f"{self._outbox_bytes} bytes were not taken"))
            return False
        if not self._flush_scheduled and not self._write_paused:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        return True

    @property
    def unsent_bytes(self) -> int:
        """What waits here because the peer does not take it."""
        return self._outbox_bytes

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._outbox and not self._write_paused and not self.closed:
            chunk: list[bytes] = []
            size = 0
            while self._outbox and size < _WRITE_CHUNK:
                chunk.append(self._outbox.popleft())
                size += len(chunk[-1])
            self._outbox_bytes -= size
            self._said_at = time.monotonic()
            self.transport.write(b"".join(chunk))

    # -- care --------------------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Called now and then: ping when idle, cut when dead or dribbling."""
        if self.closed or self._read_paused:
            return
        if self._splitter.unfinished and now - self._frame_began > self.limits.frame_s:
            self._fail(RemoteFault("slow-frame", f"unfinished after {self.limits.frame_s:g} s"))
        elif now - self._heard_at > self.limits.silence_s:
            self.abort(f"nothing heard for {self.limits.silence_s:g} s")
        elif (
            now - self._said_at > self.limits.ping_s
            or now - self._pinged_at > self.limits.measure_s
        ):
            self.ping()

    def ping(self) -> int:
        """Ask for a sign of life; returns the ping's number."""
        self._pinged += 1
        self._pinged_at = time.monotonic()
        self._asked[self._pinged] = (self._pinged_at, self._now_ms())
        self._asked.pop(self._pinged - _SAMPLES, None)
        self.send(Channel.CONTROL, encode(Ping(number=self._pinged)))
        return self._pinged

    async def answers(self, within_s: float) -> bool:
        """Whether the other end gives a sign of life when asked for one now."""
        if self.closed:
            return False
        number = self.ping()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._answered < number and not self.closed:
                    self._pong.clear()
                    await self._pong.wait()
        if self._answered < number and not self._read_paused:
            return False
        return not self.close_reason

    # -- the end -----------------------------------------------------------------------------------

    def refuse(self, fault: RemoteFault) -> None:
        """Tell the other end why, and close."""
        if not self.closed and self._transport is not None:
            words = Refused(reason=fault.reason[:64], detail=fault.detail[:512])
            self._flush()
            self._transport.write(frame(Channel.CONTROL, encode(words)))
        self.close(f"refused: {fault}")

    def close(self, reason: str) -> None:
        """Send what is queued, then close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
        self._end(reason)

    def abort(self, reason: str) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _fail(self, fault: RemoteFault) -> None:
        """The peer broke a rule of the link."""
        if self.on_fault is not None:
            self.on_fault(self, fault)
        if not self.closed:
            self.refuse(fault) if fault.reason != "slow-peer" else self.abort(str(fault))

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.close_reason = reason
        if self._throttle is not None:
            self._throttle.cancel()
            self._throttle = None
        self._outbox.clear()
        self._outbox_bytes = 0
        self._arrival.set()
        self._pong.set()
        if self.on_closed is not None:
            self.on_closed(self)
