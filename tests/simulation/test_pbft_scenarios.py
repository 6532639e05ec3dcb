"""What a chain lives through: restarts, lies, exchanged bodies, overload, a leader that censors.

Found while this engine was designed, most of them; the ways in which other implementations broke are
in `test_pbft_regressions.py`.
"""

import pytest
from tests.simulation.pbft_cluster import (
    Cluster,
    Equivocator,
    Filler,
    Shouter,
    Silent,
    Wrapper,
    dropping,
    transfer,
)
from tests.simulation.pbft_script import Bench

from gridtokenx.core.machine import NodeId
from gridtokenx.lab.sim.network import Drop, Envelope, Verdict
from gridtokenx.ledger import runtime
from gridtokenx.ledger.blocks import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS
from gridtokenx.ledger.records import load_block
from gridtokenx.pbft.messages import (
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    Commit,
    Status,
    Suspect,
    Transactions,
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty transfers fill a block."""
    monkeypatch.setattr(runtime, "MAX_BLOCK_WEIGHT", 200)
    limits = (MAX_BLOCK_TRANSACTIONS, MAX_BLOCK_BYTES, 200)
    monkeypatch.setattr("gridtokenx.pbft.requests._LIMITS", limits)


@pytest.mark.usefixtures("small_blocks")
def test_full_blocks_do_not_hide_an_omission() -> None:
    """A leader that filled each block with its own excused itself for ever."""
    cluster = Cluster(4, wrap={0: Filler})
    cluster.start()
    cluster.world.run_for(2_000)
    cluster.submit(2, transfer(0, 0))
    for second in range(12):
        cluster.submit(0, *(transfer(3, 20 * second + i) for i in range(20)))
        cluster.world.run_for(1_000)
    assert cluster.replica(2).pending == 0
    assert cluster.replica(2).view == 1


@pytest.mark.usefixtures("small_blocks")
def test_an_honest_leader_survives_more_work_than_its_blocks_hold() -> None:
    """Thirty seconds of twice the load: some wait longer than any bound, and nobody is suspected."""
    cluster = Cluster(4)
    cluster.start()
    for second in range(30):
        for client in range(4):
            work = [transfer(client, 10 * second + i) for i in range(10)]
            cluster.submit(client, *work)
        cluster.world.run_for(1_000)
    assert cluster.replica(0).pending > 400
    assert cluster.world.run_until(lambda: cluster.replica(1).pending == 0, 60_000)
    assert {cluster.replica(i).view for i in range(4)} == {0}


def test_an_impossible_submission_costs_nobody_its_view() -> None:
    """A transaction behind a nonce gap, or with an empty account, is not the leader's fault."""
    cluster = Cluster(4)
    cluster.start()
    cluster.submit(1, transfer(0, 5), transfer(1, 0, amount=10**9), transfer(1, 1, amount=10**9))
    cluster.world.run_for(30_000)
    assert {cluster.replica(i).view for i in range(4)} == {0}
    cluster.submit(2, *(transfer(0, nonce) for nonce in range(5)))
    assert cluster.world.run_until(
        lambda: all(cluster.replica(i).pending == 0 for i in range(4)), 5_000
    )


def test_a_replica_that_was_paused_comes_back_with_its_vote() -> None:
    """All its timers fire at once when it wakes. Leaving the view alone would cost it its vote."""
    cluster = Cluster(4)
    cluster.start()
    assert cluster.run_to(2, 5_000)
    cluster.world.pause(cluster.ids[3])
    cluster.world.run_for(60_000)
    cluster.world.resume(cluster.ids[3])
    cluster.world.run_for(5_000)
    assert cluster.replica(3).active
    cluster.crash(2)
    height = cluster.height(0)
    assert cluster.run_to(height + 2, 5_000, [0, 1, 3]), "now its vote is needed"
    assert {cluster.replica(i).view for i in (0, 1, 3)} == {0}


def test_a_restarted_replica_votes_again_at_once() -> None:
    cluster = Cluster(4)
    cluster.start()
    assert cluster.run_to(2, 5_000)
    cluster.crash(3)
    cluster.world.run_for(30_000)
    cluster.restart(3)
    assert cluster.world.run_until(lambda: cluster.all_reached(cluster.height(0)), 3_000)
    cluster.crash(2)
    height = cluster.height(0)
    assert cluster.run_to(height + 2, 5_000, [0, 1, 3]), "now its vote is needed"


def test_the_whole_network_restarts_from_its_disks() -> None:
    cluster = Cluster(4)
    cluster.start()
    cluster.submit(1, transfer(0, 0))
    assert cluster.run_to(3, 5_000)
    for index in range(4):
        cluster.crash(index)
    cluster.world.run_for(3_600_000)
    cluster.start()
    assert cluster.run_to(6, 20_000)
    cluster.check_chains()


def test_a_replica_with_a_new_disk_catches_up_and_votes() -> None:
    """It forgot what it voted, so it counts as faulty until then; one of four may."""
    cluster = Cluster(4)
    cluster.start()
    cluster.submit(1, *(transfer(0, nonce) for nonce in range(20)))
    assert cluster.run_to(150, 200_000)
    cluster.crash(3)
    cluster.world.nodes[cluster.ids[3]].store.wipe()
    cluster.votes.clear()
    cluster.restart(3)
    assert cluster.run_to(151, 4_000)
    cluster.check_chains()
    cluster.crash(2)
    height = cluster.height(0)
    assert cluster.run_to(height + 2, 5_000, [0, 1, 3])


class HidesBodies(Silent):
    """Votes, but never sends a block to anyone who lacks it."""

    def change(self, effect):
        message = getattr(effect, "message", None)
        return [] if isinstance(message, Body | CertifiedBlocks) else [effect]


def test_a_prepared_block_that_some_never_saw_is_fetched_from_an_honest_voter() -> None:
    """The new view demands a block by its hash; a traitor among its voters withholds the body."""
    cluster = Cluster(4, wrap={3: HidesBodies})
    cluster.start()
    cluster.world.run_for(500)

    def block_1_is_prepared_but_1_never_sees_it(envelope: Envelope) -> Verdict | None:
        if envelope.receiver == cluster.ids[1] and not isinstance(envelope.message, Suspect):
            return Drop()
        return Drop() if isinstance(envelope.message, Commit) else None

    cluster.world.network.rules.append(block_1_is_prepared_but_1_never_sees_it)
    cluster.world.run_for(1_000)
    cluster.crash(0)
    cluster.world.network.rules.pop()
    assert cluster.run_to(2, 30_000, [1, 2])
    block = load_block(cluster.world.nodes[cluster.ids[1]].store, 1)
    assert block is not None
    assert block.header.round == 0


class LiesAboutBlocks(Wrapper):
    """Claims to be far ahead, and answers questions for blocks with altered ones."""

    def change(self, effect):
        message = getattr(effect, "message", None)
        if isinstance(message, Status):
            return [type(effect)(*self._to(effect), Status(0, message.view, True, 10**15))]
        if isinstance(message, CertifiedBlocks):
            return [type(effect)(*self._to(effect), self._altered(message))]
        return [effect]

    @staticmethod
    def _to(effect) -> tuple[NodeId, ...]:
        return (effect.to,) if hasattr(effect, "to") else ()

    def _altered(self, message: CertifiedBlocks) -> CertifiedBlocks:
        blocks = tuple(
            CertifiedBlock(type(c.block)(c.block.header, (transfer(3, 0),)), c.certificate)
            for c in message.blocks
        )
        return CertifiedBlocks(message.first, blocks)


def test_a_lying_peer_costs_a_laggard_only_time() -> None:
    cluster = Cluster(4, wrap={2: LiesAboutBlocks})
    cluster.world.start(*cluster.ids[:3])
    assert cluster.run_to(100, 120_000, [0, 1])
    cluster.restart(3)
    assert cluster.run_to(100, 30_000, [3])
    cluster.check_chains()
    assert cluster.world.nodes[cluster.ids[3]].rejections["wrong-body"] > 0


def test_an_equivocating_leader_loses_its_view_and_agreement_holds() -> None:
    cluster = Cluster(4, wrap={0: Equivocator})
    cluster.start()
    assert cluster.run_to(3, 40_000, cluster.honest())
    cluster.check_chains()


def test_a_leader_that_split_the_others_is_proved_guilty_by_a_view_change() -> None:
    """Each half saw one proposal only; a certificate shows one of them the other."""
    bench = Bench(1)
    mine, theirs = bench.block(), bench.block(after_ms=1_001)
    bench.now = mine.header.timestamp_ms
    bench.hear(bench.pre_prepare(mine))
    for life in range(2):
        certificate = bench.prepared(theirs, backups=(2, 3))
        bench.hear(bench.view_change(2, 1 + life, prepared=[certificate]))
        (report,) = bench.misbehaviours
        assert report.offender == bench.validators.members[0]
        bench.misbehaviours.clear()
        bench.live()


def test_an_equivocating_leader_is_proved_guilty() -> None:
    cluster = Cluster(4, wrap={0: Shouter})
    cluster.start()
    assert cluster.run_to(2, 40_000, cluster.honest())
    for index in cluster.honest():
        reports = cluster.world.nodes[cluster.ids[index]].misbehaviours
        assert {report.offender for report in reports} == {cluster.ids[0]}


def test_a_submission_reaches_the_leader_although_its_gossip_was_lost() -> None:
    cluster = Cluster(4)
    cluster.start()
    cluster.world.run_for(1_500)
    lost = dropping(Transactions)
    cluster.world.network.rules.append(lost)
    cluster.submit(2, transfer(0, 0))
    cluster.world.run_for(200)
    cluster.world.network.rules.remove(lost)
    assert cluster.world.run_until(lambda: cluster.replica(2).pending == 0, 4_000)
    assert cluster.replica(2).view == 0, "a reminder comes before the accusation"
