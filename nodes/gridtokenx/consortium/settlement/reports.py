"""Meter reports as they arrive: chunks until an interval is whole, then meters until it is final.

Law of the file: an interval is complete when all its chunks are here and hash to the root that each
of them names; nothing is settled from part of a report.
"""

from collections.abc import Iterator
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from gridtokenx.consortium.participants import MAX_RATING_W
from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.types import Hash32, Index16, Int64, PublicKey
from gridtokenx.interchain.apps.meter_report import MeterEntry, MeterReport, Quality
from gridtokenx.ledger.runtime import CallFailed
from gridtokenx.ledger.state import Map, State

MAX_ENTRY_WH: Final = 10 * MAX_RATING_W
"""100 MWh: what the greatest device moves in ten intervals at twice its rating, since an entry may
hold energy of earlier ones. Keeps every amount far inside 63 bits; what is more is not booked."""


class Arrival(Wire, frozen=True):
    """How much of an interval's report is here."""

    chunks: Annotated[int, Meta(ge=1, le=65_535)]
    received: Index16
    root: Hash32


class Chunk(Wire, frozen=True):
    """The entries of one chunk, as they came."""

    entries: tuple[MeterEntry, ...]


class Metered(Wire, frozen=True):
    """What one meter is settled on."""

    device: Hash32
    account: PublicKey
    """Its owner when the interval was first settled; corrections go to the same account."""
    zone: Index16
    net_wh: Int64
    """Feed-in less draw, as last corrected."""


def limited(entry: MeterEntry) -> MeterEntry:
    """What is booked of an entry: all, or `MAX_ENTRY_WH` and *bad*.

    A report is never refused for one meter's sake: refused packets are not repeated, and nobody's
    interval would be settled.
    """
    if max(entry.import_wh, entry.export_wh) <= MAX_ENTRY_WH:
        return entry
    return replace(
        entry,
        import_wh=min(entry.import_wh, MAX_ENTRY_WH),
        export_wh=min(entry.export_wh, MAX_ENTRY_WH),
        quality=Quality.BAD,
    )


class Reports:
    """The stores of reports, by interval."""

    def __init__(self) -> None:
        self._arrivals: Final = Map("settlement.arrival", Arrival)
        self._chunks: Final = Map("settlement.chunk", Chunk)
        self._metered: Final = Map("settlement.metered", tuple[Metered, ...])

    def take(self, state: State, report: MeterReport) -> None:
        """Keep one chunk.

        Raises:
            CallFailed: it contradicts the chunks before it, or repeats one.
        """
        first = Arrival(chunks=report.chunks, received=0, root=report.root)
        arrival = self._arrivals.read(state, first, report.interval)
        if (arrival.chunks, arrival.root) != (report.chunks, report.root):
            raise CallFailed("report-mismatch", "chunks of one interval differ in number or root")
        if self._chunks.has(state, report.interval, report.chunk):
            raise CallFailed("report-repeated", f"chunk {report.chunk} is here already")
        received = arrival.received + 1
        self._chunks.put(state, Chunk(report.entries), report.interval, report.chunk)
        self._arrivals.put(state, Arrival(arrival.chunks, received, arrival.root), report.interval)
        if received == report.chunks:
            entries = self.entries(state, report.interval)
            if merkle_root([encode(entry) for entry in entries]) != report.root:
                raise CallFailed("report-root", "the entries do not hash to the report's root")

    def is_complete(self, state: State, interval: int) -> bool:
        """Whether all chunks of an interval are here."""
        arrival = self._arrivals.get(state, interval)
        return arrival is not None and arrival.received == arrival.chunks

    def entries(self, state: State, interval: int) -> list[MeterEntry]:
        """All entries of an interval that are here, in report order."""
        return [entry for chunk in self._walk(state, interval) for entry in chunk.entries]

    def drop_chunks(self, state: State, interval: int) -> None:
        """Forget the chunks of an interval."""
        arrival = self._arrivals.get(state, interval)
        for index in range(arrival.chunks if arrival else 0):
            self._chunks.delete(state, interval, index)
        self._arrivals.delete(state, interval)

    def metered(self, state: State, interval: int) -> tuple[Metered, ...]:
        """What the meters of a settled interval are settled on."""
        return self._metered.read(state, (), interval)

    def keep_metered(self, state: State, interval: int, metered: tuple[Metered, ...]) -> None:
        """Remember them while the correction window is open; none to forget."""
        if metered:
            self._metered.put(state, metered, interval)
        else:
            self._metered.delete(state, interval)

    def _walk(self, state: State, interval: int) -> Iterator[Chunk]:
        arrival = self._arrivals.get(state, interval)
        for index in range(arrival.chunks if arrival else 0):
            chunk = self._chunks.get(state, interval, index)
            if chunk is not None:
                yield chunk
