"""The slot lottery's threshold 1-(1-c)^(w/W): against `decimal` with a hundred digits."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.vrf import LOTTERY_RANGE, lottery_draw, prove, slot_threshold


def exactly(numerator: int, denominator: int, weight: int, total: int) -> Decimal:
    with localcontext(prec=120):
        losing = Decimal(denominator - numerator) / denominator
        return (1 - losing ** (Decimal(weight) / total)) * LOTTERY_RANGE


CHANCES = st.integers(1, 10**6).flatmap(lambda d: st.tuples(st.integers(0, d - 1), st.just(d)))
SHARES = st.integers(1, 2**63 - 1).flatmap(lambda w: st.tuples(st.integers(0, w), st.just(w)))


@given(CHANCES, SHARES)
def test_within_one_of_the_exact_value(chance: tuple[int, int], share: tuple[int, int]) -> None:
    (n, d), (weight, total) = chance, share
    threshold = slot_threshold(n, d, weight, total)
    assert 0 <= threshold <= LOTTERY_RANGE
    assert abs(threshold - exactly(n, d, weight, total)) < 1


@given(st.integers(1, 99), st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 10**6))
def test_splitting_a_stake_changes_nothing(percent: int, a: int, b: int, rest: int) -> None:
    """The chance that neither part wins is the chance that the whole does not."""
    total = a + b + rest
    lose = [
        1 - Fraction(slot_threshold(percent, 100, w, total), LOTTERY_RANGE) for w in (a, b, a + b)
    ]
    assert abs(lose[0] * lose[1] - lose[2]) < Fraction(4, LOTTERY_RANGE)


@given(st.integers(1, 99), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_more_weight_never_has_less_chance(percent: int, a: int, more: int, rest: int) -> None:
    total = a + more + rest
    assert slot_threshold(percent, 100, a, total) <= slot_threshold(percent, 100, a + more, total)


@pytest.mark.parametrize(
    ("arguments", "threshold"),
    [
        ((1, 4, 0, 4), 0),
        ((0, 4, 4, 4), 0),
        ((4, 4, 1, 4), LOTTERY_RANGE),
        ((4, 4, 0, 4), 0),
        ((1, 4, 4, 4), LOTTERY_RANGE // 4),
        ((3, 4, 1, 2), LOTTERY_RANGE // 2),
        ((7, 8, 1, 3), LOTTERY_RANGE // 2),
        ((2**900 - 1, 2**900, 1, 900), LOTTERY_RANGE // 2),
    ],
)
def test_exact_cases(arguments: tuple[int, int, int, int], threshold: int) -> None:
    assert slot_threshold(*arguments) == threshold


@pytest.mark.parametrize(
    "arguments",
    [(5, 4, 1, 4), (-1, 4, 1, 4), (0, 0, 1, 4), (1, 4, 5, 4), (1, 4, -1, 4), (1, 4, 0, 0)],
)
def test_what_is_no_chance_is_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="fractions within"):
        slot_threshold(*arguments)


def test_a_quarter_of_the_draws_fall_below_a_quarter() -> None:
    """400 draws of one key: 100 expected, with a standard deviation of 8.7."""
    threshold = slot_threshold(1, 4, 1, 1)
    wins = sum(lottery_draw(prove(bytes(32), b"%d" % slot)[1]) < threshold for slot in range(400))
    assert 65 <= wins <= 135
