"""Port ``meter-report``: metered energy, from the oracle chain to the consortium chain.

An interval closes on the oracle chain and leaves it as one or more chunks; all chunks of one
interval carry the same Merkle root of its readings. Settlement of an interval proceeds when every
chunk 0 .. chunks-1 has arrived; packets have no order, so chunks may arrive in any.

A correction is a line of a *later* report that names the interval it corrects. It states the whole
new energy of that interval, never a difference: the receiver books new minus old as a new line.
"""

import itertools
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.types import Hash32, Index16, UInt63

PORT: Final = "meter-report"
MAX_ENTRIES: Final = 256
"""Meters in one chunk: about 20 KiB, a third of a packet."""


class Quality(IntEnum):
    """How an energy value came about, best first."""

    GOOD = 0
    """The difference of two signed registers at the interval's boundaries."""
    UNCERTAIN = 1
    """Registers stamped outside the allowed skew."""
    BAD = 2
    """Registers that contradict each other; the value is the best lower bound."""
    SUBSTITUTED = 3
    """An estimate, because a boundary register is missing; a correction may follow."""


class MeterEntry(Wire, frozen=True):
    """The energy of one meter in one interval."""

    device: Hash32
    """Device id of the meter (`registry.DeviceRegistration.device`)."""
    import_wh: UInt63
    """Drawn from the grid, Wh (difference of OBIS 1.8.0)."""
    export_wh: UInt63
    """Fed into the grid, Wh (difference of OBIS 2.8.0)."""
    generation_wh: UInt63 | None
    """Wh of the generation sub-meter; None where the device has none."""
    quality: Quality
    corrects: UInt63 | None
    """The earlier interval whose entry this replaces; None for the report's own interval."""


class MeterReport(Wire, frozen=True, tag="meter-report.report"):
    """One chunk of one closed interval."""

    interval: UInt63
    """The interval that closed: UTC index, grid time // 30 min."""
    chunk: Index16
    """Position of this chunk, from 0."""
    chunks: Annotated[int, Meta(ge=1, le=65_535)]
    """How many chunks the interval has."""
    root: Hash32
    """RFC 6962 root over the encodings of the interval's entries, all chunks in order."""
    entries: Annotated[tuple[MeterEntry, ...], Meta(max_length=MAX_ENTRIES)]
    """Ascending by (device, corrected or own interval), without repetition."""


def chunk_entries(entries: Sequence[MeterEntry], interval: int) -> list[tuple[MeterEntry, ...]]:
    """Entries in report order, cut into chunks; an interval without meters has one empty chunk."""
    ordered = sorted(entries, key=lambda entry: _order(entry, interval))
    cuts = range(0, len(ordered), MAX_ENTRIES)
    return [tuple(ordered[cut : cut + MAX_ENTRIES]) for cut in cuts] or [()]


def encode_report(report: MeterReport) -> bytes:
    """The packet payload of a report."""
    return encode(report)


def decode_report(payload: bytes) -> MeterReport:
    """The report inside a packet payload.

    Raises:
        Malformed: not a report, or one that breaks a rule stated on its fields.
    """
    report = decode(payload, MeterReport)
    if report.chunk >= report.chunks:
        raise Malformed(f"chunk {report.chunk} of {report.chunks}")
    keys = [_order(entry, report.interval) for entry in report.entries]
    if any(later <= earlier for earlier, later in itertools.pairwise(keys)):
        raise Malformed("report entries are not in ascending order, or repeat")
    if any(e.corrects is not None and e.corrects >= report.interval for e in report.entries):
        raise Malformed("a report corrects an interval that is not earlier than its own")
    return report


def _order(entry: MeterEntry, interval: int) -> tuple[bytes, int]:
    return entry.device, interval if entry.corrects is None else entry.corrects
