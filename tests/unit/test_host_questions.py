"""A node that is late is not one that is silent: what else it was asked stays asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.host_network import CHAIN, GENESIS, LOOPBACK, Node, signer, until

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.host.follow_messages import (
    Answer,
    Ask,
    Failed,
    GetHandover,
    GetNewest,
    GetStatus,
    Question,
    Submitted,
)
from gridtokenx.host.framing import Channel
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.questions import Late, NodeSet, Refusal
from gridtokenx.host.security import open_security
from gridtokenx.host.transport import NetworkParts

SHORT_S = 2.0
"""Within which an answer comes over loopback."""


class Asked:
    """The questions that a node has heard, and a way to answer them."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def questions(self) -> list[Ask]:
        return [decode(body, Ask) for _, _, body in self.node.recorder.frames]

    def number_of(self, question: type[Question]) -> int | None:
        found = [each.number for each in self.questions() if isinstance(each.question, question)]
        return found[0] if found else None

    async def answer(self, question: type[Question], reply: Submitted | Failed) -> None:
        await until(lambda: self.number_of(question) is not None)
        number = self.number_of(question)
        assert number is not None
        self.node.recorder.links[-1].send(Channel.REPLY, encode(Answer(number=number, reply=reply)))


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[NodeSet, Asked]]:
    node = Node(0)
    node.network.start(LOOPBACK)
    watching = asyncio.create_task(node.network.watch())
    own = LinkIdentity(signer(9), "client", CHAIN, GENESIS)
    security = open_security(listens=False)
    parts = NetworkParts(own, security, Ed25519Verifier(), Metrics(), NullLogger())
    nodes = NodeSet([node.address], parts)
    try:
        yield nodes, Asked(node)
    finally:
        nodes.close()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await node.network.close()


def spawn(nodes: NodeSet, question: Question, timeout_s: float) -> "asyncio.Task[object]":
    (address,) = nodes.in_turn()
    return asyncio.create_task(nodes.ask_one(address, question, timeout_s))


async def test_a_late_answer_costs_only_its_own_question() -> None:
    async with asking() as (nodes, asked):
        patient = spawn(nodes, GetNewest(), 60)
        await until(lambda: asked.number_of(GetNewest) is not None)
        late = spawn(nodes, GetHandover(set_id=1), SHORT_S)
        other = spawn(nodes, GetStatus(), 60)
        await asked.answer(GetStatus, Failed(reason="no-status", detail=""))
        with pytest.raises(Refusal, match="no-status"):
            await other
        with pytest.raises(Late, match="no answer within"):
            await late
        await asked.answer(GetNewest, Submitted(results=()))
        assert await patient == Submitted(results=())


async def test_a_silent_node_loses_its_link_and_all_that_it_was_asked() -> None:
    async with asking() as (nodes, asked):
        patient = spawn(nodes, GetNewest(), 60)
        await until(lambda: asked.number_of(GetNewest) is not None)
        with pytest.raises(RemoteFault, match="no answer within") as silent:
            await spawn(nodes, GetStatus(), 0.2)
        assert not isinstance(silent.value, Late)
        with pytest.raises(RemoteFault, match="closed"):
            await patient
