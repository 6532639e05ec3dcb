"""Sequential Phragmén: the cases of Substrate's `npos-elections` and of W3F's paper example."""

import pytest

from gridtokenx.public.election.phragmen import Election, Vote, elect, normalize, ratios

POC = [(10, 10, [1, 2]), (20, 20, [1, 3]), (30, 30, [2, 3])]
POC_2 = [10, 20, 30]


def run(
    seats: int, candidates: list[int], votes: list[tuple[int, int, list[int]]]
) -> Election[int]:
    return elect(seats, candidates, [Vote(who, stake, tuple(to)) for who, stake, to in votes])


def supports(election: Election[int]) -> list[tuple[int, int]]:
    return list(election.supports().items())


def shares(election: Election[int]) -> dict[int, dict[int, int]]:
    return {each.voter: dict(each.shares) for each in election.assignments}


def test_poc_works() -> None:
    election = run(2, [1, 2, 3], POC)
    assert supports(election) == [(3, 35), (2, 25)]
    assert shares(election) == {10: {2: 10}, 20: {3: 20}, 30: {2: 15, 3: 15}}
    assert [dict(ratios(each)) for each in election.assignments] == [
        {2: 10**9},
        {3: 10**9},
        {2: 5 * 10**8, 3: 5 * 10**8},
    ]


def test_poc_2() -> None:
    election = run(2, POC_2, [(2, 500, [10, 20, 30]), (4, 500, [10, 20, 40])])
    assert supports(election) == [(10, 500), (20, 500)]
    assert shares(election) == {2: {10: 250, 20: 250}, 4: {10: 250, 20: 250}}


def test_poc_3() -> None:
    election = run(2, POC_2, [(2, 50, [10, 20, 30]), (4, 1000, [10, 20, 40])])
    assert supports(election) == [(10, 525), (20, 525)]
    assert shares(election) == {2: {10: 25, 20: 25}, 4: {10: 500, 20: 500}}


def test_w3f_example_2() -> None:
    """Real numbers give 1666.67 and 1333.33; whole ones add up to the same 3000."""
    own = [(each, 1000, [each]) for each in (10, 20, 30, 40)]
    election = run(2, [10, 20, 30, 40], [*own, (2, 500, [10, 20, 30]), (4, 500, [10, 20, 40])])
    backing = election.supports()
    assert election.winners == (10, 20)
    assert abs(backing[10] - 5000 / 3) <= 2
    assert sum(backing.values()) == 3000
    for voter in (2, 4):
        assert abs(shares(election)[voter][10] - 1000 / 3) <= 1


def test_accuracy_on_large_scale_only_candidates() -> None:
    top = 2**64 - 1
    stakes = {1: top - 1, 2: top - 4, 3: top - 5, 4: top - 3, 5: top - 2}
    election = run(2, [1, 2, 3, 4, 5], [(who, stake, [who]) for who, stake in stakes.items()])
    assert supports(election) == [(1, 18446744073709551614), (5, 18446744073709551613)]


@pytest.mark.parametrize(
    "votes",
    [
        [(40, 0, [40]), (10, 1, [10]), (20, 2, [20]), (30, 1, [30])],
        [(1, 1, [10]), (2, 2, [20]), (3, 1, [30]), (4, 0, [40])],
    ],
    ids=["self_vote", "no_self_vote"],
)
def test_accuracy_on_small_scale(votes: list[tuple[int, int, list[int]]]) -> None:
    assert supports(run(3, [40, 10, 20, 30], votes)) == [(20, 2), (10, 1), (30, 1)]


def test_large_scale() -> None:
    own = {
        2: 1,
        4: 100,
        6: 1_000_000,
        8: 100_000_000_001_000,
        10: 100_000_000_002_000,
        12: 100_000_000_003_000,
        14: 400_000_000_000_000,
        16: 400_000_000_001_000,
        18: 18_000_000_000_000_000,
        20: 20_000_000_000_000_000,
        22: 500_000_000_000_100_000,
        24: 500_000_000_000_200_000,
    }
    nominator = (50, 990_000_000_000_000_000, list(own))
    election = run(2, list(own), [*((who, stake, [who]) for who, stake in own.items()), nominator])
    assert supports(election) == [(24, 1094798387096966145), (22, 895201612903333855)]


def test_linear() -> None:
    votes = [
        (2, 2000, [11]),
        (4, 1000, [11, 21]),
        (6, 1000, [21, 31]),
        (8, 1000, [31, 41]),
        (110, 1000, [41, 51]),
        (120, 1000, [51, 61]),
        (130, 1000, [61, 71]),
    ]
    election = run(2, [11, 21, 31, 41, 51, 61, 71], votes)
    assert supports(election) == [(11, 3000), (31, 2000)]


def test_self_votes_are_kept() -> None:
    votes = [(5, 5, [5]), (10, 10, [10]), (20, 20, [20]), (1, 8, [10, 20])]
    election = run(2, [5, 10, 20, 30], votes)
    assert supports(election) == [(20, 24), (10, 14)]
    assert shares(election) == {10: {10: 10}, 20: {20: 20}, 1: {10: 4, 20: 4}}
    voter = next(each for each in election.assignments if each.voter == 1)
    assert dict(ratios(voter)) == {10: 500_000_000, 20: 500_000_000}


def test_duplicate_targets_are_ignored_when_the_target_wins() -> None:
    election = run(2, [1, 2, 3], [(10, 100, [1, 1, 2, 3]), (20, 100, [1, 2])])
    assert supports(election) == [(1, 100), (2, 100)]
    assert shares(election) == {10: {1: 50, 2: 50}, 20: {1: 50, 2: 50}}


def test_duplicate_targets_are_ignored_when_another_wins() -> None:
    election = run(2, [1, 2, 3], [(10, 100, [1, 1, 2, 3]), (20, 100, [3, 2])])
    assert sum(election.supports().values()) == 200
    assert election.winners == run(2, [1, 2, 3], [(10, 100, [1, 2, 3]), (20, 100, [3, 2])]).winners


def test_winners_are_sorted_by_round() -> None:
    votes = [(10, 10, [1, 2]), (20, 20, [2, 3]), (30, 30, [3, 4]), (40, 40, [4, 5])]
    assert supports(run(3, [1, 2, 3, 4, 5], votes)) == [(4, 30), (3, 35), (5, 25)]


def test_voters_without_edges_are_dropped() -> None:
    election = run(2, [10, 20], [(2, 500, [30]), (3, 500, [])])
    assert election.assignments == ()
    assert supports(election) == [(10, 0), (20, 0)]


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([30, 33, 30], 100, [34, 33, 33]),
        ([33, 30], 100, [34, 66]),
        ([330_000_000, 660_000_000], 10**9, [340_000_000, 660_000_000]),
        ([8, 9, 7, 10], 40, [10, 10, 10, 10]),
        ([10, 9, 7, 10], 40, [10, 10, 10, 10]),
        ([10, 10, 7, 10], 40, [10, 10, 10, 10]),
        ([14, 8, 7, 10], 40, [14, 8, 8, 10]),
        ([11, 10, 10, 10], 40, [10, 10, 10, 10]),
        ([12, 11, 11, 10], 40, [10, 10, 10, 10]),
        ([], 40, []),
    ],
)
def test_normalize(values: list[int], target: int, expected: list[int]) -> None:
    """The reference's cases; the fifth to eighth follow the rule by hand."""
    assert normalize(values, target) == expected
