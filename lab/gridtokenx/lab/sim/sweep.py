"""Many seeds of one manifest: over processes, with a record that a later sweep resumes from.

Law of the file: **a sweep's record is one line per seed, and lines are only ever added.** The first line
says of what: manifest, commit, format. A record of something else is refused, never mixed.
"""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import sha256
from gridtokenx.lab.sim.execute import commit, execute
from gridtokenx.lab.sim.manifest import Manifest, dump, parse
from gridtokenx.lab.sim.outcome import Outcome, percentile

FORMAT: Final = 1
_QUEUED_PER_JOB: Final = 4


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a record."""

    format: int
    manifest: str
    """Hash of the manifest's text."""
    commit: str


class Record:
    """A sweep's file; in memory only, without a path.

    Args:
        path: where; made if it is not there.
        manifest: what is swept.
    """

    def __init__(self, path: Path | None, manifest: Manifest) -> None:
        self._path: Final = path
        digest = sha256(dump(manifest).encode()).hex()[:16]
        self._head: Final = Head(format=FORMAT, manifest=digest, commit=commit())
        self.outcomes: Final[dict[int, Outcome]] = {}
        if path is not None and path.exists():
            self._read(path)
        elif path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(self._head) + b"\n")

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes[outcome.seed] = outcome
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(outcome) + b"\n")

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        try:
            head = msgspec.json.decode(lines[0], type=Head)
        except msgspec.DecodeError:
            raise LocalFault(f"{path}: no record of a sweep; name another file") from None
        if head != self._head:
            raise LocalFault(
                f"{path}: a record of manifest {head.manifest} at commit {head.commit}; this is"
                f" {self._head.manifest} at {self._head.commit}. Name another file, or delete this one"
            )
        for line in lines[1:-1]:
            outcome = msgspec.json.decode(line, type=Outcome)
            self.outcomes[outcome.seed] = outcome
        if lines[-1]:  # the last line was cut short: its seed runs again
            path.write_bytes(b"\n".join(lines[:-1]) + b"\n")


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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: set[Future[Outcome]] = set()
        try:
            while True:
                for manifest, seed in waiting:
                    running.add(pool.submit(_run_seed, dump(manifest), seed, commit()))
                    if len(running) >= jobs * _QUEUED_PER_JOB:
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_seed(text: str, seed: int, program: str) -> Outcome:
    return execute(parse(text), seed, program=program)


def parse_seeds(text: str) -> range:
    """`7` or `0..999` (both ends included).

    Raises:
        LocalFault: neither.
    """
    first, dots, last = text.partition("..")
    try:
        start = int(first)
        stop = int(last) if dots else start
    except ValueError:
        raise LocalFault(
            f"seeds {text!r}: write one seed, like 7, or a range, like 0..999"
        ) from None
    if start < 0 or stop < start:
        raise LocalFault(f"seeds {text!r}: the range is empty or below 0")
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
