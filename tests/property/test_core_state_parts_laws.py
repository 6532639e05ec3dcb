"""Parts of a state: each proves itself against one hash, and together they are the state.

Laws: a state taken over part by part is the state; no altered part has the hash of its place; a part
stays within its bounds; what differs between two trees is exactly what makes one of the other.
"""

import random
from collections.abc import Callable, Mapping
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from tests.property.test_core_state_tree_laws import KEYS, STATES, VALUES

from gridtokenx.core.state_tree import (
    HASH_BYTES,
    NO_PART,
    StateLeaf,
    StatePart,
    StateTree,
    part_hash,
)

LIMITS = st.integers(0, 40)
PREFIXES = st.binary(max_size=5).map(lambda raw: bytes(byte & 15 for byte in raw))


def tree(state: Mapping[bytes, bytes]) -> StateTree:
    return StateTree.empty().update(dict(state))


def take_over(
    source: StateTree, known: StateTree, limit: int, alter: Callable[[StatePart], StatePart]
) -> tuple[StateTree, int]:
    """Make `known` equal to `source` by asking for parts; also how many were asked for."""
    wanted, asked = [(b"", source.root)], 0
    while wanted:
        prefix, expected = wanted.pop()
        if known.hash_at(prefix) == expected:
            continue
        part = alter(source.part(prefix, limit))
        asked += 1
        assert part_hash(prefix, part) == expected
        if not part.bitmap:
            known = known.with_part(prefix, part.leaves)
            continue
        children = dict(part.children())
        for nibble in range(16):
            below = prefix + bytes((nibble,))
            if nibble in children:
                wanted.append((below, children[nibble]))
            else:
                known = known.with_part(below, ())
    return known, asked


@given(STATES.filter(bool), STATES, LIMITS)
def test_parts_make_any_tree_the_one_that_they_are_of(
    state: dict[bytes, bytes], before: dict[bytes, bytes], limit: int
) -> None:
    made, _ = take_over(tree(state), tree(before), limit, lambda part: part)
    assert dict(made.items()) == state
    assert made.root == tree(state).root
    assert len(made) == len(state)


@given(STATES.filter(bool), LIMITS)
def test_what_is_known_already_is_not_asked_for(state: dict[bytes, bytes], limit: int) -> None:
    assert take_over(tree(state), tree(state), limit, lambda part: part)[1] == 0
    changed = {**state, min(state): b"another value"}
    path = sha256(min(state)).digest()
    _, asked = take_over(tree(changed), tree(state), limit, lambda part: part)
    depth = len(tree(changed).prove(min(state)).levels)
    assert asked <= depth + 1, path.hex()


@given(STATES.filter(bool), LIMITS, PREFIXES)
def test_a_part_is_small_or_one_key_or_hashes(
    state: dict[bytes, bytes], limit: int, prefix: bytes
) -> None:
    whole = tree(state)
    part = whole.part(prefix, limit)
    if part == NO_PART:
        assert whole.hash_at(prefix) is None
        return
    assert part_hash(prefix, part) == whole.hash_at(prefix)
    size = sum(len(leaf.key) + len(leaf.value) for leaf in part.leaves)
    assert part.bitmap or len(part.leaves) == 1 or size <= limit


def alterations(part: StatePart, draw: random.Random) -> list[StatePart]:
    """Everything that a liar may do to a part, once each."""
    leaves, found = part.leaves, []
    other = StateLeaf(b"another key", b"value")
    found += [StatePart(0, b"", (*leaves, other)), StatePart(0, b"", (other, *leaves)), NO_PART]
    found += [StatePart(part.bitmap ^ 1 << draw.randrange(16), part.hashes, leaves)]
    found += [StatePart(part.bitmap, part.hashes + bytes(HASH_BYTES), leaves)]
    if leaves:
        at = draw.randrange(len(leaves))
        leaf = leaves[at]
        for altered in (
            (),
            (leaf, leaf),
            (StateLeaf(leaf.key + b"x", leaf.value),),
            (StateLeaf(leaf.key, leaf.value + b"x"),),
            (StateLeaf(leaf.value, leaf.key),),
        ):
            found.append(StatePart(0, b"", (*leaves[:at], *altered, *leaves[at + 1 :])))
        found.append(StatePart(0, b"", tuple(reversed(leaves))))
    if part.hashes:
        at = draw.randrange(len(part.hashes))
        flipped = bytes((part.hashes[at] ^ 1,))
        found.append(
            StatePart(part.bitmap, part.hashes[:at] + flipped + part.hashes[at + 1 :], leaves)
        )
        found.append(StatePart(part.bitmap, part.hashes, (other,)))
    return [altered for altered in found if altered != part]


@given(STATES.filter(bool), LIMITS, PREFIXES, st.randoms(use_true_random=False))
def test_no_altered_part_has_the_hash_of_its_place(
    state: dict[bytes, bytes], limit: int, prefix: bytes, draw: random.Random
) -> None:
    whole = tree(state)
    expected = whole.hash_at(prefix)
    part = whole.part(prefix, limit)
    for altered in alterations(part, draw):
        found = part_hash(prefix, altered)
        assert found is None or found != expected, altered


@given(st.lists(st.tuples(KEYS, VALUES), max_size=20), PREFIXES)
def test_any_list_of_leaves_is_judged_without_fail(
    pairs: list[tuple[bytes, bytes]], prefix: bytes
) -> None:
    part = StatePart(0, b"", tuple(StateLeaf(key, value) for key, value in pairs))
    found = part_hash(prefix, part)
    if found is not None:
        made = tree(dict(pairs))
        assert found == made.hash_at(prefix)
        assert len(made) == len(pairs)


@given(STATES, STATES)
def test_the_difference_of_two_trees_makes_one_of_the_other(
    before: dict[bytes, bytes], after: dict[bytes, bytes]
) -> None:
    old, new = tree(before), tree(after)
    changes = new.changes_since(old)
    assert old.update(changes).root == new.root
    assert changes == {
        key: after.get(key) for key in {*before, *after} if before.get(key) != after.get(key)
    }
