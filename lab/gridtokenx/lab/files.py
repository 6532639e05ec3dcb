"""Files that commands read and write: refused early, each in one line.

Law of the file: **what cannot be read or written is said before the work, not after it**, and a file
that was there stays as it was until the new one is whole.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from gridtokenx.core.errors import LocalFault


def read_regular(path: Path) -> bytes:
    """All of a regular file: a device may have no end, and a pipe makes one wait for ever.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def read_manifest(path: Path) -> str:
    """The text of a manifest.

    Raises:
        LocalFault: it cannot be read, or is no text.
    """
    try:
        return read_regular(path).decode()
    except OSError as error:
        raise LocalFault(f"manifest {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LocalFault(f"manifest {path}: cannot be read: {error}") from None


def check_outputs(*paths: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Refuse files that could not be written, or would replace what the work is made of.

    Leaves everything as it was.

    Args:
        paths: what will be written; None is nothing.
        inputs: what is read.

    Raises:
        LocalFault: the first that cannot be written, is read, or is to be written twice.
    """
    taken = {path.resolve(): "is what this command reads" for path in inputs}
    for path in filter(None, paths):
        place = path.resolve()
        if place in taken and (path.is_file() or not path.exists()):
            raise LocalFault(f"{path}: {taken[place]}; write to another file")
        taken[place] = "would be written twice"
        missing = [parent for parent in path.parents if not parent.exists()]
        _make(path, _probe)
        for parent in missing:
            parent.rmdir()


def save(path: Path, make: Callable[[Path], object], *, say: bool = True) -> None:
    """Write a file and say so.

    Args:
        path: where.
        make: writes it to the path that it is given.
        say: whether to say so.

    Raises:
        LocalFault: it cannot be written.
    """
    _make(path, lambda where: _exchange(where, make))
    if say:
        click.echo(f"written: {path}")


def write(path: Path, text: str) -> None:
    """Write a file, without a word.

    Raises:
        LocalFault: it cannot be written.
    """
    save(path, lambda where: where.write_text(text, encoding="utf-8"), say=False)


def _make(path: Path, make: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    except OSError as error:
        raise LocalFault(f"{path}: cannot be written: {error.strerror or error}") from None


def _exchange(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file beside and put it in place; what cannot be exchanged is written as it is."""
    special = path.is_symlink() or (path.exists() and not path.is_file())
    if special or not os.access(path.parent, os.W_OK):
        make(path)
        return
    new = path.with_name(f".{os.getpid()}.new{path.suffix}")
    try:
        make(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _probe(path: Path) -> None:
    """Open a file as if to write it; what is no file (a device, a pipe) is only looked at."""
    new = not path.exists()
    if not new and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    with path.open("ab"):
        pass
    if new:
        path.unlink()
