"""Small files that must survive a crash: written whole or not at all."""

import contextlib
import os
from pathlib import Path

from gridtokenx.core.errors import LocalFault


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`, durably; a crash leaves the old content or the new.

    Raises:
        LocalFault: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise LocalFault(f"{path}: cannot be written: {error.strerror}") from None


def sync_directory(directory: Path) -> None:
    """Make new names in a directory survive a power cut, as their contents do."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """The content of `path`.

    Raises:
        LocalFault: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalFault(f"{path}: cannot be read: {error.strerror}") from None
