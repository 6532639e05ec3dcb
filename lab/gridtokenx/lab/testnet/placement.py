"""Where the processes of a network run, and how they find each other.

On one machine all of them share loopback, and differ by port. In containers each has a network
stack of its own: it listens everywhere in it, on the same ports as any other, and is found by its
name. Nothing else about a network depends on where it runs.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from gridtokenx.lab.ports import LOOPBACK

EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - inside a container's own network
PEER_PORT: Final = 26_600
HTTP_PORT: Final = 26_601
MQTTS_PORT: Final = 8_883


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to place the processes of a network."""

    listen_host: str
    """Where a process listens."""
    by_name: bool
    """Found by its own name, on the same ports as all others; else all share `listen_host`."""
    public: PurePosixPath
    """Directory of `manifest.toml` and `network.json` below the home."""
    clock: PurePosixPath
    """Directory of the heartbeat below the home."""
    clock_file: str | None
    """Name of the clock file in that directory; None where a supervisor hands out the offset."""
    mosquitto: bool
    """Readings go through a Mosquitto over TLS; else through the embedded broker."""

    def host(self, name: str) -> str:
        """How the others reach a process."""
        return name if self.by_name else self.listen_host


LOCAL: Final = Placement(
    listen_host=LOOPBACK,
    by_name=False,
    public=PurePosixPath(),
    clock=PurePosixPath(),
    clock_file=None,
    mosquitto=False,
)
"""Processes of one supervisor on one machine."""

CONTAINERS: Final = Placement(
    listen_host=EVERYWHERE,
    by_name=True,
    public=PurePosixPath("genesis"),
    clock=PurePosixPath("clock"),
    clock_file="offset",
    mosquitto=True,
)
"""A container each on one machine; they share the volume of the clock."""

MACHINES: Final = Placement(
    listen_host=EVERYWHERE,
    by_name=True,
    public=PurePosixPath("genesis"),
    clock=PurePosixPath("genesis"),
    clock_file=None,
    mosquitto=True,
)
"""A container each on several machines, which share nothing: network time is wall time."""
