"""Blocks: a header that proves its own state, and the transactions that led there.

The state root in a header is the root *after* the block, because proposals are executed before
they are voted on: a certified header is at once a proof base for its own outcome.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.lazy import lazy
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.types import Blob, Hash32, Height, Index16, Millis, UInt63
from gridtokenx.ledger.transactions import Transaction

PROTOCOL_VERSION: Final = 2
MAX_BLOCK_TRANSACTIONS: Final = 10_000
MAX_BLOCK_BYTES: Final = 4 * 1024 * 1024
NO_PARENT: Final = bytes(32)


class Header(Wire, frozen=True, dict=True):
    """Everything that a light client needs to know of a block."""

    version: Index16
    """Protocol and ledger version."""
    chain_id: Hash32
    height: Height
    """Genesis is 0."""
    round: UInt63
    """PBFT: the view of first proposal. Public chain: the slot."""
    parent: Hash32
    """Hash of the parent's header; zero for genesis."""
    timestamp_ms: Millis
    """Network time; strictly above the parent's."""
    transaction_root: Hash32
    """RFC 6962 root of the encoded transactions."""
    state_root: Hash32
    """Root of the state tree after this block."""
    event_root: Hash32
    """RFC 6962 root of the encoded event records."""
    set_id: UInt63
    """The validator set that finalises this block."""
    next_set_hash: Hash32
    """Hash of the set that finalises the next block; differs from this one's only at a handover."""
    digest: Annotated[bytes, Meta(max_length=256)]
    """Consensus-specific: the public chain's slot claim; empty under PBFT."""

    @lazy
    def hash(self) -> bytes:
        """The block's identity."""
        return sha256(b"header", encode(self))


class Block(Wire, frozen=True, dict=True):
    """A header and its transactions."""

    header: Header
    transactions: Annotated[tuple[Transaction, ...], Meta(max_length=MAX_BLOCK_TRANSACTIONS)]

    @lazy
    def transaction_root(self) -> bytes:
        """The root of its transactions, which the header must carry."""
        return transaction_root(self.transactions)

    @property
    def hash(self) -> bytes:
        """The header's hash."""
        return self.header.hash

    @property
    def height(self) -> int:
        """The header's height."""
        return self.header.height


class EventRecord(Wire, frozen=True):
    """One event of a block, a leaf of its event tree."""

    origin: UInt63
    """0: a block hook; n: the transaction at position n - 1."""
    data: Blob
    """The canonical encoding of one tagged event struct."""


def transaction_root(transactions: tuple[Transaction, ...]) -> bytes:
    """The root that a header must carry for these transactions."""
    return merkle_root([transaction.encoded for transaction in transactions])
