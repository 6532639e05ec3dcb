"""The way in: signed transactions are checked here, forwarded, and their receipts waited for.

The gateway signs nothing and changes nothing: it forwards the very bytes it was given. What could not be
included anyway (another network's, not canonical, badly signed, expired) is refused here, so that it
costs no node anything.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from gridtokenx.consortium.market.messages import CancelOrder, PlaceOrder
from gridtokenx.core.codec import decode
from gridtokenx.core.errors import BadSignature, Malformed, RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.gateway.facts import CONSORTIUM, NetworkFacts
from gridtokenx.gateway.index import Index
from gridtokenx.gateway.ports import ChainSource, Unavailable, VerifiedBlock
from gridtokenx.ledger.runtime import Executed
from gridtokenx.ledger.transactions import MAX_TRANSACTION_BYTES, Transaction

MAX_WAITERS: Final = 64
"""Requests that may wait for a receipt at once; half of all that may be in progress."""

_ORDER_CALLS: Final = PlaceOrder | CancelOrder


class Submissions:
    """Forwards transactions of one network.

    Args:
        network: the chains and their ids.
        sources: where each chain's transactions go.
        index: tells when a receipt is final.
        verifier: checks senders' signatures.
        now_ms: network time.
    """

    def __init__(
        self,
        network: NetworkFacts,
        sources: Mapping[str, ChainSource],
        index: Index,
        verifier: Verifier,
        now_ms: Callable[[], int],
    ) -> None:
        self._chain_of: Final = {chain.chain_id: name for name, chain in network.chains.items()}
        self._sources: Final = sources
        self._verifier: Final = verifier
        self._now_ms: Final = now_ms
        self._waiting: dict[bytes, set[asyncio.Event]] = {}
        index.listen(self._note)

    def read(self, raw: bytes) -> tuple[str, Transaction]:
        """A transaction that might be included, and its chain.

        Raises:
            RemoteFault: it could not be.
        """
        transaction = decode(raw, Transaction, MAX_TRANSACTION_BYTES)
        body = transaction.body
        chain = self._chain_of.get(body.chain_id)
        if chain is None:
            raise RemoteFault("unknown-chain", f"chain id {body.chain_id.hex()} is not ours")
        check = transaction.signature_check()
        if not self._verifier.verify(check.public_key, check.message, check.signature):
            raise BadSignature("the signature is not the sender's over this body")
        if body.valid_until_ms < self._now_ms():
            raise RemoteFault("expired", f"it was valid until {body.valid_until_ms}")
        return chain, transaction

    def read_order(self, raw: bytes) -> tuple[str, Transaction]:
        """The same, where only orders and their cancelling are taken.

        Raises:
            RemoteFault: it is something else.
        """
        chain, transaction = self.read(raw)
        if chain != CONSORTIUM:
            raise RemoteFault("wrong-chain", f"orders go to the {CONSORTIUM} chain, not {chain}")
        for call in transaction.body.calls:
            try:
                decode(call, _ORDER_CALLS)  # type: ignore[arg-type]  # a union
            except Malformed:
                raise RemoteFault(
                    "not-an-order", "each call is market.place_order or market.cancel_order"
                ) from None
        return chain, transaction

    async def submit(self, chain: str, transaction: Transaction) -> None:
        """Forward it.

        Raises:
            Unavailable: no node takes it now.
            RemoteFault: nodes refuse it, for this reason.
        """
        await self._sources[chain].submit(transaction)

    async def submit_and_wait(self, chain: str, transaction: Transaction, wait_s: float) -> None:
        """Forward it, and return when it is final or the time is over.

        Raises:
            Unavailable: as `submit`, or too many wait already.
            RemoteFault: as `submit`.
        """
        if sum(map(len, self._waiting.values())) >= MAX_WAITERS:
            raise Unavailable("too-many-waiting", "submit without wait, and ask for the receipt")
        event = asyncio.Event()
        self._waiting.setdefault(transaction.id, set()).add(event)
        try:
            await self._sources[chain].submit(transaction)
            async with asyncio.timeout(wait_s):
                await event.wait()
        except TimeoutError:
            return
        finally:
            events = self._waiting[transaction.id]
            events.discard(event)
            if not events:
                del self._waiting[transaction.id]

    def _note(self, _chain: str, _block: VerifiedBlock, receipts: list[Executed]) -> None:
        for receipt in receipts:
            for event in self._waiting.get(receipt.transaction_id, ()):
                event.set()
