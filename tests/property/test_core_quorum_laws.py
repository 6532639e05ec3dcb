"""Quorums: safe (any two share an honest member), live (the honest alone suffice), and smallest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.quorum import max_faulty, quorum, supermajority


@pytest.mark.parametrize("members", range(1, 201))
def test_two_quorums_share_an_honest_member_and_the_honest_suffice(members: int) -> None:
    faulty, enough = max_faulty(members), quorum(members)
    assert 3 * faulty < members <= 3 * (faulty + 1)
    assert 2 * enough - members > faulty
    assert enough <= members - faulty
    assert 2 * (enough - 1) - members <= faulty, "one fewer would do"


@pytest.mark.parametrize(
    ("members", "faulty", "enough"),
    [
        (1, 0, 1),
        (4, 1, 3),
        (5, 1, 4),
        (6, 1, 4),
        (20, 6, 14),
        (21, 6, 14),
        (22, 7, 15),
        (100, 33, 67),
    ],
)
def test_known_sizes(members: int, faulty: int, enough: int) -> None:
    assert (max_faulty(members), quorum(members)) == (faulty, enough)


def test_thirteen_of_twenty_one_would_be_unsafe() -> None:
    """The specified 21 replicas with a literal 2f+1: two quorums can share faulty members only."""
    faulty = max_faulty(21)
    assert 2 * (2 * faulty + 1) - 21 <= faulty


@given(st.integers(1, 10**30))
def test_supermajority_is_the_least_weight_safe_against_a_third(weight: int) -> None:
    threshold, faulty = supermajority(weight), (weight - 1) // 3
    assert threshold <= weight - faulty
    assert 2 * threshold - weight > faulty
    assert 3 * threshold > 2 * weight


@pytest.mark.parametrize("function", [max_faulty, quorum, supermajority])
def test_nothing_is_no_set(function) -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        function(0)
