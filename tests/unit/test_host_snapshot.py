"""A real node that took a state over: what it keeps, what it says of the rest, and who still gets what."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit import host_chain
from tests.unit.host_chain import client_parts, node_signer, places
from tests.unit.test_host_observers import Net

from gridtokenx.core.errors import RemoteFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.follow import Follower
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.records import base_height, load_block
from gridtokenx.pbft.membership import ReplaceMember
from gridtokenx.pbft.timing import Timing

TIMING = Timing(
    block_time_ms=100,
    view_timeout_ms=2_000,
    retransmit_ms=300,
    checkpoint_blocks=4,
    snapshot_distance=10,
    part_bytes=400,
)
NEW = 5


@pytest.fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    """Four replicas of whom one was replaced by a fifth, and a sixth that came by snapshot."""
    monkeypatch.setattr(host_chain, "TIMING", TIMING)
    made = Net(tmp_path)
    try:
        made.start(0, 1, 2, 3, 4)
        await made.grow(2)
        keys = [node_signer(index).public_key for index in (0, 4)]
        await made.change(ReplaceMember(key=keys[0], by=keys[1], label="node 4"))
        await made.grow(14)
        made.start(NEW)
        await made.grow(4)
        yield made
    finally:
        for index in list(made.tasks):
            await made.stop(index)


@asynccontextmanager
async def following(
    net: Net, nodes: Sequence[int], *, from_newest: bool = False
) -> AsyncIterator[Follower]:
    addresses = places([net.ports[index] for index in nodes])
    parts = client_parts(net.chain)
    follower = Follower(net.chain.trust, addresses, parts, from_newest=from_newest)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def ended(net: Net, index: int) -> tuple[Header, ValidatorSet]:
    """How the first set ended, as a node tells; each has its own quorum's certificate."""
    handover = net.nodes[index].history.handover(0)
    return handover.header, handover.next_set


async def test_a_node_that_took_a_state_over_says_what_it_has(net: Net) -> None:
    node = net.nodes[NEW]
    base, head = node.history.base, node.head.height
    store = node._parts.store
    assert 0 < base <= head
    assert node.facts()["kept_from"] == base == base_height(store)
    assert net.gauge(NEW, "kept_from_height") == base
    assert net.nodes[1].facts()["kept_from"] == 0
    assert load_block(store, base - 1) is None
    for ask in (lambda: node.history.followed(0, 9), lambda: node.history.blocks(base - 1, 3)):
        with pytest.raises(RemoteFault, match="not-kept"):
            ask()
    assert node.history.blocks(base, 2)[0].height == base
    assert node.history.followed(base - 1, 2).blocks[0].header.height == base
    assert node.history.newest().header.height >= head
    assert ended(net, NEW) == ended(net, 1)
    with pytest.raises(RemoteFault, match="no-handover"):
        node.history.handover(1)

    await clients_go_past_it_for_old_blocks_and_trust_it_for_new_ones(net)


async def clients_go_past_it_for_old_blocks_and_trust_it_for_new_ones(net: Net) -> None:
    async with following(net, [NEW, 1]) as follower:
        head = await follower.wait_beyond(net.nodes[NEW].history.base)
        assert head.header.set_id == 1, "from genesis, through all blocks, by another node"
    async with following(net, [NEW], from_newest=True) as follower:
        head = await asyncio.wait_for(follower.wait_beyond(0), 10)
        assert head.header.height >= net.nodes[NEW].history.base, "through the handover, by itself"


async def test_it_lives_on_as_any_other(net: Net) -> None:
    base = net.nodes[NEW].history.base
    await net.stop(NEW)
    await net.grow(2)
    net.start(NEW)
    await net.grow(2)
    assert net.nodes[NEW].history.base == base
    assert ended(net, NEW) == ended(net, 1)
    await net.change(
        ReplaceMember(key=node_signer(1).public_key, by=node_signer(NEW).public_key, label="node 5")
    )
    await net.stop(2)
    await net.grow(3)
    assert net.nodes[NEW].seat is not None, "the set of four cannot do without it now"
