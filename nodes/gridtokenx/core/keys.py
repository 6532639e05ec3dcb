"""Ed25519 keys and what exactly is signed.

Signed bytes are ``domain tag || chain id || canonical encoding``. Each kind of signature has its own
domain tag, so that a signature made for one purpose is worthless for any other; tags have equal
length and a chain id has 32 bytes, so the concatenation has one reading.

`Signer` and `Verifier` are ports: libsodium in production, a keyed hash of the same sizes in the
simulator (where forging is impossible because nobody tries it except through the wrappers that do).
"""

import hashlib
from enum import Enum
from functools import lru_cache
from typing import Final, Protocol

from nacl import bindings, exceptions

SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NO_CHAIN: Final = bytes(32)
"""The chain id inside signatures that belong to no chain (transport handshakes)."""


class Domain(bytes, Enum):
    """The purpose of a signature; 8 bytes each."""

    TRANSACTION = b"gtx:tx:1"
    PBFT_PRE_PREPARE = b"gtx:pp:1"
    PBFT_PREPARE = b"gtx:pr:1"
    PBFT_COMMIT = b"gtx:cm:1"
    PBFT_VIEW_CHANGE = b"gtx:vc:1"
    PBFT_NEW_VIEW = b"gtx:nv:1"
    BLOCK_SEAL = b"gtx:sl:1"
    GRANDPA_VOTE = b"gtx:gv:1"
    HANDSHAKE = b"gtx:hs:1"
    BROKER_CONNECT = b"gtx:mq:1"
    MEMBER_KEY = b"gtx:mk:1"
    SESSION_KEY = b"gtx:sk:1"


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the concatenation; callers put a domain tag first."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def signed_bytes(domain: Domain, chain_id: bytes, payload: bytes) -> bytes:
    """The exact bytes that a signature covers."""
    return domain + chain_id + payload


class Signer(Protocol):
    """Holds one secret key. Hosts keep it; machines only ask it to sign."""

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature of `message`."""
        ...


class Verifier(Protocol):
    """Checks signatures of any key."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is valid; never raises on bad input."""
        ...


class Ed25519Signer:
    """RFC 8032 Ed25519 by libsodium."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, seed: bytes) -> None:
        self.public_key, self._secret = bindings.crypto_sign_seed_keypair(seed)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature of `message`."""
        signed: bytes = bindings.crypto_sign(message, self._secret)
        return signed[:SIGNATURE_BYTES]


class Ed25519Verifier:
    """RFC 8032 verification by libsodium (which refuses small-order keys and non-canonical s)."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is valid."""
        if len(signature) != SIGNATURE_BYTES or len(public_key) != SEED_BYTES:
            return False
        try:
            bindings.crypto_sign_open(signature + message, public_key)
        except (exceptions.BadSignatureError, exceptions.CryptoError, ValueError):
            return False
        return True


class KeyedHashSigner:
    """The simulator's signer: keyed BLAKE2b under a secret that `KeyedHashVerifier` derives too."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, seed: bytes) -> None:
        self.public_key = sha256(b"keyed-hash public", seed)
        self._secret = _keyed_secret(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte tag of `message`."""
        return _keyed_hash(self._secret, message)


class KeyedHashVerifier:
    """Verifies `KeyedHashSigner` tags. Only for simulations: anyone could forge them."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is the tag of `message`."""
        return _keyed_hash(_keyed_secret(public_key), message) == signature


def _keyed_hash(secret: bytes, message: bytes) -> bytes:
    """A tenth of HMAC-SHA-512's time, which is mostly OpenSSL's looking up of the algorithm."""
    return hashlib.blake2b(message, key=secret, digest_size=SIGNATURE_BYTES).digest()


@lru_cache(maxsize=4_096)
def _keyed_secret(public_key: bytes) -> bytes:
    return sha256(b"keyed-hash secret", public_key)
