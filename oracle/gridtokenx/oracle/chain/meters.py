"""Readings in, closed intervals out.

Law of the file: **a reading is its device's own transaction**, so nobody can forge or alter one; and
**an interval closes by block time alone**, so nobody can hold one up. What the registers say is
booked by `booking.py`; this module checks stamps and keys, decides when an interval closes, and
sends what closed on its way.

====================  ==============================================================================
end of block          what happens
====================  ==============================================================================
time >= end + grace   the next interval begins to close: its devices' books, `DEVICES_PER_BLOCK` a
                      block; when all are done, the report leaves in chunks, and the generation that
                      has become final leaves as attestations
chain was silent      for longer than `silence_ms`: closing waits for one more grace, in which meters
                      send what they kept
====================  ==============================================================================

Intervals close in order, one after the other; a chain that was stopped catches up a few per block.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, Protocol

from msgspec import Meta
from msgspec.structs import replace

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.gridtime import INTERVAL_MS, GridClock, interval_at, interval_start_ms
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.types import Hash32, Millis, UInt63
from gridtokenx.interchain.apps import attestation, meter_report
from gridtokenx.interchain.apps.attestation import GenerationAttestation, GenerationAttestations
from gridtokenx.interchain.apps.meter_report import MeterEntry, MeterReport, Quality
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.readings import FLAG_CLOCK_UNCERTAIN, SubmitReading
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Cell, Log, Map, State
from gridtokenx.oracle.chain.booking import EMPTY, Book, Booked, check_book, close, take
from gridtokenx.oracle.chain.parameters import MeterParameters
from gridtokenx.oracle.chain.registers import Point
from gridtokenx.oracle.chain.registry import DEVICES, ORDER, Device, device_by_key, walk_devices

READING_WEIGHT: Final = 150
"""A thousand readings, a transaction each, fill a block: about 0.2 s of work to build it (200 us each),
as much again to execute it, well below the time after which a leader is given up, on a machine that several share."""
DEVICES_PER_BLOCK: Final = 1_024
"""Books that one block closes: bounds the work of a block in a large network."""
INTERVALS_PER_BLOCK: Final = 4
"""Intervals that one block closes when the chain lags behind."""
OUTCOMES_KEPT: Final = 96
"""Closed intervals whose outcome stays in state; older ones are in the blocks that closed them."""
METERED: Final = (DeviceKind.METER, DeviceKind.SOLAR)
"""Kinds whose energy is reported. Storage is behind its meter, and grid sensors are no account's."""


class Meter(Wire, frozen=True):
    """One device's book, and where its generation went."""

    book: Book
    attested_wh: UInt63
    """Generation for which attestations have left."""
    withheld_wh: UInt63
    """Final generation of *bad* quality: never attested."""


NEW_METER: Final = Meter(EMPTY, 0, 0)


class Schedule(Wire, frozen=True):
    """How far closing has come."""

    interval: UInt63
    """The interval that closes next, or is closing."""
    position: UInt63
    """Devices of it that are done."""
    block_ms: Millis
    """Time of the last block."""
    hold_until_ms: Millis
    """No interval begins to close before this time."""


class Outcome(Wire, frozen=True):
    """A closed interval."""

    interval: UInt63
    root: Hash32
    """RFC 6962 root over the encodings of its report's entries, in report order."""
    entries: UInt63
    """Leaves under the root: own entries and corrections."""
    meters: UInt63
    """Devices with an entry of their own."""
    import_wh: UInt63
    export_wh: UInt63
    generation_wh: UInt63
    substituted: UInt63
    """Devices whose energy is an estimate."""
    corrections: UInt63
    """Entries that correct earlier intervals."""
    attested_wh: UInt63
    """Generation of earlier intervals that became final and was attested."""
    closed_ms: Millis
    """Block time of closing."""


class IntervalClosed(Wire, frozen=True, tag="meters.interval_closed"):
    """An interval closed, and its report left."""

    outcome: Outcome


class PacketSender(Protocol):
    """What this module needs of the way out."""

    def post(self, ctx: Context, client_id: str, port: str, payload: bytes) -> None:
        """Send a packet, at once or as soon as it can be sent."""


class _Staged(Wire, frozen=True):
    """What one block contributed to an interval that takes several."""

    entries: Annotated[tuple[MeterEntry, ...], Meta(max_length=8 * DEVICES_PER_BLOCK)]
    attestations: Annotated[
        tuple[GenerationAttestation, ...], Meta(max_length=8 * DEVICES_PER_BLOCK)
    ]


METERS: Final = Map("meters.meter", Meter)
"""(device id) -> its book."""
OUTCOMES: Final = Map("meters.outcome", Outcome)
"""(interval) -> what closed, for the newest `OUTCOMES_KEPT` intervals."""
SCHEDULE: Final = Cell("meters.schedule", Schedule, Schedule(0, 0, 0, 0))
STAGED: Final = Log("meters.staged", _Staged)


def last_closed(state: State) -> Outcome | None:
    """The newest closed interval; None before the first."""
    interval = SCHEDULE.get(state).interval
    return OUTCOMES.get(state, interval - 1) if interval else None


def book_of(state: State, device: bytes) -> Book:
    """A device's book; an empty one before its first reading."""
    return METERS.read(state, NEW_METER, device).book


class Meters(Module):
    """See the head of the file.

    Args:
        clock: the map from block time to grid time.
        parameters: windows and limits.
        packets: where reports and attestations leave.
        consortium: our client of the consortium chain, for reports.
        public: our client of the public chain, for attestations.
    """

    name = "meters"
    events = (IntervalClosed,)

    def __init__(
        self,
        clock: GridClock,
        parameters: MeterParameters,
        packets: PacketSender,
        consortium: str,
        public: str,
    ) -> None:
        self._clock: Final = clock
        self._parameters: Final = parameters
        self._packets: Final = packets
        self._consortium: Final = consortium
        self._public: Final = public

    def genesis(self, ctx: Context) -> None:
        """The first interval is the one that genesis lies in."""
        first = interval_at(self._clock.grid_ms(ctx.timestamp_ms))
        SCHEDULE.put(ctx.state, Schedule(first, 0, ctx.timestamp_ms, 0))

    # -- readings ----------------------------------------------------------------------------------

    @handles(SubmitReading, weight=READING_WEIGHT)
    def submit_reading(self, ctx: Context, call: SubmitReading) -> None:
        """Take the registers of the device that signed."""
        device = device_by_key(ctx.state, ctx.sender)
        if device is None or not device.registration.active:
            raise CallFailed("unknown-device", f"no active device has key {ctx.sender.hex()}")
        point = self._point(call)
        registration = device.registration
        if point.boundary < device.since:
            raise CallFailed("before-registration", f"energy counts from interval {device.since}")
        if registration.kind not in METERED:
            return  # telemetry: the block that holds it is its record
        meter = METERS.read(ctx.state, NEW_METER, registration.device)
        try:
            book = take(meter.book, point, registration.rating_w)
        except RemoteFault as fault:
            raise CallFailed(fault.reason, fault.detail) from None
        if book is not meter.book:
            METERS.put(ctx.state, replace(meter, book=book), registration.device)

    def _point(self, call: SubmitReading) -> Point:
        """The boundary that a stamp is about."""
        parameters, stamp_ms = self._parameters, call.boundary_grid_ms
        boundary = interval_at(stamp_ms + INTERVAL_MS // 2)
        skew_ms = abs(stamp_ms - interval_start_ms(boundary))
        if skew_ms > parameters.boundary_limit_grid_ms:
            raise CallFailed("off-boundary", f"{skew_ms} ms of grid time from boundary {boundary}")
        uncertain = FLAG_CLOCK_UNCERTAIN if skew_ms > parameters.boundary_skew_grid_ms else 0
        return Point(boundary, call.import_wh, call.export_wh, call.flags | uncertain)

    # -- closing -----------------------------------------------------------------------------------

    def end_block(self, ctx: Context) -> None:
        """Close what is due, a bounded part of it."""
        schedule = self._held(ctx, SCHEDULE.get(ctx.state))
        budget = DEVICES_PER_BLOCK
        for _ in range(INTERVALS_PER_BLOCK):
            if budget <= 0 or not (schedule.position or self._is_due(ctx, schedule)):
                break
            count = ORDER.length(ctx.state)
            stop = min(schedule.position + budget, count)
            budget -= stop - schedule.position
            schedule = self._close_some(ctx, schedule, stop, last=stop == count)
        SCHEDULE.put(ctx.state, schedule)

    def _held(self, ctx: Context, schedule: Schedule) -> Schedule:
        """After a silence of the chain, wait one grace; but never twice in a row."""
        silent_ms = ctx.timestamp_ms - schedule.block_ms
        was_held = schedule.hold_until_ms > schedule.block_ms
        hold_until_ms = schedule.hold_until_ms
        if silent_ms > self._parameters.silence_ms and not was_held:
            hold_until_ms = ctx.timestamp_ms + self._parameters.grace_ms
        return replace(schedule, block_ms=ctx.timestamp_ms, hold_until_ms=hold_until_ms)

    def _is_due(self, ctx: Context, schedule: Schedule) -> bool:
        end_ms = self._clock.network_ms(interval_start_ms(schedule.interval + 1))
        due_ms = max(end_ms + self._parameters.grace_ms, schedule.hold_until_ms)
        return ctx.timestamp_ms >= due_ms

    def _close_some(self, ctx: Context, schedule: Schedule, stop: int, *, last: bool) -> Schedule:
        state = ctx.state
        entries: list[MeterEntry] = []
        attestations: list[GenerationAttestation] = []
        for device in walk_devices(state, schedule.position, stop):
            if self._counts(device, schedule.interval):
                self._close_device(state, device, schedule.interval, entries, attestations)
        if not last:
            STAGED.append(state, _Staged(tuple(entries), tuple(attestations)))
            return replace(schedule, position=stop)
        for staged in STAGED.walk(state):
            entries += staged.entries
            attestations += staged.attestations
        STAGED.clear(state)
        self._finish(ctx, schedule.interval, entries, attestations)
        return replace(schedule, interval=schedule.interval + 1, position=0)

    def _counts(self, device: Device, interval: int) -> bool:
        """Whether a device has an entry in an interval: withdrawn ones until all theirs is final."""
        if device.registration.kind not in METERED or interval < device.since:
            return False
        return device.until is None or interval <= device.until + self._parameters.correction_window

    def _close_device(
        self,
        state: State,
        device: Device,
        interval: int,
        entries: list[MeterEntry],
        attestations: list[GenerationAttestation],
    ) -> None:
        registration = device.registration
        meter = METERS.read(state, NEW_METER, registration.device)
        window = self._parameters.correction_window
        closing = close(meter.book, interval, registration.rating_w, window)
        entries += (_entry(device, booked, interval) for booked in closing.reports)
        meter = replace(meter, book=closing.book)
        if registration.kind is DeviceKind.SOLAR:
            meter = _attest(meter, device, closing.final, attestations)
        METERS.put(state, meter, registration.device)

    def _finish(
        self,
        ctx: Context,
        interval: int,
        entries: list[MeterEntry],
        attestations: list[GenerationAttestation],
    ) -> None:
        chunks = meter_report.chunk_entries(entries, interval)
        root = merkle_root([encode(entry) for chunk in chunks for entry in chunk])
        for index, chunk in enumerate(chunks):
            report = MeterReport(
                interval=interval, chunk=index, chunks=len(chunks), root=root, entries=chunk
            )
            payload = meter_report.encode_report(report)
            self._packets.post(ctx, self._consortium, meter_report.PORT, payload)
        for batch in _batches(attestations):
            payload = attestation.encode_attestations(batch)
            self._packets.post(ctx, self._public, attestation.PORT, payload)
        attested_wh = sum(each.energy_wh for each in attestations)
        outcome = _outcome(interval, root, entries, attested_wh, ctx.timestamp_ms)
        OUTCOMES.put(ctx.state, outcome, interval)
        OUTCOMES.delete(ctx.state, interval - OUTCOMES_KEPT)
        ctx.emit(IntervalClosed(outcome=outcome))

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Reports add up to registers; every final Wh of generation was attested once or withheld."""
        for key, meter in METERS.scan(state):
            device = DEVICES.get(state, key[1:])
            name = key[1:].hex()[:16]
            if device is None:
                yield f"{name}: readings of a device that is not registered"
                continue
            if (wrong := check_book(meter.book)) is not None:
                yield f"{name}: {wrong}"
            solar = device.registration.kind is DeviceKind.SOLAR
            final_wh = meter.book.final.export_wh if solar else 0
            if meter.attested_wh + meter.withheld_wh != final_wh:
                yield (
                    f"{name}: attested {meter.attested_wh} + withheld {meter.withheld_wh} Wh, "
                    f"but {final_wh} Wh are final"
                )


def _entry(device: Device, booked: Booked, interval: int) -> MeterEntry:
    """The report's line: a generation sub-meter has generation, a revenue meter the rest."""
    solar = device.registration.kind is DeviceKind.SOLAR
    return MeterEntry(
        device=device.registration.device,
        import_wh=0 if solar else booked.energy.import_wh,
        export_wh=0 if solar else booked.energy.export_wh,
        generation_wh=booked.energy.export_wh if solar else None,
        quality=booked.quality,
        corrects=None if booked.interval == interval else booked.interval,
    )


def _attest(
    meter: Meter, device: Device, final: Sequence[Booked], into: list[GenerationAttestation]
) -> Meter:
    """Attest what has become final, unless its registers are not believable."""
    registration = device.registration
    for booked in final:
        energy_wh = booked.energy.export_wh
        if energy_wh == 0:
            continue
        if booked.quality is Quality.BAD:
            meter = replace(meter, withheld_wh=meter.withheld_wh + energy_wh)
            continue
        meter = replace(meter, attested_wh=meter.attested_wh + energy_wh)
        into.append(
            GenerationAttestation(
                device=registration.device,
                interval=booked.interval,
                energy_wh=energy_wh,
                owner=registration.owner,
                zone=registration.zone,
                source=attestation.SOLAR,
            )
        )
    return meter


def _batches(attestations: Iterable[GenerationAttestation]) -> Iterator[GenerationAttestations]:
    ordered = sorted(attestations, key=lambda each: (each.device, each.interval))
    for cut in range(0, len(ordered), attestation.MAX_ATTESTATIONS):
        batch = tuple(ordered[cut : cut + attestation.MAX_ATTESTATIONS])
        yield GenerationAttestations(attestations=batch)


def _outcome(
    interval: int,
    root: bytes,
    entries: Sequence[MeterEntry],
    attested_wh: int,
    closed_ms: int,
) -> Outcome:
    own = [entry for entry in entries if entry.corrects is None]
    return Outcome(
        interval=interval,
        root=root,
        entries=len(entries),
        meters=len(own),
        import_wh=sum(entry.import_wh for entry in own),
        export_wh=sum(entry.export_wh for entry in own),
        generation_wh=sum(entry.generation_wh or 0 for entry in own),
        substituted=sum(entry.quality is Quality.SUBSTITUTED for entry in own),
        corrections=len(entries) - len(own),
        attested_wh=attested_wh,
        closed_ms=closed_ms,
    )
