"""Transactions: calls under one sender, one nonce and one signature.

The calls are carried as bytes, each the canonical encoding of one tagged `Wire` struct, because the
set of calls differs between chains while the envelope does not. A batch (many calls, one
signature) is first-class: the signature check is the dearest part of a transaction.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.keys import Domain, Signer, signed_bytes
from gridtokenx.core.lazy import lazy
from gridtokenx.core.machine import SignatureCheck
from gridtokenx.core.types import (
    UINT63_MAX,
    Blob,
    Hash32,
    Millis,
    PublicKey,
    SignatureBytes,
    UInt63,
)

MAX_CALLS: Final = 64
MAX_TRANSACTION_BYTES: Final = 256 * 1024
FOREVER_MS: Final = UINT63_MAX
"""`valid_until_ms` of a transaction that never expires."""


class TransactionBody(Wire, frozen=True, dict=True):
    """What a sender signs."""

    chain_id: Hash32
    """The only chain on which this is valid."""
    sender: PublicKey
    """The account (or device) that pays, acts and signs."""
    nonce: UInt63
    """Makes it unique for its sender; the chain's admission rule says in which order."""
    fee: UInt63
    """Offered fee in the chain's fee token, smallest unit."""
    valid_until_ms: Millis
    """Block time after which it can no longer be included."""
    calls: Annotated[tuple[Blob, ...], Meta(min_length=1, max_length=MAX_CALLS)]
    """Encoded calls, carried out in order; each succeeds or fails by itself."""


class Transaction(Wire, frozen=True, dict=True):
    """A body and its sender's signature."""

    body: TransactionBody
    signature: SignatureBytes
    """Ed25519 over the domain tag, the chain id and the encoded body."""

    @lazy
    def id(self) -> bytes:
        """Hash of the body: signing again does not make another transaction."""
        return sha256(b"transaction" + self.encoded_body).digest()

    @lazy
    def encoded(self) -> bytes:
        """The canonical bytes: a leaf of the block's transaction tree."""
        return encode(self)

    @property
    def encoded_body(self) -> bytes:
        """The canonical bytes of the body: those of the whole, less an array's head and a signature."""
        return self.encoded[1 : -2 - len(self.signature)]

    def typed_calls(self, union: type[Wire]) -> tuple[Wire, ...]:
        """The calls as structs of a chain's union; decoded once, however often they are asked for.

        Raises:
            Malformed: one of them is not in the union.
        """
        known: tuple[type[Wire], tuple[Wire, ...]] | None = vars(self).get("_typed_calls")
        if known is None or known[0] is not union:
            known = (union, tuple([decode(call, union) for call in self.body.calls]))
            vars(self)["_typed_calls"] = known
        return known[1]

    @property
    def admitted_after(self) -> bytes | None:
        """The root of the last state upon which its chain admitted it; see `Ledger.admit`."""
        root: bytes | None = vars(self).get("_admitted_after")
        return root

    def admit_after(self, root: bytes | None) -> None:
        """Note upon which state its chain admitted it: nobody has to ask twice."""
        vars(self)["_admitted_after"] = root

    def signature_check(self) -> SignatureCheck:
        """What must verify before a machine may see this transaction."""
        body = self.body
        signed = signed_bytes(Domain.TRANSACTION, body.chain_id, self.encoded_body)
        return SignatureCheck(body.sender, signed, self.signature)


def sign_transaction(
    signer: Signer,
    chain_id: bytes,
    nonce: int,
    calls: Sequence[Wire],
    *,
    fee: int = 0,
    valid_until_ms: int = FOREVER_MS,
) -> Transaction:
    """A transaction of `calls`, signed by `signer`."""
    body = TransactionBody(
        chain_id=chain_id,
        sender=signer.public_key,
        nonce=nonce,
        fee=fee,
        valid_until_ms=valid_until_ms,
        calls=tuple(encode(call) for call in calls),
    )
    signed = signed_bytes(Domain.TRANSACTION, chain_id, encode(body))
    return Transaction(body=body, signature=signer.sign(signed))
