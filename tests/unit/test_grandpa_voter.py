"""The voter by hand: a small chain, others' votes made here, time given in steps."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import pytest

from gridtokenx.core.keys import KeyedHashSigner, sha256
from gridtokenx.core.machine import Broadcast, CancelTimer, Misbehaviour, Persist, SetTimer
from gridtokenx.finality.justifications import Stage
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.grandpa.messages import CompletedRound, SignedVote, Votes, signed_vote
from gridtokenx.public.grandpa.round import CastVote
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.grandpa.voter import (
    PRECOMMIT_TIMER,
    PREVOTE_TIMER,
    RETRY_TIMER,
    Justified,
    Outcome,
    Phase,
    Voter,
    VoterConfig,
)

CHAIN = sha256(b"voter test")
SIGNERS = [KeyedHashSigner(bytes((i,))) for i in range(4)]
SET = ValidatorSet(5, tuple(s.public_key for s in SIGNERS))
T, RETRY = 100, 2_000
ME = 0


class SmallChain:
    """Real headers, no state; the best head is the one that the test names."""

    def __init__(self) -> None:
        self.headers: dict[bytes, Header] = {}
        self.names: dict[str, BlockRef] = {}
        self.final = self.add("genesis", None)
        self.best = self.final

    def add(self, name: str, parent: str | None) -> BlockRef:
        below = None if parent is None else self.names[parent]
        zero = bytes(32)
        header = Header(
            version=1,
            chain_id=CHAIN,
            height=0 if below is None else below.height + 1,
            round=len(self.headers),
            parent=zero if below is None else below.hash,
            timestamp_ms=0,
            transaction_root=zero,
            state_root=zero,
            event_root=zero,
            set_id=SET.set_id,
            next_set_hash=SET.hash,
            digest=b"",
        )
        self.headers[header.hash] = header
        self.names[name] = ref = BlockRef(header.hash, header.height)
        return ref

    def line(self, parent: str, names: str) -> None:
        for name in names.split():
            self.best = self.add(name, parent)
            parent = name

    def hide(self, name: str) -> Header:
        return self.headers.pop(self.names[name].hash)

    @property
    def finalized(self) -> BlockRef:
        return self.final

    def best_containing(self, block: BlockRef, set_id: int) -> BlockRef | None:
        assert set_id == SET.set_id
        if self._descends(self.best, block):
            return self.best
        heads = [BlockRef(h, header.height) for h, header in self.headers.items()]
        above = [head for head in heads if self._descends(head, block)]
        return max(above, key=lambda head: head.height, default=None)

    def height_of(self, block_hash: bytes) -> int | None:
        header = self.headers.get(block_hash)
        return None if header is None else header.height

    def parent_of(self, block_hash: bytes) -> bytes | None:
        header = self.headers.get(block_hash)
        return header.parent if header is not None and header.height else None

    def header_of(self, block_hash: bytes) -> Header | None:
        return self.headers.get(block_hash)

    def _descends(self, block: BlockRef, base: BlockRef) -> bool:
        current: bytes | None = block.hash
        while current is not None and current != base.hash:
            current = self.parent_of(current)
        return current == base.hash


class Bench:
    """One voter, its disk, and what it did."""

    def __init__(self, chain: SmallChain | None = None, me: int = ME) -> None:
        self.chain = chain or SmallChain()
        self.me = me
        self.store = SimulatedStore()
        self.now = 0
        self.out: list[Outcome] = []
        self.restart()

    def restart(self) -> None:
        config = VoterConfig(CHAIN, T, RETRY)
        self.voter = Voter(config, SET, SIGNERS[self.me], self.chain, self.store)
        self.out = []
        self._do(self.voter.start(self.now))

    def _do(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self.out.append(outcome)
            if isinstance(outcome, Persist):
                self.store.write(outcome.writes)
        for outcome in outcomes:
            if isinstance(outcome, Justified):
                target = outcome.justification
                self.chain.final = BlockRef(target.target_hash, target.target_height)
                self._do(self.voter.on_chain(self.now))

    def grow(self, parent: str, names: str) -> None:
        self.chain.line(parent, names)
        self._do(self.voter.on_chain(self.now))

    def chain_changed(self) -> None:
        self._do(self.voter.on_chain(self.now))

    def timer(self, name: str) -> None:
        self._do(self.voter.on_timer(self.now, name))

    def hear(self, *votes: SignedVote) -> None:
        self._do(self.voter.on_votes(self.now, votes))

    def catch_up(self, completed: CompletedRound) -> None:
        self._do(self.voter.on_catch_up(self.now, completed))

    def vote(self, voter: int, stage: Stage, name: str, round_: int = 1) -> SignedVote:
        return self.vote_for(voter, stage, self.chain.names[name], round_)

    def vote_for(self, voter: int, stage: Stage, target: BlockRef, round_: int = 1) -> SignedVote:
        vote = signed_vote(stage, round_, SET.set_id, CastVote(voter, target, bytes(64)))
        signature = SIGNERS[voter].sign(vote.signed_bytes(CHAIN))
        return msgspec.structs.replace(vote, signature=signature)

    def prevotes(self, name: str, voters: Iterable[int] = (1, 2, 3), round_: int = 1) -> None:
        self.hear(*(self.vote(v, Stage.PREVOTE, name, round_) for v in voters))

    def precommits(self, name: str, voters: Iterable[int] = (1, 2, 3), round_: int = 1) -> None:
        self.hear(*(self.vote(v, Stage.PRECOMMIT, name, round_) for v in voters))

    def phase(self) -> Phase:
        return self.voter.phase

    def anchor(self) -> str:
        """What the votes of the current round build on."""
        names = {ref: name for name, ref in self.chain.names.items()}
        return names[self.voter._anchor()]

    def said(self) -> list[tuple[int, Stage, str]]:
        names = {ref: name for name, ref in self.chain.names.items()}
        return [(v.round, Stage(v.stage), names[v.target]) for v in self._spoken()]

    def _spoken(self) -> Iterator[SignedVote]:
        for effect in self.out:
            if isinstance(effect, Broadcast) and isinstance(effect.message, Votes):
                yield from effect.message.votes

    def justified(self) -> list[int]:
        return [o.justification.target_height for o in self.out if isinstance(o, Justified)]


def test_it_is_idle_while_everything_is_final() -> None:
    bench = Bench()
    assert bench.voter.phase is Phase.IDLE
    for name in (PREVOTE_TIMER, PRECOMMIT_TIMER, RETRY_TIMER):
        bench.timer(name)
    assert bench.out == []


def test_a_new_block_starts_the_round_and_its_timers() -> None:
    bench = Bench()
    bench.now = 50
    bench.grow("genesis", "A")
    timers = [effect for effect in bench.out if isinstance(effect, SetTimer)]
    assert timers == [
        SetTimer(PREVOTE_TIMER, 50 + 2 * T),
        SetTimer(PRECOMMIT_TIMER, 50 + 4 * T),
        SetTimer(RETRY_TIMER, 50 + RETRY),
    ]
    assert bench.said() == []


def test_a_whole_round() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    bench.timer(PREVOTE_TIMER)
    assert bench.said() == [(1, Stage.PREVOTE, "B")]
    bench.prevotes("B", (1, 2))
    assert len(bench.said()) == 1, "the precommit waits for its timer"
    bench.timer(PRECOMMIT_TIMER)
    assert bench.said()[1:] == [(1, Stage.PRECOMMIT, "B")]
    bench.precommits("B", (1, 2))
    assert bench.justified() == [2]
    assert bench.voter.round_number == 2
    assert bench.voter.phase is Phase.IDLE
    assert CancelTimer(PREVOTE_TIMER) in bench.out


def test_each_vote_is_on_disk_before_it_is_sent() -> None:
    bench = Bench()
    bench.grow("genesis", "A")
    bench.timer(PREVOTE_TIMER)
    kinds = [type(e) for e in bench.out if isinstance(e, (Persist, Broadcast))]
    assert kinds == [Persist, Broadcast]


def test_the_precommit_is_the_prevote_ghost_and_not_the_own_prevote() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    bench.timer(PREVOTE_TIMER)
    bench.prevotes("A", (1, 2))
    bench.timer(PRECOMMIT_TIMER)
    assert bench.said() == [(1, Stage.PREVOTE, "B"), (1, Stage.PRECOMMIT, "A")]


def test_a_completable_round_waits_for_no_timer() -> None:
    bench = Bench()
    bench.grow("genesis", "A")
    bench.prevotes("A")
    assert bench.said() == []
    bench.precommits("A")
    assert bench.said() == [(1, Stage.PREVOTE, "A"), (1, Stage.PRECOMMIT, "A")]
    assert bench.justified() == [1]


def test_after_a_restart_it_says_the_same_again_and_nothing_else() -> None:
    bench = Bench()
    bench.grow("genesis", "A")
    bench.timer(PREVOTE_TIMER)
    bench.grow("genesis", "X Y")  # the best chain is another one now
    bench.restart()
    assert bench.said() == [(1, Stage.PREVOTE, "A")]
    bench.timer(PREVOTE_TIMER)
    assert bench.said() == [(1, Stage.PREVOTE, "A")]
    bench.prevotes("A", (1, 2))
    bench.timer(PRECOMMIT_TIMER)
    assert bench.said()[1:] == [(1, Stage.PRECOMMIT, "A")]


def test_the_next_round_waits_for_a_new_best_block_or_the_retry_timer() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    bench.timer(PREVOTE_TIMER)
    bench.prevotes("A")
    bench.timer(PRECOMMIT_TIMER)
    bench.precommits("A")
    assert bench.justified() == [1]
    assert (bench.voter.round_number, bench.voter.phase) == (2, Phase.IDLE)
    bench.timer(RETRY_TIMER)
    assert bench.voter.phase is Phase.STARTED


def test_it_joins_when_more_than_a_third_votes() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    bench.prevotes("A")
    bench.precommits("A")
    assert (bench.voter.round_number, bench.phase()) == (2, Phase.IDLE)
    bench.prevotes("B", (1,), round_=2)
    assert bench.phase() is Phase.IDLE
    bench.prevotes("B", (2,), round_=2)
    assert bench.phase() is Phase.STARTED


def split_round(me: int = ME) -> Bench:
    """Round 1 ends with g = C and A final; B, and no more, could still be final: E = B."""
    bench = Bench(me=me)
    bench.grow("genesis", "A X")
    bench.grow("A", "B C")
    one, two, three = (voter for voter in range(4) if voter != me)
    bench.prevotes("C", (one, two, three))
    bench.timer(PREVOTE_TIMER)
    bench.timer(PRECOMMIT_TIMER)
    bench.precommits("B", (one,))
    bench.precommits("A", (two, three))
    assert bench.said() == [(1, Stage.PREVOTE, "C"), (1, Stage.PRECOMMIT, "C")]
    assert (bench.voter.round_number, bench.justified()) == (2, [1])
    return bench


def test_votes_build_on_the_estimate_of_the_round_before() -> None:
    bench = split_round()
    assert bench.anchor() == "B"
    bench.grow("X", "Y Z V W")  # the best chain does not contain B
    bench.timer(RETRY_TIMER)  # nor is there a new block above B
    bench.timer(PREVOTE_TIMER)
    assert bench.said()[-1] == (2, Stage.PREVOTE, "C")


def test_after_a_restart_it_respects_the_estimate_of_the_round_before() -> None:
    bench = split_round()
    bench.restart()
    assert bench.voter.round_number == 2
    assert bench.anchor() == "B"
    bench.grow("X", "Y Z V W")
    bench.timer(PREVOTE_TIMER)
    assert bench.said() == [(2, Stage.PREVOTE, "C")]


def test_the_primary_hints_at_an_estimate_that_is_not_final() -> None:
    bench = split_round(me=2)
    bench.grow("C", "D")
    assert bench.said()[-1] == (2, Stage.PRIMARY_PROPOSE, "B")
    other = split_round(me=1)
    other.grow("C", "D")
    assert other.said()[-1] == (1, Stage.PRECOMMIT, "C"), "it is not the primary of round 2"


def prevote_base(bench: Bench) -> str:
    names = {ref: name for name, ref in bench.chain.names.items()}
    return names[bench.voter._prevote_base()]


def test_a_hint_above_the_estimate_is_followed_and_only_from_the_primary() -> None:
    bench = split_round()
    bench.grow("C", "D")
    bench.hear(bench.vote(1, Stage.PRIMARY_PROPOSE, "C", 2))
    assert prevote_base(bench) == "B"
    bench.hear(bench.vote(2, Stage.PRIMARY_PROPOSE, "C", 2))
    assert prevote_base(bench) == "C"


@pytest.mark.parametrize("name", ["A", "B", "D", "X"])
def test_a_hint_elsewhere_is_ignored(name: str) -> None:
    bench = split_round()
    bench.grow("C", "D")
    bench.hear(bench.vote(2, Stage.PRIMARY_PROPOSE, name, 2))
    assert prevote_base(bench) == "B"


def test_an_equivocation_is_reported_once_with_both_votes() -> None:
    bench = Bench()
    bench.grow("genesis", "A B C")
    for name in ("A", "B", "C"):
        bench.prevotes(name, (3,))
    (report,) = [effect for effect in bench.out if isinstance(effect, Misbehaviour)]
    assert report.offender == SET.members[3]
    first, second = report.evidence.first, report.evidence.second  # type: ignore[attr-defined]
    assert (first.target, second.target) == (bench.chain.names["A"], bench.chain.names["B"])
    for vote in (first, second):
        assert vote == bench.vote(3, Stage.PREVOTE, "A" if vote is first else "B")


def test_votes_of_other_sets_and_far_rounds_are_not_kept() -> None:
    bench = Bench()
    bench.grow("genesis", "A")
    good = bench.vote(1, Stage.PREVOTE, "A")
    bench.hear(msgspec.structs.replace(good, set_id=SET.set_id + 1))
    bench.hear(bench.vote(1, Stage.PREVOTE, "A", 3), bench.vote(1, Stage.PREVOTE, "A", 0))
    assert {r.number for r in bench.voter._ballots.rounds()} <= {1}
    assert bench.voter.standing().prevotes == b""


def test_a_vote_for_an_unknown_block_waits_for_it() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    hidden = bench.chain.hide("B")
    bench.chain.best = bench.chain.names["A"]
    bench.prevotes("B")
    assert set(bench.voter.missing_blocks()) == {hidden.hash}
    assert bench.voter.standing().prevotes == bytes((0b1110,)), "it is held all the same"
    bench.chain.headers[hidden.hash] = hidden
    bench.chain_changed()
    assert list(bench.voter.missing_blocks()) == []
    assert bench.voter._current().state.prevote_ghost == bench.chain.names["B"]


def test_a_vote_with_a_wrong_height_counts_for_nothing() -> None:
    bench = Bench()
    bench.grow("genesis", "A")
    lie = BlockRef(bench.chain.names["A"].hash, 2)
    bench.hear(*(bench.vote_for(v, Stage.PREVOTE, lie) for v in (1, 2, 3)))
    assert bench.voter._current().votes(Stage.PREVOTE) == ()


def completed_at(bench: Bench, round_: int, name: str) -> CompletedRound:
    votes = [bench.vote(v, stage, name, round_) for stage in (0, 1) for v in (1, 2, 3)]  # type: ignore[arg-type]
    return CompletedRound(SET.set_id, round_, tuple(votes), ())


def test_a_completed_round_ahead_is_adopted_and_finalises() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    bench.catch_up(completed_at(bench, 9, "B"))
    assert bench.voter.round_number == 10
    assert bench.justified() == [2]
    assert bench.voter.completed() == completed_at(bench, 9, "B")
    bench.restart()
    assert bench.voter.round_number == 10


def test_a_completed_round_may_name_blocks_that_are_not_here_if_it_brings_headers() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    completed = completed_at(bench, 9, "B")
    hidden = bench.chain.hide("B")
    bench.chain.best = bench.chain.names["A"]
    bench.catch_up(completed)
    assert bench.voter.round_number == 1
    bench.catch_up(msgspec.structs.replace(completed, ancestry=(hidden,)))
    assert bench.voter.round_number == 10
    assert list(bench.voter.missing_blocks()) == [hidden.hash], "its estimate must be fetched"
    assert bench.justified() == []
    bench.chain.headers[hidden.hash] = hidden
    bench.chain_changed()
    assert bench.justified() == [2]


def test_catch_ups_that_prove_nothing_are_not_adopted() -> None:
    bench = Bench()
    bench.grow("genesis", "A B")
    good = completed_at(bench, 9, "B")
    replace = msgspec.structs.replace
    bench.catch_up(replace(good, votes=good.votes[:5]))
    bench.catch_up(replace(good, votes=good.votes[3:]))
    bench.catch_up(replace(good, set_id=SET.set_id - 1))
    bench.catch_up(replace(good, round=10))  # the signatures are for round 9
    mixed = (*good.votes[:5], bench.vote(3, Stage.PRECOMMIT, "B", 8))
    bench.catch_up(replace(good, votes=mixed))
    assert bench.voter.round_number == 1
    assert bench.said() == []


def test_a_bystander_counts_and_says_nothing() -> None:
    bench = Bench()
    stranger = KeyedHashSigner(b"stranger")
    config = VoterConfig(CHAIN, T, RETRY)
    bench.voter = Voter(config, SET, stranger, bench.chain, bench.store)
    bench.grow("genesis", "A")
    bench.timer(PREVOTE_TIMER)
    bench.prevotes("A")
    bench.timer(PRECOMMIT_TIMER)
    bench.precommits("A")
    assert bench.said() == []
    assert bench.justified() == [1]
    assert bench.voter.round_number == 2


def test_a_standing_shows_what_is_missing_and_an_equivocators_two_faces() -> None:
    one, other = Bench(), Bench()
    for bench in (one, other):
        bench.grow("genesis", "A B")
    one.prevotes("A", (1, 2))
    other.prevotes("A", (1,))
    assert other.voter.lacks(one.voter.standing()) == other.voter.standing()
    assert one.voter.lacks(other.voter.standing()) is None
    assert [v.authority for v in one.voter.votes_for(other.voter.standing())] == [2]
    other.prevotes("B", (2,))
    asked = one.voter.lacks(other.voter.standing())
    assert asked is not None, "same voters, other votes"
    one.hear(*other.voter.votes_for(asked))
    assert any(isinstance(effect, Misbehaviour) for effect in one.out)
