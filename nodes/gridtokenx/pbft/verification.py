"""Which signatures a message stands on: named before the machine sees it.

Law of the file: **nothing signed that `Replica.step` reads enters it unchecked.** Keys are found by
the message's own set id; a set that is not known yet makes the driver wait (`Unknown`). Every rule
that must hold for a key to be nameable at all is checked here, the rest by the handlers: also whether
the set is the present one, for the sets of all earlier terms stay known. What a replica is sure to
throw away unread (`Replica._is_needless`) does not come here.

A certified block's transactions are not checked again: a quorum checked them before it voted. Nor are
those of a block that is sent apart (`Body`): one is only taken if a certificate, or a prepared one,
names its hash, and who voted there first had checked them. Unasked it would cost seconds, for nothing.
Nor are those of a proposal that wait here already: they were checked when they came, and are the same
to the last bit of their signatures. The signatures of a message are listed once each, however often they are
nested in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import SignatureCheck, Unknown
from gridtokenx.finality.certificates import CommitCertificate, check_certificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import (
    MAX_REPLICAS,
    Ballot,
    Body,
    CertifiedBlocks,
    Commit,
    FetchBlocks,
    FetchBody,
    FetchPart,
    FetchSnapshot,
    NewView,
    Part,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Snapshot,
    Status,
    Suspect,
    Transactions,
    ViewChange,
)
from gridtokenx.pbft.rotation import Periods, primary_of
from gridtokenx.pbft.terms import Term
from gridtokenx.pbft.view_change import check_view_change

_UNSIGNED: Final = frozenset(
    (Suspect, Status, FetchBlocks, FetchBody, FetchSnapshot, FetchPart, Part)
)


class MessageFault(RemoteFault):
    """A message that no key could make valid."""


class _UnknownSet(Exception):
    pass


class Verification:
    """Names the signatures of messages of one chain.

    Args:
        chain_id: of the chain.
        terms: every known term by set id; the replica adds to it.
        rotation_blocks: heights of a period; see `rotation.py`.
        knows: whether the very same transaction has passed this check already, and waits here.
    """

    def __init__(
        self,
        chain_id: bytes,
        terms: Mapping[int, Term],
        rotation_blocks: int = 0,
        knows: Callable[[Transaction], bool] = lambda _transaction: False,
    ) -> None:
        self._knows: Final = knows
        self._chain_id: Final = chain_id
        self._terms: Final = terms
        self._rotation_blocks: Final = rotation_blocks

    def checks(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """What must verify before `message` may enter the replica.

        Raises:
            RemoteFault: no key could ever make this message valid.
        """
        if type(message) in _UNSIGNED:
            return ()
        try:
            if isinstance(message, Prepare | Commit):
                return (self._of_vote(message),)
            return tuple(dict.fromkeys(self._of(message)))
        except _UnknownSet as unknown:
            return Unknown(str(unknown))

    def _of(self, message: Wire) -> Iterator[SignatureCheck]:
        match message:
            case Transactions(transactions):
                yield from self._transactions(transactions)
            case PrePrepare():
                yield from self._pre_prepare(message)
            case ViewChange():
                yield from self._view_change(message)
            case NewView():
                yield from self._new_view(message)
            case CertifiedBlocks(_, blocks):
                if len({certified.block.header.set_id for certified in blocks}) > 1:
                    raise MessageFault("mixed-sets", "an answer ends with the set of its blocks")
                for certified in blocks:
                    yield from self._certificate(certified.certificate, certified.block.header)
            case Body(block):
                self._check_chain(block)
            case Snapshot():
                yield from self._snapshot(message)
            case _:
                raise MessageFault("unexpected-message", type(message).__name__)

    # -- parts -------------------------------------------------------------------------------------

    def _of_vote(self, message: Prepare | Commit) -> SignatureCheck:
        """Most messages are these: one signature each, so there is nothing to list once."""
        if isinstance(message, Prepare):
            return self._vote(
                message.ballot, Domain.PBFT_PREPARE, message.replica, message.signature
            )
        vote = message.vote
        key = self._member(vote.set_id, message.replica)
        return SignatureCheck(key, vote.signed_bytes(self._chain_id), message.signature)

    def _pre_prepare(self, message: PrePrepare) -> Iterator[SignatureCheck]:
        ballot = message.ballot
        primary = primary_of(message.view, self._set(ballot.set_id))
        yield self._vote(ballot, Domain.PBFT_PRE_PREPARE, primary, message.signature)
        self._check_chain(message.block)
        yield from self._transactions(message.block.transactions)

    def _check_chain(self, block: Block) -> None:
        if block.header.chain_id != self._chain_id:
            raise MessageFault("wrong-chain", "a block of another chain")

    def _transactions(self, transactions: Iterable[Transaction]) -> Iterator[SignatureCheck]:
        for transaction in transactions:
            if not self._knows(transaction):
                yield transaction.signature_check()

    def _view_change(self, message: ViewChange) -> Iterator[SignatureCheck]:
        body = message.body
        term = self._term(body.set_id)
        periods = Periods(term.root.height, self._rotation_blocks)
        check_view_change(body, term.validators, periods)
        key = self._member(body.set_id, body.replica)
        yield SignatureCheck(key, message.signed_bytes(self._chain_id), message.signature)
        if body.head is not None:
            yield from self._certificate(body.head.certificate, body.head.header)
        for prepared in body.prepared:
            yield from self._prepared(prepared)

    def _new_view(self, message: NewView) -> Iterator[SignatureCheck]:
        body = message.body
        primary = primary_of(body.view, self._set(body.set_id))
        key = self._member(body.set_id, primary)
        yield SignatureCheck(key, message.signed_bytes(self._chain_id), message.signature)
        for change in body.view_changes:
            yield from self._view_change(change)
        for proposal in body.proposals:
            yield self._vote(proposal.ballot, Domain.PBFT_PRE_PREPARE, primary, proposal.signature)

    def _prepared(self, certificate: PreparedCertificate) -> Iterator[SignatureCheck]:
        header, ballot = certificate.header, certificate.ballot
        if header.chain_id != self._chain_id:
            raise MessageFault("wrong-chain", "a prepared block of another chain")
        primary = primary_of(certificate.view, self._set(header.set_id))
        yield self._vote(ballot, Domain.PBFT_PRE_PREPARE, primary, certificate.proposal)
        for signed in certificate.prepares:
            yield self._vote(ballot, Domain.PBFT_PREPARE, signed.index, signed.signature)

    def _certificate(
        self, certificate: CommitCertificate, header: Header
    ) -> Sequence[SignatureCheck]:
        return self._certified_by(self._set(header.set_id), certificate, header)

    def _snapshot(self, message: Snapshot) -> Iterator[SignatureCheck]:
        """Each handover by the set that the one before it names; the first by one known here.

        An answer that begins with a set not known here answers nothing: it does not wait for that set.
        """
        headers = [handover.header for handover in message.handovers]
        if message.checkpoint is not None:
            headers.append(message.checkpoint.block.header)
        if headers and headers[0].set_id not in self._terms:
            raise MessageFault("unknown-set", f"an answer that begins with set {headers[0].set_id}")
        validators = self._set(headers[0].set_id) if headers else None
        for handover in message.handovers:
            assert validators is not None, "of the first header"
            yield from self._certified_by(validators, handover.certificate, handover.header)
            check_handover(handover.header, handover.next_set)
            validators = handover.next_set
        if message.checkpoint is not None:
            assert validators is not None, "of the first header"
            yield from self._certified_by(validators, message.checkpoint.certificate, headers[-1])

    def _certified_by(
        self, validators: ValidatorSet, certificate: CommitCertificate, header: Header
    ) -> Sequence[SignatureCheck]:
        if header.chain_id != self._chain_id:
            raise MessageFault("wrong-chain", "a committed block of another chain")
        return check_certificate(certificate, header, validators)

    def _vote(
        self, ballot: Ballot, domain: Domain, replica: int, signature: bytes
    ) -> SignatureCheck:
        key = self._member(ballot.set_id, replica)
        return SignatureCheck(key, ballot.signed_bytes(domain, self._chain_id), signature)

    def _member(self, set_id: int, index: int) -> bytes:
        validators = self._set(set_id)
        if index >= validators.size:
            raise MessageFault("unknown-replica", f"index {index} of {validators.size}")
        return validators.members[index]

    def _set(self, set_id: int) -> ValidatorSet:
        return self._term(set_id).validators

    def _term(self, set_id: int) -> Term:
        found = self._terms.get(set_id)
        if found is None:
            if set_id < max(self._terms):
                raise MessageFault("wrong-set", f"set {set_id} never finalised here")
            raise _UnknownSet(f"validator set {set_id}")
        return found


def check_handover(header: Header, following: ValidatorSet) -> None:
    """Whether a certified header hands over to this set, and the set is one to work with.

    Raises:
        MessageFault: it does not.
    """
    if header.next_set_hash != following.hash or following.set_id != header.set_id + 1:
        raise MessageFault(
            "wrong-next-set", f"block {header.height} does not hand over to set {following.set_id}"
        )
    if not following.is_well_formed() or following.size > MAX_REPLICAS:
        raise MessageFault("wrong-next-set", f"set {following.set_id} is not one of this protocol")
