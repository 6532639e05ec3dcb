"""What GRANDPA voters say to each other; the table of all public-chain messages is in `docs/`.

Every message names the validator set, so that nothing outlives its set. A batch or a catch-up is
refused as a whole if any signature in it fails: whoever passes votes on has checked them.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Hash32, Height, Index16, SignatureBytes, UInt63
from gridtokenx.finality.justifications import MAX_ANCESTRY, Stage, statement_bytes
from gridtokenx.finality.validators import MAX_VALIDATORS
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.grandpa.round import CastVote
from gridtokenx.public.grandpa.vote_graph import BlockRef

MAX_BATCH: Final = 512
"""Votes in one batch; more are asked for again."""

VoterMask = Annotated[bytes, Meta(max_length=(MAX_VALIDATORS + 7) // 8)]
"""A set of voters: bit i of the little-endian integer stands for voter i."""


class SignedVote(Wire, frozen=True):
    """A prevote, a precommit or the primary's hint."""

    stage: Annotated[int, Meta(ge=0, le=2)]
    """A `Stage`."""
    round: UInt63
    set_id: UInt63
    authority: Index16
    """The voter's index in the validator set."""
    target_hash: Hash32
    target_height: Height
    signature: SignatureBytes

    @property
    def target(self) -> BlockRef:
        """The block voted for."""
        return BlockRef(self.target_hash, self.target_height)

    def cast(self) -> CastVote:
        """The vote as a round keeps it."""
        return CastVote(self.authority, self.target, self.signature)

    def signed_bytes(self, chain_id: bytes) -> bytes:
        """The exact bytes under the signature."""
        return statement_bytes(
            chain_id,
            Stage(self.stage),
            self.round,
            self.set_id,
            self.target_hash,
            self.target_height,
        )


def signed_vote(stage: Stage, round_: int, set_id: int, vote: CastVote) -> SignedVote:
    """A kept vote as it travels."""
    return SignedVote(
        int(stage), round_, set_id, vote.voter, vote.target.hash, vote.target.height, vote.signature
    )


class Votes(Wire, frozen=True, tag="grandpa.votes"):
    """Votes of any rounds of one set."""

    votes: Annotated[tuple[SignedVote, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class Standing(Wire, frozen=True):
    """Which votes of a round somebody holds."""

    set_id: UInt63
    round: UInt63
    prevotes: VoterMask
    precommits: VoterMask
    digest: UInt63
    """Sum over all held votes of a hash: tells two holders of different votes of one liar apart."""


class VotesRequest(Wire, frozen=True, tag="grandpa.votes_request"):
    """Asks one peer for the votes of a round that the asker does not hold."""

    held: Standing


class CatchUpRequest(Wire, frozen=True, tag="grandpa.catch_up_request"):
    """Asks for the last completed round of somebody who is two or more rounds ahead."""

    set_id: UInt63
    round: UInt63
    """The asker's round: only a completed round at or above it helps."""


class CompletedRound(Wire, frozen=True):
    """A round with the votes that show it is completable. Also what a voter keeps on disk."""

    set_id: UInt63
    round: UInt63
    votes: Annotated[tuple[SignedVote, ...], Meta(max_length=4 * MAX_VALIDATORS)]
    """All stored prevotes and precommits, at most two of each voter and stage."""
    ancestry: Annotated[tuple[Header, ...], Meta(max_length=MAX_ANCESTRY)]
    """Headers from the votes' targets down to what was final: links between blocks that the reader
    may lack, because they are new to it or were pruned since. A header proves itself by its hash."""

    @property
    def is_consistent(self) -> bool:
        """Whether all votes are of this round and set: their signatures hold for others, too."""
        return all(
            (vote.set_id, vote.round) == (self.set_id, self.round)
            and vote.stage in (Stage.PREVOTE, Stage.PRECOMMIT)
            for vote in self.votes
        )


class CatchUp(Wire, frozen=True, tag="grandpa.catch_up"):
    """The answer to a `CatchUpRequest`."""

    completed: CompletedRound


class VoteEquivocation(Wire, frozen=True, tag="grandpa.equivocation"):
    """Evidence: two signed votes of one voter, stage and round for different blocks."""

    first: SignedVote
    second: SignedVote
