"""Chains whose leadership passes on every few blocks: whom it costs what, and that nobody notices else."""

from collections import Counter

import pytest
from tests.simulation.members_cluster import MembersCluster, add
from tests.simulation.pbft_cluster import Censor, Cluster, Silent, transfer

from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import parse
from gridtokenx.lab.sim.network import Envelope, LinkProfile
from gridtokenx.ledger.records import load_block
from gridtokenx.pbft.messages import Status, Suspect, ViewChange
from gridtokenx.pbft.rotation import PERIOD_VIEWS, primary_of
from gridtokenx.pbft.timing import Timing


def rounds(cluster: Cluster, index: int) -> list[int]:
    """Views of first proposal, block by block."""
    store = cluster.world.nodes[cluster.ids[index]].store
    blocks = [load_block(store, height) for height in range(1, cluster.height(index) + 1)]
    return [block.header.round for block in blocks if block is not None]


class Counting:
    """Counts messages by kind; loses none."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def __call__(self, envelope: Envelope) -> None:
        self.kinds[type(envelope.message).__name__] += 1


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("n", [4, 6])
def test_everybody_leads_in_turn_and_no_view_changes(n: int, window: int) -> None:
    cluster = Cluster(n, rotation_blocks=2, timing=Timing(block_time_ms=100, window=window))
    cluster.start()
    assert cluster.run_to(4 * n, 30_000)
    led = [primary_of(view, cluster.validators) for view in rounds(cluster, 0)]
    assert led[: 2 * n] == [replica for replica in range(n) for _ in range(2)]
    assert all(view % PERIOD_VIEWS == 0 for view in rounds(cluster, 0))


def test_passing_on_takes_no_message() -> None:
    counts = []
    for blocks in (0, 1):
        cluster = Cluster(4, rotation_blocks=blocks)
        counting = Counting()
        cluster.world.network.rules.append(counting)
        cluster.start()
        assert cluster.run_to(30, 40_000)
        counts.append(counting.kinds)
    kept, passed_on = counts
    assert not {ViewChange.__name__, Suspect.__name__} & passed_on.keys()
    assert passed_on[Status.__name__] <= kept[Status.__name__] + 4
    assert sum(passed_on.values()) <= sum(kept.values()) * 1.05


def test_a_replica_that_is_down_costs_one_view_change_each_time_round() -> None:
    cluster = Cluster(4, rotation_blocks=5, timing=Timing(block_time_ms=100, view_timeout_ms=500))
    cluster.start()
    assert cluster.run_to(2, 5_000)
    cluster.crash(2)
    assert cluster.run_to(60, 60_000, [0, 1, 3])
    attempts = {view // PERIOD_VIEWS: view % PERIOD_VIEWS for view in rounds(cluster, 0)}
    assert attempts == {period: int(period % 4 == 2) for period in range(12)}
    cluster.restart(2)
    assert cluster.run_to(cluster.height(0) + 10, 20_000)
    cluster.check_chains()


@pytest.mark.parametrize("n", [7, 21])
def test_f_silent_leaders_in_a_row_cost_f_attempts(n: int) -> None:
    faulty = (n - 1) // 3
    timing = Timing(view_timeout_ms=1_000)
    silent = dict.fromkeys(range(1, 1 + faulty), Silent)
    cluster = Cluster(n, rotation_blocks=1, wrap=silent, timing=timing)
    cluster.start()
    assert cluster.run_to(2, 400_000, cluster.honest())
    assert max(view % PERIOD_VIEWS for view in rounds(cluster, 0)) == faulty
    cluster.check_chains()


def test_a_censor_keeps_nothing_out_beyond_its_own_blocks() -> None:
    """It is not even blamed: its turn is over before the bound is."""
    cluster = Cluster(4, rotation_blocks=2, wrap={0: Censor})
    cluster.start()
    cluster.submit(2, transfer(0, 0))
    assert cluster.world.run_until(lambda: cluster.replica(2).pending == 0, 4_000)
    assert set(rounds(cluster, 2)) == {0, PERIOD_VIEWS}


def test_the_next_leader_is_not_blamed_for_what_the_last_one_left_out() -> None:
    """A turn of nearly the whole bound is left out, and the next leader hears of it late."""
    timing = Timing(request_timeout_ms=3_000, block_time_ms=1_000)
    cluster = Cluster(4, rotation_blocks=3, wrap={0: Censor}, timing=timing)
    cluster.world.network.profile = LinkProfile(delay_ms=(200, 300))
    cluster.start()
    cluster.world.run_for(300)
    cluster.submit(2, transfer(0, 0))
    assert cluster.world.run_until(lambda: cluster.replica(2).pending == 0, 10_000)
    cluster.world.run_for(5_000)
    assert all(view % PERIOD_VIEWS == 0 for view in rounds(cluster, 1))


def test_a_new_set_begins_its_own_periods() -> None:
    cluster = MembersCluster(4, 5, rotation_blocks=3)
    cluster.start()
    assert cluster.settle(4)
    assert cluster.hand_over(add(4))
    assert cluster.settle(8)
    for index in range(5):
        replica = cluster.replica(index)
        above = replica.head.height - replica._term.root.height
        assert replica.view == above // 3 * PERIOD_VIEWS
    cluster.check_chains()


def test_who_was_away_for_many_periods_comes_back_with_its_vote() -> None:
    cluster = Cluster(4, rotation_blocks=1, timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.run_to(2, 5_000)
    cluster.crash(3)
    assert cluster.run_to(30, 200_000, [0, 1, 2])
    cluster.restart(3)
    cluster.world.run_for(6_000)
    cluster.crash(2)
    height = cluster.height(0)
    assert cluster.run_to(height + 5, 30_000, [0, 1, 3]), "now its vote is needed"
    cluster.check_chains()


@pytest.mark.slow
def test_light_clients_relayers_and_markets_do_not_notice() -> None:
    """The whole network, with two chains whose leaders rotate, one of which loses a leader for a while."""
    outcome = execute(parse(NETWORK), 7)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.views >= 1, "the one that was down cost an attempt"
    assert outcome.summary is not None
    delivered = {name: route["delivered"] for name, route in outcome.summary["packets"].items()}
    assert delivered["oracle-consortium"] >= 1
    assert delivered["consortium-oracle"] >= 1


NETWORK = """
name = "rotating"
[testnet.devices]
households = 2
profile_days = 1
[testnet.consortium]
rotation_blocks = 3
[testnet.oracle]
rotation_blocks = 2
[safety]
duration_ms = 50000
[[fault]]
kind = "crash"
nodes = ["consortium-1"]
at_ms = 10000
for_ms = 9000
"""
