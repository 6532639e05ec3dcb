"""The state tree: one hash for a whole key-value state, with proofs of presence and of absence.

Law of the file: **equal contents, equal root; and a root proves what it holds and what it lacks**.

A sparse Merkle tree over ``path = SHA-256(key)``, radix 16: the path's 64 nibbles, most significant
first, choose the way down. A key's leaf sits at the highest place where no other key shares its
way, so the shape depends on the contents only and never on their history; deleting collapses it.

======  ===============================================================  ====================
node    hash                                                             meaning
======  ===============================================================  ====================
empty   ``SHA-256(0x12)``                                                no key at all
leaf    ``SHA-256(0x10 || path || SHA-256(value))``                      exactly one key
branch  ``SHA-256(0x11 || bitmap || hashes of the children present)``    two keys or more
======  ===============================================================  ====================

`bitmap` has 16 bits, big-endian: bit i is set where the child of nibble i exists. A leaf names its
whole path, so a leaf found on another key's way proves that other key absent; a branch names its
gaps, so a clear bit proves it too. The prefixes differ from each other and from RFC 6962's, so
that no node can be passed off as another kind. An all-zero root proves nothing.

Nodes are immutable and shared between versions: an update makes new nodes along the changed ways
only, so a fork or a discarded block costs what it changed. They are plain tuples, because these
are the cheapest objects that Python has and the collector stops tracking those without cycles.
A leaf holds its key and value, so that reading needs no other store.

The radix is the result of a measurement: `docs/decisions/0002-state-tree-radix.md`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Final, TypeAlias, Union

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Hash32

RADIX: Final = 16
MAX_KEY_BYTES: Final = 480
MAX_VALUE_BYTES: Final = 4 * 1024 * 1024
MAX_PART_LEAVES: Final = 65_536
HASH_BYTES: Final = 32
MAX_DEPTH: Final = 64
"""Nibbles of a path: no proof has more levels."""

_LEAF: Final = b"\x10"
_BRANCH: Final = b"\x11"
EMPTY_ROOT: Final = sha256(b"\x12").digest()

_Leaf: TypeAlias = tuple[bytes, bytes, bytes, bytes]  # hash, path, key, value
_Branch: TypeAlias = tuple[bytes, int, tuple["_Node", ...]]  # hash, bitmap, children present
_Node: TypeAlias = Union[_Leaf, _Branch]  # noqa: UP007 - recursive: `|` cannot join a forward name
_Change: TypeAlias = tuple[bytes, bytes, bytes, bytes | None]  # path, its nibbles, key, value
_Step: TypeAlias = tuple[_Branch, int, int]  # branch, nibble's bit, index among the children

_NIBBLE_OF_HEX: Final = bytes.maketrans(b"0123456789abcdef", bytes(range(RADIX)))


# --- proofs ---------------------------------------------------------------------------------------


class ProofLevel(Wire, frozen=True):
    """One branch on the way from the root to where the key is, or would be."""

    bitmap: Annotated[int, Meta(ge=1, le=0xFFFF)]
    """Which children the branch has; bit i for nibble i."""
    siblings: Annotated[bytes, Meta(max_length=RADIX * HASH_BYTES)]
    """The hashes of all children but the one on the way, in order of nibbles, concatenated."""


class OtherLeaf(Wire, frozen=True):
    """A leaf that stands where the key would be."""

    path: Hash32
    """SHA-256 of the other key."""
    value_hash: Hash32
    """SHA-256 of the other value."""


class StateProof(Wire, frozen=True):
    """Why a root does, or does not, hold a key."""

    levels: Annotated[tuple[ProofLevel, ...], Meta(max_length=MAX_DEPTH)]
    """The branches from the root downwards."""
    other: OtherLeaf | None
    """Absence only: whose leaf ends the way. Without it, absence ends in a gap of the last level."""


def verify_membership(root: bytes, key: bytes, value: bytes, proof: StateProof) -> bool:
    """Whether `proof` shows that the state under `root` holds `value` at `key`."""
    if proof.other is not None:
        return False
    path = sha256(key).digest()
    return _climb(path, _leaf_hash(path, value), proof.levels) == root


def verify_absence(root: bytes, key: bytes, proof: StateProof) -> bool:
    """Whether `proof` shows that the state under `root` holds nothing at `key`."""
    path = sha256(key).digest()
    if proof.other is not None:
        return _verify_other_leaf(root, path, proof.levels, proof.other)
    if not proof.levels:
        return root == EMPTY_ROOT
    if len(proof.levels) > MAX_DEPTH:
        return False
    gap = proof.levels[-1]
    nibble = _nibbles(path)[len(proof.levels) - 1]
    if gap.bitmap >> nibble & 1 or len(gap.siblings) != HASH_BYTES * gap.bitmap.bit_count():
        return False
    return _climb(path, _branch_hash(gap.bitmap, gap.siblings), proof.levels[:-1]) == root


def _verify_other_leaf(
    root: bytes, path: bytes, levels: Sequence[ProofLevel], other: OtherLeaf
) -> bool:
    """Absence by a leaf that is not the key's own, yet stands on the key's way."""
    if other.path == path or _nibbles(other.path)[: len(levels)] != _nibbles(path)[: len(levels)]:
        return False
    start = sha256(_LEAF + other.path + other.value_hash).digest()
    return _climb(path, start, levels) == root


def _climb(path: bytes, start: bytes, levels: Sequence[ProofLevel]) -> bytes | None:
    """The root that follows from `start` below `levels`; None if the levels contradict the path."""
    if len(levels) > MAX_DEPTH:
        return None
    node, nibbles = start, _nibbles(path)
    for depth in range(len(levels) - 1, -1, -1):
        level, bit = levels[depth], 1 << nibbles[depth]
        children = level.bitmap.bit_count()
        if not level.bitmap & bit or len(level.siblings) != HASH_BYTES * (children - 1):
            return None
        at = HASH_BYTES * (level.bitmap & (bit - 1)).bit_count()
        node = _branch_hash(level.bitmap, level.siblings[:at] + node + level.siblings[at:])
    return node


# --- parts ----------------------------------------------------------------------------------------


Prefix = Annotated[bytes, Meta(max_length=MAX_DEPTH)]
"""The first nibbles of paths, one per byte: names everything that is below one place of the tree."""


class StateLeaf(Wire, frozen=True):
    """One key of a state."""

    key: Annotated[bytes, Meta(max_length=MAX_KEY_BYTES)]
    """As modules name it; its place is its SHA-256."""
    value: Annotated[bytes, Meta(max_length=MAX_VALUE_BYTES)]
    """What the state holds there."""


class StatePart(Wire, frozen=True):
    """What is below one place: all its keys or, where these are many, the hashes of what is below it.

    Whoever knows the hash of the place needs nobody's word for a part: see `part_hash`.
    """

    bitmap: Annotated[int, Meta(ge=0, le=0xFFFF)]
    """Of a branch: which children it has; 0: `leaves` are all there is."""
    hashes: Annotated[bytes, Meta(max_length=RADIX * HASH_BYTES)]
    """Of a branch: its children's hashes in order of nibbles, concatenated."""
    leaves: Annotated[tuple[StateLeaf, ...], Meta(max_length=MAX_PART_LEAVES)]
    """All keys below the place in order of their paths; none if this is a branch."""

    def children(self) -> Iterator[tuple[int, bytes]]:
        """Nibble and hash of each child of a branch."""
        nibbles = (nibble for nibble in range(RADIX) if self.bitmap >> nibble & 1)
        for index, nibble in enumerate(nibbles):
            yield nibble, self.hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]


NO_PART: Final = StatePart(0, b"", ())


def part_hash(prefix: bytes, part: StatePart) -> bytes | None:
    """The hash of the place `prefix` if exactly `part` is below it; None if it cannot be there."""
    if part.bitmap:
        fits = len(part.hashes) == HASH_BYTES * part.bitmap.bit_count() and not part.leaves
        return _branch_hash(part.bitmap, part.hashes) if fits else None
    leaves = [_leaf(sha256(leaf.key).digest(), leaf.key, leaf.value) for leaf in part.leaves]
    ordered = all(before[1] < after[1] for before, after in itertools.pairwise(leaves))
    inside = all(_nibbles(leaf[1]).startswith(prefix) for leaf in leaves)
    if not leaves or not ordered or not inside or part.hashes:
        return None
    return _build(leaves, len(prefix))[0]


# --- the tree -------------------------------------------------------------------------------------


class StateTree:
    """An immutable map from bytes to bytes with a Merkle root.

    Every update returns a new tree that shares what did not change.
    """

    __slots__ = ("_count", "_top")

    def __init__(self, top: _Node | None = None, count: int = 0) -> None:
        """Made by `empty` and `update`; not for callers."""
        self._top = top
        self._count = count

    @classmethod
    def empty(cls) -> "StateTree":
        """The tree that holds nothing."""
        return cls()

    @property
    def root(self) -> bytes:
        """The 32-byte hash that commits to every key and value."""
        return EMPTY_ROOT if self._top is None else self._top[0]

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`."""
        path, node = sha256(key).digest(), self._top
        for nibble in _nibbles(path):
            if node is None or len(node) == 4:
                break
            bit = 1 << nibble
            node = node[2][(node[1] & (bit - 1)).bit_count()] if node[1] & bit else None
        return node[3] if node is not None and len(node) == 4 and node[1] == path else None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.get(key) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their values, in the order of their paths."""
        for leaf in () if self._top is None else _leaves_below(self._top):
            yield leaf[2], leaf[3]

    def update(self, changes: Mapping[bytes, bytes | None]) -> "StateTree":
        """The tree after all `changes` at once; None deletes.

        Costs one hash per node that changes, however many changes meet in it, so a block applies
        all of its changes in one batch.
        """
        ordered = sorted(map(_change, changes.keys(), changes.values()))
        if not ordered:
            return self
        batch = _Batch(ordered)
        top = batch.apply(self._top, 0, len(ordered), 0)
        return self if top is self._top else StateTree(top, self._count + batch.added)

    def prove(self, key: bytes) -> StateProof:
        """Why this root holds `key`, or why it does not; the verifiers tell which."""
        path = sha256(key).digest()
        leaf, steps = _descend(self._top, path)
        levels = tuple(_proof_level(*step) for step in steps)
        if leaf is None or leaf[1] == path:
            return StateProof(levels, None)
        return StateProof(levels, OtherLeaf(leaf[1], sha256(leaf[3]).digest()))

    # -- parts -------------------------------------------------------------------------------------

    def hash_at(self, prefix: bytes) -> bytes | None:
        """The hash of all that is below a place; None if nothing is. Equal contents, equal hash."""
        node = self._below(prefix)
        return None if node is None else node[0]

    def part(self, prefix: bytes, limit_bytes: int) -> StatePart:
        """What is below a place: its keys, if they are few or make at most so many bytes."""
        node = self._below(prefix)
        if node is None:
            return NO_PART
        leaves: list[StateLeaf] = []
        size = 0
        for _, _, key, value in _leaves_below(node):
            size += len(key) + len(value)
            if leaves and (size > limit_bytes or len(leaves) == MAX_PART_LEAVES):
                assert len(node) == 3, "a leaf is alone"
                return StatePart(node[1], b"".join([child[0] for child in node[2]]), ())
            leaves.append(StateLeaf(key, value))
        return StatePart(0, b"", tuple(leaves))

    def with_part(self, prefix: bytes, leaves: Iterable[StateLeaf]) -> "StateTree":
        """This tree with exactly `leaves` below a place; what else was there is gone."""
        node = self._below(prefix)
        changes: dict[bytes, bytes | None] = {}
        if node is not None:
            changes.update((leaf[2], None) for leaf in _leaves_below(node))
        changes.update((leaf.key, leaf.value) for leaf in leaves)
        return self.update(changes)

    def changes_since(self, older: "StateTree") -> dict[bytes, bytes | None]:
        """What `update` must be given to make this tree of an older one; costs what differs."""
        changes: dict[bytes, bytes | None] = {}
        _compare(older._top, self._top, changes)  # noqa: SLF001 - of the same class
        return changes

    def _below(self, prefix: bytes) -> _Node | None:
        """What stands at a place, or the leaf above it that is alone on the way there."""
        node = self._top
        for nibble in prefix:
            if node is None or len(node) == 4:
                break
            bit = 1 << nibble
            node = node[2][(node[1] & (bit - 1)).bit_count()] if node[1] & bit else None
        if node is not None and len(node) == 4 and not _nibbles(node[1]).startswith(prefix):
            return None
        return node


def _leaves_below(node: _Node) -> Iterator[_Leaf]:
    """In order of their paths."""
    stack = [node]
    while stack:
        node = stack.pop()
        if len(node) == 4:
            yield node
        else:
            stack.extend(reversed(node[2]))


def _compare(old: _Node | None, new: _Node | None, changes: dict[bytes, bytes | None]) -> None:
    """Add what must change to come from one place to another; equal hashes are equal contents."""
    if old is new or (old is not None and new is not None and old[0] == new[0]):
        return
    if old is not None and new is not None and len(old) == 3 and len(new) == 3:
        olds, news = _by_bit(old), _by_bit(new)
        for bit in sorted(olds | news):
            _compare(olds.get(bit), news.get(bit), changes)
        return
    held = {} if old is None else {leaf[2]: leaf[3] for leaf in _leaves_below(old)}
    holds = {} if new is None else {leaf[2]: leaf[3] for leaf in _leaves_below(new)}
    changes.update((key, None) for key in held if key not in holds)
    changes.update((key, value) for key, value in holds.items() if held.get(key) != value)


def _by_bit(branch: _Branch) -> dict[int, _Node]:
    bits = (1 << nibble for nibble in range(RADIX) if branch[1] >> nibble & 1)
    return dict(zip(bits, branch[2], strict=True))


def _descend(top: _Node | None, path: bytes) -> tuple[_Leaf | None, list[_Step]]:
    """The leaf at the end of the path's way, if it ends in one, and the branches passed."""
    steps: list[_Step] = []
    node = top
    for nibble in _nibbles(path):
        if node is None or len(node) == 4:
            break
        bit = 1 << nibble
        index = (node[1] & (bit - 1)).bit_count()
        steps.append((node, bit, index))
        node = node[2][index] if node[1] & bit else None
    assert node is None or len(node) == 4, "two keys with one SHA-256"
    return node, steps


def _proof_level(branch: _Branch, bit: int, index: int) -> ProofLevel:
    hashes = [child[0] for child in branch[2]]
    if branch[1] & bit:
        del hashes[index]
    return ProofLevel(branch[1], b"".join(hashes))


class _Batch:
    """One update: sorted changes, applied to the branches that they meet in."""

    __slots__ = ("_changes", "added")

    def __init__(self, changes: list[_Change]) -> None:
        self._changes = changes
        self.added = 0
        """Keys gained, less keys lost."""

    def apply(self, node: _Node | None, first: int, end: int, depth: int) -> _Node | None:
        """`node` after the changes first..end, all of which lead to it; the same if none matter."""
        if end - first == 1:
            return self._apply_one(node, self._changes[first], depth)
        if node is None or len(node) == 4:
            return self._rebuild(node, first, end, depth)
        bitmap, children = node[1], list(node[2])
        touched = False
        while first < end:
            nibble, start = self._changes[first][1][depth], first
            while first < end and self._changes[first][1][depth] == nibble:
                first += 1
            bit = 1 << nibble
            index = (bitmap & (bit - 1)).bit_count()
            old = children[index] if bitmap & bit else None
            new = self.apply(old, start, first, depth + 1)
            if new is old:
                continue
            touched = True
            bitmap = _place(bitmap, children, bit, index, new)
        return _branch(bitmap, children) if touched else node

    def _apply_one(self, top: _Node | None, change: _Change, depth: int) -> _Node | None:
        """One change, without recursion: this is where most of a large batch ends up."""
        steps: list[_Step] = []
        node, nibbles = top, change[1]
        while node is not None and len(node) == 3:
            bit = 1 << nibbles[depth]
            index = (node[1] & (bit - 1)).bit_count()
            steps.append((node, bit, index))
            node = node[2][index] if node[1] & bit else None
            depth += 1
        new = self._replace_leaf(node, change, depth)
        if new is node:
            return top
        while steps:
            branch, bit, index = steps.pop()
            children = list(branch[2])
            new = _branch(_place(branch[1], children, bit, index, new), children)
        return new

    def _replace_leaf(self, leaf: _Leaf | None, change: _Change, depth: int) -> _Node | None:
        """What stands where a way ends: nothing, this key's leaf, or another key's."""
        path, _, key, value = change
        if leaf is not None and leaf[1] == path:
            if value is None:
                self.added -= 1
                return None
            return leaf if leaf[3] == value else _leaf(path, key, value)
        if value is None:
            return leaf
        self.added += 1
        new = _leaf(path, key, value)
        return new if leaf is None else _build([leaf, new], depth)

    def _rebuild(self, old: _Leaf | None, first: int, end: int, depth: int) -> _Node | None:
        """Several changes where at most one leaf stood."""
        leaves: list[_Leaf] = []
        for path, _, key, value in self._changes[first:end]:
            if old is not None and old[1] == path:
                if value == old[3]:
                    continue
                self.added -= 1
                old = None
            if value is not None:
                leaves.append(_leaf(path, key, value))
        self.added += len(leaves)
        if old is not None:
            if not leaves:
                return old
            leaves.append(old)
        return _build(leaves, depth) if leaves else None


def _place(bitmap: int, children: list[_Node], bit: int, index: int, new: _Node | None) -> int:
    """Put, insert or take away one child; the new bitmap."""
    if bitmap & bit:
        if new is not None:
            children[index] = new
            return bitmap
        del children[index]
        return bitmap ^ bit
    if new is not None:
        children.insert(index, new)
        return bitmap | bit
    return bitmap


def _build(leaves: list[_Leaf], depth: int) -> _Node:
    """The subtree over these leaves, of which there is at least one."""
    if len(leaves) == 1:
        return leaves[0]
    groups: dict[int, list[_Leaf]] = {}
    shift = 0 if depth & 1 else 4
    for leaf in leaves:
        groups.setdefault(leaf[1][depth >> 1] >> shift & 15, []).append(leaf)
    bitmap = 0
    children: list[_Node] = []
    for nibble in sorted(groups):
        bitmap |= 1 << nibble
        children.append(_build(groups[nibble], depth + 1))
    return _make_branch(bitmap, children)


def _branch(bitmap: int, children: list[_Node]) -> _Node | None:
    """A branch in canonical shape: nothing, or a leaf alone, is no branch."""
    if len(children) > 1:
        return _make_branch(bitmap, children)
    if not children:
        return None
    return children[0] if len(children[0]) == 4 else _make_branch(bitmap, children)


def _make_branch(bitmap: int, children: list[_Node]) -> _Branch:
    hashes = b"".join([child[0] for child in children])
    return _branch_hash(bitmap, hashes), bitmap, tuple(children)


def _leaf(path: bytes, key: bytes, value: bytes) -> _Leaf:
    return _leaf_hash(path, value), path, key, value


def _leaf_hash(path: bytes, value: bytes) -> bytes:
    return sha256(_LEAF + path + sha256(value).digest()).digest()


def _branch_hash(bitmap: int, hashes: bytes) -> bytes:
    return sha256(_BRANCH + bitmap.to_bytes(2, "big") + hashes).digest()


def _change(key: bytes, value: bytes | None) -> _Change:
    path = sha256(key).digest()
    return path, _nibbles(path), key, value


def _nibbles(path: bytes) -> bytes:
    """A path's 64 nibbles, one per byte."""
    return path.hex().encode().translate(_NIBBLE_OF_HEX)
