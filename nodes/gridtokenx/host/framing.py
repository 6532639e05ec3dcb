"""Frames on a byte stream: four bytes of length, one byte of channel, the body.

The length counts channel and body. A length above the bound is refused before a byte of the body is
kept, so a peer cannot make us hold more than one frame.
"""

import enum
import struct
from collections.abc import Generator, Iterator
from typing import Final

from gridtokenx.core.errors import RemoteFault

_LENGTH: Final = struct.Struct(">IB")
OVERHEAD: Final = _LENGTH.size


class Channel(enum.IntEnum):
    """What a frame's body is."""

    CONTROL = 0
    """Handshake, ping, refusal."""
    MACHINE = 1
    """A protocol message between members of a chain."""
    REQUEST = 2
    """A client's question to a node."""
    REPLY = 3
    """A node's answer."""


_CHANNELS: Final = tuple(Channel)


class FrameFault(RemoteFault):
    """The stream can no longer be split into frames; only closing it helps."""


def frame(channel: Channel, body: bytes) -> bytes:
    """The bytes of one frame."""
    return _LENGTH.pack(len(body) + 1, channel) + body


class Splitter:
    """Cuts a stream into frames. Feed it what arrives; it holds at most one unfinished frame."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """The most bytes of one body; may be raised after the handshake."""
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Channel, bytes]]:
        """The frames that `data` completes.

        Raises:
            FrameFault: a frame is too large, empty, or on no channel.
        """
        if not self._buffer:  # the usual case: whole frames, and nothing waits for its end
            end = yield from self._split(data)
            self._buffer += memoryview(data)[end:]
            return
        self._buffer += data
        whole = self._buffer
        self._buffer = bytearray()
        end = yield from self._split(whole)
        del whole[:end]
        self._buffer = whole

    def _split(self, data: bytes | bytearray) -> Generator[tuple[Channel, bytes], None, int]:
        """The whole frames at the start of `data`; returns where they end."""
        start, available = 0, len(data)
        while available - start >= OVERHEAD:
            size, number = _LENGTH.unpack_from(data, start)
            self._check(size, number)
            end = start + OVERHEAD - 1 + size
            if end > available:
                break
            body = data[start + OVERHEAD : end]
            start = end
            yield _CHANNELS[number], bytes(body)
        return start

    def _check(self, size: int, number: int) -> None:
        if size < 1 or number >= len(_CHANNELS):
            raise FrameFault("bad-frame", f"length {size}, channel {number}")
        if size - 1 > self.limit:
            raise FrameFault("frame-too-large", f"{size - 1} bytes, at most {self.limit}")
