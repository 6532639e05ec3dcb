"""The law of a feed round: the median of 2f + 1 observations lies in the honest range."""

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.quorum import max_faulty
from gridtokenx.oracle.chain.rounds import median, moved_ppm

values = st.integers(-(2**53), 2**53)


@given(st.data(), st.integers(1, 31))
def test_the_median_lies_in_the_honest_range(data: st.DataObject, oracles: int) -> None:
    """Whatever up to f oracles say, and whoever else is silent, honest values bound the median."""
    faulty = max_faulty(oracles)
    reporting = data.draw(st.integers(2 * faulty + 1, oracles))
    liars = data.draw(st.integers(0, min(faulty, reporting)))
    honest = data.draw(st.lists(values, min_size=reporting - liars, max_size=reporting - liars))
    lies = data.draw(st.lists(values, min_size=liars, max_size=liars))
    assert min(honest) <= median(honest + lies) <= max(honest)


@given(st.lists(values, min_size=1).flatmap(lambda v: st.tuples(st.just(v), st.permutations(v))))
def test_the_median_does_not_depend_on_order(pair: tuple[list[int], list[int]]) -> None:
    assert median(pair[0]) == median(pair[1])


@given(values)
def test_no_move_is_zero_and_any_move_from_zero_counts(value: int) -> None:
    assert moved_ppm(value, value) == 0
    assert value == 0 or moved_ppm(0, value) > 10**6
