"""The public node as one machine: marks, batches, signatures named, and bad input of any kind."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.public_network import GOSSIP_MS, RULES, PublicNetwork, transfer
from tests.stages import examples
from tests.unit.public_forge import FIRST_SLOT, Forge, reseal

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import (
    Broadcast,
    Committed,
    Effect,
    PeerConnected,
    Persist,
    Received,
    Reject,
    Send,
    SetTimer,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Verified,
    Write,
)
from gridtokenx.finality.justifications import Justification, SignedPrecommit, Stage
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.public.grandpa.messages import (
    CatchUp,
    CatchUpRequest,
    CompletedRound,
    Standing,
    Votes,
    VotesRequest,
    signed_vote,
)
from gridtokenx.public.grandpa.round import CastVote
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.machine import SLOT_TIMER, TICK_TIMER, PublicNode
from gridtokenx.public.messages import (
    Branch,
    BranchRequest,
    FinalBlocks,
    FinalRequest,
    Message,
    NewBlock,
    Status,
    Transactions,
)
from gridtokenx.public.slots import SealedBlock

PEER = b"p" * 32
FORGE = Forge()
NET = FORGE.net


def at(slot: int) -> int:
    return RULES.start_of(FIRST_SLOT + slot)


class Node:
    """A node of the test chain on its own, and its disk."""

    def __init__(self, index: int = 0, store: SimulatedStore | None = None) -> None:
        self.store = store or SimulatedStore()
        self.machine = NET.node_from(self.store, index)

    def step(self, now: int, event: object) -> Sequence[Effect]:
        effects = self.machine.step(now, event)  # type: ignore[arg-type]
        for effect in effects:
            if isinstance(effect, Persist):
                self.store.write(effect.writes)
        return effects

    def hear(self, now: int, message: Wire) -> Sequence[Effect]:
        return self.step(now, Received(Verified(PEER, message)))


def blocks_in(effects: Sequence[Effect]) -> list[SealedBlock]:
    return [
        effect.message.block
        for effect in effects
        if isinstance(effect, Broadcast) and isinstance(effect.message, NewBlock)
    ]


def author_of(slot: int) -> int:
    return FORGE.claims(FORGE.root, slot)[0][0]


def test_one_step_is_one_batch_before_everything_visible() -> None:
    node = Node(author_of(1))
    node.step(at(0), Start())
    effects = node.step(at(1), TimerFired(SLOT_TIMER))
    assert [type(effect) for effect in effects].count(Persist) == 1
    assert isinstance(effects[0], Persist)
    (block,) = blocks_in(effects)
    assert node.machine.leader == NET.ids[author_of(1)]
    written = {(write.table, write.key) for write in effects[0].writes}
    assert ("meta", b"slot") in written
    assert ("unfinal", (1).to_bytes(8, "big") + block.header.hash) in written


def test_a_slot_is_authored_once_even_if_time_repeats_itself() -> None:
    node = Node(author_of(1))
    node.step(at(0), Start())
    assert len(blocks_in(node.step(at(1), TimerFired(SLOT_TIMER)))) == 1
    assert blocks_in(node.step(at(1) + 5, TimerFired(SLOT_TIMER))) == []


def test_a_slot_is_authored_once_even_by_a_later_life_that_lost_the_block() -> None:
    node = Node(author_of(1))
    node.step(at(0), Start())
    assert len(blocks_in(node.step(at(1), TimerFired(SLOT_TIMER)))) == 1
    keys = [key for key, _ in node.store.scan("unfinal")]
    node.store.write(tuple(Write("unfinal", key, None) for key in keys))
    again = Node(author_of(1), node.store)
    again.step(at(0), Start())
    assert again.machine.best.height == 0
    assert blocks_in(again.step(at(1), TimerFired(SLOT_TIMER))) == []


def test_slots_follow_the_clock() -> None:
    node = Node()
    effects = node.step(at(3) + 7, Start())
    assert SetTimer(SLOT_TIMER, at(4)) in effects
    assert SetTimer(TICK_TIMER, at(3) + 7 + GOSSIP_MS) in effects
    assert SetTimer(SLOT_TIMER, at(6)) in node.step(at(5), TimerFired(SLOT_TIMER))


def test_a_node_that_is_behind_does_not_author() -> None:
    node = Node(author_of(1))
    node.step(at(0), Start())
    status = Status(50, sha256(b"50"), 51, sha256(b"51"), node.machine._voter.standing())
    for peer in (b"1" * 32, b"2" * 32):
        node.step(at(0), Received(Verified(peer, status)))
    assert blocks_in(node.step(at(1), TimerFired(SLOT_TIMER))) == []


def test_one_liar_does_not_keep_a_node_from_authoring() -> None:
    node = Node(author_of(1))
    node.step(at(0), Start())
    lie = Status(50, sha256(b"50"), 51, sha256(b"51"), node.machine._voter.standing())
    node.hear(at(0), lie)
    assert len(blocks_in(node.step(at(1), TimerFired(SLOT_TIMER)))) == 1


def test_a_new_peer_is_told_where_we_stand() -> None:
    node = Node()
    node.step(at(0), Start())
    (effect,) = node.step(at(0), PeerConnected(PEER))
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Status)
    assert effect.to == PEER


def test_submissions_are_passed_on_once_and_those_of_peers_are_not() -> None:
    node = Node()
    node.step(at(0), Start())
    effects = node.step(at(0), Submitted((transfer(0, 0), transfer(0, 0), transfer(0, 9_999))))
    assert [effect for effect in effects if isinstance(effect, Broadcast)] == [
        Broadcast(Transactions((transfer(0, 0),)))
    ]
    other = Node(1)
    other.step(at(0), Start())
    assert other.hear(at(0), Transactions((transfer(0, 0),))) == []
    assert other.machine.pending == 1


def test_an_unknown_block_is_asked_for_from_who_has_it() -> None:
    node = Node(1)
    node.step(at(0), Start())
    sealed = FORGE.make(FORGE.root, 1)
    status = Status(0, NET.genesis.hash, 1, sealed.header.hash, node.machine._voter.standing())
    node.hear(at(1), status)
    asks = [e for e in node.step(at(1), TimerFired(TICK_TIMER)) if isinstance(e, Send)]
    assert asks == [Send(PEER, BranchRequest(sealed.header.hash, 1))]
    again = [e for e in node.step(at(1) + 1, TimerFired(TICK_TIMER)) if isinstance(e, Send)]
    assert again == [], "one ask at a time"
    node.hear(at(1) + 2, Branch(sealed.header.hash, (sealed,)))
    assert node.machine.best.hash == sealed.header.hash


def test_a_store_of_another_chain_is_refused() -> None:
    node = Node()
    node.step(at(0), Start())
    other = PublicNetwork(4)
    other.genesis = other.ledger.genesis(RULES.genesis_ms + 1)
    with pytest.raises(LocalFault, match="another genesis"):
        other.node_from(node.store, 0)


# -- signatures ------------------------------------------------------------------------------------


def all_hold(machine: PublicNode, message: Wire) -> bool:
    checks = machine.verification(message)
    assert not isinstance(checks, Unknown)
    return all(NET.verifier.verify(c.public_key, c.message, c.signature) for c in checks)


def vote(voter: int = 1, set_id: int = 0, round_: int = 1) -> Votes:
    target = BlockRef(NET.genesis.hash, 0)
    unsigned = signed_vote(Stage.PREVOTE, round_, set_id, CastVote(voter, target, bytes(64)))
    signature = NET.keys[voter % 4].signer.sign(unsigned.signed_bytes(RULES.chain_id))
    return Votes((msgspec.structs.replace(unsigned, signature=signature),))


def test_votes_blocks_and_transactions_name_their_signers() -> None:
    machine = Node().machine
    sealed = FORGE.make(FORGE.root, 1, transactions=[transfer(0, 0)])
    for message in (vote(), NewBlock(sealed), Branch(bytes(32), (sealed,))):
        assert all_hold(machine, message)
    assert len(machine.verification(NewBlock(sealed))) == 2  # type: ignore[arg-type]
    forged = SealedBlock(sealed.block, bytes(64))
    assert not all_hold(machine, NewBlock(forged))
    assert not all_hold(machine, FinalBlocks((forged,), None))
    bad = msgspec.structs.replace(vote().votes[0], signature=bytes(64))
    assert not all_hold(machine, Votes((bad,)))
    assert not all_hold(machine, CatchUp(CompletedRound(0, 1, (bad,), ())))


def test_a_justification_names_its_signers() -> None:
    precommit = SignedPrecommit(1, NET.genesis.hash, 0, bytes(64))
    proof = Justification(1, 0, NET.genesis.hash, 0, (precommit,), ())
    assert not all_hold(Node().machine, FinalBlocks((), proof))


def test_what_no_key_can_make_valid_is_refused_and_later_sets_wait() -> None:
    machine = Node().machine
    sealed = FORGE.make(FORGE.root, 1)
    with pytest.raises(RemoteFault, match="unknown-authority"):
        machine.verification(vote(voter=7))
    with pytest.raises(RemoteFault, match="malformed"):
        machine.verification(NewBlock(reseal(FORGE, sealed, digest=b"")))
    with pytest.raises(RemoteFault, match="wrong-chain"):
        machine.verification(NewBlock(reseal(FORGE, sealed, chain_id=bytes(32))))
    with pytest.raises(RemoteFault, match="mixed-rounds"):
        machine.verification(CatchUp(CompletedRound(0, 2, vote(round_=1).votes, ())))
    with pytest.raises(RemoteFault, match="unexpected-message"):
        machine.verification(sealed)
    assert isinstance(machine.verification(vote(set_id=1)), Unknown)
    with pytest.raises(RemoteFault, match="wrong-set: set 1 where 0 is due"):
        machine.verification(NewBlock(reseal(FORGE, sealed, set_id=1)))
    elsewhere = {"parent": sha256(b"not here"), "height": 2}
    later = NewBlock(reseal(FORGE, sealed, set_id=1, **elsewhere))
    assert isinstance(machine.verification(later), Unknown)
    assert machine.verification(vote(set_id=2)) == [], "of no use yet, and no fault either"


def test_a_branch_whose_answer_was_of_no_use_is_asked_for_from_the_bottom() -> None:
    """It began above what is here, in a set that is not known, so the driver kept it."""
    node, forge = Node(), Forge()
    for made in forge.line(forge.root, 3):
        assert made.sealed is not None
        node.hear(at(9), NewBlock(made.sealed))
    node.hear(at(9), Status(0, NET.genesis.hash, 9, sha256(b"x"), Standing(0, 1, b"", b"", 0)))
    asked: list[int] = []
    for tick in range(24):
        effects = node.step(at(9) + tick * GOSSIP_MS, TimerFired(TICK_TIMER))
        asked += [
            effect.message.from_height
            for effect in effects
            if isinstance(effect, Send) and isinstance(effect.message, BranchRequest)
        ]
    assert asked == [3, 1, 1]


# -- bad input -------------------------------------------------------------------------------------

HASHES = st.sampled_from([NET.genesis.hash, bytes(32), sha256(b"x")])
NUMBERS = st.sampled_from([0, 1, 2, 3, 64, 2**31, 2**63 - 1])
MASKS = st.binary(max_size=8)
STANDINGS = st.builds(Standing, st.sampled_from([0, 0, 1]), NUMBERS, MASKS, MASKS, NUMBERS)
VOTES = st.builds(
    lambda stage, round_, voter, hash_, height: signed_vote(
        Stage(stage), round_, 0, CastVote(voter, BlockRef(hash_, height), bytes(64))
    ),
    st.integers(0, 2),
    NUMBERS,
    st.integers(0, 3),
    HASHES,
    NUMBERS,
)
GOOD = FORGE.make(FORGE.root, 1)
BLOCKS = st.builds(
    partial(reseal, FORGE, GOOD),
    height=NUMBERS,
    round=NUMBERS,
    parent=HASHES,
    timestamp_ms=NUMBERS,
    digest=st.sampled_from([GOOD.header.digest, b"", b"\x94"]),
)
SOME_BLOCKS = st.lists(st.one_of(st.just(GOOD), BLOCKS), max_size=3).map(tuple)
PRECOMMITS = st.lists(
    st.builds(SignedPrecommit, st.integers(0, 9), HASHES, NUMBERS, st.just(bytes(64))), max_size=4
).map(tuple)
JUSTIFICATIONS = st.builds(
    Justification,
    NUMBERS,
    st.just(0),
    st.one_of(HASHES, st.just(GOOD.header.hash)),
    NUMBERS,
    PRECOMMITS,
    st.just(()),
)
MESSAGES = st.one_of(
    st.builds(Status, NUMBERS, HASHES, NUMBERS, HASHES, STANDINGS),
    st.builds(NewBlock, BLOCKS),
    st.builds(BranchRequest, HASHES, NUMBERS),
    st.builds(Branch, HASHES, SOME_BLOCKS),
    st.builds(FinalRequest, NUMBERS, st.booleans()),
    st.builds(FinalBlocks, SOME_BLOCKS, st.one_of(st.none(), JUSTIFICATIONS)),
    st.builds(Votes, st.lists(VOTES, min_size=1, max_size=4).map(tuple)),
    st.builds(VotesRequest, STANDINGS),
    st.builds(CatchUpRequest, NUMBERS, NUMBERS),
    st.builds(
        CatchUp,
        st.builds(
            CompletedRound, st.just(0), NUMBERS, st.lists(VOTES, max_size=6).map(tuple), st.just(())
        ),
    ),
)


@settings(max_examples=examples(120), deadline=None)
@given(st.lists(MESSAGES, max_size=12))
def test_no_message_whatever_its_content_makes_a_step_fail(messages: list[Wire]) -> None:
    """Even as if all signatures held: a Byzantine third signs what it likes."""
    node = Node(1)
    node.step(at(0), Start())
    for number, message in enumerate(messages):
        now = at(0) + 100 * number
        assert decode(encode(message), cast("type[Wire]", Message)) == message
        try:
            node.machine.verification(message)
        except RemoteFault:
            continue
        for effect in node.hear(now, message):
            assert not isinstance(effect, Committed)
            assert not isinstance(effect, Reject) or effect.peer == PEER
        node.step(now, TimerFired(TICK_TIMER))
    assert node.machine.head.height == 0
