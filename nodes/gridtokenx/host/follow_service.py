"""Serves clients: the follow protocol's questions, from a node's history and its pool.

Law of the file: **a client costs a bounded amount.** Its questions are answered one after the other;
those that wait are few; answers are bounded in size; what is asked of the disk or of signatures is
bounded per question, while the link's allowance bounds the questions; and who has had more bytes than
`ANSWERED_BYTES_PER_S` waits for the next: a question of some bytes may have blocks read and decoded.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import BadSignature, RemoteFault
from gridtokenx.host.checking import SignatureChecker
from gridtokenx.host.follow_messages import (
    BUSY,
    MAX_WAIT_MS,
    OK,
    Answer,
    Ask,
    Blocks,
    Failed,
    Follow,
    Followed,
    GetBlocks,
    GetHandover,
    GetNewest,
    GetState,
    GetStatus,
    ProvenValue,
    Question,
    Reply,
    StateValues,
    Status,
    Submit,
    SubmitResult,
    Submitted,
)
from gridtokenx.host.framing import Channel
from gridtokenx.host.history import History
from gridtokenx.host.link import Allowance
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.tasks import Tasks
from gridtokenx.ledger.transactions import MAX_TRANSACTION_BYTES, Transaction

MAX_QUESTION_BYTES: Final = 1024 * 1024
WAITING_PER_CLIENT: Final = 4
SUBMISSIONS_PER_CLIENT: Final = 64
SUBMISSION_S: Final = 1.0
"""What has waited longer is refused: who sent it waits hardly longer."""
_Submission: TypeAlias = tuple[int, Submit, float]
"""A question's number, the question, and when it came."""
_BUSY: Final = RemoteFault(BUSY, "more is submitted than this node can take; try again")
ANSWERED_BYTES_PER_S: Final = 8 * 1024 * 1024
"""Of one link; so many at once, too. Who verifies what it gets takes less."""


class ClientLink(Protocol):
    """The connection of one client; `host.link.Link` is one."""

    @property
    def identity(self) -> bytes:
        """Whose it is."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        ...

    async def receive(self) -> tuple[Channel, bytes]:
        """The next frame; raises `RemoteFault` when the link has ended."""
        ...

    def send(self, channel: Channel, body: bytes) -> bool:
        """Send a frame; whether it will leave."""
        ...

    def refuse(self, fault: RemoteFault) -> None:
        """End it, and tell the client why."""
        ...


class Intake(Protocol):
    """Where submissions go."""

    async def room(self) -> None:
        """Wait until there is room for a submission; `RemoteFault` if there is none for too long."""

    def admit(self, transaction: Transaction) -> None:
        """Whether the pool would take it; raises `RemoteFault` with the reason for the client."""

    def submit(self, transactions: Sequence[Transaction]) -> None:
        """Hand over transactions whose signatures were checked; `RemoteFault` if too many wait."""


class FollowService:
    """Answers all clients of one node.

    Args:
        history: final blocks and recent states.
        intake: takes submissions.
        status: what to say about the node.
        checker: checks submissions' signatures.
        fault: counts a client's faults.
        metrics: counts questions by kind.
        tasks: owns the tasks of clients.
    """

    def __init__(
        self,
        history: History,
        intake: Intake,
        status: Callable[[], Status],
        checker: SignatureChecker,
        fault: Callable[[bytes, RemoteFault], None],
        metrics: Metrics,
        tasks: Tasks,
    ) -> None:
        self._history = history
        self._intake = intake
        self._status = status
        self._checker = checker
        self._fault = fault
        self._metrics = metrics
        self._tasks = tasks
        self._waiting: dict[ClientLink, dict[asyncio.Task[None], None]] = {}
        self._lines: dict[ClientLink, tuple[asyncio.Queue[_Submission], asyncio.Task[None]]] = {}

    def client_up(self, link: ClientLink) -> None:
        """A client has connected."""
        self._waiting[link] = {}
        line = asyncio.Queue[_Submission](SUBMISSIONS_PER_CLIENT)
        self._lines[link] = line, self._tasks.spawn(self._serve_line(link, line), "submissions")
        self._tasks.spawn(self._serve(link), f"client {link.identity.hex()[:8]}")

    def client_down(self, link: ClientLink) -> None:
        """A client has gone: nobody waits for its answers any more."""
        if link in self._lines:
            self._lines.pop(link)[1].cancel()
        for task in self._waiting.pop(link, ()):
            task.cancel()

    async def _serve(self, link: ClientLink) -> None:
        loop = asyncio.get_running_loop()
        allowance = Allowance(ANSWERED_BYTES_PER_S, loop.time())
        while not link.closed:
            answered = 0
            try:
                answered = await self._answer(link, _question(*await link.receive()))
            except RemoteFault as fault:
                if not link.closed:
                    self._fault(link.identity, fault)
                    link.refuse(fault)
            await asyncio.sleep(allowance.spend(answered, loop.time()))

    async def _answer(self, link: ClientLink, ask: Ask) -> int:
        """Answer, at once or later; returns the bytes of an answer at once."""
        self._metrics.count("questions", kind=type(ask.question).__name__)
        match ask.question:
            case Submit():
                return self._submit(link, ask.number, ask.question)
            case Follow(after) if after >= self._history.head.height:
                self._wait(link, ask.number, ask.question)
                return 0
            case question:
                return self._reply(link, ask.number, await self._reply_to(question))

    async def _reply_to(self, question: Question) -> Reply:
        try:
            match question:
                case Submit(transactions):
                    return Submitted(results=await self._take(transactions))
                case _:
                    return self._look_up(question)
        except RemoteFault as fault:
            return _failed(fault)

    def _look_up(self, question: Question) -> Reply:
        history = self._history
        match question:
            case GetStatus():
                return self._status()
            case GetNewest():
                return history.newest()
            case Follow(after, limit):
                return history.followed(after, limit)
            case GetHandover(set_id):
                return history.handover(set_id)
            case GetBlocks(first, count):
                return Blocks(blocks=history.blocks(first, count))
            case GetState(height, keys):
                tree = history.state_at(height)
                values = [ProvenValue(value=tree.get(key), proof=tree.prove(key)) for key in keys]
                return StateValues(height=height, values=tuple(values))
        raise AssertionError(f"no answer to {type(question).__name__}")

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, link: ClientLink, number: int, question: Follow) -> None:
        waiting = self._waiting.get(link)
        if waiting is None:
            return
        if len(waiting) >= WAITING_PER_CLIENT:
            raise RemoteFault("too-many-questions", f"at most {WAITING_PER_CLIENT} may wait")
        task = self._tasks.spawn(self._reply_later(link, number, question), "follow")
        waiting[task] = None
        task.add_done_callback(lambda done: waiting.pop(done, None))

    def _submit(self, link: ClientLink, number: int, question: Submit) -> int:
        """Put it in the link's line of submissions: they may have to wait for room, and reads may not."""
        if link not in self._lines:
            return 0
        line, _ = self._lines[link]
        if line.full():
            return self._refuse(link, number, question)
        line.put_nowait((number, question, asyncio.get_running_loop().time()))
        return 0

    async def _serve_line(self, link: ClientLink, line: asyncio.Queue[_Submission]) -> None:
        loop = asyncio.get_running_loop()
        while not link.closed:
            number, question, since_s = await line.get()
            if loop.time() - since_s > SUBMISSION_S:
                self._refuse(link, number, question)
            else:
                self._reply(link, number, await self._reply_to(question))
            await asyncio.sleep(0)

    def _refuse(self, link: ClientLink, number: int, question: Submit) -> int:
        self._metrics.count("submissions_refused", len(question.transactions), reason=BUSY)
        return self._reply(link, number, _failed(_BUSY))

    async def _reply_later(self, link: ClientLink, number: int, question: Follow) -> None:
        reply: Reply
        try:
            async with asyncio.timeout(min(question.wait_ms, MAX_WAIT_MS) / 1000):
                await self._history.wait_beyond(question.after)
            reply = await self._reply_to(question)
        except TimeoutError:
            reply = Followed(blocks=(), proof=None, next_set=None)
        self._reply(link, number, reply)

    @staticmethod
    def _reply(link: ClientLink, number: int, reply: Reply) -> int:
        body = encode(Answer(number=number, reply=reply))
        link.send(Channel.REPLY, body)
        return len(body)

    # -- submissions -------------------------------------------------------------------------------

    async def _take(self, transactions: Sequence[Transaction]) -> tuple[SubmitResult, ...]:
        await self._room_for(len(transactions))
        valid = await self._checker.all_valid([[each.signature_check()] for each in transactions])
        results = [
            self._judge(transaction, holds=holds)
            for transaction, holds in zip(transactions, valid, strict=True)
        ]
        good = [
            transaction
            for transaction, result in zip(transactions, results, strict=True)
            if result is OK
        ]
        if good:
            self._intake.submit(good)
        return tuple(results)

    async def _room_for(self, count: int) -> None:
        try:
            await self._intake.room()
        except RemoteFault as fault:
            self._metrics.count("submissions_refused", count, reason=fault.reason)
            raise

    def _judge(self, transaction: Transaction, *, holds: bool) -> SubmitResult:
        try:
            self._check(transaction, holds=holds)
        except RemoteFault as fault:
            self._metrics.count("submissions_refused", reason=fault.reason)
            return SubmitResult(reason=fault.reason[:64], detail=fault.detail[:512])
        self._metrics.count("submissions_accepted")
        return OK

    def _check(self, transaction: Transaction, *, holds: bool) -> None:
        if not holds:
            raise BadSignature("the transaction's")
        if len(transaction.encoded) > MAX_TRANSACTION_BYTES:
            raise RemoteFault("too-large", f"at most {MAX_TRANSACTION_BYTES} bytes")
        self._intake.admit(transaction)


def _failed(fault: RemoteFault) -> Failed:
    return Failed(reason=fault.reason[:64], detail=fault.detail[:512])


def _question(channel: Channel, body: bytes) -> Ask:
    if channel is not Channel.REQUEST:
        raise RemoteFault("wrong-channel", f"{channel.name} from a client")
    return decode(body, Ask, MAX_QUESTION_BYTES)
