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
only, so a fork or a discarded block costs what it changed. A state is the most that a node keeps in
memory, so nodes are as small as Python's cheapest objects allow, and none is kept that another tells:

- a leaf is one byte string, the key behind its length and then the value (reading needs no other store);
- a branch is a tuple: the very bytes that it hashes, then its children;
- a node's own hash is in its parent's bytes, the top's in the tree; a path is hashed from the key anew.

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
MAX_RECENT: Final = 16_384
"""Values that the newest tree has at hand, because they were read or changed of late."""
MAX_RECENT_BYTES: Final = 256
"""Only values that are no larger: nonces, balances, small records. So it is 2 MiB or so, 8 at most."""

_LEAF: Final = b"\x10"
_BRANCH: Final = b"\x11"
EMPTY_ROOT: Final = sha256(b"\x12").digest()

_Leaf: TypeAlias = bytes  # two bytes of the key's length, the key, the value
_Branch: TypeAlias = "tuple[bytes, *tuple[_Node, ...]]"  # what it hashes, the children present
_Node: TypeAlias = Union[_Leaf, _Branch]  # noqa: UP007 - recursive: `|` cannot join a forward name
_Placed: TypeAlias = tuple[bytes, _Node]  # a node and its hash
_Change: TypeAlias = tuple[bytes, bytes, bytes, bytes | None]  # path, its nibbles, key, value
_Step: TypeAlias = tuple[_Branch, int, int]  # branch, nibble, index among the children

_NIBBLE_OF_HEX: Final = bytes.maketrans(b"0123456789abcdef", bytes(range(RADIX)))
_BELOW: Final = tuple((1 << nibble) - 1 for nibble in range(RADIX))
"""By nibble, the bits of a bitmap for those before it."""
_HASHES: Final = 3
"""Where the children's hashes begin in what a branch hashes: behind prefix and bitmap."""


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
    paths = [sha256(leaf.key).digest() for leaf in part.leaves]
    ordered = all(before < after for before, after in itertools.pairwise(paths))
    inside = all(_nibbles(path).startswith(prefix) for path in paths)
    if not paths or not ordered or not inside or part.hashes:
        return None
    leaves = [
        (path, *_leaf(path, leaf.key, leaf.value))
        for path, leaf in zip(paths, part.leaves, strict=True)
    ]
    return _build(leaves, len(prefix))[0]


# --- the tree -------------------------------------------------------------------------------------


class StateTree:
    """An immutable map from bytes to bytes with a Merkle root.

    Every update returns a new tree that shares what did not change.

    What is read of a tree is mostly read again: a sender's nonce when its transaction comes, and when
    a block has it. So a tree remembers what was found, and an update passes that on to the new one.
    """

    __slots__ = ("_count", "_recent", "_top", "root")

    def __init__(
        self,
        top: _Placed | None = None,
        count: int = 0,
        recent: dict[bytes, bytes | None] | None = None,
    ) -> None:
        """Made by `empty` and `update`; not for callers."""
        self._top: Final = None if top is None else top[1]
        self._count: Final = count
        self._recent: dict[bytes, bytes | None] = {} if recent is None else recent
        self.root: Final = EMPTY_ROOT if top is None else top[0]
        """The 32-byte hash that commits to every key and value."""

    @classmethod
    def empty(cls) -> "StateTree":
        """The tree that holds nothing."""
        return cls()

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`."""
        recent = self._recent
        try:
            return recent[key]
        except KeyError:
            if len(recent) >= MAX_RECENT:
                recent.clear()
            value = self.find(key)
            if value is None or len(value) <= MAX_RECENT_BYTES:
                recent[key] = value
            return value

    def find(self, key: bytes) -> bytes | None:
        """`get`, by walking: for those who read each key once."""
        node = self._top
        if node is None:
            return None
        for nibble in _nibbles(sha256(key).digest()):
            if isinstance(node, bytes):
                break
            if len(node) > RADIX:
                node = node[nibble + 1]
                continue
            bitmap = node[0][1] << 8 | node[0][2]
            if not bitmap >> nibble & 1:
                return None
            node = node[1 + (bitmap & _BELOW[nibble]).bit_count()]
        head = _head(key)
        return node[len(head) :] if isinstance(node, bytes) and node.startswith(head) else None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.get(key) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their values, in the order of their paths."""
        for leaf in () if self._top is None else _leaves_below(self._top):
            yield _key(leaf), _value(leaf)

    def update(self, changes: Mapping[bytes, bytes | None]) -> "StateTree":
        """The tree after all `changes` at once; None deletes.

        Costs one hash per node that changes, however many changes meet in it, so a block applies
        all of its changes in one batch.
        """
        if not changes:
            return self
        batch = _Batch(
            sorted(
                [
                    ((path := sha256(key).digest()), _nibbles(path), key, value)
                    for key, value in changes.items()
                ]
            )
        )
        top = batch.apply(self._top, 0, len(changes), 0)
        if top is _SAME:
            return self
        return StateTree(top, self._count + batch.added, self._hand_on(changes))

    def _hand_on(self, changes: Mapping[bytes, bytes | None]) -> dict[bytes, bytes | None]:
        """What the tree after `changes` has at hand; this one, which nobody needs for long, loses it."""
        recent, self._recent = self._recent, {}
        if len(recent) + len(changes) > MAX_RECENT:
            recent.clear()
        if len(changes) > MAX_RECENT:
            return recent
        for key, value in changes.items():
            if value is None or len(value) <= MAX_RECENT_BYTES:
                recent[key] = value
            else:
                recent.pop(key, None)
        return recent

    def prove(self, key: bytes) -> StateProof:
        """Why this root holds `key`, or why it does not; the verifiers tell which."""
        leaf, steps = _descend(self._top, _nibbles(sha256(key).digest()))
        levels = tuple(_proof_level(*step) for step in steps)
        if leaf is None or _key(leaf) == key:
            return StateProof(levels, None)
        other = OtherLeaf(sha256(_key(leaf)).digest(), sha256(_value(leaf)).digest())
        return StateProof(levels, other)

    # -- parts -------------------------------------------------------------------------------------

    def hash_at(self, prefix: bytes) -> bytes | None:
        """The hash of all that is below a place; None if nothing is. Equal contents, equal hash."""
        placed = self._below(prefix)
        return None if placed is None else placed[0]

    def part(self, prefix: bytes, limit_bytes: int) -> StatePart:
        """What is below a place: its keys, if they are few or make at most so many bytes."""
        placed = self._below(prefix)
        if placed is None:
            return NO_PART
        leaves: list[StateLeaf] = []
        size, node = 0, placed[1]
        for leaf in _leaves_below(node):
            size += len(leaf) - _LENGTH
            if leaves and (size > limit_bytes or len(leaves) == MAX_PART_LEAVES):
                assert isinstance(node, tuple), "a leaf is alone"
                return StatePart(_bitmap(node), node[0][_HASHES:], ())
            leaves.append(StateLeaf(_key(leaf), _value(leaf)))
        return StatePart(0, b"", tuple(leaves))

    def with_part(self, prefix: bytes, leaves: Iterable[StateLeaf]) -> "StateTree":
        """This tree with exactly `leaves` below a place; what else was there is gone."""
        placed = self._below(prefix)
        changes: dict[bytes, bytes | None] = {}
        if placed is not None:
            changes.update((_key(leaf), None) for leaf in _leaves_below(placed[1]))
        changes.update((leaf.key, leaf.value) for leaf in leaves)
        return self.update(changes)

    def changes_since(self, older: "StateTree") -> dict[bytes, bytes | None]:
        """What `update` must be given to make this tree of an older one; costs what differs."""
        changes: dict[bytes, bytes | None] = {}
        _compare(older._placed(), self._placed(), changes)  # noqa: SLF001 - of the same class
        return changes

    def _placed(self) -> _Placed | None:
        return None if self._top is None else (self.root, self._top)

    def _below(self, prefix: bytes) -> _Placed | None:
        """What stands at a place, or the leaf above it that is alone on the way there."""
        placed = self._placed()
        for nibble in prefix:
            if placed is None or isinstance(placed[1], bytes):
                break
            placed = _child(placed[1], nibble)
        if placed is not None and isinstance(placed[1], bytes):
            path = _nibbles(sha256(_key(placed[1])).digest())
            return placed if path.startswith(prefix) else None
        return placed


# --- looking at nodes -----------------------------------------------------------------------------

_LENGTH: Final = 2
"""Bytes of a leaf before its key."""


def _head(key: bytes) -> bytes:
    """How the leaf of a key begins."""
    return len(key).to_bytes(_LENGTH, "big") + key


def _key(leaf: _Leaf) -> bytes:
    return leaf[_LENGTH : _LENGTH + (leaf[0] << 8 | leaf[1])]


def _value(leaf: _Leaf) -> bytes:
    return leaf[_LENGTH + (leaf[0] << 8 | leaf[1]) :]


def _bitmap(branch: _Branch) -> int:
    return branch[0][1] << 8 | branch[0][2]


def _child(branch: _Branch, nibble: int) -> _Placed | None:
    bitmap = _bitmap(branch)
    if not bitmap >> nibble & 1:
        return None
    index = (bitmap & _BELOW[nibble]).bit_count()
    at = _HASHES + HASH_BYTES * index
    return branch[0][at : at + HASH_BYTES], branch[index + 1]


def _leaves_below(node: _Node) -> Iterator[_Leaf]:
    """In order of their paths."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, bytes):
            yield node
        else:
            stack.extend(reversed(node[1:]))


def _compare(old: _Placed | None, new: _Placed | None, changes: dict[bytes, bytes | None]) -> None:
    """Add what must change to come from one place to another; equal hashes are equal contents."""
    if old is new or (old is not None and new is not None and old[0] == new[0]):
        return
    if old and new and isinstance(old[1], tuple) and isinstance(new[1], tuple):
        for nibble in range(RADIX):
            _compare(_child(old[1], nibble), _child(new[1], nibble), changes)
        return
    held = {} if old is None else {_key(leaf): _value(leaf) for leaf in _leaves_below(old[1])}
    holds = {} if new is None else {_key(leaf): _value(leaf) for leaf in _leaves_below(new[1])}
    changes.update((key, None) for key in held if key not in holds)
    changes.update((key, value) for key, value in holds.items() if held.get(key) != value)


def _descend(top: _Node | None, nibbles: bytes) -> tuple[_Leaf | None, list[_Step]]:
    """The leaf at the end of the way, if it ends in one, and the branches passed."""
    steps: list[_Step] = []
    node = top
    for nibble in nibbles:
        if node is None or isinstance(node, bytes):
            break
        bitmap = node[0][1] << 8 | node[0][2]
        index = (bitmap & _BELOW[nibble]).bit_count()
        steps.append((node, nibble, index))
        node = node[1 + index] if bitmap >> nibble & 1 else None
    assert node is None or isinstance(node, bytes), "two keys with one SHA-256"
    return node, steps


def _proof_level(branch: _Branch, nibble: int, index: int) -> ProofLevel:
    bitmap, hashes = _bitmap(branch), branch[0][_HASHES:]
    if bitmap >> nibble & 1:
        hashes = hashes[: HASH_BYTES * index] + hashes[HASH_BYTES * (index + 1) :]
    return ProofLevel(bitmap, hashes)


# --- changing -------------------------------------------------------------------------------------

_NewLeaf: TypeAlias = tuple[bytes, bytes, _Leaf]
"""Path, hash, leaf."""


_SAME: Final[_Placed] = (b"", b"")
"""Stands for a node that no change makes another."""


class _Batch:
    """One update: sorted changes, applied to the branches that they meet in."""

    __slots__ = ("_changes", "added")

    def __init__(self, changes: list[_Change]) -> None:
        self._changes = changes
        self.added = 0
        """Keys gained, less keys lost."""

    def apply(self, node: _Node | None, first: int, end: int, depth: int) -> _Placed | None:
        """`node` after the changes first..end, all of which lead to it; `_SAME` if none matter."""
        changes = self._changes
        if end - first == 1:
            return self._apply_one(node, changes[first], depth)
        if node is None or isinstance(node, bytes):
            return self._rebuild(node, first, end, depth)
        touched, bitmap = False, node[0][1] << 8 | node[0][2]
        hashed, children = bytearray(node[0]), list[_Node](node)
        while first < end:
            nibble, start = changes[first][1][depth], first
            first += 1
            while first < end and changes[first][1][depth] == nibble:
                first += 1
            index = (bitmap & _BELOW[nibble]).bit_count() + 1
            child = children[index] if bitmap >> nibble & 1 else None
            new = self.apply(child, start, first, depth + 1)
            if new is not _SAME:
                touched = True
                bitmap = _put(bitmap, hashed, children, nibble, new)
        return _shaped(bitmap, hashed, children) if touched else _SAME

    def _apply_one(self, node: _Node | None, change: _Change, depth: int) -> _Placed | None:
        """One change, without recursion: this is where most of a large batch ends up."""
        steps: list[_Step] = []
        nibbles = change[1]
        while isinstance(node, tuple):
            nibble = nibbles[depth]
            bitmap = node[0][1] << 8 | node[0][2]
            index = (bitmap & _BELOW[nibble]).bit_count()
            steps.append((node, nibble, index))
            node = node[1 + index] if bitmap >> nibble & 1 else None
            depth += 1
        new = self._replace_leaf(node, change, depth)
        if new is not _SAME:
            while steps:
                new = _with_child(*steps.pop(), new)
        return new

    def _replace_leaf(self, leaf: _Leaf | None, change: _Change, depth: int) -> _Placed | None:
        """What stands where a way ends: nothing, this key's leaf, or another key's."""
        path, _, key, value = change
        head = len(key).to_bytes(_LENGTH, "big") + key
        own = leaf is not None and leaf.startswith(head)
        if value is None:
            self.added -= own
            return None if own else _SAME
        new = head + value
        if leaf == new:
            return _SAME
        placed = sha256(_LEAF + path + sha256(value).digest()).digest(), new
        if leaf is None or own:
            self.added += not own
            return placed
        self.added += 1
        return _build([_as_new(leaf), (path, *placed)], depth)

    def _rebuild(self, leaf: _Leaf | None, first: int, end: int, depth: int) -> _Placed | None:
        """Several changes where at most one leaf stood."""
        leaves: list[_NewLeaf] = []
        gone = False
        for path, _, key, value in self._changes[first:end]:
            if leaf is not None and leaf.startswith(_head(key)):
                if value == _value(leaf):
                    continue
                leaf, gone = None, True
            if value is not None:
                leaves.append((path, *_leaf(path, key, value)))
        if not leaves and not gone:
            return _SAME
        self.added += len(leaves) - gone
        if leaf is not None:
            leaves.append(_as_new(leaf))
        return _build(leaves, depth) if leaves else None


def _put(
    bitmap: int, hashed: bytearray, children: list[_Node], nibble: int, new: _Placed | None
) -> int:
    """Put, insert or take away one child of a branch that is being changed; its new bitmap."""
    index = (bitmap & _BELOW[nibble]).bit_count() + 1
    at = _HASHES + HASH_BYTES * (index - 1)
    if bitmap >> nibble & 1:
        if new is not None:
            hashed[at : at + HASH_BYTES] = new[0]
            children[index] = new[1]
            return bitmap
        del hashed[at : at + HASH_BYTES], children[index]
    elif new is not None:
        hashed[at:at] = new[0]
        children.insert(index, new[1])
    else:
        return bitmap
    return bitmap ^ 1 << nibble


def _shaped(bitmap: int, hashed: bytearray, children: list[_Node]) -> _Placed | None:
    """A changed branch in canonical shape: nothing, or a leaf alone, is no branch."""
    if len(children) == 1:
        return None
    if len(children) == 2 and isinstance(children[1], bytes):
        return bytes(hashed[_HASHES:]), children[1]
    hashed[1:_HASHES] = bitmap.to_bytes(2, "big")
    return _branch(bytes(hashed), children)


def _with_child(branch: _Branch, nibble: int, index: int, new: _Placed | None) -> _Placed | None:
    """A branch with one child exchanged; the common case apart, because it is the hottest."""
    hashed = branch[0]
    children: list[_Node] = list(branch)
    if new is None or len(branch) == 2 or not (hashed[1] << 8 | hashed[2]) >> nibble & 1:
        changed = bytearray(hashed)
        return _shaped(_put(_bitmap(branch), changed, children, nibble, new), changed, children)
    at = _HASHES + HASH_BYTES * index
    children[index + 1] = new[1]
    return _branch(hashed[:at] + new[0] + hashed[at + HASH_BYTES :], children)


def _build(leaves: list[_NewLeaf], depth: int) -> _Placed:
    """The subtree over these leaves, of which there is at least one."""
    if len(leaves) == 1:
        return leaves[0][1:]
    groups: dict[int, list[_NewLeaf]] = {}
    shift = 0 if depth & 1 else 4
    for leaf in leaves:
        groups.setdefault(leaf[0][depth >> 1] >> shift & 15, []).append(leaf)
    bitmap = 0
    hashes: list[bytes] = []
    children: list[_Node] = [b""]
    for nibble in sorted(groups):
        bitmap |= 1 << nibble
        hash_, child = _build(groups[nibble], depth + 1)
        hashes.append(hash_)
        children.append(child)
    return _branch(_BRANCH + bitmap.to_bytes(2, "big") + b"".join(hashes), children)


def _branch(hashed: bytes, children: list[_Node]) -> _Placed:
    """A branch over `children[1:]`."""
    children[0] = hashed
    # A tuple of a list has no length that a checker knows: its first is what was just put there.
    return sha256(hashed).digest(), tuple(children)  # type: ignore[return-value]


def _as_new(leaf: _Leaf) -> _NewLeaf:
    path = sha256(_key(leaf)).digest()
    return path, _leaf_hash(path, _value(leaf)), leaf


def _leaf(path: bytes, key: bytes, value: bytes) -> tuple[bytes, _Leaf]:
    return _leaf_hash(path, value), _head(key) + value


def _leaf_hash(path: bytes, value: bytes) -> bytes:
    return sha256(_LEAF + path + sha256(value).digest()).digest()


def _branch_hash(bitmap: int, hashes: bytes) -> bytes:
    return sha256(_BRANCH + bitmap.to_bytes(2, "big") + hashes).digest()


def _nibbles(path: bytes) -> bytes:
    """A path's 64 nibbles, one per byte."""
    return path.hex().encode().translate(_NIBBLE_OF_HEX)
