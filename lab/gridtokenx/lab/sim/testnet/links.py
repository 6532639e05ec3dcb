"""Clients and nodes of a simulated chain: questions and answers over `processes.End`.

The two classes stand where `host.questions.NodeConnection` and `host.link.Link` stand on a real network;
what is asked, believed and answered is the host's own code.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Final

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer, Verifier
from gridtokenx.core.machine import NodeId
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.chains import ChainAccess, ChainFacts
from gridtokenx.host.follow import Follower
from gridtokenx.host.follow_messages import Answer, Ask, Failed, Question, Reply
from gridtokenx.host.framing import Channel
from gridtokenx.host.handshake import INSTANCE_BYTES, LinkIdentity
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.questions import ANSWER_S, Refusal
from gridtokenx.host.security import LinkSecurity, open_security
from gridtokenx.host.transport import NetworkParts
from gridtokenx.lab.sim.testnet.processes import End, Life, settle

PORT: Final = "follow"


class SimulatedConnection:
    """A client's connection to one node; see `host.questions.Connection`.

    Args:
        life: of the client.
        node: whom it asks.
    """

    def __init__(self, life: Life, node: NodeId) -> None:
        self._life: Final = life
        self._node: Final = node
        self._end: End | None = None
        self._numbers: Final = itertools.count(1)
        self._waiting: Final[dict[int, asyncio.Future[Reply]]] = {}

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._end is None or bool(self._end.closed)

    async def open(self) -> None:
        """Connect; raises `RemoteFault` if that fails."""
        self._end = await self._life.wires.dial(self._life, self._node, PORT)
        self._end.on_frame, self._end.on_closed = self._take, self._lost

    async def ask(self, question: Question, timeout_s: float = ANSWER_S) -> Reply:
        """Ask, and wait for the answer.

        Raises:
            Refusal: the node says that it cannot answer.
            RemoteFault: no answer in time, or the connection has ended.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Reply] = self._life.loop.create_future()
        self._waiting[number] = answer
        try:
            if self._end is None or not self._end.send(
                encode(Ask(number=number, question=question))
            ):
                raise RemoteFault("closed", self._end.closed if self._end is not None else "")
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except TimeoutError:
            raise RemoteFault("timeout", f"no answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]
        if isinstance(reply, Failed):
            raise Refusal(reply.reason, reply.detail)
        return reply

    def close(self) -> None:
        """End it."""
        if self._end is not None:
            self._end.close("done")
            self._lost("done")

    def _take(self, body: bytes) -> None:
        try:
            answer = decode(body, Answer, MAX_MESSAGE_BYTES)
        except RemoteFault as fault:
            self.close()
            self._lost(str(fault))
            return
        if answer.number in self._waiting:
            settle(self._waiting[answer.number], answer.reply)

    def _lost(self, reason: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RemoteFault("closed", reason))


class ServedClient:
    """A node's side of it; see `host.follow_service.ClientLink`.

    Args:
        end: of the connection.
    """

    def __init__(self, end: End) -> None:
        self._end: Final = end
        self._inbox: Final[deque[bytes]] = deque()
        self._arrival: Final = asyncio.Event()
        end.on_frame = self._take
        end.on_closed = lambda _reason: self._arrival.set()

    @property
    def identity(self) -> bytes:
        """The client's."""
        return self._end.far

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return bool(self._end.closed)

    async def receive(self) -> tuple[Channel, bytes]:
        """The next question; raises `RemoteFault` when the connection has ended."""
        while not self._inbox:
            if self.closed:
                raise RemoteFault("closed", self._end.closed)
            self._arrival.clear()
            await self._arrival.wait()
        return Channel.REQUEST, self._inbox.popleft()

    def send(self, _channel: Channel, body: bytes) -> bool:
        """Send an answer."""
        return self._end.send(body)

    def refuse(self, fault: RemoteFault) -> None:
        """End it."""
        self._end.close(str(fault))

    def _take(self, body: bytes) -> None:
        self._inbox.append(body)
        self._arrival.set()


@cache
def _security() -> LinkSecurity:
    """Of links that have no socket: nothing is encrypted, nobody is in doubt."""
    return open_security(listens=False)


def follow(
    life: Life,
    facts: ChainFacts,
    nodes: Sequence[NodeId],
    signer: Signer,
    verifier: Verifier,
    metrics: Metrics,
    *,
    first: int = 0,
) -> Follower:
    """A follower of a chain, not running yet; see `host.chains.open_follower`."""
    identity = LinkIdentity(
        signer, "client", facts.chain_id, facts.genesis_block.hash, bytes(INSTANCE_BYTES)
    )
    parts = NetworkParts(
        own=identity,
        security=_security(),
        verifier=verifier,
        metrics=metrics,
        log=NullLogger(),
        now_ms=life.clock.now_ms,
    )
    addresses = [
        NodeAddress(HostPort(f"{facts.name}-{index}", 0), node) for index, node in enumerate(nodes)
    ]

    def connect(address: NodeAddress) -> SimulatedConnection:
        assert address.identity is not None, "as made above"
        return SimulatedConnection(life, address.identity)

    return Follower(facts.trust, addresses, parts, from_newest=True, first=first, connect=connect)


def access(
    life: Life,
    facts: ChainFacts,
    nodes: Sequence[NodeId],
    signer: Signer,
    verifier: Verifier,
    metrics: Metrics,
) -> ChainAccess:
    """Access to a chain, its follower running."""
    follower = follow(life, facts, nodes, signer, verifier, metrics)
    life.spawn(follower.run(), f"follow {facts.name}")
    return ChainAccess(facts, follower, life.clock)
