"""The GRANDPA voter: when to vote, for what, and when a round is over.

Law of the file: **a voter never contradicts what it may have said.** Each vote is persisted before
it leaves, at most one per (set, round, stage) ever; a restarted voter repeats the votes it finds on
disk and casts only those it does not find. Rounds only grow.

Theory: GRANDPA (Stewart and Kokoris-Kogia, 2020); Polkadot specification, "Finality". For round r,
E the estimate of round r-1 (as it stands now), g the prevote GHOST of r, T the gossip time:

    phase        leaves it when                                       and does
    IDLE         there is something to finalise (see below)           hint E if primary of r and E
                                                                      is not final; timers 2T, 4T
    STARTED      2T passed, or r is completable                       prevote for the best chain
                                                                      containing E (or the hint)
    PREVOTED     g >= E, and (4T passed, or r is completable)         precommit for g
    any          r is completable and E is final                      keep r on disk; IDLE in r+1

The primary's hint is followed if it lies strictly above E and at or below g of round r-1.

Ours differs:
- A round starts only if the best block is not final, and only if the best block changed since the
  last start, or `retry_ms` passed, or f+1 others prevote already. An idle chain costs no votes,
  and there is at most one round per new best block.
- A voter that finds others two rounds ahead adopts their last completed round, on the votes that
  complete it (the reference implementation's catch-up; the paper has none).
- No vote passes a block that hands over to another validator set; rounds of the new set begin at 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Signer
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Effect,
    Instant,
    Misbehaviour,
    Persist,
    Reader,
    SetTimer,
    Write,
)
from gridtokenx.finality.justifications import (
    MAX_ANCESTRY,
    Justification,
    SignedPrecommit,
    Stage,
    statement_bytes,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.grandpa.ballots import VOTES, Ballots, ChainView, Taken
from gridtokenx.public.grandpa.messages import (
    CompletedRound,
    SignedVote,
    Standing,
    Votes,
    signed_vote,
)
from gridtokenx.public.grandpa.round import CastVote, Round, RoundState
from gridtokenx.public.grandpa.vote_graph import BlockRef

TABLE: Final = "grandpa"
_COMPLETED: Final = b"completed"
_VOTE: Final = b"vote:"

_MAX_REBASE: Final = 256
"""How far below what is final a round from elsewhere may have its base."""

PREVOTE_TIMER: Final = "grandpa.prevote"
PRECOMMIT_TIMER: Final = "grandpa.precommit"
RETRY_TIMER: Final = "grandpa.retry"
TIMERS: Final = (PREVOTE_TIMER, PRECOMMIT_TIMER, RETRY_TIMER)


class Phase(Enum):
    """How far the voter is in its current round."""

    IDLE = "idle"
    STARTED = "started"
    PREVOTED = "prevoted"
    PRECOMMITTED = "precommitted"


@dataclass(frozen=True, slots=True)
class VoterConfig:
    """What a voter needs beside the chain and its keys."""

    chain_id: bytes
    gossip_ms: int
    """T of the paper: within it a message of an honest voter reaches all others."""
    retry_ms: int
    """A round for an unchanged best block starts this long after the last one."""
    silent_below: int = 0
    """No vote is cast before a block of this height is final here."""


@dataclass(frozen=True, slots=True)
class Justified:
    """The voter's own outcome: this justification finalises a block; the machine carries it out."""

    justification: Justification


Outcome = Effect | Justified


class Voter:
    """One validator set's rounds, as one of its members (or a bystander, who only counts) sees them.

    Args:
        signer: casts votes if its key is in `validators`.
        reader: what earlier lives persisted; votes of another set are ignored.
    """

    def __init__(
        self,
        config: VoterConfig,
        validators: ValidatorSet,
        signer: Signer,
        chain: ChainView,
        reader: Reader,
    ) -> None:
        self.validators: Final = validators
        self._config: Final = config
        self._signer: Final = signer
        self._index: Final = validators.index_of(signer.public_key)
        self._chain: Final = chain
        self._ballots: Final = Ballots(validators, chain)
        self._out: list[Outcome] = []
        self._phase = Phase.IDLE
        self._prevote_due = self._precommit_due = self._retry_due = False
        self._voted_head: BlockRef | None = None
        self._number = 1
        self._base_state = _settled(chain.finalized)
        self._completed: CompletedRound | None = None
        self._trusted_round = 0
        self._justified_height = 0
        self._own_votes: dict[bytes, SignedVote] = {}
        self._restore(reader)

    # -- what others ask ---------------------------------------------------------------------------

    @property
    def round_number(self) -> int:
        """The current round."""
        return self._number

    @property
    def phase(self) -> Phase:
        """How far the current round is."""
        return self._phase

    def standing(self) -> Standing:
        """Which votes of the current round are held."""
        return self._ballots.standing(self._number)

    def lacks(self, other: Standing) -> Standing | None:
        """What to ask the holder of `other` for: our standing in a round where he can help."""
        if other.set_id != self.validators.set_id:
            return None
        if other.round == self._number + 1:
            return self.standing()  # he has completed our round
        if self._in_window(other.round) and self._ballots.lacks(other):
            return self._ballots.standing(other.round)
        return None

    def votes_for(self, other: Standing) -> tuple[SignedVote, ...]:
        """Votes that the holder of `other` lacks in that round."""
        if other.set_id != self.validators.set_id or self._ballots.held(other.round) is None:
            return ()
        return self._ballots.missing_in(other)

    def missing_blocks(self) -> Iterable[bytes]:
        """Hashes of blocks that held votes wait for, or that the next vote must build on."""
        yield from self._ballots.missing_blocks()
        anchor = self._anchor().hash
        if self._chain.height_of(anchor) is None:
            yield anchor

    def completed(self) -> CompletedRound | None:
        """The last completed round, for those who are rounds behind."""
        return self._completed

    # -- events ------------------------------------------------------------------------------------

    def start(self, now: Instant) -> list[Outcome]:
        """First event of a life: says again what was said before, and goes on."""
        own = [vote for vote in self._own_votes.values() if vote.round == self._number]
        if own:
            self._out.append(Broadcast(Votes(tuple(own))))
            self._begin_round(now)
        return self._advance(now)

    def on_votes(self, now: Instant, votes: Iterable[SignedVote]) -> list[Outcome]:
        """Votes whose signatures were checked."""
        for vote in votes:
            if vote.set_id == self.validators.set_id and self._in_window(vote.round):
                self._note(self._ballots.take(vote))
        return self._advance(now)

    def on_chain(self, now: Instant) -> list[Outcome]:
        """Blocks were imported, or finalised."""
        for taken in self._ballots.retry_waiting():
            self._note(taken)
        return self._advance(now)

    def on_timer(self, now: Instant, name: object) -> list[Outcome]:
        """One of `TIMERS` is due."""
        if name == PREVOTE_TIMER:
            self._prevote_due = True
        elif name == PRECOMMIT_TIMER:
            self._prevote_due = self._precommit_due = True
        elif name == RETRY_TIMER:
            self._retry_due = True
        return self._advance(now)

    def on_catch_up(self, now: Instant, completed: CompletedRound) -> list[Outcome]:
        """Somebody's completed round, its signatures checked: adopt it if it is ahead of ours."""
        is_ahead = completed.set_id == self.validators.set_id and completed.round >= self._number
        if is_ahead and completed.is_consistent:
            round_ = self._rebuild(completed)
            if round_ is not None and round_.state.completable:
                self._ballots.put(round_)
                self._enter_after(completed, now)
        return self._advance(now)

    def retire(self) -> Persist:
        """The set is over: what was kept of its votes is of no more use."""
        keys = [_COMPLETED, *self._own_votes]
        return Persist(tuple(Write(TABLE, key, None) for key in keys))

    # -- the rules ---------------------------------------------------------------------------------

    def _advance(self, now: Instant) -> list[Outcome]:
        """Applies the table at the head of this file until nothing changes."""
        moved = True
        while moved:
            self._finalize()
            moved = (
                self._try_start(now)
                or self._try_prevote()
                or self._try_precommit()
                or self._try_complete(now)
            )
        out, self._out = self._out, []
        return out

    def _previous(self) -> RoundState:
        """Verdicts of round r-1; of the set's first base where there is no such round."""
        last = self._ballots.held(self._number - 1)
        return self._base_state if last is None else last.state

    def _anchor(self) -> BlockRef:
        """The estimate of round r-1, or what is final above it: all votes of r build on it."""
        estimate, final = self._previous().estimate, self._chain.finalized
        return final if estimate is None or estimate.height <= final.height else estimate

    def _head(self, above: BlockRef) -> BlockRef | None:
        return self._chain.best_containing(above, self.validators.set_id)

    def _try_start(self, now: Instant) -> bool:
        if self._phase is not Phase.IDLE:
            return False
        head = self._head(self._anchor())
        if head is None or head.height <= self._chain.finalized.height:
            return False
        if head == self._voted_head and not (self._retry_due or self._others_vote()):
            return False
        self._begin_round(now)
        return True

    def _others_vote(self) -> bool:
        current = self._ballots.held(self._number)
        return (
            current is not None
            and current.voters(Stage.PREVOTE).bit_count() > self.validators.faulty
        )

    def _begin_round(self, now: Instant) -> None:
        self._phase = Phase.STARTED
        self._prevote_due = self._precommit_due = self._retry_due = False
        wait_ms = self._config.gossip_ms
        self._out += [
            SetTimer(PREVOTE_TIMER, now + 2 * wait_ms),
            SetTimer(PRECOMMIT_TIMER, now + 4 * wait_ms),
            SetTimer(RETRY_TIMER, now + self._config.retry_ms),
        ]
        anchor = self._anchor()
        self._voted_head = self._head(anchor)
        if self._index == self._current().primary and anchor != self._chain.finalized:
            self._cast(Stage.PRIMARY_PROPOSE, anchor)

    def _current(self) -> Round:
        return self._ballots.round(self._number)

    def _try_prevote(self) -> bool:
        if self._phase is not Phase.STARTED:
            return False
        if not (self._prevote_due or self._current().state.completable):
            return False
        target = self._head(self._prevote_base())
        if target is None:
            return False
        self._phase = Phase.PREVOTED
        self._voted_head = target
        self._cast(Stage.PREVOTE, target)
        return True

    def _prevote_base(self) -> BlockRef:
        """E, or the primary's hint if it is strictly above E and at or below g of round r-1."""
        anchor, hint = self._anchor(), self._ballots.hint(self._number)
        ghost = self._previous().prevote_ghost
        if hint is None or ghost is None or not anchor.height < hint.height <= ghost.height:
            return anchor
        on_way = self._is_at_or_above(ghost, hint) and self._is_at_or_above(hint, anchor)
        return hint if on_way else anchor

    def _try_precommit(self) -> bool:
        state = self._current().state
        if self._phase is not Phase.PREVOTED or state.prevote_ghost is None:
            return False
        if not (self._precommit_due or state.completable):
            return False
        if not self._is_at_or_above(state.prevote_ghost, self._anchor()):
            return False
        self._phase = Phase.PRECOMMITTED
        self._cast(Stage.PRECOMMIT, state.prevote_ghost)
        return True

    def _try_complete(self, now: Instant) -> bool:
        current = self._current()
        if not current.state.completable:
            return False
        estimate = self._previous().estimate
        final = max(self._chain.finalized.height, _height(current.state.finalized))
        if estimate is not None and estimate.height > final:
            return False
        self._enter_after(self._record(current), now)
        return True

    def _enter_after(self, completed: CompletedRound, now: Instant) -> None:
        """Keeps a completed round on disk and waits in the next one."""
        self._completed = completed
        self._number = completed.round + 1
        self._phase = Phase.IDLE
        self._ballots.forget_below(completed.round)
        stale = [key for key, vote in self._own_votes.items() if vote.round <= completed.round]
        for key in stale:
            del self._own_votes[key]
        deletions = (Write(TABLE, key, None) for key in stale)
        self._out.append(Persist((Write(TABLE, _COMPLETED, encode(completed)), *deletions)))
        self._out += [CancelTimer(PREVOTE_TIMER), CancelTimer(PRECOMMIT_TIMER)]
        if not self._retry_due:
            self._out.append(SetTimer(RETRY_TIMER, now + self._config.retry_ms))

    def _record(self, completed: Round) -> CompletedRound:
        set_id = self.validators.set_id
        votes = tuple(
            signed_vote(stage, completed.number, set_id, cast)
            for stage in VOTES
            for cast in completed.votes(stage)
        )
        headers = self._headers_below([vote.target for vote in votes], self._chain.finalized.hash)
        return CompletedRound(set_id, completed.number, votes, tuple(headers.values()))

    def _finalize(self) -> None:
        """Emits a justification for the highest block that any held round finalises."""
        best: tuple[Round, BlockRef] | None = None
        for round_ in self._ballots.rounds():
            target = round_.justifiable()
            floor = self._chain.finalized if best is None else best[1]
            if target is not None and target.height > max(floor.height, self._justified_height):
                best = (round_, target)
        if best is None:
            return
        justification = self._justify(*best)
        if justification is not None:
            self._justified_height = justification.target_height
            self._out.append(Justified(justification))

    def _justify(self, round_: Round, target: BlockRef) -> Justification | None:
        votes = round_.precommits_for(target)
        ancestry = self._headers_below([vote.target for vote in votes], target.hash)
        if any(self._chain.header_of(v.target.hash) is None for v in votes):
            return None  # the block itself is not here yet
        precommits = tuple(
            SignedPrecommit(v.voter, v.target.hash, v.target.height, v.signature) for v in votes
        )
        return Justification(
            round_.number,
            self.validators.set_id,
            target.hash,
            target.height,
            precommits,
            tuple(ancestry.values()),
        )

    def _headers_below(self, tops: Iterable[BlockRef], stop: bytes) -> dict[bytes, Header]:
        """Headers from each top down to, and without, `stop` or what is final; bounded."""
        headers: dict[bytes, Header] = {}
        for top in tops:
            block_hash = top.hash
            while block_hash != stop and block_hash not in headers:
                header = self._chain.header_of(block_hash)
                if header is None or len(headers) == MAX_ANCESTRY:
                    break
                headers[block_hash] = header
                block_hash = header.parent
        return headers

    # -- votes of our own --------------------------------------------------------------------------

    def _cast(self, stage: Stage, target: BlockRef) -> None:
        """Signs, keeps and sends a vote, unless one of this round and stage exists already."""
        said_before = _vote_key(self._number, stage) in self._own_votes
        if self._index is None or said_before or not self._may_vote():
            return
        message = statement_bytes(
            self._config.chain_id, stage, self._number, self.validators.set_id, *target
        )
        cast = CastVote(self._index, target, self._signer.sign(message))
        vote = signed_vote(stage, self._number, self.validators.set_id, cast)
        self._own_votes[_vote_key(self._number, stage)] = vote
        self._out.append(Persist((Write(TABLE, _vote_key(self._number, stage), encode(vote)),)))
        self._out.append(Broadcast(Votes((vote,))))
        self._note(self._ballots.take(vote))

    def _may_vote(self) -> bool:
        """Whether the estimate of round r-1 is known: it was seen completable, now or before."""
        if self._chain.finalized.height < self._config.silent_below:
            return False
        last = self._ballots.held(self._number - 1)
        seen = last is not None and last.state.completable
        return seen or self._number - 1 == self._trusted_round

    def _note(self, taken: Taken) -> None:
        if taken.evidence is not None:
            offender = self.validators.members[taken.evidence.first.authority]
            self._out.append(Misbehaviour(offender, "grandpa-equivocation", taken.evidence))

    # -- restart -----------------------------------------------------------------------------------

    def _restore(self, reader: Reader) -> None:
        raw = reader.get(TABLE, _COMPLETED)
        if raw is not None:
            self._resume_after(decode_own(raw, CompletedRound))
        for key, value in reader.scan(TABLE, _VOTE):
            vote = decode_own(value, SignedVote)
            if vote.set_id == self.validators.set_id and vote.round >= self._number:
                self._own_votes[key] = vote
                self._ballots.take(vote)

    def _resume_after(self, completed: CompletedRound) -> None:
        """Our own record was completable when it was written, so it still is."""
        if completed.set_id != self.validators.set_id:
            return
        self._completed = completed
        self._number = completed.round + 1
        self._trusted_round = completed.round
        round_ = self._rebuild(completed)
        if round_ is None:
            raise LocalFault(
                f"the store holds GRANDPA round {completed.round} but not its blocks: it is damaged"
            )
        self._ballots.put(round_)

    def _rebuild(self, completed: CompletedRound) -> Round | None:
        """A round from its votes; None if a vote's place in the chain is not known.

        The record's headers prove their own links, so the round can be judged, and the estimate
        that it sets be respected, before all blocks are here.
        """
        headers = {header.hash: header for header in completed.ancestry}

        def parent_of(block_hash: bytes) -> bytes | None:
            header = headers.get(block_hash)
            return self._chain.parent_of(block_hash) if header is None else header.parent

        lowest = min((vote.target_height for vote in completed.votes), default=0)
        round_ = Round(completed.round, (1,) * self.validators.size, self._final_at(lowest))
        for vote in completed.votes:
            header = headers.get(vote.target_hash)
            height = self._chain.height_of(vote.target_hash) if header is None else header.height
            if height is None and vote.target_height > self._chain.finalized.height:
                return None
            if height is None or height == vote.target_height:
                round_.import_vote(Stage(vote.stage), vote.cast(), parent_of)
        return round_

    def _final_at(self, height: int) -> BlockRef:
        """The final block at a height, or at the lowest one above it within reach."""
        block = self._chain.finalized
        height = max(height, block.height - _MAX_REBASE)
        while block.height > height and (parent := self._chain.parent_of(block.hash)) is not None:
            block = BlockRef(parent, block.height - 1)
        return block

    # -- small things ------------------------------------------------------------------------------

    def _in_window(self, round_: int) -> bool:
        return max(self._number - 1, 1) <= round_ <= self._number + 1

    def _is_at_or_above(self, block: BlockRef, base: BlockRef) -> bool:
        current: bytes | None = block.hash
        for _ in range(block.height - base.height):
            current = None if current is None else self._chain.parent_of(current)
        return current == base.hash


def _settled(block: BlockRef) -> RoundState:
    """Verdicts of the round 0 that every set begins with: everything is the first block."""
    return RoundState(prevote_ghost=block, finalized=block, estimate=block, completable=True)


def _height(block: BlockRef | None) -> int:
    return -1 if block is None else block.height


def _vote_key(round_: int, stage: Stage) -> bytes:
    return _VOTE + round_.to_bytes(8, "big") + bytes((int(stage),))
