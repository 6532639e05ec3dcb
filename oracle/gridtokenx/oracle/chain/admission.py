"""Who may send what to the oracle chain, and how far each device's readings have come.

There are no fees here, so everything is for someone, and so much of it:

===========================  ======================================================================
who                          may send, by pool and block alike
===========================  ======================================================================
a registered, active device  one reading a transaction, `READINGS_PER_INTERVAL`; one that is stamped
                             ahead of time waits, and keeps its number, until its time has come
an oracle                    one observation a feed and round, in that round
an oracle                    decisions, up to a weight per window: see `relaying.py`
an enrolled relayer          relay calls, up to a weight per window: see `relaying.py`
===========================  ======================================================================

A device's readings are unique by sequence inside a window, in any order. An oracle's observations are
numbered apart from its decisions: rounds are small numbers, a person's are times of day.

The watermark of a device is kept here, where its sequence numbers are used up, because a reading
that fails (a register that runs backwards) is used up as well and must not be sent again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Millis, UInt63
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
from gridtokenx.oracle.chain import relayers, relaying
from gridtokenx.oracle.chain.feeds import SubmitObservation
from gridtokenx.oracle.chain.meters import SCHEDULE
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.chain.registry import device_by_key
from gridtokenx.oracle.chain.rounds import round_at
from gridtokenx.pbft.membership import DECISIONS

_DECISIONS: Final = (*DECISIONS, *relayers.CALLS)
READINGS_PER_INTERVAL: Final = 2 * RETAINED_BOUNDARIES
"""A meter sends one; after an outage, what it kept; twice that is a fault."""
PATIENCE_MS: Final = 60_000
"""How long, in network time, the pool keeps what comes too early."""


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
NEXT_ROUNDS: Final = Map("admission.next_round", int)
"""(oracle, feed) -> the first round of which it may still observe the feed."""


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
        clock: the map between block time and grid time.
        ahead_ms: how far ahead of block time, in network time, a reading's stamp may lie.
        feeds: what oracles may observe.
        is_oracle: whether a key may observe, as things stand.
        is_relayer: whether a key may relay, as things stand.
    """

    def __init__(
        self,
        clock: GridClock,
        ahead_ms: int,
        feeds: Sequence[FeedSpec],
        is_oracle: Callable[[State, bytes], bool],
        is_relayer: Callable[[State, bytes], bool],
    ) -> None:
        super().__init__(NoFee(self._gate))
        self._clock: Final = clock
        self._ahead_ms: Final = ahead_ms
        self._feeds: Final = {spec.feed: spec for spec in feeds}
        self._is_oracle: Final = is_oracle
        self._is_relayer: Final = is_relayer

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Whether it could be included now, or soon; see `Admission`."""
        if self.is_used(state, _numbered_by(body.sender, calls), body.nonce):
            raise InvalidTransaction("nonce-used", f"{body.nonce} was used, or is too old")
        self._fees.check(state, body, calls, weight)

    def ready(self, state: State, body: TransactionBody) -> bool:
        """Whether the very next block could include it: its time has come."""
        timed = tuple(_timed_calls(body))
        if self.is_used(state, _numbered_by(body.sender, timed), body.nonce):
            return False
        block_ms = SCHEDULE.get(state).block_ms
        return all(self._is_due(call, block_ms) for call in timed)

    def charge(
        self, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Use up the nonce and a piece of the quota."""
        self.check(ctx.state, body, calls, weight)
        for call in calls:
            if not self._is_due(call, ctx.timestamp_ms):
                raise InvalidTransaction("not-due", f"it is not for a block of {ctx.timestamp_ms}")
        self._use(ctx.state, _numbered_by(body.sender, calls), body.nonce)
        self._count(ctx.state, body, calls, weight)

    def _count(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        for call in calls:
            if isinstance(call, SubmitReading):
                self._note_reading(state, body, call)
            elif isinstance(call, SubmitObservation):
                NEXT_ROUNDS.put(state, call.round + 1, body.sender, call.feed)
            else:
                relaying.count(state, body.sender, weight)
                break

    def _note_reading(self, state: State, body: TransactionBody, call: SubmitReading) -> None:
        progress = PROGRESS.read(state, NO_PROGRESS, body.sender)
        interval = self._interval(state)
        progress = advance(progress, body.nonce, call.boundary_grid_ms, interval)
        PROGRESS.put(state, progress, body.sender)

    # -- who ---------------------------------------------------------------------------------------

    def _gate(self, state: State, sender: bytes, calls: Sequence[Wire]) -> None:
        if all(isinstance(call, RELAY_CALLS) for call in calls):
            _require(self._is_relayer(state, sender), "unknown-relayer", sender)
            relaying.check_quota(state, sender)
        elif all(isinstance(call, _DECISIONS) for call in calls):
            _require(self._is_oracle(state, sender), "not-an-oracle", sender)
            relaying.check_quota(state, sender)
        elif all(isinstance(call, SubmitObservation) for call in calls):
            _require(self._is_oracle(state, sender), "not-an-oracle", sender)
            self._check_observations(state, sender, calls)
        elif len(calls) == 1 and isinstance(calls[0], SubmitReading):
            device = device_by_key(state, sender)
            known = device is not None and device.registration.active
            _require(known, "unknown-device", sender)
            self._check_reading(state, sender, calls[0])
        else:
            raise InvalidTransaction(
                "mixed-calls",
                "a transaction holds one reading, observations, relay calls or decisions",
            )

    # -- how much ----------------------------------------------------------------------------------

    def _check_reading(self, state: State, sender: bytes, call: SubmitReading) -> None:
        progress = PROGRESS.read(state, NO_PROGRESS, sender)
        if progress.interval == self._interval(state) and progress.count >= READINGS_PER_INTERVAL:
            raise InvalidTransaction(
                "device-quota", f"{READINGS_PER_INTERVAL} readings in one interval"
            )
        if not self._is_due(call, SCHEDULE.get(state).block_ms + PATIENCE_MS):
            raise InvalidTransaction("premature", f"stamp {call.boundary_grid_ms}; send it later")

    def _check_observations(self, state: State, sender: bytes, calls: Sequence[Wire]) -> None:
        observations = [call for call in calls if isinstance(call, SubmitObservation)]
        if len({call.feed for call in observations}) < len(observations):
            raise InvalidTransaction("observed-already", "a feed occurs twice in a transaction")
        block_ms = SCHEDULE.get(state).block_ms
        for call in observations:
            spec = self._feeds.get(call.feed)
            if spec is None:
                raise InvalidTransaction(
                    "unknown-feed", f"{call.feed}; there are: {', '.join(self._feeds)}"
                )
            if call.round < NEXT_ROUNDS.read(state, 0, sender, call.feed):
                raise InvalidTransaction("observed-already", f"{call.feed}, round {call.round}")
            soonest = self._round(spec, block_ms)
            if not soonest <= call.round <= self._round(spec, block_ms + PATIENCE_MS):
                raise InvalidTransaction("round-not-open", f"round {call.round}; now {soonest}")

    # -- when --------------------------------------------------------------------------------------

    def _is_due(self, call: Wire, block_ms: int) -> bool:
        """Whether a block of this time may include a call."""
        if isinstance(call, SubmitReading):
            return call.boundary_grid_ms <= self._clock.grid_ms(block_ms + self._ahead_ms)
        if isinstance(call, SubmitObservation):
            spec = self._feeds.get(call.feed)
            return spec is not None and call.round == self._round(spec, block_ms)
        return True

    def _round(self, spec: FeedSpec, block_ms: int) -> int:
        return round_at(spec, self._clock.network_genesis_ms, block_ms)

    def _interval(self, state: State) -> int:
        """The interval of the last block's time, which pool and block know alike."""
        return interval_at(self._clock.grid_ms(SCHEDULE.get(state).block_ms))


def _numbered_by(sender: bytes, calls: Sequence[Wire]) -> bytes:
    """Under which name the nonces of a transaction count."""
    observes = any(isinstance(call, SubmitObservation) for call in calls)
    return sha256(b"observations of ", sender) if observes else sender


def _require(allowed: bool, reason: str, sender: bytes) -> None:  # noqa: FBT001 - the condition
    if not allowed:
        raise InvalidTransaction(reason, f"sender {sender.hex()}")


def _timed_calls(body: TransactionBody) -> Iterator[Wire]:
    """The calls of an admitted transaction that have their time; the others have none."""
    for raw in body.calls:
        for type_ in (SubmitReading, SubmitObservation):
            with suppress(Malformed):
                yield decode(raw, type_)
