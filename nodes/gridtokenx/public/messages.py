"""What public-chain validators say to each other, besides votes (`grandpa/messages.py`).

=================  =============  ==============================================================
message            to             when
=================  =============  ==============================================================
Status             all            something changed since the last tick, or a slot has passed
Status             a new peer     it connected
NewBlock           all            we authored a block
Transactions       all            a client submitted some here; one hop, never sent on
BranchRequest      one peer       it has, or votes need, a block that we lack
Branch             the asker      answer
FinalRequest       one peer       its final block is higher than ours, two ticks in a row
FinalBlocks        the asker      answer
Votes              all            we voted
VotesRequest       one peer       it holds votes that we lack
Votes              the asker      answer
CatchUpRequest     one peer       it is two or more rounds ahead
CatchUp            the asker      answer
=================  =============  ==============================================================

Own blocks and votes go to every neighbour at once. Everything else is asked for, from one peer,
after its status showed that it has what we lack: nobody is sent what he already holds.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Hash32, Height
from gridtokenx.finality.justifications import Justification
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.public.grandpa.messages import (
    CatchUp,
    CatchUpRequest,
    Standing,
    Votes,
    VotesRequest,
)
from gridtokenx.public.slots import SealedBlock

MAX_BLOCKS: Final = 128
"""Blocks in one answer."""
MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
"""An answer ends with the block that passes this size."""
MAX_TRANSACTIONS: Final = 1024
"""Transactions in one message."""

Blocks = Annotated[tuple[SealedBlock, ...], Meta(max_length=MAX_BLOCKS)]


class Status(Wire, frozen=True, tag="public.status"):
    """Where a node stands."""

    final_height: Height
    final_hash: Hash32
    best_height: Height
    best_hash: Hash32
    standing: Standing
    """Its current GRANDPA round and the votes that it holds of it."""


class NewBlock(Wire, frozen=True, tag="public.new_block"):
    """A block from its author."""

    block: SealedBlock


class Transactions(Wire, frozen=True, tag="public.transactions"):
    """Client transactions for the pools of others."""

    transactions: Annotated[
        tuple[Transaction, ...], Meta(min_length=1, max_length=MAX_TRANSACTIONS)
    ]


class BranchRequest(Wire, frozen=True, tag="public.branch_request"):
    """Asks for blocks on the way to a head that need not be final."""

    head: Hash32
    from_height: Height
    """The lowest block wanted."""


class Branch(Wire, frozen=True, tag="public.branch"):
    """Blocks on the way to a head, each the parent of the next."""

    head: Hash32
    """The head that was asked for."""
    blocks: Blocks
    """Empty if nothing at or above the height asked for lies on the way."""


class FinalRequest(Wire, frozen=True, tag="public.final_request"):
    """Asks for final blocks and a justification that covers them."""

    from_height: Height
    with_blocks: bool
    """False where only the justification is missing."""


class FinalBlocks(Wire, frozen=True, tag="public.final_blocks"):
    """Final blocks in order of height, and a justification for the last of them."""

    blocks: Blocks
    justification: Justification | None
    """None if it lies beyond this answer's limit: ask on from there."""


Message = (
    Status
    | NewBlock
    | Transactions
    | BranchRequest
    | Branch
    | FinalRequest
    | FinalBlocks
    | Votes
    | VotesRequest
    | CatchUpRequest
    | CatchUp
)
"""Everything that travels between public-chain validators; the transport decodes this union."""
