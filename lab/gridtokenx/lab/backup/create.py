"""Making a backup of a running or stopped process's home."""

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from msgspec.structs import replace

from gridtokenx.core.errors import LocalFault
from gridtokenx.gateway.process import INDEX_FILE
from gridtokenx.host.files import sync_directory
from gridtokenx.host.restored import retire_write
from gridtokenx.host.storage import Store, snapshot
from gridtokenx.lab.backup.archive import FORMAT, FileEntry, Manifest, hash_file, write_archive
from gridtokenx.lab.backup.contents import outside, plain_files
from gridtokenx.lab.backup.scratch import require_room, scratch_in
from gridtokenx.lab.verify.home import Home, node_chain, node_identity, open_home
from gridtokenx.ledger.records import final_height

_CHUNK_BYTES: Final = 1024 * 1024
_WRITING: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
}
"""What SQLite says of the copy; an index is only read."""


@dataclass(slots=True)
class _Collected:
    """What will be in the archive: where each path's content lies."""

    manifest: Manifest
    sources: dict[str, Path]


def create(path: Path, target: Path, *, final: bool) -> Manifest:
    """Back up a home into one file, which appears whole or not at all.

    Args:
        path: of the home; its process may run, unless the backup is final.
        target: the archive; must not exist, nor lie in what is backed up.
        final: retire the home: its node will not start here again, so that nothing can be signed
            after the backup.

    Raises:
        LocalFault: no home, a damaged store, a running process that would have to be stopped, or
            a place that cannot be written.
    """
    home = open_home(path)
    try:
        _refuse_place(home, target)
        with scratch_in(target.absolute().parent) as scratch:
            if final:
                require_room(scratch)
                _retire(home)
            collected = _collect(home, scratch, final=final)
            _write(target, scratch, collected)
    except OSError as error:
        raise LocalFault(f"{target}: cannot be written: {error.strerror or error}") from None
    return collected.manifest


def _refuse_place(home: Home, target: Path) -> None:
    """A place that an archive cannot have.

    Raises:
        LocalFault: something is there, or it would become part of the next backup, or of this.
    """
    if target.exists():
        raise LocalFault(f"{target}: exists; choose another name")
    directory = target.absolute().parent
    if not directory.is_dir():
        raise LocalFault(f"{target}: its directory does not exist")
    for backed_up in (home.path, home.file("data"), home.file("keys")):
        if backed_up is not None and directory.resolve().is_relative_to(backed_up.resolve()):
            raise LocalFault(
                f"{target}: is inside {backed_up}, which is backed up; choose a place outside"
            )


def _retire(home: Home) -> None:
    """Forbid the home's node to start again.

    Raises:
        LocalFault: it runs, or is no node.
    """
    data = home.file("data")
    if not home.is_node or data is None:
        raise LocalFault(f"{home.path}: only a node's backup can be final")
    store = Store.open(data)
    try:
        store.put_now(retire_write(_now_ms()))
    finally:
        store.close()


def _write(target: Path, scratch: Path, collected: _Collected) -> None:
    partial = scratch / "archive"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        write_archive(file, collected.manifest, lambda name: collected.sources[name])
        file.flush()
        os.fsync(file.fileno())
    os.link(partial, target)  # unlike a rename, never over somebody else's file
    sync_directory(target.absolute().parent)


# -- contents --------------------------------------------------------------------------------------


def _collect(home: Home, scratch: Path, *, final: bool) -> _Collected:
    data = home.file("data")
    blank = Manifest(FORMAT, _now_ms(), "process", "", "", "", -1, final, "", (), ())
    sources: dict[str, Path] = {}
    manifest = blank
    if home.is_node and data is not None:
        manifest = _collect_node(home, data, scratch, blank, sources)
    elif home.is_gateway and data is not None:
        manifest = _collect_gateway(home, data, scratch, blank, sources)
    held_apart = data if manifest.data else None
    moved = []
    for entry, place in outside(home):
        moved.append(entry)
        if entry.key == "keys":
            sources.update({f"keys/{f.name}": f for f in plain_files(place, None)})
        elif entry.key != "data":
            sources[entry.path] = place
        elif not manifest.data:
            sources.update({f"data/{f.relative_to(place)}": f for f in plain_files(place, None)})
    for path in plain_files(home.path, held_apart):
        sources[path.relative_to(home.path).as_posix()] = path
    settled = _settle(sources, scratch)
    files = tuple(_entry(name, path) for name, path in sorted(settled.items()))
    return _Collected(replace(manifest, moved=tuple(moved), files=files), settled)


def _collect_node(
    home: Home, data: Path, scratch: Path, blank: Manifest, sources: dict[str, Path]
) -> Manifest:
    chain = node_chain(home)
    if not (data / "data.mdb").is_file():
        return replace(blank, kind="node", chain=chain.name, chain_id=chain.chain_id.hex())
    copy = scratch / "data"
    snapshot(data, copy)
    require_room(scratch)
    store = Store.open(copy, read_only=True)
    try:
        store.check()
        head = final_height(store)
        identity = node_identity(home) or store.get("store", b"identity") or b""
    finally:
        store.close()
    name = _data_name(home, data)
    sources[f"{name}/data.mdb"] = copy / "data.mdb"
    return replace(
        blank,
        kind="node",
        chain=chain.name,
        chain_id=chain.chain_id.hex(),
        identity=identity.hex(),
        height=-1 if head is None else head,
        data=name,
    )


def _collect_gateway(
    home: Home, data: Path, scratch: Path, blank: Manifest, sources: dict[str, Path]
) -> Manifest:
    index = data / INDEX_FILE
    name = _data_name(home, data)
    if index.is_file():
        copy = scratch / INDEX_FILE
        try:
            with (
                contextlib.closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) in _WRITING:
                raise OSError(str(error)) from None
            raise LocalFault(f"{index}: cannot be copied: {error}; see: gtx verify") from None
        sources[f"{name}/{INDEX_FILE}"] = copy
    identity = node_identity(home)
    return replace(blank, kind="gateway", identity=identity.hex() if identity else "", data=name)


def _data_name(home: Home, data: Path) -> str:
    inside = data.resolve().is_relative_to(home.path.resolve())
    return data.resolve().relative_to(home.path.resolve()).as_posix() if inside else "data"


def _settle(sources: dict[str, Path], scratch: Path) -> dict[str, Path]:
    """Copies that nobody changes any more; what lies in `scratch` already is one."""
    settled: dict[str, Path] = {}
    for number, (name, path) in enumerate(sources.items()):
        if path.is_relative_to(scratch):
            settled[name] = path
            continue
        settled[name] = scratch / f"file-{number}"
        _copy(path, settled[name])
    return settled


def _copy(path: Path, copy: Path) -> None:
    """Copy a file's content and mode; what cannot be read is told from what cannot be written.

    Raises:
        LocalFault: it cannot be read, or changes meanwhile.
        OSError: the copy cannot be written.
    """
    with contextlib.ExitStack() as files:
        out = files.enter_context(copy.open("xb"))
        try:
            source = files.enter_context(path.open("rb", buffering=0))
            before = os.fstat(source.fileno())
        except OSError as error:
            raise _unreadable(path, error) from None
        while chunk := _read(path, source):
            out.write(chunk)
        after = os.fstat(source.fileno())
        copy.chmod(before.st_mode & 0o777)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise LocalFault(f"{path}: changes while it is copied; stop the process first")


def _read(path: Path, source: IO[bytes]) -> bytes:
    try:
        return source.read(_CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> LocalFault:
    return LocalFault(f"{path}: cannot be read: {error.strerror or error}")


def _entry(name: str, path: Path) -> FileEntry:
    size, digest = hash_file(path)
    return FileEntry(name, size, digest, path.stat().st_mode & 0o777)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
