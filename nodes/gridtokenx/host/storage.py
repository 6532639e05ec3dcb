"""The store of one process: LMDB, one environment, one writer thread.

Law of the file:

- **One writer.** A single thread owns all write transactions. Batches are committed in the order in
  which they were submitted; adjacent ones share a transaction and so one sync.
- **Durable or dead.** After a failed write or sync the process ends at once with one line. Nothing
  is retried: after a failed fsync the kernel may have dropped the dirty pages, and a second attempt
  that "succeeds" would be a lie.
- **Read your writes.** A machine reads, synchronously, what it has submitted, durable or not.
- **Every record carries a checksum** over its key and value, because LMDB has none on its pages.
- **One process per directory**, enforced by a lock that the kernel drops when the process dies.

A record lives in LMDB's only table under ``len(table) ‖ table ‖ key``; its value is ``crc32 ‖ value``.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import queue
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import lmdb

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Write
from gridtokenx.host.crashpoints import crash_point
from gridtokenx.host.files import sync_directory

STORAGE_EXIT: Final = 74
"""Exit code after a failed write (EX_IOERR of sysexits.h): the supervisor may look at the disk."""

MEBIBYTE: Final = 1024 * 1024
MAX_KEY_BYTES: Final = 480
"""LMDB allows 511 for the whole key; the rest is the table's name."""

LEAST_FREE_BYTES: Final = MEBIBYTE
"""A store is not opened for writing with less on its disk."""
_UNUSABLE: Final = (OSError, lmdb.DiskError, lmdb.ReadonlyError, lmdb.LockError, lmdb.MemoryError)
"""What the surroundings, not the bytes, are to blame for."""

FORMAT: Final = b"1"
META: Final = "store"
"""The store's table of facts about itself: its format, and what it belongs to (`Store.bind`)."""
WITNESS: Final = "made"
"""A file beside the data that says that there are any. Without it an absent or empty data file would
be a new node's, and a replica that has lost its memory would vote as if it had never voted."""
_CHECKSUM: Final = struct.Struct(">I")
_SCAN_CHUNK: Final = 256
_GROUP_BATCHES: Final = 256
_GROUP_BYTES: Final = 16 * MEBIBYTE
_PENDING_BYTES: Final = 16 * MEBIBYTE
"""Beyond this much undurable data the driver takes no more events (`Store.below_bound`)."""

_SNAPSHOT_ATTEMPTS: Final = 5

Fatal = Callable[[str], NoReturn]


class Damaged(LocalFault):
    """What lies on the disk is not what was written there."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it lies on disk."""

    table: str
    key: bytes
    value: bytes | None
    """None: it fails its checksum."""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Sizes of the memory map. The file itself grows only with what is written."""

    initial_bytes: int = 64 * MEBIBYTE
    maximum_bytes: int = 64 * 1024 * MEBIBYTE


def end_process(line: str) -> NoReturn:
    """The default for a failed write: one line, then the end, before anything else can be sent."""
    try:
        sys.stderr.write(f"fatal: {line}\n")
        sys.stderr.flush()
    finally:  # the log may be on the very disk that is full
        os._exit(STORAGE_EXIT)


class DirectoryLock:
    """Holds a directory for this process; the kernel releases it with the process's death."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "process.lock"
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LocalFault(f"{self._path}: cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise LocalFault(
                f"{directory}: in use by another process (pid {holder}); stop it first,"
                " or give this one its own directory"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk: the number is only for people
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the directory up."""
        os.close(self._fd)


@dataclass(slots=True)
class _Batch:
    number: int
    records: list[tuple[bytes, bytes | None]]
    """Whole keys, and values as submitted."""
    size: int
    done: Callable[[], None]


class Store:
    """Tables of byte records, implementing `core.machine.Reader`.

    Reads and `submit` belong to one thread (the event loop's); the writer thread is internal.
    """

    def __init__(
        self, directory: Path, limits: StoreLimits, fatal: Fatal, *, read_only: bool
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._fatal = fatal
        self._lock = DirectoryLock(directory)
        try:
            self._env = _open_environment(directory, limits, read_only=read_only)
        except LocalFault:
            self._lock.release()
            raise
        # Held around every read and around growing the map, which LMDB allows only while no
        # transaction is open. Reads never hold it across a return to their caller.
        self._gate = threading.Lock()
        self._overlay: dict[bytes, tuple[int, bytes | None]] = {}
        self._submitted = 0
        self._pending_bytes = 0
        self._below_bound = asyncio.Event()
        self._below_bound.set()
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        limits: StoreLimits | None = None,
        fatal: Fatal = end_process,
        read_only: bool = False,
    ) -> "Store":
        """Open (or, unless `read_only`, create) the store in `directory`.

        Raises:
            LocalFault: the directory is in use, unreadable, damaged, or of another format.
        """
        try:
            if not read_only:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            elif not (directory / "data.mdb").is_file():
                raise LocalFault(f"{directory}: holds no store; is this the right home?")
        except OSError as error:
            raise LocalFault(f"{directory}: cannot be created: {error.strerror}") from None
        if not read_only:
            _require_room(directory)
        store = cls(directory, limits or StoreLimits(), fatal, read_only=read_only)
        try:
            store._check_format(read_only=read_only)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory

    def free_bytes(self) -> int:
        """What the file system can still take for us."""
        return _free_bytes(self._directory)

    # -- reading -----------------------------------------------------------------------------------

    def get(self, table: str, key: bytes) -> bytes | None:
        """The last value submitted, or None.

        Raises:
            LocalFault: the record on disk is damaged.
        """
        full = _full_key(table, key)
        pending = self._overlay.get(full)
        if pending is not None:
            return pending[1]
        with self._gate, self._reading(), self._env.begin() as transaction:
            stored = transaction.get(full)
        return None if stored is None else self._unseal(full, stored)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All records of a table whose key starts with `prefix`, in key order.

        Everything submitted before the call is seen; what is submitted while the scan runs may or
        may not be. No transaction is held between two results, so a slow reader costs nothing.
        """
        start = _full_key(table, prefix)
        overlay = {key: value for key, (_, value) in self._overlay.items() if key.startswith(start)}
        return self._merge(start, 1 + len(table.encode()), overlay)

    def last(self, table: str) -> tuple[bytes, bytes] | None:
        """The record with the greatest key of a table (the newest height, say), or None."""
        start = _full_key(table, b"")
        pending = {key: value for key, (_, value) in self._overlay.items() if key.startswith(start)}
        stored = self._last_stored(start)
        while stored is not None and pending.get(stored[0], b"") is None:
            stored = self._last_stored(start, before=stored[0])
        live = {key: value for key, value in pending.items() if value is not None}
        if stored is not None:
            live.setdefault(stored[0], stored[1])
        if not live:
            return None
        newest = max(live)
        return newest[len(start) :], live[newest]

    # -- writing -----------------------------------------------------------------------------------

    def submit(self, writes: Iterable[Write], done: Callable[[], None]) -> None:
        """Queue one atomic batch; `done` is called on this event loop once it is durable."""
        if self._writer is None:
            self._start_writer()
        self._submitted = number = self._submitted + 1
        records = [(_full_key(write.table, write.key), write.value) for write in writes]
        overlay, size = self._overlay, 0
        for full, value in records:
            overlay[full] = (number, value)
            size += len(full) + (0 if value is None else len(value))
        self._pending_bytes += size
        if self._pending_bytes > _PENDING_BYTES:
            self._below_bound.clear()
        self._queue.put(_Batch(number, records, size, done))

    async def write(self, writes: Iterable[Write]) -> None:
        """`submit`, and wait until it is durable."""
        durable = asyncio.Event()
        self.submit(writes, durable.set)
        await durable.wait()

    async def below_bound(self) -> None:
        """Wait until the writer has caught up enough to take more."""
        await self._below_bound.wait()

    async def drain(self) -> None:
        """Wait until everything submitted so far is durable."""
        if self._overlay or self._pending_bytes or self._writer is not None:
            await self.write(())

    def close(self) -> None:
        """Commit what is queued, then close. Waits for the writer thread."""
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._env.close()
        self._lock.release()

    # -- the whole store ---------------------------------------------------------------------------

    def bind(self, name: str, value: bytes) -> None:
        """Remember a fact that this directory belongs to (a chain id, a node's key), or compare.

        Call it before the event loop submits anything.

        Raises:
            LocalFault: the directory was made for another value.
        """
        known = self.get(META, name.encode())
        if known == value:
            return
        if known is not None:
            raise LocalFault(
                f"{self._directory}: belongs to {name} {known.hex()}, but the configuration says"
                f" {value.hex()}; use another directory, or remove this one to start afresh"
            )
        self.put_now(Write(META, name.encode(), value))

    def check(self) -> int:
        """Verify the checksum of every record on disk.

        Nothing may be written meanwhile.

        Returns:
            The number of records.

        Raises:
            LocalFault: a record is damaged.
        """
        count = 0
        for full, stored in self._walk():
            self._unseal(full, stored)
            count += 1
        return count

    def records(self) -> Iterator[StoredRecord]:
        """Every record on disk, the damaged ones too; for checks. Nothing may be written meanwhile.

        Raises:
            LocalFault: not even the pages can be read.
        """
        for full, stored in self._walk():
            name = full[1 : 1 + full[0]]
            value: bytes | None = stored[_CHECKSUM.size :]
            if not _is_sealed(full, stored):
                value = None
            yield StoredRecord(name.decode("utf-8", "replace"), full[1 + len(name) :], value)

    # -- internals: reading ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise _damaged(self._directory, str(error)) from None

    def _unseal(self, full: bytes, stored: bytes) -> bytes:
        value = stored[_CHECKSUM.size :]
        if not _is_sealed(full, stored):
            table = full[1 : 1 + full[0]].decode("utf-8", "replace") if full else ""
            raise _damaged(
                self._directory,
                f"record {full[1 + len(table) :].hex()} of table {table!r} fails its checksum",
            )
        return value

    def _merge(
        self, start: bytes, strip: int, overlay: dict[bytes, bytes | None]
    ) -> Iterator[tuple[bytes, bytes]]:
        pending = sorted(overlay, reverse=True)
        for key, value in self._stored(start):
            while pending and pending[-1] < key:
                early = pending.pop()
                early_value = overlay[early]
                if early_value is not None:
                    yield early[strip:], early_value
            if pending and pending[-1] == key:
                newer = overlay[pending.pop()]
                if newer is not None:
                    yield key[strip:], newer
            else:
                yield key[strip:], value
        for key in reversed(pending):
            late = overlay[key]
            if late is not None:
                yield key[strip:], late

    def _stored(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, stored in self._raw(start):
            yield key, self._unseal(key, stored)

    def _raw(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while True:
            chunk = self._chunk(start, after)
            yield from chunk
            if len(chunk) < _SCAN_CHUNK:
                return
            after = chunk[-1][0]

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        """All there is, from page to page.

        Unlike a scan it never looks for a key again: where keys are damaged, so is their order, and
        a search would miss records or come back to the same ones for ever.
        """
        with self._reading(), self._env.begin() as transaction:
            yield from transaction.cursor()

    def _chunk(self, start: bytes, after: bytes | None) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with self._gate, self._reading(), self._env.begin() as transaction:
            cursor = transaction.cursor()
            more = cursor.set_range(start if after is None else after)
            if more and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < _SCAN_CHUNK:
                key, value = cursor.item()
                if not key.startswith(start):
                    break
                found.append((key, value))
                more = cursor.next()
        return found

    def _last_stored(self, start: bytes, before: bytes | None = None) -> tuple[bytes, bytes] | None:
        end = before if before is not None else start + b"\xff" * (511 - len(start))
        with self._gate, self._reading(), self._env.begin() as transaction:
            cursor = transaction.cursor()
            found = cursor.prev() if cursor.set_range(end) else cursor.last()
            key, stored = cursor.item() if found else (b"", b"")
        if not found or not key.startswith(start):
            return None
        return key, self._unseal(key, stored)

    def _check_format(self, *, read_only: bool) -> None:
        known = self.get(META, b"format")
        if known is None and self._env.stat()["entries"]:
            raise _damaged(self._directory, "its format is not where it was written")
        if known is None and (self._directory / WITNESS).exists():
            raise _damaged(self._directory, "data.mdb is gone, or was emptied")
        if known is None and not read_only:
            self.put_now(Write(META, b"format", FORMAT))
        elif known != FORMAT:
            raise LocalFault(
                f"{self._directory}: written in store format {(known or b'none').decode()},"
                f" this program reads {FORMAT.decode()}; use the program that wrote it"
            )
        if not read_only:
            _leave_witness(self._directory)

    # -- internals: writing ------------------------------------------------------------------------

    def put_now(self, *writes: Write) -> None:
        """Write a batch before the writer thread exists, from the thread that opens the store.

        Raises:
            LocalFault: it cannot be written.
        """
        assert self._writer is None, "the writer thread owns all write transactions"
        records = [(_full_key(write.table, write.key), write.value) for write in writes]
        group = [_Batch(0, records, 0, lambda: None)]
        try:
            with contextlib.suppress(lmdb.MapFullError):
                return self._write_group(group)
            self._grow()
            return self.put_now(*writes)
        except lmdb.Error as error:
            if _tells_of_damage(error):
                raise _damaged(self._directory, str(error)) from None
            raise LocalFault(f"{self._directory}: cannot be written: {error}") from None

    def _start_writer(self) -> None:
        loop = asyncio.get_running_loop()
        self._writer = threading.Thread(
            target=self._write_forever, args=(loop,), name="store-writer", daemon=True
        )
        self._writer.start()

    def _write_forever(self, loop: asyncio.AbstractEventLoop) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if not group:
                continue
            crash_point("storage.before_commit")
            self._commit(group)
            crash_point("storage.after_commit")
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._on_durable, group)

    def _next_group(self) -> tuple[list[_Batch], bool]:
        """The batches that are waiting (at least one), and whether to stop after them."""
        item = self._queue.get()
        group: list[_Batch] = []
        size = 0
        while item is not None:
            group.append(item)
            size += item.size
            if len(group) >= _GROUP_BATCHES or size >= _GROUP_BYTES:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Batch]) -> None:
        """One transaction for the group. Returns only when it is durable."""
        while not self._fits(group):
            self._grow()

    def _fits(self, group: list[_Batch]) -> bool:
        """Write and sync the group, unless the map is too small for it."""
        try:
            self._write_group(group)
        except lmdb.MapFullError:
            return False
        except Exception as error:  # noqa: BLE001 - whatever it was: nothing after it may leave
            if _tells_of_damage(error):
                self._fatal(str(_damaged(self._directory, str(error))))
            full = _free_bytes(self._directory) < LEAST_FREE_BYTES
            self._fatal(
                f"{self._directory}: writing failed: {'the disk is full' if full else repr(error)};"
                " nothing acknowledged is lost; free or repair the disk, then start again"
            )
        return True

    def _write_group(self, group: list[_Batch]) -> None:
        with self._env.begin(write=True) as transaction:
            for batch in group:
                for full, value in batch.records:
                    if value is None:
                        transaction.delete(full)
                    else:
                        transaction.put(full, _checksum(full, value) + value)
            crash_point("storage.inside_commit")

    def _grow(self) -> None:
        """Double the map. The transaction that did not fit was aborted: nothing was synced."""
        size = self._env.info()["map_size"]
        if size >= self._limits.maximum_bytes:
            self._fatal(
                f"{self._directory}: reached its largest size of {size // MEBIBYTE} MiB;"
                " move it away, and let the node catch up from its peers"
            )
        with self._gate:
            self._env.set_mapsize(min(size * 2, self._limits.maximum_bytes))

    def _on_durable(self, group: list[_Batch]) -> None:
        last, overlay = group[-1].number, self._overlay
        for batch in group:
            self._pending_bytes -= batch.size
            for full, _ in batch.records:
                entry = overlay.get(full)
                if entry is not None and entry[0] <= last:
                    del overlay[full]
        if self._pending_bytes <= _PENDING_BYTES // 2:
            self._below_bound.set()
        for batch in group:
            batch.done()


def snapshot(directory: Path, target: Path) -> None:
    """Copy the store in `directory`, as it is after some commit, into the new directory `target`.

    The store may be in use: LMDB's readers and its writer do not wait for each other, and the copy is
    of one read transaction. Free pages are left out.

    Raises:
        LocalFault: there is no store, it cannot be read, or it is damaged.
        OSError: the copy cannot be written.
    """
    if not (directory / "data.mdb").is_file():
        raise LocalFault(f"{directory}: holds no store; is this the right home?")
    target.mkdir(mode=0o700)
    for _ in range(_SNAPSHOT_ATTEMPTS):
        try:
            with _open_for_copy(directory) as environment:
                _copy(environment, directory, target)
            break
        except lmdb.MapResizedError:
            continue  # it grew between opening and reading
    else:
        raise LocalFault(f"{directory}: grows too fast to be copied; stop the process first")
    descriptor = os.open(target / "data.mdb", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open_for_copy(directory: Path) -> Iterator[lmdb.Environment]:
    try:
        size = (directory / "data.mdb").stat().st_size
        environment = lmdb.open(
            str(directory), map_size=size, max_dbs=0, max_readers=16, readonly=True, readahead=False
        )
    except lmdb.MapResizedError:
        raise
    except _UNUSABLE as error:
        raise LocalFault(f"{directory}: the store cannot be opened: {error}") from None
    except lmdb.Error as error:
        raise _damaged(directory, f"the store cannot be opened: {error}") from None
    try:
        yield environment
    finally:
        environment.close()


def _copy(environment: lmdb.Environment, directory: Path, target: Path) -> None:
    try:
        environment.copy(str(target), compact=True)
    except lmdb.MapResizedError:
        (target / "data.mdb").unlink(missing_ok=True)  # the next attempt writes it afresh
        raise
    except lmdb.Error as error:
        if not _tells_of_damage(error):
            # The source is mapped, so a system call that failed was about the copy.
            number = getattr(error, "code", 0)
            raise OSError(number, os.strerror(number), str(target)) from None
        raise _damaged(directory, f"it cannot be copied: {error}") from None


def _full_key(table: str, key: bytes) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise AssertionError(f"table {table!r}: a key of {len(key)} bytes is too long")
    return _table_prefix(table) + key


@functools.cache
def _table_prefix(table: str) -> bytes:
    name = table.encode()
    if len(name) > 24:
        raise AssertionError(f"table {table!r}: its name is too long")
    return bytes((len(name),)) + name


def _checksum(full: bytes, value: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(value, zlib.crc32(full)))


def _is_sealed(full: bytes, stored: bytes) -> bool:
    """Whether a stored value carries the checksum of its key and of what follows."""
    checksum, value = stored[: _CHECKSUM.size], stored[_CHECKSUM.size :]
    return len(checksum) == _CHECKSUM.size and checksum == _checksum(full, value)


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _require_room(directory: Path) -> None:
    """Refuse to start on a full disk, where LMDB's lock file could not even be mapped."""
    free = _free_bytes(directory)
    if free < LEAST_FREE_BYTES:
        raise LocalFault(
            f"{directory}: the disk is full: {free // 1024} KiB are free, at least"
            f" {LEAST_FREE_BYTES // 1024} are needed; free some, then start again (nothing is lost)"
        )


def _leave_witness(directory: Path) -> None:
    """Say beside a store that it is there; only once it is durable."""
    witness = directory / WITNESS
    if witness.exists():
        return
    try:
        witness.touch(mode=0o600)
        sync_directory(directory)
    except OSError as error:
        raise LocalFault(f"{witness}: cannot be written: {error.strerror}") from None


def _tells_of_damage(error: Exception) -> bool:
    """Whether LMDB found its pages wrong: its own codes are negative, those of the system are not."""
    return isinstance(error, lmdb.Error) and getattr(error, "code", 0) <= 0


def _damaged(directory: Path, what: str) -> Damaged:
    return Damaged(
        f"{directory}: damaged: {what}; restore a backup, or fetch the chain anew: gtx backup reset"
    )


def _open_environment(directory: Path, limits: StoreLimits, *, read_only: bool) -> lmdb.Environment:
    data = directory / "data.mdb"
    try:
        existing = data.stat().st_size if data.exists() else 0
        environment = lmdb.open(
            str(directory),
            map_size=max(limits.initial_bytes, existing),
            max_dbs=0,
            max_readers=16,
            readonly=read_only,
            readahead=False,
            mode=0o600,
        )
    except _UNUSABLE as error:
        raise LocalFault(f"{directory}: the store cannot be opened: {error}") from None
    except lmdb.Error as error:
        raise _damaged(directory, f"the store cannot be opened: {error}") from None
    _cover_all_pages(data, environment)
    if not existing:
        sync_directory(directory)
    return environment


def _cover_all_pages(data: Path, environment: lmdb.Environment) -> None:
    """Make the file as long as LMDB believes it is.

    LMDB maps the file and trusts it, so reading a page beyond the end is a bus error and no
    exception. The end may legally be missing (pages freed in the transaction that took them are
    never written); pages that matter and were cut off now read as zeros, which LMDB or our
    checksums report as damage.
    """
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if 0 < data.stat().st_size < needed:
        os.truncate(data, needed)
