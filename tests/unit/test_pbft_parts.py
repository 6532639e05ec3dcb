"""The parts of the replica: marks, journal, log, sync, requests, verification."""

import random
from collections.abc import Iterable
from itertools import pairwise

import msgpack
import pytest
from tests.simulation.pbft_cluster import CHAIN_ID, CLIENTS, signer, transfer
from tests.simulation.pbft_script import Bench, Members

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import LocalFault, Malformed, RemoteFault
from gridtokenx.core.keys import Domain, KeyedHashSigner
from gridtokenx.core.machine import Persist, Unknown, Write
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger import runtime
from gridtokenx.ledger.blocks import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    PROTOCOL_VERSION,
    Block,
)
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import NOBODY
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.log import MAX_BODIES, Slot, VoteLog
from gridtokenx.pbft.marks import MarkedSigner, SigningRefused
from gridtokenx.pbft.messages import (
    FETCH_BLOCKS,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    Commit,
    FetchBlocks,
    Message,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
    Transactions,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.requests import MAX_EXCUSES, Requests, batches
from gridtokenx.pbft.rotation import PERIOD_VIEWS
from gridtokenx.pbft.sync import RANGES, Sync
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.turn import Turn

FOUR = Members(4)
BLOCK = FOUR.block(transactions=[transfer(0, 0)])


def persist(store: SimulatedStore, turn: Turn) -> None:
    for effect in turn.effects():
        if isinstance(effect, Persist):
            store.write(effect.writes)
            store.sync()


# -- messages --------------------------------------------------------------------------------------


def every_message() -> list[object]:
    changes = [FOUR.view_change(i, 1, prepared=[FOUR.prepared(BLOCK)]) for i in (0, 2, 3)]
    return [
        FOUR.pre_prepare(BLOCK),
        FOUR.prepare(1, BLOCK),
        FOUR.commit(1, BLOCK),
        Suspect(0, 3),
        FOUR.view_change(1, 2, head=FOUR.certified(BLOCK)),
        FOUR.new_view(1, changes),
        Status(0, 2, False, 9),
        FetchBlocks(3, 16),
        CertifiedBlocks(1, (CertifiedBlock(BLOCK.block, FOUR.certificate(BLOCK)),)),
        Transactions((transfer(0, 0), transfer(1, 0))),
    ]


@pytest.mark.parametrize("message", every_message(), ids=lambda m: type(m).__name__)
def test_every_message_is_its_bytes(message: object) -> None:
    raw = encode(message)
    assert decode(raw, Message) == message
    assert msgpack.unpackb(raw, strict_map_key=False)[0] == type(message).__struct_config__.tag


@pytest.mark.parametrize(
    "message",
    [
        FetchBlocks(1, FETCH_BLOCKS + 1),
        FetchBlocks(-1, 1),
        Prepare(FOUR.ballot(BLOCK, 0), 70_000, bytes(64)),
        Suspect(0, 2**63),
    ],
)
def test_out_of_bounds_is_malformed(message: object) -> None:
    with pytest.raises(Malformed):
        decode(encode(message), Message)


def test_a_new_view_of_the_largest_network_fits_a_frame() -> None:
    members = Members(21)
    block = members.block()
    changes = [
        members.view_change(
            i, 1, head=members.certified(block), prepared=[members.prepared(members.block(block))]
        )
        for i in range(14)
    ]
    assert len(encode(members.new_view(1, changes))) < 64 * 1024


# -- marks -----------------------------------------------------------------------------------------


def test_marks_refuse_to_sign_twice_whatever_is_asked() -> None:
    store = SimulatedStore()
    marked = MarkedSigner(signer(0), store)
    turn = Turn(0)
    marked.sign(turn, Domain.PBFT_PREPARE, (0, 1, 5), b"one")
    assert marked.sign(turn, Domain.PBFT_PREPARE, (0, 1, 5), b"one"), "the same again is harmless"
    for position, what in (((0, 1, 5), b"other"), ((0, 1, 4), b"x"), ((0, 0, 9), b"x")):
        with pytest.raises(SigningRefused):
            marked.sign(turn, Domain.PBFT_PREPARE, position, what)
    marked.sign(turn, Domain.PBFT_COMMIT, (0, 1, 5), b"another kind")
    marked.sign(turn, Domain.PBFT_PREPARE, (0, 2, 3), b"a later view may go back in height")
    persist(store, turn)
    with pytest.raises(SigningRefused):
        MarkedSigner(signer(0), store).sign(Turn(0), Domain.PBFT_PREPARE, (0, 2, 3), b"amnesia")


def test_a_signature_cannot_be_had_without_its_mark() -> None:
    turn = Turn(0)
    MarkedSigner(signer(0), SimulatedStore()).sign(turn, Domain.PBFT_COMMIT, (0, 0, 1), b"x")
    (effect,) = turn.effects()
    assert isinstance(effect, Persist)


def test_a_replica_without_memory_but_with_marks_is_silent_rather_than_double() -> None:
    """The log is lost, the marks are not: lock amnesia costs a vote, never agreement."""
    bench = Bench(1)
    first, second = FOUR.block(), FOUR.block(after_ms=1_001)
    bench.now = first.header.timestamp_ms
    bench.hear(bench.pre_prepare(first))
    for table in (bench.store._live, bench.store._durable):
        table["log"] = {}
    bench.live()
    bench.hear(bench.pre_prepare(second))
    assert [m.ballot.block_hash for m in bench.take(Prepare)] == [first.hash]


# -- lives -----------------------------------------------------------------------------------------


def scripted_inputs(bench: Bench) -> list[object]:
    """Decide block 1 in view 0, prepare block 2, change the view, decide it there."""
    one = bench.block(transactions=[transfer(0, 0)])
    two = bench.block(one)
    changes = [bench.view_change(i, 1, head=bench.certified(one)) for i in (0, 1)]
    changes.append(
        bench.view_change(3, 1, head=bench.certified(one), prepared=[bench.prepared(two)])
    )
    return [
        bench.pre_prepare(one),
        bench.prepare(1, one),
        bench.prepare(3, one),
        bench.commit(0, one),
        bench.commit(1, one),
        bench.pre_prepare(two),
        bench.prepare(3, two),
        changes[0],
        changes[2],
        bench.new_view(1, changes),
        bench.prepare(3, two, 1),
        bench.commit(1, two, 1),
        bench.commit(3, two, 1),
    ]


def rivals(bench: Bench) -> list[object]:
    """What a traitor would say to a forgetful replica: other blocks wherever it voted."""
    one = bench.block(transactions=[transfer(0, 0)])
    return [
        bench.pre_prepare(bench.block(after_ms=1_777)),
        bench.pre_prepare(bench.block(one, after_ms=1_777)),
        bench.new_view(1, [bench.view_change(i, 1) for i in (0, 1, 3)]),
        bench.pre_prepare(bench.block(view=1, after_ms=1_888), 1),
        bench.pre_prepare(bench.block(one, view=1, after_ms=1_888), 1),
    ]


def votes(messages: list[object]) -> set[tuple[str, int, int, bytes]]:
    out = set()
    for message in messages:
        if isinstance(message, Prepare):
            ballot = message.ballot
            out.add(("prepare", ballot.view, ballot.height, ballot.block_hash))
        elif isinstance(message, Commit):
            vote = message.vote
            out.add(("commit", vote.view, vote.height, vote.block_hash))
    return out


@pytest.mark.parametrize("crash_after", range(13))
def test_a_life_that_begins_anywhere_contradicts_nothing_and_votes_again(crash_after: int) -> None:
    bench = Bench(2)
    inputs = scripted_inputs(bench)
    bench.now += 2_500
    bench.hear(*inputs[:crash_after])
    bench.live()
    bench.hear(*rivals(bench))
    bench.hear(*inputs)
    assert_consistent(votes(bench.sent))
    undisturbed = Bench(2)
    undisturbed.now = bench.now
    undisturbed.hear(*inputs[:crash_after])
    undisturbed.live()
    undisturbed.hear(*inputs)
    assert undisturbed.replica.head.height == 2, "it goes on where it was"


def test_every_prefix_of_its_batches_is_a_life() -> None:
    """All batches of a life, cut anywhere: restored, it says nothing that contradicts what left."""
    bench = Bench(2)
    inputs = scripted_inputs(bench)
    bench.now += 2_500
    batches_: list[Persist] = []
    left: list[set[tuple[str, int, int, bytes]]] = [set()]
    for message in inputs:
        before = len(bench.sent)
        bench.hear(message)
        found = [effect for effect in bench.effects if isinstance(effect, Persist)]
        batches_ += found
        said = votes(bench.sent[before:])
        assert found or not said, "no vote without a batch"
        left += [left[-1] | said] if found else []
    for kept in range(len(batches_) + 1):
        life = Bench(2)
        for batch in batches_[:kept]:
            life.store.write(batch.writes)
            life.store.sync()
        life.now = bench.now
        life.live()
        life.hear(*rivals(life), *inputs)
        assert_consistent(votes(life.sent) | left[kept])


def batches_of_a_life(rotation_blocks: int) -> list[Persist]:
    bench = Bench(2, rotation_blocks=rotation_blocks)
    bench.now += 2_500
    found = [effect for effect in bench.effects if isinstance(effect, Persist)]
    for message in rotated(bench) if rotation_blocks else scripted_inputs(bench):
        bench.hear(message)
        found += [effect for effect in bench.effects if isinstance(effect, Persist)]
    return found


def rotated(bench: Bench) -> list[object]:
    """Decide block 1; the next period's leader fails, and block 2 is decided at its second attempt."""
    one = bench.block()
    view = PERIOD_VIEWS + 1
    two = bench.block(one, view=view)
    changes = [bench.view_change(i, view, head=bench.certified(one)) for i in (0, 1, 3)]
    votes_ = [bench.prepare(0, one), bench.prepare(1, one), bench.prepare(3, one)]
    return [
        bench.pre_prepare(one),
        *votes_[1:],
        *(bench.commit(i, one) for i in (0, 1)),
        *changes[:2],
        changes[2],
        *(bench.commit(i, two, view) for i in (0, 1, 3)),
        Body(two.block),
    ]


@pytest.mark.parametrize("rotation_blocks", [0, 1])
def test_a_torn_last_batch_is_told_or_harmless(rotation_blocks: int) -> None:
    """The real store's batches are atomic; a disk on which they are not costs at most this replica.

    Of the last batch any part survives: what it would have sent never left. The next life says so
    (`LocalFault`), or contradicts nothing, and answers whatever it hears.
    """
    draw, told, lives = random.Random(7), 0, 0
    batches_ = batches_of_a_life(rotation_blocks)
    for kept, torn in enumerate(batches_):
        cuts = [torn.writes[:i] for i in range(1, len(torn.writes))]
        cuts += [tuple(w for w in torn.writes if draw.random() < 0.5) for _ in range(12)]
        for survived in cuts:
            life = Bench(2, rotation_blocks=rotation_blocks)
            life.store, life.now = stored(batches_[:kept], survived), life.now + 2_500
            lives += 1
            try:
                life.live()
                inputs = rotated(life) if rotation_blocks else scripted_inputs(life)
                life.hear(*(() if rotation_blocks else rivals(life)), *inputs)
            except LocalFault:
                told += 1
                continue
            assert_consistent(votes(life.sent))
    assert 0 < told < lives


def assert_consistent(cast: set[tuple[str, int, int, bytes]]) -> None:
    positions = [vote[:3] for vote in cast]
    assert len(positions) == len(set(positions)), "one vote per kind, view and height"


def stored(batches_: Iterable[Persist], *more: tuple[Write, ...]) -> SimulatedStore:
    store = SimulatedStore()
    for writes in (*(batch.writes for batch in batches_), *more):
        store.write(writes)
        store.sync()
    return store


def test_a_home_of_another_chain_is_refused() -> None:
    bench = Bench(1)
    other = FOUR.ledger.genesis(1)
    with pytest.raises(LocalFault, match="another genesis"):
        Replica.restore(bench.store, bench.ledger, bench.validators, signer(1), other, Timing())


def test_a_home_of_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on by other rules than those that its blocks were made by."""
    bench = Bench(1)
    bench.live()
    monkeypatch.setattr("gridtokenx.ledger.records.PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with pytest.raises(LocalFault, match="made by protocol version"):
        bench.live()


def test_a_damaged_home_and_an_impossible_window_are_refused() -> None:
    bench = Bench(1)
    decided = bench.block()
    bench.now = decided.header.timestamp_ms
    bench.hear(bench.pre_prepare(decided), *(bench.commit(i, decided) for i in (0, 2, 3)))
    assert bench.replica.head.height == 1
    bench.store.write((Write("finality", (1).to_bytes(8, "big"), None),))
    with pytest.raises(LocalFault, match="without its certificate"):
        bench.live()
    with pytest.raises(LocalFault, match="window 17"):
        Bench(1, timing=Timing(window=17))


def test_a_certified_block_that_executes_differently_stops_the_node() -> None:
    """The quorum cannot be wrong about the chain: this replica is, and says what to do."""
    bench = Bench(1)
    wrong = BLOCK.block.header
    header = type(wrong)(
        **{n: getattr(wrong, n) for n in wrong.__struct_fields__ if n != "state_root"},
        state_root=bytes(32),
    )
    block = type(BLOCK.block)(header, BLOCK.block.transactions)
    bench.hear(Status(0, 0, True, 1), sender=0)
    executed = type(BLOCK)(block, BLOCK.state, {}, ())
    answer = CertifiedBlocks(1, (CertifiedBlock(block, FOUR.certificate(executed)),))
    with pytest.raises(LocalFault, match="gtx verify"):
        bench.hear(answer, sender=0)


# -- log -------------------------------------------------------------------------------------------


def test_the_log_is_bounded_by_the_set() -> None:
    log = VoteLog(CHAIN_ID, FOUR.validators)
    for view in range(1, 50):
        assert log.add_prepare(FOUR.prepare(2, BLOCK, view)) is None
        assert log.add_commit(FOUR.commit(2, BLOCK, view)) is None
    slot = log.slot(1)
    assert (len(slot.prepares), len(slot.commits)) == (1, 1)
    assert slot.prepares[2].ballot.view == 49
    for stamp in range(MAX_BODIES + 10):
        slot.keep(FOUR.block(after_ms=1_000 + stamp).block)
    assert len(slot.bodies) == MAX_BODIES


def test_contradicting_votes_are_evidence_that_verifies() -> None:
    log = VoteLog(CHAIN_ID, FOUR.validators)
    rival = FOUR.block(after_ms=1_001)
    for first, second, add in (
        (FOUR.prepare(2, BLOCK), FOUR.prepare(2, rival), log.add_prepare),
        (FOUR.commit(2, BLOCK), FOUR.commit(2, rival), log.add_commit),
    ):
        assert add(first) is None
        proof = add(second)
        assert proof is not None
        assert proof.offender == 2
        for vote in (proof.first, proof.second):
            assert signer(2).sign(vote.payload) == vote.signature
        assert proof.first.payload != proof.second.payload


def test_a_slot_knows_nothing_of_a_view_that_ended() -> None:
    slot = Slot(1)
    slot.ballot, slot.proposal = FOUR.ballot(BLOCK, 0), bytes(64)
    slot.keep(BLOCK.block)
    slot.end_view()
    assert (slot.ballot, slot.proposal) == (None, b"")
    assert slot.bodies


# -- sync ------------------------------------------------------------------------------------------


def chain(length: int) -> list[CertifiedBlock]:
    blocks = [FOUR.block()]
    for _ in range(length - 1):
        blocks.append(FOUR.block(blocks[-1]))
    return [CertifiedBlock(b.block, FOUR.certificate(b)) for b in blocks]


CHAIN = chain(40)
PEERS = [bytes((i,)) * 32 for i in range(4)]


def test_ranges_are_asked_of_several_peers_and_taken_in_order() -> None:
    sync = Sync(1_000)
    for peer in PEERS[:3]:
        sync.claim(peer, 40)
    asked = sync.questions(0, 0)
    assert [(q.first, q.count) for _, q in asked] == [(1, 16), (17, 16), (33, 16)]
    assert len({peer for peer, _ in asked}) == 3
    assert sync.questions(0, 0) == []
    for peer, question in reversed(asked):
        blocks = CHAIN[question.first - 1 : question.first - 1 + question.count]
        assert sync.answer(peer, CertifiedBlocks(question.first, tuple(blocks)))
    for height in range(1, 41):
        found = sync.take(height)
        assert found is not None
        assert found[1].block.height == height


def test_a_peer_that_does_not_answer_is_replaced_and_then_asked_last() -> None:
    sync = Sync(1_000)
    sync.claim(PEERS[0], 10**15)
    (first,) = sync.questions(0, 0)
    assert first[0] == PEERS[0]
    sync.claim(PEERS[1], 40)
    assert sync.deadline_ms() == 1_000
    again = dict(reversed(pair) for pair in ((q.first, p) for p, q in sync.questions(0, 1_000)))
    assert again[PEERS[1]] == 1
    sync.claim(PEERS[0], 10**15)
    assert not sync.answer(PEERS[2], CertifiedBlocks(1, tuple(CHAIN[:16]))), "nobody asked it"


def test_a_peer_that_is_late_has_twice_the_time_the_next_time() -> None:
    """Or nobody would ever catch up on a network that is slower than the timeout."""
    sync, now, waits = Sync(1_000), 0, []
    for _ in range(8):
        sync.claim(b"slow", 5)
        ((peer, question),) = sync.questions(0, now)
        assert (peer, question.first) == (b"slow", 1)
        deadline_ms = sync.deadline_ms()
        assert deadline_ms is not None
        waits.append(deadline_ms - now)
        now = deadline_ms
        assert sync.questions(0, now) == [], "not before it says anew where it is"
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 32_000, 32_000]


def test_what_waits_for_a_peer_that_was_late_is_asked_of_an_idle_one_that_was_not() -> None:
    """And whichever answers first counts, so that nobody is worse off on a slow network."""
    sync = Sync(1_000)
    for now in (0, 1_000, 3_000):
        assert sync.questions(0, now) == [], "what it claimed is forgotten with its failure"
        sync.claim(PEERS[0], 10**15)
        assert [peer for peer, _ in sync.questions(0, now)] == [PEERS[0]]
    assert sync.deadline_ms() == 7_000
    sync.claim(PEERS[1], 40)
    ((other, question),) = [each for each in sync.questions(0, 4_000) if each[1].first == 1]
    assert (other, question.count) == (PEERS[1], 16)
    assert sync.deadline_ms() == 5_000
    assert sync.answer(PEERS[0], CertifiedBlocks(1, ())), "it has nothing after all"
    assert sync.answer(PEERS[1], CertifiedBlocks(1, tuple(CHAIN[:16])))
    assert not sync.answer(PEERS[0], CertifiedBlocks(1, tuple(CHAIN[:16]))), "not waited for now"
    assert sync.has(16)


def test_claims_cannot_make_it_ask_or_keep_without_bound() -> None:
    sync = Sync(1_000)
    for index in range(1_000):
        sync.claim(index.to_bytes(32, "big"), 10**15)
    assert len(sync.questions(0, 0)) == RANGES
    assert len(sync._claims) <= 256


def test_wrong_heights_and_empty_answers_end_trust() -> None:
    for blocks in ((), tuple(CHAIN[5:9])):
        sync = Sync(1_000)
        sync.claim(PEERS[0], 40)
        (asked,) = sync.questions(0, 0)
        assert sync.answer(asked[0], CertifiedBlocks(1, blocks))
        assert sync.take(1) is None
        assert not sync.behind(0)


# -- requests --------------------------------------------------------------------------------------


def test_gossip_is_cut_into_bounded_messages() -> None:
    many = [transfer(0, nonce) for nonce in range(600)]
    cut = list(batches(many))
    assert [len(batch) for batch in cut] == [256, 256, 88]
    assert [t for batch in cut for t in batch] == many


def test_only_what_could_have_been_included_is_overdue() -> None:
    requests = Requests(FOUR.ledger, Pool())
    head = FOUR.genesis
    ready, gap = transfer(0, 0), transfer(1, 3)
    for transaction in (ready, gap):
        assert requests.add(head, transaction, 0)
    assert not requests.add(head, ready, 0), "known"
    assert requests.overdue(head, 400, 1_000) == ([], False)
    assert requests.overdue(head, 500, 1_000) == ([ready], False)
    assert requests.overdue(head, 1_000, 1_000) == ([ready], True)
    requests.restart_waits(1_000)
    assert requests.overdue(head, 1_400, 1_000) == ([], False)
    included = FOUR.block(transactions=[ready])
    requests.committed(included, NOBODY, 1_500)
    assert requests.overdue(included, 9_000, 1_000) == ([], False)
    assert len(requests.pool) == 1


def test_what_the_primary_has_proposed_it_does_not_omit() -> None:
    requests = Requests(FOUR.ledger, Pool())
    proposed, left_out = transfer(0, 0), transfer(1, 0)
    for transaction in (proposed, left_out):
        requests.add(FOUR.genesis, transaction, 0)
    both = {proposed.id, left_out.id}
    assert requests.overdue(FOUR.genesis, 1_000, 1_000, {proposed.id}, 1) == ([left_out], True)
    assert requests.overdue(FOUR.genesis, 1_000, 1_000, both, 1) == ([], False)
    assert requests.overdue(FOUR.genesis, 1_000, 1_000) == ([proposed, left_out], True)


def test_what_is_proposed_and_never_decided_is_excused_for_so_long_only() -> None:
    requests, proposed = Requests(FOUR.ledger, Pool()), transfer(0, 0)
    requests.add(FOUR.genesis, proposed, 0)
    ids = {proposed.id}
    assert requests.overdue(FOUR.genesis, 1_499, 1_000, ids, 500) == ([], False)
    assert requests.overdue(FOUR.genesis, 1_500, 1_000, ids, 500) == ([proposed], True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty transfers fill a block; a sender's fair share are five."""
    monkeypatch.setattr(runtime, "MAX_BLOCK_WEIGHT", 1_200)
    limits = (MAX_BLOCK_TRANSACTIONS, MAX_BLOCK_BYTES, 1_200)
    monkeypatch.setattr("gridtokenx.pbft.requests._LIMITS", limits)


def waits_through(
    blocks: list[list[Transaction]],
    pending: Iterable[Transaction] = (),
    proposer: bytes = NOBODY,
) -> bool:
    """Whether `transfer(3, 0)` counts as omitted after a second for each block that lacks it."""
    requests = Requests(FOUR.ledger, Pool())
    for transaction in pending:
        assert requests.add(FOUR.genesis, transaction, 0)
    requests.add(FOUR.genesis, transfer(3, 0), 1)
    requests.committed(FOUR.genesis, NOBODY, 1)
    head, now = FOUR.genesis, 1
    for transactions in blocks:
        head = FOUR.block(head, transactions=transactions)
        now += 1_000
        requests.committed(head, proposer, now)
    return requests.overdue(head, now, 3_000)[1]


def filled(height: int) -> list[Transaction]:
    """A full block of three clients' fair shares."""
    return [transfer(c, 5 * height + i) for i in range(5) for c in range(3)]


FULL = [filled(height) for height in range(4)]
OVERLOAD = [transaction for block in FULL for transaction in block]


@pytest.mark.usefixtures("small_blocks")
def test_blocks_full_of_others_earlier_work_excuse_the_primary() -> None:
    assert waits_through([[]] * 4)
    assert not waits_through(FULL, pending=OVERLOAD)


@pytest.mark.usefixtures("small_blocks")
def test_a_primary_cannot_excuse_an_omission_by_filler() -> None:
    """Neither with what nobody else has heard of, nor with its own, nor with one friend's."""
    friend = [[transfer(0, 20 * height + i) for i in range(20)] for height in range(4)]
    accomplice = [t for block in friend for t in block]
    assert waits_through(FULL), "made up on the spot"
    assert waits_through(friend, pending=accomplice), "one sender's"
    two = [[t for t in block if t.body.sender != CLIENTS[2].public_key] for block in FULL]
    assert not waits_through(two, pending=OVERLOAD)
    assert waits_through(two, pending=OVERLOAD, proposer=CLIENTS[0].public_key), "its own"


@pytest.mark.usefixtures("small_blocks")
def test_what_comes_later_is_no_excuse() -> None:
    requests = Requests(FOUR.ledger, Pool())
    requests.add(FOUR.genesis, transfer(3, 0), 0)
    requests.committed(FOUR.genesis, NOBODY, 0)
    head = FOUR.genesis
    for height, block in enumerate(FULL, start=1):
        for transaction in block:
            requests.add(head, transaction, 1_000 * height + 2_000)
        head = FOUR.block(head, transactions=block)
        requests.committed(head, NOBODY, 1_000 * height + 2_001)
    assert requests.overdue(head, 6_002, 6_000)[1]


@pytest.mark.usefixtures("small_blocks")
def test_excuses_are_bounded_whatever_was_there_before() -> None:
    blocks = [filled(height) for height in range(MAX_EXCUSES + 3)]
    assert waits_through(blocks, pending=[t for block in blocks for t in block])


def test_an_early_transaction_pulls_no_later_ones_of_its_sender_forward() -> None:
    requests = Requests(FOUR.ledger, Pool())
    arrivals = [transfer(0, 1), transfer(1, 0), transfer(0, 0), transfer(1, 1), transfer(0, 2)]
    for now, transaction in enumerate(arrivals):
        requests.add(FOUR.genesis, transaction, now)
    assert list(requests.candidates()) == [arrivals[i] for i in (1, 2, 0, 3, 4)]


@pytest.mark.usefixtures("small_blocks")
def test_nobody_has_more_than_a_fair_share_while_others_wait() -> None:
    requests = Requests(FOUR.ledger, Pool())
    for transaction in [*(transfer(0, nonce) for nonce in range(6)), transfer(1, 0)]:
        requests.add(FOUR.genesis, transaction, 0)
    order = [(CLIENTS.index(by(t)), t.body.nonce) for t in requests.candidates()]
    assert order == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (0, 4), (0, 5)]


def by(transaction: Transaction) -> KeyedHashSigner:
    (client,) = (each for each in CLIENTS if each.public_key == transaction.body.sender)
    return client


# -- verification ----------------------------------------------------------------------------------


def test_every_signature_of_a_nested_message_is_named_once() -> None:
    bench = Bench(1)
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(BLOCK)]) for i in (0, 2, 3)]
    checks = bench.replica.verification(bench.new_view(1, changes))
    assert not isinstance(checks, Unknown)
    assert len(checks) == len(set(checks))
    # the new-view, three view-changes, one pre-prepare and two prepares of the certificate, one O
    assert len(checks) == 1 + 3 + 3 + 1
    keys = {check.public_key for check in checks}
    assert keys == set(bench.validators.members)


def test_a_proposals_transactions_are_checked_with_it() -> None:
    bench = Bench(1)
    checks = bench.replica.verification(bench.pre_prepare(BLOCK))
    assert not isinstance(checks, Unknown)
    assert len(checks) == 2


def test_what_anyone_may_repeat_costs_no_signatures() -> None:
    """10,000 small transactions fit a frame: two seconds of checks, if it is checked unasked."""
    bench = Bench(1)
    block = bench.block(transactions=[transfer(client, 0) for client in range(4)])
    forged = Block(block.block.header, (transfer(0, 9),))
    proposal = bench.pre_prepare(block)
    new_view = bench.new_view(2, [bench.view_change(i, 2) for i in (0, 2, 3)])
    assert len(bench.replica.verification(proposal)) == 5  # type: ignore[arg-type]  # no `Unknown`
    assert len(bench.replica.verification(new_view)) == 4  # type: ignore[arg-type]
    assert bench.replica.verification(Body(block.block)) == ()
    bench.hear(Body(forged), Body(block.block))
    assert len(bench.replica._log) == 0, "nobody asked for it"
    bench.hear(new_view)
    assert bench.replica.verification(proposal) == (), "of a view that is over"
    bench.hear(*(bench.commit(i, block, 2) for i in (0, 2, 3)), Body(forged))
    assert bench.rejected == ["wrong-body"], "its hash was asked for"
    bench.hear(Body(block.block))
    assert bench.replica.head.hash == block.hash
    assert bench.replica.verification(bench.pre_prepare(block, 6)) == (), "a decided height"
    bench.hear(bench.new_view(3, [bench.view_change(i, 3) for i in (0, 2, 3)]))
    assert bench.replica.verification(new_view) == ()
    bench.take(Prepare)
    bench.hear(PrePrepare(7, forged, bytes(64)), PrePrepare(2, bench.block(block).block, bytes(64)))
    assert not bench.replica._early
    assert not bench.take(Prepare)


def test_a_later_set_is_unknown_and_an_impossible_voter_refused() -> None:
    bench = Bench(1)
    prepare = bench.prepare(2, BLOCK)
    later = Prepare(type(prepare.ballot)(7, 0, 1, BLOCK.hash), 2, prepare.signature)
    assert isinstance(bench.replica.verification(later), Unknown)
    with pytest.raises(RemoteFault, match="unknown-replica"):
        bench.replica.verification(Prepare(prepare.ballot, 4, prepare.signature))
    with pytest.raises(RemoteFault, match="unexpected-message"):
        bench.replica.verification(BLOCK.block)


def test_votes_that_change_nothing_are_not_even_checked() -> None:
    """At n = 21 a third of all signatures: the paper's watermarks, and prepares beyond a quorum."""
    bench = Bench(1)
    other = bench.block(transactions=(transfer(1, 0),))
    bench.hear(bench.pre_prepare(BLOCK))
    late, contradiction = bench.prepare(3, BLOCK), bench.prepare(3, other)
    assert len(bench.replica.verification(late)) == 1  # type: ignore[arg-type]  # no `Unknown`
    bench.hear(bench.prepare(2, BLOCK))
    assert bench.take(Commit), "it is prepared now"
    assert bench.replica.verification(late) == ()
    assert len(bench.replica.verification(contradiction)) == 1  # type: ignore[arg-type]
    assert len(bench.replica.verification(bench.commit(3, BLOCK))) == 1  # type: ignore[arg-type]
    slot = bench.replica._log.slot(BLOCK.height)
    bench.hear(Prepare(late.ballot, late.replica, bytes(64)))
    assert 3 not in slot.prepares, "what was not checked is not kept"
    bench.hear(bench.commit(0, BLOCK), bench.commit(2, BLOCK))
    assert bench.replica.head.hash == BLOCK.hash
    for vote in (late, contradiction, bench.commit(3, BLOCK)):
        assert bench.replica.verification(vote) == ()
    before = bench.replica._log
    bench.hear(
        Commit(bench.commit(3, BLOCK).vote, 3, bytes(64)), Prepare(late.ballot, 3, bytes(64))
    )
    assert len(before) == 0
    assert bench.rejected == []


def test_what_was_settled_stays_settled_in_later_views_and_lives() -> None:
    """A vote may wait for its turn, unchecked, while its view ends: it must not count then either."""
    bench = Bench(1)
    bench.hear(bench.pre_prepare(BLOCK), bench.prepare(2, BLOCK))
    late = bench.prepare(3, BLOCK)
    assert bench.replica.verification(late) == ()
    changes = [bench.view_change(i, 2, prepared=[bench.prepared(BLOCK)]) for i in (0, 2, 3)]
    bench.hear(*changes[:2])
    assert bench.replica.view == 2
    assert bench.replica.verification(late) == ()
    bench.hear(Prepare(late.ballot, late.replica, bytes(64)))
    assert 3 not in bench.replica._log.slot(BLOCK.height).prepares
    bench.live()
    assert bench.replica.verification(late) == ()


def test_exchanged_transactions_do_not_accuse_the_primary() -> None:
    """Its signature covers the header; who relays another body is the liar."""
    bench = Bench(1)
    proposal = bench.pre_prepare(BLOCK)
    altered = PrePrepare(0, type(BLOCK.block)(BLOCK.block.header, ()), proposal.signature)
    bench.now = BLOCK.header.timestamp_ms
    bench.hear(altered, sender=3)
    assert bench.rejected == ["wrong-body"]
    assert not bench.take(Suspect)
    bench.hear(proposal)
    assert bench.take(Prepare)


# -- timing ----------------------------------------------------------------------------------------


def test_patience_doubles_up_to_its_end() -> None:
    timing = Timing(view_timeout_ms=1_000, longest_timeout_ms=60_000)
    waits = [timing.patience_ms(attempt) for attempt in range(100)]
    assert waits[:4] == [1_000, 2_000, 4_000, 8_000]
    assert all(later >= earlier for earlier, later in pairwise(waits))
    assert waits[-1] == 60_000
