"""Network time: what machines are told when they are asked to act.

On a real network it is wall time. On a local testnet it is wall time less the time that the network
was down, so that a network stopped overnight does not wake up days later. Whatever starts the network
keeps that sum in a heartbeat file (`Heartbeat`); every process reads it once, at start.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.files import read_file, write_file

Millis = Annotated[int, msgspec.Meta(ge=0)]
_WallMs = Callable[[], int]


def wall_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class NetworkClock:
    """Wall time minus down time. Never runs backwards within a process.

    Args:
        down_ms: how long the network was stopped in all.
        wall: the wall clock, in milliseconds.
    """

    def __init__(self, down_ms: int = 0, wall: _WallMs = wall_ms) -> None:
        self.down_ms: Final = down_ms
        self._wall: Final = wall
        self._latest = 0

    @classmethod
    def from_heartbeat(cls, path: Path | None) -> "NetworkClock":
        """The clock of a network whose supervisor keeps `path`; plain wall time without one.

        Raises:
            LocalFault: the file is unreadable or damaged.
        """
        return cls() if path is None else cls(_read(path).down_ms)

    def now_ms(self) -> int:
        """Network time in milliseconds since the Unix epoch."""
        self._latest = max(self._latest, self._wall() - self.down_ms)
        return self._latest


class _Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    down_ms: Millis
    """How long the network was stopped in all, until the last start."""
    alive_at_ms: Millis
    """Wall time at which it was last known to run."""


class Heartbeat:
    """Keeps a network's down time; used by whatever starts the network, and by nobody else."""

    def __init__(self, path: Path, wall: _WallMs = wall_ms) -> None:
        self._path = path
        self._wall = wall
        self._down_ms = 0

    def resume(self) -> int:
        """The network starts: count the pause since the last beat as down time, and return the sum.

        Raises:
            LocalFault: the file is damaged, or cannot be written.
        """
        if self._path.exists():
            last = _read(self._path)
            self._down_ms = last.down_ms + max(0, self._wall() - last.alive_at_ms)
        self.beat()
        return self._down_ms

    def beat(self) -> None:
        """The network runs; call it every few seconds, and when it stops."""
        beat = _Beat(down_ms=self._down_ms, alive_at_ms=self._wall())
        write_file(self._path, msgspec.json.encode(beat))


def _read(path: Path) -> _Beat:
    try:
        return msgspec.json.decode(read_file(path), type=_Beat)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalFault(
            f"{path}: is no heartbeat file: {error}; remove it to count the network's time anew"
        ) from None
