"""Real processes: one joins a running chain by snapshot, is killed in the midst, and goes on."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.test_host_kills import ROOT, Nodes, node_height
from tests.unit import host_chain
from tests.unit.host_chain import TestChain, client_parts, places, running

from gridtokenx.host.follow import Follower
from gridtokenx.host.storage import Store
from gridtokenx.ledger.records import BLOCKS, base_height, final_height, load_block, load_head
from gridtokenx.ledger.runtime import Context, Ledger, Module
from gridtokenx.ledger.state import Map
from gridtokenx.pbft.snapshot import SNAPSHOT, Staging
from gridtokenx.pbft.timing import Timing

pytestmark = pytest.mark.e2e

NEW = 3
TIMING = Timing(
    block_time_ms=100,
    view_timeout_ms=3_000,
    retransmit_ms=300,
    checkpoint_blocks=8,
    snapshot_distance=20,
    part_bytes=1_500,
)
NODE = """
import sys
from pathlib import Path
from gridtokenx.host.process import serve
from tests.e2e.test_host_snapshot import TIMING, CrowdedChain
from tests.unit import host_chain

async def work():
    host_chain.TIMING = TIMING
    ports = [int(port) for port in sys.argv[4].split(",")]
    chain = CrowdedChain(4, int(sys.argv[1]))
    await chain.node(int(sys.argv[2]), Path(sys.argv[3]), ports).run()

sys.exit(serve(work))
"""


class Crowd(Module):
    """Forty more keys with every block, so that the state has many parts."""

    name = "crowd"
    _values = Map("crowd", bytes)

    def begin_block(self, ctx: Context) -> None:
        for number in range(40):
            self._values.put(ctx.state, bytes(20), ctx.height, number)


class CrowdedChain(TestChain):
    """A chain whose state takes many messages."""

    def __init__(self, count: int = 4, genesis_ms: int | None = None) -> None:
        super().__init__(count, genesis_ms)
        small = self.ledger
        modules = [*small.modules, Crowd()]
        self.ledger = Ledger(small.chain_id, modules, self.admission, small._authorities)
        self.genesis = self.ledger.genesis(self.genesis.header.timestamp_ms)


class SnapshotNodes(Nodes):
    """Four node processes of that chain."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.chain = CrowdedChain(4, self.genesis_ms)

    def start(self, index: int, crash_at: str = "") -> None:
        arguments = [str(self.genesis_ms), str(index), str(self.home)]
        self.processes[index] = subprocess.Popen(
            [sys.executable, "-c", NODE, *arguments, ",".join(map(str, self.ports))],
            env={**os.environ, "GTX_CRASH_AT": crash_at, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def parts(self, index: int) -> int:
        """How many parts of a state lie on a stopped node's disk."""
        store = Store.open(self.home / str(index), read_only=True)
        try:
            assert base_height(store) == 0, "not adopted yet"
            return sum(1 for _ in store.scan(SNAPSHOT, b"part/"))
        finally:
            store.close()

    def check_taken_over(self, index: int, by: int) -> None:
        """A stopped node has the state, and every block from there on that another one has."""
        one = Store.open(self.home / str(index), read_only=True)
        other = Store.open(self.home / str(by), read_only=True)
        try:
            base, head = base_height(one), final_height(one) or 0
            assert 20 < base <= head
            loaded = load_head(one)  # raises if the state has not the header's root
            assert loaded is not None
            for height in range(base, min(head, final_height(other) or 0) + 1):
                assert load_block(one, height) == load_block(other, height)
            assert len(list(one.scan(BLOCKS))) < head, "most blocks below it were never fetched"
            target = Staging(one).height
            assert not target or target > head, "none, or the next one: the machine is slow"
            one.check()
        finally:
            one.close()
            other.close()


async def test_a_new_process_joins_by_snapshot_though_it_is_killed_in_the_midst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_chain, "TIMING", TIMING)
    network = SnapshotNodes(tmp_path)
    try:
        for index in range(NEW):
            network.start(index)
        follower = Follower(network.chain.trust, places(network.ports), client_parts(network.chain))
        async with running(follower):
            head = await asyncio.wait_for(follower.wait_beyond(32), 60)
            network.start(NEW, "storage.after_commit:8")
            assert await asyncio.to_thread(network.wait, NEW) == 137
            assert network.parts(NEW) > 0
            network.start(NEW)
            async with asyncio.timeout(60):
                reached = -1
                while reached < head.header.height + 16:
                    reached = await node_height(follower, network.ports[NEW])
        assert await asyncio.to_thread(network.stop) == [0, 0, 0, 0]
        network.check_taken_over(NEW, by=0)
    finally:
        for process in network.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()
