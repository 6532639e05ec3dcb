"""The vote graph: which voters stand behind each block, and the heaviest chain among them.

Law of this file: a vote for a block is a vote for each of its ancestors. A node's `voters` is
therefore the union of its own votes and of its children's, and grows along every way to the base.

Theory: GRANDPA (Stewart and Kokoris-Kogia, 2020) defines g(V), the GHOST of a set of votes:
the highest block with a supermajority among them. Votes are kept as bit sets of voters and not as
sums, so that a voter is counted once for a block whatever number of ways his weight reaches it.

Ours differs: the published implementation keeps a node only for blocks that were voted for, with
compressed edges between them. Here each block between the base and a vote has a node. The chain
above the last finalised block is short, and no merge points have to be searched inside edges.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

ParentOf = Callable[[bytes], bytes | None]
"""The parent hash of a known block, or `None` for a block that is not known."""

Condition = Callable[[int], bool]
"""A predicate over the bit set of voters behind a block; must be monotone in that set."""


class BlockRef(NamedTuple):
    """A block by hash and height."""

    hash: bytes
    height: int


@dataclass(slots=True)
class _Node:
    height: int
    parent: bytes | None
    voters: int = 0
    children: list[bytes] = field(default_factory=list)


class VoteGraph:
    """Bit sets of voters on the blocks at and above a base."""

    def __init__(self, base: BlockRef) -> None:
        self._base = base
        self._nodes = {base.hash: _Node(base.height, None)}

    @property
    def base(self) -> BlockRef:
        """The lowest block that the graph knows."""
        return self._base

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._nodes

    def voters(self, block_hash: bytes) -> int:
        """The bit set of voters for a block and its descendants (0 where nothing was voted)."""
        node = self._nodes.get(block_hash)
        return 0 if node is None else node.voters

    def insert(self, target: BlockRef, voters: int, parent_of: ParentOf) -> bool:
        """Adds `voters` to the target and its ancestors.

        Returns False, and changes nothing, when the target does not descend from the base.
        """
        if not self._connect(target, parent_of):
            return False
        current: bytes | None = target.hash
        while current is not None:
            node = self._nodes[current]
            if node.voters | voters == node.voters:
                break  # by the law of this file, everything below has them too
            node.voters |= voters
            current = node.parent
        return True

    def is_at_or_above(self, block_hash: bytes, base: BlockRef) -> bool:
        """Whether `base` is the block itself or one of its ancestors, as far as the graph knows."""
        current: bytes | None = block_hash if block_hash in self._nodes else None
        while current is not None and self._nodes[current].height > base.height:
            current = self._nodes[current].parent
        return current == base.hash

    def find_ghost(self, start: BlockRef | None, condition: Condition) -> BlockRef | None:
        """The highest block at or above `start` (default: the base) that meets the condition.

        The condition is one that at most one child of a block can meet; should more than a third
        of the weight have equivocated, the child with the lowest hash is taken.
        """
        current = self._base if start is None or start.hash not in self._nodes else start
        if not condition(self._nodes[current.hash].voters):
            return None
        while (child := self._heavy_child(current.hash, condition)) is not None:
            current = child
        return current

    def find_ancestor(self, block: BlockRef, condition: Condition) -> BlockRef | None:
        """The highest block that meets the condition, of `block` and its ancestors to the base."""
        current: bytes | None = block.hash if block.hash in self._nodes else None
        while current is not None:
            node = self._nodes[current]
            if condition(node.voters):
                return BlockRef(current, node.height)
            current = node.parent
        return None

    def lower_base(self, ancestry: tuple[bytes, ...]) -> None:
        """Moves the base down; `ancestry` runs from the old base's parent to the new base."""
        if len(ancestry) > self._base.height:
            raise ValueError(f"ancestry of {len(ancestry)} blocks below height {self._base.height}")
        for block_hash in ancestry:
            old = self._nodes[self._base.hash]
            old.parent = block_hash
            self._nodes[block_hash] = _Node(old.height - 1, None, old.voters, [self._base.hash])
            self._base = BlockRef(block_hash, old.height - 1)

    def _heavy_child(self, block_hash: bytes, condition: Condition) -> BlockRef | None:
        heavy = [
            child
            for child in self._nodes[block_hash].children
            if condition(self._nodes[child].voters)
        ]
        return BlockRef(min(heavy), self._nodes[heavy[0]].height) if heavy else None

    def _connect(self, target: BlockRef, parent_of: ParentOf) -> bool:
        """Makes a node for each block between the target and the nearest node below it."""
        missing: list[bytes] = []
        current: bytes | None = target.hash
        while current not in self._nodes:
            if current is None or target.height - len(missing) <= self._base.height:
                return False
            missing.append(current)
            current = parent_of(current)
        if self._nodes[current].height != target.height - len(missing):
            return False
        for block_hash in reversed(missing):
            parent = self._nodes[current]
            parent.children.append(block_hash)
            self._nodes[block_hash] = _Node(parent.height + 1, current)
            current = block_hash
        return True
