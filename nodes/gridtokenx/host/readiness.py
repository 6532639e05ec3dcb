"""Whether a process does its work, and if not, why: what `/ready` answers.

Each reason is one clear line for whoever is on call: what is wrong, the numbers, and what to do if
that is not obvious. Reasons are found when somebody asks; nothing here waits or blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """An answer to: does it do its work?"""

    ready: bool
    reasons: tuple[str, ...] = ()
    """Why not; empty if it does."""

    @classmethod
    def unless(cls, reasons: Iterable[str]) -> "Readiness":
        """Ready unless there is a reason against it."""
        found = tuple(reasons)
        return cls(not found, found)


READY = Readiness(ready=True)
