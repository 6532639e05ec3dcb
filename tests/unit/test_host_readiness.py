"""What `/ready` of a node says when something is wrong."""

import asyncio
from pathlib import Path

from tests.unit.host_chain import TestChain, running
from tests.unit.host_network import until

from gridtokenx.host.readiness import READY
from gridtokenx.lab.ports import free_ports


async def test_a_lonely_node_says_what_it_lacks(tmp_path: Path) -> None:
    chain, ports = TestChain(), free_ports(4)
    first, second = (chain.node(index, tmp_path, ports) for index in range(2))
    async with running(first):
        await asyncio.sleep(0)
        assert first.readiness().reasons == (
            "nothing but genesis is final here",
            "linked to 0 of 3 other members, 2 are needed",
        )
        async with running(second):
            await until(lambda: first._network.members)
            await until(lambda: first._network.unreached == {"unreachable": 2})
            words = "linked to 1 of 3 other members, 2 are needed (not reached: 2 unreachable)"
            assert words in first.readiness().reasons
            first.add_reasons(lambda: ["certificate revoked"])
            assert first.readiness().reasons[-1] == "certificate revoked"


async def test_a_node_of_an_old_chain_says_how_old(tmp_path: Path) -> None:
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, tmp_path, ports)
    async with running(node):
        await until(lambda: node.head.height >= 1)
        assert node.readiness() == READY
        later_ms = node.head.header.timestamp_ms + 90_000
        node._parts.clock._wall = lambda: later_ms  # type: ignore[misc]
        (reason,) = node.readiness().reasons
        assert reason == (
            f"the last final block {node.head.height} is 90 s old, at most 60 s are allowed; "
            "syncing: it grows"
        )
