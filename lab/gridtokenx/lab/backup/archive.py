"""The archive: a tar file that proves itself.

::

    manifest.json     what it is of, and path, size, mode and SHA-256 of every file
    files/...         in the manifest's order
    seal              SHA-256 of manifest.json

Law of the file: **an archive is believed as a whole or not at all.** Names come from the manifest,
never from the tar's headers, and none leads out of the directory that it is unpacked into.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Final, Protocol

import msgspec

from gridtokenx.core.errors import LocalFault

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SEAL: Final = "seal"
FILES: Final = "files/"
MOST_MANIFEST_BYTES: Final = 16 * 1024 * 1024
_CHUNK: Final = 1024 * 1024


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a home."""

    path: str
    """Relative to the home, with forward slashes."""
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)]


class Moved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file or directory that the configuration names outside the home."""

    key: str
    """Of the configuration: ``authority``, ``public.genesis``."""
    value: str
    """What the configuration says."""
    path: str
    """Where in the archive it is."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive is of."""

    format: int
    made_ms: int
    """Wall time in Unix milliseconds."""
    kind: str
    """``node``, ``gateway`` or ``process``."""
    chain: str
    """Of a node; else empty."""
    chain_id: str
    """Hexadecimal; of a node."""
    identity: str
    """Hexadecimal public key; empty where there is none."""
    height: int
    """A node's last final block; -1 where there is none."""
    final: bool
    """The home was retired: nothing was signed after this."""
    data: str
    """Path of the store's directory; empty where there is none."""
    moved: tuple[Moved, ...]
    files: tuple[FileEntry, ...]


class Sink(Protocol):
    """Where a file's content goes."""

    def write(self, data: bytes, /) -> int:
        """Take a piece."""
        ...


OpenSink = Callable[[FileEntry], AbstractContextManager[Sink]]


class DamagedArchive(LocalFault):
    """An archive that is not what was written, or no archive."""


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def write_archive(file: IO[bytes], manifest: Manifest, source: Callable[[str], Path]) -> None:
    """Write an archive.

    Args:
        file: where to.
        manifest: of it; its hashes are those of the files as they are now.
        source: where the file with a path lies.
    """
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_bytes(tar, MANIFEST, encoded)
        for entry in manifest.files:
            info = tarfile.TarInfo(FILES + entry.path)
            info.size, info.mode = entry.size, entry.mode
            with source(entry.path).open("rb") as content:
                tar.addfile(info, content)
        _add_bytes(tar, SEAL, hashlib.sha256(encoded).hexdigest().encode())


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))


# -- reading ---------------------------------------------------------------------------------------


def read_archive(path: Path, sink: OpenSink) -> Manifest:
    """Read a whole archive and believe it.

    Args:
        path: of the archive.
        sink: opens where a file's content goes; it is closed here.

    Raises:
        DamagedArchive: it is not what was written.
        LocalFault: it cannot be read.
        OSError: of the sink.
    """
    with _open(path) as file, _damage(path), tarfile.open(fileobj=file, mode="r:") as tar:
        encoded = _read_small(tar, path, MANIFEST)
        manifest = _parse(encoded, path)
        for entry in manifest.files:
            _copy(tar, path, entry, sink)
        if _read_small(tar, path, SEAL) != hashlib.sha256(encoded).hexdigest().encode():
            raise DamagedArchive(f"{path}: damaged: the seal is not that of its manifest")
        return manifest


class _File(io.FileIO):
    """An archive being read, whose faults are told from those of where its content goes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        """As every file does.

        Raises:
            LocalFault: it cannot.
        """
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _unreadable(self._path, error) from None


def _open(path: Path) -> IO[bytes]:
    try:
        return io.BufferedReader(_File(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> LocalFault:
    return LocalFault(f"{path}: cannot be read: {error.strerror or error}")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise DamagedArchive(f"{path}: no backup, or a damaged one: {error}") from None


def _next(tar: tarfile.TarFile, path: Path, name: str) -> IO[bytes]:
    info = tar.next()
    if info is None:
        raise DamagedArchive(f"{path}: damaged: it ends before {name}")
    content = tar.extractfile(info) if info.isreg() else None
    if info.name != name or content is None:
        raise DamagedArchive(f"{path}: no backup, or a damaged one: expected {name}")
    return content


def _read_small(tar: tarfile.TarFile, path: Path, name: str) -> bytes:
    data = _next(tar, path, name).read(MOST_MANIFEST_BYTES + 1)
    if len(data) > MOST_MANIFEST_BYTES:
        raise DamagedArchive(f"{path}: damaged: {name} is too large")
    return data


def _parse(encoded: bytes, path: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedArchive(f"{path}: damaged: its manifest: {error}") from None
    if manifest.format != FORMAT:
        raise LocalFault(f"{path}: backup format {manifest.format}, this program reads {FORMAT}")
    for name in (*(entry.path for entry in manifest.files), *(m.path for m in manifest.moved)):
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise DamagedArchive(f"{path}: damaged: {name!r} leads out of the home")
    return manifest


def _copy(tar: tarfile.TarFile, path: Path, entry: FileEntry, sink: OpenSink) -> None:
    digest, size = hashlib.sha256(), 0
    content = _next(tar, path, FILES + entry.path)
    with sink(entry) as out:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise DamagedArchive(f"{path}: damaged: {entry.path} is not what was backed up")
