"""`up`: start everything, watch it, and stop it in order.

The supervisor believes nobody: what it shows comes verified from the gateway, and what it sums up
at the end (`audit.py`) comes from re-executing the chains that the nodes left on disk.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import time
import webbrowser
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import aiohttp
from rich.live import Live

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.files import write_file
from gridtokenx.lab.network import CLOCK_FILE
from gridtokenx.lab.testnet.counters import Counters
from gridtokenx.lab.testnet.heartbeat import Heartbeat
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.processes import Processes
from gridtokenx.lab.testnet.status import (
    Seen,
    Status,
    console,
    fetch_status,
    one_line,
    screen,
)

BEAT_S: Final = 1.0
LINE_S: Final = 5.0
COUNT_S: Final = 10.0
OFFSET_VARIABLE: Final = "GTX_CLOCK_OFFSET_MS"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the supervisor saw of a run."""

    elapsed_s: float
    processes: Processes
    first_final_s: dict[str, float]
    """Seconds until the gateway showed each chain's first finalised block of this run."""
    counters: Counters
    """What the devices and the oracle nodes counted."""


@contextlib.contextmanager
def supervisor_lock(home: Path) -> Iterator[None]:
    """One supervisor a home.

    Raises:
        LocalFault: another one runs, or the home cannot be written.
    """
    path = home / "supervisor.pid"
    try:
        opened = path.open("a+", encoding="ascii")
    except OSError as error:
        raise LocalFault(f"{path}: cannot be written: {error.strerror}") from None
    with opened as file:
        _lock(file, path)
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            raise LocalFault(f"{path}: cannot be written: {error.strerror}") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running_supervisor(home: Path) -> int | None:
    """The process id of the supervisor of a home, or None."""
    path = home / "supervisor.pid"
    try:
        with path.open("r", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None


async def run(layout: Layout, duration_s: float | None, *, fresh: bool, open_page: bool) -> Outcome:
    """Run the network until the time is over or somebody stops it."""
    return await _Supervisor(layout, fresh=fresh, open_page=open_page).run(duration_s)


class _Supervisor:
    def __init__(self, layout: Layout, *, fresh: bool, open_page: bool) -> None:
        self._layout = layout
        self._fresh = fresh
        self._open_page = open_page
        self._console = console()
        self._notes: deque[str] = deque(maxlen=8)
        self._heartbeat = Heartbeat.resume(layout.heartbeat_path)
        offset = str(self._heartbeat.offset_ms)
        write_file(layout.home / CLOCK_FILE, offset.encode())  # for nodes that others run
        environment = {OFFSET_VARIABLE: offset}
        self._processes = Processes(layout.specs(), environment, self._report)
        self._counters = Counters(
            {m.name: m.http_port for m in layout.members if m.name == "devices" or m.chain}
        )
        self._url = layout.gateway_url
        self._started_s = time.monotonic()
        self._first_heights: dict[str, int] = {}
        self._first_final_s: dict[str, float] = {}
        self._status: Status | None = None
        self._status_at_s = 0.0
        """When the gateway last answered."""
        self._is_beat_lost = False
        self._live: Live | None = None

    async def run(self, duration_s: float | None) -> Outcome:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._on_signal, stop)
        self._layout.check_ports()
        self._report(f"starting {len(self._processes.watched)} processes; page: {self._url}")
        try:
            await self._processes.start()
            await self._watch(stop, duration_s)
        finally:
            self._report("stopping")
            await self._processes.stop()
            self._beat()
        return Outcome(self._elapsed_s(), self._processes, self._first_final_s, self._counters)

    def _on_signal(self, stop: asyncio.Event) -> None:
        """The first asks everything to stop; another one does not wait for that."""
        if stop.is_set():
            self._report("asked again: ending every process at once")
            self._processes.end_at_once()
        stop.set()

    def _beat(self) -> None:
        """Write the heartbeat; a full disk is told once, and the network goes on without."""
        try:
            self._heartbeat.beat()
        except OSError as error:
            if not self._is_beat_lost:
                self._report(
                    f"{self._layout.heartbeat_path}: cannot be written: {error.strerror}; free the disk:"
                    " after a stop, network time would go on from the last beat"
                )
            self._is_beat_lost = True
            return
        if self._is_beat_lost:
            self._report(f"{self._layout.heartbeat_path}: is written again")
        self._is_beat_lost = False

    async def _watch(self, stop: asyncio.Event, duration_s: float | None) -> None:
        deadline = None if duration_s is None else time.monotonic() + duration_s
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            if self._console.is_terminal and not self._console.is_dumb_terminal:
                self._live = stack.enter_context(
                    Live(console=self._console, auto_refresh=False, transient=True)
                )
            next_line_s, next_look_s = 0.0, COUNT_S
            while not stop.is_set() and len(self._processes.failed) < len(self._processes.watched):
                self._beat()
                self._note_status(await fetch_status(session, self._url))
                next_line_s = self._show(next_line_s)
                if self._elapsed_s() >= next_look_s:
                    await self._counters.look(session)
                    next_look_s = self._elapsed_s() + COUNT_S
                wait_s = BEAT_S if deadline is None else min(BEAT_S, deadline - time.monotonic())
                if wait_s <= 0:
                    break
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), wait_s)
            await self._counters.look(session)
        self._live = None

    def _show(self, next_line_s: float) -> float:
        elapsed_s = self._elapsed_s()
        seen = Seen(self._status, elapsed_s - self._status_at_s)
        if self._live is not None:
            size = self._console.size
            picture = screen(seen, self._processes, elapsed_s, self._url, self._notes, size.height)
            self._live.update(picture, refresh=True)
        elif elapsed_s >= next_line_s:
            self._console.print(one_line(seen, self._processes, elapsed_s), soft_wrap=True)
            return elapsed_s + LINE_S
        return next_line_s

    def _note_status(self, status: Status | None) -> None:
        if status is None:
            return
        if self._status is None and self._open_page:
            webbrowser.open(self._url)
        self._status, self._status_at_s = status, self._elapsed_s()
        for name, chain in status["chains"].items():
            finalized = int(chain["finalized"])
            first = self._first_heights.setdefault(name, 0 if self._fresh else finalized)
            if finalized > first and name not in self._first_final_s:
                self._first_final_s[name] = self._elapsed_s()
                self._report(
                    f"{name} chain finalises (block {finalized} after {self._elapsed_s():.1f} s)"
                )

    def _report(self, line: str) -> None:
        self._notes.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise LocalFault(
            f"{path.parent}: this testnet already runs (process {file.read() or 'unknown'}); see it with: "
            f"gtx testnet status --home {path.parent}; stop it with: gtx testnet down --home {path.parent}"
        ) from None
