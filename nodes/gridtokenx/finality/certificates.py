"""PBFT commit certificates: a quorum of commit votes for one block.

Castro & Liskov (OSDI 1999) section 4.2: a block is committed when a quorum of replicas sent matching
commits in one view. The certificate is exactly those votes, so any chain that knows the validator
set can verify it without asking anyone.

Each vote binds (chain, set, view, height, block hash): the domain tag and the chain id are in the
signed bytes, the rest in the vote.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain, Verifier, signed_bytes
from gridtokenx.core.machine import SignatureCheck
from gridtokenx.core.types import Hash32, Height, Index16, SignatureBytes, UInt63
from gridtokenx.finality.validators import MAX_VALIDATORS, ValidatorSet
from gridtokenx.ledger.blocks import Header


class CommitVote(Wire, frozen=True):
    """What a replica signs to commit a block."""

    set_id: UInt63
    view: UInt63
    """The view in which the block was decided."""
    height: Height
    block_hash: Hash32

    def signed_bytes(self, chain_id: bytes) -> bytes:
        """The bytes under a commit signature."""
        return signed_bytes(Domain.PBFT_COMMIT, chain_id, encode(self))


class IndexedSignature(Wire, frozen=True):
    """A signature by the member at `index` of the validator set."""

    index: Index16
    signature: SignatureBytes


class CommitCertificate(Wire, frozen=True, tag="pbft"):
    """A quorum of commit votes for one block."""

    chain_id: Hash32
    vote: CommitVote
    signatures: Annotated[tuple[IndexedSignature, ...], Meta(max_length=MAX_VALIDATORS)]
    """Strictly increasing indices; exactly what was voted is `vote`."""

    def checks(self, validators: ValidatorSet) -> Sequence[SignatureCheck]:
        """The signatures to check; the structure must have been checked first."""
        message = self.vote.signed_bytes(self.chain_id)
        return [
            SignatureCheck(validators.members[signed.index], message, signed.signature)
            for signed in self.signatures
        ]


class CertificateFault(RemoteFault):
    """A certificate that proves nothing; `reason` says which rule it breaks."""


def check_certificate(
    certificate: CommitCertificate, header: Header, validators: ValidatorSet
) -> Sequence[SignatureCheck]:
    """Check all but the signatures of a certificate for `header`; return what is left to check.

    Raises:
        CertificateFault: wrong chain, set, height or hash; unknown or repeated signer; no quorum.
    """
    vote = certificate.vote
    if certificate.chain_id != header.chain_id:
        raise CertificateFault("wrong-chain", "the certificate is for another chain")
    if not vote.set_id == validators.set_id == header.set_id:
        raise CertificateFault("wrong-set", f"set {vote.set_id}, trusted {validators.set_id}")
    if (vote.height, vote.block_hash) != (header.height, header.hash):
        raise CertificateFault("wrong-block", f"it commits another block than {header.height}")
    indices = [signed.index for signed in certificate.signatures]
    if any(later <= earlier for earlier, later in itertools.pairwise(indices)):
        raise CertificateFault("duplicate-signer", "signers are not strictly increasing")
    if indices and indices[-1] >= validators.size:
        raise CertificateFault("unknown-signer", f"index {indices[-1]} of {validators.size}")
    if len(indices) < validators.quorum:
        raise CertificateFault(
            "below-quorum", f"{len(indices)} signatures, {validators.quorum} needed"
        )
    return certificate.checks(validators)


def verify_certificate(
    certificate: CommitCertificate, header: Header, validators: ValidatorSet, verifier: Verifier
) -> None:
    """Believe that `header` is final, or raise.

    Raises:
        CertificateFault: see `check_certificate`, or a signature does not verify.
    """
    for check in check_certificate(certificate, header, validators):
        if not verifier.verify(check.public_key, check.message, check.signature):
            raise CertificateFault("bad-signature", f"by {check.public_key.hex()[:16]}")
