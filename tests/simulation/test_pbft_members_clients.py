"""Light clients of a chain whose replica set changes: every handover passes through them, in order."""

import random

import pytest
from msgspec import structs
from tests.simulation.members_cluster import MembersCluster, add, remove, replace
from tests.simulation.pbft_cluster import CHAIN_ID, VERIFIER

from gridtokenx.core.codec import decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import sha256
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.clients import (
    CertifiedHeader,
    ClientGenesis,
    ClientKind,
    ClientState,
    check_update,
    initial_state,
)
from gridtokenx.lab.sim.world import START_MS
from gridtokenx.ledger.records import load_block, load_finality
from gridtokenx.pbft.timing import Timing

HOUR_MS = 3_600_000


class LightClient:
    """Another chain's client of the cluster's chain."""

    def __init__(self, cluster: MembersCluster) -> None:
        self.cluster = cluster
        first = cluster.chain.first
        genesis = ClientGenesis(
            client_id="watched",
            counterparty="watcher",
            chain_id=CHAIN_ID,
            kind=ClientKind.PBFT,
            set_id=first.set_id,
            validators=first.members,
            trusting_period_ms=HOUR_MS,
            clock_drift_ms=30_000,
        )
        self.client: ClientState = initial_state(genesis, sha256(b"watcher"), START_MS)
        self.members = first

    def take(self, height: int, next_set: ValidatorSet | None = None) -> None:
        """Believe the header at a height, as some replica's disk has it."""
        certified = stored(self.cluster, height)
        header = certified.header
        if next_set is None and header.next_set_hash != self.members.hash:
            next_set = self.cluster.sets[header.set_id + 1]
        self.members = check_update(
            self.client, self.members, certified, next_set, self.cluster.world.now, VERIFIER
        )
        self.client = structs.replace(
            self.client,
            set_id=self.members.set_id,
            latest_height=header.height,
            latest_timestamp_ms=header.timestamp_ms,
            latest_hash=header.hash,
        )


def stored(cluster: MembersCluster, height: int) -> CertifiedHeader:
    """What is on the disk of a replica that has it."""
    for node in cluster.world.nodes.values():
        block, raw = load_block(node.store, height), load_finality(node.store, height)
        if block is not None and raw is not None:
            return CertifiedHeader(block.header, decode_own(raw, CommitCertificate))
    raise AssertionError(f"nobody has block {height}")


def three_handovers(window: int) -> MembersCluster:
    cluster = MembersCluster(4, 6, timing=Timing(block_time_ms=200, window=window))
    cluster.start()
    for change in (add(4), replace(0, by=5), remove(1)):
        assert cluster.settle()
        assert cluster.hand_over(change)
    assert cluster.settle()
    return cluster


def ends(cluster: MembersCluster) -> list[int]:
    """Heights of the blocks that hand over."""
    headers = [stored(cluster, height).header for height in range(1, cluster.newest.height + 1)]
    return [h.height for h in headers if h.next_set_hash != cluster.sets[h.set_id].hash]


@pytest.mark.parametrize("window", [1, 4])
def test_a_client_follows_every_header(window: int) -> None:
    cluster = three_handovers(window)
    client = LightClient(cluster)
    for height in range(1, cluster.newest.height + 1):
        client.take(height)
    assert client.members == cluster.members
    assert len(ends(cluster)) == 3


def test_a_client_may_skip_anything_but_handovers() -> None:
    cluster = three_handovers(window=4)
    draw, needed = random.Random(5), ends(cluster)
    for _ in range(20):
        client = LightClient(cluster)
        for height in range(1, cluster.newest.height + 1):
            if height in needed or draw.random() < 0.2:
                client.take(height)
        assert client.members == cluster.members


def test_a_skipped_handover_is_not_believed() -> None:
    cluster = three_handovers(window=1)
    first, second, _ = ends(cluster)
    client = LightClient(cluster)
    with pytest.raises(RemoteFault, match="wrong-set-id"):
        client.take(first + 1)
    with pytest.raises(RemoteFault, match="wrong-set"):
        client.take(first, cluster.sets[2])
    client.take(first)
    with pytest.raises(RemoteFault, match="wrong-set-id"):
        client.take(second + 1)
