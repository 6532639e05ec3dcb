"""Network time of a local testnet: wall time less the time that the network was down.

Whoever runs the network writes the network time to a heartbeat file every second. When it starts
again, the clock goes on from there, so that a network stopped overnight does not wake up days later.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from gridtokenx.core.errors import LocalFault


def wall_ms() -> int:
    """Wall time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The heartbeat file and the offset that follows from it."""

    path: Path
    offset_ms: int
    """Network time minus wall time; never positive unless the wall clock was set back."""

    @classmethod
    def resume(cls, path: Path) -> "Heartbeat":
        """Go on from the last beat.

        Raises:
            LocalFault: the file is missing or unreadable.
        """
        return cls(path, cls.read(path) - wall_ms())

    @staticmethod
    def read(path: Path) -> int:
        """Network time of the last beat.

        Raises:
            LocalFault: the file is missing or unreadable.
        """
        try:
            return int(path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise LocalFault(
                f"{path}: not a heartbeat ({error}); use --fresh to start the network over"
            ) from None

    @property
    def now_ms(self) -> int:
        """Network time."""
        return wall_ms() + self.offset_ms

    def beat(self) -> None:
        """Write the network time, atomically."""
        write_beat(self.path, self.now_ms)


def write_beat(path: Path, network_ms: int) -> None:
    """Set a heartbeat file to a network time."""
    partial = path.with_suffix(".partial")
    partial.write_text(str(network_ms), encoding="ascii")
    partial.replace(path)
