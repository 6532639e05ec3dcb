"""Sequential Phragmén: which candidates win seats, and how each voter's stake backs them.

Law of the file: **represent voters in proportion to stake, in integers, the same everywhere**.
Voters approve candidates and bring a budget. Each winner costs one unit of *load*, which the voters
behind it share so that the greatest load stays small (Brill, Freeman, Janson, Lackner: "Phragmén's
voting methods and justified representation", 2017; Substrate's `npos-elections` in its rounding).

A candidate's score is the load that its voters would carry if it won next::

    score(c) = (1 + sum of load(v) * budget(v) over its voters) / (sum of budget(v))

The least score wins, in a tie the candidate listed first; then every voter behind the winner
carries exactly that load. Scores and loads are numerators over ``SCALE``, and each division rounds
down. In the end a voter's budget is split among its winners in proportion to the load that each
added, and `normalize` gives out what the divisions left over.

Identities are any hashable values; the outcome depends on the order of candidates and voters, which
callers therefore fix.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Id = TypeVar("Id", bound=Hashable)

SCALE: Final = 2**128 - 1
"""The denominator of scores and loads; also where they saturate."""
_UNBACKED: Final = SCALE + 1
"""The score of a candidate with no stake behind it: worse than any other."""
RATIO: Final = 10**9
"""Parts into which assignment ratios divide a budget (per billion)."""


@dataclass(frozen=True, slots=True)
class Vote(Generic[Id]):
    """What a voter brings to an election."""

    voter: Id
    budget: int
    """Stake behind the vote, in the smallest unit; not negative."""
    targets: tuple[Id, ...]
    """Approved candidates; repetitions and names that do not stand are ignored."""


@dataclass(frozen=True, slots=True)
class Assignment(Generic[Id]):
    """How a voter's whole budget backs winners."""

    voter: Id
    budget: int
    shares: tuple[tuple[Id, int], ...]
    """(winner, stake), in the order of the voter's targets; they add up to the budget."""


@dataclass(frozen=True, slots=True)
class Election(Generic[Id]):
    """An election's outcome."""

    winners: tuple[Id, ...]
    """In the order of their election. A candidate whom nobody backs can win a spare seat."""
    assignments: tuple[Assignment[Id], ...]
    """Of the voters who back a winner, in their given order; a budget that has fewer units than
    winners to back may round down to nothing, and is left out."""

    def supports(self) -> dict[Id, int]:
        """The stake behind each winner, in the order of winners."""
        backing = dict.fromkeys(self.winners, 0)
        for assignment in self.assignments:
            for winner, stake in assignment.shares:
                backing[winner] += stake
        return backing


@dataclass(slots=True, eq=False)
class _Candidate(Generic[Id]):
    id: Id
    approval: int = 0
    score: int = 0
    elected: bool = False
    behind: "list[tuple[_Voter[Id], _Edge[Id]]]" = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Edge(Generic[Id]):
    candidate: _Candidate[Id]
    load: int = 0


@dataclass(slots=True, eq=False)
class _Voter(Generic[Id]):
    id: Id
    budget: int
    edges: list[_Edge[Id]] = field(default_factory=list)
    load: int = 0


def elect(seats: int, candidates: Sequence[Id], votes: Sequence[Vote[Id]]) -> Election[Id]:
    """Fill at most `seats` seats.

    Raises:
        ValueError: a candidate stands twice, a budget is negative, or seats are.
    """
    standing, voters = _enrol(seats, candidates, votes)
    winners: list[Id] = []
    _first_scores(standing)
    for _ in range(min(seats, len(standing))):
        winner = min((c for c in standing if not c.elected), key=_saturated)
        winner.score, winner.elected = _saturated(winner), True
        winners.append(winner.id)
        _carry(winner)
    assignments = (_assignment(voter) for voter in voters)
    return Election(tuple(winners), tuple(each for each in assignments if each.shares))


def ratios(assignment: Assignment[Id]) -> tuple[tuple[Id, int], ...]:
    """The shares in parts per billion of the budget, adding up to a billion exactly.

    Each is rounded down, those that vanish are left out, and the rest is normalised.
    """
    parts = [(winner, stake * RATIO // assignment.budget) for winner, stake in assignment.shares]
    kept = [(winner, part) for winner, part in parts if part]
    exact = normalize([part for _, part in kept], RATIO)
    return tuple((winner, part) for (winner, _), part in zip(kept, exact, strict=True))


def normalize(values: Sequence[int], target: int) -> list[int]:
    """`values`, changed as little and as evenly as possible so that they add up to `target`.

    What is missing goes to the smallest first, what is too much comes from the greatest first;
    each passes the turn on once it reaches the even share, or the least value, respectively
    (Substrate's `sp_arithmetic::normalize`). The order of the values is kept.
    """
    if not values:
        return []
    order = sorted(range(len(values)), key=values.__getitem__)
    lined_up = [values[place] for place in order]
    if target < 0 or lined_up[0] < 0:
        raise ValueError(f"normalising to {target} from a least value of {lined_up[0]}")
    difference = target - sum(values)
    if difference > 0:
        _add(lined_up, difference, threshold=target // len(values))
    elif difference < 0:
        _take(lined_up, -difference, threshold=lined_up[0])
    result = list(values)
    for place, value in zip(order, lined_up, strict=True):
        result[place] = value
    return result


def _add(ascending: list[int], amount: int, threshold: int) -> None:
    count, at = len(ascending), 0
    each, left = divmod(amount, count)
    for step in [each] * count + [1] * left if each else [1] * left:
        ascending[at] += step
        if ascending[at] >= threshold:
            at = (at + 1) % count


def _take(ascending: list[int], amount: int, threshold: int) -> None:
    """Nothing falls below zero: what one value cannot give is left for the next."""
    count, at = len(ascending), len(ascending) - 1
    each, left = divmod(amount, count)
    for _ in range(count if each else 0):
        given = min(each, ascending[at])
        left += each - given
        ascending[at] -= given
        if ascending[at] <= threshold:
            at = (at - 1) % count
    while left:
        left -= _take_evenly(ascending, left, threshold)
        given = min(left, max(1, ascending[at] - threshold), ascending[at])
        ascending[at] -= given
        left -= given
        if ascending[at] <= threshold:
            at = (at - 1) % count


def _take_evenly(ascending: list[int], amount: int, threshold: int) -> int:
    """As many whole rounds of one from each as there are, once all take turns; what that took."""
    if max(ascending) > threshold:
        return 0
    givers = [place for place, value in enumerate(ascending) if value]
    each = min(amount // len(givers), *(ascending[place] for place in givers))
    for place in givers:
        ascending[place] -= each
    return each * len(givers)


def _enrol(
    seats: int, candidates: Sequence[Id], votes: Sequence[Vote[Id]]
) -> tuple[list[_Candidate[Id]], list[_Voter[Id]]]:
    """Candidates with their approval, and the voters who approve of at least one of them."""
    if seats < 0:
        raise ValueError(f"{seats} seats")
    by_id = {candidate: _Candidate(candidate) for candidate in candidates}
    if len(by_id) < len(candidates):
        raise ValueError("a candidate stands twice")
    voters: list[_Voter[Id]] = []
    for vote in votes:
        if vote.budget < 0:
            raise ValueError(f"the budget of {vote.voter!r} is {vote.budget}")
        approved = [by_id[target] for target in dict.fromkeys(vote.targets) if target in by_id]
        for candidate in approved:
            candidate.approval += vote.budget
        if approved:
            voters.append(_voter(vote, approved))
    return list(by_id.values()), voters


def _voter(vote: Vote[Id], approved: Sequence[_Candidate[Id]]) -> _Voter[Id]:
    voter = _Voter(vote.voter, vote.budget, [_Edge(candidate) for candidate in approved])
    for edge in voter.edges:
        edge.candidate.behind.append((voter, edge))
    return voter


def _saturated(candidate: _Candidate[Id]) -> int:
    """The score that counts: sums stop at `SCALE`."""
    return min(SCALE, candidate.score) if candidate.approval else _UNBACKED


def _first_scores(candidates: Sequence[_Candidate[Id]]) -> None:
    """Nobody carries anything yet."""
    for candidate in candidates:
        candidate.score = SCALE // candidate.approval if candidate.approval else _UNBACKED


def _carry(winner: _Candidate[Id]) -> None:
    """Each voter behind the winner now carries the winner's score; the edge, what that added.

    The scores of the voter's other candidates change by just its own terms, so a round costs what
    the winner's voters have edges, not what all have.
    """
    for voter, edge in winner.behind:
        before, voter.load = voter.load, winner.score
        edge.load = max(0, voter.load - before)
        old, new = before * voter.budget, voter.load * voter.budget
        for other in voter.edges:
            candidate = other.candidate
            if candidate.approval and not candidate.elected:
                candidate.score += new // candidate.approval - old // candidate.approval


def _assignment(voter: _Voter[Id]) -> Assignment[Id]:
    shares: list[tuple[Id, int]] = []
    for edge in voter.edges:
        stake = voter.budget * edge.load // voter.load if edge.load else 0
        if stake:
            shares.append((edge.candidate.id, stake))
    exact = normalize([stake for _, stake in shares], voter.budget)
    return Assignment(
        voter.id,
        voter.budget,
        tuple((winner, stake) for (winner, _), stake in zip(shares, exact, strict=True)),
    )
