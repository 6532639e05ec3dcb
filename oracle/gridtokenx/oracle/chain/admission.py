"""Who may send what to the oracle chain, and how far each device's readings have come.

There are no fees here, so everything is for someone: readings for registered devices, observations
and decisions for oracles, interchain calls for enrolled relayers. A device's readings are unique by sequence inside
a window, in any order; a quota per interval bounds what a broken device can cost.

The watermark of a device is kept here, where its sequence numbers are used up, because a reading
that fails (a register that runs backwards) is used up as well and must not be sent again.
"""

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.types import Millis, PublicKey, UInt63
from gridtokenx.interchain import council
from gridtokenx.interchain.calls import RELAY_CALLS
from gridtokenx.ledger.admission import NoFee, WindowNonce
from gridtokenx.ledger.readings import (
    FIRST_SEQUENCE,
    RETAINED_BOUNDARIES,
    SubmitReading,
    Watermark,
)
from gridtokenx.ledger.runtime import Context, InvalidTransaction
from gridtokenx.ledger.state import Map, State
from gridtokenx.ledger.transactions import TransactionBody
from gridtokenx.oracle.chain.feeds import SubmitObservation
from gridtokenx.oracle.chain.meters import SCHEDULE
from gridtokenx.oracle.chain.registry import device_by_key

READINGS_PER_INTERVAL: Final = 2 * RETAINED_BOUNDARIES
"""A meter sends one; after an outage, what it kept; twice that is a fault."""


class Committed(Wire, frozen=True):
    """One reading that is committed while an earlier one is not."""

    sequence: UInt63
    boundary_grid_ms: Millis


class Progress(Wire, frozen=True):
    """How far the readings of one key have come."""

    sequence: UInt63
    """All up to this one are committed, or were given up by their device."""
    boundary_grid_ms: Millis
    """The stamp of the last of them."""
    ahead: Annotated[tuple[Committed, ...], Meta(max_length=RETAINED_BOUNDARIES)]
    """Those beyond, ascending."""
    interval: UInt63
    """The interval of block time that `count` is about."""
    count: UInt63
    """Readings included in it."""


NO_PROGRESS: Final = Progress(FIRST_SEQUENCE - 1, 0, (), 0, 0)
PROGRESS: Final = Map("admission.progress", Progress)
"""(device key) -> how far its readings have come."""


def watermark(state: State, public_key: bytes) -> Watermark:
    """Up to which sequence the readings signed by a key need not be sent again."""
    progress = PROGRESS.read(state, NO_PROGRESS, public_key)
    return Watermark(
        device=public_key,
        sequence=progress.sequence,
        boundary_grid_ms=progress.boundary_grid_ms,
    )


def advance(progress: Progress, sequence: int, boundary_grid_ms: int, interval: int) -> Progress:
    """One more reading is committed.

    A device keeps its last `RETAINED_BOUNDARIES` readings. A gap that is older will never be filled,
    so it is passed over: otherwise the device would send everything after it for ever.
    """
    ahead = {each.sequence: each.boundary_grid_ms for each in progress.ahead}
    ahead[sequence] = boundary_grid_ms
    reached = max(progress.sequence, max(ahead) - RETAINED_BOUNDARIES)
    while reached + 1 in ahead:
        reached += 1
    passed = [each for each in sorted(ahead) if progress.sequence < each <= reached]
    boundary = ahead[passed[-1]] if passed else progress.boundary_grid_ms
    rest = tuple(Committed(each, ahead[each]) for each in sorted(ahead) if each > reached)
    count = progress.count + 1 if interval == progress.interval else 1
    return Progress(reached, boundary, rest, interval, count)


class OracleAdmission(WindowNonce):
    """See the head of the file.

    Args:
        clock: the map from block time to grid time, for the quota.
        oracles: keys that may observe.
        relayers: keys that may relay.
    """

    def __init__(
        self, clock: GridClock, oracles: Sequence[PublicKey], relayers: Sequence[PublicKey]
    ) -> None:
        super().__init__(NoFee(self._gate))
        self._clock: Final = clock
        self._oracles: Final = frozenset(oracles)
        self._relayers: Final = frozenset(relayers)

    def charge(
        self, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Use up the nonce; of a reading, also note how far its device has come."""
        super().charge(ctx, body, calls, weight)
        call = calls[0]
        if isinstance(call, SubmitReading):
            interval = self._interval(ctx.state)
            progress = PROGRESS.read(ctx.state, NO_PROGRESS, body.sender)
            progress = advance(progress, body.nonce, call.boundary_grid_ms, interval)
            PROGRESS.put(ctx.state, progress, body.sender)

    def _gate(self, state: State, sender: bytes, calls: Sequence[Wire]) -> None:
        if all(isinstance(call, RELAY_CALLS) for call in calls):
            _require(sender in self._relayers, "unknown-relayer", sender)
        elif all(isinstance(call, (SubmitObservation, *council.CALLS)) for call in calls):
            _require(sender in self._oracles, "not-an-oracle", sender)
        elif len(calls) == 1 and isinstance(calls[0], SubmitReading):
            device = device_by_key(state, sender)
            known = device is not None and device.registration.active
            _require(known, "unknown-device", sender)
            self._check_quota(state, sender)
        else:
            raise InvalidTransaction(
                "mixed-calls", "a transaction holds one reading, or observations, or relay calls"
            )

    def _check_quota(self, state: State, sender: bytes) -> None:
        progress = PROGRESS.read(state, NO_PROGRESS, sender)
        if progress.interval == self._interval(state) and progress.count >= READINGS_PER_INTERVAL:
            raise InvalidTransaction(
                "device-quota", f"{READINGS_PER_INTERVAL} readings in one interval"
            )

    def _interval(self, state: State) -> int:
        """The interval of the last block's time, which pool and block know alike."""
        return interval_at(self._clock.grid_ms(SCHEDULE.get(state).block_ms))


def _require(allowed: bool, reason: str, sender: bytes) -> None:  # noqa: FBT001 - the condition
    if not allowed:
        raise InvalidTransaction(reason, f"sender {sender.hex()}")
