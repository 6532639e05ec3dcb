"""Where a backup or a home is put together before it appears: a directory beside it.

Law of the file: **who is killed leaves nothing for ever, and nobody takes what is in use.** A scratch
directory belongs to whoever holds the lock on its file `lock`, which the kernel drops with that
process's death. Making one first clears those in the same place that nobody holds.

Ours between the processes: a lock counts only while its file still lies under its name. So whoever
clears a directory holds the very lock that its maker would need, and a maker whose directory was
cleared before it was locked notices and makes another.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gridtokenx.host.storage import LEAST_FREE_BYTES

PREFIX: Final = ".gtx-backup-"
LOCK: Final = "lock"


@contextlib.contextmanager
def scratch_in(parent: Path) -> Iterator[Path]:
    """An empty directory for this process, on the disk of what is made; gone afterwards.

    Raises:
        OSError: it cannot be written there.
    """
    clear_left_over(parent)
    outer, held = _make(parent)
    try:
        inner = outer / "made"
        inner.mkdir(mode=0o700)
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        os.close(held)


def clear_left_over(parent: Path) -> None:
    """Remove the scratch directories of processes that are gone, as far as that is possible."""
    for outer in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = outer.lstat()
            if outer.is_symlink() or not outer.is_dir() or found.st_uid != os.geteuid():
                continue
            held = _hold(outer / LOCK)
            if held is not None:
                shutil.rmtree(outer, ignore_errors=True)
                os.close(held)


def require_room(directory: Path) -> None:
    """Refuse a disk so full that LMDB could not map its lock file there, which would be a bus error.

    Raises:
        OSError: it is full.
    """
    found = os.statvfs(directory)
    if found.f_bavail * found.f_frsize < LEAST_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            held = _hold(outer / LOCK)
        except FileNotFoundError:
            continue  # somebody took it for left over before it was locked
        except OSError:
            shutil.rmtree(outer, ignore_errors=True)
            raise
        if held is not None:
            return outer, held


def _hold(lock: Path) -> int | None:
    """Lock a file, made if need be; None where another process holds or has just removed it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
