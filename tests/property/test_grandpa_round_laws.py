"""The round against a slow, obvious reading of the paper, over random forks and votes.

The reference below looks at every block and every possible future; it shares no code with the
round. Weights are 1, as on the chain, so the possible futures can be counted exactly.
"""

import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.finality.justifications import Stage
from gridtokenx.public.grandpa.round import CastVote, Round, RoundState
from gridtokenx.public.grandpa.vote_graph import BlockRef


@dataclass(frozen=True)
class Forest:
    """Blocks 0..m-1; block 0 is the base, each other one has an earlier block as its parent."""

    parents: tuple[int, ...]

    def height(self, block: int) -> int:
        return 0 if block == 0 else 1 + self.height(self.parents[block])

    def ref(self, block: int) -> BlockRef:
        return BlockRef(b"%03d" % block, self.height(block))

    def parent_of(self, block_hash: bytes) -> bytes | None:
        block = int(block_hash)
        return None if block == 0 else b"%03d" % self.parents[block]

    def covers(self, ancestor: int, block: int) -> bool:
        while block != ancestor and block != 0:
            block = self.parents[block]
        return block == ancestor


Ballot = tuple[Stage, int, int]
"""Stage, voter, block."""


class SlowRound:
    """Verdicts recomputed from the list of votes alone."""

    def __init__(self, forest: Forest, voters: int, ballots: list[Ballot]) -> None:
        self.forest = forest
        self.voters = voters
        self.faulty = (voters - 1) // 3
        self.threshold = voters - self.faulty
        self.votes: dict[Stage, dict[int, list[int]]] = {Stage.PREVOTE: {}, Stage.PRECOMMIT: {}}
        for stage, voter, block in ballots:
            held = self.votes[stage].setdefault(voter, [])
            if len(held) < 2 and block not in held:
                held.append(block)

    def blocks(self) -> range:
        return range(len(self.forest.parents))

    def supporters(self, stage: Stage, block: int) -> set[int]:
        return {
            voter
            for voter, held in self.votes[stage].items()
            if len(held) == 2 or self.forest.covers(block, held[0])
        }

    def has(self, stage: Stage, block: int) -> bool:
        return len(self.supporters(stage, block)) >= self.threshold

    def highest(self, candidates: list[int]) -> int | None:
        return max(candidates, key=self.forest.height, default=None)

    def possible(self, block: int) -> bool:
        """Tries every set of voters that could still come to stand behind the block."""
        seen = self.votes[Stage.PRECOMMIT]
        equivocators = sum(len(held) == 2 for held in seen.values())
        behind = self.supporters(Stage.PRECOMMIT, block)
        others = [voter for voter in range(self.voters) if voter not in behind]
        for size in range(len(others) + 1):
            for joining in itertools.combinations(others, size):
                new_equivocators = sum(voter in seen for voter in joining)
                allowed = max(self.faulty - equivocators, 0)
                if new_equivocators <= allowed and len(behind) + size >= self.threshold:
                    return True
        return False

    def state(self) -> RoundState:
        if len(self.votes[Stage.PREVOTE]) < self.threshold:
            return RoundState(None, None, None, False)
        ghost = self.highest([b for b in self.blocks() if self.has(Stage.PREVOTE, b)])
        if ghost is None:
            return RoundState(None, None, None, False)
        ref = self.forest.ref
        if len(self.votes[Stage.PRECOMMIT]) < self.threshold:
            return RoundState(ref(ghost), None, ref(ghost), False)
        below = [b for b in self.blocks() if self.forest.covers(b, ghost)]
        final = self.highest([b for b in below if self.has(Stage.PRECOMMIT, b)])
        estimate = self.highest([b for b in below if self.possible(b)])
        return RoundState(
            ref(ghost),
            None if final is None else ref(final),
            None if estimate is None else ref(estimate),
            estimate is not None and self.is_completable(ghost, estimate),
        )

    def is_completable(self, ghost: int, estimate: int) -> bool:
        above = [b for b in self.blocks() if b != ghost and self.forest.covers(ghost, b)]
        return estimate != ghost or not any(self.possible(b) for b in above)


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    size = draw(st.integers(1, 9))
    return Forest((0, *(draw(st.integers(0, block - 1)) for block in range(1, size))))


@st.composite
def elections(draw: st.DrawFn) -> tuple[Forest, int, list[Ballot]]:
    """A forest, a number of voters, and votes of which at most f voters cast two in a stage."""
    forest = draw(forests())
    voters = draw(st.integers(1, 7))
    blocks = st.integers(0, len(forest.parents) - 1)
    ballots: list[Ballot] = []
    for stage in (Stage.PREVOTE, Stage.PRECOMMIT):
        order = draw(st.permutations(range(voters)))
        liars = order[: draw(st.integers(0, (voters - 1) // 3))]
        for voter in order[: draw(st.integers(0, voters))]:
            times = draw(st.integers(1, 3)) if voter in liars else 1
            ballots += [(stage, voter, draw(blocks)) for _ in range(times)]
    return forest, voters, draw(st.permutations(ballots))


def play(forest: Forest, voters: int, ballots: list[Ballot]) -> Round:
    round_ = Round(1, (1,) * voters, forest.ref(0))
    for stage, voter, block in ballots:
        vote = CastVote(voter, forest.ref(block), b"")
        round_.import_vote(stage, vote, forest.parent_of)
    return round_


@settings(max_examples=examples(400), deadline=None)
@given(elections())
def test_the_round_agrees_with_the_slow_reference(
    election: tuple[Forest, int, list[Ballot]],
) -> None:
    forest, voters, ballots = election
    assert play(*election).state == SlowRound(forest, voters, ballots).state()


@settings(max_examples=examples(100), deadline=None)
@given(elections())
def test_what_a_round_finalises_is_never_above_its_estimate(
    election: tuple[Forest, int, list[Ballot]],
) -> None:
    forest, voters, ballots = election
    for cut in range(len(ballots) + 1):
        state = play(forest, voters, ballots[:cut]).state
        if state.finalized is not None and state.estimate is not None:
            assert state.finalized.height <= state.estimate.height


@settings(max_examples=examples(100), deadline=None)
@given(elections())
def test_the_state_does_not_depend_on_the_order_of_votes(
    election: tuple[Forest, int, list[Ballot]],
) -> None:
    forest, voters, ballots = election
    firsts = [b for i, b in enumerate(ballots) if len({*ballots[:i]} & {b}) == 0]
    per_voter: dict[tuple[Stage, int], int] = {}
    kept = []
    for stage, voter, block in firsts:  # at most two votes are stored, so offer no third one
        per_voter[stage, voter] = per_voter.get((stage, voter), 0) + 1
        if per_voter[stage, voter] <= 2:
            kept.append((stage, voter, block))
    assert play(forest, voters, kept).state == play(forest, voters, kept[::-1]).state


@settings(max_examples=examples(200), deadline=None)
@given(elections())
def test_justifying_precommits_are_distinct_enough_and_descend_from_the_target(
    election: tuple[Forest, int, list[Ballot]],
) -> None:
    forest, voters, ballots = election
    round_ = play(*election)
    final = round_.state.finalized
    if final is None:
        return
    votes = round_.precommits_for(final)
    assert len({vote.voter for vote in votes}) == len(votes)
    assert len(votes) in (0, round_.threshold)
    for vote in votes:
        assert forest.covers(int(final.hash), int(vote.target.hash))
    equivocates = any(
        len([b for b in ballots if b[:2] == (Stage.PRECOMMIT, voter)]) > 1
        for voter in range(voters)
    )
    assert votes or equivocates
