"""The contract between a protocol and whatever drives it.

A `Machine` is a protocol as a function: event and time in, effects out. It owns no clock, socket,
file, thread or source of randomness. The asyncio host and the simulator are two drivers of the same
machines; the order that a driver owes is written on each effect, and kept by `core/outbox.py`.

**The order a driver owes.** Effects of one machine form one queue. Nothing visible to others that a
step emits after a `Persist`, or that any later step emits, may leave before that `Persist` is
durable. A driver whose disk refuses a `Persist` stops the machine for good; it never retries.

**Signatures** are checked before `step`: `Machine.verification` names what must be checked, the
driver checks it (in batches, on a pool, or from a cache) and only then builds a `Verified`. A
machine's handlers take `Verified[...]`, so skipping the check does not type-check.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from gridtokenx.core.codec import Wire

Instant = int
"""Milliseconds of network time since the Unix epoch."""

NodeId = bytes
"""A node's identity key (32 bytes)."""

M_co = TypeVar("M_co", bound=Wire, covariant=True)


class _Record(msgspec.Struct, frozen=True):
    """Base of events and effects: a frozen dataclass in all but the time that it takes to make one.

    A node makes several for every message, and a frozen dataclass costs seven times as much.
    """


class SignatureCheck(_Record, frozen=True):
    """One signature that must hold before a message may enter a machine."""

    public_key: bytes
    message: bytes
    """The exact signed bytes (`core.keys.signed_bytes`)."""
    signature: bytes


class Unknown(_Record, frozen=True):
    """The keys cannot be named yet (a later validator set); the driver stashes, bounded."""

    reason: str


class Verified(_Record, Generic[M_co], frozen=True):
    """A message whose every signature was checked by the driver. Only drivers build it."""

    sender: NodeId
    """The authenticated peer that delivered it (not necessarily who signed it)."""
    message: M_co


# -- events ----------------------------------------------------------------------------------------


class Start(_Record, frozen=True):
    """The first event of a life: the machine was built or restored, timers may be set."""


class Received(_Record, frozen=True):
    """A peer's message, its signatures checked."""

    verified: Verified[Wire]


class TimerFired(_Record, frozen=True):
    """A timer that the machine had set, and not cancelled or replaced, is due."""

    name: Hashable


class Submitted(_Record, frozen=True):
    """Transactions from clients or intake, their signatures checked."""

    transactions: Sequence[Wire]
    everywhere: bool = False
    """Their source gives them to every member itself: they are passed on only if they wait."""


class PeerConnected(_Record, frozen=True):
    """A link to a peer is up; machines that gossip state summaries greet it."""

    peer: NodeId


Event = Start | Received | TimerFired | Submitted | PeerConnected


# -- effects ---------------------------------------------------------------------------------------


class Send(_Record, frozen=True):
    """Deliver to one peer, at most once, if a link is up. Held behind earlier `Persist`s."""

    to: NodeId
    message: Wire


class Broadcast(_Record, frozen=True):
    """`Send` to every peer of the machine's own network. Held behind earlier `Persist`s."""

    message: Wire


class SetTimer(_Record, frozen=True):
    """Fire `TimerFired(name)` at or after `at_ms`; setting a name again replaces it."""

    name: Hashable
    at_ms: Instant


class CancelTimer(_Record, frozen=True):
    """Forget a timer; one that is already queued must not be delivered."""

    name: Hashable


class Write(_Record, frozen=True):
    """One record of a table; `value` None deletes it."""

    table: str
    key: bytes
    value: bytes | None


class Persist(_Record, frozen=True):
    """Make all writes durable as one atomic batch, before anything visible that follows."""

    writes: tuple[Write, ...]


class Committed(_Record, frozen=True):
    """A block is final and durable. Held behind earlier `Persist`s; subscribers hear of it now."""

    height: int
    value: object
    """The chain's own record of it: an `ExecutedBlock`."""


class Misbehaviour(_Record, frozen=True):
    """Proof that a peer broke the protocol; reported, and kept by the host."""

    offender: NodeId
    kind: str
    evidence: Wire


class Reject(_Record, frozen=True):
    """A peer's input was refused: counted by reason; repeated ones disconnect and ban."""

    peer: NodeId
    reason: str
    detail: str = ""


class Log(_Record, frozen=True):
    """Something an operator may want to read; `level` is debug, info, warning or error."""

    level: str
    event: str
    fields: Mapping[str, object] = msgspec.field(default_factory=dict)


Effect = (
    Send | Broadcast | SetTimer | CancelTimer | Persist | Committed | Misbehaviour | Reject | Log
)
Visible = Send | Broadcast | Committed | Misbehaviour
"""Effects that others can see: they wait behind every earlier `Persist`."""


class Reader(Protocol):
    """What the machine itself has persisted: readable synchronously by machines and hosts."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The last value written, or None."""
        ...

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All records of a table whose key starts with `prefix`, in key order."""
        ...


class Machine(Protocol):
    """A protocol. See the head of this file for the law."""

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """What must verify before `message` may enter `step`.

        Asked when the turn of a message comes, and again if checking took several turns: what was
        stepped meanwhile may change what it stands on.

        Raises:
            RemoteFault: no key could ever make this message valid.
        """
        ...

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """Take one event; never raises on input from outside."""
        ...
