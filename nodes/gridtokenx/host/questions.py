"""Asking nodes: one connection to a node, and a set of nodes of which any will do.

A node that does not answer, answers nonsense or is caught lying is left alone for a while, and the next
one is asked. Which of them answered never matters to the caller, because it verifies what it hears.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.follow_messages import Answer, Ask, Failed, Question, Reply
from gridtokenx.host.framing import Channel
from gridtokenx.host.link import Link
from gridtokenx.host.logs import SparseLog
from gridtokenx.host.transport import NetworkParts, as_fault, dial

ANSWER_S: Final = 10.0
LEFT_ALONE_S: Final = 5.0
LIAR_LEFT_ALONE_S: Final = 300.0
_TEND_S: Final = 1.0

T = TypeVar("T")


class NoAnswer(RemoteFault):
    """No node gave an answer that could be believed; `detail` says what the last one did."""


class Refusal(RemoteFault):
    """A node said that it cannot or will not answer."""


class Late(RemoteFault):
    """No answer in time, from a node that answered something else meanwhile: it has much to do."""


class Connection(Protocol):
    """What a `NodeSet` needs of a connection to one node."""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        ...

    async def open(self) -> None:
        """Connect; raises `RemoteFault` if that fails."""
        ...

    async def ask(self, question: Question, timeout_s: float = ANSWER_S) -> Reply:
        """Ask, and wait for the answer; raises `RemoteFault`."""
        ...

    def close(self) -> None:
        """End it."""
        ...


Connect = Callable[[NodeAddress], Connection]


class NodeConnection:
    """A link to one node, with answers matched to questions."""

    def __init__(
        self, address: NodeAddress, parts: NetworkParts, log: SparseLog | None = None
    ) -> None:
        self.address: Final = address
        self._parts = parts
        self._log = log or SparseLog(parts.log)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._link = Link(
            parts.limits.link, on_ready=self._take, on_closed=self._closed, now_ms=parts.now_ms
        )
        self._tending: asyncio.Task[None] | None = None
        self._answered_s = 0.0

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._link.closed

    @property
    def identity(self) -> bytes:
        """The node's proven key."""
        return self._link.identity

    async def open(self) -> None:
        """Connect and shake hands.

        Raises:
            RemoteFault: it cannot be reached, or refuses.
        """
        self._parts.security.refresh()
        try:
            accepted = await dial(self._parts, self.address, self._link)
        except (RemoteFault, OSError, TimeoutError) as error:
            self._link.close("not opened")
            raise as_fault(error) from None
        except BaseException:
            self._link.abort("cancelled")
            raise
        self._link.raise_up(self._link.identity, "node")
        if accepted.twin:
            self._warn_of_twin(accepted.twin)
        self._tending = asyncio.get_running_loop().create_task(self._tend(), name="tend")

    def _warn_of_twin(self, where: str) -> None:
        """Two processes that spend one account's nonces disturb each other; neither is stopped."""
        self._parts.metrics.count("identity_in_use")
        self._log.warning(
            "identity in use",
            "client",
            node=str(self.address),
            other=where,
            key=self._parts.own.signer.public_key.hex()[:16],
            hint="another process runs with this key: stop one, or give each its own",
        )

    async def ask(self, question: Question, timeout_s: float = ANSWER_S) -> Reply:
        """Ask, and wait for the answer.

        Raises:
            Refusal: the node says that it cannot answer.
            Late: no answer in time, but others.
            RemoteFault: no answer at all in time, or the link has ended.
        """
        number, asked_s = next(self._numbers), time.monotonic()
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if not self._link.send(Channel.REQUEST, encode(Ask(number=number, question=question))):
                raise RemoteFault("closed", self._link.close_reason)
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except TimeoutError:
            kind = Late if self._answered_s > asked_s else RemoteFault
            raise kind("timeout", f"no answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]
        if isinstance(reply, Failed):
            raise Refusal(reply.reason, reply.detail)
        return reply

    def close(self) -> None:
        """End it."""
        if self._tending is not None:
            self._tending.cancel()
        self._link.close("done")

    def _take(self, link: Link) -> None:
        while (found := link.take()) is not None:
            try:
                answer = decode(found[1], Answer, MAX_MESSAGE_BYTES)
            except RemoteFault as fault:
                link.abort(str(fault))
                return
            self._answered_s = time.monotonic()
            waiting = self._waiting.get(answer.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer.reply)

    def _closed(self, link: Link) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RemoteFault("closed", link.close_reason))

    async def _tend(self) -> None:
        security = self._parts.security
        looked = security.generation
        while not self._link.closed:
            await asyncio.sleep(_TEND_S)
            security.refresh()
            if security.generation != looked:
                looked = security.generation
                fault = security.objection(self._link.certificate)
                if fault is not None:
                    self._link.close(str(fault))
            self._link.tend(time.monotonic())
            self._log.flush()


class NodeSet:
    """Nodes of one chain; asks one after the other until an answer is believed.

    Args:
        addresses: all known nodes.
        parts: our identity on the links; its role is ``client``.
        first: which node to begin with, so that many clients spread over the nodes.
        connect: makes connections that have no socket below; `NodeConnection` if None.
    """

    def __init__(
        self,
        addresses: Sequence[NodeAddress],
        parts: NetworkParts,
        first: int = 0,
        connect: Connect | None = None,
    ) -> None:
        if not addresses:
            raise AssertionError("no node to ask")
        turn = first % len(addresses)
        self._order = [*addresses[turn:], *addresses[:turn]]
        self._parts = parts
        self._connect = connect
        self._connections: dict[NodeAddress, Connection] = {}
        self._opening: dict[NodeAddress, asyncio.Lock] = {}
        self._shunned_until: dict[NodeAddress, float] = {}
        self._log = SparseLog(parts.log)

    @property
    def size(self) -> int:
        """How many nodes are known."""
        return len(self._order)

    async def ask(
        self, question: Question, believe: Callable[[Reply], T], timeout_s: float = ANSWER_S
    ) -> T:
        """Ask nodes in turn until `believe` accepts an answer, and return what it makes of it.

        `believe` raises `Lie` for what no honest node would say, and any other `RemoteFault` for an
        answer that is of no use.

        Raises:
            NoAnswer: nobody gave one.
        """
        complaint = "no node is reachable"
        for address in self.in_turn():
            try:
                return believe(await self.ask_one(address, question, timeout_s))
            except Lie as lie:
                complaint = f"{address}: {lie}"
                self.shun_liar(address, lie)
            except RemoteFault as fault:
                complaint = f"{address}: {fault}"
        raise NoAnswer("no-answer", complaint)

    async def ask_one(
        self, address: NodeAddress, question: Question, timeout_s: float = ANSWER_S
    ) -> Reply:
        """Ask one node.

        Raises:
            RemoteFault: it gave no answer; unless it said why, it is left alone for a while. What else it
                was asked ends too, unless it is only late: closing its link would lose the answers
                to all that it has taken, and have it asked again by those who have most to ask.
        """
        try:
            connection = await self._connection(address)
            return await connection.ask(question, timeout_s)
        except Refusal:
            raise
        except Late:
            self._leave_alone(address, LEFT_ALONE_S)
            raise
        except RemoteFault:
            self.shun(address, LEFT_ALONE_S)
            raise

    def in_turn(self) -> list[NodeAddress]:
        """All nodes, those that are left alone for now last."""
        now = asyncio.get_running_loop().time()
        return sorted(self._order, key=lambda each: self._shunned_until.get(each, 0.0) > now)

    def rotate(self, address: NodeAddress) -> None:
        """Go on with the next node, without any blame."""
        self._order.remove(address)
        self._order.append(address)

    def shun(self, address: NodeAddress, seconds: float) -> None:
        """Leave a node alone, end the connection to it, and go on with the next one."""
        self._leave_alone(address, seconds)
        connection = self._connections.pop(address, None)
        if connection is not None:
            connection.close()

    def _leave_alone(self, address: NodeAddress, seconds: float) -> None:
        self._shunned_until[address] = asyncio.get_running_loop().time() + seconds
        self.rotate(address)

    def shun_liar(self, address: NodeAddress, lie: RemoteFault) -> None:
        """A node said what cannot be true."""
        self._parts.metrics.count("lies", reason=lie.reason)
        self._log.warning("a node lies", f"{address} {lie.reason}", node=str(address), lie=str(lie))
        self.shun(address, LIAR_LEFT_ALONE_S)

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    async def _connection(self, address: NodeAddress) -> Connection:
        async with self._opening.setdefault(address, asyncio.Lock()):
            known = self._connections.get(address)
            if known is not None and not known.closed:
                return known
            connection = self._new_connection(address)
            await connection.open()
            self._connections[address] = connection
            return connection

    def _new_connection(self, address: NodeAddress) -> Connection:
        if self._connect is not None:
            return self._connect(address)
        return NodeConnection(address, self._parts, self._log)


class Lie(RemoteFault):
    """What no honest node would say: a proof that fails, a link that does not fit."""
