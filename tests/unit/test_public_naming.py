"""Whose key seals a block: by ancestry, where two branches elected different sets of one number."""

import pytest
from msgspec.structs import replace
from tests.unit.public_forge import Forge, reseal

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import SignatureCheck, Unknown
from gridtokenx.finality.justifications import Justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.public.naming import block_checks, both, justification_checks
from gridtokenx.public.slots import SealedBlock, read_claim
from gridtokenx.public.tree import TreeNode


def rotated(forge: Forge, by: int) -> ValidatorSet:
    """The next set: the same keys in another order, so that an index names somebody else."""
    members = forge.validators.members
    return ValidatorSet(1, members[by:] + members[:by])


def handing_over(forge: Forge, slot: int, to: ValidatorSet) -> TreeNode:
    """A child of the root after whose state another set is seated."""
    node = forge.grow(forge.root, slot)
    node.validators = to
    forge.tree._sets[to.hash] = to
    return node


def child(forge: Forge, parent: TreeNode, slot: int, set_hash: bytes) -> SealedBlock:
    return reseal(
        forge, forge.make(parent, slot), parent=parent.hash, set_id=1, next_set_hash=set_hash
    )


def sealer(forge: Forge, *blocks: SealedBlock) -> list[bytes] | Unknown:
    found = block_checks(forge.tree, blocks[0].header.chain_id, blocks)
    return found if isinstance(found, Unknown) else [check.public_key for check in found]


def test_competing_sets_of_one_number_are_told_apart_by_the_parent() -> None:
    forge = Forge()
    one, other = rotated(forge, 1), rotated(forge, 2)
    for slot, set_ in ((1, one), (2, other)):
        block = child(forge, handing_over(forge, slot, set_), 5, set_.hash)
        index = read_claim(block.header).authority
        assert sealer(forge, block) == [set_.members[index]]


def test_an_orphan_is_named_by_the_set_that_it_names() -> None:
    forge = Forge()
    one = rotated(forge, 1)
    block = child(forge, handing_over(forge, 1, one), 5, one.hash)
    orphan = reseal(forge, block, parent=sha256(b"elsewhere"), height=3)
    assert sealer(forge, orphan) == [one.members[read_claim(orphan.header).authority]]
    unheard = reseal(forge, orphan, next_set_hash=rotated(forge, 3).hash)
    assert isinstance(sealer(forge, unheard), Unknown), "its set was elected where we have not been"


def test_within_one_message_a_set_goes_on_and_a_new_one_waits() -> None:
    forge = Forge()
    one = rotated(forge, 1)
    lower = child(forge, handing_over(forge, 1, one), 5, one.hash)
    upper = reseal(forge, lower, parent=lower.header.hash, height=3)
    found = sealer(forge, lower, upper)
    assert not isinstance(found, Unknown)
    assert len(set(found)) == 1
    leaving = reseal(forge, lower, next_set_hash=sha256(b"set 2"))
    later = reseal(forge, lower, parent=leaving.header.hash, height=3, set_id=2)
    assert isinstance(sealer(forge, leaving, later), Unknown)


def test_what_contradicts_its_parent_is_nobodys() -> None:
    forge = Forge()
    node = handing_over(forge, 1, rotated(forge, 1))
    block = forge.make(forge.root, 5)
    with pytest.raises(RemoteFault, match="wrong-set: set 0 where 1 is due"):
        sealer(forge, reseal(forge, block, parent=node.hash, height=2))


def test_what_is_over_needs_no_check() -> None:
    forge = Forge()
    block = forge.make(forge.root, 1)
    assert sealer(forge, reseal(forge, block, height=0)) == []
    forge.tree.root.validators = rotated(forge, 1)
    assert sealer(forge, block) == [], "set 0 has ended: the importer drops it"


def test_a_justification_counts_for_the_present_set_only() -> None:
    forge = Forge()
    chain_id, present = forge.root.header.chain_id, rotated(forge, 1)
    proof = Justification(1, 1, bytes(32), 1, (), ())
    assert justification_checks(proof, chain_id, present) == []
    assert justification_checks(replace(proof, set_id=0), chain_id, present) == ()
    assert isinstance(justification_checks(replace(proof, set_id=2), chain_id, present), Unknown)


def test_two_parts_are_known_only_together() -> None:
    check, later = SignatureCheck(bytes(32), b"", bytes(64)), Unknown("later")
    assert both([check], [check]) == [check, check]
    assert both(later, [check]) is both([check], later) is later
