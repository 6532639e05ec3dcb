"""Cumulative registers of one device, and the curve that they define.

Law of the file: **energy is the difference of two signed registers.** A device sends what its
registers showed at interval boundaries. Between two known boundaries the energy is exact and only
its split is interpolated; so a lost reading loses no energy, and the order of arrival changes
nothing, because the curve is a function of the set of known boundaries.

Replacement and rollover are explicit flags of the device. A register that runs backwards without
one contradicts its neighbour and is refused, as is one that moved more than the device can.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.types import Int64, UInt63
from gridtokenx.ledger.readings import FLAG_CLOCK_UNCERTAIN, FLAG_REPLACED, FLAG_ROLLED_OVER

INTERVALS_PER_HOUR: Final = 2
PLAUSIBLE_FACTOR: Final = 2
"""A register that moved further than this many times the rating is refused."""
ROUNDING_WH: Final = 2
"""Registers are whole Wh rounded down, and a class-1 meter has a gain error: slack of a difference."""


class Energy(Wire, frozen=True):
    """Wh through a device since its first known register, or in some interval."""

    import_wh: Int64
    export_wh: Int64

    def __add__(self, other: "Energy") -> "Energy":
        return Energy(self.import_wh + other.import_wh, self.export_wh + other.export_wh)

    def __sub__(self, other: "Energy") -> "Energy":
        return Energy(self.import_wh - other.import_wh, self.export_wh - other.export_wh)

    def at_least(self, floor: "Energy") -> "Energy":
        """The larger of both, register by register."""
        return Energy(max(self.import_wh, floor.import_wh), max(self.export_wh, floor.export_wh))


ZERO: Final = Energy(0, 0)


class Point(Wire, frozen=True):
    """The registers of a device at one boundary, as it signed them."""

    boundary: UInt63
    """Index of the interval that starts here."""
    import_wh: UInt63
    export_wh: UInt63
    flags: UInt63
    """The device's FLAG_ bits; *clock uncertain* is also set for a stamp outside the skew."""

    @property
    def uncertain(self) -> bool:
        """Whether an interval that ends or starts here is at best uncertain."""
        return bool(self.flags & (FLAG_CLOCK_UNCERTAIN | FLAG_REPLACED))

    def same_registers(self, other: "Point") -> bool:
        """Whether both say the same about the registers."""
        return (self.import_wh, self.export_wh) == (other.import_wh, other.export_wh)


def energy_between(earlier: Point, later: Point) -> Energy:
    """The energy from one boundary to a later one, before any check of plausibility.

    A replaced meter begins a new count, so what flowed since the old one's last known register is
    not known and counts as nothing. A rollover adds the old count's next power of ten.

    Raises:
        RemoteFault: a register runs backwards and the later reading does not say why.
    """
    if later.flags & FLAG_REPLACED:
        return ZERO
    rolls = bool(later.flags & FLAG_ROLLED_OVER)
    return Energy(
        _difference(earlier.import_wh, later.import_wh, rolls=rolls),
        _difference(earlier.export_wh, later.export_wh, rolls=rolls),
    )


def _difference(earlier_wh: int, later_wh: int, *, rolls: bool) -> int:
    if later_wh >= earlier_wh:
        return later_wh - earlier_wh
    if rolls:
        return int(10 ** len(str(earlier_wh))) + later_wh - earlier_wh
    raise RemoteFault("register-backwards", f"{later_wh} Wh after {earlier_wh} Wh")


def check_plausible(earlier: Point, later: Point, rating_w: int) -> Energy:
    """`energy_between`, if a device of this rating can have moved it.

    Raises:
        RemoteFault: backwards, or more than `PLAUSIBLE_FACTOR` times the rating.
    """
    energy = energy_between(earlier, later)
    intervals = later.boundary - earlier.boundary
    limit_wh = PLAUSIBLE_FACTOR * rated_wh(rating_w, intervals) + ROUNDING_WH
    if max(energy.import_wh, energy.export_wh) > limit_wh:
        raise RemoteFault(
            "beyond-rating",
            f"{energy} in {intervals} intervals, a rating of {rating_w} W allows {limit_wh} Wh",
        )
    return energy


def rated_wh(rating_w: int, intervals: int) -> int:
    """Energy at rated power."""
    return rating_w * intervals // INTERVALS_PER_HOUR


class Curve:
    """Cumulative energy of one device over boundaries.

    Args:
        points: known boundaries, ascending, at least one.
        total: cumulative energy at the first of `points`.
        rate_wh: import estimate per interval beyond the last point. Export is never estimated:
            a sale must not be paid, nor a certificate minted, on a guess.
    """

    def __init__(self, points: Sequence[Point], total: Energy, rate_wh: int) -> None:
        self._points = points
        self._boundaries = [point.boundary for point in points]
        self._totals = [total]
        for earlier, later in itertools.pairwise(points):
            self._totals.append(self._totals[-1] + energy_between(earlier, later))
        self._rate_wh = rate_wh

    def known(self, boundary: int) -> Point | None:
        """The registers at a boundary, if the device has sent them."""
        index = bisect_left(self._boundaries, boundary)
        if index < len(self._points) and self._boundaries[index] == boundary:
            return self._points[index]
        return None

    def spans(self, boundary: int) -> bool:
        """Whether a boundary lies between known ones, so that sums across it are exact."""
        return self._boundaries[0] <= boundary <= self._boundaries[-1]

    def at(self, boundary: int) -> Energy:
        """Cumulative energy at a boundary: measured, interpolated, or estimated beyond the last."""
        index = bisect_right(self._boundaries, boundary) - 1
        if index < 0:
            return self._totals[0]
        before, since = self._totals[index], boundary - self._boundaries[index]
        if since == 0:
            return before
        if index == len(self._boundaries) - 1:
            return before + Energy(self._rate_wh * since, 0)
        gap = self._boundaries[index + 1] - self._boundaries[index]
        step = self._totals[index + 1] - before
        return before + Energy(step.import_wh * since // gap, step.export_wh * since // gap)

    @property
    def last_total(self) -> Energy:
        """Cumulative energy at the last known boundary."""
        return self._totals[-1]
