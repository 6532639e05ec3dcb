"""One round of GRANDPA: what its prevotes and precommits say so far.

Law of this file: the state is a function of the set of votes taken in, not of their order, as
long as no more than a third of the weight equivocates. It never reads a clock and never signs.

Theory: GRANDPA (Stewart and Kokoris-Kogia, 2020) and its reference implementation's
`round.rs`. With W the total weight and T = W - (W-1)//3 the threshold:

    g           prevote GHOST: the highest block with >= T prevotes
    possible(B) precommits for B + precommits not seen yet + equivocations still tolerated among
                the precommits seen elsewhere >= T
    E           estimate: the highest ancestor-or-self of g with possible(E)
    completable E < g, or E = g and possible holds for no block above g
    finalised   the highest ancestor-or-self of g with >= T precommits

    votes taken in                     g      E      completable   finalised
    prevotes < T                       -      -      no            -
    prevotes >= T, precommits < T      g      g      no            -
    prevotes >= T, precommits >= T     g      E      by the rule   by the rule

A voter whose two votes of one stage differ is an equivocator: his weight counts for *every* block,
because he may have shown either vote to anyone. Two votes are stored, later ones are ignored.

Ours differs: a vote for a block that does not descend from the round's base is counted as seen,
for no block of the graph. It says that its voter will not help any block above the base. If so
many did that the base itself is out of reach, the round is completable without an estimate: that
happens to a voter who learnt of a later round's finality first, and builds the round on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gridtokenx.core.quorum import supermajority
from gridtokenx.finality.justifications import Stage
from gridtokenx.public.grandpa.vote_graph import BlockRef, ParentOf, VoteGraph


class CastVote(NamedTuple):
    """A vote as it is kept: who (index in the validator set), what, and the signature over it."""

    voter: int
    target: BlockRef
    signature: bytes


class Equivocation(NamedTuple):
    """Two different votes of one voter in one stage of one round."""

    stage: Stage
    first: CastVote
    second: CastVote


class Imported(NamedTuple):
    """What taking in a vote did.

    `fresh` says that the vote was stored; a duplicate and a third vote are not.
    """

    fresh: bool
    equivocation: Equivocation | None = None


class RoundState(NamedTuple):
    """The round's verdicts, `None` where there is none yet."""

    prevote_ghost: BlockRef | None
    finalized: BlockRef | None
    estimate: BlockRef | None
    completable: bool


@dataclass(slots=True)
class _Tracker:
    """The votes of one stage: at most two of each voter."""

    votes: dict[int, tuple[CastVote, ...]] = field(default_factory=dict)
    seen: int = 0
    equivocators: int = 0

    def add(self, vote: CastVote) -> tuple[CastVote, ...] | None:
        """Stores a vote; returns the voter's votes, or `None` if nothing was stored."""
        held = self.votes.get(vote.voter, ())
        if len(held) == 2 or any(other.target == vote.target for other in held):
            return None
        self.votes[vote.voter] = held = (*held, vote)
        self.seen |= 1 << vote.voter
        if len(held) == 2:
            self.equivocators |= 1 << vote.voter
        return held

    def all(self) -> Iterator[CastVote]:
        for voter in sorted(self.votes):
            yield from self.votes[voter]


class Round:
    """Takes in votes and keeps the round's state up to date."""

    def __init__(self, number: int, weights: Sequence[int], base: BlockRef) -> None:
        self.number = number
        self._weights = tuple(weights)
        self._unit_weights = all(weight == 1 for weight in weights)
        self._total = sum(weights)
        self.threshold = supermajority(self._total)
        self._graph = VoteGraph(base)
        self._trackers = {Stage.PREVOTE: _Tracker(), Stage.PRECOMMIT: _Tracker()}
        self._ghost: BlockRef | None = None
        self._precommit_ghost: BlockRef | None = None
        self._finalized: BlockRef | None = None
        self._estimate: BlockRef | None = None
        self._completable = False

    @property
    def base(self) -> BlockRef:
        """The block that all votes of the round build on."""
        return self._graph.base

    @property
    def primary(self) -> int:
        """The index of the voter that may hint at a block: round number mod n."""
        return self.number % len(self._weights)

    @property
    def state(self) -> RoundState:
        """The verdicts on the votes taken in so far."""
        return RoundState(self._ghost, self._finalized, self._estimate, self._completable)

    def votes(self, stage: Stage) -> tuple[CastVote, ...]:
        """All stored votes of a stage, by voter."""
        return tuple(self._trackers[stage].all())

    def voters(self, stage: Stage) -> int:
        """The bit set of voters of whom a vote of this stage is stored."""
        return self._trackers[stage].seen

    def holds(self, stage: Stage, voter: int, target: BlockRef) -> bool:
        """Whether exactly this vote is stored."""
        held = self._trackers[stage].votes.get(voter, ())
        return any(vote.target == target for vote in held)

    def is_settled(self, stage: Stage, voter: int) -> bool:
        """Whether a further vote of this voter would be ignored (two are stored)."""
        return len(self._trackers[stage].votes.get(voter, ())) == 2

    def import_vote(self, stage: Stage, vote: CastVote, parent_of: ParentOf) -> Imported:
        """Takes in a vote whose signature was checked and whose target's height is true."""
        if not 0 <= vote.voter < len(self._weights):
            raise ValueError(f"voter {vote.voter} of a set of {len(self._weights)}")
        held = self._trackers[stage].add(vote)
        if held is None:
            return Imported(fresh=False)
        self._graph.insert(vote.target, self._bit(stage, vote.voter), parent_of)
        self._update()
        return Imported(
            fresh=True, equivocation=Equivocation(stage, *held) if len(held) == 2 else None
        )

    def precommit_ghost(self) -> BlockRef | None:
        """The highest block with a supermajority of precommits."""
        if self._weight(self._trackers[Stage.PRECOMMIT].seen) >= self.threshold:
            self._precommit_ghost = self._graph.find_ghost(
                self._precommit_ghost, self._has_precommits
            )
        return self._precommit_ghost

    def justifiable(self) -> BlockRef | None:
        """The highest finalised block that strangers can be convinced of.

        Ours differs: an equivocator whose two precommits are both elsewhere counts for `finalized`,
        as in the paper, and not here, because a justification may only hold votes that descend from
        its target. With no more than a third faulty, honest precommits alone suffice, so this can
        delay what a node believes final and never prevent it.
        """
        if self._ghost is None or self._finalized is None:
            return None
        return self._graph.find_ancestor(self._ghost, self._has_shown_precommits)

    def precommits_for(self, target: BlockRef) -> tuple[CastVote, ...]:
        """Just enough precommits for `target` or blocks above it, one per voter; () if too few."""
        chosen: dict[int, CastVote] = {}
        weight = 0
        for vote in self._trackers[Stage.PRECOMMIT].all():
            if weight >= self.threshold:
                break
            if vote.voter not in chosen and self._graph.is_at_or_above(vote.target.hash, target):
                chosen[vote.voter] = vote
                weight += self._weights[vote.voter]
        return tuple(chosen.values()) if weight >= self.threshold else ()

    def _bit(self, stage: Stage, voter: int) -> int:
        return 1 << (voter if stage is Stage.PREVOTE else voter + len(self._weights))

    def _weight(self, voters: int) -> int:
        if self._unit_weights:
            return voters.bit_count()
        return sum(weight for i, weight in enumerate(self._weights) if voters >> i & 1)

    def _prevoters(self, voters: int) -> int:
        mask = (1 << len(self._weights)) - 1
        return (voters & mask) | self._trackers[Stage.PREVOTE].equivocators

    def _precommitters(self, voters: int) -> int:
        return (voters >> len(self._weights)) | self._trackers[Stage.PRECOMMIT].equivocators

    def _has_prevotes(self, voters: int) -> bool:
        return self._weight(self._prevoters(voters)) >= self.threshold

    def _has_precommits(self, voters: int) -> bool:
        return self._weight(self._precommitters(voters)) >= self.threshold

    def _has_shown_precommits(self, voters: int) -> bool:
        return self._weight(voters >> len(self._weights)) >= self.threshold

    def _can_have_precommits(self, voters: int) -> bool:
        """possible(B) of the head of this file.

        Voters seen elsewhere may still equivocate, but all equivocators together hold at most
        W - T: if more did, nothing would be promised anyway.
        """
        tracker = self._trackers[Stage.PRECOMMIT]
        on_block = self._weight(self._precommitters(voters))
        seen = self._weight(tracker.seen)
        tolerated = self._total - self.threshold - self._weight(tracker.equivocators)
        further = min(seen - on_block, max(tolerated, 0))
        return on_block + (self._total - seen) + further >= self.threshold

    def _update(self) -> None:
        if self._is_surpassed():
            self._estimate, self._completable = None, True
            return
        if self._weight(self._trackers[Stage.PREVOTE].seen) < self.threshold:
            return
        ghost = self._ghost = self._graph.find_ghost(self._ghost, self._has_prevotes)
        if ghost is None:
            return
        if self._weight(self._trackers[Stage.PRECOMMIT].seen) < self.threshold:
            # f+1 precommits are still out: any block, even one nobody has seen, may get T.
            self._estimate = ghost
            return
        self._finalized = self._graph.find_ancestor(ghost, self._has_precommits)
        self._estimate = self._graph.find_ancestor(ghost, self._can_have_precommits)
        self._completable = self._is_completable(ghost)

    def _is_surpassed(self) -> bool:
        """Whether not even the base can be finalised here: it became final in a later round."""
        if self._weight(self._trackers[Stage.PRECOMMIT].seen) < self.threshold:
            return False
        return not self._can_have_precommits(self._graph.voters(self.base.hash))

    def _is_completable(self, ghost: BlockRef) -> bool:
        if self._estimate is None:
            return False
        if self._estimate != ghost:
            return True
        # Blocks that nobody voted for need no look: at most f are out, and f may equivocate.
        return self._graph.find_ghost(ghost, self._can_have_precommits) == ghost
