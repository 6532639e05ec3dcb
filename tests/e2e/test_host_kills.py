"""Real node processes, killed at named points and at random: nothing committed is lost or changed."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.stages import spread
from tests.unit.host_chain import TestChain, client_parts, places, running

from gridtokenx.host.follow import Follower
from gridtokenx.host.follow_messages import Status
from gridtokenx.host.storage import Store
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.records import final_height, load_block

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NODE = """
import sys
from pathlib import Path
from gridtokenx.host.process import serve
from tests.unit.host_chain import TestChain

async def work():
    chain = TestChain(4, int(sys.argv[1]))
    ports = [int(port) for port in sys.argv[4].split(",")]
    await chain.node(int(sys.argv[2]), Path(sys.argv[3]), ports).run()

sys.exit(serve(work))
"""


class Nodes:
    """Four node processes of one chain."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.genesis_ms = time.time_ns() // 1_000_000
        self.chain = TestChain(4, self.genesis_ms)
        self.ports = free_ports(4)
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, index: int, crash_at: str = "") -> None:
        arguments = [str(self.genesis_ms), str(index), str(self.home)]
        self.processes[index] = subprocess.Popen(
            [sys.executable, "-c", NODE, *arguments, ",".join(map(str, self.ports))],
            env={**os.environ, "GTX_CRASH_AT": crash_at, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, index: int) -> None:
        self.processes[index].kill()
        self.processes[index].communicate()

    def stop(self) -> list[int]:
        """SIGTERM to all; their exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return [self.wait(index) for index in self.processes]

    def wait(self, index: int) -> int:
        process = self.processes[index]
        _, errors = process.communicate(timeout=20)
        if process.returncode not in (0, 137):
            raise AssertionError(errors)
        return process.returncode

    def chains(self) -> list[list[bytes]]:
        """The block hashes on each disk."""
        found: list[list[bytes]] = []
        for index in range(4):
            store = Store.open(self.home / str(index), read_only=True)
            blocks = [load_block(store, h) for h in range((final_height(store) or 0) + 1)]
            found.append([block.hash for block in blocks if block is not None])
            store.check()
            store.close()
        return found


@contextmanager
def nodes(home: Path) -> Iterator[Nodes]:
    network = Nodes(home)
    try:
        yield network
    finally:
        for process in network.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


def assert_one_chain(chains: list[list[bytes]]) -> None:
    longest = max(chains, key=len)
    for chain in chains:
        assert chain == longest[: len(chain)]


async def node_height(follower: Follower, port: int) -> int:
    """What a node says of its own height; -1 if it does not answer."""
    for address, status in (await follower.statuses()).items():
        if address.where.port == port and isinstance(status, Status):
            return status.final_height
    return -1


PLACES = (
    "node.ready",
    "driver.before_step:40",
    "driver.after_step:40",
    "driver.before_send:15",
    "storage.before_commit:12",
    "storage.inside_commit:12",
    "storage.after_commit:12",
)


@pytest.mark.parametrize("place", spread(PLACES, 2))
async def test_a_node_killed_at_a_named_point_comes_back_and_keeps_up(
    tmp_path: Path, place: str
) -> None:
    with nodes(tmp_path) as network:
        for index in range(4):
            network.start(index, place if index == 1 else "")
        follower = Follower(network.chain.trust, places(network.ports), client_parts(network.chain))
        async with running(follower):
            code = await asyncio.to_thread(network.wait, 1)
            assert code == 137
            network.start(1)
            head = await asyncio.wait_for(follower.wait_beyond(3), 30)
            async with asyncio.timeout(30):
                reached = -1
                while reached < head.header.height + 2:
                    reached = await node_height(follower, network.ports[1])
        assert await asyncio.to_thread(network.stop) == [0, 0, 0, 0]
        assert_one_chain(network.chains())


@pytest.mark.slow
async def test_random_kills_of_one_node_after_another(tmp_path: Path) -> None:
    chance = random.Random(7)
    with nodes(tmp_path) as network:
        for index in range(4):
            network.start(index)
        follower = Follower(network.chain.trust, places(network.ports), client_parts(network.chain))
        async with running(follower):
            await asyncio.wait_for(follower.wait_beyond(2), 30)
            for turn in range(6):
                victim = turn % 4
                await asyncio.sleep(chance.uniform(0.0, 0.5))
                await asyncio.to_thread(network.kill, victim)
                network.start(victim)
                assert follower.head is not None
                await asyncio.wait_for(follower.wait_beyond(follower.head.header.height + 3), 30)
            # The last victim may still be starting: it must be up to be stopped in good order.
            async with asyncio.timeout(30):
                for port in network.ports:
                    while await node_height(follower, port) < 0:  # noqa: ASYNC110 - only asking tells
                        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(network.stop) == [0, 0, 0, 0]
        chains = network.chains()
        assert_one_chain(chains)
        assert follower.head is not None
        final = follower.head.header
        assert max(map(len, chains)) > final.height  # what was shown as final is on a disk
        assert max(chains, key=len)[final.height] == final.hash


async def test_three_of_four_must_vote_so_a_restarted_node_votes_again(tmp_path: Path) -> None:
    """With one node gone for good, progress needs the restarted one's votes, not only its reads."""
    with nodes(tmp_path) as network:
        for index in range(4):
            network.start(index)
        follower = Follower(network.chain.trust, places(network.ports), client_parts(network.chain))
        async with running(follower):
            await asyncio.wait_for(follower.wait_beyond(2), 30)
            await asyncio.to_thread(network.kill, 3)
            await asyncio.to_thread(network.kill, 2)
            network.start(2)
            assert follower.head is not None
            await asyncio.wait_for(follower.wait_beyond(follower.head.header.height + 4), 30)
            del network.processes[3]
            async with asyncio.timeout(30):  # it must be up to be stopped in good order
                while await node_height(follower, network.ports[2]) < 0:  # noqa: ASYNC110 - see above
                    await asyncio.sleep(0.1)
        assert await asyncio.to_thread(network.stop) == [0, 0, 0]
        assert_one_chain(network.chains())
