"""What a household must not lose: its state and the readings that its devices signed.

Law of the file: **a reading is durable before anyone sees it**, together with the state that it was
taken from. So after a crash at any instant a sequence number goes on where it stopped, and the same
number never stands under two contents.

The file is a row of records, each its length (4 bytes), a `BoundaryRecord`, and 16 bytes of SHA-256
over both. The last one may be cut short by a crash: then it was never published, and is removed.
Any other damage is refused, because going on without those records could sign a number twice.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import LocalFault, Malformed
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Blob, Millis, PublicKey, UInt63
from gridtokenx.devices.models.household import HouseholdState
from gridtokenx.host.files import read_file, write_file
from gridtokenx.ledger.readings import RETAINED_BOUNDARIES

COMPACT_AT: Final = 3 * RETAINED_BOUNDARIES
"""Records after which a journal is rewritten with the last `RETAINED_BOUNDARIES`."""
_LENGTH_BYTES: Final = 4
_CHECK_BYTES: Final = 16
_MAX_RECORD_BYTES: Final = 16 * 1024


class SignedReading(Wire, frozen=True):
    """One reading as it goes out."""

    device: PublicKey
    sequence: UInt63
    boundary_grid_ms: Millis
    transaction: Blob
    """The canonical bytes of the oracle chain's transaction."""


class BoundaryRecord(Wire, frozen=True):
    """A household at one interval boundary."""

    state: HouseholdState
    readings: Annotated[tuple[SignedReading, ...], Meta(max_length=8)]
    """One per device."""


class Journal:
    """The journal of one household. Its methods block: call them in a thread.

    Args:
        path: the file; made if absent.

    Raises:
        LocalFault: it cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: list[BoundaryRecord] = []
        """The retained records, oldest first."""
        data = read_file(path) if path.exists() else b""
        intact = self._read(data)
        if not data or intact < len(data):
            write_file(path, data[:intact])
            sync_directory(path.parent)
        self._descriptor = self._open()

    def append(self, record: BoundaryRecord) -> None:
        """Make a record durable.

        Raises:
            LocalFault: the disk refused it. Whether it is there is unknown: the process must end.
        """
        frame = _frame(record)
        try:
            written = os.write(self._descriptor, frame)
            os.fsync(self._descriptor)
        except OSError as error:
            raise LocalFault(f"{self._path}: cannot be written: {error.strerror}") from None
        if written != len(frame):
            raise LocalFault(f"{self._path}: cannot be written: the disk is full")
        self.records.append(record)
        if len(self.records) >= COMPACT_AT:
            self._compact()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise LocalFault(f"{self._path}: cannot be opened: {error.strerror}") from None

    def _compact(self) -> None:
        self.records = self.records[-RETAINED_BOUNDARIES:]
        write_file(self._path, b"".join(map(_frame, self.records)))
        sync_directory(self._path.parent)
        os.close(self._descriptor)
        self._descriptor = self._open()

    def _read(self, data: bytes) -> int:
        """Fill `records`; returns how many bytes are intact."""
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
            end = at + _LENGTH_BYTES + length + _CHECK_BYTES
            record = _unframe(data[at:end]) if length <= _MAX_RECORD_BYTES else None
            if record is None:
                if not _is_torn(data[at:], length):
                    raise LocalFault(
                        f"{self._path}: is damaged at byte {at}; restore it from a backup, or "
                        "register the household's devices anew"
                    )
                return at
            self.records.append(record)
            at = end
        return at


def last_sequences(records: Sequence[BoundaryRecord]) -> dict[bytes, int]:
    """The newest sequence number of each device."""
    return {reading.device: reading.sequence for record in records for reading in record.readings}


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable: a new file is not, until its directory is synced."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_torn(tail: bytes, length: int) -> bool:
    """Whether a tail that does not read is what a crash leaves of one append."""
    whole = _LENGTH_BYTES + length + _CHECK_BYTES
    if len(tail) < _LENGTH_BYTES or not any(tail):
        return True
    return length <= _MAX_RECORD_BYTES and len(tail) <= whole


def _frame(record: BoundaryRecord) -> bytes:
    body = encode(record)
    framed = len(body).to_bytes(_LENGTH_BYTES, "big") + body
    return framed + sha256(framed)[:_CHECK_BYTES]


def _unframe(frame: bytes) -> BoundaryRecord | None:
    framed, check = frame[:-_CHECK_BYTES], frame[-_CHECK_BYTES:]
    if len(frame) <= _LENGTH_BYTES + _CHECK_BYTES or sha256(framed)[:_CHECK_BYTES] != check:
        return None
    try:
        return decode(framed[_LENGTH_BYTES:], BoundaryRecord)
    except Malformed:
        return None
