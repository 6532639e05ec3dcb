"""How a run ended: typed, so that sweeps, reports and people read the same.

Law of the file: **a promise that was not given cannot be broken.** With more than f Byzantine replicas
neither safety nor liveness is promised; the outcome says so, and what happened then is no violation.
"""

from typing import Any

import msgspec


class Violation(Exception):
    """A promise is broken; raised by checkers, at the moment when it shows.

    Args:
        checker: which promise.
        detail: what happened.
    """

    def __init__(self, checker: str, detail: str) -> None:
        super().__init__(f"{checker}: {detail}")
        self.checker = checker
        self.detail = detail


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A broken promise in an outcome."""

    checker: str
    detail: str
    at_ms: int
    """Virtual time since the start of the run."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    name: str
    seed: int
    commit: str
    verdict: str
    """`ok`, `violation`, or `voided`: something broke that had not been promised."""
    finding: Finding | None
    voided: tuple[str, ...]
    """Promises that did not hold from the beginning, each with the reason."""
    refused: tuple[str, ...] = ()
    """Changes of the set that it did not allow when their turn came, each with the reason."""
    trace: str
    """Hash of everything that every machine was told, in order."""
    replicas: int
    """In the first set."""
    handovers: int = 0
    """How many sets followed it."""
    byzantine: tuple[int, ...]
    faults: int
    blocks: int
    """The highest height that an honest replica committed."""
    views: int
    """The highest view that an honest replica was in."""
    transactions: int
    """Committed."""
    latency_p50_ms: int
    latency_p95_ms: int
    recovery_ms: int
    """From healing until the core had gone on as it must; -1: it had not, or was not asked to."""
    virtual_ms: int
    deliveries: int
    noticed: dict[str, int] = {}
    """What honest nodes refused of what they heard, and of what they accused others, by reason."""
    summary: dict[str, Any] | None = None
    """Of a whole network: as `./scripts/up --summary` tells it (`docs/summary.md`). Its blocks are those of
    all chains, its views the consortium's, its latencies those of packets until their end is known."""

    @property
    def failed(self) -> bool:
        """Whether a promise was broken."""
        return self.verdict == "violation"


def shown_ms(value: int) -> str:
    """A time for people; `-` where there is none."""
    return "-" if value < 0 else f"{value} ms"


def percentile(values: list[int], percent: int) -> int:
    """The least value that so many percent do not exceed; -1 without values."""
    if not values:
        return -1
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
