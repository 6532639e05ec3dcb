"""The state tree against a dict and a full rebuild from the definition; its proofs under attack."""

from collections.abc import Mapping
from hashlib import sha256
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.state_tree import (
    EMPTY_ROOT,
    OtherLeaf,
    ProofLevel,
    StateProof,
    StateTree,
    verify_absence,
    verify_membership,
)


def neighbours() -> list[bytes]:
    """Keys of which many share six nibbles and more: deep branches, chains, collapses."""
    by_path = sorted((sha256(b"%d" % i).hexdigest(), b"%d" % i) for i in range(60_000))
    close = [(a, b) for a, b in pairwise(by_path) if a[0][:6] == b[0][:6]][:12]
    found = [key for pair in close for _, key in pair]
    first = by_path[0][0][:3]
    return sorted(set(found)) + [key for path, key in by_path if path[:3] == first]


KEYS = st.deferred(lambda: st.sampled_from(neighbours())) | st.binary(max_size=3)
VALUES = st.binary(max_size=5)
STATES = st.dictionaries(KEYS, VALUES, max_size=25)
CHANGES = st.lists(st.dictionaries(KEYS, st.none() | VALUES, max_size=12), max_size=6)


def defined_root(state: Mapping[bytes, bytes]) -> bytes:
    """The root as the module's table defines it, with no tree in memory."""
    leaves = {sha256(key).hexdigest(): sha256(value).digest() for key, value in state.items()}
    return _defined_node(leaves, 0) if leaves else sha256(b"\x12").digest()


def _defined_node(leaves: Mapping[str, bytes], depth: int) -> bytes:
    if len(leaves) == 1:
        ((path, value_hash),) = leaves.items()
        return sha256(b"\x10" + bytes.fromhex(path) + value_hash).digest()
    bitmap, hashes = 0, b""
    for nibble, digit in enumerate("0123456789abcdef"):
        below = {path: value for path, value in leaves.items() if path[depth] == digit}
        if below:
            bitmap |= 1 << nibble
            hashes += _defined_node(below, depth + 1)
    return sha256(b"\x11" + bitmap.to_bytes(2, "big") + hashes).digest()


@given(CHANGES)
def test_it_behaves_as_a_dict_and_its_root_as_defined(
    batches: list[dict[bytes, bytes | None]],
) -> None:
    tree, model = StateTree.empty(), dict[bytes, bytes]()
    for changes in batches:
        before, root_before = dict(model), tree.root
        old, tree = tree, tree.update(changes)
        for key, value in changes.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert dict(tree.items()) == model
        assert len(tree) == len(model)
        assert tree.root == defined_root(model)
        assert all(tree.get(key) == model.get(key) for key in changes)
        assert (old.root, dict(old.items())) == (root_before, before), "versions are immutable"
        if model == before:
            assert tree is old, "nothing changed, so nothing is new"


@given(STATES, STATES, st.randoms(use_true_random=False))
def test_the_shape_forgets_its_history(final: dict, detour: dict, random) -> None:
    straight = StateTree.empty().update(final)
    winding = StateTree.empty().update(detour)
    steps = [(key, None) for key in detour if key not in final] + list(final.items())
    random.shuffle(steps)
    for key, value in steps:
        winding = winding.update({key: value})
    assert winding.root == straight.root
    assert list(winding.items()) == list(straight.items())
    assert len(winding) == len(final)
    assert winding.update(dict.fromkeys(final)).root == EMPTY_ROOT


@given(STATES, KEYS, VALUES)
def test_every_key_has_exactly_one_true_story(state: dict, key: bytes, value: bytes) -> None:
    tree = StateTree.empty().update(state)
    proof = tree.prove(key)
    assert decode(encode(proof), StateProof) == proof
    held = state.get(key)
    assert verify_absence(tree.root, key, proof) == (held is None)
    assert verify_membership(tree.root, key, value, proof) == (held == value)
    if held is not None:
        assert verify_membership(tree.root, key, held, proof)
        assert not verify_membership(tree.root, key, held + b"x", proof)


@given(STATES, KEYS, KEYS, VALUES)
def test_a_proof_speaks_of_its_own_key_only(
    state: dict, key: bytes, other: bytes, value: bytes
) -> None:
    """Whatever proof is offered for whatever key, only the truth verifies."""
    tree = StateTree.empty().update(state)
    proof = tree.prove(other)
    if verify_membership(tree.root, key, value, proof):
        assert state.get(key) == value
    if verify_absence(tree.root, key, proof):
        assert key not in state


@given(STATES, KEYS, st.data())
def test_a_changed_proof_proves_nothing(state: dict, key: bytes, data: st.DataObject) -> None:
    tree = StateTree.empty().update(state)
    proof = tree.prove(key)
    changed = _changed(proof, data)
    if changed == proof:
        return
    for value in {state.get(key, b""), b"", data.draw(VALUES)}:
        assert not verify_membership(tree.root, key, value, changed)
    assert not verify_absence(tree.root, key, changed)


def _changed(proof: StateProof, data: st.DataObject) -> StateProof:
    levels, other = list(proof.levels), proof.other
    kind = data.draw(
        st.sampled_from(["cut", "behead", "extend", "swap", "bitmap", "bytes", "other"])
    )
    at = data.draw(st.integers(0, max(0, len(levels) - 1)))
    if kind == "cut":
        levels = levels[:at]
    elif kind == "behead":
        levels = levels[at + 1 :]
    elif kind == "extend":
        levels.insert(at, data.draw(st.sampled_from([*levels, ProofLevel(1, b"")])))
    elif kind == "swap":
        levels.reverse()
    elif kind == "other":
        other = (
            None if other else OtherLeaf(data.draw(st.binary(min_size=32, max_size=32)), bytes(32))
        )
    elif levels:
        level = levels[at]
        if kind == "bitmap":
            level = ProofLevel(level.bitmap ^ 1 << data.draw(st.integers(0, 15)), level.siblings)
        else:
            cut = data.draw(st.integers(0, len(level.siblings)))
            tail = data.draw(st.sampled_from([b"", bytes(32), b"\0" + level.siblings[cut:]]))
            level = ProofLevel(level.bitmap, level.siblings[:cut] + tail)
        levels[at] = level
    return StateProof(tuple(levels), other)


NOTHING = StateProof((), None)
ONE = StateTree.empty().update({b"only": b"value"})
MANY = StateTree.empty().update({b"%d" % i: b"v" for i in range(300)})


def test_the_empty_tree_proves_absence_and_only_that() -> None:
    assert StateTree.empty().root == EMPTY_ROOT
    assert StateTree.empty().prove(b"key") == NOTHING
    assert verify_absence(EMPTY_ROOT, b"key", NOTHING)
    assert not verify_membership(EMPTY_ROOT, b"key", b"", NOTHING)


@pytest.mark.parametrize("root", [bytes(32), b"", MANY.root, ONE.root, b"\xff" * 32])
def test_no_other_root_takes_the_empty_proof(root: bytes) -> None:
    assert not verify_absence(root, b"key", NOTHING)
    assert not verify_membership(root, b"key", b"", NOTHING)
    assert not verify_membership(root, b"key", root, NOTHING)


def test_the_sole_leaf_is_the_root_and_proves_all_others_absent() -> None:
    assert ONE.prove(b"only") == NOTHING
    assert verify_membership(ONE.root, b"only", b"value", NOTHING)
    proof = ONE.prove(b"another")
    assert proof.other is not None
    assert verify_absence(ONE.root, b"another", proof)
    assert not verify_absence(ONE.root, b"only", proof), "a key's own leaf does not prove it absent"


def test_a_root_hash_is_no_leaf_and_no_gap() -> None:
    """A branch's hash offered as a leaf's value, a leaf's fields offered as a branch."""
    top = MANY.prove(b"0").levels[0]
    forged = ProofLevel(0xFFFF, top.siblings)
    assert not verify_absence(MANY.root, b"absent", StateProof((forged,), None))
    path = sha256(b"0").digest()
    fake = OtherLeaf(path[:31] + bytes([path[31] ^ 1]), sha256(b"v").digest())
    assert not verify_absence(MANY.root, b"0", StateProof(MANY.prove(b"0").levels, fake))


def test_too_deep_proofs_are_refused_by_decoder_and_verifiers() -> None:
    deep = StateProof((ProofLevel(1, b""),) * 65, None)
    assert not verify_absence(MANY.root, b"0", deep)
    assert not verify_membership(MANY.root, b"0", b"v", deep)
    other = StateProof(deep.levels, OtherLeaf(bytes(32), bytes(32)))
    assert not verify_absence(MANY.root, b"0", other)
    with pytest.raises(Malformed):
        decode(encode(deep), StateProof)


@pytest.mark.parametrize(
    "level",
    [(0, b""), (0x1_0000, b""), (-1, b""), (3, bytes(513))],
)
def test_out_of_bounds_levels_do_not_decode(level: tuple[int, bytes]) -> None:
    with pytest.raises(Malformed):
        decode(msgspec.msgpack.encode([[level], None]), StateProof)


def test_gap_level_with_too_many_or_too_few_hashes() -> None:
    tree = StateTree.empty().update({b"%d" % i: b"v" for i in range(4)})
    absent = next(k for k in (b"x%d" % i for i in range(99)) if tree.prove(k).other is None)
    proof = tree.prove(absent)
    assert verify_absence(tree.root, absent, proof)
    gap = proof.levels[-1]
    for siblings in (gap.siblings[:-32], gap.siblings + bytes(32), gap.siblings[:-1], b""):
        bad = StateProof((*proof.levels[:-1], ProofLevel(gap.bitmap, siblings)), None)
        assert not verify_absence(tree.root, absent, bad)


def test_updates_share_what_they_do_not_touch() -> None:
    """A block that changes one key of many makes a handful of new nodes."""
    after = MANY.update({b"7": b"changed"})
    assert _nodes(MANY) - _nodes(after) != set()
    assert len(_nodes(after) - _nodes(MANY)) <= 6


def _nodes(tree: StateTree) -> set[int]:
    seen, stack = set(), [tree._top]
    while stack:
        node = stack.pop()
        seen.add(id(node))
        if isinstance(node, tuple):
            stack.extend(node[1:])
    return seen


@given(CHANGES, st.lists(KEYS, max_size=20))
def test_what_is_at_hand_is_what_walking_finds(batches: list, asked: list[bytes]) -> None:
    """Reads between updates, of trees that handed on what they knew: the fast way is the slow one."""
    trees = [StateTree.empty()]
    for changes in batches:
        for key in asked:
            trees[-1].get(key)
        trees.append(trees[-1].update(changes))
    for tree in trees:
        for key in asked:
            assert tree.get(key) == tree.find(key) == tree.get(key)


def test_what_is_at_hand_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridtokenx.core.state_tree.MAX_RECENT", 4)
    tree = StateTree.empty().update({b"%d" % i: b"v" for i in range(100)})
    for index in range(200):
        assert tree.get(b"%d" % index) == (b"v" if index < 100 else None)
        assert len(tree._recent) <= 4
    grown = tree.update({b"large": bytes(1_000), b"small": b"s"})
    assert len(grown._recent) <= 4
    assert b"large" not in grown._recent
    assert grown.get(b"large") == bytes(1_000)


def test_get_and_contains() -> None:
    assert ONE.get(b"only") == b"value"
    assert ONE.get(b"another") is None
    assert b"only" in ONE
    assert b"another" not in ONE
    assert "only" not in ONE
    assert StateTree.empty().get(b"only") is None
