"""Merkle trees over ordered lists: transactions, events, readings (RFC 6962 §2.1).

Law of the file: **a root commits to the list, its order and its length**. A leaf hashes as
``SHA-256(0x00 || leaf)`` and an inner node as ``SHA-256(0x01 || left || right)``, so that no inner
node can be passed off as a leaf. The tree over n leaves splits at the largest power of two below n,
which is the same as pairing neighbours level by level and carrying an odd last node up unhashed:
that is how the roots and proofs here are computed, in O(n) and without recursion.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

EMPTY_LIST_ROOT: Final = sha256().digest()
"""The root of no leaves at all (RFC 6962 §2.1)."""

HASH_BYTES: Final = 32
MAX_LEAVES: Final = 2**63


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of one leaf."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node over its children's hashes."""
    return sha256(b"\x01" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root of the tree over `leaves`, in their order."""
    if not leaves:
        return EMPTY_LIST_ROOT
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of the leaf at `index`: sibling hashes from the leaf's level up.

    Raises:
        IndexError: there is no such leaf. (A caller's mistake: indices come from our own lists.)
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of a tree of {len(leaves)} leaves")
    path: list[bytes] = []
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = _parents(level)
        index >>= 1
    return tuple(path)


def verify_inclusion(
    root: bytes, leaf: bytes, index: int, size: int, proof: Sequence[bytes]
) -> bool:
    """Whether `leaf` is number `index` of the `size` leaves under `root`.

    The proof must have exactly the length that (index, size) demand: nothing may be left over, and
    nothing missing (RFC 9162 §2.1.3.2, which states the check that RFC 6962 leaves to the reader).
    """
    if not 0 <= index < size <= MAX_LEAVES:
        return False
    if any(len(sibling) != HASH_BYTES for sibling in proof):
        return False
    siblings = iter(proof)
    node = leaf_hash(leaf)
    last = size - 1
    while last > 0:
        if index & 1 or index < last:
            sibling = next(siblings, None)
            if sibling is None:
                return False
            node = node_hash(sibling, node) if index & 1 else node_hash(node, sibling)
        index >>= 1
        last >>= 1
    return node == root and next(siblings, None) is None


def _parents(level: list[bytes]) -> list[bytes]:
    """The level above; an odd last node is carried up as it is."""
    pairs = zip(level[::2], level[1::2], strict=False)
    above = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
    if len(level) & 1:
        above.append(level[-1])
    return above
