"""The runner's end of the control connections: replicas report and are told, people ask.

The socket is a file that only its owner can open; nothing listens on a port.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.chaos import wire

_LONGEST_PATH: Final = 100
"""Of a socket; systems allow 104 bytes or a few more."""


class ControlHandler(Protocol):
    """Who hears what is said."""

    def hello(self, index: int, pid: int) -> None:
        """A replica's process has come."""

    def seen(self, index: int, seen: wire.Seen) -> None:
        """A replica stands elsewhere than before."""

    def gone(self, index: int) -> None:
        """A replica's process has ended, or was ended."""

    def ask(self, ask: wire.Ask) -> wire.Told:
        """A person asks."""
        ...


class Control:
    """The socket and who is connected.

    Args:
        handler: hears everything.
        report: told of what should not happen.
        home: the run's directory.
    """

    def __init__(self, handler: ControlHandler, report: Callable[[str], None], home: Path) -> None:
        self._handler: Final = handler
        self._report: Final = report
        near = home.absolute() / wire.SOCKET
        self._is_far: Final = len(os.fsencode(near)) > _LONGEST_PATH
        self.path: Final = (
            Path(tempfile.mkdtemp(prefix="gtx-fault-")) / wire.SOCKET if self._is_far else near
        )
        """Where the socket is: in the run's directory, unless that has too long a name for one."""
        self._replicas: dict[int, asyncio.StreamWriter] = {}
        self._active: dict[int, tuple[wire.InnerFault, frozenset[int]]] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_unix_server(
            self._serve, self.path, limit=wire.MAX_LINE, backlog=128
        )
        self.path.chmod(0o600)

    async def close(self) -> None:
        """Let go of everybody: a replica that still lives ends."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._writers):
            writer.close()
        self.path.unlink(missing_ok=True)
        if self._is_far:
            self.path.parent.rmdir()

    def begin(self, number: int, fault: wire.InnerFault, replicas: Iterable[int]) -> None:
        """A fault inside of these replicas is in force, also in their later lives."""
        self._active[number] = (fault, frozenset(replicas))
        for index in self._active[number][1]:
            self._say(index, wire.Began(number, fault))

    def end(self, number: int) -> None:
        """And is no more."""
        if (found := self._active.pop(number, None)) is not None:
            for index in found[1]:
                self._say(index, wire.Over(number))

    def _say(self, index: int, line: wire.Line) -> None:
        writer = self._replicas.get(index)
        if writer is not None:
            wire.write(writer, line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        index: int | None = None
        try:
            async for line in wire.lines(reader):
                match line:
                    case wire.Hello(said, pid):
                        index = said
                        self._greet(index, pid, writer)
                    case wire.Seen() if index is not None:
                        self._handler.seen(index, line)
                    case wire.Ask():
                        wire.write(writer, self._handler.ask(line))
                    case _:
                        self._report(f"control: unexpected {type(line).__name__}")
        except LocalFault as fault:
            self._report(str(fault))
        finally:
            self._writers.discard(writer)
            writer.close()
            if index is not None and self._replicas.get(index) is writer:
                del self._replicas[index]
                self._handler.gone(index)

    def _greet(self, index: int, pid: int, writer: asyncio.StreamWriter) -> None:
        self._replicas[index] = writer
        for number, (fault, replicas) in self._active.items():
            if index in replicas:
                wire.write(writer, wire.Began(number, fault))
        self._handler.hello(index, pid)


async def ask(path: Path, question: wire.Ask) -> wire.Told:
    """Ask a runner, as a person.

    Raises:
        LocalFault: there is none, or it refuses.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=wire.MAX_LINE)
    except OSError as error:
        raise LocalFault(f"no run answers at {path}: {error.strerror or error}") from None
    try:
        wire.write(writer, question)
        async for line in wire.lines(reader):
            if isinstance(line, wire.Told):
                if line.error:
                    raise LocalFault(line.error)
                return line
    finally:
        writer.close()
    raise LocalFault(f"the run at {path} has ended")
