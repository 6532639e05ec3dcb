"""What a chain lives through: restarts, lies, exchanged bodies, equivocation.

Found while this engine was designed, most of them; the ways in which other implementations broke are
in `test_pbft_regressions.py`, leaders that leave somebody out in `test_pbft_censorship.py`.
"""

from tests.simulation.pbft_cluster import (
    Cluster,
    Equivocator,
    Shouter,
    Silent,
    Wrapper,
    transfer,
)
from tests.simulation.pbft_script import Bench

from gridtokenx.core.machine import Effect, NodeId, Send
from gridtokenx.lab.sim.network import Drop, Envelope, Verdict
from gridtokenx.ledger.records import load_block
from gridtokenx.pbft.messages import (
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    Commit,
    Status,
    Suspect,
)
from gridtokenx.pbft.timing import Timing


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


class HidesBlocks(Wrapper):
    """Says where it is, and never answers a question for certified blocks."""

    def change(self, effect: Effect) -> list[Effect]:
        hidden = isinstance(effect, Send) and isinstance(effect.message, CertifiedBlocks)
        return [] if hidden else [effect]


def test_who_answers_no_question_cannot_hold_up_a_laggard_again_and_again() -> None:
    """Two honest peers, four ranges: the third is always idle, and has more time with each lie.

    It cost a range up to 64 s every 64 blocks: whoever lagged on a fast chain did so for ever.
    """
    timing = Timing(block_time_ms=100, snapshot_distance=0)
    cluster = Cluster(4, timing=timing, wrap={3: HidesBlocks})
    cluster.start()
    assert cluster.run_to(2, 2_000)
    cluster.crash(0)
    assert cluster.run_to(800, 200_000, [1, 2])
    cluster.restart(0)
    assert cluster.run_to(cluster.height(1) + 50, 10_000, [0]), cluster.height(0)
    cluster.check_chains()
