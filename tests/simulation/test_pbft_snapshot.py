"""State transfer in the simulated world: far-behind, cut off, lied to; the state is always the chain's."""

from collections.abc import Iterable

import pytest
from tests.simulation.pbft_cluster import Cluster, transfer

from gridtokenx.ledger.records import base_height, load_block, load_head
from gridtokenx.pbft.snapshot import SNAPSHOT
from gridtokenx.pbft.timing import Timing

TIMING = Timing(checkpoint_blocks=4, snapshot_distance=12, part_bytes=200)
ARCHIVE = Timing(checkpoint_blocks=4, snapshot_distance=0, part_bytes=200)


def lagging(
    cluster: Cluster, victim: int = 3, *, blocks: int = 30, among: Iterable[int] = (0, 1, 2)
) -> None:
    """Run the chain, with work in every block, while one replica is down."""
    others = list(among)
    cluster.world.start(*(cluster.ids[index] for index in others))
    for number in range(blocks):
        cluster.submit(others[0], transfer(number % 4, number // 4))
        assert cluster.run_to(number + 1, 20_000, others)
    assert cluster.height(victim) == 0


def catches_up(cluster: Cluster, index: int, limit_ms: int = 30_000) -> int:
    """Let one replica reach the others; returns the height of the state that it took over."""
    others = [other for other in cluster.honest() if other != index]
    target = max(cluster.height(other) for other in others) + 3
    assert cluster.run_to(target, limit_ms, [index]), cluster.height(index)
    return check_disk(cluster, index)


def check_disk(cluster: Cluster, index: int) -> int:
    """Its blocks from the base on are the chain's, and its state is what re-execution makes."""
    store = cluster.world.nodes[cluster.ids[index]].store
    base, head = base_height(store), cluster.height(index)
    for height in range(base, head + 1):
        block = load_block(store, height)
        assert block is not None
        assert height == 0 or block.hash == cluster.chain.setdefault(height, block.hash)
    loaded = load_head(store)  # raises if the state does not have the header's root
    assert loaded is not None
    assert not list(store.scan(SNAPSHOT))
    return base


@pytest.mark.parametrize("seed", range(4))
def test_who_is_far_behind_takes_a_state_and_goes_on_by_blocks(seed: int) -> None:
    cluster = Cluster(seed=seed, timing=TIMING)
    lagging(cluster)
    cluster.restart(3)
    assert catches_up(cluster, 3) >= 28
    assert not cluster.rejections()
    assert cluster.replica(3).head.state.root == cluster.replica(3).head.header.state_root


def test_the_state_is_what_replaying_gives() -> None:
    heads = []
    for timing in (TIMING, ARCHIVE):
        cluster = Cluster(seed=5, timing=timing)
        lagging(cluster)
        cluster.restart(3)
        base = catches_up(cluster, 3)
        assert bool(base) == bool(timing.snapshot_distance)
        executed = cluster.genesis
        head = cluster.height(3)
        assert cluster.run_to(head, 5_000)
        store = cluster.world.nodes[cluster.ids[3]].store
        assert cluster.height(3) == head
        for height in range(1, head + 1):
            block = load_block(cluster.world.nodes[cluster.ids[0]].store, height)
            assert block is not None
            executed = cluster.ledger.execute(executed, block)
        assert dict(store.scan("state")) == dict(executed.state.items())
        heads.append(executed.height)
    assert min(heads) > 30
