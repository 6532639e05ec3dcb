"""A chain of the gateway, followed by the host's light client.

Everything that leaves `Follower` was verified there. What is added here: whole blocks where events do
not tell enough (the oracle chain's readings), checked against the header's transaction root; and the
refusal to read state under a header that has become old, because a true answer of an hour ago is no
answer to "what is my balance".
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.gateway.ports import ProvedState, ProvedValue, Unavailable, VerifiedBlock
from gridtokenx.host.client import submit_to_some
from gridtokenx.host.follow import BlockStream, CertifiedHead, FinalBlock, Follower
from gridtokenx.host.follow_messages import Blocks, GetBlocks, Reply
from gridtokenx.host.questions import Lie
from gridtokenx.ledger.blocks import Header, transaction_root
from gridtokenx.ledger.transactions import Transaction

QUEUED_BLOCKS: Final = 64
_RETRY_S: Final = 1.0


class FollowedChain:
    """One chain; see `ports.ChainSource`.

    Args:
        name: of the chain.
        follower: not running yet.
        now_ms: network time.
        stale_ms: age of the newest header at which state is no longer read.
        whole: whether blocks come with their transactions.
    """

    def __init__(
        self,
        name: str,
        follower: Follower,
        now_ms: Callable[[], int],
        stale_ms: int,
        *,
        whole: bool = False,
    ) -> None:
        self.name: Final = name
        self._follower: Final = follower
        self._now_ms: Final = now_ms
        self._stale_ms: Final = stale_ms
        self._whole: Final = whole
        self._stream: Final[BlockStream] = follower.blocks(QUEUED_BLOCKS)

    @property
    def verified_height(self) -> int:
        """Height of the newest verified header; 0 before the first."""
        head = self._follower.head
        return 0 if head is None else head.header.height

    async def run(self) -> None:
        """Follow until cancelled; somebody has to read `blocks` meanwhile."""
        await self._follower.run()

    async def blocks(self) -> AsyncIterator[VerifiedBlock]:
        """Every verified block, in order and without end."""
        async for final in self._stream:
            yield await self._complete(final)

    async def read(self, keys: Sequence[bytes]) -> ProvedState:
        """See `ports.ChainSource`; a head that a node does not have yet is tried again once newer."""
        head = self._fresh_head()
        try:
            return await self._read_at(head, keys)
        except RemoteFault:
            head = self._fresh_head()
        try:
            return await self._read_at(head, keys)
        except RemoteFault as fault:
            raise Unavailable("no-proof", f"of the {self.name} chain: {fault}") from None

    async def submit(self, transaction: Transaction) -> None:
        """See `ports.ChainSource`: to two nodes, because one may be silent."""
        answer = await submit_to_some(self._follower, transaction)
        if answer is None:
            raise Unavailable("no-node", f"no node of the {self.name} chain takes transactions now")
        if answer.reason != "ok":
            raise RemoteFault(answer.reason, answer.detail)

    # -- reading -----------------------------------------------------------------------------------

    def trouble(self) -> str | None:
        """Why state cannot be read now, in words; None if it can."""
        head = self._follower.head
        if head is None:
            return f"{self.name}: nothing verified yet"
        age_ms = self._now_ms() - head.header.timestamp_ms
        if age_ms > self._stale_ms:
            return (
                f"{self.name}: the newest final block is {age_ms // 1000} s old, "
                f"at most {self._stale_ms // 1000} s are allowed"
            )
        return None

    def credential_troubles(self) -> list[str]:
        """Why the chain's nodes will not talk to us, where our own files say it."""
        return [f"{self.name}: {trouble}" for trouble in self._follower.troubles()]

    def _fresh_head(self) -> CertifiedHead:
        head, trouble = self._follower.head, self.trouble()
        if head is None or trouble is not None:
            reason = "nothing-verified" if head is None else "stale"
            raise Unavailable(reason, trouble or self.name)
        return head

    async def _read_at(self, head: CertifiedHead, keys: Sequence[bytes]) -> ProvedState:
        header = head.header
        found = await self._follower.get(keys, header.height)
        values = {key: ProvedValue(each.value, each.proof) for key, each in found.items()}
        return ProvedState(header, encode(head.proof), header.height, values)

    # -- whole blocks ------------------------------------------------------------------------------

    async def _complete(self, final: FinalBlock) -> VerifiedBlock:
        """The block with its transactions, if they are wanted and there are any."""
        header, transactions = final.header, tuple[Transaction, ...]()
        if self._whole and header.transaction_root != _NO_TRANSACTIONS:
            transactions = await self._transactions(header)
        return VerifiedBlock(header, final.events, transactions, final.next_set)

    async def _transactions(self, header: Header) -> tuple[Transaction, ...]:
        """The transactions under a verified header; waits while no node shows them."""

        def believe(reply: Reply) -> tuple[Transaction, ...]:
            if not isinstance(reply, Blocks) or not reply.blocks:
                raise RemoteFault("wrong-answer", type(reply).__name__)
            block = reply.blocks[0]
            if transaction_root(block.transactions) != header.transaction_root:
                raise Lie("wrong-block", f"other transactions in {header.height}")
            return block.transactions

        while True:
            try:
                question = GetBlocks(first=header.height, count=1)
                return await self._follower.nodes.ask(question, believe)
            except RemoteFault:
                await asyncio.sleep(_RETRY_S)


_NO_TRANSACTIONS: Final = transaction_root(())
