"""A run of real processes under faults, from an empty directory to a verdict.

::

    prepare ─> relays, control ─> replicas up ─> load ─> schedule ... healed ─> level ─> stop ─> audit
                                                  └──── faults begin and end, observer watches ────┘

Law of the file: **nothing outlives the run.** The fork server ends the replicas when its input ends,
for whatever reason it does; a replica ends when its control connection does, and the kernel kills it
when the fork server dies.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.chaos.audit import Audit, Claims
from gridtokenx.lab.chaos.control import Control
from gridtokenx.lab.chaos.inject import Injector
from gridtokenx.lab.chaos.layout import name_of, prepare, write_settings
from gridtokenx.lab.chaos.links import Relays
from gridtokenx.lab.chaos.load import Acknowledged, Load
from gridtokenx.lab.chaos.manifest import (
    LiveFault,
    Manifest,
    fault_problems,
    parse,
)
from gridtokenx.lab.chaos.observe import Observer
from gridtokenx.lab.chaos.outcome import NOTHING, Finding, Outcome, percentile
from gridtokenx.lab.chaos.wire import Ask, Seen, Told
from gridtokenx.lab.sim.execute import commit
from gridtokenx.lab.sim.history import Band, BlockPoint, History, ViewPoint
from gridtokenx.lab.testnet.processes import Processes, last_lines

CONTROL: Final = "control"
"""A file in the run's directory that says where its socket is."""
PRELOADED: Final = ("gridtokenx.lab.commands.fault",)
UP_S: Final = 60.0
"""For the first blocks of a chain, and a second more for each replica."""
UP_HEIGHT: Final = 2
Note = Callable[[int, str], None]
"""Hears of what happens: milliseconds since the schedule began, and a line."""


class Run:
    """One run.

    Args:
        manifest: resolved.
        home: an empty directory, or one that does not exist yet.
        note: hears the timeline.

    Raises:
        LocalFault: the directory holds something.
    """

    def __init__(self, manifest: Manifest, home: Path, note: Note) -> None:
        if home.exists() and any(home.iterdir()):
            raise LocalFault(f"{home}: is not empty; a run needs a directory of its own")
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFault(f"{home}: cannot be made: {error.strerror}") from None
        chain, recovery = manifest.chain, manifest.recovery
        self._manifest: Final = manifest
        self._home: Final = home
        self._note_to: Final = note
        self._zero_s = time.monotonic()
        self._laid: Final = prepare(
            home, chain.replicas, manifest.workload.clients, chain.rotation_blocks
        )
        self._observer: Final = Observer(
            chain.replicas,
            chain.timing,
            blocks=recovery.blocks,
            bound_ms=recovery.bound_ms,
            asks_work=manifest.workload.transactions_per_s > 0,
            note=self.note,
            rotates=chain.rotation_blocks > 0,
        )
        draw = random.Random(f"gtx fault run: {manifest.seed}")  # noqa: S311 - repeatable on purpose
        self._relays: Final = Relays(self._laid.ports, draw)
        self._control: Final = Control(self, self.note, home)
        self._processes: Final = Processes(self._laid.specs(), {}, self._report, PRELOADED)
        self._injector: Final = Injector(
            self._laid,
            self._processes,
            self._relays,
            self._control,
            self._observer,
            draw,
            self.note,
        )
        self._load: Final = Load(
            self._laid, manifest.workload.transactions_per_s, self._acknowledged
        )
        self._faults: Final[dict[int, LiveFault]] = dict(enumerate(manifest.fault, 1))
        self._armed: Final[set[int]] = set()
        """Faults that wait for a height or a view."""
        self._alarms: Final[list[asyncio.TimerHandle]] = []
        self._changed: Final = asyncio.Event()
        self._stop: Final = asyncio.Event()
        self._begun = False
        self._complete = False
        self._load_average = 0.0
        self._lasted_s = 0.0
        self._memory_kib: dict[int, int] = {}
        """Of each process when the schedule began, by its id."""
        self._growth_kib = 0
        self._healed_ms = -1

    # -- the run -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Everything up to the stop of the last process; `judge` comes after.

        Raises:
            LocalFault: the chain did not come up.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._on_signal)
        self._observer.on_changed = self._on_changed
        loading: asyncio.Task[None] | None = None
        try:
            await self._bring_up()
            loading = asyncio.create_task(self._load.run(), name="load")
            loading.add_done_callback(lambda _: self._stop.set())  # its failure ends the run
            await self._until_first_blocks()
            if not self._stop.is_set():
                await self._schedule()
        finally:
            self._lasted_s = time.monotonic() - self._zero_s
            with contextlib.suppress(OSError):
                self._load_average = os.getloadavg()[0]
            for alarm in self._alarms:
                alarm.cancel()
            try:
                if loading is not None:
                    await _ended(loading)
            finally:
                await self._bring_down()

    async def _schedule(self) -> None:
        self._begin_schedule()
        await self._pass_time(self._manifest.safety.duration_ms / 1_000)
        self._end_schedule()
        self._complete = not self._stop.is_set()
        await self._until_level()

    async def _bring_up(self) -> None:
        chain = self._manifest.chain
        await self._control.start()
        (self._home / CONTROL).write_text(f"{self._control.path}\n", encoding="utf-8")
        waits = {name: getattr(chain, name) for name in chain.timing.__slots__}
        write_settings(
            self._laid,
            await self._relays.start(),
            self._control.path,
            waits,
            self._manifest.seed or 0,
        )
        self.note(f"starting {chain.replicas} replicas in {self._home}")
        await self._processes.start()

    async def _until_first_blocks(self) -> None:
        limit_s = UP_S + self._manifest.chain.replicas
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while min(self._observer.heights) < UP_HEIGHT and not self._stop.is_set():
                    if self._processes.failed:
                        raise LocalFault(
                            f"{', '.join(self._processes.failed)} cannot run; see above"
                        )
                    self._changed.clear()
                    await self._changed.wait()
                return
        late = [i for i, height in enumerate(self._observer.heights) if height < UP_HEIGHT]
        log = " | ".join(last_lines(self._laid.directory(late[0]) / "log", 2)) if late else ""
        raise LocalFault(f"after {limit_s:.0f} s replicas {late} have no block {UP_HEIGHT}: {log}")

    def _begin_schedule(self) -> None:
        self._begun = True
        self._zero_s = time.monotonic()
        self._observer.start_clock()
        self._memory_kib = {pid: _own_memory_kib(pid) for pid in self._pids()}
        self.note(f"all replicas have block {UP_HEIGHT}; the schedule begins")
        loop = asyncio.get_running_loop()
        for number, fault in self._faults.items():
            if fault.at_height or fault.at_view:
                self._armed.add(number)
            else:
                self._alarms.append(loop.call_later(fault.at_ms / 1_000, self._begin, number))

    def _begin(self, number: int) -> None:
        fault = self._faults[number]
        self._injector.begin(number, fault)
        if fault.for_ms:
            loop = asyncio.get_running_loop()
            self._alarms.append(loop.call_later(fault.for_ms / 1_000, self._injector.end, number))

    def _end_schedule(self) -> None:
        """Nothing begins any more, and everything ends."""
        for alarm in self._alarms:
            alarm.cancel()
        self._armed.clear()
        self._injector.heal()
        self._healed_ms = round((time.monotonic() - self._zero_s) * 1_000)
        self.note("healed")
        grown = [
            _own_memory_kib(pid) - self._memory_kib[pid]
            for pid in self._pids()
            if pid in self._memory_kib
        ]
        self._growth_kib = max(grown, default=0)

    def _pids(self) -> list[int]:
        return [each.pid for each in self._processes.watched.values() if each.pid is not None]

    async def _pass_time(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await self._stop.wait()

    async def _until_level(self) -> None:
        """Wait until each fault is recovered from, or its bound has passed."""
        while self._complete and self._observer.unsettled:
            deadlines = [watch.deadline_s() for watch in self._observer.unsettled]
            known = [deadline_s for deadline_s in deadlines if deadline_s is not None]
            if not known:
                self._observer.give_up_disturbed()
                continue
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, min(known) - time.monotonic())):
                    await self._changed.wait()
            self._complete = not self._stop.is_set()

    async def _bring_down(self) -> None:
        self.note("stopping")
        await self._injector.close()
        await self._processes.stop()
        await self._relays.close()
        await self._control.close()
        (self._home / CONTROL).unlink(missing_ok=True)

    def _on_signal(self) -> None:
        """The first asks for the end of the run; another one does not wait for processes."""
        if self._stop.is_set():
            self._processes.end_at_once()
        self._stop.set()
        self._changed.set()

    # -- what is heard (ControlHandler) ------------------------------------------------------------

    def hello(self, index: int, pid: int) -> None:
        """A replica's process has come."""
        self.note(f"replica {index} is up (process {pid})")

    def seen(self, index: int, seen: Seen) -> None:
        """A replica stands elsewhere than before."""
        self._observer.seen(index, seen)

    def gone(self, index: int) -> None:
        """A replica's process has ended."""

    def ask(self, ask: Ask) -> Told:
        """A person asks."""
        try:
            return Told(tuple(self._answer(ask)))
        except LocalFault as fault:
            return Told(error=str(fault))

    def _answer(self, ask: Ask) -> list[str]:
        match ask.what:
            case "list":
                observer = self._observer
                stand = f"height {observer.quorum_height}, view {observer.view}"
                lines = [f"{stand}, replica {observer.leader} leads"]
                return lines + [f"{n}  {what}" for n, what in self._injector.active.items()]
            case "add":
                return [self._add(ask.fault)]
            case "heal":
                numbers = [ask.number] if ask.number else list(self._injector.active)
                if not set(numbers) <= set(self._injector.active):
                    raise LocalFault(f"fault {ask.number} is not in force; see `gtx fault list`")
                for number in numbers:
                    self._injector.end(number)
                return [f"healed: {', '.join(map(str, numbers)) or 'nothing was wrong'}"]
            case _:
                raise LocalFault(f"a run knows list, add and heal, not {ask.what!r}")

    def _add(self, text: str) -> str:
        fault = parse(text, "fault").fault[0]
        for problem in fault_problems(fault, self._manifest.chain.replicas):
            raise LocalFault(problem)
        number = max(self._faults, default=0) + 1
        self._faults[number] = fault
        self._begin(number)
        return f"fault {number}: {self._injector.active[number]}"

    def _report(self, line: str) -> None:
        """What the supervisor says; a process that it gives up ends a start."""
        self.note(line)
        self._changed.set()

    def _on_changed(self) -> None:
        self._changed.set()
        observer = self._observer
        for number in sorted(self._armed):
            fault = self._faults[number]
            height_due = fault.at_height and observer.height >= fault.at_height
            if height_due or (fault.at_view and observer.view >= fault.at_view):
                self._armed.discard(number)
                self._begin(number)

    def _acknowledged(self, done: Acknowledged) -> None:
        self._observer.acknowledged(done)

    def note(self, line: str) -> None:
        """Put a line on the timeline."""
        self._note_to(round((time.monotonic() - self._zero_s) * 1_000), line)

    # -- the verdict -------------------------------------------------------------------------------

    def judge(self) -> Outcome:
        """Re-execute the chain, hold every store against it, and say how the run ended."""
        observer, load, manifest = self._observer, self._load, self._manifest
        byzantine = frozenset(observer.byzantine)
        watched = [self._processes.watched[name_of(i)] for i in range(manifest.chain.replicas)]
        claims = Claims(
            byzantine=byzantine,
            heights=observer.heights,
            acknowledged=load.acknowledged,
            ended={index: each.exits for index, each in enumerate(watched)},
        )
        audit = Audit(self._laid, claims)
        findings = audit.findings() if self._begun else []
        faults = observer.outcomes(self._zero_s)
        if self._complete:
            findings += [
                Finding(
                    checker="recovery", detail=f"fault {each.number} ({each.what}): {each.broken}"
                )
                for each in faults
                if each.broken
            ]
        latencies = [done.latency_ms for done in load.acknowledged]
        voided = self._voided(len(byzantine))
        return Outcome(
            name=manifest.name,
            seed=manifest.seed or 0,
            commit=commit(),
            verdict=self._verdict(found=bool(findings), voided=bool(voided)),
            findings=tuple(findings),
            voided=voided,
            complete=self._complete,
            replicas=manifest.chain.replicas,
            byzantine=tuple(sorted(byzantine)),
            faults=tuple(faults),
            blocks=audit.height,
            views=observer.changes,
            transactions=len(load.acknowledged),
            unanswered=load.failed.total(),
            unanswered_why=dict(load.failed),
            latency_p50_ms=percentile(latencies, 50),
            latency_p95_ms=percentile(latencies, 95),
            longest_pause_ms=round(observer.longest_pause_s * 1_000),
            duration_ms=round(self._lasted_s * 1_000),
            cpu_s=round(sum(each.cpu_s for each in watched), 1),
            memory_kib=max(each.peak_memory_kib for each in watched),
            memory_growth_kib=self._growth_kib,
            load_average=round(self._load_average, 1),
        )

    def _verdict(self, *, found: bool, voided: bool) -> str:
        if not self._begun:
            return NOTHING
        return "ok" if not found else "voided" if voided else "violation"

    def history(self) -> History:
        """What happened, to be drawn."""
        observer, zero_s = self._observer, self._zero_s
        latencies: dict[int, list[int]] = {}
        for done in self._load.acknowledged:
            latencies.setdefault(done.height, []).append(done.latency_ms)
        since = [(height, at_s) for height, at_s in observer.blocks if at_s >= zero_s]
        return History(
            bands=tuple(
                Band(
                    number=each.number,
                    kind=each.kind,
                    about=each.what,
                    starts_ms=each.began_ms,
                    ends_ms=each.ended_ms,
                )
                for each in observer.outcomes(zero_s)
            ),
            blocks=tuple(
                BlockPoint(
                    at_ms=round((at_s - zero_s) * 1_000),
                    height=height,
                    transactions=len(latencies.get(height, ())),
                    latency_ms=percentile(latencies.get(height, []), 50),
                )
                for height, at_s in since
            ),
            views=tuple(
                ViewPoint(
                    at_ms=round((at_s - zero_s) * 1_000),
                    set_id=0,
                    view=view,
                    members=tuple(range(observer.replicas)),
                )
                for view, at_s in observer.views
                if at_s >= zero_s
            ),
            healed_ms=self._healed_ms,
            ended_ms=round(self._lasted_s * 1_000),
        )

    def _voided(self, traitors: int) -> tuple[str, ...]:
        replicas = self._manifest.chain.replicas
        tolerated = max_faulty(replicas)
        if traitors <= tolerated:
            return ()
        return (f"safety, liveness: {traitors} Byzantine of {replicas}, {tolerated} tolerated",)


def execute(manifest: Manifest, home: Path, note: Note) -> tuple[Outcome, History]:
    """Run a resolved manifest and judge it.

    Args:
        manifest: what to run.
        home: an empty directory for the chain; it stays.
        note: hears the timeline.

    Raises:
        LocalFault: the directory holds something, or the chain did not come up.
    """

    async def go() -> Run:
        run = Run(manifest, home, note)
        await run.run()
        return run

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        run = runner.run(go())
    run.note("judging what the disks hold")
    return run.judge(), run.history()


def _own_memory_kib(pid: int) -> int:
    """What a process holds itself, without its store's pages; 0 where the system does not tell."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as rollup:
            return next(
                (int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:")), 0
            )
    except OSError:
        return 0


async def _ended(task: asyncio.Task[None]) -> None:
    """End a task; what it failed with before is raised."""
    failed = task.done()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if failed:
            raise


def _new_loop() -> asyncio.AbstractEventLoop:
    """The relays pass on every byte between replicas: a quick loop pays."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some systems
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def encode(outcome: Outcome) -> bytes:
    """An outcome as JSON."""
    return msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n"
