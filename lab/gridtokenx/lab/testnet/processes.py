"""Real processes, kept alive: start through the zygote, watch, restart with back-off, measure.

Law of the file: a process that ends without being asked is reported with its last lines and started
again; one that keeps ending is given up, and the run has failed. The fork server is such a process,
too: what it had started ends with it, and another one starts it again.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.config import ENVIRONMENT_PREFIX

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 15.0
STABLE_S: Final = 60.0
"""A life this long resets the back-off."""
GIVE_UP_AFTER: Final = 6
"""Lives in a row, each shorter than `STABLE_S`, after which a process is given up."""
MISUSE_EXIT: Final = 2
"""A process that refuses its configuration would refuse it again: never restarted."""
MEMORY_SAMPLE_S: Final = 3.0
ORPHAN_GRACE_S: Final = 8.0
"""How long processes whose fork server died may take to stop."""
ORPHAN_POLL_S: Final = 0.05
"""They are nobody's children any more: their end is no event for us."""
FOR_ALL: Final = frozenset({"GTX_CRASH_AT", "GTX_LOG_FORMAT", "GTX_LOG_LEVEL"})
"""Variables of ours that reach every process of a testnet."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of the network."""

    name: str
    argv: tuple[str, ...]
    """Arguments of `gtx`."""
    log: Path

    @property
    def pid_path(self) -> Path:
        """Its process id, while it runs: for people and tests that want to harm it."""
        return self.log.with_name("pid")


@dataclass(slots=True)
class Watched:
    """A process as the supervisor sees it."""

    spec: ProcessSpec
    pid: int | None = None
    restarts: int = 0
    given_up: bool = False
    peak_memory_kib: int = 0
    """Largest proportional set size seen (shared pages divided among their users)."""
    cpu_s: float = 0.0
    """Processor time as last seen, this life."""
    started_s: float = 0.0
    """Monotonic time of its last start."""
    short_lives: int = 0
    """How many lives in a row ended too soon."""
    exits: list[int] = field(default_factory=list)
    """How each life ended that nobody had asked to end."""
    down: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it does not run."""


Report = Callable[[str], None]


class Processes:
    """All processes of a testnet.

    Args:
        specs: what to run.
        environment: added to every process's environment.
        report: told, in a line, of everything a person should know.
        preload: modules that the fork server imports besides its own.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        environment: Mapping[str, str],
        report: Report,
        preload: Sequence[str] = (),
    ) -> None:
        self.watched: Final = {spec.name: Watched(spec) for spec in specs}
        self.peak_memory_kib = 0
        self._environment: Final = dict(environment)
        self._report: Final = report
        self._preload: Final = tuple(preload)
        self._held: set[str] = set()
        """Processes that stay down until they are released."""
        self._stopping = False
        self._zygote: asyncio.subprocess.Process | None = None
        self._zygote_started_s = 0.0
        self._zygote_short_lives = 0
        self._asked: set[str] = set()
        """Processes that the zygote was asked for and has not reported yet."""
        self._orphans: set[int] = set()
        """Processes of a zygote that died, until they are gone."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def failed(self) -> list[str]:
        """Processes that could not be kept alive."""
        return [name for name, watched in self.watched.items() if watched.given_up]

    async def start(self) -> None:
        """Start the zygote, then every process.

        Raises:
            LocalFault: the zygote could not be started.
        """
        if not await self._start_zygote():
            raise LocalFault("the fork server did not start; its error is above")
        for name in self.watched:
            self._launch(name)
        self._spawn(self._follow())
        self._spawn(self._measure())

    async def _start_zygote(self) -> bool:
        self._zygote = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gridtokenx.lab.testnet.zygote",
            *self._preload,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=environment_for_all(os.environ),
        )
        self._zygote_started_s = time.monotonic()
        return await self._next_event() is not None

    async def stop(self) -> None:
        """End every process: politely, then by force."""
        self._stopping = True
        zygote = self._zygote
        if zygote is not None and zygote.stdin is not None and zygote.returncode is None:
            zygote.stdin.close()
            await zygote.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_orphans()

    def end_at_once(self) -> None:
        """Kill every process; `stop`, which waits for them, then returns soon."""
        for watched in self.watched.values():
            if watched.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(watched.pid, signal.SIGKILL)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to one process, as a fault."""
        pid = self.watched[name].pid
        if pid is not None:
            os.kill(pid, signum)

    def hold(self, name: str) -> None:
        """Kill one process, and keep it down until it is released."""
        self._held.add(name)
        with contextlib.suppress(ProcessLookupError):  # it may have ended, and not be reaped
            self.kill(name)

    async def release(self, name: str) -> None:
        """Start a process again that was held."""
        await self.watched[name].down.wait()
        self._held.discard(name)
        self.watched[name].restarts += 1
        self._launch(name)

    def _spawn(self, job: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)

    def _launch(self, name: str) -> None:
        zygote, spec = self._zygote, self.watched[name].spec
        self._asked.add(name)
        if self._stopping or zygote is None or zygote.stdin is None or zygote.stdin.is_closing():
            return  # it is asked for again by the next fork server, if there is one
        request = {
            "name": name,
            "argv": list(spec.argv),
            "environment": self._environment,
            "log": str(spec.log),
        }
        zygote.stdin.write(json.dumps(request).encode() + b"\n")

    async def _next_event(self) -> dict[str, object] | None:
        zygote = self._zygote
        if zygote is None or zygote.stdout is None:
            return None
        line = await zygote.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None  # it may die amid a line

    async def _follow(self) -> None:
        goes_on = True
        while goes_on:
            while (event := await self._next_event()) is not None:
                self._note(event)
            goes_on = not self._stopping and await self._replace_zygote()

    def _note(self, event: Mapping[str, object]) -> None:
        """What the zygote says of a process."""
        watched = self.watched[str(event["name"])]
        self._asked.discard(watched.spec.name)
        if event["event"] == "started":
            watched.pid = int(str(event["pid"]))
            self._write_pid(watched)
            watched.cpu_s = 0.0
            watched.started_s = time.monotonic()
            watched.down.clear()
            if watched.spec.name in self._held:
                self.kill(watched.spec.name)
        else:
            watched.pid = None
            watched.down.set()
            watched.spec.pid_path.unlink(missing_ok=True)
            self._ended(watched, int(str(event["status"])))

    def _write_pid(self, watched: Watched) -> None:
        try:
            watched.spec.pid_path.write_text(f"{watched.pid}\n", encoding="ascii")
        except OSError as error:  # of use to people only: no reason to stop anything
            self._report(f"{watched.spec.pid_path}: cannot be written: {error.strerror}")

    # -- the fork server's own end -----------------------------------------------------------------

    async def _replace_zygote(self) -> bool:
        """The zygote died: start another one, and by it what had been running."""
        lived_s = time.monotonic() - self._zygote_started_s
        self._zygote_short_lives = 1 if lived_s >= STABLE_S else self._zygote_short_lives + 1
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.wait()
        lost = [watched for watched in self.watched.values() if watched.pid is not None]
        for watched in lost:
            self._orphans.add(watched.pid or 0)
            self._asked.add(watched.spec.name)
            watched.pid = None
            watched.restarts += 1
            watched.spec.pid_path.unlink(missing_ok=True)
        if self._zygote_short_lives >= GIVE_UP_AFTER:
            return self._give_all_up("the fork server keeps ending; every process is stopped")
        self._report(f"the fork server ended; another one starts its {len(lost)} processes again")
        await self._end_orphans()
        if self._stopping:
            return False
        if not await self._start_zygote():
            return self._give_all_up(
                "the fork server did not start again; every process is stopped"
            )
        asked, self._asked = self._asked, set()
        for name in asked:
            self._launch(name)
        return True

    def _give_all_up(self, line: str) -> bool:
        self._report(line)
        for watched in self.watched.values():
            watched.given_up = True
        return False

    async def _end_orphans(self) -> None:
        """Wait until nobody is left whom a dead zygote started: they hold stores and ports.

        The kernel (Linux) has told them already; nobody but their new parent reaps them.
        """
        for signum, grace_s in ((signal.SIGTERM, ORPHAN_GRACE_S), (signal.SIGKILL, ORPHAN_GRACE_S)):
            for pid in self._orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            deadline_s = time.monotonic() + grace_s
            while time.monotonic() < deadline_s:
                self._orphans = {pid for pid in self._orphans if is_running(pid)}
                if not self._orphans:
                    return
                await asyncio.sleep(ORPHAN_POLL_S)

    def _ended(self, watched: Watched, status: int) -> None:
        if self._stopping or watched.spec.name in self._held:
            return
        watched.exits.append(status)
        lived_s = time.monotonic() - watched.started_s
        short = 1 if lived_s >= STABLE_S else watched.short_lives + 1
        watched.short_lives = short
        if status == MISUSE_EXIT or short >= GIVE_UP_AFTER:
            watched.given_up = True
        verdict = "given up" if watched.given_up else "restarting"
        self._report(f"{watched.spec.name} {_how(status)} after {lived_s:.0f} s: {verdict}")
        for line in last_lines(watched.spec.log):
            self._report(f"    {line}")
        if not watched.given_up:
            self._spawn(self._relaunch(watched, short))

    async def _relaunch(self, watched: Watched, attempt: int) -> None:
        await asyncio.sleep(min(FIRST_BACKOFF_S * 2 ** (attempt - 1), MAX_BACKOFF_S))
        watched.restarts += 1
        self._launch(watched.spec.name)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_SAMPLE_S)
            total = 0
            for watched in self.watched.values():
                if watched.pid is None:
                    continue
                memory_kib = proportional_memory_kib(watched.pid)
                total += memory_kib
                watched.peak_memory_kib = max(watched.peak_memory_kib, memory_kib)
                watched.cpu_s = processor_time_s(watched.pid) or watched.cpu_s
            self.peak_memory_kib = max(self.peak_memory_kib, total)


def environment_for_all(environment: Mapping[str, str]) -> dict[str, str]:
    """What every process inherits: of our own variables only those that mean the same to all.

    An address, a password or a configuration that somebody exported for one role would reach all.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX) or name in FOR_ALL
    }


def is_running(pid: int) -> bool:
    """Whether a process that is no child of ours runs; one that nobody reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return not Path("/proc/self").exists()
    return stat.rpartition(") ")[2][:1] not in ("Z", "X")


def proportional_memory_kib(pid: int) -> int:
    """Proportional set size of a process; 0 where the system does not tell."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1])
    except OSError:
        return 0
    return 0


def processor_time_s(pid: int) -> float:
    """User and system time of a process; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_lines(log: Path, count: int = 5) -> list[str]:
    """The end of a log file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with code {status}"
