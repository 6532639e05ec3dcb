"""Slots: who may author, how it is checked, and where randomness comes from."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.public_network import RULES
from tests.stages import examples
from tests.unit.public_forge import FIRST_SLOT, Forge

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.slots import (
    PRIMARY,
    SECONDARY,
    Ed25519Vrf,
    Ed25519VrfVerifier,
    Epoch,
    KeyedHashVrfVerifier,
    SlotClaim,
    SlotRules,
    check_claim,
    claim_slot,
    encoded_claim,
    read_claim,
    seal_check,
    secondary_author,
    threshold,
    vrf_input,
)

OUTPUTS = st.binary(min_size=64, max_size=64)


def refusal(forge: Forge, header: Header, epoch: Epoch | None = None) -> str:
    parent = forge.root
    found = parent.epoch.at(header.round, RULES) if epoch is None else epoch
    with pytest.raises(RemoteFault) as caught:
        check_claim(RULES, header, parent.header, found, forge.validators, KeyedHashVrfVerifier())
    return caught.value.reason


def with_claim(header: Header, **changes: object) -> Header:
    claim = msgspec.structs.replace(read_claim(header), **changes)
    return msgspec.structs.replace(header, digest=encoded_claim(claim))


def test_every_slot_has_its_secondary_author_and_some_have_primaries() -> None:
    forge = Forge()
    kinds = [[c.kind for _, c in forge.claims(forge.root, slot)] for slot in range(1, 400)]
    assert all(kinds)
    with_primary = sum(PRIMARY in kind for kind in kinds)
    assert 60 < with_primary < 140, "one slot in four, give or take"


def test_good_claims_pass_and_name_their_author() -> None:
    forge = Forge()
    for kind in (PRIMARY, SECONDARY):
        slot = forge.slot_with(forge.root, kind)
        header = forge.make(forge.root, slot).header
        epoch = forge.root.epoch.at(header.round, RULES)
        claim = check_claim(
            RULES, header, forge.root.header, epoch, forge.validators, KeyedHashVrfVerifier()
        )
        assert claim.kind == kind


def test_refusals() -> None:
    forge = Forge()
    slot = forge.slot_with(forge.root, SECONDARY)
    header = forge.make(forge.root, slot).header
    late = msgspec.structs.replace(header, timestamp_ms=header.timestamp_ms + RULES.slot_ms)
    assert refusal(forge, late) == "slot-time"
    old = msgspec.structs.replace(header, round=0, timestamp_ms=0)
    assert refusal(forge, old) == "slot-order"
    assert refusal(forge, msgspec.structs.replace(header, digest=b"")) == "malformed"
    assert refusal(forge, with_claim(header, authority=4)) == "slot-author"
    author = read_claim(header).authority
    assert refusal(forge, with_claim(header, authority=(author + 1) % 4)) == "slot-vrf"
    assert refusal(forge, with_claim(header, vrf_output=bytes(64))) == "slot-vrf"
    assert refusal(forge, with_claim(header, vrf_proof=bytes(80))) == "slot-vrf"
    assert refusal(forge, with_claim(header, kind=PRIMARY)) == "slot-threshold"
    elsewhere = msgspec.structs.replace(forge.root.epoch, randomness=bytes(32))
    assert refusal(forge, header, elsewhere) == "slot-vrf"


def test_a_secondary_claim_by_the_wrong_author_is_refused() -> None:
    forge = Forge()
    slot = forge.slot_with(forge.root, SECONDARY)
    header = forge.make(forge.root, slot).header
    epoch = forge.root.epoch.at(header.round, RULES)
    other = (secondary_author(epoch, header.round, 4) + 1) % 4
    proof, output = forge.keys[other].vrf.prove(vrf_input(RULES, epoch, header.round))
    claim = SlotClaim(other, SECONDARY, output, proof)
    assert refusal(forge, msgspec.structs.replace(header, digest=encoded_claim(claim))) == (
        "slot-author"
    )


def test_a_seal_names_its_author_or_is_refused() -> None:
    forge = Forge()
    sealed = forge.make(forge.root, 1)
    check = seal_check(sealed.header, sealed.seal, forge.validators)
    assert forge.net.verifier.verify(check.public_key, check.message, check.signature)
    with pytest.raises(RemoteFault, match="slot-author"):
        seal_check(with_claim(sealed.header, authority=9), sealed.seal, forge.validators)
    with pytest.raises(RemoteFault, match="malformed"):
        seal_check(forge.root.header, sealed.seal, forge.validators)


def test_the_threshold_gives_the_chance_that_it_says() -> None:
    for n in (1, 4, 21, 100):
        missed = (1 - threshold(RULES, n) / 2**128) ** n
        assert abs(missed - 0.75) < 1e-9


def test_real_lottery_round_trip() -> None:
    epoch = Epoch.genesis(RULES)
    alpha = vrf_input(RULES, epoch, 7)
    seed = sha256(b"lottery")
    proof, output = Ed25519Vrf(seed).prove(alpha)
    key = Ed25519Signer(seed).public_key
    assert Ed25519VrfVerifier().verify(key, alpha, proof) == output
    assert Ed25519VrfVerifier().verify(key, vrf_input(RULES, epoch, 8), proof) is None
    claims = [claim_slot(RULES, epoch, slot, 0, 1, Ed25519Vrf(seed)) for slot in range(1, 9)]
    assert all(claims), "alone, it is every slot's secondary author"


# -- epochs ----------------------------------------------------------------------------------------

EPOCHS = SlotRules(sha256(b"epochs"), genesis_ms=0, slot_ms=1_000, epoch_slots=5)


def branch(*blocks: tuple[int, bytes]) -> Epoch:
    epoch = Epoch.genesis(EPOCHS)
    for slot, output in blocks:
        epoch = epoch.at(slot, EPOCHS).mix(output)
    return epoch


def test_randomness_collected_in_an_epoch_serves_the_epoch_after_next() -> None:
    one = branch((1, b"x" * 64), (6, b"y" * 64))
    other = branch((1, b"z" * 64), (6, b"y" * 64))
    assert one.randomness == other.randomness, "epoch 1 was announced before epoch 0 began"
    assert one.at(11, EPOCHS).randomness != other.at(11, EPOCHS).randomness


def test_epochs_without_blocks_are_skipped() -> None:
    near = branch((1, b"x" * 64)).at(6, EPOCHS)
    far = branch((1, b"x" * 64)).at(5 * 40, EPOCHS)
    assert (near.index, far.index) == (1, 40)
    assert near.randomness == far.randomness, "what was announced for epoch 1 is used for epoch 40"
    assert near.next_randomness == far.next_randomness


def test_all_blocks_of_an_epoch_count_and_in_their_order() -> None:
    a, b = b"a" * 64, b"b" * 64
    later = {
        branch(*blocks, (6, a)).at(11, EPOCHS).randomness
        for blocks in (
            ((1, a),),
            ((1, b),),
            ((1, a), (2, b)),
            ((1, b), (2, a)),
            ((3, a), (4, b), (4, b)),
        )
    }
    assert len(later) == 5


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), OUTPUTS), max_size=12))
def test_an_epoch_never_goes_back_and_depends_on_ancestry_alone(
    blocks: list[tuple[int, bytes]],
) -> None:
    ordered = sorted(blocks, key=lambda block: block[0])
    epoch, index = Epoch.genesis(EPOCHS), 0
    for slot, output in ordered:
        epoch = epoch.at(slot, EPOCHS).mix(output)
        assert epoch.index >= index
        assert epoch.index == EPOCHS.epoch_of(slot)
        index = epoch.index
    assert branch(*ordered) == epoch


def test_slots_are_wall_time() -> None:
    assert RULES.slot_at(RULES.start_of(FIRST_SLOT)) == FIRST_SLOT
    assert RULES.slot_at(RULES.start_of(FIRST_SLOT) + RULES.slot_ms - 1) == FIRST_SLOT
    assert RULES.epoch_of(FIRST_SLOT + 25) == 2
