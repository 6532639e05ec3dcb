"""Justifications: the proof that GRANDPA finalised a block, and its strict verifier.

Law of the file: a stranger who knows a validator set, and nothing else, believes a header if and
only if `verify_justification` returns. Everything in a justification is needed: one with a vote, a
header or a signature too many is refused, so that nobody can make others pay for padding.

Theory: GRANDPA (Stewart and Kokoris-Kogia, 2020); the order of the checks and the nine names
follow the strict verifier of Polkadot's bridges (`header-chain/src/justification/verification`).
Each elected authority has weight 1, so a supermajority is a number of votes.

    check, in this order                                            reason
    the target is the header in question                            InvalidJustificationTarget
    the header and the justification name the set that is known     InvalidAuthoritySet
    no ancestry header twice                                        DuplicateVotesAncestries
    per precommit:
      the votes before it do not suffice yet                        RedundantAuthorityVote
      its voter is in the set                                       UnknownAuthorityVote
      its voter has not voted before                                DuplicateAuthorityVote
      the ancestry leads from its target down to the commit target  UnrelatedAncestryVote
      its signature holds                                           InvalidAuthoritySignature
    the votes suffice                                               TooLowCumulativeWeight
    every ancestry header was on the way of a vote                  RedundantVotesAncestries

Ours differs: upstream, a wrong set id shows only as a wrong signature. Here it has its own reason.
"""

from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain, Verifier, signed_bytes
from gridtokenx.core.machine import SignatureCheck
from gridtokenx.core.types import Hash32, Height, Index16, SignatureBytes, UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header

MAX_PRECOMMITS: Final = 1024
MAX_ANCESTRY: Final = 1024


class JustificationFault(RemoteFault):
    """A justification that proves nothing; `reason` is one of the head of this file."""


class Stage(IntEnum):
    """What a GRANDPA signature is for."""

    PREVOTE = 0
    PRECOMMIT = 1
    PRIMARY_PROPOSE = 2


class SignedStatement(Wire, frozen=True):
    """What a GRANDPA signature covers (behind the domain tag and the chain id)."""

    stage: Annotated[int, Meta(ge=0, le=2)]
    round: UInt63
    set_id: UInt63
    target_hash: Hash32
    target_height: Height


class SignedPrecommit(Wire, frozen=True):
    """One authority's precommit."""

    authority: Index16
    """Its index in the validator set."""
    target_hash: Hash32
    target_height: Height
    signature: SignatureBytes


class Justification(Wire, frozen=True, tag="grandpa"):
    """Precommits of a supermajority for a block or its descendants, and the headers between."""

    round: UInt63
    set_id: UInt63
    target_hash: Hash32
    target_height: Height
    precommits: Annotated[tuple[SignedPrecommit, ...], Meta(max_length=MAX_PRECOMMITS)]
    ancestry: Annotated[tuple[Header, ...], Meta(max_length=MAX_ANCESTRY)]
    """Headers from the precommits' targets down to, and without, the commit target."""


def statement_bytes(
    chain_id: bytes, stage: Stage, round_: int, set_id: int, target_hash: bytes, target_height: int
) -> bytes:
    """The exact bytes that a vote's signature covers."""
    statement = SignedStatement(int(stage), round_, set_id, target_hash, target_height)
    return signed_bytes(Domain.GRANDPA_VOTE, chain_id, encode(statement))


def justification_signatures(
    justification: Justification, chain_id: bytes, validators: ValidatorSet
) -> list[SignatureCheck]:
    """The signatures of all precommits by members of the set, for drivers that check in batches."""
    return [
        _signature_check(justification, precommit, chain_id, validators)
        for precommit in justification.precommits
        if precommit.authority < validators.size
    ]


def verify_justification(
    justification: Justification, header: Header, validators: ValidatorSet, verifier: Verifier
) -> None:
    """Returns if `validators` finalised `header`; `verifier` checks Ed25519 signatures.

    Raises:
        JustificationFault: with the reason from the table at the head of this file.
    """
    target = (justification.target_hash, justification.target_height)
    if target != (header.hash, header.height):
        raise _fault("InvalidJustificationTarget", f"target {target[0].hex()} at {target[1]}")
    if not justification.set_id == header.set_id == validators.set_id:
        raise _fault("InvalidAuthoritySet", f"set {justification.set_id}, not {validators.set_id}")
    ancestry = _Ancestry(justification)
    threshold = validators.supermajority
    voted: set[int] = set()
    for precommit in justification.precommits:
        if len(voted) >= threshold:
            raise _fault("RedundantAuthorityVote", f"{threshold} votes suffice")
        _check_voter(precommit, validators, voted)
        ancestry.visit(precommit)
        check = _signature_check(justification, precommit, header.chain_id, validators)
        if not verifier.verify(check.public_key, check.message, check.signature):
            raise _fault("InvalidAuthoritySignature", f"of authority {precommit.authority}")
        voted.add(precommit.authority)
    if len(voted) < threshold:
        raise _fault("TooLowCumulativeWeight", f"{len(voted)} of {threshold} votes")
    if ancestry.unvisited:
        raise _fault("RedundantVotesAncestries", f"{len(ancestry.unvisited)} unused headers")


def _check_voter(precommit: SignedPrecommit, validators: ValidatorSet, voted: set[int]) -> None:
    if precommit.authority >= validators.size:
        raise _fault("UnknownAuthorityVote", f"authority {precommit.authority}")
    if precommit.authority in voted:
        raise _fault("DuplicateAuthorityVote", f"authority {precommit.authority}")


def _signature_check(
    justification: Justification,
    precommit: SignedPrecommit,
    chain_id: bytes,
    validators: ValidatorSet,
) -> SignatureCheck:
    message = statement_bytes(
        chain_id,
        Stage.PRECOMMIT,
        justification.round,
        justification.set_id,
        precommit.target_hash,
        precommit.target_height,
    )
    return SignatureCheck(validators.members[precommit.authority], message, precommit.signature)


class _Ancestry:
    """The headers above the commit target, and which of them no vote has used yet."""

    def __init__(self, justification: Justification) -> None:
        self._target = (justification.target_hash, justification.target_height)
        self._headers = {header.hash: header for header in justification.ancestry}
        if len(self._headers) != len(justification.ancestry):
            raise _fault("DuplicateVotesAncestries", "an ancestry header appears twice")
        self.unvisited = set(self._headers)

    def visit(self, precommit: SignedPrecommit) -> None:
        """Walks from a vote's target down to the commit target, or to a header walked before."""
        block_hash, height = precommit.target_hash, precommit.target_height
        route: list[bytes] = []
        while (block_hash, height) != self._target:
            header = self._headers.get(block_hash)
            if header is None or header.height != height:
                detail = f"authority {precommit.authority} for {precommit.target_hash.hex()}"
                raise _fault("UnrelatedAncestryVote", detail)
            if block_hash not in self.unvisited:
                break
            route.append(block_hash)
            block_hash, height = header.parent, height - 1
        self.unvisited.difference_update(route)


def _fault(reason: str, detail: str) -> JustificationFault:
    return JustificationFault(reason, detail)
