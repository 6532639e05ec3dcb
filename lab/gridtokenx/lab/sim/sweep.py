"""Many seeds of one manifest: over processes, with a record that a later sweep resumes from.

Law of the file: **a sweep's record is one line per seed, and lines are only ever added.** The first line
says of what: manifest, commit, format. A record of something else is refused, never mixed, and so is one
that another sweep is writing.
"""

import contextlib
import fcntl
import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import sha256
from gridtokenx.lab.files import read_regular
from gridtokenx.lab.sim.execute import commit, execute
from gridtokenx.lab.sim.manifest import Manifest, dump, parse
from gridtokenx.lab.sim.outcome import Outcome, percentile

FORMAT: Final = 2
MOST_RUNS: Final = 1_000_000
GREATEST_SEED: Final = 2**63 - 1
_SEEDS: Final = re.compile(r"([0-9]{1,99})(?:\.\.([0-9]{1,99}))?")
_QUEUED_PER_JOB: Final = 4


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a record."""

    format: int
    manifest: str
    """Hash of the manifest's text."""
    commit: str
    about: str = ""
    """What is studied, in the manifest's words."""
    text: str = ""
    """The manifest: a record is enough to tell any of its runs again."""


class Record:
    """A sweep's file; in memory only, without a path.

    Args:
        path: where; made if it is not there.
        manifest: what is swept.
        about: what is studied, if the manifest does not say all of it.
        number_of: tells the runs apart; a sweep's by their seeds.
    """

    def __init__(
        self,
        path: Path | None,
        manifest: Manifest,
        *,
        about: str = "",
        number_of: Callable[[Outcome], int] = attrgetter("seed"),
    ) -> None:
        self._path: Final = path
        self._number_of: Final = number_of
        text, about = dump(manifest), about or manifest.about
        self._head: Final = Head(
            format=FORMAT, manifest=_digest(text), commit=commit(), about=about, text=text
        )
        self.outcomes: Final[dict[int, Outcome]] = {}
        """By number."""
        self._file: Final = -1 if path is None else _open(path)
        if path is not None:
            # Closed with the record and not before: that would let go of the lock, too.
            weakref.finalize(self, os.close, self._file)
            self._read(path)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome: it is in the file when this returns, or nothing of it is.

        Raises:
            LocalFault: it cannot be written.
        """
        if self._path is not None:
            self._append(self._path, msgspec.json.encode(outcome) + b"\n")
        self.outcomes[self._number_of(outcome)] = outcome

    def _append(self, path: Path, line: bytes) -> None:
        now = os.fstat(self._file)
        if not now.st_nlink:
            raise LocalFault(
                f"record {path}: it was removed, and {len(self.outcomes)} runs with it"
            )
        try:
            _write(self._file, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, now.st_size)
            raise LocalFault(
                f"record {path}: cannot be written: {error.strerror}; the {len(self.outcomes)} runs"
                " before are kept: the same sweep goes on from there"
            ) from None

    def _read(self, path: Path) -> None:
        text = _read_all(self._file)
        lines = text.split(b"\n")
        if len(lines) == 1 and (msgspec.json.encode(self._head) + b"\n").startswith(text):
            self._begin(path)  # it is new, or whoever made it did not come to the end of a line
            return
        head = _head_in(path, lines[0])
        if head != self._head:
            raise LocalFault(
                f"{path}: a record of manifest {head.manifest} at commit {head.commit} ({head.about}); this"
                f" is {self._head.manifest} at {self._head.commit} ({self._head.about}). Name another file,"
                " or delete this one"
            )
        for number, outcome in enumerate(_outcomes_in(path, lines[1:-1], head), 2):
            try:
                self.outcomes[self._number_of(outcome)] = outcome
            except ValueError:
                raise LocalFault(
                    f"{path}, line {number}: {outcome.name!r} is no run of this record: it was changed"
                ) from None
        if lines[-1]:  # the last line was cut short: its seed runs again
            os.ftruncate(self._file, len(text) - len(lines[-1]))

    def _begin(self, path: Path) -> None:
        try:
            os.ftruncate(self._file, 0)
            _write(self._file, msgspec.json.encode(self._head) + b"\n")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise LocalFault(f"record {path}: cannot be written: {error.strerror}") from None


def _open(path: Path) -> int:
    """A record to read and to add to, for this process alone.

    Raises:
        LocalFault: it cannot be written, or somebody else is about it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        strange = path.exists() and not path.is_file()
        file = -1 if strange else os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise LocalFault(f"record {path}: cannot be written: {error.strerror}") from None
    if strange:
        raise LocalFault(f"record {path}: cannot be written: not a regular file")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise LocalFault(
            f"record {path}: another sweep is writing it; wait for its end, or name another file"
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def _read_all(file: int) -> bytes:
    parts: list[bytes] = []
    while part := os.pread(file, 2**20, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)


def _write(file: int, text: bytes) -> None:
    """All of it: a disk that is nearly full takes a part without a word."""
    while text:
        text = text[os.write(file, text) :]


def read_record(path: Path) -> tuple[Head, tuple[Outcome, ...]]:
    """A record and its outcomes by seed and name; a last line that was cut short is left out.

    Raises:
        LocalFault: it is no record of a sweep, or damaged.
    """
    try:
        lines = read_regular(path).split(b"\n")
    except OSError as error:
        raise LocalFault(f"{path}: cannot be read: {error.strerror}") from None
    head = _head_in(path, lines[0])
    outcomes = {(each.seed, each.name): each for each in _outcomes_in(path, lines[1:-1], head)}
    return head, tuple(outcomes[run] for run in sorted(outcomes))


def _digest(text: str) -> str:
    return sha256(text.encode()).hex()[:16]


def _head_in(path: Path, line: bytes) -> Head:
    try:
        head = msgspec.json.decode(line, type=Head)
    except msgspec.DecodeError:
        raise LocalFault(f"{path}: no record of a sweep; name another file") from None
    if head.format == FORMAT and head.manifest != _digest(head.text):
        raise LocalFault(f"{path}: the manifest in its first line was changed: sweep again")
    if head.format != FORMAT:
        raise LocalFault(
            f"{path}: a record of format {head.format}, this program writes {FORMAT}: sweep again"
        )
    return head


def _outcomes_in(path: Path, lines: Iterable[bytes], head: Head) -> Iterator[Outcome]:
    for number, line in enumerate(lines, 2):
        try:
            outcome = msgspec.json.decode(line, type=Outcome)
        except msgspec.DecodeError as error:
            raise LocalFault(f"{path}, line {number}: no outcome of a run: {error}") from None
        if outcome.commit != head.commit:
            raise LocalFault(
                f"{path}, line {number}: a run at commit {outcome.commit}; the record's first line names"
                f" {head.commit}: it was changed, and nothing says which is true. Sweep again"
            )
        if outcome.seed < 0 or (outcome.failed and outcome.finding is None):
            raise LocalFault(
                f"{path}, line {number}: no run ends like that: it was changed. Sweep again"
            )
        yield outcome


def sweep(manifest: Manifest, seeds: Iterable[int], jobs: int, record: Record) -> Iterator[Outcome]:
    """Run all seeds that the record lacks; yields outcomes as they come, each already recorded."""
    missing = (seed for seed in seeds if seed not in record.outcomes)
    for outcome in run_all(((manifest, seed) for seed in missing), jobs):
        record.add(outcome)
        yield outcome


def run_all(runs: Iterable[tuple[Manifest, int]], jobs: int) -> Iterator[Outcome]:
    """Run manifests with their seeds, over so many processes; yields outcomes as they come."""
    if jobs <= 1:
        return (execute(manifest, seed) for manifest, seed in runs)
    return _spread(runs, jobs)


def _spread(runs: Iterable[tuple[Manifest, int]], jobs: int) -> Iterator[Outcome]:
    """Over processes; a few runs are queued for each, so that an end comes soon when it is asked for."""
    waiting = iter(runs)
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)
    running: set[Future[Outcome]] = set()
    try:
        while True:
            for manifest, seed in waiting:
                with _undisturbed():  # this may start a worker
                    running.add(pool.submit(_run_seed, dump(manifest), seed, commit()))
                if len(running) >= jobs * _QUEUED_PER_JOB:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise LocalFault(
            "a process that ran seeds was killed (is there enough memory? try fewer --jobs); what was"
            " on record still is"
        ) from None
    finally:
        with _undisturbed():
            if running:  # nobody waits for what they do
                for worker in set(multiprocessing.active_children()) - others:
                    worker.kill()
            pool.shutdown(cancel_futures=True)


def _start_method() -> str:
    """A copy of this process has everything imported, which is a second run's time; threads forbid it."""
    copies = sys.platform == "linux" and threading.active_count() == 1
    return "fork" if copies else "spawn"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until this is over; a process that starts meanwhile is born with it blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Ctrl-C reaches every process of a terminal: only the one that keeps the record answers it.

    That one may be killed; nobody would read what its workers do, so they end with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_seed(text: str, seed: int, program: str) -> Outcome:
    return execute(parse(text), seed, program=program)


def parse_seeds(text: str) -> range:
    """`7` or `0..999` (both ends included).

    Raises:
        LocalFault: neither.
    """
    found = _SEEDS.fullmatch(text)
    if found is None:
        raise LocalFault(f"seeds {text!r}: write one seed, like 7, or a range, like 0..999")
    start, stop = int(found[1]), int(found[2] or found[1])
    if stop < start:
        raise LocalFault(f"seeds {text!r}: the range is empty")
    if stop > GREATEST_SEED:
        raise LocalFault(f"seeds {text!r}: {GREATEST_SEED} is the greatest")
    if stop - start >= MOST_RUNS:
        raise LocalFault(f"seeds {text!r}: a sweep has {MOST_RUNS} runs at most")
    return range(start, stop + 1)


def summary(outcomes: Iterable[Outcome]) -> dict[str, object]:
    """What a sweep showed, in numbers."""
    all_ = sorted(outcomes, key=lambda outcome: outcome.seed)
    recoveries = [outcome.recovery_ms for outcome in all_ if outcome.recovery_ms >= 0]
    by_checker: dict[str, int] = {}
    for outcome in all_:
        if outcome.failed and outcome.finding is not None:
            checker = outcome.finding.checker
            by_checker[checker] = by_checker.get(checker, 0) + 1
    return {
        "runs": len(all_),
        "ok": sum(outcome.verdict == "ok" for outcome in all_),
        "voided": sum(outcome.verdict == "voided" for outcome in all_),
        "violations": sum(outcome.failed for outcome in all_),
        "by_checker": dict(sorted(by_checker.items())),
        "blocks": sum(outcome.blocks for outcome in all_),
        "views": sum(outcome.views for outcome in all_),
        "virtual_s": sum(outcome.virtual_ms for outcome in all_) // 1_000,
        "recovery_p50_ms": percentile(recoveries, 50),
        "recovery_p95_ms": percentile(recoveries, 95),
        "recovery_max_ms": max(recoveries, default=-1),
    }


DEFAULT_JOBS: Final = min(2, os.cpu_count() or 1)
