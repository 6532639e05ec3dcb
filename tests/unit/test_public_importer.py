"""Import: what waits, what is refused and why, and what is reported."""

import msgspec
from tests.simulation.public_network import RULES, transfer
from tests.unit.public_forge import FIRST_SLOT, Forge, reseal

from gridtokenx.ledger.blocks import transaction_root
from gridtokenx.public.importer import MAX_ORPHANS, Offer
from gridtokenx.public.slots import SealedBlock, encoded_claim, read_claim

PEER = b"p" * 32
LATE = RULES.start_of(FIRST_SLOT + 10_000)


def line_of(count: int) -> list[SealedBlock]:
    """Good blocks that another node made."""
    other = Forge()
    return [node.sealed for node in other.line(other.root, count) if node.sealed is not None]


def offer(forge: Forge, block: SealedBlock, now: int = LATE) -> list[int]:
    return [node.height for node in forge.importer.offer(now, Offer(PEER, block))]


def reasons(forge: Forge) -> list[str]:
    found = [refusal.fault.reason for refusal in forge.importer.refusals]
    forge.importer.refusals.clear()
    return found


def test_good_blocks_enter_once() -> None:
    forge = Forge()
    for height, block in enumerate(line_of(3), start=1):
        assert offer(forge, block) == [height]
        assert offer(forge, block) == []
    assert reasons(forge) == []
    assert forge.tree.best.height == 3


def test_orphans_wait_and_their_parent_is_wanted() -> None:
    forge = Forge()
    one, two, three = line_of(3)
    assert offer(forge, three) == []
    assert list(forge.importer.wanted()) == [two.header.hash]
    assert offer(forge, two) == []
    assert list(forge.importer.wanted()) == [one.header.hash]
    assert offer(forge, one) == [1, 2, 3]
    assert list(forge.importer.wanted()) == []


def test_the_orphan_stash_is_bounded() -> None:
    forge = Forge()
    _, block = line_of(2)
    for number in range(MAX_ORPHANS + 50):
        offer(forge, reseal(forge, block, parent=number.to_bytes(32, "big")))
    assert len(list(forge.importer.wanted())) == MAX_ORPHANS


def test_a_block_from_the_future_waits_for_its_slot() -> None:
    forge = Forge()
    one, two, three = line_of(3)
    now = RULES.start_of(FIRST_SLOT)
    assert offer(forge, one, now) == [1], "one slot ahead is a clock's tolerance"
    assert offer(forge, two, now) == []
    assert offer(forge, three, now) == []
    assert forge.importer.due(now) == []
    assert [n.height for n in forge.importer.due(now + RULES.slot_ms)] == [2]
    assert [n.height for n in forge.importer.due(now + 2 * RULES.slot_ms)] == [3]


def test_refusals_by_reason() -> None:
    good = line_of(1)[0]
    forge = Forge()
    claim = msgspec.structs.replace(read_claim(good.header), vrf_output=bytes(64))
    wrong = {
        "wrong-set": reseal(forge, good, set_id=1),
        "slot-time": reseal(forge, good, timestamp_ms=good.header.timestamp_ms - RULES.slot_ms),
        "slot-vrf": SealedBlock(
            msgspec.structs.replace(
                good.block,
                header=msgspec.structs.replace(good.header, digest=encoded_claim(claim)),
            ),
            good.seal,
        ),
        "invalid-block": reseal(forge, good, state_root=bytes(32)),
    }
    for reason, block in wrong.items():
        assert offer(forge, block) == []
        assert reasons(forge) == [reason]
    assert offer(forge, good) == [1]


def with_transfer() -> SealedBlock:
    other = Forge()
    return other.make(other.root, 1, transactions=[transfer(0, 0)])


def test_a_bad_transaction_makes_a_bad_block() -> None:
    forge = Forge()
    good = with_transfer()
    twice = good.block.transactions * 2
    sealed = reseal(forge, good, transaction_root=transaction_root(twice))
    replayed = msgspec.structs.replace(sealed.block, transactions=twice)
    assert offer(forge, SealedBlock(replayed, sealed.seal)) == []
    assert reasons(forge) == ["invalid-block"]


def test_a_swapped_body_does_not_poison_the_good_block() -> None:
    forge = Forge()
    good = with_transfer()
    swapped = msgspec.structs.replace(good.block, transactions=())
    assert offer(forge, SealedBlock(swapped, good.seal)) == []
    assert reasons(forge) == ["wrong-body"]
    assert offer(forge, good) == [1]


def test_children_of_a_refused_block_are_refused() -> None:
    forge = Forge()
    one, two = line_of(2)
    bad = reseal(forge, one, state_root=bytes(32))
    offer(forge, bad)
    child = reseal(forge, two, parent=bad.header.hash)
    offer(forge, child)
    offer(forge, bad)
    assert reasons(forge) == ["invalid-block", "bad-ancestor", "bad-ancestor"]


def test_two_blocks_of_one_author_for_one_slot_are_evidence() -> None:
    other = Forge()
    one, two = other.make(other.root, 1), other.make(other.root, 1, offset_ms=5)
    forge = Forge()
    assert offer(forge, one) == [1]
    assert offer(forge, two) == [1], "it is a fork like any other; finality decides"
    ((author, evidence),) = forge.importer.evidence
    assert author == forge.validators.members[read_claim(one.header).authority]
    assert {evidence.first.header, evidence.second.header} == {one.header, two.header}


def test_what_is_below_the_root_is_forgotten() -> None:
    forge = Forge()
    blocks = line_of(4)
    offer(forge, reseal(forge, blocks[1], parent=bytes(32)))
    for block in blocks:
        offer(forge, block)
    forge.tree.finalize(blocks[3].header.hash)
    forge.importer.forget_final()
    assert list(forge.importer.wanted()) == []
    assert offer(forge, blocks[0]) == []
    assert reasons(forge) == []
