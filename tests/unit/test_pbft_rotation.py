"""Rotation on the bench: what opens a period, what is refused across its border, what is remembered."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracle_world import genesis as oracle_genesis
from tests.simulation.pbft_script import Bench

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.identity import derive_chain_id, parse_genesis, render_genesis
from gridtokenx.oracle.chain.ledger import OracleGenesis
from gridtokenx.pbft.messages import Body, Commit, NewView, Prepare, PrePrepare, Status, ViewChange
from gridtokenx.pbft.rotation import PERIOD_VIEWS, Periods, blocks_of, primary_of
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.view_change import ViewChangeFault, check_view_change

SECOND = PERIOD_VIEWS
"""The first view of the second period."""


def rotating(index: int, blocks: int = 1, window: int = 1) -> Bench:
    """A replica of four; the leadership passes on after so many blocks."""
    return Bench(index, timing=Timing(window=window), rotation_blocks=blocks)


# -- the arithmetic --------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 500), st.integers(0, 9))
def test_every_height_has_the_views_of_its_period_and_no_others(
    root: int, blocks: int, above: int, attempt: int
) -> None:
    periods, height = Periods(root, blocks), root + above
    first = periods.first_view(height)
    assert periods.covers(first + attempt, height)
    assert not periods.covers(first + PERIOD_VIEWS, height)
    assert not periods.covers(first - 1, height)
    same = (above - 1) // blocks == above // blocks
    assert periods.covers(first, height + 1) == same
    assert periods.is_next(first + attempt, periods.first_view(height + 1)) == (not same)


@given(st.integers(4, 21), st.integers(0, 1_000))
def test_all_replicas_lead_in_turn(n: int, start: int) -> None:
    """From period to period, and from attempt to attempt inside one."""
    validators = ValidatorSet(0, tuple(bytes((i,)) * 32 for i in range(n)))
    by_period = Counter(primary_of((start + i) * PERIOD_VIEWS, validators) for i in range(n))
    by_attempt = Counter(primary_of(start * PERIOD_VIEWS + i, validators) for i in range(n))
    assert set(by_period.values()) == set(by_attempt.values()) == {1}


def test_without_rotation_a_term_is_one_period() -> None:
    periods = Periods()
    assert periods.first_view(10**9) == 0
    assert periods.covers(5, 10**9)
    assert not periods.is_next(0, PERIOD_VIEWS)


# -- passing on ------------------------------------------------------------------------------------


def test_the_last_block_of_a_period_opens_the_next_without_a_message() -> None:
    bench = rotating(1)
    first = bench.block()
    bench.decide(first)
    assert (bench.replica.view, bench.replica.active) == (SECOND, True)
    assert bench.replica.primary == bench.validators.members[1]
    assert not bench.take(ViewChange)
    bench.fire("block")
    (proposal,) = bench.take(PrePrepare)
    assert (proposal.view, proposal.block.height) == (SECOND, 2)
    assert proposal.block.header.round == SECOND


def test_the_new_period_is_in_the_batch_of_the_block_that_opens_it() -> None:
    bench = rotating(2)
    first = bench.block()
    bench.decide(first)
    bench.live()
    assert (bench.replica.head.height, bench.replica.view) == (1, SECOND)
    second = bench.block(first, view=SECOND)
    bench.decide(second, SECOND)
    assert bench.replica.view == 2 * SECOND


def test_a_store_that_lost_its_log_works_in_the_period_of_its_head() -> None:
    bench = rotating(2, blocks=2)
    first = bench.block()
    bench.decide(first)
    bench.decide(bench.block(first))
    for table in (bench.store._live, bench.store._durable):
        table["log"] = {}
    bench.live()
    assert (bench.replica.view, bench.replica.active) == (SECOND, True)


def test_nothing_is_proposed_beyond_a_period_before_its_last_block_is_committed() -> None:
    bench = rotating(0, blocks=2, window=4)
    bench.fire("block")
    (first,) = bench.take(PrePrepare)
    executed = bench.ledger.execute(bench.genesis, first.block)
    bench.hear(*(bench.prepare(i, executed) for i in (1, 2)))
    bench.fire("block")
    (second,) = bench.take(PrePrepare)
    executed = bench.ledger.execute(executed, second.block)
    bench.hear(*(bench.prepare(i, executed) for i in (1, 2)))
    bench.pass_time(2_000)
    assert second.block.height == 2
    assert {m.block.height for m in bench.take(PrePrepare)} <= {1, 2}, "said again at most"


def test_a_proposal_for_a_height_of_another_period_is_never_prepared() -> None:
    """Not even upon its prepared parent, in a window that is wide enough."""
    bench = rotating(2, window=4)
    first = bench.block()
    second = bench.block(first)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(first), bench.prepare(1, first))
    bench.take(Prepare)
    bench.hear(bench.pre_prepare(second))
    assert not bench.take(Prepare)
    bench.hear(*(bench.commit(i, first) for i in (0, 1, 3)))
    assert bench.replica.view == SECOND
    assert not bench.take(Prepare), "it was for view 0, whose period is over"


def test_votes_of_the_next_period_wait_for_the_block_before_it() -> None:
    """A race between the last commits and the new leader is nobody's lag: nothing is asked."""
    bench = rotating(2)
    first = bench.block()
    second = bench.block(first, view=SECOND)
    bench.now = second.header.timestamp_ms
    bench.hear(bench.pre_prepare(first), bench.prepare(1, first))
    bench.sent.clear()
    bench.hear(bench.pre_prepare(second, SECOND), bench.prepare(3, second, SECOND))
    assert bench.sent == []
    bench.hear(*(bench.commit(i, first) for i in (0, 1, 3)))
    assert bench.take(Prepare) == [bench.prepare(2, second, SECOND)]


# -- view changes ----------------------------------------------------------------------------------


def test_a_failed_leader_of_a_period_is_replaced_inside_it() -> None:
    bench = rotating(2)
    first = bench.block()
    bench.decide(first)
    bench.fire("silence")
    bench.suspect(3, SECOND)
    (change,) = bench.take(ViewChange)
    assert change.body.view == SECOND + 1
    assert bench.replica.primary == bench.validators.members[2]
    head = bench.certified(first)
    bench.hear(*(bench.view_change(i, SECOND + 1, head=head) for i in (0, 3)))
    assert [type(m) for m in bench.sent if isinstance(m, NewView)] == [NewView]
    (proposal,) = bench.take(PrePrepare)
    assert (proposal.view, proposal.block.height) == (SECOND + 1, 2)
    block = bench.ledger.execute(first, proposal.block)
    bench.hear(*(bench.prepare(i, block, SECOND + 1) for i in (0, 3)))
    assert bench.take(Commit)


def test_suspicions_of_the_last_leader_do_not_count_against_the_next() -> None:
    bench = rotating(2)
    bench.suspect(3, 0)
    first = bench.block()
    bench.decide(first)
    bench.suspect(3, 0)
    bench.suspect(0, 0)
    assert (bench.replica.view, bench.replica.active) == (SECOND, True)


def test_who_was_between_two_views_goes_on_with_the_block_that_ends_the_period() -> None:
    bench = rotating(2)
    bench.hear(bench.view_change(0, 1), bench.view_change(3, 1))
    assert not bench.replica.active
    block = bench.block()
    bench.now = block.header.timestamp_ms
    bench.hear(*(bench.commit(i, block) for i in (0, 1, 3)))
    assert bench.committed == []
    bench.hear(Body(block.block))
    assert bench.committed == [1]
    assert (bench.replica.view, bench.replica.active) == (SECOND, True)
    assert "new-view" not in bench.timers
    bench.live()
    assert (bench.replica.view, bench.replica.active) == (SECOND, True)


def test_a_view_change_proves_a_head_in_the_period_of_its_view() -> None:
    """Or a laggard's silence about what it never saw would count for a view that it cannot work in."""
    bench = rotating(2)
    first = bench.block()
    headless = bench.view_change(0, SECOND + 1)
    outrun = bench.view_change(0, 1, head=bench.certified(first))
    for change in (headless, outrun):
        with pytest.raises(ViewChangeFault, match="wrong-period"):
            check_view_change(change.body, bench.validators, Periods(0, 1))
        with pytest.raises(RemoteFault):
            bench.replica.verification(change)


def test_a_certificate_of_a_view_that_does_not_decide_its_height_is_refused() -> None:
    bench = rotating(2, blocks=2)
    first, second = bench.block(), bench.block(bench.block())
    head = bench.certified(second)
    third = bench.block(second, view=1)
    change = bench.view_change(0, SECOND + 1, head=head, prepared=[bench.prepared(third, 1)])
    with pytest.raises(ViewChangeFault, match="wrong-period"):
        check_view_change(change.body, bench.validators, Periods(0, 2))
    honest = bench.view_change(0, SECOND + 1, head=head, prepared=[bench.prepared(third, SECOND)])
    check_view_change(honest.body, bench.validators, Periods(0, 2))
    assert first.height == 1


def test_who_lacks_the_block_before_a_period_fetches_instead_of_moving() -> None:
    """f + 1 view-changes, and a new-view, of a period that it has not reached, move it nowhere."""
    bench = rotating(3)
    first = bench.block()
    head = bench.certified(first)
    changes = [bench.view_change(i, SECOND + 1, head=head) for i in (0, 1, 2)]
    bench.hear(*changes[:2], bench.new_view(SECOND + 1, changes))
    assert (bench.replica.view, bench.replica.active) == (0, True)
    assert "fetch" in bench.timers


def test_a_laggard_of_an_earlier_period_is_shown_where_the_others_are() -> None:
    """No new-view opened the period, so nothing could be sent but the height."""
    bench = rotating(2)
    bench.decide(bench.block())
    bench.now += 1_000
    bench.take(Status)
    bench.suspect(3, 0)
    assert bench.take(Status) == [Status(0, SECOND, True, 1)]


# -- the setting -----------------------------------------------------------------------------------


def test_a_genesis_that_does_not_rotate_is_encoded_as_before() -> None:
    plain = oracle_genesis()
    assert b"rotation_blocks" not in render_genesis(plain)
    assert blocks_of(plain.rotation_blocks) == 0


def test_rotation_is_in_the_genesis_and_so_in_the_chains_id() -> None:
    rotating_ = oracle_genesis(rotation_blocks=100)
    assert derive_chain_id(rotating_) != derive_chain_id(oracle_genesis())
    named = msgspec.structs.replace(rotating_, chain_id=derive_chain_id(rotating_))
    read = parse_genesis(render_genesis(named), OracleGenesis, "oracle.json")
    assert blocks_of(read.rotation_blocks) == 100
    with pytest.raises(LocalFault, match="rotation_blocks"):
        parse_genesis(
            render_genesis(named).replace(b": 100,", b": 0,"), OracleGenesis, "oracle.json"
        )
