"""How a run of real processes ended: typed, so that tests, reports and people read the same."""

from typing import Final

import msgspec

from gridtokenx.lab.sim.outcome import percentile

NOTHING: Final = "nothing was shown"
"""The verdict of a run that ended before its schedule began: it is not judged."""


class FaultOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, and what the chain made of it. Times are milliseconds since the schedule began."""

    number: int
    kind: str
    what: str
    """For people: whom it hit, and how."""
    hit: tuple[int, ...]
    """Who took no part while it lasted, or worked against it."""
    leader: int
    """Who led when it began."""
    began_ms: int
    ended_ms: int
    went_on_ms: int | None
    """From its beginning until a block made since was final at a quorum."""
    went_on_bound_ms: int | None
    """None where nothing was promised while it lasted: no quorum heard each other."""
    level_ms: int | None
    """From its end until everybody who should be was level, and a new transaction was final."""
    level_bound_ms: int
    views: int
    """How many views the chain went on from its beginning until it was level."""
    broken: str
    """Which of the two was not kept, if one was not."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A broken promise."""

    checker: str
    detail: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    name: str
    seed: int
    commit: str
    verdict: str
    """`ok`, `violation`, `voided` (something broke that had not been promised), or `NOTHING`."""
    findings: tuple[Finding, ...]
    voided: tuple[str, ...]
    """Promises that did not hold from the beginning, each with the reason."""
    complete: bool
    """False: somebody ended it before its time."""
    replicas: int
    byzantine: tuple[int, ...]
    faults: tuple[FaultOutcome, ...]
    blocks: int
    views: int
    transactions: int
    """Acknowledged to clients."""
    unanswered: int
    """Refused, or expired."""
    latency_p50_ms: int
    latency_p95_ms: int
    longest_pause_ms: int
    """Between two blocks final at a quorum."""
    duration_ms: int
    cpu_s: float
    """Of all replicas, as far as their last lives tell."""
    memory_kib: int
    """Largest proportional set size of one replica; pages of its store that it has read count."""
    memory_growth_kib: int
    """Without those pages, from the beginning of the schedule to its end, of the replica that lived
    through it and grew most."""
    load_average: float
    """Of the machine, over the last minute of the run."""
    unanswered_why: dict[str, int] = {}
    """How many for each reason."""

    @property
    def failed(self) -> bool:
        """Whether a promise was broken."""
        return self.verdict == "violation"


__all__ = ["FaultOutcome", "Finding", "Outcome", "percentile"]
