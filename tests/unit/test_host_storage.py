"""The store: order, read-your-writes, checksums, locks, growth, and real kills at named points."""

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Write
from gridtokenx.host.storage import (
    MEBIBYTE,
    STORAGE_EXIT,
    WITNESS,
    Damaged,
    Store,
    StoreLimits,
    _Batch,
    snapshot,
)

WRITER = """
import asyncio, sys
from pathlib import Path
from gridtokenx.core.machine import Write
from gridtokenx.host.crashpoints import arm_crash_points
from gridtokenx.host.storage import Store, StoreLimits

async def main() -> None:
    arm_crash_points()
    store = Store.open(Path(sys.argv[1]))
    for number in range(int(sys.argv[2])):
        pair = number.to_bytes(8, "big")
        await store.write((Write("a", pair, bytes(1000)), Write("b", pair, pair)))
        print(number, flush=True)
    store.close()

asyncio.run(main())
"""


class FatalError(Exception):
    """What the tests' stand-in for the end of the process raises."""


def raise_fatal(line: str) -> NoReturn:
    raise FatalError(line)


def run_writer(
    directory: Path, count: int, crash_at: str = "", prelude: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GTX_CRASH_AT": crash_at}
    return subprocess.run(
        [sys.executable, "-c", prelude + WRITER, str(directory), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def records(directory: Path, table: str) -> dict[bytes, bytes]:
    store = Store.open(directory)
    try:
        return dict(store.scan(table))
    finally:
        store.close()


async def test_written_records_are_read_back_after_reopening(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    await store.write([Write("blocks", b"1", b"one"), Write("log", b"1", b"other")])
    await store.write([Write("blocks", b"1", None), Write("blocks", b"2", b"")])
    store.close()

    assert records(tmp_path, "blocks") == {b"2": b""}
    assert records(tmp_path, "log") == {b"1": b"other"}


async def test_reads_see_what_was_submitted_and_is_not_yet_durable(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    await store.write([Write("t", b"a", b"1"), Write("t", b"c", b"3"), Write("t", b"d", b"4")])
    durable: list[str] = []
    store.submit(
        [Write("t", b"b", b"2"), Write("t", b"c", None), Write("t", b"d", b"D")],
        lambda: durable.append("yes"),
    )

    assert store.get("t", b"b") == b"2"
    assert store.get("t", b"c") is None
    assert list(store.scan("t")) == [(b"a", b"1"), (b"b", b"2"), (b"d", b"D")]
    assert store.last("t") == (b"d", b"D")
    assert durable == []  # nothing was reported before the loop could run
    await store.drain()
    assert durable == ["yes"]
    assert list(store.scan("t")) == [(b"a", b"1"), (b"b", b"2"), (b"d", b"D")]
    store.close()


async def test_batches_become_durable_in_the_order_of_submission(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    order: list[int] = []
    for number in range(500):
        store.submit([Write("t", b"k", str(number).encode())], lambda n=number: order.append(n))
    await store.drain()
    assert order == list(range(500))
    assert store.get("t", b"k") == b"499"
    store.close()


async def test_a_scan_stays_within_its_table_and_prefix(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    await store.write(
        [Write("t", bytes((p, n)), b"v") for p in (1, 2) for n in range(255)]
        + [Write("tt", b"\x01\x01", b"no"), Write("s", b"\x01\x01", b"no")]
    )
    assert [key for key, _ in store.scan("t", b"\x02")] == [bytes((2, n)) for n in range(255)]
    assert len(list(store.scan("t"))) == 510
    assert store.last("t") == (bytes((2, 254)), b"v")
    assert store.last("nothing") is None
    store.close()


Operations = st.lists(
    st.tuples(
        st.sampled_from(["t", "u"]),
        st.binary(max_size=3),
        st.one_of(st.none(), st.binary(max_size=4)),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=examples(40), deadline=None)
@given(operations=Operations)
def test_the_store_behaves_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, bytes, bytes | None, bool]],
) -> None:
    async def law() -> None:
        store = Store.open(tmp_path_factory.mktemp("store"))
        model: dict[tuple[str, bytes], bytes] = {}
        for table, key, value, sync in operations:
            store.submit([Write(table, key, value)], lambda: None)
            if value is None:
                model.pop((table, key), None)
            else:
                model[table, key] = value
            if sync:
                await store.drain()
            for name in ("t", "u"):
                expected = sorted((k, v) for (t, k), v in model.items() if t == name)
                assert list(store.scan(name)) == expected
                assert store.last(name) == (expected[-1] if expected else None)
        store.close()

    asyncio.run(law())


def test_a_second_process_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    refused = run_writer(tmp_path, 1)
    store.close()
    assert refused.returncode != 0
    assert f"{tmp_path}: in use by another process (pid {os.getpid()})" in refused.stderr
    assert run_writer(tmp_path, 1).returncode == 0  # released with the first


def test_the_lock_is_released_when_its_holder_is_killed(tmp_path: Path) -> None:
    assert run_writer(tmp_path, 10, "storage.after_commit:3").returncode == 137
    Store.open(tmp_path).close()


@pytest.mark.parametrize("place", ["before_commit", "inside_commit", "after_commit"])
@pytest.mark.parametrize("nth", [1, 4])
def test_a_kill_keeps_all_that_was_acknowledged_and_no_half_batch(
    tmp_path: Path, place: str, nth: int
) -> None:
    # The store's own format record is committed first, by the opening thread.
    offset = 1 if place == "inside_commit" else 0
    died = run_writer(tmp_path, 20, f"storage.{place}:{nth + offset}")
    assert died.returncode == 137

    acknowledged = [int(line) for line in died.stdout.split()]
    kept = records(tmp_path, "b")
    assert acknowledged == list(range(nth - 1))
    assert len(kept) == (nth if place == "after_commit" else nth - 1)
    assert kept.keys() == records(tmp_path, "a").keys()  # batches are atomic


def test_a_failed_write_ends_the_process_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    died = run_writer(tmp_path, 1000, prelude=limit)
    assert died.returncode == STORAGE_EXIT
    assert died.stderr.startswith(f"fatal: {tmp_path}: writing failed:")
    assert died.stderr.count("\n") == 1
    acknowledged = {int(line).to_bytes(8, "big") for line in died.stdout.split()}
    assert acknowledged
    assert acknowledged <= records(tmp_path, "b").keys()


async def test_the_map_grows_with_the_data(tmp_path: Path) -> None:
    limits = StoreLimits(initial_bytes=MEBIBYTE, maximum_bytes=64 * MEBIBYTE)
    store = Store.open(tmp_path, limits=limits)
    for number in range(40):
        await store.write([Write("t", bytes((number,)), bytes(200_000))])
        assert store.get("t", bytes((number,))) == bytes(200_000)
    store.close()
    assert len(records(tmp_path, "t")) == 40


def test_the_largest_size_is_a_clear_error(tmp_path: Path) -> None:
    limits = StoreLimits(initial_bytes=MEBIBYTE, maximum_bytes=MEBIBYTE)
    store = Store.open(tmp_path, limits=limits, fatal=raise_fatal)
    with pytest.raises(FatalError, match=r"largest size of 1 MiB.*catch up from its peers"):
        store.put_now(Write("t", b"k", bytes(2 * MEBIBYTE)))
    store.close()


async def test_back_pressure_until_the_writer_has_caught_up(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for number in range(20):
        store.submit([Write("t", bytes((number,)), bytes(MEBIBYTE))], lambda: None)
    assert not store._below_bound.is_set()
    await asyncio.wait_for(store.below_bound(), 30)
    store.close()


def flip(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(needle)
    while at >= 0:
        data[at] ^= 0x10
        at = data.find(needle)
    path.write_bytes(data)


async def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    await store.write([Write("t", b"key", b"needle-in-the-haystack"), Write("t", b"k2", b"ok")])
    store.close()
    flip(tmp_path / "data.mdb", b"needle-in-the-haystack")
    store = Store.open(tmp_path)
    assert store.get("t", b"k2") == b"ok"
    with pytest.raises(LocalFault, match=r"record 6b6579 of table 't' fails its checksum"):
        store.get("t", b"key")
    with pytest.raises(LocalFault, match="checksum"):
        store.check()
    store.close()


def damage(directory: Path, how: str) -> None:
    path = directory / "data.mdb"
    data = path.read_bytes()
    garbled: dict[str, bytes] = {
        "garbage": b"not a database" * 1000,
        "half": data[: len(data) // 2],
        "two pages": data[:8192],
        "short": data[:100],
    }
    path.write_bytes(garbled[how])


def read_all(directory: Path) -> Iterable[bytes]:
    store = Store.open(directory)
    try:
        store.check()
        return [store.get("t", bytes((number,))) or b"" for number in range(100)]
    finally:
        store.close()


@pytest.mark.parametrize("how", ["garbage", "half", "two pages", "short"])
async def test_a_damaged_file_is_one_clear_error(tmp_path: Path, how: str) -> None:
    store = Store.open(tmp_path)
    await store.write([Write("t", bytes((number,)), bytes(3000)) for number in range(100)])
    store.close()
    damage(tmp_path, how)
    with pytest.raises(LocalFault, match="damaged"):
        read_all(tmp_path)


@pytest.mark.parametrize("how", ["gone", "empty", "another"])
async def test_a_store_that_was_lost_is_not_taken_for_a_new_one(tmp_path: Path, how: str) -> None:
    """Regression: without its data file a replica began anew, with a seat and no memory of its votes."""
    store = Store.open(tmp_path / "store")
    await store.write([Write("t", b"key", b"value")])
    store.close()
    data = tmp_path / "store" / "data.mdb"
    whole = data.read_bytes()
    if how == "gone":
        data.unlink()
    elif how == "empty":
        data.write_bytes(b"")
    else:
        with lmdb.open(str(tmp_path / "another")):
            data.write_bytes((tmp_path / "another" / "data.mdb").read_bytes())
    for _ in range(2):
        with pytest.raises(Damaged, match=r"gone, or was emptied; restore a backup"):
            Store.open(tmp_path / "store")
    data.write_bytes(whole)
    store = Store.open(tmp_path / "store")
    assert store.get("t", b"key") == b"value"
    store.close()


def test_a_node_that_was_killed_while_its_store_was_made_starts(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    (tmp_path / "lock.mdb").touch()
    Store.open(tmp_path).close()
    assert (tmp_path / WITNESS).exists()


async def test_damage_that_a_write_finds_is_called_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path, fatal=raise_fatal)
    store.put_now(*(Write("t", n.to_bytes(8, "big"), bytes(500)) for n in range(2_000)))
    store.close()
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    store = Store.open(tmp_path, fatal=raise_fatal)
    for page in range(8_192, len(data), 4_096):
        data[page + 10 : page + 12] = b"\x00\x77"  # what kind of page it is
    with (tmp_path / "data.mdb").open("r+b") as file:
        file.write(data)
    record = (b"\x01t" + bytes(8), b"value")
    with pytest.raises(FatalError, match=r"^\S+: damaged: mdb_put: .*; restore a backup"):
        store._fits([_Batch(1, [record], 1, lambda: None)])
    with pytest.raises(Damaged):
        store.put_now(Write("t", bytes(8), b"value"))
    store.close()


LONG = 600
"""Records: more than two of the pieces in which a scan reads."""
VALUES = [bytes((number % 251,)) * (6_000 if number % 97 == 0 else 24) for number in range(LONG)]


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of used pages alone; some records have pages of their own."""
    made = tmp_path_factory.mktemp("long")
    store = Store.open(made / "store")
    store.put_now(*(Write("t", n.to_bytes(8, "big"), VALUES[n]) for n in range(LONG)))
    store.close()
    snapshot(made / "store", made / "copy")
    return made / "copy"


def with_flips(made: Path, directory: Path, flipped: dict[int, int]) -> Path:
    """A copy with a bit flipped in each of these records, so many bytes after its key's start.

    Of values on pages of their own: after the start of that.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    data = (made / "data.mdb").read_bytes()
    for number, offset in flipped.items():
        full = b"\x01t" + number.to_bytes(8, "big")
        lies = zlib.crc32(VALUES[number], zlib.crc32(full)).to_bytes(4, "big") + VALUES[number]
        lies = lies if len(lies) > 4_096 else full + lies
        assert lies in data  # more than once, if its page was once split
        other = bytes((lies[offset] ^ 1,))
        data = data.replace(lies, lies[:offset] + other + lies[offset + 1 :])
    (directory / "data.mdb").write_bytes(data)
    return directory


@settings(max_examples=examples(40))
@given(flipped=st.dictionaries(st.integers(0, LONG - 1), st.integers(0, 30), max_size=LONG))
def test_every_record_with_a_flipped_bit_is_found(
    flipped: dict[int, int], long_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In their keys, checksums and values: as many as were flipped, and each record once."""
    directory = tmp_path_factory.getbasetemp() / "flipped"
    with_flips(long_store, directory, flipped)
    try:
        store = Store.open(directory, read_only=True)
    except Damaged:  # a key beside the format's leads the search for that astray: found at once
        assert flipped
        return
    found = list(store.records())
    store.close()
    assert len(found) == LONG + 1  # and the format
    assert sum(each.value is None for each in found) == len(flipped)


@pytest.mark.parametrize("number", [0, 1, 254, 255, 256, 257, 511, 512, 599])
@pytest.mark.parametrize("offset", [2, 5, 8, 9, 12, 20])
def test_a_damaged_key_does_not_lead_a_scan_astray(
    number: int, offset: int, long_store: Path, tmp_path: Path
) -> None:
    """It ends in an error: it does not leave records out, nor turn in circles."""
    with_flips(long_store, tmp_path / "made", {number: offset})
    with pytest.raises(Damaged):
        read_format_and_scan(tmp_path / "made")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_whose_format_is_damaged_is_not_taken_for_a_new_one(
    tmp_path: Path, *, read_only: bool
) -> None:
    store = Store.open(tmp_path)
    store.put_now(Write("t", b"key", b"value"))
    store.close()
    flip(tmp_path / "data.mdb", b"\x05storeformat")
    with pytest.raises(Damaged, match="its format is not where it was written"):
        Store.open(tmp_path, read_only=read_only)


def read_format_and_scan(directory: Path) -> None:
    store = Store.open(directory, read_only=True)
    try:
        for _ in store.scan("t"):
            pass
    finally:
        store.close()


def test_a_copy_that_cannot_be_written_is_no_damage(long_store: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            snapshot(long_store, tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
    snapshot(long_store, tmp_path / "again")


def test_a_copy_of_what_is_no_store_is_damage(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data.mdb").write_bytes(b"not a database" * 1_000)
    with pytest.raises(Damaged, match="cannot be opened"):
        snapshot(tmp_path / "store", tmp_path / "copy")


def test_a_directory_belongs_to_one_chain(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.bind("chain", b"\x01")
    store.bind("chain", b"\x01")
    with pytest.raises(LocalFault, match="belongs to chain 01, but the configuration says 02"):
        store.bind("chain", b"\x02")
    store.close()


def test_unusable_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalFault, match="cannot be created"):
        Store.open(tmp_path / "file")
    with pytest.raises(LocalFault, match="holds no store"):
        Store.open(tmp_path / "absent", read_only=True)


async def test_read_only_opening_reads(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    await store.write([Write("t", b"k", b"v")])
    store.close()
    store = Store.open(tmp_path, read_only=True)
    assert store.get("t", b"k") == b"v"
    assert store.check() == 2
    store.close()
