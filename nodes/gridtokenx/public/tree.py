"""The block tree: everything above the last final block, and which of its heads is best.

Law of the file: the root is final; every node was checked and executed on its parent. Forks are
cheap because state trees share structure.

Theory: BABE's fork choice on top of GRANDPA's finality: of the heads above the root, the best has

    most primary blocks above the root, then the greatest height, then the lowest hash

A child never ranks below its parent, so the best block is always a head. Final and pruned blocks
leave their headers behind for a while: late votes may name them, and a vote's way down to the base
of its round leads through them, possibly before the disk has them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gridtokenx.core.machine import Reader
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.records import HASHES, load_block
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.slots import Epoch, SealedBlock

MAX_PAST: Final = 4096
"""Blocks whose headers are remembered after they became final, and as many after pruning."""


@dataclass(slots=True, eq=False)
class TreeNode:
    """A block that was checked and executed."""

    executed: ExecutedBlock
    epoch: Epoch
    """Randomness as of this block, its own VRF output mixed in."""
    validators: ValidatorSet
    """The set that authors and finalises this block's children."""
    sealed: SealedBlock | None = None
    """None for the block that was final when the tree was made."""
    author: bytes = b""
    """The session key that sealed it; empty for the block that was final when the tree was made."""
    primaries: int = 0
    """Primary blocks on the way from the tree's first root to here."""
    children: list[bytes] = field(default_factory=list)

    @property
    def hash(self) -> bytes:
        """The block's hash."""
        return self.executed.hash

    @property
    def height(self) -> int:
        """The block's height."""
        return self.executed.height

    @property
    def header(self) -> Header:
        """The block's header."""
        return self.executed.header

    @property
    def ref(self) -> BlockRef:
        """The block by hash and height."""
        return BlockRef(self.hash, self.height)

    @property
    def rank(self) -> tuple[int, int, bytes]:
        """Sorts nodes; the best is the smallest."""
        return (-self.primaries, -self.height, self.hash)


class Finalized(NamedTuple):
    """What finality of a block did to the tree."""

    final: tuple[TreeNode, ...]
    """The blocks that became final, lowest first; the last one is the new root."""
    pruned: tuple[TreeNode, ...]
    """The blocks that never will."""


class BlockTree:
    """Blocks by hash above a final root. Implements `grandpa.ballots.ChainView`.

    Args:
        root: the last final block.
        reader: where final blocks older than the tree's memory are found.
    """

    def __init__(self, root: TreeNode, reader: Reader) -> None:
        self._reader = reader
        self._root = root
        self._best = root
        self._nodes = {root.hash: root}
        self._sets = {root.validators.hash: root.validators}
        self._final: OrderedDict[bytes, Header] = OrderedDict()
        self._pruned: OrderedDict[bytes, Header] = OrderedDict()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def root(self) -> TreeNode:
        """The last final block."""
        return self._root

    @property
    def best(self) -> TreeNode:
        """The head to build on."""
        return self._best

    def get(self, block_hash: bytes) -> TreeNode | None:
        """A block of the tree."""
        return self._nodes.get(block_hash)

    def set_of(self, set_hash: bytes) -> ValidatorSet | None:
        """A set that authors and finalises children of a block of the tree."""
        return self._sets.get(set_hash)

    def insert(self, node: TreeNode) -> None:
        """Adds a block whose parent is in the tree."""
        parent = self._nodes[node.header.parent]
        parent.children.append(node.hash)
        self._nodes[node.hash] = node
        self._sets[node.validators.hash] = node.validators
        self._best = min(self._best, node, key=_rank)

    def path(self, head: TreeNode) -> list[TreeNode]:
        """The blocks above the root up to `head`, lowest first."""
        found: list[TreeNode] = []
        while head is not self._root:
            found.append(head)
            head = self._nodes[head.header.parent]
        return found[::-1]

    def fork_point(self, one: TreeNode, other: TreeNode) -> TreeNode:
        """The highest block that both are, or descend from."""
        while one is not other:
            if one.height >= other.height:
                one = self._nodes[one.header.parent]
            else:
                other = self._nodes[other.header.parent]
        return one

    def finalize(self, block_hash: bytes) -> Finalized:
        """Makes a block of the tree the root and drops what does not descend from it."""
        final = self.path(self._nodes[block_hash])
        if not final:
            return Finalized((), ())
        kept = {node.hash for node in self._above(final[-1])}
        on_way = {node.hash for node in final[:-1]} | {self._root.hash}
        pruned = [n for h, n in self._nodes.items() if h not in kept and h not in on_way]
        _remember(self._final, (self._root, *final))
        _remember(self._pruned, pruned)
        self._root = final[-1]
        self._nodes = {h: n for h, n in self._nodes.items() if h in kept}
        self._sets = {n.validators.hash: n.validators for n in self._nodes.values()}
        self._best = min(self._nodes.values(), key=_rank)
        return Finalized(tuple(final), tuple(pruned))

    # -- what voting asks (ChainView) --------------------------------------------------------------

    @property
    def finalized(self) -> BlockRef:
        """The last final block."""
        return self._root.ref

    def best_containing(self, block: BlockRef, set_id: int) -> BlockRef | None:
        """Head of the best chain through `block`, as far as validator set `set_id` may vote.

        The set finalises nothing above the block in which it hands over to the next one.
        """
        start = self._nodes.get(block.hash)
        if start is None:
            return None
        head = min(self._above(start), key=_rank)
        while head is not start and head.header.set_id != set_id:
            head = self._nodes[head.header.parent]
        return head.ref

    def height_of(self, block_hash: bytes) -> int | None:
        """The height of a known block: in the tree, final, or pruned not long ago."""
        header = self._header(block_hash)
        if header is not None:
            return header.height
        key = self._reader.get(HASHES, block_hash)
        return None if key is None else int.from_bytes(key, "big")

    def parent_of(self, block_hash: bytes) -> bytes | None:
        """The parent's hash of a known block; None for genesis."""
        header = self._header(block_hash)
        if header is None:
            key = self._reader.get(HASHES, block_hash)
            block = None if key is None else load_block(self._reader, int.from_bytes(key, "big"))
            header = None if block is None else block.header
        return header.parent if header is not None and header.height else None

    def header_of(self, block_hash: bytes) -> Header | None:
        """The header of a block above the root, or pruned not long ago."""
        if block_hash == self._root.hash or block_hash in self._final:
            return None
        return self._header(block_hash)

    def _header(self, block_hash: bytes) -> Header | None:
        node = self._nodes.get(block_hash)
        if node is not None:
            return node.header
        return self._final.get(block_hash) or self._pruned.get(block_hash)

    def _above(self, start: TreeNode) -> Iterator[TreeNode]:
        """A block and all its descendants."""
        waiting = [start]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += (self._nodes[child] for child in node.children)


def _remember(past: OrderedDict[bytes, Header], nodes: Sequence[TreeNode]) -> None:
    for node in nodes:
        past[node.hash] = node.header
    while len(past) > max(MAX_PAST, len(nodes)):
        past.popitem(last=False)


def _rank(node: TreeNode) -> tuple[int, int, bytes]:
    return node.rank
