"""Following a chain as a light client: nodes are asked, and believed for nothing.

Law of the file: **what leaves this module was verified.** A header is final because a proof under a
validator set that is trusted says so, or because it is linked by hashes below such a header; an event
is real because the list it is in hashes to the header's event root; a value is real because its proof
leads to the state root of a verified header. A node that says otherwise is counted, left alone, and
another is asked.

Trust begins with the chain's genesis (or a later checkpoint): its hash and validator set. A set changes
only by a header that the old set finalised and whose `next_set_hash` the new set matches.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.state_tree import verify_absence, verify_membership
from gridtokenx.finality.proofs import FinalityProof, verify_finality
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.follow_messages import (
    MAX_FOLLOWED,
    MAX_KEYS,
    Follow,
    Followed,
    FollowedBlock,
    GetBlocks,
    GetHandover,
    GetNewest,
    GetState,
    GetStatus,
    Handover,
    Newest,
    ProvenValue,
    Reply,
    StateValues,
    Status,
)
from gridtokenx.host.follow_messages import Blocks as BlocksReply
from gridtokenx.host.questions import Connect, Lie, NodeSet
from gridtokenx.host.transport import NetworkParts
from gridtokenx.ledger.blocks import Block, Header, transaction_root

WAIT_MS: Final = 10_000
STALE_S: Final = 15.0
"""Without news for so long, another node is asked."""
MAX_UNPROVEN: Final = 4096
"""Blocks that are kept until a proof for them, or for a descendant, arrives."""
REMEMBERED_HEADERS: Final = 256
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Trust:
    """Where belief begins."""

    chain_id: bytes
    height: int
    block_hash: bytes
    validators: ValidatorSet
    """The set that finalises the next block."""


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A verified final header with its events."""

    header: Header
    events: tuple[bytes, ...]
    """Encoded `EventRecord`s, in order."""
    proof: FinalityProof | None
    """Its own proof; None where a later header's proof covers it."""
    next_set: ValidatorSet | None
    """The set that it hands over to, if it does."""


@dataclass(frozen=True, slots=True)
class CertifiedHead:
    """The newest verified header that has a proof of its own."""

    header: Header
    proof: FinalityProof
    next_set: ValidatorSet | None


class Follower:
    """Follows one chain through any of its nodes.

    Args:
        trust: where belief begins.
        addresses: nodes to ask.
        parts: our identity on the links.
        from_newest: begin at the newest header rather than at `trust`, without the blocks between.
        first: which node to begin with.
        connect: see `NodeSet`.
    """

    def __init__(
        self,
        trust: Trust,
        addresses: Sequence[NodeAddress],
        parts: NetworkParts,
        *,
        from_newest: bool = False,
        first: int = 0,
        connect: Connect | None = None,
    ) -> None:
        self._trust = trust
        self._parts = parts
        self._from_newest = from_newest
        self.nodes: Final = NodeSet(addresses, parts, first, connect)
        self._unproven: list[FollowedBlock] = []
        self._head: CertifiedHead | None = None
        self._headers: OrderedDict[int, Header] = OrderedDict()
        self._grew = asyncio.Event()
        self._listeners: list[Callable[[FinalBlock], None]] = []
        self._streams: list[BlockStream] = []

    # -- following ---------------------------------------------------------------------------------

    @property
    def trust(self) -> Trust:
        """How far belief has come: a checkpoint from which a later life can go on."""
        return self._trust

    @property
    def head(self) -> CertifiedHead | None:
        """The newest verified header with its proof; None before the first."""
        return self._head

    def troubles(self) -> tuple[str, ...]:
        """Why the chain's nodes will not talk to us, where our own files say it: a line each."""
        return self._parts.security.troubles()

    def on_final(self, listener: Callable[[FinalBlock], None]) -> None:
        """Call `listener` with each verified block, in order. It must be short."""
        self._listeners.append(listener)

    def blocks(self, queued: int = 64) -> "BlockStream":
        """All blocks verified from now on, in order; following waits for a slow reader."""
        stream = BlockStream(queued, self._streams)
        self._streams.append(stream)
        return stream

    async def wait_beyond(self, height: int) -> CertifiedHead:
        """The newest certified head, once it is above `height`."""
        while self._head is None or self._head.header.height <= height:
            await self._grew.wait()
        return self._head

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            if self._from_newest:
                await self._jump()
            while True:
                await self._advance()
        finally:
            self.nodes.close()

    async def _jump(self) -> None:
        """Go to the newest header, through the handovers on the way."""
        arrived = False
        while not arrived:
            address = self.nodes.in_turn()[0]
            try:
                reply = await self.nodes.ask_one(address, GetNewest())
                if self._is_of_later_set(reply):
                    await self._cross(address)
                else:
                    self._take_newest(self._believe_newest(reply))
                    arrived = True
            except RemoteFault as fault:
                await self._turn_away(address, fault)

    async def _cross(self, address: NodeAddress) -> None:
        """Accept the header that ended the set that is trusted now."""
        set_id = self._trust.validators.set_id
        reply = await self.nodes.ask_one(address, GetHandover(set_id=set_id))
        certified = self._believe_handover(reply)
        header = certified.header
        assert certified.next_set is not None, "a handover has one"
        if header.height <= self._trust.height:
            raise Lie("wrong-handover", f"set {set_id} was trusted after {header.height}")
        self._trust = Trust(header.chain_id, header.height, header.hash, certified.next_set)

    def _take_newest(self, newest: CertifiedHead | None) -> None:
        if newest is not None:
            self._advance_trust(newest)
            self._remember((newest.header,))

    async def _advance(self) -> None:
        """One question for what comes next."""
        address = self.nodes.in_turn()[0]
        after = self._unproven[-1].header.height if self._unproven else self._trust.height
        question = Follow(after=after, limit=MAX_FOLLOWED, wait_ms=WAIT_MS)
        try:
            reply = await self.nodes.ask_one(address, question, WAIT_MS / 1000 + 5)
            grew, proven = self._believe_followed(reply)
        except RemoteFault as fault:
            self._unproven.clear()
            await self._turn_away(address, fault)
            return
        if proven is not None:
            blocks, self._unproven = self._unproven, []
            await self._accept(blocks, proven)
        elif not grew:  # perhaps another node has more
            self._unproven.clear()
            self.nodes.rotate(address)

    async def _turn_away(self, address: NodeAddress, fault: RemoteFault) -> None:
        """A node was of no use; go on with another."""
        self._parts.metrics.count("follow_failures", reason=fault.reason)
        self._parts.log.debug("no news from a node", node=str(address), why=str(fault))
        if isinstance(fault, Lie):
            self.nodes.shun_liar(address, fault)
        else:
            self.nodes.shun(address, STALE_S)
            await asyncio.sleep(_RETRY_S)

    # -- verifying ---------------------------------------------------------------------------------

    def _believe_followed(self, reply: Reply) -> tuple[bool, CertifiedHead | None]:
        """Add what follows to the unproven blocks.

        Returns:
            Whether anything came, and the last block with its proof, if that came too.

        Raises:
            Lie: something does not fit.
        """
        if not isinstance(reply, Followed):
            raise Lie("wrong-answer", type(reply).__name__)
        for block in reply.blocks:
            self._check_next(block)
            self._unproven.append(block)
        if len(self._unproven) > MAX_UNPROVEN:
            raise Lie("unproven", f"{len(self._unproven)} blocks without a proof of finality")
        if reply.proof is None or not reply.blocks:
            return bool(reply.blocks), None
        return True, self._certify(self._unproven[-1].header, reply.proof, reply.next_set)

    def _check_next(self, block: FollowedBlock) -> None:
        """Whether a block is linked to the one before, and its events are its header's."""
        header, validators = block.header, self._trust.validators
        if self._unproven:
            parent = self._unproven[-1].header
            height, parent_hash = parent.height, parent.hash
            if parent.next_set_hash != validators.hash:
                raise Lie("handover-skipped", f"block {height} hands over, and needs its proof")
        else:
            height, parent_hash = self._trust.height, self._trust.block_hash
        if header.chain_id != self._trust.chain_id:
            raise Lie("wrong-chain", f"block {header.height} is of another chain")
        if (header.height, header.parent) != (height + 1, parent_hash):
            raise Lie("broken-link", f"block {header.height} does not follow {height}")
        if merkle_root(block.events) != header.event_root:
            raise Lie("wrong-events", f"of block {header.height}")

    def _certify(
        self, header: Header, proof: FinalityProof, next_set: ValidatorSet | None
    ) -> CertifiedHead:
        """Believe a header because the trusted set finalised it.

        Raises:
            Lie: it did not, or the set that it hands over to is missing or another.
        """
        validators = self._trust.validators
        try:
            verify_finality(header, proof, validators, self._parts.verifier)
        except RemoteFault as fault:
            raise Lie(fault.reason, f"block {header.height}: {fault.detail}") from None
        if header.next_set_hash == validators.hash:
            return CertifiedHead(header, proof, None)
        if next_set is None or next_set.hash != header.next_set_hash:
            raise Lie("wrong-next-set", f"block {header.height} hands over to another set")
        if next_set.set_id != validators.set_id + 1 or not next_set.is_well_formed():
            raise Lie("wrong-next-set", f"set {next_set.set_id} after {validators.set_id}")
        return CertifiedHead(header, proof, next_set)

    def _is_of_later_set(self, reply: Reply) -> bool:
        return isinstance(reply, Newest) and reply.header.set_id > self._trust.validators.set_id

    def _believe_newest(self, reply: Reply) -> CertifiedHead | None:
        """The newest header, or None if the ordinary way leads there as well."""
        if not isinstance(reply, Newest):
            raise Lie("wrong-answer", type(reply).__name__)
        header = reply.header
        if header.chain_id != self._trust.chain_id:
            raise Lie("wrong-chain", "the newest block is of another chain")
        hands_over = header.next_set_hash != self._trust.validators.hash
        if header.height <= self._trust.height or hands_over:
            return None
        return self._certify(header, reply.proof, None)

    def _believe_handover(self, reply: Reply) -> CertifiedHead:
        if not isinstance(reply, Handover) or reply.header.chain_id != self._trust.chain_id:
            raise Lie("wrong-answer", type(reply).__name__)
        certified = self._certify(reply.header, reply.proof, reply.next_set)
        if certified.next_set is None:
            raise Lie("no-handover", f"block {reply.header.height} hands over to nobody")
        return certified

    def _advance_trust(self, certified: CertifiedHead) -> None:
        last = certified.header
        validators = certified.next_set or self._trust.validators
        self._trust = Trust(self._trust.chain_id, last.height, last.hash, validators)
        self._head = certified

    def _remember(self, headers: Iterable[Header]) -> None:
        for header in headers:
            self._headers[header.height] = header
            if len(self._headers) > REMEMBERED_HEADERS:
                self._headers.popitem(last=False)
        self._grew.set()
        self._grew = asyncio.Event()

    async def _accept(self, blocks: Sequence[FollowedBlock], certified: CertifiedHead) -> None:
        self._advance_trust(certified)
        self._remember(block.header for block in blocks)
        self._parts.metrics.count("blocks_followed", len(blocks))
        for block in blocks:
            is_last = block is blocks[-1]
            final = FinalBlock(
                header=block.header,
                events=block.events,
                proof=certified.proof if is_last else None,
                next_set=certified.next_set if is_last else None,
            )
            for listener in self._listeners:
                listener(final)
            for stream in tuple(self._streams):
                await stream.put(final)

    # -- asking ------------------------------------------------------------------------------------

    async def get(
        self, keys: Sequence[bytes], height: int | None = None
    ) -> Mapping[bytes, ProvenValue]:
        """Verified values, or verified absences.

        Args:
            keys: state keys, any number.
            height: of a recent verified header; None means the newest.

        Raises:
            RemoteFault: the header is not known, or no node can prove these under it.
        """
        header = self._header(height)
        found: dict[bytes, ProvenValue] = {}
        for at in range(0, len(keys), MAX_KEYS):
            part = tuple(keys[at : at + MAX_KEYS])

            def believe(reply: Reply, part: tuple[bytes, ...] = part) -> None:
                found.update(_believe_values(reply, header, part))

            await self.nodes.ask(GetState(height=header.height, keys=part), believe)
        return found

    async def value(self, key: bytes) -> bytes | None:
        """One verified value under the newest header; a head that nodes forgot is waited out.

        Raises:
            RemoteFault: no node can prove it.
        """
        head = await self.wait_beyond(0)
        try:
            return (await self.get((key,), head.header.height))[key].value
        except RemoteFault:
            head = await self.wait_beyond(head.header.height)
            return (await self.get((key,), head.header.height))[key].value

    async def handover(self) -> CertifiedHead:
        """The header that ends the set which is trusted now, and the set that follows.

        Raises:
            RemoteFault: no node can show it; it may not have ended yet.
        """
        question = GetHandover(set_id=self._trust.validators.set_id)
        return await self.nodes.ask(question, self._believe_handover)

    async def block(self, height: int) -> Block:
        """A whole block under a recent verified header.

        Raises:
            RemoteFault: the header is not known, or no node has the block.
        """
        header = self._header(height)

        def believe(reply: Reply) -> Block:
            if not isinstance(reply, BlocksReply) or not reply.blocks:
                raise RemoteFault("wrong-answer", type(reply).__name__)
            block = reply.blocks[0]
            if block.header != header:
                raise Lie("wrong-block", f"another header at {height}")
            if transaction_root(block.transactions) != header.transaction_root:
                raise Lie("wrong-block", f"other transactions in {height}")
            return block

        return await self.nodes.ask(GetBlocks(first=height, count=1), believe)

    async def statuses(self, timeout_s: float = 2.0) -> Mapping[NodeAddress, Status | RemoteFault]:
        """What each node says of itself: hearsay, for people."""

        async def one(address: NodeAddress) -> Status | RemoteFault:
            try:
                reply = await self.nodes.ask_one(address, GetStatus(), timeout_s)
            except RemoteFault as fault:
                return fault
            return reply if isinstance(reply, Status) else RemoteFault("wrong-answer")

        addresses = self.nodes.in_turn()
        return dict(zip(addresses, await asyncio.gather(*map(one, addresses)), strict=True))

    def _header(self, height: int | None) -> Header:
        if height is None and self._head is not None:
            return self._head.header
        header = self._headers.get(height) if height is not None else None
        if header is None:
            raise RemoteFault("unknown-header", f"no verified header at {height}")
        return header


def _believe_values(
    reply: Reply, header: Header, keys: Sequence[bytes]
) -> Mapping[bytes, ProvenValue]:
    if not isinstance(reply, StateValues) or len(reply.values) != len(keys):
        raise Lie("wrong-answer", type(reply).__name__)
    for key, found in zip(keys, reply.values, strict=True):
        root = header.state_root
        holds = (
            verify_absence(root, key, found.proof)
            if found.value is None
            else verify_membership(root, key, found.value, found.proof)
        )
        if not holds:
            raise Lie("wrong-proof", f"of {key.hex()[:32]} at height {header.height}")
    return dict(zip(keys, reply.values, strict=True))


class BlockStream:
    """Verified blocks for one reader; made by `Follower.blocks`."""

    def __init__(self, queued: int, streams: "list[BlockStream]") -> None:
        self._queue: asyncio.Queue[FinalBlock] = asyncio.Queue(queued)
        self._streams = streams

    async def put(self, block: FinalBlock) -> None:
        """Hand over a block; waits while the reader is behind."""
        await self._queue.put(block)

    def close(self) -> None:
        """No more, please."""
        if self in self._streams:
            self._streams.remove(self)
        while not self._queue.empty():
            self._queue.get_nowait()

    def __aiter__(self) -> AsyncIterator[FinalBlock]:
        return self

    async def __anext__(self) -> FinalBlock:
        return await self._queue.get()
