"""Which signatures a message of a public node stands on, and by whose keys they must hold.

Law of the file: **a set is named by ancestry, never by its number alone.** Two branches may elect
different sets of the same number, as long as neither election is final; so a seal is checked by the
key that the block's own parent gives, or not yet.

    a block                                            is sealed by
    at or below the last final one, or of an ended set nobody any more: the importer drops it
    its parent here                                    the set of the parent's children
    its parent before it in the same message           the same as the parent, unless the parent hands
                                                       over (`sync.serve_branch` never sends that)
    else, if the set that it names for its children    that set, since only handovers name another;
      is known here under its own number               if it lies, the seal does not hold
    else                                               unknown yet: the driver keeps the message until
                                                       more is final

A justification and votes count only for the set that finalises the next block: finality passes from
set to set through the justification of each handover block, and never around one. Votes of a set two
ahead are of no use here before much else has come, so they are not kept.
"""

from collections.abc import Iterable, Sequence

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import SignatureCheck, Unknown
from gridtokenx.finality.justifications import Justification, justification_signatures
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.public.grandpa.messages import SignedVote
from gridtokenx.public.slots import SealedBlock, seal_check
from gridtokenx.public.tree import BlockTree

Checks = Sequence[SignatureCheck] | Unknown


def block_checks(tree: BlockTree, chain_id: bytes, blocks: Iterable[SealedBlock]) -> Checks:
    """The seals of blocks and the signatures of their transactions.

    Raises:
        RemoteFault: `wrong-chain`, `wrong-set`, `malformed` or `slot-author`.
    """
    checks: list[SignatureCheck] = []
    before: dict[bytes, tuple[Header, ValidatorSet]] = {}
    for sealed in blocks:
        header = sealed.header
        if header.chain_id != chain_id:
            raise RemoteFault("wrong-chain", f"block {header.height} is of another chain")
        root = tree.root
        if header.height <= root.height or header.set_id < root.validators.set_id:
            continue
        authors = _authors(tree, header, before)
        if isinstance(authors, Unknown):
            return authors
        before[header.hash] = (header, authors)
        checks.append(seal_check(header, sealed.seal, authors))
        checks += [transaction.signature_check() for transaction in sealed.block.transactions]
    return checks


def _authors(
    tree: BlockTree, header: Header, before: dict[bytes, tuple[Header, ValidatorSet]]
) -> ValidatorSet | Unknown:
    parent = tree.get(header.parent)
    if parent is not None:
        if parent.validators.set_id != header.set_id:
            detail = f"set {header.set_id} where {parent.validators.set_id} is due"
            raise RemoteFault("wrong-set", detail)
        return parent.validators
    if header.parent in before:
        of_parent, authors = before[header.parent]
        if of_parent.next_set_hash == authors.hash and header.set_id == authors.set_id:
            return authors
    named = tree.set_of(header.next_set_hash)
    if named is not None and named.set_id == header.set_id:
        return named
    return Unknown(f"validator set {header.set_id} of block {header.height}")


def justification_checks(
    justification: Justification, chain_id: bytes, validators: ValidatorSet
) -> Checks:
    """The precommits of a justification; `validators` finalise the next block."""
    if justification.set_id > validators.set_id:
        return Unknown(f"validator set {justification.set_id}")
    if justification.set_id < validators.set_id:
        return ()  # what it finalises is final
    return justification_signatures(justification, chain_id, validators)


def vote_checks(votes: Iterable[SignedVote], chain_id: bytes, validators: ValidatorSet) -> Checks:
    """The votes of the set that finalises the next block; the voter ignores all others.

    Raises:
        RemoteFault: `unknown-authority`.
    """
    checks: list[SignatureCheck] = []
    for vote in votes:
        if vote.set_id == validators.set_id + 1:
            return Unknown(f"validator set {vote.set_id}")
        if vote.set_id != validators.set_id:
            continue
        if vote.authority >= validators.size:
            raise RemoteFault("unknown-authority", f"authority {vote.authority}")
        key = validators.members[vote.authority]
        checks.append(SignatureCheck(key, vote.signed_bytes(chain_id), vote.signature))
    return checks


def both(one: Checks, other: Checks) -> Checks:
    """What two parts of one message stand on."""
    if isinstance(one, Unknown):
        return one
    return other if isinstance(other, Unknown) else [*one, *other]
