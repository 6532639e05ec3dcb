"""Sending transactions, and knowing what became of them.

A transaction goes to two nodes, because one may be silent; it has happened when a verified final block
says so (`Executed`), and it cannot happen any more when a verified final block is later than its
`valid_until_ms`. What nodes answer to a submission decides only whether to ask others: a refusal is
believed when more nodes say so than may be faulty.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import FinalBlock, Follower
from gridtokenx.host.follow_messages import BUSY, Submit, SubmitResult, Submitted
from gridtokenx.host.questions import NodeSet, Refusal
from gridtokenx.ledger.admission import NONCE_USED
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import CallResult, Executed
from gridtokenx.ledger.transactions import Transaction, sign_transaction

SUBMIT_TO: Final = 2
RESEND_S: Final = 4.0
DEFAULT_VALID_MS: Final = 60_000
SUBMIT_S: Final = 3.0
SILENT_CHAIN_MS: Final = 60_000
_TAG: Final = b"ledger.executed"
_EMPTY: Final = encode(Executed(transaction_id=bytes(32), results=()))
_EXECUTED_PREFIX: Final = _EMPTY[: _EMPTY.index(_TAG) + len(_TAG)]


class NotIncluded(RemoteFault):
    """The transaction can no longer be included: it expired."""


class SubmissionRefused(RemoteFault):
    """More nodes refused it than may be faulty, or all that are known; `reason` is the first one's."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Where a transaction ended, and how."""

    transaction_id: bytes
    height: int
    results: tuple[CallResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every call succeeded."""
        return all(result.code == "ok" for result in self.results)


class Nonces(Protocol):
    """Where an account's next nonce comes from: the chain's admission rule says."""

    async def next(self) -> int:
        """A nonce that was not given out before."""
        ...

    def reset(self) -> None:
        """What was given out may not have been used: look again."""


class StrictNonces:
    """0, 1, 2, ... without gap, beginning with what the chain's state says.

    Args:
        follower: reads the state.
        key: of the account's nonce (`ledger.admission.StrictNonce.nonces.key(account)`).
    """

    def __init__(self, follower: Follower, key: bytes) -> None:
        self._follower = follower
        self._key = key
        self._next: int | None = None
        self._lock = asyncio.Lock()

    async def next(self) -> int:
        """The next in line."""
        async with self._lock:
            if self._next is None:
                raw = await self._follower.value(self._key)
                self._next = 0 if raw is None else decode_own(raw, int)
            nonce = self._next
            self._next += 1
            return nonce

    def reset(self) -> None:
        """Ask the chain again."""
        self._next = None


class ClockNonces:
    """For chains that take nonces in any order within a window: counted on from the clock.

    Nonces of one life are dense, so that a transaction which lands late is still inside the window;
    a life begins at network time in tenths of a second, which is above all that earlier lives used as
    long as nobody sends ten transactions a second for ever. So restarts need no state.
    """

    def __init__(self, clock: NetworkClock) -> None:
        self._clock = clock
        self._last: int | None = None

    async def next(self) -> int:
        """A number above all before."""
        self._last = self._clock.now_ms() // 100 if self._last is None else self._last + 1
        return self._last

    def reset(self) -> None:
        """Nothing to look up."""


class InclusionWatch:
    """Looks for transactions in what a follower verifies; one can serve many clients."""

    def __init__(self, follower: Follower) -> None:
        self._pending: dict[bytes, tuple[int, asyncio.Future[Inclusion]]] = {}
        follower.on_final(self._look)

    def add(self, transaction: Transaction) -> "asyncio.Future[Inclusion]":
        """A future that ends with the transaction's inclusion, or with `NotIncluded`."""
        known = self._pending.get(transaction.id)
        if known is not None:
            return known[1]
        ended: asyncio.Future[Inclusion] = asyncio.get_running_loop().create_future()
        self._pending[transaction.id] = (transaction.body.valid_until_ms, ended)
        return ended

    def forget(self, transaction: Transaction) -> None:
        """Nobody waits for it any more."""
        self._pending.pop(transaction.id, None)

    def _look(self, block: FinalBlock) -> None:
        if not self._pending:
            return
        for executed in executed_in(block):
            found = self._pending.get(executed.transaction_id)
            if found is not None and not found[1].done():
                height, results = block.header.height, executed.results
                found[1].set_result(Inclusion(executed.transaction_id, height, results))
        for transaction_id, (valid_until_ms, ended) in self._pending.items():
            if block.header.timestamp_ms > valid_until_ms and not ended.done():
                name = transaction_id.hex()[:16]
                ended.set_exception(NotIncluded("expired", f"transaction {name} was not included"))


def executed_in(block: FinalBlock) -> Iterator[Executed]:
    """The receipts among a block's events."""
    for raw in block.events:
        data = decode_own(raw, EventRecord).data
        if data.startswith(_EXECUTED_PREFIX):
            yield decode_own(data, Executed)


class ChainClient:
    """Submits for one account of one chain. The follower must be running.

    Args:
        follower: tells what became final.
        signer: the account's key.
        nonces: see `Nonces`.
        clock: network time, for expiry.
        watch: shared by clients of one follower; made here if not given.
    """

    def __init__(
        self,
        follower: Follower,
        signer: Signer,
        nonces: Nonces,
        clock: NetworkClock,
        watch: InclusionWatch | None = None,
    ) -> None:
        self._follower = follower
        self._signer = signer
        self._nonces = nonces
        self._clock = clock
        self._watch = watch or InclusionWatch(follower)

    @property
    def account(self) -> bytes:
        """The account's public key."""
        return self._signer.public_key

    async def call(
        self, calls: Sequence[Wire], *, fee: int = 0, valid_for_ms: int = DEFAULT_VALID_MS
    ) -> Inclusion:
        """Sign calls as one transaction, submit it, and wait for its end.

        Raises:
            SubmissionRefused: see there.
            NotIncluded: it expired.
        """
        transaction = sign_transaction(
            self._signer,
            self._follower.trust.chain_id,
            await self._nonces.next(),
            calls,
            fee=fee,
            valid_until_ms=self._clock.now_ms() + valid_for_ms,
        )
        try:
            return await self.submit(transaction)
        except BaseException:
            self._nonces.reset()
            raise

    async def submit(self, transaction: Transaction) -> Inclusion:
        """Submit a signed transaction, again and again if need be, and wait for its end.

        Raises:
            SubmissionRefused: see there; never once a node has taken it.
            NotIncluded: it expired, or nothing was heard of the chain until long after.
        """
        ended = self._watch.add(transaction)
        hopeful = False
        try:
            while not ended.done():
                answer = await submit_to_some(self._follower, transaction)
                hopeful = hopeful or answer is None or answer.reason == "ok"
                if answer is not None and not hopeful:
                    raise SubmissionRefused(answer.reason, answer.detail)
                self._check_patience(transaction)
                await asyncio.wait({ended}, timeout=RESEND_S)
            return ended.result()
        finally:
            self._watch.forget(transaction)

    def _check_patience(self, transaction: Transaction) -> None:
        """Without news of the chain, expiry cannot be seen; do not wait for ever."""
        if self._clock.now_ms() > transaction.body.valid_until_ms + SILENT_CHAIN_MS:
            raise NotIncluded("outcome-unknown", "the chain was not heard of until long after")


async def submit_to_some(follower: Follower, transaction: Transaction) -> SubmitResult | None:
    """Send a transaction to two nodes, because one may be silent, and to more while it is refused.

    Returns:
        "ok" if a node took it; the first refusal if more nodes refused it than may be faulty, or every
        known one; None if nobody knows: too few nodes answered, or too many are busy, or its nonce is
        used, and a node that gave no answer may have taken this very transaction.
    """
    nodes, candidates = follower.nodes, follower.nodes.in_turn()
    believed = min(follower.trust.validators.faulty + 1, len(candidates))
    taken: list[SubmitResult] = []
    refused: list[SubmitResult] = []
    busy: list[SubmitResult] = []
    silent = 0
    while candidates:
        answered = len(taken) + len(refused) + len(busy)
        if taken or answered < SUBMIT_TO:
            missing = SUBMIT_TO - answered
        else:
            missing = believed - max(len(refused), len(busy))
        if missing <= 0:
            break
        asked, candidates = candidates[:missing], candidates[missing:]
        for answer in await asyncio.gather(
            *(_submit_to(nodes, node, transaction) for node in asked)
        ):
            if answer is None:
                silent += 1
            else:
                {"ok": taken, BUSY: busy}.get(answer.reason, refused).append(answer)
    if taken:
        return taken[0]
    if len(refused) < max(1, believed) or (silent and refused[0].reason == NONCE_USED):
        return None
    return refused[0]


async def _submit_to(
    nodes: NodeSet, node: NodeAddress, transaction: Transaction
) -> SubmitResult | None:
    try:
        reply = await nodes.ask_one(node, Submit(transactions=(transaction,)), SUBMIT_S)
    except Refusal as refusal:
        return SubmitResult(reason=BUSY, detail=refusal.detail) if refusal.reason == BUSY else None
    except RemoteFault:
        return None  # counted and left alone by the node set; others are asked
    if not isinstance(reply, Submitted) or len(reply.results) != 1:
        return None
    return reply.results[0]
