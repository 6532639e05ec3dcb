"""Every message between the replicas of one PBFT chain.

Law of the file: **what a certificate may need is signed by its author; all else is believed only as
far as the link's authenticated sender goes.** A signed message may be carried by anyone.

==================  ======================  ========  ==================================================
message             from -> to              signed    purpose
==================  ======================  ========  ==================================================
PrePrepare          primary -> all          primary   proposes a block for (view, height)
Prepare             backup -> all           replica   "this is the one proposal I saw there, and it holds"
Commit              replica -> all          replica   "a quorum saw it"; a quorum of these is the proof
Suspect             replica -> all          link      "I want to leave this view"
ViewChange          replica -> all          replica   leaves a view; carries what may have been committed
NewView             new primary -> all      primary   opens a view: a quorum of view-changes, and its choice
Status              replica -> peer(s)      link      where I am: view and height; who is ahead helps
FetchBlocks         replica -> peer         link      asks for certified blocks of a range
CertifiedBlocks     peer -> replica         proofs    answers it; each block proves itself
FetchBody           replica -> peer         link      asks for one proposed block by hash
Body                peer -> replica         link      answers it; the hash was asked for
FetchSnapshot       replica -> peer         link      asks for a certified state far above its own
Snapshot            peer -> replica         proofs    answers it: handovers, a block, its certificate
FetchPart           replica -> peer         link      asks for one part of that state
Part                peer -> replica         proof     answers it; the part has the hash of its place
Transactions        replica -> all          senders   gossip of what clients submitted, one hop
==================  ======================  ========  ==================================================

Observers (peers without a seat in the set) send what "replica" sends unsigned, and get what "all" get.

Castro & Liskov (OSDI 1999) section 4.2 and 4.4 name the first, second, third, fifth and sixth.
"""

from functools import cached_property
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import Domain, sha256, signed_bytes
from gridtokenx.core.state_tree import Prefix, StatePart
from gridtokenx.core.types import Hash32, Height, Index16, SignatureBytes, UInt63
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.transactions import Transaction

MAX_REPLICAS: Final = 128
"""Most members of a PBFT set: messages grow with its square."""
MAX_WINDOW: Final = 16
"""Most heights that may ever be in flight; the bound of what a view-change can carry."""
FETCH_BLOCKS: Final = 16
"""Most blocks of one answer."""
FETCH_BYTES: Final = 2 * 1024 * 1024
"""An answer stops growing once it is this large."""
SNAPSHOT_HANDOVERS: Final = 16
"""Most handovers of one answer; who needs more asks again from the last of them."""
SNAPSHOT_BYTES: Final = 4 * 1024 * 1024
"""A block that is larger, with its events, is no checkpoint."""
SNAPSHOT_EVENTS: Final = 100_000
"""Nor is one with more events."""
GOSSIP_TRANSACTIONS: Final = 256
"""Most transactions of one gossip message."""


class Ballot(Wire, frozen=True):
    """What pre-prepare and prepare signatures cover; commits cover a `CommitVote` alike."""

    set_id: UInt63
    """The validator set that votes."""
    view: UInt63
    """The view in which this vote counts."""
    height: Height
    """The height that the block is for; PBFT's sequence number."""
    block_hash: Hash32
    """The header's hash; PBFT's digest."""

    def signed_bytes(self, domain: Domain, chain_id: bytes) -> bytes:
        """The bytes under a signature of this ballot for the purpose `domain`."""
        return signed_bytes(domain, chain_id, encode(self))


class PrePrepare(Wire, frozen=True, tag="pbft.pre_prepare"):
    """The primary's proposal, with the block itself."""

    view: UInt63
    """The view in which it is proposed; a re-proposal's header names an earlier one."""
    block: Block
    """The proposed block, byte for byte what was first proposed."""
    signature: SignatureBytes
    """By the primary of `view`, over the ballot."""

    @property
    def ballot(self) -> Ballot:
        """What was signed."""
        header = self.block.header
        return Ballot(
            set_id=header.set_id, view=self.view, height=header.height, block_hash=header.hash
        )


class Prepare(Wire, frozen=True, tag="pbft.prepare"):
    """A backup's vote for the one proposal that it accepted in this view at this height."""

    ballot: Ballot
    """What it accepted."""
    replica: Index16
    """The voter's index in the set."""
    signature: SignatureBytes
    """By the voter, over the ballot."""


class Commit(Wire, frozen=True, tag="pbft.commit"):
    """A vote by a replica for which the block is prepared."""

    vote: CommitVote
    """What the certificate will hold."""
    replica: Index16
    """The voter's index in the set."""
    signature: SignatureBytes
    """By the voter, over the vote."""


class Suspect(Wire, frozen=True, tag="pbft.suspect"):
    """The sender's timer ran out: it asks the others to leave the view with it."""

    set_id: UInt63
    """The validator set of the view."""
    view: UInt63
    """The view that it wants to leave."""


class PreparedCertificate(Wire, frozen=True):
    """Proof that a block was prepared: a pre-prepare and a quorum less one of matching prepares."""

    view: UInt63
    """The view in which it was prepared."""
    header: Header
    """The block's header: its hash was voted for, its parent links the choice of a new view."""
    proposal: SignatureBytes
    """The pre-prepare's signature, by the primary of `view`."""
    prepares: Annotated[tuple[IndexedSignature, ...], Meta(max_length=MAX_REPLICAS)]
    """Signatures of backups, strictly increasing by index."""

    @property
    def ballot(self) -> Ballot:
        """What was signed, by the primary and by the backups."""
        header = self.header
        return Ballot(
            set_id=header.set_id, view=self.view, height=header.height, block_hash=header.hash
        )


class CertifiedHeader(Wire, frozen=True):
    """A committed block's header and the proof: every block is a stable checkpoint here."""

    header: Header
    """What was committed."""
    certificate: CommitCertificate
    """A quorum of commits for it."""


class ViewChangeBody(Wire, frozen=True):
    """What a replica says when it leaves its view."""

    set_id: UInt63
    """The validator set of the new view."""
    view: UInt63
    """The view that it moves to."""
    replica: Index16
    """The author's index in the set."""
    head: CertifiedHeader | None
    """The paper's C: its last committed block of this set; None before the set's first."""
    prepared: Annotated[tuple[PreparedCertificate, ...], Meta(max_length=MAX_WINDOW)]
    """The paper's P: per height above the head, the prepared certificate of the highest view."""


class ViewChange(Wire, frozen=True, tag="pbft.view_change", dict=True):
    """A signed `ViewChangeBody`."""

    body: ViewChangeBody
    """What is said."""
    signature: SignatureBytes
    """By the author, over the hash of the encoded body."""

    def signed_bytes(self, chain_id: bytes) -> bytes:
        """The bytes under the signature."""
        return signed_bytes(Domain.PBFT_VIEW_CHANGE, chain_id, self.statement)

    @cached_property
    def statement(self) -> bytes:
        """Hash of what is said: it is signed, and asked for again inside every new-view."""
        return _view_change_hash(self.body)


class Reproposal(Wire, frozen=True):
    """A pre-prepare inside a new-view: the block itself travels apart, by its hash."""

    ballot: Ballot
    """Names the block that is proposed again."""
    signature: SignatureBytes
    """By the new primary, as of a pre-prepare."""


class NewViewBody(Wire, frozen=True):
    """What opens a view."""

    set_id: UInt63
    """The validator set of the view."""
    view: UInt63
    """The view that opens."""
    view_changes: Annotated[tuple[ViewChange, ...], Meta(max_length=MAX_REPLICAS)]
    """The paper's V: a quorum, strictly increasing by replica."""
    proposals: Annotated[tuple[Reproposal, ...], Meta(max_length=MAX_WINDOW)]
    """The paper's O: exactly what `view_change.choose` makes of V."""


class NewView(Wire, frozen=True, tag="pbft.new_view", dict=True):
    """A signed `NewViewBody`."""

    body: NewViewBody
    """What is said."""
    signature: SignatureBytes
    """By the primary of the view, over the hash of the encoded body."""

    def signed_bytes(self, chain_id: bytes) -> bytes:
        """The bytes under the signature."""
        return new_view_bytes(self.body, chain_id)


class Status(Wire, frozen=True, tag="pbft.status"):
    """Where the sender is; sent on connection and while nothing moves."""

    set_id: UInt63
    """The validator set that it works with."""
    view: UInt63
    """Its view, or the one that it moves to."""
    active: bool
    """Whether it takes part in that view (False: it waits for the new-view)."""
    height: Height
    """Its last committed height."""


class FetchBlocks(Wire, frozen=True, tag="pbft.fetch_blocks"):
    """Asks for committed blocks."""

    first: Height
    """The lowest height wanted."""
    count: Annotated[int, Meta(ge=1, le=FETCH_BLOCKS)]
    """How many heights from there."""


class CertifiedBlock(Wire, frozen=True):
    """A block and the proof that it was committed."""

    block: Block
    """Header and transactions."""
    certificate: CommitCertificate
    """A quorum of commits for it."""


class CertifiedBlocks(Wire, frozen=True, tag="pbft.certified_blocks"):
    """The answer to `FetchBlocks`: as many as there are and fit."""

    first: Height
    """The `first` of the question."""
    blocks: Annotated[tuple[CertifiedBlock, ...], Meta(max_length=FETCH_BLOCKS)]
    """Consecutive from there, all of one set: fewer than asked, or none, where the sender has no more,
    or the set ends."""


class FetchBody(Wire, frozen=True, tag="pbft.fetch_body"):
    """Asks for a proposed block that a new view or a quorum of commits names."""

    height: Height
    """Where it is proposed."""
    block_hash: Hash32
    """Which block."""


class Body(Wire, frozen=True, tag="pbft.body"):
    """The answer to `FetchBody`; it carries no vote."""

    block: Block
    """The block."""


class FetchSnapshot(Wire, frozen=True, tag="pbft.fetch_snapshot"):
    """Asks for the newest certified state that the receiver can hand out, and the way to believe it."""

    set_id: UInt63
    """The newest validator set that the sender knows: proofs begin with its handover."""
    above: Height
    """The sender has this height already."""


class ProvenHandover(Wire, frozen=True):
    """The last block of a set, proved, and the set that it hands over to."""

    header: Header
    """The block's header: `next_set_hash` is the hash of `next_set`."""
    certificate: CommitCertificate
    """A quorum of commits of the old set."""
    next_set: ValidatorSet
    """Who finalises what follows."""


class Checkpoint(Wire, frozen=True):
    """A committed block from whose state another replica can go on."""

    block: Block
    """Its header holds the state's root."""
    certificate: CommitCertificate
    """A quorum of commits for it."""
    events: Annotated[tuple[bytes, ...], Meta(max_length=SNAPSHOT_EVENTS)]
    """The leaves under the header's event root."""


class Snapshot(Wire, frozen=True, tag="pbft.snapshot"):
    """The answer to `FetchSnapshot`: what proves a state; the state itself is asked for in parts."""

    handovers: Annotated[tuple[ProvenHandover, ...], Meta(max_length=SNAPSHOT_HANDOVERS)]
    """From the asker's newest set on, each certified by the set that the one before it names."""
    checkpoint: Checkpoint | None
    """Of the last of these sets; None if there is none above, or more handovers come first."""


class FetchPart(Wire, frozen=True, tag="pbft.fetch_part"):
    """Asks for what is below one place of the state after a checkpoint."""

    height: Height
    """Of the checkpoint."""
    prefix: Prefix
    """The place."""


class Part(Wire, frozen=True, tag="pbft.part"):
    """The answer to `FetchPart`."""

    height: Height
    """Of the question."""
    prefix: Prefix
    """Of the question."""
    part: StatePart
    """What is there; nothing at all if that checkpoint is not kept here any more."""


class Transactions(Wire, frozen=True, tag="pbft.transactions"):
    """What the sender's clients submitted; receivers do not pass it on."""

    transactions: Annotated[tuple[Transaction, ...], Meta(max_length=GOSSIP_TRANSACTIONS)]
    """Each signed by its own sender."""


Message: TypeAlias = (
    PrePrepare
    | Prepare
    | Commit
    | Suspect
    | ViewChange
    | NewView
    | Status
    | FetchBlocks
    | CertifiedBlocks
    | FetchBody
    | Body
    | FetchSnapshot
    | Snapshot
    | FetchPart
    | Part
    | Transactions
)
"""What a host decodes frames of this sub-protocol to."""


_OF_NO_SET: Final = frozenset((Transactions, Status))
"""The most frequent ones that are for everybody."""


def set_of(message: Wire) -> int | None:
    """The set whose members alone a message is for; None if it is for everybody."""
    if type(message) in _OF_NO_SET:
        return None
    match message:
        case Prepare(ballot=vote) | Commit(vote=vote):
            return vote.set_id
        case PrePrepare():
            return message.block.header.set_id
        case ViewChange(body=body) | NewView(body=body):
            return body.set_id
        case Suspect(set_id=set_id):
            return set_id
        case _:
            return None


# -- evidence --------------------------------------------------------------------------------------


class SignedVote(Wire, frozen=True):
    """One of two votes that contradict each other."""

    payload: bytes
    """The exact signed bytes."""
    signature: SignatureBytes
    """By the offender."""


class Equivocation(Wire, frozen=True, tag="pbft.equivocation"):
    """Two votes of one replica for one (set, view, height) and purpose, for different blocks."""

    offender: Index16
    """The voter's index in the set."""
    first: SignedVote
    """The vote that was seen first."""
    second: SignedVote
    """The vote that contradicts it."""


def view_change_bytes(body: ViewChangeBody, chain_id: bytes) -> bytes:
    """The bytes under a view-change's signature."""
    return signed_bytes(Domain.PBFT_VIEW_CHANGE, chain_id, _view_change_hash(body))


def _view_change_hash(body: ViewChangeBody) -> bytes:
    return sha256(b"view-change", encode(body))


def new_view_bytes(body: NewViewBody, chain_id: bytes) -> bytes:
    """The bytes under a new-view's signature."""
    return signed_bytes(Domain.PBFT_NEW_VIEW, chain_id, sha256(b"new-view", encode(body)))
