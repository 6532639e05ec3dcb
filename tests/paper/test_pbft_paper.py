"""Castro & Liskov, "Practical Byzantine Fault Tolerance" (OSDI 1999), rule by rule.

Each test names the section and states the paper's rule; where ours differs it says so. The replica
under test is alone on a bench: the test plays the others with their real keys.
"""

from itertools import combinations

import pytest
from msgspec import structs
from tests.simulation.pbft_cluster import CHAIN_ID, CLIENTS, VERIFIER, transfer
from tests.simulation.pbft_script import Bench

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import Committed, Persist, Unknown
from gridtokenx.finality.certificates import CommitCertificate, verify_certificate
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import load_finality
from gridtokenx.pbft.messages import (
    Body,
    CertifiedBlocks,
    Commit,
    FetchBlocks,
    FetchBody,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
    Transactions,
    ViewChange,
)
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.view_change import ViewChangeFault, check_view_change, choose


def committed_bench(index: int = 1, n: int = 4) -> Bench:
    """A replica that has committed block 1."""
    bench = Bench(index, n)
    bench.decide(bench.block())
    return bench


# -- 4.1 the client --------------------------------------------------------------------------------


def test_4_1_a_request_reaches_all_replicas() -> None:
    """A client that hears no reply sends to all. Ours differs: whoever it told, tells all at once."""
    bench = Bench(1)
    bench.submit(transfer(0, 0))
    (gossip,) = bench.take(Transactions)
    assert gossip.transactions == (transfer(0, 0),)


def test_4_1_requests_that_follow_at_once_are_told_together() -> None:
    """Ours differs: one message for many; the first waits for nobody, for a chain may be idle."""
    bench = Bench(1)
    bench.submit(transfer(0, 0))
    bench.submit(transfer(0, 1))
    bench.submit(transfer(0, 2))
    (first,) = bench.take(Transactions)
    assert first.transactions == (transfer(0, 0),)
    bench.fire("gossip")
    (gathered,) = bench.take(Transactions)
    assert gathered.transactions == (transfer(0, 1), transfer(0, 2))
    bench.fire("gossip")
    assert bench.take(Transactions) == []
    bench.submit(transfer(0, 3))
    assert len(bench.take(Transactions)) == 1, "nothing was gathered: the next waits for nobody"


def test_4_1_what_its_source_gives_to_all_is_passed_on_only_if_it_waits() -> None:
    """Ours differs: a broker hands readings to every replica, so most need not be told again."""
    bench = Bench(1)
    bench.submit(transfer(0, 0), everywhere=True)
    assert bench.take(Transactions) == []
    bench.fire("request")
    primary, *to_all = bench.take(Transactions)
    assert [each.transactions for each in (primary, *to_all)] == [(transfer(0, 0),)] * 2
    bench.fire("request")
    assert len(bench.take(Transactions)) == 1, "the primary is reminded, the others were told"


def test_4_1_what_was_included_meanwhile_is_never_passed_on() -> None:
    bench = Bench(1)
    bench.submit(transfer(0, 0), everywhere=True)
    block = bench.block(transactions=(transfer(0, 0),))
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    bench.hear(*(bench.commit(index, block) for index in (0, 2, 3)))
    assert bench.committed == [1]
    bench.submit(transfer(0, 1), everywhere=True)
    bench.take(Transactions)
    bench.fire("request")
    bench.fire("request")
    sent = [t for message in bench.take(Transactions) for t in message.transactions]
    assert set(sent) == {transfer(0, 1)}


def test_4_1_a_request_is_signed_by_its_client_wherever_it_comes_from() -> None:
    """From the client, in gossip, inside a proposal: a faulty primary cannot make one up."""
    bench = Bench(1)
    block = bench.block(transactions=(transfer(0, 0),))
    for message in (Transactions((transfer(0, 0),)), bench.pre_prepare(block)):
        checks = bench.replica.verification(message)
        assert not isinstance(checks, Unknown)
        assert CLIENTS[0].public_key in {check.public_key for check in checks}


def test_4_1_a_request_is_executed_exactly_once() -> None:
    """By the client's timestamp. Ours differs: by the account's nonce, in the state itself."""
    bench = Bench(1)
    block = bench.block(transactions=(transfer(0, 0),))
    bench.decide(block)
    bench.submit(transfer(0, 0))
    assert bench.replica.pending == 0
    header = bench.block(block).header
    again = Block(header, (transfer(0, 0),))
    bench.now += 1_000
    what = bench.ballot(again, 0).signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
    bench.hear(PrePrepare(0, again, bench.signer(0).sign(what)))
    assert not bench.take(Prepare)
    assert bench.rejected == ["wrong-body"], "nor in any block that executes"


def test_4_1_a_reply_is_given_once_the_request_is_committed_and_durable() -> None:
    """f + 1 equal replies. Ours differs: one is enough, for it comes with a commit certificate."""
    bench = committed_bench()
    raw = load_finality(bench.store, 1)
    assert raw is not None
    proof = decode_own(raw, CommitCertificate)
    verify_certificate(proof, bench.replica.head.header, bench.validators, VERIFIER)


# -- 4.2 normal-case operation ---------------------------------------------------------------------


def test_4_2_the_primary_multicasts_a_pre_prepare_with_the_request() -> None:
    bench = Bench(0)
    bench.submit(transfer(0, 0))
    bench.fire("block")
    (proposal,) = bench.take(PrePrepare)
    assert (proposal.view, proposal.block.height) == (0, 1)
    assert proposal.block.transactions == (transfer(0, 0),)


def test_4_2_a_backup_that_accepts_a_pre_prepare_multicasts_a_prepare() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    assert bench.take(Prepare) == [bench.prepare(1, block)]


def test_4_2_a_pre_prepare_must_be_signed_by_the_primary_of_its_view() -> None:
    bench = Bench(1)
    block = bench.block()
    forged = PrePrepare(0, block.block, bench.prepare(2, block).signature)
    (check,) = bench.replica.verification(forged)
    assert check.public_key == bench.validators.members[0]
    with pytest.raises(AssertionError):
        bench.hear(forged)


@pytest.mark.parametrize("view", [1, 2])
def test_4_2_a_pre_prepare_of_another_view_is_not_accepted(view: int) -> None:
    bench = Bench(3)
    block = bench.block(view=view)
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block, view))
    assert not bench.take(Prepare)


def test_4_2_a_second_digest_for_one_view_and_number_is_not_accepted() -> None:
    """...and is proof that the primary is faulty."""
    bench = Bench(1)
    first, second = bench.block(), bench.block(after_ms=1_001)
    bench.now = first.header.timestamp_ms
    bench.hear(bench.pre_prepare(first), bench.pre_prepare(second))
    assert bench.take(Prepare) == [bench.prepare(1, first)]
    (misbehaviour,) = bench.misbehaviours
    assert misbehaviour.offender == bench.validators.members[0]


def test_4_2_numbers_outside_the_watermarks_are_not_accepted() -> None:
    """Window of one: above the next height nothing is prepared, and a far one shows that we lag."""
    bench = Bench(1)
    blocks = [bench.block()]
    for _ in range(5):
        blocks.append(bench.block(blocks[-1]))
    bench.now = blocks[-1].header.timestamp_ms
    bench.hear(bench.pre_prepare(blocks[1]), bench.pre_prepare(blocks[5]))
    assert not [m for m in bench.sent if isinstance(m, Prepare)]


def test_4_2_a_prepare_and_its_pre_prepare_are_logged_before_it_is_sent() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    assert bench.promise_is_durable(bench.prepare(1, block))
    assert encode(block.block) in bench.persisted_bytes()


def test_4_2_the_primary_lets_no_more_in_flight_than_the_window_holds() -> None:
    """Else it waits, and requests gather for the next batch."""
    bench = Bench(0, timing=Timing(window=2))
    heights: list[int] = []
    parent = bench.genesis
    for _ in range(4):
        bench.pass_time(1_000)
        for proposal in bench.take(PrePrepare):
            if proposal.block.height not in heights:
                heights.append(proposal.block.height)
                parent = bench.ledger.execute(parent, proposal.block)
                bench.hear(*(bench.prepare(i, parent) for i in (1, 2)))
    assert heights == [1, 2]


@pytest.mark.parametrize(("n", "others"), [(4, 1), (5, 2), (6, 2), (7, 3), (21, 12)])
def test_4_2_prepared_takes_a_quorum_counting_the_pre_prepare(n: int, others: int) -> None:
    """2f prepares from different backups that match the pre-prepare.

    Ours differs: quorum - 1 of them, the own one among them, which is 2f only where n = 3f + 1.
    """
    bench = Bench(1, n)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    for index in range(2, 2 + others - 1):
        bench.hear(bench.prepare(index, block))
    assert not bench.take(Commit)
    bench.hear(bench.prepare(2 + others - 1, block))
    assert bench.take(Commit) == [bench.commit(1, block)]


def test_4_2_two_digests_are_never_both_prepared_at_one_number_in_one_view() -> None:
    """The invariant of the section: two quorums share f + 1, and so an honest replica."""
    bench = Bench(1, 7)
    block, rival = bench.block(), bench.block(after_ms=1_001)
    bench.now = rival.header.timestamp_ms
    bench.hear(bench.pre_prepare(rival), *(bench.prepare(i, block) for i in range(2, 7)))
    assert not bench.take(Commit), "five prepares, but for a block that was not proposed to it"
    certificate = bench.prepared(block, backups=(2, 3, 4, 5))
    assert len(set(range(7)) - {0, 2, 3, 4, 5}) < bench.validators.quorum - 1
    assert certificate.header == block.header


def test_4_2_the_same_prepare_twice_counts_once() -> None:
    bench = Bench(1, 7)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), *[bench.prepare(2, block)] * 5)
    assert not bench.take(Commit)


def test_4_2_prepares_for_another_digest_or_view_do_not_count() -> None:
    bench = Bench(1, 7)
    block, other = bench.block(), bench.block(after_ms=1_001)
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block))
    bench.hear(bench.prepare(3, other), bench.prepare(4, block, view=1))
    assert not bench.take(Commit)


def test_4_2_the_primary_does_not_prepare() -> None:
    """A prepare by the primary would let it vote twice: it is refused."""
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(0, block))
    assert bench.rejected == ["primary-prepared"]
    assert not bench.take(Commit)


def test_4_2_a_commit_and_its_certificate_are_durable_before_it_is_sent() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block))
    assert bench.promise_is_durable(bench.commit(1, block))
    assert encode(bench.prepared(block, backups=(1, 2))) in bench.persisted_bytes()


def test_4_2_committed_takes_a_quorum_of_commits_and_is_durable_first() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block), bench.commit(2, block))
    assert bench.committed == []
    bench.hear(bench.commit(0, block))
    assert bench.committed == [1]
    kinds = [type(effect) for effect in bench.effects]
    assert kinds.index(Persist) < kinds.index(Committed)


def test_4_2_commits_count_before_the_block_is_prepared_here() -> None:
    """Replicas accept commits in any order relative to prepares; a quorum of them is proof."""
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(*(bench.commit(index, block) for index in (0, 2, 3)))
    assert bench.committed == []
    bench.hear(bench.pre_prepare(block))
    assert bench.committed == [1]


def test_4_2_commits_of_different_views_do_not_add_up() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    bench.hear(bench.commit(0, block), bench.commit(2, block), bench.commit(3, block, view=1))
    assert bench.committed == []


def test_4_2_requests_execute_in_the_order_of_their_numbers() -> None:
    bench = Bench(1, timing=Timing(window=2))
    first = bench.block()
    second = bench.block(first)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(first), bench.prepare(2, first), bench.pre_prepare(second))
    bench.hear(*(bench.commit(index, second) for index in (0, 2, 3)))
    assert bench.committed == []
    bench.hear(bench.commit(0, first), bench.commit(2, first))
    assert bench.committed == [1, 2]


def test_4_2_a_block_is_prepared_only_upon_its_prepared_parent() -> None:
    """Ours differs: prepares are chained, so that a prepared block implies a locked prefix."""
    bench = Bench(1, timing=Timing(window=2))
    first = bench.block()
    second = bench.block(first)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(first), bench.pre_prepare(second))
    assert bench.take(Prepare) == [bench.prepare(1, first)]
    bench.hear(bench.prepare(2, first))
    assert bench.take(Prepare) == [bench.prepare(1, second)]


# -- 4.3 garbage collection ------------------------------------------------------------------------


def test_4_3_messages_at_or_below_the_stable_checkpoint_are_discarded() -> None:
    """Ours differs: every certified block is one, because its header proves the state."""
    bench = committed_bench()
    names = {key for key, _ in bench.store.scan("log")}
    assert not any(b"/" in name for name in names)
    bench.hear(bench.prepare(2, bench.block()), bench.pre_prepare(bench.block(after_ms=1_500)))
    assert not bench.sent
    assert not bench.misbehaviours


def test_4_3_a_stable_checkpoint_is_a_quorums_and_proves_the_state() -> None:
    """2f + 1 matching checkpoint messages. Ours differs: the commits are them, as headers hold the root."""
    bench = committed_bench()
    head = bench.replica.head
    raw = load_finality(bench.store, 1)
    assert raw is not None
    assert len(decode_own(raw, CommitCertificate).signatures) == bench.validators.quorum
    assert head.state.root == head.header.state_root
    change = bench.leave(2)
    assert change.body.head is not None
    assert change.body.head.header == head.header


def test_4_3_the_water_marks_advance_with_the_checkpoint() -> None:
    """h is the last stable checkpoint, H = h + L; what was too high before is accepted after."""
    bench = Bench(1)
    first = bench.block()
    second = bench.block(first)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(second))
    assert not bench.take(Prepare)
    bench.hear(bench.pre_prepare(first), *(bench.commit(i, first) for i in (0, 2, 3)))
    assert bench.take(Prepare)[-1] == bench.prepare(1, second)


def test_4_3_a_faulty_primary_cannot_use_up_the_numbers() -> None:
    """The high water mark is for that. What it proposes beyond is neither prepared nor kept."""
    bench = Bench(1)
    block = bench.block()
    far = Block(structs.replace(block.header, height=2**40), ())
    what = bench.ballot(far, 0).signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
    bench.hear(PrePrepare(0, far, bench.signer(0).sign(what)))
    assert not bench.take(Prepare)
    assert bench.replica._log.find(2**40) is None


# -- 4.4 view changes ------------------------------------------------------------------------------


def test_4_4_an_expired_timer_asks_to_leave_the_view() -> None:
    """Ours differs: the replica says so, and leaves when f + 1 say so."""
    bench = Bench(1)
    bench.fire("silence")
    assert bench.take(Suspect) == [Suspect(0, 0)]
    bench.suspect(2, 0)
    assert bench.take(ViewChange) == [bench.view_change(1, 1)]


def test_4_4_one_faulty_replica_moves_nobody() -> None:
    bench = Bench(1, 7)
    for _ in range(5):
        bench.suspect(2, 0)
    bench.hear(bench.view_change(2, 9))
    assert (bench.replica.view, bench.replica.active) == (0, True)


def left_bench(index: int, view: int = 1, n: int = 4) -> Bench:
    """A replica that has left view 0."""
    bench = Bench(index, n)
    bench.leave(view)
    return bench


def test_4_4_after_leaving_it_accepts_nothing_of_the_old_view() -> None:
    bench = left_bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(1, block), bench.prepare(3, block))
    assert not bench.take(Prepare)
    assert not bench.take(Commit)


def test_4_4_a_view_change_carries_the_last_checkpoint_and_what_is_prepared() -> None:
    bench = committed_bench(2)
    first = bench.block()
    second = bench.block(first)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(second), bench.prepare(1, second))
    assert bench.take(Commit)
    change = bench.leave()
    assert change.body.head is not None
    assert change.body.head.header == first.header
    assert change.body.prepared == (bench.prepared(second, backups=(1, 2)),)


def test_4_4_what_is_only_pre_prepared_is_not_in_a_view_change() -> None:
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    assert bench.leave().body.prepared == ()


def test_4_4_a_view_change_is_durable_before_it_is_sent() -> None:
    bench = left_bench(2)
    change = bench.view_change(2, 1)
    assert bench.promise_is_durable(change)
    bench.live()
    assert (bench.replica.view, bench.replica.active) == (1, False)
    assert bench.take(ViewChange) == [change]


def test_4_4_the_new_primary_opens_the_view_with_a_quorum() -> None:
    bench = Bench(1)
    bench.hear(bench.view_change(2, 1))
    assert not bench.take(NewView)
    bench.hear(bench.view_change(3, 1))
    (new_view,) = bench.take(NewView)
    assert [change.body.replica for change in new_view.body.view_changes] == [1, 2, 3]
    assert new_view.body.proposals == ()
    assert (bench.replica.view, bench.replica.active) == (1, True)


def test_4_4_the_new_primary_proposes_again_what_is_prepared() -> None:
    bench = Bench(1)
    block = bench.block()
    bench.hear(bench.view_change(2, 1, prepared=[bench.prepared(block)]))
    bench.hear(bench.view_change(3, 1))
    (new_view,) = [m for m in bench.sent if isinstance(m, NewView)]
    assert [p.ballot for p in new_view.body.proposals] == [bench.ballot(block, 1)]
    assert [m for m in bench.sent if isinstance(m, FetchBody)], "it lacks the block and asks"


def test_4_4_a_backup_enters_the_view_and_prepares_what_is_proposed_again() -> None:
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    bench.take(Prepare)
    changes = [
        bench.view_change(0, 1),
        bench.view_change(1, 1, prepared=[bench.prepared(block)]),
        bench.view_change(3, 1),
    ]
    bench.hear(bench.new_view(1, changes))
    assert bench.take(Prepare) == [bench.prepare(2, block, view=1)]
    bench.hear(bench.prepare(3, block, view=1))
    assert bench.take(Commit) == [bench.commit(2, block, view=1)]


def test_4_4_a_block_proposed_again_is_the_same_byte_for_byte() -> None:
    """The header keeps the view of first proposal; the certificate names the deciding view."""
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes), Body(block.block))
    bench.hear(bench.prepare(3, block, view=1))
    bench.hear(bench.commit(1, block, view=1), bench.commit(3, block, view=1))
    assert bench.committed == [1]
    assert bench.replica.head.block == block.block
    assert bench.replica.head.header.round == 0


def test_4_4_a_view_change_carries_the_certificate_of_the_highest_view_alone() -> None:
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(1, block))
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes), bench.prepare(3, block, view=1))
    bench.sent.clear()
    bench.hear(*(bench.view_change(i, 3) for i in (0, 1)))
    (change,) = bench.take(ViewChange)
    assert [(p.view, p.header.height) for p in change.body.prepared] == [(1, 1)]


def test_4_4_what_is_committed_here_is_not_redone() -> None:
    """The paper redoes the protocol for it without executing. Ours differs: who asks gets the proof."""
    bench = committed_bench(2)
    block = bench.block()
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes))
    assert (bench.replica.view, bench.replica.active) == (1, True)
    assert not bench.take(Prepare)
    bench.hear(FetchBlocks(1, 1), sender=3)
    (answer,) = bench.take(CertifiedBlocks)
    assert [certified.block.hash for certified in answer.blocks] == [block.hash]


def test_4_4_a_view_change_of_a_replica_that_is_ahead_shows_what_to_fetch() -> None:
    """ "If some replica is missing the checkpoint it obtains it": asks those who prove that they have it."""
    bench = Bench(2)
    bench.hear(bench.view_change(1, 1, head=bench.certified(bench.block())))
    asked = [(to, m.first) for to, m in bench.sends if isinstance(m, FetchBlocks)]
    assert asked == [(bench.validators.members[1], 1)]


@pytest.mark.parametrize("what", ["omitted", "other", "extra"])
def test_4_4_backups_recompute_the_choice_and_refuse_another(what: str) -> None:
    bench = left_bench(2)
    block, other = bench.block(), bench.block(after_ms=1_001)
    prepared = [] if what == "extra" else [bench.prepared(block)]
    changes = [bench.view_change(i, 1, prepared=prepared) for i in (0, 1, 3)]
    wrong = {"omitted": [], "other": [bench.ballot(other, 1)], "extra": [bench.ballot(block, 1)]}
    bench.hear(bench.new_view(1, changes, wrong[what]))
    assert bench.rejected == ["wrong-choice"]
    assert not bench.replica.active


def test_4_4_a_new_view_needs_a_quorum_of_view_changes_to_it() -> None:
    bench = left_bench(2)
    changes = [bench.view_change(i, 1) for i in (0, 1)]
    bench.hear(bench.new_view(1, changes))
    bench.hear(bench.new_view(1, [*changes, bench.view_change(3, 2)]))
    assert bench.rejected == ["below-quorum", "bad-view"]


def test_4_4_a_new_view_must_come_from_the_primary_of_the_view() -> None:
    bench = left_bench(2)
    changes = [bench.view_change(i, 1) for i in (0, 1, 3)]
    forged = bench.new_view(1, changes, author=3)
    with pytest.raises(AssertionError):
        bench.hear(forged)


def test_4_4_a_view_change_proves_what_it_says_is_prepared() -> None:
    """P holds pre-prepares with 2f matching prepares, all of an earlier view and signed."""
    bench = Bench(1)
    block = bench.block()
    too_few = bench.prepared(block, backups=(1,))
    by_primary = bench.prepared(block, backups=(0, 1))
    too_late = bench.prepared(block, view=1)
    for certificate, reason in (
        (too_few, "below-quorum"),
        (by_primary, "primary-prepared"),
        (too_late, "bad-view"),
    ):
        change = bench.view_change(2, 1, prepared=[certificate])
        with pytest.raises(ViewChangeFault, match=reason):
            check_view_change(change.body, bench.validators)
        with pytest.raises(RemoteFault):
            bench.replica.verification(change)


def test_4_4_the_new_primary_proposes_its_own_only_above_what_is_chosen() -> None:
    bench = Bench(2)
    block, fresh = bench.block(), bench.block(view=1, after_ms=1_500)
    bench.now = fresh.header.timestamp_ms
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes))
    bench.take(Prepare)
    bench.hear(bench.pre_prepare(fresh, 1))
    assert not bench.take(Prepare)
    assert bench.misbehaviours, "the new-view is its pre-prepare for that height"


def test_4_4_nothing_is_prepared_at_or_below_what_the_new_view_proves_committed() -> None:
    """A laggard must not help to replace a block that others committed (the paper's min-s)."""
    bench = Bench(2)
    block, rival = bench.block(), bench.block(view=1, after_ms=1_500)
    bench.now = rival.header.timestamp_ms
    changes = [bench.view_change(i, 1, head=bench.certified(block)) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes), bench.pre_prepare(rival, 1))
    assert not bench.take(Prepare)
    assert bench.rejected == ["below-floor"]
    bench.live()
    bench.hear(bench.pre_prepare(rival, 1))
    assert bench.rejected == ["below-floor"] * 2, "nor after a restart"


def test_4_4_a_replica_obtains_what_it_is_missing_from_another() -> None:
    """It asks f + 1 of those that voted for the block: one of them is honest."""
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    certificate = bench.prepared(block, backups=(1, 3))
    changes = [bench.view_change(i, 1, prepared=[certificate]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes))
    asked = [to for to, message in bench.sends if isinstance(message, FetchBody)]
    assert sorted(asked) == sorted(bench.validators.members[i] for i in (1, 3))
    bench.hear(Body(block.block))
    assert bench.take(Prepare) == [bench.prepare(2, block, view=1)]


def test_4_4_who_voted_for_a_block_keeps_it_for_the_next_views() -> None:
    """A certificate may appear late that names a block which is prepared nowhere else."""
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block))
    bench.leave()
    bench.live()
    bench.hear(FetchBody(1, block.hash), sender=3)
    assert bench.take(Body) == [Body(block.block)]


# -- 4.5.1 safety ----------------------------------------------------------------------------------


def test_4_5_1_what_was_committed_in_one_view_is_chosen_in_every_later_one() -> None:
    """A quorum of view-changes shares an honest replica with the quorum that prepared it.

    The law over random histories is in `tests/property/test_pbft_choice_laws.py`.
    """
    bench = Bench(1)
    block = bench.block()
    knowing = {i: bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)}
    for who in combinations(range(4), 3):
        bodies = [
            (knowing[i] if i in knowing and i != 3 else bench.view_change(i, 1)).body for i in who
        ]
        assert [h.hash for h in choose(bodies, bench.genesis.header).headers] == [block.hash]


def test_4_5_1_nothing_else_is_voted_for_where_a_replica_proved_it_prepared() -> None:
    """Not in its view by the log and the marks; in a later one only what the new-view proves."""
    bench = Bench(2)
    block, rival = bench.block(), bench.block(view=1, after_ms=1_001)
    bench.now = rival.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(1, block))
    assert bench.take(Commit) == [bench.commit(2, block)]
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes, proposals=[bench.ballot(rival, 1)]))
    assert bench.rejected == ["wrong-choice"]
    bench.hear(bench.pre_prepare(rival, 1), *(bench.prepare(i, rival, 1) for i in (0, 3)))
    assert not bench.take(Prepare)
    assert not bench.take(Commit)


# -- 4.5.2 liveness --------------------------------------------------------------------------------


def test_4_5_2_the_new_view_timer_starts_only_with_a_quorum_of_view_changes() -> None:
    bench = Bench(3)
    bench.hear(bench.view_change(0, 1), bench.view_change(2, 1))
    assert bench.replica.view == 1
    assert "new-view" in bench.timers, "own, 0 and 2 are a quorum"
    alone = Bench(3, 7)
    alone.hear(*(alone.view_change(i, 1) for i in (0, 2, 4)))
    assert alone.replica.view == 1
    assert "new-view" not in alone.timers
    alone.hear(alone.view_change(5, 1))
    assert "new-view" in alone.timers


def test_4_5_2_timeouts_double_with_each_view_and_reset_with_progress() -> None:
    bench = Bench(0, timing=Timing(view_timeout_ms=1_000, block_time_ms=1_000))
    waits: list[int] = []
    for view in (1, 2, 3):
        bench.hear(bench.view_change(2, view), bench.view_change(3, view))
        waits.append(bench.timers["new-view"] - bench.now)
        bench.fire("new-view")
    assert waits == [1_000, 2_000, 4_000]
    bench.hear(bench.view_change(2, 5), bench.view_change(3, 5))
    assert bench.replica.view == 5
    bench.hear(bench.new_view(5, [bench.view_change(i, 5) for i in (1, 2, 3)]))
    block = bench.block(view=5, after_ms=bench.now - bench.genesis.header.timestamp_ms)
    bench.hear(bench.pre_prepare(block, 5))
    bench.hear(*(bench.commit(i, block, 5) for i in (1, 2, 3)))
    assert bench.committed == [1]
    assert bench.timers["silence"] - bench.now == 2_000


def test_4_5_2_f_plus_1_in_higher_views_are_joined_in_the_smallest() -> None:
    bench = Bench(1, 7)
    bench.hear(bench.view_change(2, 8), bench.view_change(3, 5))
    assert bench.replica.view == 0
    bench.hear(bench.view_change(4, 6))
    assert bench.replica.view == 5, "of views 8, 5 and 6, without any timer"
    assert bench.take(ViewChange) == [bench.view_change(1, 5)]


def test_4_5_2_a_view_never_goes_back() -> None:
    bench = Bench(1)
    bench.hear(bench.view_change(2, 7), bench.view_change(3, 7))
    bench.hear(bench.view_change(2, 3), bench.view_change(3, 3))
    bench.hear(bench.new_view(3, [bench.view_change(i, 3) for i in (0, 2, 3)]))
    assert (bench.replica.view, bench.replica.active) == (7, False)


def test_4_5_2_a_laggard_is_shown_the_way_into_the_view() -> None:
    bench = Bench(1)
    bench.hear(bench.view_change(2, 1), bench.view_change(3, 1))
    (new_view,) = bench.take(NewView)
    bench.now += 1_000
    bench.hear(Status(set_id=0, view=0, active=True, height=0), sender=0)
    assert bench.take(NewView) == [new_view]


def test_4_5_2_a_faulty_primary_cannot_delay_the_timer_by_proposing() -> None:
    """It runs until a request is executed: proposals that nobody commits do not restart it."""
    bench = Bench(1)
    due = bench.timers["silence"]
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block))
    assert bench.timers["silence"] == due
    bench.decide(block)
    assert bench.timers["silence"] > due


def test_4_5_2_a_view_change_is_sent_again_while_nothing_moves() -> None:
    """The paper's channels lose nothing for ever (thesis 5.2: status messages, retransmission)."""
    bench = left_bench(2)
    for _ in range(3):
        bench.fire("retransmit")
        assert bench.take(ViewChange) == [bench.view_change(2, 1)]


# -- 4.6 non-determinism ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead_ms", "counted"), [(5_001, ["bad-timestamp"]), (-5_001, [])])
def test_4_6_a_value_chosen_by_the_primary_is_checked_by_every_backup(
    ahead_ms: int, counted: list[str]
) -> None:
    """The block's time is near the voter's clock. One that came too late is nobody's fault."""
    bench = Bench(1)
    block = bench.block(after_ms=20_000)
    bench.now = block.header.timestamp_ms - ahead_ms
    bench.hear(bench.pre_prepare(block))
    assert not bench.take(Prepare)
    assert bench.rejected == counted


def test_4_6_a_block_proposed_again_is_exempt_from_the_clock() -> None:
    bench = Bench(2)
    block = bench.block()
    bench.now = block.header.timestamp_ms + 3_600_000
    changes = [bench.view_change(i, 1, prepared=[bench.prepared(block)]) for i in (0, 1, 3)]
    bench.hear(bench.new_view(1, changes), Body(block.block))
    assert bench.take(Prepare) == [bench.prepare(2, block, view=1)]


def test_4_6_time_does_not_stand_still() -> None:
    bench = Bench(1)
    header = structs.replace(bench.block().header, timestamp_ms=bench.genesis.header.timestamp_ms)
    forged = Block(header, ())
    what = bench.ballot(forged, 0).signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
    bench.hear(PrePrepare(0, forged, bench.signer(0).sign(what)))
    assert not bench.take(Prepare)
    assert bench.rejected == ["invalid-block"]


# -- 5 optimisations -------------------------------------------------------------------------------


def test_5_1_nothing_is_executed_or_answered_tentatively() -> None:
    """Ours differs: a prepared block has no effect that a client could see before it is committed.

    Nor is there a read-only operation outside the order (arXiv 2107.11144): reads come with proofs.
    """
    bench = Bench(1)
    block = bench.block(transactions=(transfer(0, 0),))
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block))
    assert bench.take(Commit)
    assert bench.committed == []
    assert bench.replica.head.height == 0


def test_5_2_what_a_certificate_may_need_is_signed_by_its_author() -> None:
    """The paper's authenticators are for speed. Ours differs: the OSDI variant with signatures only."""
    bench = Bench(1)
    block = bench.block()
    for message in (bench.pre_prepare(block), bench.prepare(2, block), bench.commit(3, block)):
        (check,) = bench.replica.verification(message)
        assert check.public_key in bench.validators.members
