"""Homes of processes in transport: made on the operator's machine, unpacked where each runs.

Law of the file: **a bundle never replaces a home.** It is unpacked where there is none, whole or not
at all, and is ignored for ever after: keys and chains live in the process's own volume then.

A bundle is compressed JSON, cut into parts that fit into any engine's secret::

    DIR/parts/NAME.000, NAME.001, ...    one process: its own directory and the public files
    DIR/operator/                        what no process reads: the wallet, the authorities' keys
"""

import gzip
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.files import read_file, write_file
from gridtokenx.lab.manifest import Manifest, load_manifest
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.placement import MACHINES

PART_BYTES: Final = 400_000
"""Swarm allows 500 kB a secret, Kubernetes 1 MiB with all of its names."""
LIKELY_PARTS: Final = 4
"""Enough for every process of a network with a hundred households."""
MAX_BYTES: Final = 512 * 1024 * 1024
PUBLIC: Final = "genesis"
SETTINGS: Final = ("config.toml", "mosquitto.conf")
"""What says, in a process's own directory, that the directory is whole."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: int
    data: bytes


class _Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    process: str
    files: dict[str, _File]
    """By path below the home, with slashes."""


def pack(home: Path, name: str) -> list[bytes]:
    """The parts of a process's bundle.

    Args:
        home: of the network.
        name: of the process.

    Raises:
        LocalFault: a file cannot be read.
    """
    files = {
        path.relative_to(home).as_posix(): _File(path.stat().st_mode & 0o777, read_file(path))
        for directory in (home / PUBLIC, home / name)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    whole = gzip.compress(msgspec.json.encode(_Bundle(name, files)), mtime=0)
    return [whole[start : start + PART_BYTES] for start in range(0, len(whole), PART_BYTES)]


def make_bundles(manifest: Manifest, directory: Path, report: Callable[[str], None]) -> None:
    """Make the homes of a network, bundle them, and keep the rest of it for its operator.

    Args:
        manifest: what the network is.
        directory: the bundles'; absent or empty.
        report: told what is being done.

    Raises:
        LocalFault: the directory cannot be used.
    """
    if directory.exists() and any(directory.iterdir()):
        raise LocalFault(f"{directory} is not empty: bundles never replace others")
    from gridtokenx.lab.testnet.initialise import initialise  # noqa: PLC0415 - imports pvlib

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    operator = directory / "operator"
    operator.mkdir(mode=0o700)
    layout = Layout(operator, manifest, MACHINES)
    initialise(layout, report)
    for member in layout.members:
        for index, part in enumerate(pack(operator, member.name)):
            # Engines mount it as it is, into a container whose user is not the operator.
            write_file(part_path(directory, member.name, index), part, mode=0o444)
        shutil.rmtree(operator / member.name)
    report(f"made {len(layout.members)} bundles in {directory / 'parts'}")


def count_parts(directory: Path, manifest: Manifest) -> dict[str, int]:
    """How many parts the bundle of each process has.

    Raises:
        LocalFault: there are no bundles, or they were made from another manifest.
    """
    made = load_manifest(directory / "operator" / PUBLIC / "manifest.toml")
    if made != manifest:
        raise LocalFault(
            f"{directory}: these bundles were made from another manifest; "
            "use that one, or make others: gtx testnet bundle"
        )
    names = sorted(path.name for path in (directory / "parts").iterdir())
    return dict(Counter(name.rpartition(".")[0] for name in names))


def part_path(directory: Path, name: str, index: int) -> Path:
    """Where a part of a bundle lies on the operator's machine."""
    return directory / "parts" / part_name(name, index)


def part_name(name: str, index: int) -> str:
    """What a part is called everywhere."""
    return f"{name}.{index:03}"


def parts_of(directory: Path, name: str) -> list[Path]:
    """The parts of a bundle in a directory, in order."""
    return sorted(directory.glob(f"{name}.[0-9][0-9][0-9]"))


def is_home(home: Path, name: str) -> bool:
    """Whether a process's own directory is whole."""
    return any((home / name / settings).is_file() for settings in SETTINGS)


def unpack(directory: Path, name: str, home: Path) -> bool:
    """Unpack a process's bundle, unless its home is there already.

    Args:
        directory: where its parts are.
        name: of the process.
        home: of the network.

    Returns:
        Whether anything was written.

    Raises:
        LocalFault: there is no such bundle, it is damaged, or it is another process's.
    """
    if is_home(home, name):
        return False
    paths = parts_of(directory, name)
    if not paths:
        raise LocalFault(
            f"{directory}: holds no bundle of {name}; make it with: gtx testnet bundle"
        )
    bundle = _decode(b"".join(map(read_file, paths)), name, directory)
    for path, file in _checked(bundle, directory):
        write_file(home / path, file.data, mode=file.mode)
    return True


def _decode(whole: bytes, name: str, directory: Path) -> _Bundle:
    try:
        with gzip.GzipFile(fileobj=BytesIO(whole)) as stream:
            data = stream.read(MAX_BYTES)
        bundle = msgspec.json.decode(data, type=_Bundle)
    except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise LocalFault(f"{directory}: the bundle of {name} is damaged: {error}") from None
    if bundle.process != name:
        raise LocalFault(f"{directory}: the bundle is of {bundle.process}, not of {name}")
    return bundle


def _checked(bundle: _Bundle, directory: Path) -> Iterator[tuple[PurePosixPath, _File]]:
    """Its files, the settings last: they are what says that a home is there."""
    settings = {f"{bundle.process}/{name}" for name in SETTINGS}
    for text in sorted(bundle.files, key=lambda text: text in settings):
        path = PurePosixPath(text)
        if (
            path.is_absolute()
            or ".." in path.parts
            or path.parts[0] not in (PUBLIC, bundle.process)
        ):
            raise LocalFault(f"{directory}: the bundle of {bundle.process} names {text!r}")
        yield path, bundle.files[text]
