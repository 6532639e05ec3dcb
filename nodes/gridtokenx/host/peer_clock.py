"""Whether our clock agrees with the others': for operators, never for consensus.

Every answer to a ping carries the other end's network time (`Link.offset_ms`). The median over the
members that are linked is compared with our own. With as few answers as there may be liars nothing is
said at all; with an even number what is nearest to our clock between the middle two counts, so that
nobody is accused by one voice alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics

WARN_MS: Final = 2_000
"""Beyond this a line is logged."""
DEGRADED_MS: Final = 5_000
"""Beyond this a node is not ready: a PBFT replica votes for no block that the others propose, nor do
they for its own (`pbft.timing`, `clock_bound_ms`)."""
_CALM: Final = 0.8
"""A level is left below this part of its bound, so that nothing flaps at the bound itself."""


def middle(offsets_ms: Sequence[int], tolerated: int) -> int | None:
    """The offset that a majority stands behind; None if too few are known.

    Args:
        offsets_ms: others' clocks less ours.
        tolerated: how many of them may lie.
    """
    if len(offsets_ms) <= tolerated:
        return None
    ordered = sorted(offsets_ms)
    half = len(ordered) // 2
    return max(ordered[-half - 1], min(ordered[half], 0))


class PeerClock:
    """The comparison, and what was said of it last.

    Args:
        log: a line per change of level.
        metrics: shows ``clock_offset_seconds``, ours less theirs.
    """

    def __init__(self, log: Logger, metrics: Metrics) -> None:
        self._log = log
        self._offset_ms: int | None = None
        self._peers = 0
        self._bound = 0
        metrics.gauge("clock_offset_seconds", self._seconds)

    def look(self, offsets_ms: Sequence[int], tolerated: int) -> None:
        """Compare; says so once if the level has changed."""
        theirs, self._peers = middle(offsets_ms, tolerated), len(offsets_ms)
        self._offset_ms = None if theirs is None else -theirs
        bound = self._level(abs(self._offset_ms or 0))
        if bound == self._bound:
            return
        was, self._bound = self._bound, bound
        if bound == 0:
            self._log.info("clock agrees again with the others", was_beyond_s=was / 1000)
        elif bound == DEGRADED_MS:
            self._log.error("clock is wrong", why=self._words())
        else:
            self._log.warning("clock is off", why=self._words())

    def reasons(self) -> Iterator[str]:
        """Why this node is not ready."""
        if self._bound >= DEGRADED_MS:
            yield self._words()

    def _level(self, distance_ms: int) -> int:
        """The bound that is exceeded; one that was is kept until well below."""
        for bound in (DEGRADED_MS, WARN_MS):
            if distance_ms > (bound * _CALM if self._bound >= bound else bound):
                return bound
        return 0

    def _seconds(self) -> float:
        return math.nan if self._offset_ms is None else self._offset_ms / 1000

    def _words(self) -> str:
        offset_ms = self._offset_ms or 0
        amount = f"{abs(offset_ms) / 1000:.0f} s {'ahead of' if offset_ms > 0 else 'behind'}"
        return f"clock is {amount} the median of {self._peers} peers; check NTP"
