"""Known ways in which PBFT implementations broke, each as a run that the naive version fails.

The names are the public reports: Hyperledger Fabric's PBFT (#1111, #1917), Hyperledger Sawtooth PBFT
(PR #133, #68 and #87, RFC 29, and its quorum), IBFT 1.0 (arXiv 1901.07160), EIP-650 and its revision
(arXiv 2002.03613), unordered reads (arXiv 2107.11144), BFT-SMaRt #19, relab/hotstuff #24. A run is a
function of a cluster that asserts what must hold. Our replica passes it; the naive one, whose only
difference is in `pbft_naive.py`, must not.
"""

from collections.abc import Callable
from functools import partial

import pytest
from tests.simulation.pbft_cluster import (
    Censor,
    Cluster,
    Equivocator,
    Hoarder,
    Silent,
    Wrapper,
    dropping,
    transfer,
    validator_set,
)
from tests.simulation.pbft_naive import (
    AsksWhoProves,
    CountsOneCheckpoint,
    FewVotes,
    HearsOnlyVotes,
    Hurried,
    LeavesAlone,
    NeverUnlocks,
    TimesOnlyPreparing,
)

from gridtokenx.core.codec import decode_own
from gridtokenx.core.machine import Broadcast, Effect, NodeId, Send
from gridtokenx.finality.certificates import CommitCertificate, verify_certificate
from gridtokenx.lab.sim.network import DeliverAfter, Drop, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.pbft.variants import (
    NoPatience,
    NoPrepared,
    NoSilenceTimer,
    SaysItOnce,
)
from gridtokenx.ledger.records import load_block, load_finality
from gridtokenx.pbft.messages import (
    CertifiedBlocks,
    Commit,
    NewView,
    Prepare,
    ViewChange,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

Run = Callable[[type[Replica]], None]


def differs(run: Run, naive: type[Replica], how: str) -> None:
    """Ours survives the run; the naive version fails it, and in the way that was reported."""
    run(Replica)
    with pytest.raises(AssertionError, match=how):
        run(naive)


def drop_if(what: Callable[[Envelope], bool]) -> Callable[[Envelope], Verdict | None]:
    return lambda envelope: Drop() if what(envelope) else None


def cut_off(node: NodeId) -> Callable[[Envelope], Verdict | None]:
    return drop_if(lambda envelope: node in (envelope.sender, envelope.receiver))


# -- Hyperledger Fabric ----------------------------------------------------------------------------


def commits_only_to_3(cluster: Cluster) -> None:
    """Block 1 is committed at replica 3 alone; it is prepared everywhere."""
    late = drop_if(lambda e: isinstance(e.message, Commit) and e.receiver != cluster.ids[3])
    cluster.world.network.rules.append(late)
    assert cluster.run_to(1, 2_000, [3])
    assert [cluster.height(i) for i in (1, 2, 3)] == [0, 0, 1]


def checkpoints_differ(replica: type[Replica]) -> None:
    cluster = Cluster(4, replica=replica)
    cluster.start()
    commits_only_to_3(cluster)
    cluster.crash(0)
    # its proof must not simply be fetched before the view changes
    cluster.world.network.rules.append(dropping(CertifiedBlocks))
    assert cluster.world.run_until(
        lambda: all(cluster.replica(i).active and cluster.replica(i).view == 1 for i in (1, 2, 3)),
        20_000,
    ), "the view change never completes"
    cluster.world.network.rules[-2:] = []
    assert cluster.run_to(3, 20_000, [1, 2, 3])
    cluster.check_chains()


def test_fabric_1111_a_view_change_completes_when_checkpoints_differ() -> None:
    """Fabric counted only those view-changes that agree on the highest checkpoint, not all of V.

    One replica has committed block 1, two know it prepared, the leader dies: all of V must count.
    """
    differs(checkpoints_differ, CountsOneCheckpoint, "never completes")


def view_changes_are_lost_once(replica: type[Replica]) -> None:
    cluster = Cluster(4, replica=replica)
    cluster.start()
    assert cluster.run_to(2, 5_000)
    cluster.crash(0)
    lossy = dropping(ViewChange, NewView)
    cluster.world.network.rules.append(lossy)
    cluster.world.run_for(20_000)
    assert lossy.dropped > 0
    assert cluster.height(1) == 2
    cluster.world.network.rules.remove(lossy)
    assert cluster.run_to(4, 15_000, [1, 2, 3]), "waits for ever"


def test_fabric_1917_lost_view_changes_are_sent_again() -> None:
    """Fabric sent its view-change once: after a transient link failure it waited for ever."""
    differs(view_changes_are_lost_once, SaysItOnce, "waits for ever")


# -- Hyperledger Sawtooth --------------------------------------------------------------------------


def no_side_has_a_quorum(replica: type[Replica]) -> None:
    cluster = Cluster(4, replica=replica)
    cluster.start()
    assert cluster.run_to(1, 5_000)
    cluster.world.network.partition(cluster.ids[:2], cluster.ids[2:])
    cluster.world.run_for(300_000)
    assert max(cluster.replica(i).view for i in range(4)) <= 1, "views ran away"
    cluster.world.network.heal()
    height = max(cluster.height(i) for i in range(4))
    assert cluster.run_to(height + 2, 20_000)


def test_sawtooth_133_views_do_not_run_away_without_a_quorum() -> None:
    """Its new-view timer ran without a quorum of view-changes, so an isolated replica's view did."""
    differs(no_side_has_a_quorum, LeavesAlone, "views ran away")


def commits_of_view_0_are_lost(replica: type[Replica]) -> None:
    cluster = Cluster(4, replica=replica)
    cluster.start()
    cluster.world.run_for(500)
    lost = drop_if(lambda e: isinstance(e.message, Commit) and e.message.vote.view == 0)
    cluster.world.network.rules.append(lost)
    assert cluster.run_to(1, 15_000), "nobody minds"
    block = load_block(cluster.world.nodes[cluster.ids[1]].store, 1)
    assert block is not None
    assert block.header.round == 0, "the block of view 0 was proposed again, byte for byte"
    assert cluster.replica(1).view >= 1


def test_sawtooth_68_and_87_a_prepared_block_that_is_not_committed_costs_the_view() -> None:
    """Its commit timeout was dropped once: the timer must run until commit, not until prepare."""
    differs(commits_of_view_0_are_lost, TimesOnlyPreparing, "nobody minds")


def the_leader_is_silent(block_time_ms: int, replica: type[Replica]) -> None:
    timing = Timing(block_time_ms=block_time_ms)
    cluster = Cluster(4, timing=timing, wrap={0: Silent}, replica=replica)
    cluster.start()
    cluster.submit(0, transfer(0, 0))
    assert cluster.run_to(2, 40_000, [1, 2, 3]), "nobody notices"
    assert cluster.replica(1).view == 1


@pytest.mark.parametrize("block_time_ms", [0, 1_000])
def test_sawtooth_rfc_29_a_silent_leader_is_noticed_without_any_request(block_time_ms: int) -> None:
    """Its timer started only with a request, and clients talked only to the leader."""
    differs(partial(the_leader_is_silent, block_time_ms), NoSilenceTimer, "nobody notices")


def the_leader_omits(block_time_ms: int, replica: type[Replica]) -> None:
    timing = Timing(block_time_ms=block_time_ms)
    cluster = Cluster(4, timing=timing, wrap={0: Censor}, replica=replica)
    cluster.start()
    cluster.world.run_for(3_000)
    cluster.submit(2, transfer(0, 0))
    pending = cluster.world.run_until(lambda: cluster.replica(2).pending == 0, 12_000)
    assert pending, "it waits for ever"
    assert cluster.replica(2).view == 1


@pytest.mark.parametrize("block_time_ms", [0, 1_000])
def test_sawtooth_rfc_29_an_omitted_request_costs_the_leader_its_view(block_time_ms: int) -> None:
    """Who watches only for silence lets a leader leave out whom it likes."""
    differs(partial(the_leader_omits, block_time_ms), NoSilenceTimer, "it waits for ever")


# -- IBFT 1.0 and EIP-650 --------------------------------------------------------------------------


def a_leader_equivocates(n: int, seed: int, *, two_f_plus_one: bool) -> None:
    validators = validator_set(n)
    if two_f_plus_one:
        validators = FewVotes(validators.set_id, validators.members)
    cluster = Cluster(n, seed, wrap={0: Equivocator}, validators=validators)
    cluster.start()
    assert cluster.run_to(2, 60_000, cluster.honest())
    cluster.check_chains()


@pytest.mark.parametrize("n", [5, 6, 21])
def test_ibft_1_persistence_two_f_plus_one_is_no_quorum(n: int) -> None:
    """IBFT 1.0 and sawtooth-pbft decide with 2f + 1; ours takes (n + f) // 2 + 1.

    Six traitors of 21: `sim_variants/two-f-plus-one-of-21.toml`.
    """
    assert validator_set(n).quorum > 2 * validator_set(n).faulty + 1
    a_leader_equivocates(n, 1, two_f_plus_one=False)


def test_ibft_1_persistence_a_traitor_of_six_splits_the_rest() -> None:
    """Within a few seeds: it depends on which side's votes arrive first."""

    def few_seeds(*, two_f_plus_one: bool) -> None:
        for seed in range(5):
            a_leader_equivocates(6, seed, two_f_plus_one=two_f_plus_one)

    few_seeds(two_f_plus_one=False)
    with pytest.raises(AssertionError, match="two blocks"):
        few_seeds(two_f_plus_one=True)


def committed_by_one_then_cut_off(replica: type[Replica]) -> None:
    """Replica 3 commits block 1 and is gone; the others change the view."""
    cluster = Cluster(4, replica=replica)
    cluster.start()
    commits_only_to_3(cluster)
    gone = cut_off(cluster.ids[3])
    cluster.world.network.rules.insert(0, gone)
    assert cluster.world.run_until(lambda: cluster.replica(1).view == 1, 10_000)
    cluster.world.network.rules.clear()
    cluster.world.network.rules.append(gone)
    assert cluster.run_to(2, 30_000, [0, 1, 2])
    cluster.world.network.rules.clear()
    assert cluster.run_to(4, 30_000)
    cluster.check_chains()


def test_eip_650_two_correct_replicas_never_decide_differently() -> None:
    """In its first version a round change unlocked: what one had decided was decided anew by the rest.

    IBFT 2.0 made the round change carry what is prepared, as PBFT's view-change always did.
    """
    differs(committed_by_one_then_cut_off, NoPrepared, "two blocks")


def two_are_locked_on_different_blocks(replica: type[Replica]) -> None:
    """Block X is prepared at 2 alone in view 0, its rival Y at 3 alone in view 1; then 0 dies."""
    cluster = Cluster(4, replica=replica)
    ids = cluster.ids
    only = {0: ids[2], 1: ids[3]}

    def script(envelope: Envelope) -> Verdict | None:
        match envelope.message:
            case Commit():
                return Drop()
            case Prepare(ballot) if envelope.receiver != only.get(ballot.view):
                return Drop()
            case ViewChange(body) if body.view == 1 and envelope.sender == ids[2]:
                return Drop()
        return None

    cluster.world.network.rules.append(script)
    cluster.start()
    assert cluster.world.run_until(lambda: prepared_at(cluster, 2) is not None, 3_000)
    assert cluster.world.run_until(lambda: prepared_at(cluster, 3) is not None, 20_000)
    assert prepared_at(cluster, 2) != prepared_at(cluster, 3)
    assert prepared_at(cluster, 1) is None
    cluster.crash(0)
    cluster.world.network.rules.clear()
    assert cluster.run_to(2, 60_000, [1, 2, 3]), "deadlock"
    cluster.check_chains()


def prepared_at(cluster: Cluster, index: int) -> bytes | None:
    """What a replica would say is prepared at height 1."""
    found = cluster.replica(index).prepared_above_head()
    return found[0].header.hash if found else None


def test_ibft_1_liveness_and_eip_650_revised_locks_on_different_blocks_do_not_deadlock() -> None:
    """There a lock gave way to nothing but a commit, so two of them halted a network for ever.

    Here the certificate of the higher view wins: it proves that the lower one was never committed.
    """
    differs(two_are_locked_on_different_blocks, NeverUnlocks, "deadlock")


# -- ours ------------------------------------------------------------------------------------------


def a_traitor_alone_can_prove_what_is_committed(
    window: int, traitor: int, replica: type[Replica]
) -> None:
    """It proves the highest block in every view-change, so that nobody may propose below it."""
    timing = Timing(window=window, block_time_ms=200)
    cluster = Cluster(4, wrap={traitor: Hoarder}, replica=replica, timing=timing)
    ids = cluster.ids

    def script(envelope: Envelope) -> Verdict | None:
        match envelope.message:
            case Commit(vote) if vote.view == 0 and envelope.receiver != ids[traitor]:
                return Drop()
            case ViewChange():
                return DeliverAfter(1 if envelope.sender == ids[traitor] else 20)
        return None

    cluster.world.network.rules.append(script)
    cluster.start()
    assert cluster.run_to(min(window, 3), 5_000, [traitor])
    assert [cluster.height(i) for i in cluster.honest()] == [0, 0, 0]
    assert cluster.run_to(6, 30_000, cluster.honest()), "everybody waits for its blocks"
    cluster.check_chains()


@pytest.mark.parametrize("traitor", [0, 1, 3])
@pytest.mark.parametrize("window", [1, 4])
def test_a_block_that_a_traitor_alone_can_prove_stops_nobody(window: int, traitor: int) -> None:
    """A proof of commitment in a view-change raises the floor; its bearer may be the only one that has it.

    So it is taken for what it is, proof, by all that see it; and a new primary stands only on view-changes
    whose heads it can serve itself.
    """
    run = partial(a_traitor_alone_can_prove_what_is_committed, window, traitor)
    differs(run, AsksWhoProves, "everybody waits")


def answers_take_longer_than_the_timeout(replica: type[Replica]) -> None:
    """A replica is down for a while, on a network whose round trip is longer than `fetch_timeout_ms`."""
    cluster = Cluster(4, replica=replica, profile=LinkProfile(delay_ms=(1_500, 1_750)))
    cluster.world.start(*cluster.ids[:3])
    assert cluster.run_to(20, 600_000, [0, 1, 2])
    cluster.restart(3)
    height = cluster.height(0)
    assert cluster.run_to(height, 60_000, [3]), "it lags for ever"
    cluster.check_chains()


def test_a_laggard_catches_up_on_a_network_slower_than_its_questions_wait() -> None:
    """Each answer came after its question was given up, and was thrown away; found by a swarm."""
    differs(answers_take_longer_than_the_timeout, Hurried, "it lags for ever")


# -- unordered reads -------------------------------------------------------------------------------


class LeavesOut3(Wrapper):
    """Leads well, but gives replica 3 nothing, not even when asked."""

    def change(self, effect: Effect) -> list[Effect]:
        left_out = self.cluster.ids[3]
        match effect:
            case Broadcast(message):
                return [Send(to, message) for to in self.others() if to != left_out]
            case Send(to, _) if to == left_out:
                return []
        return [effect]


def the_leader_leaves_one_out(replica: type[Replica]) -> None:
    cluster = Cluster(4, replica=replica, wrap={0: LeavesOut3})
    cluster.start()
    cluster.submit(1, transfer(0, 0))
    assert cluster.run_to(20, 60_000, [1, 2])
    cluster.world.run_for(5_000)
    heights = [cluster.height(i) for i in (1, 2, 3)]
    assert min(heights) >= 20, f"a client that wants a quorum of equal replies waits: {heights}"
    # and one reply is enough: it comes with its proof
    store = cluster.world.nodes[cluster.ids[3]].store
    block, raw = load_block(store, 20), load_finality(store, 20)
    assert block is not None
    assert raw is not None
    proof = decode_own(raw, CommitCertificate)
    verify_certificate(proof, block.header, cluster.validators, cluster.world._verifier)


def test_unordered_reads_one_proved_reply_is_enough_and_nobody_stays_behind() -> None:
    """Where reads bypass the order, clients need 2f + 1 equal replies to every request.

    Then a faulty leader that leaves f honest replicas out starves clients for ever, and no honest
    replica complains. We have no such reads: what a client is told is proved under a certified header;
    and who is left out fetches what it misses from the others.
    """
    differs(the_leader_leaves_one_out, HearsOnlyVotes, "a quorum of equal replies")


# -- BFT-SMaRt and hotstuff ------------------------------------------------------------------------


def one_after_the_other_is_cut_off(replica: type[Replica]) -> None:
    """Never more than one, each for 40 s; after each swap the vote of who just came back is needed."""
    cluster = Cluster(4, replica=replica)
    cluster.start()
    for gone in (3, 2, 0, 1):
        cut = cut_off(cluster.ids[gone])
        cluster.world.network.rules.append(cut)
        height = max(cluster.height(i) for i in range(4))
        rest = [i for i in range(4) if i != gone]
        assert cluster.run_to(height + 2, 15_000, rest), f"stuck without {gone}"
        cluster.world.run_for(40_000)
        cluster.world.network.rules.remove(cut)
    assert cluster.run_to(max(cluster.height(i) for i in range(4)) + 2, 15_000)
    cluster.check_chains()


def test_bft_smart_19_a_network_lives_on_whichever_one_is_cut_off() -> None:
    """There one partitioned replica, at the wrong moment, made all others go round in circles."""
    differs(one_after_the_other_is_cut_off, LeavesAlone, "stuck")


def timeouts_are_far_too_short(replica: type[Replica]) -> None:
    timing = Timing(block_time_ms=100, view_timeout_ms=10, retransmit_ms=100)
    profile = LinkProfile(delay_ms=(20, 80), reorder=0.5)
    cluster = Cluster(4, timing=timing, profile=profile, replica=replica)
    cluster.start()
    assert cluster.run_to(10, 20_000), "no view lives long enough"
    cluster.check_chains()


def test_hotstuff_24_a_view_timeout_below_the_networks_delay_is_outgrown() -> None:
    """With a view timeout of 10 ms it stopped deciding for good."""
    differs(timeouts_are_far_too_short, NoPatience, "no view lives long enough")
