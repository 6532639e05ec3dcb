"""A commit certificate is believed only when every rule holds."""

import msgspec
import pytest

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.finality.certificates import (
    CertificateFault,
    CommitCertificate,
    CommitVote,
    IndexedSignature,
    verify_certificate,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header

SIGNERS = [Ed25519Signer(bytes([i]) * 32) for i in range(4)]
MEMBERS = ValidatorSet(set_id=3, members=tuple(signer.public_key for signer in SIGNERS))
HEADER = Header(
    version=1,
    chain_id=b"c" * 32,
    height=9,
    round=2,
    parent=b"p" * 32,
    timestamp_ms=1,
    transaction_root=bytes(32),
    state_root=bytes(32),
    event_root=bytes(32),
    set_id=3,
    next_set_hash=MEMBERS.hash,
    digest=b"",
)


def certify(vote: CommitVote, indices=(0, 1, 3), chain_id: bytes = HEADER.chain_id):
    message = vote.signed_bytes(chain_id)
    return CommitCertificate(
        chain_id=chain_id,
        vote=vote,
        signatures=tuple(
            IndexedSignature(index=i, signature=SIGNERS[i].sign(message)) for i in indices
        ),
    )


VOTE = CommitVote(set_id=3, view=5, height=9, block_hash=HEADER.hash)


def refused(certificate: CommitCertificate, validators: ValidatorSet = MEMBERS) -> str:
    with pytest.raises(CertificateFault) as fault:
        verify_certificate(certificate, HEADER, validators, Ed25519Verifier())
    return fault.value.reason


def test_a_quorum_is_believed() -> None:
    verify_certificate(certify(VOTE), HEADER, MEMBERS, Ed25519Verifier())
    verify_certificate(certify(VOTE, (0, 1, 2, 3)), HEADER, MEMBERS, Ed25519Verifier())


def test_each_broken_rule_has_its_reason() -> None:
    good = certify(VOTE)
    assert refused(certify(VOTE, (0, 1))) == "below-quorum"
    assert refused(certify(VOTE, ())) == "below-quorum"
    assert refused(certify(VOTE, (0, 1, 1))) == "duplicate-signer"
    assert refused(certify(VOTE, (1, 0, 2))) == "duplicate-signer"
    assert refused(certify(VOTE, chain_id=b"d" * 32)) == "wrong-chain"
    assert refused(certify(msgspec.structs.replace(VOTE, set_id=4))) == "wrong-set"
    assert refused(certify(msgspec.structs.replace(VOTE, height=8))) == "wrong-block"
    assert refused(certify(msgspec.structs.replace(VOTE, block_hash=bytes(32)))) == "wrong-block"
    other_set = ValidatorSet(set_id=4, members=MEMBERS.members)
    assert refused(good, other_set) == "wrong-set"
    stranger = IndexedSignature(index=7, signature=bytes(64))
    assert (
        refused(msgspec.structs.replace(good, signatures=(*good.signatures, stranger)))
        == "unknown-signer"
    )
    signatures = (*good.signatures[:2], IndexedSignature(index=2, signature=bytes(64)))
    assert refused(msgspec.structs.replace(good, signatures=signatures)) == "bad-signature"
    moved = certify(VOTE, (0, 1, 2)).signatures
    swapped = tuple(
        IndexedSignature(index=s.index, signature=moved[(k + 1) % 3].signature)
        for k, s in enumerate(moved)
    )
    assert refused(msgspec.structs.replace(good, signatures=swapped)) == "bad-signature"


def test_the_view_is_bound() -> None:
    other_view = msgspec.structs.replace(VOTE, view=6)
    forged = msgspec.structs.replace(certify(VOTE), vote=other_view)
    assert refused(forged) == "bad-signature"
