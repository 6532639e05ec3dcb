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


def many_of(other: Forge, count: int) -> list[SealedBlock]:
    """Blocks of one author for one slot."""
    return [other.make(other.root, 1, offset_ms=1 + number) for number in range(count)]


def test_of_one_author_and_slot_two_blocks_are_executed_and_one_pair_reported() -> None:
    other, forge = Forge(), Forge()
    for block in many_of(other, 200):
        offer(forge, block)
        offer(forge, block)
    assert len(forge.tree) == 1 + 2
    assert len(forge.importer.evidence) == 1
    assert reasons(forge) == []
    assert forge.importer.needed(LATE, ()) == []


def authored_above(other: Forge, block: SealedBlock, *, same: bool) -> SealedBlock:
    """A block on `block` by its own author, or by another one."""
    author = read_claim(block.header).authority
    parent = other.importer.offer(LATE, Offer(PEER, block))[0]
    slot = 2
    while True:
        claims = other.claims(parent, slot)
        if claims and (claims[0][0] == author) == same:
            return other.make(parent, slot)
        slot += 1


def test_a_surplus_block_is_taken_once_another_author_builds_on_it() -> None:
    honest, forge = Forge(), Forge()
    *others, third = many_of(honest, 3)
    for block in (*others, third):
        offer(forge, block)
    assert third.header.hash not in forge.tree
    own = authored_above(Forge(), third, same=True)
    offer(forge, own)
    assert forge.importer.needed(LATE, ()) == [], "a liar cannot stand for itself"
    child = authored_above(honest, third, same=False)
    assert list(forge.importer.wanted()) == []
    offer(forge, child)
    taken = {node.hash for node in forge.importer.needed(LATE, ())}
    assert taken == {third.header.hash, own.header.hash, child.header.hash}
    assert len(forge.importer.evidence) == 1


def test_the_same_slot_and_author_stands_for_two_blocks_only() -> None:
    made, forge = many_of(Forge(), 8), Forge()
    for block in made:
        offer(forge, block)
    child = authored_above(Forge(), made[2], same=False)
    for block in made[2:]:
        offer(forge, reseal(forge, child, parent=block.header.hash))
    for _ in range(2):
        forge.importer.needed(LATE, ())
    assert sum(block.header.hash in forge.tree for block in made) == 2 + 2


def test_an_unsealed_block_of_a_past_set_stands_for_nothing() -> None:
    honest, forge = Forge(), Forge()
    past = reseal(honest, line_of(1)[0], parent=bytes(32), digest=b"no claim")
    made = [reseal(honest, block, set_id=1) for block in many_of(honest, 3)]
    surplus = Offer(PEER, made[2])
    forge.importer._surplus[made[2].header.hash] = surplus
    child = msgspec.structs.replace(past.header, parent=made[2].header.hash, set_id=0)
    offer(forge, SealedBlock(msgspec.structs.replace(past.block, header=child), past.seal))
    assert forge.importer.needed(LATE, ()) == []


def test_a_surplus_block_is_taken_once_it_or_what_builds_on_it_is_voted_for() -> None:
    made = many_of(Forge(), 4)
    own = authored_above(Forge(), made[3], same=True)
    forge = Forge()
    for block in (*made, own):
        offer(forge, block)
    assert [n.hash for n in forge.importer.needed(LATE, [made[2].header.hash])] == [
        made[2].header.hash
    ]
    assert [n.hash for n in forge.importer.needed(LATE, [own.header.hash])] == [
        made[3].header.hash,
        own.header.hash,
    ]


def test_an_earlier_lifes_blocks_are_taken_again_whatever_their_number() -> None:
    forge = Forge()
    for block in many_of(Forge(), 5):
        assert len(forge.importer.restore(LATE, Offer(PEER, block))) == 1


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
