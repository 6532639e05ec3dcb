"""The network clock of containers on one machine: a volume with the heartbeat and the offset.

::

    CLOCK/heartbeat    network time, written every second by the heartbeat's container
    CLOCK/offset       network time less wall time in ms: every process reads it at its start
    CLOCK/boot         the boot of the machine in which the offset was set

The offset is set anew when the network was down: by `gtx testnet prepare` at each ``up``, and by the
heartbeat after a reboot, when the engine starts containers without ``up``. It stays as it is while
any process may be running, because all of them have to agree on it.
"""

from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.clock import read_clock_file
from gridtokenx.host.files import read_file, write_file
from gridtokenx.lab.testnet.heartbeat import Heartbeat, wall_ms

RUNNING_MS: Final = 5_000
"""A heartbeat not older than this comes from a network that runs, or was not down for long."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id(path: Path = BOOT_ID) -> bytes:
    """What tells one boot of this machine from another; empty where the system does not tell."""
    try:
        return path.read_bytes().strip()
    except OSError:
        return b""


def is_current(directory: Path, boot: bytes | None = None) -> bool:
    """Whether the offset was set since the machine started."""
    try:
        marked = read_file(directory / "boot")
    except LocalFault:
        return False
    return marked == (boot_id() if boot is None else boot)


def set_clock(directory: Path, now_ms: int | None = None, boot: bytes | None = None) -> int:
    """Go on from the last heartbeat, unless the network seems to run; returns the offset in ms.

    Raises:
        LocalFault: there is no heartbeat, or it cannot be read or written.
    """
    now_ms = wall_ms() if now_ms is None else now_ms
    boot = boot_id() if boot is None else boot
    last_ms = Heartbeat.read(directory / "heartbeat")
    if is_current(directory, boot):
        offset_ms = read_clock_file(directory / "offset")
        if abs(now_ms + offset_ms - last_ms) <= RUNNING_MS:
            return offset_ms
    offset_ms = last_ms - now_ms
    write_file(directory / "offset", str(offset_ms).encode())
    write_file(directory / "boot", boot)
    return offset_ms


def open_heartbeat(directory: Path) -> Heartbeat:
    """The heartbeat with the offset that all processes use; a new one if the machine has rebooted.

    Raises:
        LocalFault: the clock was never set, or cannot be read.
    """
    if not is_current(directory):
        set_clock(directory)
    return Heartbeat(directory / "heartbeat", read_clock_file(directory / "offset"))
