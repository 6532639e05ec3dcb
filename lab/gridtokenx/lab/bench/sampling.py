"""Where processor time goes, by stage: the stack is looked at every few milliseconds of it.

Unlike a profiler that hears of every call, this slows no stage more than another. Python tells of a
signal between two of its own steps, so a long call into C is counted where it returns to.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

_EVERY_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the work, told by what is on the stack."""

    name: str
    files: tuple[str, ...]
    """Ends of paths, or folders with a slash behind; empty: any file."""
    functions: frozenset[str] = frozenset()
    """Names; empty: any function of these files."""

    def holds(self, path: str, function: str) -> bool:
        """Whether a frame belongs here."""
        if self.functions and function not in self.functions:
            return False
        return not self.files or any(
            f"/{file}" in path if file.endswith("/") else path.endswith(f"/{file}")
            for file in self.files
        )


@dataclass(slots=True)
class Samples:
    """What was seen: samples per stage."""

    stages: Sequence[Stage]
    counts: Counter[str] = field(default_factory=Counter)
    _known: dict[tuple[str, str], int] = field(default_factory=dict)

    def take(self, frame: FrameType | None) -> None:
        """Count one look at the stack: for the first stage in the list that any frame belongs to."""
        best = len(self.stages)
        while frame is not None:
            best = min(best, self._rank(frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back
        self.counts[self.stages[best].name if best < len(self.stages) else "the rest"] += 1

    def _rank(self, path: str, function: str) -> int:
        found = self._known.get((path, function))
        if found is None:
            ranks = (i for i, stage in enumerate(self.stages) if stage.holds(path, function))
            found = self._known[path, function] = next(ranks, len(self.stages))
        return found

    def shares(self) -> list[tuple[str, float]]:
        """Stages by share of the time, the greatest first."""
        total = self.counts.total()
        return [(name, count / total) for name, count in self.counts.most_common()]


@contextmanager
def sampled(stages: Sequence[Stage]) -> Iterator[Samples]:
    """Look at this thread's stack while the block runs; only for the main thread of a process."""
    samples = Samples(stages)

    def look(_signal: int, frame: FrameType | None) -> None:
        samples.take(frame)

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
