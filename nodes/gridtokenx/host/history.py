"""A node's finished chain as clients see it: final blocks on disk, recent states in memory.

Trees share what they have in common, so keeping the last ones costs only what the blocks changed: about
a kibibyte a key. Few are kept where blocks change much. Older states are gone: a client that wants a
proof asks for it under a recent header. Blocks and events of all but the newest few are read from disk.

A replica that took over a state lacks blocks below it (`pbft/state_transfer.py`). Who asks for one is told
``not-kept``, and asks another node; the header by which a set ended is always here, with its proof.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Reader, Write
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.follow_messages import Followed, FollowedBlock, Handover, Newest
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.records import (
    SETS,
    base_height,
    height_key,
    load_block,
    load_events,
    load_finality,
)
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.terms import TERMS, Term

RECENT: Final = 128
"""States that are kept for proofs, at most."""
LEAST_RECENT: Final = 8
"""And at least, however much their blocks change."""
RECENT_CHANGES: Final = 16_384
"""Keys that the blocks between the oldest and the newest kept state may have changed."""
WHOLE: Final = 3
"""Newest blocks that are kept in memory with their transactions and events."""
MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_LOADED: Final = 32
"""Blocks read from disk for one answer: the loop does other things between two answers."""

ValidatorsOf = Callable[[StateTree], ValidatorSet]


class SetStore(Reader, Protocol):
    """A store in which validator sets can be kept."""

    def submit(self, writes: Iterable[Write], done: Callable[[], None]) -> None:
        """Queue one atomic batch."""


@dataclass(frozen=True, slots=True)
class _Recent:
    """A state that is kept, and what keeping it costs."""

    header: Header
    state: StateTree
    changes: int


class History:
    """Final blocks, newest last.

    Args:
        store: the node's, as `ledger.records` lays it out; sets that follow are added to it here.
        genesis: block 0.
        head: the last final block when the process starts.
        validators: the first validator set.
        validators_of: reads, from the state after a block, the set that finalises the next one.
            Without it the first set stays for ever.
    """

    def __init__(
        self,
        store: SetStore,
        genesis: ExecutedBlock,
        head: ExecutedBlock,
        validators: ValidatorSet,
        validators_of: ValidatorsOf | None = None,
    ) -> None:
        self._reader = store
        self._genesis = genesis
        self._recent: OrderedDict[int, _Recent] = OrderedDict()
        self._changes = 0
        self._whole: OrderedDict[int, ExecutedBlock] = OrderedDict()
        self._keep(head)
        self._first = validators
        self._validators_of = validators_of
        self._sets: dict[int, ValidatorSet] = {}
        self._by_hash: dict[bytes, ValidatorSet] = {}
        self._grew = asyncio.Event()
        self._know(validators)
        for _, raw in store.scan(SETS):
            self._know(decode_own(raw, ValidatorSet))
        self._base = 0
        self._read_base()
        self._learn_set(head)

    @property
    def head(self) -> ExecutedBlock:
        """The last final block."""
        return next(reversed(self._whole.values()))

    @property
    def validators(self) -> ValidatorSet:
        """The set that finalises the next block, as far as it is known here."""
        return self._by_hash.get(self.head.header.next_set_hash, self._first)

    @property
    def base(self) -> int:
        """From which height on all blocks are here; 0: all there are."""
        return self._base

    def append(self, executed: ExecutedBlock) -> None:
        """One more block is final and durable; one far above the last if its state was taken over."""
        if executed.height > self.head.height + 1:
            self._recent.clear()
            self._whole.clear()
            self._changes = 0
            self._read_base()
        self._learn_set(executed)
        self._keep(executed)
        self._grew.set()
        self._grew = asyncio.Event()

    def _keep(self, executed: ExecutedBlock) -> None:
        """Remember the newest; forget the oldest states, and what of a block is on disk anyway."""
        self._whole[executed.height] = executed
        if len(self._whole) > WHOLE:
            self._whole.popitem(last=False)
        changes = len(executed.changes)
        self._recent[executed.height] = _Recent(executed.header, executed.state, changes)
        self._changes += changes
        while len(self._recent) > RECENT or (
            len(self._recent) > LEAST_RECENT and self._changes > RECENT_CHANGES
        ):
            self._changes -= self._recent.popitem(last=False)[1].changes

    async def wait_beyond(self, height: int) -> None:
        """Until the head is above `height`."""
        while self.head.height <= height:
            await self._grew.wait()

    # -- reading -----------------------------------------------------------------------------------

    def state_at(self, height: int) -> StateTree:
        """The state after a recent final block.

        Raises:
            RemoteFault: too old, or not final yet.
        """
        recent = self._recent.get(height)
        if recent is None:
            first = next(iter(self._recent))
            raise RemoteFault(
                "height-unavailable", f"states {first} to {self.head.height} are here, not {height}"
            )
        return recent.state

    def newest(self) -> Newest:
        """The newest proven header.

        Raises:
            RemoteFault: nothing but genesis is final.
        """
        for height in range(self.head.height, max(0, self._base - 1), -1):
            proof = self._proof(height)
            if proof is not None:
                return Newest(header=self._header(height), proof=proof)
        raise RemoteFault("nothing-final", "no block above genesis is final yet")

    def followed(self, after: int, limit: int) -> Followed:
        """What is final above `after`, cut at the last proven block within bounds.

        Raises:
            RemoteFault: the next one is not kept here.
        """
        blocks = list(self._run(after, min(self.head.height, after + limit)))
        last_proven = next(
            (
                index
                for index in reversed(range(len(blocks)))
                if load_finality(self._reader, after + 1 + index) is not None
            ),
            None,
        )
        if last_proven is None:
            return Followed(blocks=tuple(blocks), proof=None, next_set=None)
        last = blocks[last_proven].header
        return Followed(
            blocks=tuple(blocks[: last_proven + 1]),
            proof=self._proof(last.height),
            next_set=self._by_hash.get(last.next_set_hash) if self._hands_over(last) else None,
        )

    def handover(self, set_id: int) -> Handover:
        """The block that ended a set. Set ids grow with height, so it is found by halving.

        Raises:
            RemoteFault: the set has not ended here.
        """
        early = self._early_handover(set_id)
        if early is not None:
            return early
        low, high = self._base, self.head.height
        while low < high:
            middle = (low + high + 1) // 2
            if self._header(middle).set_id <= set_id:
                low = middle
            else:
                high = middle - 1
        header, proof = self._header(low), self._proof(low)
        next_set = self._by_hash.get(header.next_set_hash)
        ended = header.set_id == set_id and self._hands_over(header)
        if not ended or proof is None or next_set is None:
            raise RemoteFault("no-handover", f"set {set_id} has not ended here")
        return Handover(header=header, proof=proof, next_set=next_set)

    def _early_handover(self, set_id: int) -> Handover | None:
        """A handover below the base, of which only the proof was taken over."""
        raw = self._reader.get(TERMS, height_key(set_id + 1))
        term = None if raw is None else decode_own(raw, Term)
        if term is None or not 0 < term.root.height < self._base:
            return None
        proof = self._proof(term.root.height)
        if proof is None:
            return None
        return Handover(header=term.root, proof=proof, next_set=term.validators)

    def blocks(self, first: int, count: int) -> tuple[Block, ...]:
        """Consecutive final blocks, as many as an answer can hold.

        Raises:
            RemoteFault: the first of them is not kept here.
        """
        found: list[Block] = []
        size = 0
        for height in range(first, min(self.head.height + 1, first + count)):
            if found and not self._keeps(height):
                break
            block = self._block(height)
            size += sum(len(transaction.encoded) for transaction in block.transactions)
            if found and size > MAX_ANSWER_BYTES:
                break
            found.append(block)
        return tuple(found)

    # -- internals ---------------------------------------------------------------------------------

    def _run(self, after: int, last: int) -> Iterator[FollowedBlock]:
        size, loaded = 0, 0
        for height in range(after + 1, last + 1):
            loaded += height not in self._whole
            if loaded > MAX_LOADED or (height > after + 1 and not self._keeps(height)):
                return
            self._require(height)
            events = self._events(height)
            size += sum(map(len, events))
            if size > MAX_ANSWER_BYTES and height > after + 1:
                return
            header = self._header(height)
            yield FollowedBlock(header=header, events=events)
            if self._hands_over(header):
                return

    def _learn_set(self, executed: ExecutedBlock) -> None:
        """Keep the set that a block hands over to: clients will ask for it, also after a restart."""
        if self._validators_of is None or executed.header.next_set_hash in self._by_hash:
            return
        following = self._validators_of(executed.state)
        if following.hash == executed.header.next_set_hash:
            self._know(following)
            key = following.set_id.to_bytes(8, "big")
            self._reader.submit((Write(SETS, key, encode(following)),), lambda: None)

    def _know(self, validators: ValidatorSet) -> None:
        self._sets[validators.set_id] = validators
        self._by_hash[validators.hash] = validators

    def _hands_over(self, header: Header) -> bool:
        current = self._sets.get(header.set_id)
        return current is not None and header.next_set_hash != current.hash

    def _block(self, height: int) -> Block:
        whole = self._whole.get(height)
        if whole is not None:
            return whole.block
        if height == 0:
            return self._genesis.block
        self._require(height)
        block = load_block(self._reader, height)
        assert block is not None, f"final block {height} is on disk"
        return block

    def _read_base(self) -> None:
        """Where a state was taken over, and the sets whose blocks are not all here."""
        self._base = base_height(self._reader)
        for _, raw in self._reader.scan(TERMS):
            self._know(decode_own(raw, Term).validators)

    def _keeps(self, height: int) -> bool:
        """Whether a final block is here; below the base some happen to be."""
        return height >= self._base or load_block(self._reader, height) is not None

    def _require(self, height: int) -> None:
        if not self._keeps(height):
            raise RemoteFault(
                "not-kept",
                f"block {height} is not kept here, all from {self._base} on are; ask another node",
            )

    def _header(self, height: int) -> Header:
        recent = self._recent.get(height)
        return self._block(height).header if recent is None else recent.header

    def _events(self, height: int) -> tuple[bytes, ...]:
        whole = self._whole.get(height)
        return whole.events if whole is not None else load_events(self._reader, height)

    def _proof(self, height: int) -> FinalityProof | None:
        raw = load_finality(self._reader, height)
        return None if raw is None else decode_own(raw, FinalityProof)  # type: ignore[arg-type]  # a union
