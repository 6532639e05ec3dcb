"""Catching up: what a node asks of whom, and what it answers.

Law of the file: **asking is driven by what peers say they have, one peer at a time per need**, so
nothing is sent twice by honest peers, and a liar costs one timeout before another peer is asked.
Who is asked next is who was asked longest ago.

    need                                      shown by                             asked for
    final blocks, or a justification          a higher `final_height`, two ticks   FinalRequest
                                              in a row (else it is on its way)
    a branch                                  an unknown best block, an orphan's   BranchRequest
                                              parent, the target of a vote
    votes                                     a standing with votes not held       VotesRequest
    a completed round                         a standing two rounds ahead          CatchUpRequest

A chunk of final blocks that ends below its justification is imported like any other blocks; the
next chunk is asked for from there. No answer passes a handover to another validator set: what comes
after can be checked only once the block that hands over is here. A branch whose answer was of no use
(it began beyond what is here, perhaps in a set that is not known) is asked for from the bottom next.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from gridtokenx.core.codec import decode_own
from gridtokenx.core.machine import Effect, Instant, NodeId, Reader, Send
from gridtokenx.finality.justifications import Justification
from gridtokenx.ledger.records import height_key, load_block, load_finality
from gridtokenx.public.grandpa.messages import CatchUpRequest, VotesRequest
from gridtokenx.public.grandpa.voter import Voter
from gridtokenx.public.importer import Importer
from gridtokenx.public.messages import (
    MAX_ANSWER_BYTES,
    MAX_BLOCKS,
    Branch,
    BranchRequest,
    FinalBlocks,
    FinalRequest,
    Status,
)
from gridtokenx.public.slots import SealedBlock
from gridtokenx.public.tree import BlockTree

SEALS: Final = "seals"
"""Table: height (8 bytes) -> the author's seal of the final block."""

MAX_PEERS: Final = 1024
MAX_BRANCHES: Final = 64
"""Branches asked for in one tick."""


@dataclass(frozen=True, slots=True)
class _Seen:
    status: Status
    at_ms: Instant


class Sync:
    """What peers said of themselves, and what was asked of them.

    Args:
        timeout_ms: an ask without an answer may be repeated after this long.
        forget_ms: a status older than this says nothing any more.
    """

    def __init__(self, timeout_ms: int, forget_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._forget_ms = forget_ms
        self._seen: dict[NodeId, _Seen] = {}
        self._asked: dict[Hashable, Instant] = {}
        self._last_asked: dict[NodeId, Instant] = {}
        self._behind = False
        self._cursors: dict[bytes, int] = {}
        self._final_cursor = (0, 0)

    def note(self, now: Instant, peer: NodeId, status: Status) -> None:
        """A peer said where it stands."""
        if peer in self._seen or len(self._seen) < MAX_PEERS:
            self._seen[peer] = _Seen(status, now)

    def peers_above(self, height: int) -> int:
        """How many peers say that a block above `height` is final."""
        return sum(seen.status.final_height > height for seen in self._seen.values())

    def plan(
        self, now: Instant, tree: BlockTree, importer: Importer, voter: Voter
    ) -> Iterator[Effect]:
        """Everything that is to be asked for in this tick."""
        self._expire(now)
        was_behind, self._behind = self._behind, self.peers_above(tree.root.height) > 0
        if was_behind and self._behind:
            yield from self.plan_final(now, tree)
        yield from self._plan_branches(now, tree, importer, voter)
        yield from self._plan_votes(now, voter)

    def plan_final(self, now: Instant, tree: BlockTree) -> Iterator[Effect]:
        """The next chunk of final blocks, if anybody has one and none is under way."""
        root = tree.root.height
        ahead = [p for p, seen in self._seen.items() if seen.status.final_height > root]
        if not ahead or not self._may_ask("final", now):
            return
        peer = self._pick(ahead, now)
        cursor = self._final_cursor[1] if self._final_cursor[0] == root else 0
        held = tree.get(self._seen[peer].status.final_hash)
        # A justification alone helps only if it is the present set's.
        with_blocks = held is None or held.header.set_id != tree.root.validators.set_id
        yield Send(peer, FinalRequest(max(cursor, root + 1), with_blocks))

    def final_answered(self, tree: BlockTree, answer: FinalBlocks) -> None:
        """An answer came: the next ask need not wait.

        It starts above the answer only if all of that entered the tree and its justification lies
        further on; otherwise from the root, so that no answer can lead past what is missing.
        """
        self._asked.pop("final", None)
        blocks = answer.blocks
        entered = all(block.header.hash in tree for block in blocks)
        goes_on = bool(blocks) and entered and answer.justification is None
        next_height = blocks[-1].header.height + 1 if goes_on else 0
        self._final_cursor = (tree.root.height, next_height)

    def branch_answered(self, branch: Branch) -> None:
        """An answer came: if the head lies beyond it, the next ask starts above it."""
        if branch.head not in self._cursors:
            return
        self._asked.pop(("branch", branch.head), None)
        if branch.blocks and branch.blocks[-1].header.hash != branch.head:
            self._cursors[branch.head] = branch.blocks[-1].header.height + 1
        else:
            del self._cursors[branch.head]

    def votes_answered(self) -> None:
        """Votes came: more may be asked for in the next tick."""
        self._asked.pop("votes", None)

    def _plan_branches(
        self, now: Instant, tree: BlockTree, importer: Importer, voter: Voter
    ) -> Iterator[Effect]:
        floor = tree.root.height + 1
        guess = max(floor, tree.best.height)
        if len(self._cursors) > MAX_PEERS:
            self._cursors.clear()
        wanted: dict[bytes, tuple[NodeId | None, int]] = {}
        for missing in (*importer.wanted(), *voter.missing_blocks()):
            if not importer.is_known(missing):
                wanted[missing] = (None, floor)
        for holder, seen in self._seen.items():
            status = seen.status
            if floor <= status.best_height and not importer.is_known(status.best_hash):
                wanted.setdefault(status.best_hash, (holder, min(guess, status.best_height)))
        asks = (
            (head, *ask) for head, ask in wanted.items() if self._may_ask(("branch", head), now)
        )
        for head, owner, lowest in islice(asks, MAX_BRANCHES if self._seen else 0):
            start = max(floor, self._cursors.setdefault(head, lowest))
            peer = self._pick(self._seen, now) if owner is None else owner
            yield Send(peer, BranchRequest(head, start))

    def _plan_votes(self, now: Instant, voter: Voter) -> Iterator[Effect]:
        standings = [(peer, seen.status.standing) for peer, seen in self._seen.items()]
        ours = voter.validators.set_id
        ahead = [
            peer
            for peer, standing in standings
            if standing.set_id == ours and standing.round >= voter.round_number + 2
        ]
        if ahead and self._may_ask("catch-up", now):
            yield Send(self._pick(ahead, now), CatchUpRequest(ours, voter.round_number))
        helpful = {
            peer: lacking
            for peer, standing in standings
            if (lacking := voter.lacks(standing)) is not None
        }
        if helpful and self._may_ask("votes", now):
            peer = self._pick(helpful, now)
            yield Send(peer, VotesRequest(helpful[peer]))

    def _may_ask(self, need: Hashable, now: Instant) -> bool:
        if self._asked.get(need, now) > now:
            return False
        self._asked[need] = now + self._timeout_ms
        return True

    def _pick(self, peers: Iterable[NodeId], now: Instant) -> NodeId:
        peer = min(peers, key=lambda p: (self._last_asked.get(p, 0), p))
        self._last_asked[peer] = now
        return peer

    def _expire(self, now: Instant) -> None:
        self._seen = {
            peer: seen for peer, seen in self._seen.items() if seen.at_ms + self._forget_ms > now
        }
        if self._asked.get("final", now + 1) <= now:
            self._final_cursor = (0, 0)
        for need in [need for need, until in self._asked.items() if until <= now]:
            del self._asked[need]
            if isinstance(need, tuple) and need[1] in self._cursors:
                self._cursors[need[1]] = 0
        self._last_asked = {p: t for p, t in self._last_asked.items() if p in self._seen}


def serve_branch(tree: BlockTree, request: BranchRequest) -> Branch | None:
    """The blocks of a branch of ours, lowest first, of one set; None if we do not have it."""
    head = tree.get(request.head)
    if head is None or head is tree.root:
        return None
    blocks = (node.sealed for node in tree.path(head) if node.height >= request.from_height)
    wanted = _within_limits(block for block in blocks if block is not None)
    return Branch(request.head, tuple(_of_one_set(wanted)))


def serve_final(reader: Reader, final_height: int, request: FinalRequest) -> FinalBlocks | None:
    """Final blocks from a height on, ending with a justified one if one is within the limits.

    All are of one validator set: the asker can check the next set's blocks only once the block
    that names it is final there. That block always has a justification of its own.
    """
    if not 0 < request.from_height <= final_height:
        return None
    if not request.with_blocks:
        return FinalBlocks((), load_justification(reader, final_height))
    heights = range(request.from_height, final_height + 1)
    loaded = (load_sealed(reader, height) for height in heights)
    blocks = list(_of_one_set(_within_limits(loaded)))
    for count in range(len(blocks), 0, -1):
        justification = load_justification(reader, blocks[count - 1].header.height)
        if justification is not None:
            return FinalBlocks(tuple(blocks[:count]), justification)
    return FinalBlocks(tuple(blocks), None)


def load_sealed(reader: Reader, height: int) -> SealedBlock:
    """A stored final block with its seal."""
    block, seal = load_block(reader, height), reader.get(SEALS, height_key(height))
    if block is None or seal is None:
        raise AssertionError(f"final block {height} is not in the store")
    return SealedBlock(block, seal)


def load_justification(reader: Reader, height: int) -> Justification | None:
    """The justification stored for exactly this height."""
    raw = load_finality(reader, height)
    return None if raw is None else decode_own(raw, Justification)


def _of_one_set(blocks: Iterable[SealedBlock]) -> Iterator[SealedBlock]:
    set_id: int | None = None
    for block in blocks:
        set_id = block.header.set_id if set_id is None else set_id
        if block.header.set_id != set_id:
            return
        yield block


def _within_limits(blocks: Iterable[SealedBlock]) -> Iterator[SealedBlock]:
    size = 0
    for count, block in enumerate(blocks, start=1):
        yield block
        size += sum(len(transaction.encoded) for transaction in block.block.transactions)
        if count == MAX_BLOCKS or size > MAX_ANSWER_BYTES:
            return
