"""Two processes with one key: the first stays, the second is told, and one liar stops nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.host_chain import TestChain
from tests.unit.host_chain import running as running_chain
from tests.unit.host_network import LOOPBACK, Node, addresses, signer, until

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.handshake import IN_USE
from gridtokenx.host.link import Link
from gridtokenx.host.logs import NullLogger, SparseLog
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.transport import dial
from gridtokenx.host.twins import SETTLE_S, Twins
from gridtokenx.lab.ports import free_ports


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in nodes:
            await node.network.close()


async def mesh(count: int) -> tuple[list[Node], list[NodeAddress]]:
    ports = free_ports(count)
    known = addresses(range(count), ports)
    nodes = [Node(number, known) for number in range(count)]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    await until(lambda: all(len(node.network.members) == count - 1 for node in nodes))
    return nodes, known


async def test_a_twin_is_refused_and_stops_before_it_has_signed() -> None:
    nodes, known = await mesh(4)
    twin = Node(1, known)  # the address of the first is in its list, too
    twin.network.start(LOOPBACK)
    async with running(*nodes, twin):
        with pytest.raises(LocalFault, match=f"another process runs with the key {twin.key.hex()}"):
            await twin.network.settle()
        assert not twin.network.members
        assert len(nodes[1].network.members) == 3
        assert not nodes[1].recorder.down
        assert list(nodes[1].network.reasons()) == []


async def test_f_plus_one_members_stop_a_twin_that_does_not_know_where_the_first_is() -> None:
    nodes, known = await mesh(4)
    twin = Node(3, known[:3], members=[each.identity for each in known if each.identity])
    twin.network.start(LOOPBACK)
    async with running(*nodes, twin):
        with pytest.raises(
            LocalFault, match=r"2 members say so; .*: linked from 127.0.0.1:\d+ for"
        ):
            await twin.network.settle()
        await asyncio.sleep(0.5)
        assert not twin.network.members


async def test_one_liar_stops_nobody() -> None:
    twins = Twins(signer(0).public_key, SparseLog(NullLogger()), Metrics())
    twins.told(signer(1).public_key, "linked from nowhere")
    await twins.settle(lambda: 2, 2, 1)
    assert list(twins.reasons(1)) == []
    twins.told(signer(2).public_key, "linked from elsewhere")
    (reason,) = twins.reasons(1)
    assert reason.startswith("identity in use: 2 members say so; ")
    twins.linked(signer(2).public_key)
    assert list(twins.reasons(1)) == []


async def test_a_machine_is_held_until_enough_answer_and_not_for_ever() -> None:
    twins = Twins(signer(0).public_key, SparseLog(NullLogger()), Metrics())
    linked: list[bytes] = []
    settling = asyncio.create_task(twins.settle(lambda: len(linked), 2, 1))
    for number in (1, 2):
        await asyncio.sleep(0.01)
        assert not settling.done()
        linked.append(signer(number).public_key)
        twins.linked(linked[-1])
    await asyncio.wait_for(settling, 60)
    began = asyncio.get_running_loop().time()
    await twins.settle(lambda: 1, 2, 1)
    assert asyncio.get_running_loop().time() - began > SETTLE_S - 0.1


async def test_a_dead_link_makes_way() -> None:
    """The first process was cut off without a word: its link is open, and nobody answers."""
    nodes, known = await mesh(2)
    host, first = nodes
    silent = first.network._links[host.key]
    silent.transport.pause_reading()
    again = Node(1, known[:1])
    again.network.start(None)
    async with running(host, first, again):
        await until(lambda: again.network.members == (host.key,))
        assert host.network._links[again.key].instance == again.parts.own.instance
        assert host.recorder.down == [first.key]
        silent.abort("done")


async def test_the_dialing_side_refuses_a_twin_too() -> None:
    """The smaller key dials, so the larger one's twin at another address is found by dialing."""
    nodes, known = await mesh(2)
    smaller, larger = sorted(nodes, key=lambda node: node.key)
    number = nodes.index(larger)
    twin = Node(number, [], members=[smaller.key])
    twin.network.start(LOOPBACK)
    async with running(*nodes, twin):
        with pytest.raises(Exception, match=IN_USE):
            await smaller.network._dial_peer(twin.address)
        await until(lambda: twin.metrics.value("identity_in_use"))
        assert smaller.network._links[larger.key].instance == larger.parts.own.instance
        assert list(twin.network.reasons()) != []  # two members: none may lie
    del known


async def test_a_running_node_that_is_told_goes_on_and_says_so() -> None:
    nodes, known = await mesh(4)
    await nodes[3].network.settle()
    for each in nodes[:2]:
        link = each.network._links[nodes[3].key]
        nodes[3].network._twins.told(each.key, link.where)
    async with running(*nodes):
        (reason,) = nodes[3].network.reasons()
        assert reason.startswith("identity in use: 2 members say so")
        assert len(nodes[3].network.members) == 3
    del known


async def test_clients_with_one_key_are_served_side_by_side_and_warned() -> None:
    host = Node(0)
    host.network.start(LOOPBACK)
    async with running(host):
        links = []
        for count in range(host.parts.limits.same_client):
            client = Node(1, role="client")
            links.append(Link(client.parts.limits.link))
            accepted = await dial(client.parts, host.address, links[-1])
            assert accepted.twin.startswith("127.0.0.1:") == bool(count)
        await until(lambda: host.network.clients == len(links))
        links.append(Link(host.parts.limits.link))
        with pytest.raises(Exception, match=f"{IN_USE}: 4 processes"):
            await dial(client_of(1), host.address, links[-1])
        other = Link(host.parts.limits.link)
        assert (await dial(client_of(2), host.address, other)).twin == ""
        for link in (*links, other):
            link.close("done")


def client_of(number: int):  # type: ignore[no-untyped-def]  # a test's shorthand
    return Node(number, role="client").parts


async def test_the_same_process_may_come_again() -> None:
    """A client whose first link was lost without a word replaces it, as ever."""
    host, client = Node(0), Node(1, role="client")
    host.network.start(LOOPBACK)
    async with running(host):
        links = [Link(client.parts.limits.link) for _ in range(3)]
        for link in links:
            assert (await dial(client.parts, host.address, link)).twin == ""
            link.raise_up(host.key, "node")
        await until(lambda: host.network.clients == 1)
        await until(lambda: links[0].closed and links[1].closed)
        links[2].close("done")


async def test_a_chain_node_with_a_twin_ends_with_one_line(tmp_path: Path) -> None:
    chain, ports = TestChain(), free_ports(4)
    nodes = [chain.node(index, tmp_path, ports) for index in range(4)]
    async with running_chain(*nodes):
        await until(lambda: all(node.head.height >= 2 for node in nodes))
        ports_of_twin = [*ports[:3], free_ports(1)[0]]
        twin = chain.node(3, tmp_path / "twin", ports_of_twin)
        with pytest.raises(BaseExceptionGroup) as caught:
            await twin.run()
        (fault,) = caught.value.exceptions
        assert isinstance(fault, LocalFault)
        assert "nothing was signed here" in str(fault)
        assert twin.head.height == 0
        height = nodes[3].head.height
        await until(lambda: nodes[3].head.height > height)


async def test_a_fleet_that_starts_without_its_peers_begins_after_a_while(tmp_path: Path) -> None:
    """All the others are down: nobody can say anything, and the machine starts all the same."""
    chain, ports = TestChain(), free_ports(4)
    node = chain.node(0, tmp_path, ports)
    async with running_chain(node):
        await until(lambda: node._driver._timers.next_ms() is not None)
