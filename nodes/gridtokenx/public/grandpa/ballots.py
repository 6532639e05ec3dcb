"""The votes a voter holds: of the round before, the current one, and the next.

Law of the file: memory is bounded whatever peers send. Per round, stage and voter at most two votes
are kept, and rounds outside the window are not taken in. A vote for a block that is not known yet
waits here; it counts as held (nobody need send it again) and takes part once its block is known.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from gridtokenx.core.keys import sha256
from gridtokenx.finality.justifications import Stage
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.grandpa.messages import (
    MAX_BATCH,
    SignedVote,
    Standing,
    VoteEquivocation,
    signed_vote,
)
from gridtokenx.public.grandpa.round import CastVote, Round
from gridtokenx.public.grandpa.vote_graph import BlockRef

VOTES = (Stage.PREVOTE, Stage.PRECOMMIT)


class ChainView(Protocol):
    """What voting needs to know of the chain; `public/machine.py` provides it."""

    @property
    def finalized(self) -> BlockRef:
        """The last finalised block."""
        ...

    def best_containing(self, block: BlockRef, set_id: int) -> BlockRef | None:
        """Head of the best chain through `block`, as far as validator set `set_id` may vote."""
        ...

    def height_of(self, block_hash: bytes) -> int | None:
        """The height of a known block, final, on a fork, or recently pruned."""
        ...

    def parent_of(self, block_hash: bytes) -> bytes | None:
        """The parent of a known block."""
        ...

    def header_of(self, block_hash: bytes) -> Header | None:
        """The header of a block that is not final, or was pruned not long ago."""
        ...


class Taken(NamedTuple):
    """What became of a vote: `fresh` if it was not held before."""

    fresh: bool
    evidence: VoteEquivocation | None = None
    fault: str | None = None


class Ballots:
    """Rounds by number, and votes that wait for their block."""

    def __init__(self, validators: ValidatorSet, chain: ChainView) -> None:
        self._validators = validators
        self._chain = chain
        self._rounds: dict[int, Round] = {}
        self._waiting: dict[tuple[int, Stage, int], tuple[SignedVote, ...]] = {}
        self._hints: dict[int, BlockRef] = {}
        self._standings: dict[int, Standing] = {}

    def round(self, number: int) -> Round:
        """The round of this number; a new one builds on the last finalised block."""
        found = self._rounds.get(number)
        if found is None:
            weights = (1,) * self._validators.size
            found = self._rounds[number] = Round(number, weights, self._chain.finalized)
        return found

    def held(self, number: int) -> Round | None:
        """The round of this number if it exists."""
        return self._rounds.get(number)

    def rounds(self) -> list[Round]:
        """All rounds, lowest first."""
        return [self._rounds[number] for number in sorted(self._rounds)]

    def put(self, completed: Round) -> None:
        """Replaces a round by one that was rebuilt."""
        self._rounds[completed.number] = completed
        self._standings.pop(completed.number, None)

    def hint(self, number: int) -> BlockRef | None:
        """What the primary of a round proposed."""
        return self._hints.get(number)

    def forget_below(self, number: int) -> None:
        """Drops rounds that nobody needs any more."""
        for old in [n for n in self._rounds if n < number]:
            del self._rounds[old]
        for old in [n for n in self._hints if n < number]:
            del self._hints[old]
        self._standings.clear()
        for key in [key for key in self._waiting if key[0] < number]:
            del self._waiting[key]

    def take(self, vote: SignedVote) -> Taken:
        """Takes in a vote of a round inside the window, its signature checked."""
        self._standings.pop(vote.round, None)
        stage = Stage(vote.stage)
        height = self._chain.height_of(vote.target_hash)
        if height is not None and height != vote.target_height:
            return Taken(fresh=False, fault="vote-height")
        if stage is Stage.PRIMARY_PROPOSE:
            return self._take_hint(vote)
        if height is None and vote.target_height > self._chain.finalized.height:
            return Taken(fresh=self._wait(stage, vote))
        imported = self.round(vote.round).import_vote(stage, vote.cast(), self._chain.parent_of)
        evidence = None
        if imported.equivocation is not None:
            first, second = imported.equivocation.first, imported.equivocation.second
            evidence = VoteEquivocation(self._signed(vote, first), self._signed(vote, second))
        return Taken(imported.fresh, evidence)

    def retry_waiting(self) -> Iterator[Taken]:
        """Takes in the votes whose block has become known."""
        for key, votes in list(self._waiting.items()):
            known = [v for v in votes if self._is_decided(v)]
            rest = tuple(v for v in votes if v not in known)
            if known and rest:
                self._waiting[key] = rest
            elif known:
                del self._waiting[key]
            for vote in known:
                yield self.take(vote)

    def missing_blocks(self) -> Iterator[bytes]:
        """Hashes of blocks that votes wait for."""
        for votes in self._waiting.values():
            yield from (vote.target_hash for vote in votes)

    def standing(self, number: int) -> Standing:
        """Which votes of a round are held, waiting ones included."""
        known = self._standings.get(number)
        if known is None:
            known = self._count(number)
            if number in self._rounds:
                self._standings[number] = known
        return known

    def lacks(self, other: Standing) -> bool:
        """Whether the holder of `other` has votes of that round that are not here."""
        ours = self.standing(other.round)
        everybody = (1 << self._validators.size) - 1
        prevotes = _mask(other.prevotes) & ~_mask(ours.prevotes) & everybody
        precommits = _mask(other.precommits) & ~_mask(ours.precommits) & everybody
        same_voters = (other.prevotes, other.precommits) == (ours.prevotes, ours.precommits)
        return bool(prevotes or precommits or (same_voters and other.digest != ours.digest))

    def missing_in(self, other: Standing) -> tuple[SignedVote, ...]:
        """Votes of a round for somebody who holds `other`.

        If the voters are the same and the digests are not, somebody equivocated: everything is
        sent, at most two votes of each voter.
        """
        masks = {Stage.PREVOTE: _mask(other.prevotes), Stage.PRECOMMIT: _mask(other.precommits)}
        votes = list(self._all_of(other.round))
        missing = [v for v in votes if not masks[Stage(v.stage)] >> v.authority & 1]
        if not missing and self.standing(other.round).digest != other.digest:
            missing = votes
        return tuple(missing[:MAX_BATCH])

    def _count(self, number: int) -> Standing:
        masks: dict[Stage, int] = dict.fromkeys(VOTES, 0)
        digest = 0
        for vote in self._all_of(number):
            masks[Stage(vote.stage)] |= 1 << vote.authority
            digest += _short_hash(vote)
        return Standing(
            self._validators.set_id,
            number,
            _to_bytes(masks[Stage.PREVOTE]),
            _to_bytes(masks[Stage.PRECOMMIT]),
            digest % 2**63,
        )

    def _signed(self, like: SignedVote, cast: CastVote) -> SignedVote:
        return signed_vote(Stage(like.stage), like.round, like.set_id, cast)

    def _take_hint(self, vote: SignedVote) -> Taken:
        if vote.authority != vote.round % self._validators.size or vote.round in self._hints:
            return Taken(fresh=False)
        self._hints[vote.round] = vote.target
        return Taken(fresh=True)

    def _wait(self, stage: Stage, vote: SignedVote) -> bool:
        key = (vote.round, stage, vote.authority)
        held = self._waiting.get(key, ())
        if len(held) == 2 or any(other.target == vote.target for other in held):
            return False
        self._waiting[key] = (*held, vote)
        return True

    def _is_decided(self, vote: SignedVote) -> bool:
        known = self._chain.height_of(vote.target_hash) is not None
        return known or vote.target_height <= self._chain.finalized.height

    def _all_of(self, number: int) -> Iterator[SignedVote]:
        held = self._rounds.get(number)
        for stage in VOTES if held is not None else ():
            for cast in held.votes(stage) if held is not None else ():
                yield signed_vote(stage, number, self._validators.set_id, cast)
        for (round_number, _, _), votes in self._waiting.items():
            if round_number == number:
                yield from votes


def _to_bytes(mask: int) -> bytes:
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _mask(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _short_hash(vote: SignedVote) -> int:
    raw = sha256(bytes((vote.stage,)), vote.authority.to_bytes(2, "big"), vote.target_hash)
    return int.from_bytes(raw[:7], "big")
