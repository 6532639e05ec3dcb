"""Sequential Phragmén: conservation, proportionality, and the same election in exact fractions."""

from fractions import Fraction
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.public.election.phragmen import RATIO, Vote, elect, normalize, ratios

CANDIDATES = list("abcdefgh")


def votes_with(budgets: st.SearchStrategy[int], most: int) -> st.SearchStrategy[list[Vote[str]]]:
    targets = st.lists(st.sampled_from([*CANDIDATES, "stranger"]), max_size=9).map(tuple)
    one = st.tuples(budgets, targets)
    return st.lists(one, max_size=most).map(
        lambda all_: [Vote(str(who), *vote) for who, vote in enumerate(all_)]
    )


ANY = votes_with(st.integers(0, 2**63 - 1), 20)
SMALL = votes_with(st.integers(1, 12), 6)


@given(st.integers(0, 10), ANY)
def test_budgets_are_conserved_and_seats_filled(seats: int, votes: list[Vote[str]]) -> None:
    election = elect(seats, CANDIDATES, votes)
    assert len(set(election.winners)) == len(election.winners) == min(seats, len(CANDIDATES))
    behind = {each.voter: each for each in election.assignments}
    for vote in votes:
        backed = set(vote.targets) & set(election.winners)
        if backed and vote.budget >= len(backed):
            assert vote.voter in behind
        if vote.voter in behind:
            shares = behind[vote.voter].shares
            assert sum(stake for _, stake in shares) == vote.budget
            assert all(stake > 0 for _, stake in shares)
            assert {winner for winner, _ in shares} <= backed
            assert sum(part for _, part in ratios(behind[vote.voter])) == RATIO
    total = sum(election.supports().values())
    assert total == sum(each.budget for each in election.assignments)


@given(st.integers(1, 8), ANY)
def test_each_winner_has_the_least_load_in_exact_fractions(
    seats: int, votes: list[Vote[str]]
) -> None:
    """Replay the election with exact numbers: no rounding may have chosen a worse candidate."""
    election = elect(seats, CANDIDATES, votes)
    loads = {vote.voter: Fraction(0) for vote in votes}
    added: dict[tuple[str, str], Fraction] = {}
    elected: list[str] = []
    for winner in election.winners:
        scores = {c: _score(c, votes, loads) for c in CANDIDATES if c not in elected}
        least = min((score for score in scores.values() if score is not None), default=None)
        elected.append(winner)
        if least is None:
            assert scores[winner] is None
            continue
        score = scores[winner]
        assert score is not None
        assert score - least < Fraction(1, 2**100)
        for vote in votes:
            if winner in vote.targets:
                added[vote.voter, winner] = score - loads[vote.voter]
                loads[vote.voter] = score
    for each in election.assignments:
        for winner, stake in each.shares:
            exact = each.budget * added[each.voter, winner] / loads[each.voter]
            assert abs(stake - exact) <= len(election.winners) + 1


def _score(candidate: str, votes: list[Vote[str]], loads: dict[str, Fraction]) -> Fraction | None:
    behind = [vote for vote in votes if candidate in vote.targets]
    approval = sum(vote.budget for vote in behind)
    if not approval:
        return None
    return (1 + sum(loads[vote.voter] * vote.budget for vote in behind)) / approval


@settings(max_examples=examples(150))
@given(st.integers(1, 5), SMALL)
def test_proportional_justified_representation(seats: int, votes: list[Vote[str]]) -> None:
    """PJR: a group with l/seats of all stake that agrees on l candidates approves of l winners."""
    winners = set(elect(seats, CANDIDATES, votes).winners)
    known = [(set(vote.targets) & set(CANDIDATES), vote.budget) for vote in votes]
    total = sum(budget for _, budget in known)
    groups = chain.from_iterable(combinations(known, size) for size in range(1, len(known) + 1))
    for group in groups:
        stake = sum(budget for _, budget in group)
        agreed = len(set.intersection(*(approved for approved, _ in group)))
        deserved = min(agreed, stake * seats // total, seats)
        assert len(winners & set.union(*(approved for approved, _ in group))) >= deserved


@given(st.integers(1, 5), SMALL, st.integers(2, 1000))
def test_only_proportions_of_stake_matter(seats: int, votes: list[Vote[str]], factor: int) -> None:
    scaled = [Vote(vote.voter, vote.budget * factor, vote.targets) for vote in votes]
    small, large = elect(seats, CANDIDATES, votes), elect(seats, CANDIDATES, scaled)
    if _decided_without_ties(seats, votes):
        assert small.winners == large.winners


def _decided_without_ties(seats: int, votes: list[Vote[str]]) -> bool:
    loads = {vote.voter: Fraction(0) for vote in votes}
    left = list(CANDIDATES)
    for _ in range(seats):
        scores = {c: score for c in left if (score := _score(c, votes, loads)) is not None}
        if not scores:
            return True
        least = min(scores.values())
        first, *others = [c for c, score in scores.items() if score == least]
        if others:
            return False
        left.remove(first)
        for vote in votes:
            if first in vote.targets:
                loads[vote.voter] = least
    return True


@given(st.lists(st.integers(0, 10**9), max_size=12), st.integers(0, 10**10))
def test_normalize_reaches_its_target_and_keeps_the_order(values: list[int], target: int) -> None:
    result = normalize(values, target)
    assert len(result) == len(values)
    if values:
        assert sum(result) == target
        assert min(result) >= 0
    if sum(values) == target:
        assert result == values


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), st.integers(0, 11))
def test_normalize_after_rounding_down_moves_nobody_by_more_than_the_rest(
    values: list[int], missing: int
) -> None:
    result = normalize(values, sum(values) + missing)
    assert all(0 <= new - old <= missing for new, old in zip(result, values, strict=True))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 400))
def test_normalize_is_what_single_steps_would_do(values: list[int], target: int) -> None:
    if target <= sum(values):
        assert normalize(values, target) == _one_by_one(values, target)


def _one_by_one(values: list[int], target: int) -> list[int]:
    """Substrate's loop when there is too much: one unit at a time after the even shares."""
    count = len(values)
    order = sorted(range(count), key=values.__getitem__)
    lined_up = [values[place] for place in order]
    threshold, at = lined_up[0], count - 1
    each, left = divmod(sum(values) - target, count)
    for _ in range(count if each else 0):
        left += max(0, each - lined_up[at])
        lined_up[at] = max(0, lined_up[at] - each)
        if lined_up[at] <= threshold:
            at = (at - 1) % count
    while left:
        if lined_up[at]:
            lined_up[at] -= 1
            left -= 1
        if lined_up[at] <= threshold:
            at = (at - 1) % count
    return [lined_up[order.index(place)] for place in range(count)]


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        elect(1, ["a", "a"], [])
    with pytest.raises(ValueError, match="-1 seats"):
        elect(-1, ["a"], [])
    with pytest.raises(ValueError, match="the budget of 'v' is -1"):
        elect(1, ["a"], [Vote("v", -1, ("a",))])
    with pytest.raises(ValueError, match="normalising"):
        normalize([1], -1)
    with pytest.raises(ValueError, match="normalising"):
        normalize([-1, 5], 1)
