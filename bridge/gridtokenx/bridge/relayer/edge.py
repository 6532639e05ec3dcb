"""What a relayer hears and what it asks for: the edge between the pure relayer and its driver.

==============  ========================================================================
heard           from
==============  ========================================================================
`Advanced`      a follower that verified a new final header
`ReadDone`      a follower that verified the proofs of what was read
`ReadFailed`    no node could answer
`HandedOver`    a follower, asked by `FetchHandover`
`Settled`       the driver, about a `Submit`
`Woke`          a timer, asked for by `WakeAt`
==============  ========================================================================

The driver trusts no node: a header reaches the relayer only with a finality proof that was
verified, a value only with a proof against such a header. What a relayer believes wrongly still
costs nobody but itself, because the chains verify everything again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gridtokenx.core.machine import Instant, Log
from gridtokenx.core.state_tree import StateProof
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.calls import RelayCall
from gridtokenx.interchain.clients import CertifiedHeader


@dataclass(frozen=True, slots=True)
class Proven:
    """A value of state, or its absence, with the proof."""

    value: bytes | None
    proof: StateProof


# -- heard -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Advanced:
    """A chain has a later final header."""

    chain: str
    certified: CertifiedHeader
    next_set: ValidatorSet | None
    """The set that it hands over to, if it does."""
    touched: bool
    """Whether any block since the last `Advanced` had interchain events."""


@dataclass(frozen=True, slots=True)
class ReadDone:
    """The answer to a `Read`."""

    token: int
    values: Mapping[bytes, Proven]
    """One for each key asked."""


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """No node answered a `Read`; the height may be too old by now."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The answer to a `FetchHandover`."""

    chain: str
    certified: CertifiedHeader
    """The header by which set `certified.header.set_id` ended."""
    next_set: ValidatorSet


@dataclass(frozen=True, slots=True)
class Settled:
    """How a `Submit` ended."""

    token: int
    height: int | None
    """Height of the final block that includes it; None if none ever will."""
    detail: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The time asked for by `WakeAt` has come."""


Heard = Advanced | ReadDone | ReadFailed | HandedOver | Settled | Woke


# -- asked -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """Read keys with proofs at exactly this final height; answered once."""

    chain: str
    token: int
    height: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FetchHandover:
    """Find the header that ended a validator set; asked again if it stays unanswered."""

    chain: str
    set_id: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Sign and send one transaction; answered once, by `Settled`."""

    chain: str
    token: int
    calls: tuple[RelayCall, ...]
    valid_until_ms: Instant
    """After it the transaction cannot be included any more, so it may be replaced."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Deliver `Woke` at this time; a later one replaces it."""

    at_ms: Instant


Asked = Read | FetchHandover | Submit | WakeAt | Log
