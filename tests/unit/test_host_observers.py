"""Real nodes of a chain whose set changes: observers follow, get a seat, lose it; clients cross over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.host_chain import (
    CHAIN_ID,
    CLIENTS,
    TREASURY,
    TestChain,
    client_parts,
    node_signer,
    places,
)

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.quorum import quorum
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.host.chain_node import ChainNode
from gridtokenx.host.follow import Follower
from gridtokenx.host.metrics import Metrics
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.records import load_finality
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Allocation, Tokens
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.pbft.membership import (
    OPEN,
    AddMember,
    ApproveChange,
    Change,
    Membership,
    ProposeChange,
    RemoveMember,
    ReplaceMember,
    new_key,
    possession_bytes,
    validators_of,
)

PATIENCE_S = 40.0
NODES = 6
KEYS = {node_signer(i).public_key: i for i in range(NODES)}


class MembersChain(TestChain):
    """Four seats at first, and members who decide."""

    validators_of = staticmethod(validators_of)

    def __init__(self) -> None:
        super().__init__(4)
        self.membership = Membership(self.validators)
        self.tokens = Tokens([Allocation("WATT", each.public_key, 10**9) for each in CLIENTS])
        self.admission = StrictNonce(TokenFee(self.tokens, "WATT", 0, TREASURY))
        modules = (self.membership, self.tokens)
        self.ledger = Ledger(CHAIN_ID, modules, self.admission, self.membership.reference)
        self.genesis = self.ledger.genesis(self.genesis.header.timestamp_ms)


class Net:
    """Nodes of the chain, running in this loop."""

    def __init__(self, home: Path) -> None:
        self.chain, self.home = MembersChain(), home
        self.ports = free_ports(NODES)
        self.nodes: dict[int, ChainNode] = {}
        self.metrics: dict[int, Metrics] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, *indices: int) -> None:
        for index in indices:
            self.metrics[index] = Metrics()
            node = self.chain.node(index, self.home, self.ports, self.metrics[index])
            self.nodes[index] = node
            self.tasks[index] = asyncio.create_task(node.run())

    async def stop(self, index: int) -> None:
        task = self.tasks.pop(index)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self.nodes[index]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                for task in self.tasks.values():
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def grow(self, blocks: int = 3) -> None:
        """Everybody has so many more blocks than anybody has now."""
        goal = self.top.height + blocks
        await self.until(lambda: all(n.head.height >= goal for n in self.nodes.values()))

    @property
    def top(self):
        return max((node.head for node in self.nodes.values()), key=lambda head: head.height)

    def gauge(self, index: int, name: str) -> float:
        return next(read() for read in self.metrics[index]._gauges[name].values())

    def say(self, index: int, call: Wire) -> None:
        """A member says something, to its own node."""
        signer, node = node_signer(index), self.nodes[index]
        nonce = self.chain.admission.next_nonce(State(self.top.state), signer.public_key)
        node.submit([sign_transaction(signer, CHAIN_ID, nonce, [call])])

    async def change(self, change: Change) -> None:
        """Propose, approve, and wait until all nodes have crossed over."""
        present, newcomer = validators_of(self.top.state), new_key(change)
        what = possession_bytes(CHAIN_ID, present.set_id, change)
        proof = None if newcomer is None else node_signer(KEYS[newcomer]).sign(what)
        seats = [KEYS[key] for key in present.members if KEYS[key] in self.nodes]
        self.say(seats[0], ProposeChange(change=change, proof=proof))
        await self.until(  # a node refuses an approval of what it does not know yet
            lambda: all(OPEN.get(State(node.head.state)) for node in self.nodes.values())
        )
        number = OPEN.get(State(self.top.state))[-1].proposal
        for seat in seats[1 : quorum(present.size)]:
            self.say(seat, ApproveChange(proposal=number))
        await self.until(
            lambda: all(
                node.history.validators.set_id == present.set_id + 1 for node in self.nodes.values()
            )
        )


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    made = Net(tmp_path)
    try:
        yield made
    finally:
        for index in list(made.tasks):
            await made.stop(index)


@asynccontextmanager
async def following(net: Net) -> AsyncIterator[Follower]:
    follower = Follower(net.chain.trust, places(net.ports[:4]), client_parts(net.chain))
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def add(index: int) -> AddMember:
    return AddMember(key=node_signer(index).public_key, label=f"node {index}")


async def test_an_observer_follows_joins_votes_and_leaves(net: Net) -> None:
    net.start(0, 1, 2, 3)
    await net.grow()
    net.start(4)
    await net.grow()
    assert net.nodes[4].facts()["seat"] == "observer"
    assert [net.gauge(4, name) for name in ("set_id", "members", "seated")] == [0, 4, 0]
    async with following(net) as follower:
        await net.change(add(4))
        await net.grow()
        assert net.nodes[4].facts()["seat"] == 4
        assert [net.gauge(4, name) for name in ("set_id", "members", "seated")] == [1, 5, 1]
        await net.stop(0)  # quorum of five: now its vote is needed
        await net.grow()
        assert signers(net, net.top.height - 1) == {1, 2, 3, 4}
        net.start(0)
        await net.grow()
        await net.change(RemoveMember(key=node_signer(1).public_key))
        await net.grow()
        assert net.nodes[1].facts()["seat"] == "observer"
        await net.until(lambda: follower.trust.validators.set_id == 2)
        await net.until(lambda: follower.trust.height >= net.top.height - 1)
    for metrics in net.metrics.values():
        assert metrics.value("bans") == 0


async def test_a_newcomer_replays_across_handovers_and_a_restart_knows_its_set(net: Net) -> None:
    net.start(0, 1, 2, 3, 4)
    await net.grow()
    await net.change(add(4))
    await net.change(
        ReplaceMember(
            key=node_signer(2).public_key, by=node_signer(5).public_key, label="a new key"
        )
    )
    net.start(5)  # its seat waits for it, it has nothing
    await net.grow()
    assert net.nodes[5].facts()["seat"] == 2
    assert all(metrics.value("bans") == 0 for metrics in net.metrics.values())
    for index in (0, 5):
        await net.stop(index)
        net.start(index)
        assert net.nodes[index].history.validators.set_id == 2
        await net.grow()
    async with following(net) as follower:  # from genesis, through two handovers
        await net.until(lambda: follower.trust.height >= net.top.height - 1)
        assert follower.trust.validators == net.nodes[0].history.validators


def signers(net: Net, height: int) -> set[int]:
    """Whose commits are in a certificate; at most a quorum is."""
    node = next(iter(net.nodes.values()))
    raw = load_finality(node._parts.store, height)
    assert raw is not None
    members = node.history.validators.members
    return {KEYS[members[s.index]] for s in decode_own(raw, CommitCertificate).signatures}
