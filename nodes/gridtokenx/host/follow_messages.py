"""The follow protocol: what a client of a chain asks a node, and what the node answers.

==============  ============================================================  ====================
question        answer                                                        the client verifies
==============  ============================================================  ====================
GetStatus       Status                                                        nothing: hearsay
GetNewest       Newest: a header and its finality proof                       the proof
Follow          Followed: headers and events in order, the last one proven    proof, links, events
GetHandover     Handover: the header that ended a set, and the next set       proof, set's hash
GetBlocks       Blocks                                                        against known hashes
GetState        StateValues: values and proofs under one header               the proofs
Submit          Submitted: one result per transaction                         inclusion, later
(any)           Failed                                                        nothing
==============  ============================================================  ====================

A client asks any node and believes none. A question has a number of the client's choice, which the
answer carries; a node may answer out of order, because `Follow` waits for what is not there yet.
"""

from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.state_tree import StateProof
from gridtokenx.core.types import Hash32, Height, Millis, ShortText, Text, UInt63
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.transactions import Transaction

MAX_FOLLOWED: Final = 256
MAX_BLOCKS: Final = 64
MAX_KEYS: Final = 64
MAX_SUBMITTED: Final = 64
MAX_WAIT_MS: Final = 20_000
BUSY: Final = "busy"
"""Why a node that is well refuses a submission: it, or the chain, has too much to do just now."""

StateKey = Annotated[bytes, Meta(max_length=480)]


# -- questions -------------------------------------------------------------------------------------


class GetStatus(Wire, frozen=True, tag="follow.get_status"):
    """How is the node?"""


class GetNewest(Wire, frozen=True, tag="follow.get_newest"):
    """What is the newest header with a proof of finality?"""


class Follow(Wire, frozen=True, tag="follow.follow"):
    """What is final after a height? If nothing is, wait for it."""

    after: Height
    limit: Annotated[int, Meta(ge=1, le=MAX_FOLLOWED)]
    wait_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)]


class GetHandover(Wire, frozen=True, tag="follow.get_handover"):
    """Which header ended a validator set?"""

    set_id: UInt63


class GetBlocks(Wire, frozen=True, tag="follow.get_blocks"):
    """Which final blocks are at these heights?"""

    first: Height
    count: Annotated[int, Meta(ge=1, le=MAX_BLOCKS)]


class GetState(Wire, frozen=True, tag="follow.get_state"):
    """What does the state after a recent final block hold at these keys?"""

    height: Height
    keys: Annotated[tuple[StateKey, ...], Meta(min_length=1, max_length=MAX_KEYS)]


class Submit(Wire, frozen=True, tag="follow.submit"):
    """Please include these."""

    transactions: Annotated[tuple[Transaction, ...], Meta(min_length=1, max_length=MAX_SUBMITTED)]


Question: TypeAlias = GetStatus | GetNewest | Follow | GetHandover | GetBlocks | GetState | Submit


class Ask(Wire, frozen=True, tag="follow.ask"):
    """A numbered question."""

    number: UInt63
    question: Question


# -- answers ---------------------------------------------------------------------------------------


class Status(Wire, frozen=True, tag="follow.status"):
    """What the node says of itself; nobody has to believe it."""

    final_height: Height
    final_hash: Hash32
    final_timestamp_ms: Millis
    best_height: Height
    """The block that it would build on; the final one under PBFT."""
    round: UInt63
    """PBFT: the view. Public chain: the GRANDPA round."""
    leader: Annotated[bytes, Meta(max_length=32)]
    """Key of the current leader; empty where there is none or it is not known."""
    peers: UInt63
    """Members to which a link is up."""
    pending: UInt63
    """Submissions that wait for a block."""
    set_id: UInt63
    """The validator set that finalises the next block."""
    members: UInt63
    """How many members it has."""
    seated: bool
    """Whether the node has a seat in it; if not, it observes."""


class Newest(Wire, frozen=True, tag="follow.newest"):
    """The newest final header that has a proof of its own."""

    header: Header
    proof: FinalityProof


class FollowedBlock(Wire, frozen=True):
    """A header and the leaves under its event root."""

    header: Header
    events: tuple[bytes, ...]
    """Encoded `EventRecord`s."""


class Followed(Wire, frozen=True, tag="follow.followed"):
    """Consecutive blocks; empty if nothing became final in time."""

    blocks: Annotated[tuple[FollowedBlock, ...], Meta(max_length=MAX_FOLLOWED)]
    proof: FinalityProof | None
    """For the last block; None if the next proven block is beyond the limit of one answer."""
    next_set: ValidatorSet | None
    """Where the last block hands over to another set: that set."""


class Handover(Wire, frozen=True, tag="follow.handover"):
    """The header by which a set ended, its proof, and the set that followed."""

    header: Header
    proof: FinalityProof
    next_set: ValidatorSet


class Blocks(Wire, frozen=True, tag="follow.blocks"):
    """Consecutive blocks, from the first height asked; fewer than asked if they are large."""

    blocks: Annotated[tuple[Block, ...], Meta(max_length=MAX_BLOCKS)]


class ProvenValue(Wire, frozen=True):
    """A value and why it is in the state, or None and why nothing is."""

    value: bytes | None
    proof: StateProof


class StateValues(Wire, frozen=True, tag="follow.state_values"):
    """In the order of the keys asked."""

    height: Height
    values: Annotated[tuple[ProvenValue, ...], Meta(max_length=MAX_KEYS)]


class SubmitResult(Wire, frozen=True):
    """What became of one submission."""

    reason: ShortText
    """``ok``, or why it was refused."""
    detail: Text


class Submitted(Wire, frozen=True, tag="follow.submitted"):
    """In the order of the submissions. ``ok`` is a promise of nothing."""

    results: Annotated[tuple[SubmitResult, ...], Meta(max_length=MAX_SUBMITTED)]


class Failed(Wire, frozen=True, tag="follow.failed"):
    """The node cannot or will not answer."""

    reason: ShortText
    detail: Text


Reply: TypeAlias = Status | Newest | Followed | Handover | Blocks | StateValues | Submitted | Failed


class Answer(Wire, frozen=True, tag="follow.answer"):
    """The answer to the question of that number."""

    number: UInt63
    reply: Reply


OK: Final = SubmitResult(reason="ok", detail="")
