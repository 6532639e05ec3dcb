"""Signatures bind purpose, chain and content."""

import pytest

from gridtokenx.core.keys import (
    Domain,
    Ed25519Signer,
    Ed25519Verifier,
    KeyedHashSigner,
    KeyedHashVerifier,
    signed_bytes,
)

SEED = bytes(range(32))
# RFC 8032 section 7.1, test 2
RFC_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_KEY = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_rfc_8032_vector() -> None:
    signer = Ed25519Signer(RFC_SEED)
    assert signer.public_key == RFC_KEY
    assert signer.sign(b"\x72") == RFC_SIGNATURE
    assert Ed25519Verifier().verify(RFC_KEY, b"\x72", RFC_SIGNATURE)


def test_domain_tags_are_distinct_and_equally_long() -> None:
    assert {len(domain.value) for domain in Domain} == {8}
    assert len(Domain) == len({domain.value for domain in Domain})


@pytest.mark.parametrize(
    ("signer", "verifier"),
    [
        (Ed25519Signer(SEED), Ed25519Verifier()),
        (KeyedHashSigner(SEED), KeyedHashVerifier()),
    ],
)
def test_a_signature_is_worth_nothing_elsewhere(signer, verifier) -> None:
    chain = bytes(32)
    message = signed_bytes(Domain.PBFT_COMMIT, chain, b"payload")
    signature = signer.sign(message)
    assert len(signature) == 64
    assert verifier.verify(signer.public_key, message, signature)
    for other in (
        signed_bytes(Domain.PBFT_PREPARE, chain, b"payload"),
        signed_bytes(Domain.PBFT_COMMIT, b"\x01" * 32, b"payload"),
        signed_bytes(Domain.PBFT_COMMIT, chain, b"payloae"),
    ):
        assert not verifier.verify(signer.public_key, other, signature)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\x01" + bytes(31)])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_bad_keys_and_signatures_are_false_not_errors(key: bytes, signature: bytes) -> None:
    assert not Ed25519Verifier().verify(key, b"message", signature)
