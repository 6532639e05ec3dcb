"""RFC 6962 lists: against the recursive definition, and under attack."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.merkle import inclusion_proof, leaf_hash, merkle_root, verify_inclusion

LISTS = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + defined_root(leaves[:split]) + defined_root(leaves[split:])).digest()


def defined_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if index < split:
        return [*defined_path(index, leaves[:split]), defined_root(leaves[split:])]
    return [*defined_path(index - split, leaves[split:]), defined_root(leaves[:split])]


@given(LISTS)
def test_root_and_paths_are_the_defined_ones(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == defined_root(leaves)
    for index in range(len(leaves)):
        assert list(inclusion_proof(leaves, index)) == defined_path(index, leaves)


@given(LISTS, st.data())
def test_only_the_exact_claim_verifies(leaves: list[bytes], data: st.DataObject) -> None:
    root, size = merkle_root(leaves), len(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    assert verify_inclusion(root, leaves[index], index, size, proof)
    assert not verify_inclusion(root, leaves[index] + b"x", index, size, proof)
    assert not verify_inclusion(bytes(32), leaves[index], index, size, proof)
    assert not verify_inclusion(root, leaves[index], index, size, (*proof, bytes(32)))
    assert not verify_inclusion(root, leaves[index], index, size, (leaf_hash(b""), *proof))
    if proof:
        assert not verify_inclusion(root, leaves[index], index, size, proof[:-1])
        assert not verify_inclusion(root, leaves[index], index, size, proof[1:])
        at = data.draw(st.integers(0, len(proof) - 1))
        bad = (*proof[:at], bytes(32), *proof[at + 1 :])
        assert not verify_inclusion(root, leaves[index], index, size, bad)
        short = (*proof[:at], proof[at][:-1], *proof[at + 1 :])
        assert not verify_inclusion(root, leaves[index], index, size, short)


@given(st.lists(st.binary(max_size=8), min_size=2, max_size=40, unique=True), st.data())
def test_a_leaf_verifies_at_its_own_index_only(leaves: list[bytes], data: st.DataObject) -> None:
    root, size = merkle_root(leaves), len(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    accepted = [
        i for i in range(-1, size + 1) if verify_inclusion(root, leaves[index], i, size, proof)
    ]
    assert accepted == [index]


def test_an_inner_node_is_no_leaf() -> None:
    leaves = [b"a", b"b", b"c", b"d"]
    left, right = leaf_hash(b"a") + leaf_hash(b"b"), leaf_hash(b"c") + leaf_hash(b"d")
    assert merkle_root([left, right]) != merkle_root(leaves)
    assert not verify_inclusion(
        merkle_root(leaves), left, 0, 2, (sha256(b"\x01" + right).digest(),)
    )


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 1), (1, 1), (0, -1), (0, 2**200)])
def test_impossible_positions_are_refused(index: int, size: int) -> None:
    assert not verify_inclusion(merkle_root([b"a"]), b"a", index, size, ())
    assert not verify_inclusion(merkle_root([]), b"", index, size, ())


def test_asking_for_a_leaf_that_does_not_exist() -> None:
    with pytest.raises(IndexError, match="leaf 2 of a tree of 2 leaves"):
        inclusion_proof([b"a", b"b"], 2)
