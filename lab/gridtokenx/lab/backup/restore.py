"""Making a home of a backup, and emptying a store whose contents are lost."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Write
from gridtokenx.host.files import sync_directory
from gridtokenx.host.restored import mark_writes, revive_write
from gridtokenx.host.storage import DirectoryLock, Store
from gridtokenx.lab.backup.archive import FileEntry, Manifest, Moved, read_archive
from gridtokenx.lab.backup.contents import point_inside
from gridtokenx.lab.backup.scratch import require_room, scratch_in
from gridtokenx.lab.verify.home import CONFIG, node_chain, node_identity, open_home
from gridtokenx.ledger.records import final_height


def restore(archive: Path, home: Path, *, sign_at_once: bool = False) -> tuple[Manifest, list[str]]:
    """Make a home of a backup; it appears whole or not at all.

    Args:
        archive: the backup.
        home: an empty directory, or none yet.
        sign_at_once: do not let a node follow first; see `gtx backup restore --help`.

    Returns:
        What it is of, and lines about what a person should know.

    Raises:
        LocalFault: a damaged archive, a directory that is not empty, or one that cannot be written.
    """
    try:
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise LocalFault(f"{home}: is not empty; a backup is restored into a new directory")
        home.absolute().parent.mkdir(parents=True, exist_ok=True)
        with scratch_in(home.absolute().parent) as partial:
            manifest = read_archive(archive, lambda entry: _open_new(partial, entry))
            if manifest.kind == "node" and manifest.data:
                require_room(partial)
            _check_store(archive, partial, manifest)
            lines = _settle(partial, home, manifest, sign_at_once=sign_at_once)
            if home.exists():
                home.rmdir()
            partial.rename(home)
            sync_directory(home.absolute().parent)
    except OSError as error:
        raise LocalFault(f"{home}: cannot be made: {error.strerror or error}") from None
    return manifest, lines


def reset(home_path: Path) -> Path | None:
    """Put a stopped node's store away, and leave an empty one that follows before it signs.

    Returns:
        Where the old store is now; None if there was none.

    Raises:
        LocalFault: no node's home, or its process runs.
    """
    home = open_home(home_path)
    data = home.file("data")
    if not home.is_node or data is None:
        raise LocalFault(f"{home_path}: is no node's home; only a node's store can be reset")
    chain, identity = node_chain(home), node_identity(home)
    kept: Path | None = None
    if data.exists():
        DirectoryLock(data).release()  # nobody uses it
        kept = data.with_name(f"{data.name}.put-away-{_now_ms()}")
        data.rename(kept)
    writes = _last_marks(kept, chain.name)
    store = Store.open(data)
    try:
        store.put_now(*writes)
        store.bind("chain", chain.chain_id)
        if identity is not None:
            store.bind("identity", identity)
    finally:
        store.close()
    return kept


def _last_marks(old: Path | None, chain: str) -> tuple[Write, ...]:
    """The mark of an emptied store, with what the old one can still tell of its votes."""
    reason = "its store was reset"
    if old is not None:
        try:
            store = Store.open(old, read_only=True)
            try:
                return tuple(mark_writes(store, chain, reason, _now_ms()))
            finally:
                store.close()
        except LocalFault:
            pass  # it is damaged: that is why it was put away
    return tuple(mark_writes(_Nothing(), chain, reason, _now_ms()))


class _Nothing:
    """A store without records."""

    def get(self, table: str, key: bytes) -> bytes | None:  # noqa: ARG002 - the port's signature
        """None."""
        return None

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:  # noqa: ARG002
        """No records."""
        return iter(())


def _open_new(home: Path, entry: FileEntry) -> IO[bytes]:
    path = home / entry.path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    return os.fdopen(os.open(path, flags, entry.mode & 0o700 | entry.mode & 0o044), "wb")


def _check_store(archive: Path, home: Path, manifest: Manifest) -> None:
    if manifest.kind != "node" or manifest.height < 0:
        return
    store = Store.open(home / manifest.data, read_only=True)
    try:
        store.check()
        head = final_height(store)
    finally:
        store.close()
    if head != manifest.height:
        raise LocalFault(f"{archive}: its store is at block {head}, not {manifest.height}")


def _settle(partial: Path, home: Path, manifest: Manifest, *, sign_at_once: bool) -> list[str]:
    """Bring paths and signing in order for the place where it will live."""
    lines: list[str] = []
    for moved in manifest.moved:
        lines += _settle_path(partial, home, moved)
    if manifest.kind != "node" or not manifest.data:
        return lines
    store = Store.open(partial / manifest.data)
    try:
        if manifest.final:
            store.put_now(revive_write())
            lines.append(
                "this was a final backup: the node signs at once; restore it this once only"
            )
        elif sign_at_once:
            lines.append("the node signs at once: if it signed anything after the backup, it lies")
        else:
            store.put_now(*mark_writes(store, manifest.chain, "a backup", _now_ms()))
            lines.append(
                "it follows first: it signs again by itself once nothing that this key signed after"
                " the backup can be contradicted (see /ready, docs/decisions/0004-restoring.md)"
            )
    finally:
        store.close()
    return lines


def _settle_path(partial: Path, home: Path, moved: Moved) -> list[str]:
    place = Path(os.path.normpath(home.absolute() / moved.value))
    if moved.key not in ("data", "keys") and place.is_file():
        return []  # the same relative path exists at the new place
    point_inside(partial, moved)
    return [f"{CONFIG}: {moved.key} is now {moved.path!r} (it was {moved.value!r})"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
