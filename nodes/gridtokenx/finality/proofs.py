"""One name for both kinds of finality proof, and one function that believes them."""

from gridtokenx.core.keys import Verifier
from gridtokenx.finality.certificates import (
    CertificateFault,
    CommitCertificate,
    verify_certificate,
)
from gridtokenx.finality.justifications import Justification, verify_justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header

FinalityProof = CommitCertificate | Justification
"""What a light client accepts for a header: a PBFT certificate or a GRANDPA justification."""


def verify_finality(
    header: Header,
    proof: FinalityProof,
    validators: ValidatorSet,
    verifier: Verifier,
) -> None:
    """Believe that `header` is final under `validators`, or raise.

    Raises:
        RemoteFault: with the rule that is broken.
    """
    if header.set_id != validators.set_id:
        raise CertificateFault("wrong-set", f"set {header.set_id}, trusted {validators.set_id}")
    if isinstance(proof, CommitCertificate):
        verify_certificate(proof, header, validators, verifier)
    else:
        verify_justification(proof, header, validators, verifier)
