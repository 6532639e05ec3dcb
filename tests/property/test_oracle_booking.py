"""Laws of a device's book: whatever is lost, late, doubled or reordered, sums equal the registers."""

from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.interchain.apps.meter_report import Quality
from gridtokenx.oracle.chain.booking import (
    CORRECTION_WINDOW,
    EMPTY,
    Book,
    Booked,
    check_book,
    close,
    take,
)
from gridtokenx.oracle.chain.registers import ZERO, Energy, Point

RATING_W = 10_000
START = 1_000

steps_wh = st.lists(
    st.tuples(st.integers(0, RATING_W // 2), st.integers(0, RATING_W // 2)), min_size=1, max_size=24
)
delays = st.one_of(st.none(), st.integers(0, 3), st.integers(0, 12))


@dataclass
class Household:
    """True registers at START, START+1, ... and when each reading arrives (None: never)."""

    points: list[Point]
    arrivals: dict[int, list[Point]]


@st.composite
def households(draw: st.DrawFn) -> Household:
    imported, exported = draw(st.integers(0, 10**9)), draw(st.integers(0, 10**9))
    points = [Point(START, imported, exported, 0)]
    for import_wh, export_wh in draw(steps_wh):
        imported, exported = imported + import_wh, exported + export_wh
        points.append(Point(START + len(points), imported, exported, 0))
    arrivals: dict[int, list[Point]] = {}
    for point in points:
        for delay in draw(st.lists(delays, min_size=1, max_size=2)):
            if delay is not None:
                # Boundary b can be known before interval b-1 closes.
                arrivals.setdefault(max(START, point.boundary - 1 + delay), []).append(point)
    return Household(points, arrivals)


def run(household: Household, order: Random) -> tuple[Book, dict[int, Booked], list[Booked]]:
    """Close every interval and twelve more; the newest entry per interval, and all final ones."""
    book, newest, final = EMPTY, {}, []
    for interval in range(START, START + len(household.points) + 12):
        arriving = list(household.arrivals.get(interval, ()))
        order.shuffle(arriving)
        for point in arriving:
            book = take(book, point, RATING_W)
            assert check_book(book) is None
        closing = close(book, interval, RATING_W)
        book = closing.book
        for entry in closing.reports:
            newest[entry.interval] = entry
        final += closing.final
        assert_adds_up(household, book, newest, interval)
    return book, newest, final


def assert_adds_up(
    household: Household, book: Book, newest: dict[int, Booked], interval: int
) -> None:
    assert check_book(book) is None
    total = sum((entry.energy for entry in newest.values()), ZERO)
    assert total == book.reported
    known = {p.boundary for at, ps in household.arrivals.items() if at <= interval for p in ps}
    if interval + 1 not in known:
        return
    first, last = min(known), interval + 1
    start, end = household.points[first - START], household.points[last - START]
    assert total == Energy(end.import_wh - start.import_wh, end.export_wh - start.export_wh)


@given(households(), st.integers())
@settings(max_examples=examples(400))
def test_reports_add_up_to_the_registers(household: Household, seed: int) -> None:
    """After every closing whose end was read, all reports together are the register's movement."""
    run(household, Random(seed))


@given(households(), st.integers(), st.integers())
@settings(max_examples=examples(200))
def test_order_between_two_closings_changes_nothing(
    household: Household, one: int, other: int
) -> None:
    assert run(household, Random(one)) == run(household, Random(other))


@given(households())
@settings(max_examples=examples(200))
def test_final_entries_are_never_negative_nor_reported_again(household: Household) -> None:
    """Each interval becomes final once, in order, with the energy that was last reported for it."""
    book, newest, final = run(household, Random(0))
    intervals = [entry.interval for entry in final]
    assert intervals == list(range(START, START + len(intervals)))
    assert all(newest[entry.interval] == entry for entry in final)
    assert all(min(e.energy.import_wh, e.energy.export_wh) >= 0 for e in newest.values())
    assert len(book.booked) <= CORRECTION_WINDOW


@given(households())
@settings(max_examples=examples(200))
def test_export_is_never_a_guess(household: Household) -> None:
    """Whatever is final was measured: final sums never exceed what the registers showed."""
    book, _newest, final = run(household, Random(0))
    if book.first is None:
        assert all(entry.energy == ZERO for entry in final)
        return
    shown = book.curve.last_total
    total = sum((entry.energy for entry in final), ZERO)
    assert total.import_wh <= shown.import_wh
    assert total.export_wh <= shown.export_wh


@given(households(), st.integers(2, 12))
def test_a_chain_that_lags_behind_its_meters_catches_up(household: Household, ahead: int) -> None:
    """Registers of intervals that have yet to close wait; in the end the sums are the registers."""
    early: dict[int, list[Point]] = {}
    for interval, points in household.arrivals.items():
        early.setdefault(max(START, interval - ahead), []).extend(points)
    household.arrivals = early
    book, _newest, _final = run_unchecked(household)
    if book.first is not None:
        assert book.reported == book.curve.last_total


def run_unchecked(household: Household) -> tuple[Book, dict[int, Booked], list[Booked]]:
    book, newest, final = EMPTY, {}, []
    for interval in range(START, START + len(household.points) + 24):
        for point in household.arrivals.get(interval, ()):
            book = take(book, point, RATING_W)
        closing = close(book, interval, RATING_W)
        book = closing.book
        newest |= {entry.interval: entry for entry in closing.reports}
        final += closing.final
        assert check_book(book) is None
        assert sum((entry.energy for entry in newest.values()), ZERO) == book.reported
    return book, newest, final


@given(steps_wh)
def test_on_time_readings_are_good_and_exact(steps: list[tuple[int, int]]) -> None:
    """With nothing lost every interval is good at once and never corrected."""
    book = take(EMPTY, Point(START, 0, 0, 0), RATING_W)
    imported = exported = 0
    for offset, (import_wh, export_wh) in enumerate(steps):
        imported, exported = imported + import_wh, exported + export_wh
        book = take(book, Point(START + offset + 1, imported, exported, 0), RATING_W)
        closing = close(book, START + offset, RATING_W)
        book = closing.book
        (entry,) = closing.reports
        assert (entry.energy, entry.quality) == (Energy(import_wh, export_wh), Quality.GOOD)
