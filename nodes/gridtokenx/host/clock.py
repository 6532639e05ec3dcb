"""Network time: what machines are told when they are asked to act.

On a real network it is wall time. On a local testnet it is wall time less the time that the network
was down, so that a network stopped overnight does not wake up days later. Whatever starts the network
keeps that sum in a heartbeat file, and hands every process the same offset, as a setting or in a file.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault


def wall_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def read_clock_file(path: Path) -> int:
    """The offset in milliseconds that a clock file holds.

    Raises:
        LocalFault: there is no such file, or it holds something else.
    """
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise LocalFault(
            f"clock_file {path}: holds no offset in ms ({error}); whatever starts the network writes it"
        ) from None


class NetworkClock:
    """Wall time plus an offset. Never runs backwards within a process.

    Args:
        offset_ms: network time minus wall time; not positive unless the wall clock was set back.
        wall: the wall clock, in milliseconds.
    """

    def __init__(self, offset_ms: int = 0, wall: Callable[[], int] = wall_ms) -> None:
        self.offset_ms: Final = offset_ms
        self._wall: Final = wall
        self._latest = 0

    def now_ms(self) -> int:
        """Network time in milliseconds since the Unix epoch."""
        self._latest = max(self._latest, self._wall() + self.offset_ms)
        return self._latest
