"""How one device's registers become the energy of closed intervals.

Law of the file: **what was reported adds up to the registers.** When an interval closes, everything
that is known about the device is one curve of cumulative energy (`registers.Curve`); the interval
gets the curve's difference, and the intervals of the correction window are corrected to theirs.

======================  =========================================================================
boundary of an interval  its energy
======================  =========================================================================
both known              the difference of two registers (*good*, or *uncertain* as flagged)
between known ones      interpolated; the sum over the gap is exact (*uncertain*)
after the last known    import at the last known rate, export nothing (*substituted*)
======================  =========================================================================

An estimate never outlives the window: if no register has come when the first estimated interval
becomes final, the estimates are withdrawn, so what is final was measured. Energy that the registers
show for final intervals, and that was not reported there, is booked *late* to the interval that is
closing now. So after every closing the sum of all reports is the curve at the interval's end.

A `Book` is bounded: the window's entries, and at most `MAX_POINTS` known boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.types import UInt63
from gridtokenx.interchain.apps.meter_report import Quality
from gridtokenx.oracle.chain.registers import (
    ZERO,
    Curve,
    Energy,
    Point,
    check_plausible,
    energy_between,
    rated_wh,
)

CORRECTION_WINDOW: Final = 3
"""Closed intervals whose energy may still change; also the age at which generation is attested."""
MAX_POINTS: Final = 128
"""More than the 96 boundaries that a device keeps; only a chain that lags behind needs them."""
OVERLOAD_PERCENT: Final = 110
"""An interval above this share of the device's rating is *bad*."""


class Booked(Wire, frozen=True):
    """What was last reported for one interval of one device."""

    interval: UInt63
    energy: Energy
    late: Energy
    """The part of `energy` that flowed in earlier intervals, which were final when it was known."""
    quality: Quality
    measured: bool
    """Whether the registers at the interval's end were known."""


class Book(Wire, frozen=True):
    """All that the chain remembers of one device's registers."""

    points: Annotated[tuple[Point, ...], Meta(max_length=MAX_POINTS)]
    """Known boundaries, ascending; the first is at or before the window's start, if any is."""
    first: Point | None
    """The earliest known boundary: energy counts from here."""
    total: Energy
    """Cumulative energy at `points[0]`."""
    rate_wh: UInt63
    """Import per interval before `points[0]`, for estimates."""
    final: Energy
    """Sum of the energy of intervals that left the window."""
    booked: tuple[Booked, ...]
    """The intervals of the window, ascending and without gap."""
    unbooked: Energy
    """Energy that arrivals since the last closing added before the end of what is booked."""

    @property
    def reported(self) -> Energy:
        """The sum of everything ever reported, as corrected."""
        return sum((entry.energy for entry in self.booked), self.final)

    @property
    def curve(self) -> Curve:
        """Cumulative energy over known boundaries; needs a first point."""
        return Curve(self.points, self.total, 0)

    def estimating_curve(self, rating_w: int) -> Curve:
        """The same, going on at the last known rate of import (within the rating)."""
        rate_wh = self.rate_wh
        if len(self.points) > 1:
            rate_wh = _rate_wh(self.points[-2], self.points[-1])
        return Curve(self.points, self.total, min(rate_wh, rated_wh(rating_w, 1)))


EMPTY: Final = Book((), None, ZERO, 0, ZERO, (), ZERO)


def _rate_wh(earlier: Point, later: Point) -> int:
    energy = energy_between(earlier, later)
    return energy.import_wh // (later.boundary - earlier.boundary)


# -- a reading arrives -----------------------------------------------------------------------------


def take(book: Book, point: Point, rating_w: int) -> Book:
    """The book with one more known boundary.

    A boundary that is known already, or older than all that still matters, changes nothing.

    Raises:
        RemoteFault: the point contradicts a known neighbour.
    """
    if book.first is None:
        return replace(book, points=(point,), first=point)
    if point.boundary < book.first.boundary:
        return _take_first(book, point, book.first, rating_w)
    if point.boundary < book.points[0].boundary:
        return book
    if (known := book.curve.known(point.boundary)) is not None:
        if known.same_registers(point):
            return book
        raise RemoteFault("conflicting-registers", f"two readings of boundary {point.boundary}")
    if len(book.points) >= MAX_POINTS:
        return book
    return _insert(book, point, rating_w)


def _take_first(book: Book, point: Point, first: Point, rating_w: int) -> Book:
    """An earlier first register: all that flowed since counts too."""
    added = check_plausible(point, first, rating_w)
    if first == book.points[0] and len(book.points) < MAX_POINTS:
        points, total = (point, *book.points), book.total
    else:
        points, total = book.points, book.total + added
    return replace(book, points=points, first=point, total=total, unbooked=book.unbooked + added)


def _insert(book: Book, point: Point, rating_w: int) -> Book:
    index = sum(known.boundary < point.boundary for known in book.points)
    check_plausible(book.points[index - 1], point, rating_w)
    if index < len(book.points):
        check_plausible(point, book.points[index], rating_w)
    points = (*book.points[:index], point, *book.points[index:])
    end = book.points[-1].boundary
    # Only a reading just before a replacement or rollover moves what is known at the end.
    moved = Curve(points, book.total, 0).at(end) - book.curve.at(end)
    return replace(book, points=points, unbooked=book.unbooked + moved)


# -- an interval closes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Closing:
    """What closing one interval did to one device's book."""

    book: Book
    reports: tuple[Booked, ...]
    """Corrections of earlier intervals, ascending, then the closed interval's own entry."""
    final: tuple[Booked, ...]
    """Entries that will not change any more."""


def close(book: Book, interval: int, rating_w: int, window: int = CORRECTION_WINDOW) -> Closing:
    """Close `interval`, which is later than all that are booked.

    Args:
        book: the device's book.
        interval: the interval that closes.
        rating_w: rated power of the device, for the quality of what it claims.
        window: how many closed intervals may still be corrected.
    """
    keep = [entry for entry in book.booked if entry.interval >= interval - window]
    if keep and keep[-1].interval != interval - 1:
        keep = []  # the device was away: what it had is final
    dropped = book.booked[: len(book.booked) - len(keep)]
    final = sum((entry.energy for entry in dropped), book.final)
    entries = _entries(book, keep, final, interval, rating_w, window)
    reports = tuple(e for e in entries if e.interval == interval or e not in keep)
    leaving = [entry for entry in entries if entry.interval <= interval - window]
    staying = tuple(entries[len(leaving) :])
    start = staying[0].interval if staying else interval + 1
    closed = replace(
        book,
        final=sum((entry.energy for entry in leaving), final),
        booked=staying,
        unbooked=ZERO,
    )
    return Closing(_forget(closed, start), reports, (*dropped, *leaving))


def _entries(
    book: Book, keep: Sequence[Booked], final: Energy, interval: int, rating_w: int, window: int
) -> list[Booked]:
    """The window's entries and the closing interval's, by the curve as it is known now."""
    start = keep[0].interval if keep else interval
    late = {entry.interval: entry.late for entry in keep}
    if book.first is None:
        return [
            Booked(i, ZERO, ZERO, Quality.SUBSTITUTED, measured=False)
            for i in range(start, interval + 1)
        ]
    floor = sum(late.values(), final)
    last = book.points[-1].boundary
    estimates = last >= start and last > interval - window
    curve = book.estimating_curve(rating_w) if estimates else book.curve
    at = [curve.at(boundary).at_least(floor) for boundary in range(start, interval + 2)]
    late[interval] = at[0] - floor
    return [
        _entry(curve, i, at[i - start + 1] - at[i - start], late[i], rating_w)
        for i in range(start, interval + 1)
    ]


def _entry(curve: Curve, interval: int, flow: Energy, late: Energy, rating_w: int) -> Booked:
    measured = curve.known(interval + 1) is not None
    quality = _quality(curve, interval, flow, rating_w)
    if late != ZERO:
        quality = max(quality, Quality.UNCERTAIN)
    return Booked(interval, flow + late, late, quality, measured)


def _quality(curve: Curve, interval: int, flow: Energy, rating_w: int) -> Quality:
    if not (curve.spans(interval) and curve.spans(interval + 1)):
        return Quality.SUBSTITUTED
    if 100 * max(flow.import_wh, flow.export_wh) > OVERLOAD_PERCENT * rated_wh(rating_w, 1) + 100:
        return Quality.BAD
    ends = curve.known(interval), curve.known(interval + 1)
    if any(end is None or end.uncertain for end in ends):
        return Quality.UNCERTAIN
    return Quality.GOOD


def _forget(book: Book, start: int) -> Book:
    """Drop the boundaries before the last one at or before the window's start."""
    drop = max(0, sum(point.boundary <= start for point in book.points) - 1)
    if drop == 0:
        return book
    total = book.total
    for index in range(drop):
        total += energy_between(book.points[index], book.points[index + 1])
    rate_wh = _rate_wh(book.points[drop - 1], book.points[drop])
    return replace(book, points=book.points[drop:], total=total, rate_wh=rate_wh)


def check_book(book: Book) -> str | None:
    """What is wrong with a book, if anything: its reports must add up to its registers."""
    if not book.booked or not book.booked[-1].measured:
        return None
    floor = sum((entry.late for entry in book.booked), book.final)
    shown = book.curve.at(book.booked[-1].interval + 1) - book.unbooked
    if book.reported != shown.at_least(floor):
        return f"reported {book.reported}, registers say {shown}, final and late are {floor}"
    return None
