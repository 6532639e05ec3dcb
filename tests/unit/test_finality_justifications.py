"""The strict verifier: what it accepts, and each of its refusals by name."""

from collections.abc import Iterator, Sequence

import msgspec
import pytest

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.finality.justifications import (
    Justification,
    JustificationFault,
    SignedPrecommit,
    Stage,
    justification_signatures,
    statement_bytes,
    verify_justification,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header

CHAIN = sha256(b"a chain")
ROUND, SET = 7, 3
SIGNERS = [Ed25519Signer(bytes([i]) * 32) for i in range(4)]
VALIDATORS = ValidatorSet(set_id=SET, members=tuple(s.public_key for s in SIGNERS))


def child(parent: Header | None, salt: int = 0) -> Header:
    zero = bytes(32)
    return Header(
        version=1,
        chain_id=CHAIN,
        height=parent.height + 1 if parent else 10,
        round=salt,
        parent=parent.hash if parent else zero,
        timestamp_ms=0,
        transaction_root=zero,
        state_root=zero,
        event_root=zero,
        set_id=SET,
        next_set_hash=VALIDATORS.hash,
        digest=b"",
    )


TARGET = child(None)
A1 = child(TARGET)
A2 = child(A1)
B1 = child(TARGET, salt=1)
ELSEWHERE = child(None, salt=2)


def precommit(voter: int, header: Header, **wrong: int) -> SignedPrecommit:
    message = statement_bytes(
        CHAIN,
        Stage(wrong.get("stage", Stage.PRECOMMIT)),
        wrong.get("round", ROUND),
        wrong.get("set_id", SET),
        header.hash,
        header.height,
    )
    signer = SIGNERS[wrong.get("signer", voter % len(SIGNERS))]
    return SignedPrecommit(voter, header.hash, header.height, signer.sign(message))


def justification(
    precommits: Sequence[SignedPrecommit], ancestry: Sequence[Header] = (), set_id: int = SET
) -> Justification:
    return Justification(
        ROUND, set_id, TARGET.hash, TARGET.height, tuple(precommits), tuple(ancestry)
    )


def verify(proof: Justification, header: Header = TARGET) -> None:
    verify_justification(proof, header, VALIDATORS, Ed25519Verifier())


def refusal(proof: Justification, header: Header = TARGET) -> str:
    with pytest.raises(JustificationFault) as caught:
        verify(proof, header)
    return caught.value.reason


def direct(count: int = 3) -> list[SignedPrecommit]:
    return [precommit(i, TARGET) for i in range(count)]


def test_votes_for_the_target_itself_are_accepted() -> None:
    verify(justification(direct()))


def test_votes_for_descendants_on_two_forks_are_accepted_with_their_headers() -> None:
    votes = [precommit(3, A2), precommit(0, A1), precommit(2, B1)]
    verify(justification(votes, [A1, B1, A2]))


def test_it_survives_the_wire() -> None:
    proof = justification([precommit(3, A2), precommit(0, A1), precommit(2, B1)], [A1, B1, A2])
    again = decode(encode(proof), Justification)
    assert again == proof
    verify(again)


def test_its_signatures_can_be_checked_in_a_batch() -> None:
    checks = justification_signatures(justification(direct()), CHAIN, VALIDATORS)
    assert [check.public_key for check in checks] == list(VALIDATORS.members[:3])
    assert all(Ed25519Verifier().verify(c.public_key, c.message, c.signature) for c in checks)


def test_1_invalid_justification_target() -> None:
    assert refusal(justification(direct()), A1) == "InvalidJustificationTarget"


def test_2_duplicate_votes_ancestries() -> None:
    votes = [precommit(i, A1) for i in range(3)]
    assert refusal(justification(votes, [A1, A1])) == "DuplicateVotesAncestries"


def test_3_redundant_authority_vote() -> None:
    assert refusal(justification(direct(4))) == "RedundantAuthorityVote"


def test_4_unknown_authority_vote() -> None:
    votes = [*direct(2), precommit(4, TARGET)]
    assert refusal(justification(votes)) == "UnknownAuthorityVote"


def test_5_duplicate_authority_vote() -> None:
    votes = [*direct(2), precommit(1, A1)]
    assert refusal(justification(votes, [A1])) == "DuplicateAuthorityVote"


@pytest.mark.parametrize(
    "wrong",
    [
        {"signer": 3},
        {"round": ROUND + 1},
        {"set_id": SET + 1},
        {"stage": Stage.PREVOTE},
        {"stage": Stage.PRIMARY_PROPOSE},
    ],
)
def test_6_invalid_authority_signature(wrong: dict[str, int]) -> None:
    votes = [*direct(2), precommit(2, TARGET, **wrong)]
    assert refusal(justification(votes)) == "InvalidAuthoritySignature"


@pytest.mark.parametrize(
    ("vote", "ancestry"),
    [
        (ELSEWHERE, ()),
        (ELSEWHERE, (ELSEWHERE,)),
        (A2, (A2,)),  # the link between is missing
        (A1, ()),
    ],
)
def test_7_unrelated_ancestry_vote(vote: Header, ancestry: tuple[Header, ...]) -> None:
    votes = [*direct(2), precommit(2, vote)]
    assert refusal(justification(votes, ancestry)) == "UnrelatedAncestryVote"


def test_7_unrelated_ancestry_vote_with_a_height_that_is_not_the_headers() -> None:
    lie = msgspec.structs.replace(precommit(2, A1), target_height=A1.height + 1)
    assert refusal(justification([*direct(2), lie], [A1])) == "UnrelatedAncestryVote"


def test_8_too_low_cumulative_weight() -> None:
    assert refusal(justification(direct(2))) == "TooLowCumulativeWeight"
    assert refusal(justification([])) == "TooLowCumulativeWeight"


@pytest.mark.parametrize("extra", [TARGET, ELSEWHERE, A2])
def test_9_redundant_votes_ancestries(extra: Header) -> None:
    votes = [precommit(i, A1) for i in range(3)]
    assert refusal(justification(votes, [A1, extra])) == "RedundantVotesAncestries"


def test_another_set_is_refused_before_any_vote_is_looked_at() -> None:
    assert refusal(justification([], set_id=SET + 1)) == "InvalidAuthoritySet"
    other = msgspec.structs.replace(TARGET, set_id=SET + 1)
    proof = Justification(ROUND, SET, other.hash, other.height, (), ())
    assert refusal(proof, other) == "InvalidAuthoritySet"


def altered(proof: Justification) -> Iterator[Justification]:
    """Every single bit flip in the encoding that still decodes."""
    data = encode(proof)
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            yield decode(bytes(flipped), Justification)
        except Exception:  # noqa: BLE001 - it did not decode; that is a refusal as well
            continue


def test_no_single_bit_of_a_justification_may_be_changed() -> None:
    proof = justification([precommit(i, A1) for i in range(3)], [A1])
    decoded = 0
    for wrong in altered(proof):
        decoded += 1
        with pytest.raises(JustificationFault):
            verify(wrong)
    assert decoded > 1000
