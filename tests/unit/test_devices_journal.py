"""The journal of a household: what a crash may leave of it, and what it refuses."""

from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.devices.fleet.journal import (
    COMPACT_AT,
    BoundaryRecord,
    Journal,
    SignedReading,
    last_sequences,
)
from gridtokenx.devices.models.battery import BatteryState
from gridtokenx.devices.models.household import HouseholdState
from gridtokenx.devices.models.meter import MeterState
from gridtokenx.ledger.readings import RETAINED_BOUNDARIES

DEVICE = b"\x07" * 32


def record(number: int) -> BoundaryRecord:
    meter = MeterState(number, 0, 0, 0)
    state = HouseholdState(number, meter, meter, meter, BatteryState(0, ()), 0, 0, 0)
    return BoundaryRecord(state, (SignedReading(DEVICE, number, number, b"t" * 300),))


def written(path: Path, count: int) -> bytes:
    journal = Journal(path)
    for number in range(1, count + 1):
        journal.append(record(number))
    journal.close()
    return path.read_bytes()


def reopened(path: Path) -> list[BoundaryRecord]:
    journal = Journal(path)
    journal.close()
    return journal.records


def test_reads_back_what_was_appended(tmp_path: Path) -> None:
    written(tmp_path / "j", 5)
    records = reopened(tmp_path / "j")
    assert records == [record(number) for number in range(1, 6)]
    assert last_sequences(records) == {DEVICE: 5}


def test_a_cut_at_every_byte_of_the_last_record_loses_only_that_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path, 3)
    two = len(data) * 2 // 3
    for cut in range(two, len(data)):
        path.write_bytes(data[:cut])
        assert reopened(path) == [record(1), record(2)]
        assert path.read_bytes() == data[:two]


def test_goes_on_after_a_torn_append(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path, 2)
    path.write_bytes(data[:-9])
    journal = Journal(path)
    journal.append(record(2))
    journal.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0" * 3, b"\0" * 40])
def test_pages_that_were_allocated_but_never_written_are_dropped(
    tmp_path: Path, tail: bytes
) -> None:
    path = tmp_path / "j"
    data = written(path, 2)
    path.write_bytes(data + tail)
    assert reopened(path) == [record(1), record(2)]


def test_refuses_damage_before_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path, 60)
    for at in range(0, len(data) // 3, 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        with pytest.raises(LocalFault, match="damaged at byte"):
            Journal(path)


def test_compacts_to_what_must_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, COMPACT_AT)
    records = reopened(path)
    assert len(records) == RETAINED_BOUNDARIES
    assert records[-1] == record(COMPACT_AT)
    written_more = Journal(path)
    written_more.append(record(COMPACT_AT + 1))
    written_more.close()
    assert reopened(path)[-2:] == [record(COMPACT_AT), record(COMPACT_AT + 1)]
