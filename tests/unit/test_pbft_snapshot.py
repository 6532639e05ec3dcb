"""The parts of state transfer alone: what is kept for others, who is asked, what is believed."""

import random

from tests.simulation.pbft_cluster import ledger, transfer, validator_set

from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Write
from gridtokenx.core.state_tree import NO_PART, StateLeaf, StatePart, StateTree
from gridtokenx.finality.certificates import CommitCertificate, CommitVote
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock, Proposal
from gridtokenx.pbft.messages import Checkpoint, FetchPart, Part
from gridtokenx.pbft.snapshot import QUESTIONS, Answer, Checkpoints, Offers, Staging, Transfer

PEERS = [sha256(b"peer", bytes((i,))) for i in range(6)]
TIMEOUT_MS = 1_000
LIMIT = 120
PROOF = CommitCertificate(bytes(32), CommitVote(0, 0, 1, bytes(32)), ())


def state(size: int = 300, salt: int = 0) -> StateTree:
    values = {b"key %d" % i: b"value %d" % (i + salt * (i % 7 == 0)) for i in range(size)}
    return StateTree.empty().update(dict(values))


def checkpoint_of(tree: StateTree, height: int = 64) -> Checkpoint:
    genesis = ledger(validator_set(4)).genesis(1)
    fields = {name: getattr(genesis.header, name) for name in genesis.header.__struct_fields__}
    header = type(genesis.header)(**{**fields, "height": height, "state_root": tree.root})
    return Checkpoint(Block(header, ()), PROOF, ())


def begun(tree: StateTree, known: StateTree | None = None, now: int = 0) -> Transfer:
    return Transfer(checkpoint_of(tree), known or StateTree.empty(), TIMEOUT_MS, now)


def answered(tree: StateTree, question: FetchPart) -> Part:
    return Part(question.height, question.prefix, tree.part(question.prefix, LIMIT))


# -- taking over -----------------------------------------------------------------------------------


def test_a_state_comes_from_all_peers_at_once_and_few_questions_are_open() -> None:
    tree, asked = state(), set()
    transfer_ = begun(tree)
    while not transfer_.complete:
        questions = list(transfer_.questions(PEERS, 0))
        assert 1 <= len(questions) <= QUESTIONS
        assert len({peer for peer, _ in questions}) == len(questions)
        for peer, question in questions:
            asked.add(peer)
            assert transfer_.answer(peer, answered(tree, question), 0) is Answer.TAKEN
    assert asked == set(PEERS)
    assert transfer_.tree.root == tree.root
    assert transfer_.deadline_ms() == 0, "adopt it at once"


def test_what_waits_to_be_asked_is_bounded_by_the_depth_not_by_the_state() -> None:
    tree = state(6_000)
    transfer_, most = begun(tree), 0
    while not transfer_.complete:
        for peer, question in list(transfer_.questions(PEERS, 0)):
            transfer_.answer(peer, answered(tree, question), 0)
        most = max(most, len(transfer_._wanted))
    assert most <= 16 * 5 * QUESTIONS


def test_only_what_differs_from_what_is_known_is_asked_for() -> None:
    old, new = state(2_000), state(2_000).update({b"key 5": b"other", b"key 9": None})
    transfer_ = begun(new, old)
    while not transfer_.complete:
        for peer, question in list(transfer_.questions(PEERS, 0)):
            transfer_.answer(peer, answered(new, question), 0)
    assert transfer_.tree.root == new.root
    assert transfer_.parts <= 10


def test_who_is_silent_is_asked_last_and_its_late_answer_still_counts() -> None:
    tree = state()
    transfer_ = begun(tree)
    ((slow, question),) = transfer_.questions(PEERS, 0)
    assert transfer_.deadline_ms() == TIMEOUT_MS
    ((other, again),) = transfer_.questions(PEERS, TIMEOUT_MS)
    assert (again, other != slow) == (question, True)
    assert transfer_.answer(slow, answered(tree, question), TIMEOUT_MS) is Answer.TAKEN
    assert transfer_.answer(other, answered(tree, again), TIMEOUT_MS) is Answer.UNASKED
    assert not transfer_.stalled(9 * TIMEOUT_MS)
    assert transfer_.stalled(12 * TIMEOUT_MS)


def test_a_slow_peer_gets_more_time_if_there_is_no_other() -> None:
    tree, now = state(), 0
    transfer_ = begun(tree)
    waits = []
    for _ in range(6):
        ((_, question),) = transfer_.questions(PEERS[:1], now)
        deadline_ms = transfer_.deadline_ms()
        assert deadline_ms is not None
        waits.append(deadline_ms - now)
        now = deadline_ms
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 16_000]
    assert transfer_.answer(PEERS[0], answered(tree, question), now) is Answer.TAKEN


def test_a_wrong_part_is_told_from_one_that_nobody_asked_for() -> None:
    tree = state()
    transfer_ = begun(tree)
    ((peer, question),) = transfer_.questions(PEERS, 0)
    lie = Part(question.height, question.prefix, StatePart(0, b"", (StateLeaf(b"a", b"b"),)))
    stranger = next(each for each in PEERS if each != peer)
    assert transfer_.answer(stranger, lie, 0) is Answer.UNASKED
    assert transfer_.answer(peer, Part(63, question.prefix, lie.part), 0) is Answer.UNASKED
    assert transfer_.answer(peer, Part(64, b"\x01", lie.part), 0) is Answer.UNASKED
    assert transfer_.answer(peer, lie, 0) is Answer.WRONG
    assert transfer_.answer(peer, lie, 0) is Answer.UNASKED
    ((second, again),) = transfer_.questions([p for p in PEERS if p != peer], 0)
    assert transfer_.answer(second, Part(again.height, b"", NO_PART), 0) is Answer.LACKING
    assert second not in transfer_.servers(PEERS)
    assert not transfer_.arrived()


# -- what lies on the disk -------------------------------------------------------------------------


def write(store: SimulatedStore, writes: "list[Write]") -> None:
    store.write(tuple(writes))
    store.sync()


def test_any_order_of_parts_of_any_states_gives_a_tree_that_the_next_life_goes_on_from() -> None:
    """Parts of several states, cut differently: what is restored is what the transfer knew."""
    for seed in range(20):
        draw, store = random.Random(seed), SimulatedStore()
        staging, known = Staging(store), state(60)
        for round_ in range(4):
            target = state(draw.randint(1, 200), salt=round_)
            transfer_ = Transfer(checkpoint_of(target, 64 + round_), known, TIMEOUT_MS, 0)
            write(store, list(staging.begin(transfer_.checkpoint)))
            for _ in range(draw.randint(0, 30)):
                for peer, question in list(transfer_.questions(PEERS, 0)):
                    part = target.part(question.prefix, draw.choice((0, 60, 400)))
                    transfer_.answer(peer, Part(question.height, question.prefix, part), 0)
                    for prefix, piece in transfer_.arrived():
                        write(store, list(staging.arrived(prefix, piece)))
            known = transfer_.tree
            restored = Staging(store)
            assert restored.onto(state(60)).root == known.root
            assert restored.height == 64 + round_
        write(store, list(staging.clear()))
        assert not list(store.scan("snapshot"))
        assert Staging(store).target() is None


# -- handing out -----------------------------------------------------------------------------------


def executed(height: int, transactions: int = 0) -> ExecutedBlock:
    chain = ledger(validator_set(4))
    parent = chain.genesis(1)
    block, _ = chain.build(parent, Proposal(0, 2), [transfer(0, n) for n in range(transactions)])
    made = checkpoint_of(block.state, height)
    return ExecutedBlock(Block(made.block.header, block.block.transactions), block.state, {}, ())


def test_the_newest_checkpoint_is_kept_and_those_that_somebody_takes_over() -> None:
    kept = Checkpoints(10, 5_000)
    for height in range(1, 31):
        kept.committed(executed(height), PROOF, height * 100)
    assert kept.heights == (30,)
    kept.hold(30, 3_000)
    kept.committed(executed(40), PROOF, 4_000)
    kept.part(FetchPart(30, b""), LIMIT, 6_000)
    kept.committed(executed(50), PROOF, 7_000)
    assert kept.heights == (30, 50), "30 is being taken over, 40 nobody wanted"
    assert kept.part(FetchPart(40, b""), LIMIT, 7_000) == NO_PART
    kept.part(FetchPart(50, b""), LIMIT, 9_000)
    kept.part(FetchPart(30, b""), LIMIT, 9_000)
    kept.committed(executed(60), PROOF, 10_000)
    kept.part(FetchPart(60, b""), LIMIT, 10_000)
    kept.committed(executed(70), PROOF, 10_500)
    assert kept.heights == (50, 60, 70), "however many are asked for, the newest three"


def test_a_block_that_no_message_holds_is_no_checkpoint() -> None:
    kept = Checkpoints(1, 5_000)
    small = executed(1, 3)
    kept.committed(small, PROOF, 0)
    big = ExecutedBlock(small.block, small.state, {}, (bytes(5 * 1024 * 1024),))
    kept.committed(ExecutedBlock(executed(2).block, big.state, {}, big.events), PROOF, 0)
    assert kept.heights == (1,)


def test_a_place_that_cannot_be_is_answered_with_nothing() -> None:
    kept = Checkpoints(1, 5_000)
    kept.committed(executed(1), PROOF, 0)
    for prefix in (bytes((16,)), b"\xff" * 64, bytes(64)):
        assert kept.part(FetchPart(1, prefix), LIMIT, 0) == NO_PART


# -- offers ----------------------------------------------------------------------------------------


def test_one_peer_is_asked_at_a_time_and_the_least_asked_first() -> None:
    offers = Offers(TIMEOUT_MS)
    first = offers.ask(PEERS[:2], 0)
    assert first is not None
    assert offers.worth_waiting()
    assert offers.ask(PEERS[:2], 500) is None
    second = offers.ask(PEERS[:2], 1_000)
    assert {first, second} == set(PEERS[:2])
    assert offers.answered(first), "late, yet asked for"
    assert not offers.worth_waiting() or offers.deadline_ms() == 2_000, "the other still may answer"
    assert second is not None
    assert offers.answered(second)
    assert not offers.answered(second)
    assert offers.ask(PEERS[:2], 1_500) is None, "not at once again"
    third = offers.ask(PEERS[:2], 2_000)
    assert third is not None
    assert not offers.worth_waiting(), "a peer is waited for once"
    assert offers.ask([], 9_000) is None
