"""Ports of loopback for networks that are made on the spot.

Law of the file: **while a process lives, nobody else is given what it was given.** Asking the system for any
free port does not give that: it may lend the port to a connection, or to another asker, before it is
used, and again while a node that listens there is down. These ports lie below the ones that systems lend,
in blocks; who takes from a block holds a lock on it, and so do the processes forked from it.
"""

import fcntl
import functools
import os
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault

LOOPBACK: Final = "127.0.0.1"
BLOCK: Final = 256
RANGES: Final = (range(10_240, 17_920), range(20_480, 26_368))
"""The networks of manifests that name no ports begin at 18,080 and at 26,600."""
_MOST_BLOCKS: Final = 4
"""Held by one process before it gives again what it gave first."""


def is_free(port: int) -> bool:
    """Whether nobody uses a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class Ports:
    """What one process takes.

    Args:
        directory: of the locks; made if it is not there.
        ranges: where blocks lie.
    """

    def __init__(self, directory: Path, ranges: Iterable[range] = RANGES) -> None:
        self._directory: Final = directory
        self._firsts: Final = [first for each in ranges for first in each[::BLOCK]]
        self._held: list[tuple[int, int]] = []
        """First port and descriptor of each block, oldest first."""
        self._next = self._stop = 0

    def take(self, count: int) -> list[int]:
        """Consecutive ports that nobody uses.

        Raises:
            LocalFault: there are none left.
        """
        if not 0 < count <= BLOCK:
            raise ValueError(f"{count} ports: from 1 to {BLOCK} can be taken at once")
        for _ in range(len(self._firsts) + _MOST_BLOCKS):
            while self._next + count <= self._stop:
                ports = list(range(self._next, self._next + count))
                used = [port for port in ports if not is_free(port)]
                self._next = used[-1] + 1 if used else ports[-1] + 1
                if not used:
                    return ports
            self._turn()
        raise LocalFault(f"no {count} free ports in a row were found from {self._firsts[0]} on")

    def release(self) -> None:
        """Give all blocks back."""
        for _, descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        self._next = self._stop = 0

    def _turn(self) -> None:
        """Go on with a block of one's own: a new one, or the oldest."""
        new = self._lock() if len(self._held) < _MOST_BLOCKS else None
        if new is not None:
            self._held.append(new)
        elif self._held:
            self._held.append(self._held.pop(0))
        else:
            raise LocalFault(f"all ports are taken; who holds them is in {self._directory}")
        self._next = self._held[-1][0]
        self._stop = self._next + BLOCK

    def _lock(self) -> tuple[int, int] | None:
        """A block that nobody holds."""
        own = {first for first, _ in self._held}
        for first in self._firsts:
            if first not in own and (descriptor := self._try(first)) is not None:
                return first, descriptor
        return None

    def _try(self, first: int) -> int | None:
        path = self._directory / f"ports-{first}.lock"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalFault(f"{path}: cannot be locked: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor


@functools.cache
def _of_this_process() -> Ports:
    """Made when ports are first wanted: a read-only container has no place for files, and wants none."""
    return Ports(Path(tempfile.gettempdir()) / f"gridtokenx-ports-{os.getuid()}")


def free_ports(count: int) -> list[int]:
    """`Ports.take` of this process."""
    return _of_this_process().take(count)
