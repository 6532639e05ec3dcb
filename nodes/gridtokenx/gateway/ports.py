"""What the gateway needs of whoever follows a chain for it: verified blocks, proved state, a way in.

Law of the file: **a value of one of these types has been verified**: the header by a certificate or
justification, the events by the header's event root, the state by proofs under the header's state
root. What could not be verified has no type here; it is an `Unavailable` with a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.state_tree import StateProof
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.transactions import Transaction


class Unavailable(RemoteFault):
    """Nothing verified can be shown now; `reason` says whether nodes lie, lag or do not answer."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block that was taken of a chain: where belief goes on."""

    height: int
    block_hash: bytes
    validators: ValidatorSet
    """The set that finalises the next block."""


@dataclass(frozen=True, slots=True)
class VerifiedBlock:
    """A final block."""

    header: Header
    events: tuple[bytes, ...]
    """Encoded event records, complete and in order."""
    transactions: tuple[Transaction, ...] = ()
    """Complete and in order where the gateway asked for them (see `followed`); else empty."""
    next_set: ValidatorSet | None = None
    """The set that it hands over to, if it does."""


@dataclass(frozen=True, slots=True)
class ProvedValue:
    """What one key holds, and why."""

    value: bytes | None
    """None: the proof is one of absence."""
    proof: StateProof


@dataclass(frozen=True, slots=True)
class ProvedState:
    """Values of several keys under one final header."""

    header: Header
    finality: bytes
    """The encoded certificate or justification that makes the header final."""
    finality_height: int
    """The height that it names."""
    values: Mapping[bytes, ProvedValue]


class ChainSource(Protocol):
    """What may be asked of a chain at any time."""

    async def read(self, keys: Sequence[bytes]) -> ProvedState:
        """The newest final values of `keys`.

        Raises:
            Unavailable: no node gives a proof that holds, or all are far behind.
        """
        ...

    async def submit(self, transaction: Transaction) -> None:
        """Hand a signed transaction to nodes.

        Raises:
            Unavailable: no node can be reached.
            RemoteFault: the nodes refuse it, for this reason.
        """


class ForeignBlock(Unavailable):
    """A block that does not follow what was indexed: it, or the index, is of another history."""
