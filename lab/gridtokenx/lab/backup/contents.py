"""What of a home goes into a backup, and where outside it the configuration points."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.config import toml_value
from gridtokenx.lab.backup.archive import Moved
from gridtokenx.lab.verify.home import CONFIG, Home

LEFT_OUT: Final = re.compile(r"log|.*\.log|pid|.*\.lock|lock\.mdb|.*\.partial|.*-(wal|shm|journal)")
"""What a process makes anew, or what is only of this moment."""
PASSWORD_KEYS: Final = ("keys_password_file",)
"""A password does not go where its keys go."""
_LINE: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_TABLE: Final = re.compile(r"\s*\[([A-Za-z0-9_.-]+)\]\s*(#.*)?")


def plain_files(home: Path, data: Path | None) -> Iterator[Path]:
    """Files of a home that are copied as they are, its store apart."""
    for path in sorted(home.rglob("*")):
        in_data = data is not None and path.is_relative_to(data)
        if path.is_file() and not in_data and not LEFT_OUT.fullmatch(path.name):
            yield path


def outside(home: Home) -> Iterator[tuple[Moved, Path]]:
    """What the configuration names outside the home, and where that is."""
    for key, value in _strings(home.config, ""):
        place = home.path / value
        if key in PASSWORD_KEYS or not value or not place.exists() or _is_in(place, home.path):
            continue
        if key in ("data", "keys"):
            yield Moved(key, value, key), place
        elif place.is_file():
            yield Moved(key, value, f"outside/{key}-{place.name}"), place


def _strings(table: dict[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _strings(value, f"{prefix}{key}.")
        elif isinstance(value, str) and "\0" not in value and len(value) < 1_000:
            yield prefix + key, value


def _is_in(path: Path, home: Path) -> bool:
    return path.resolve().is_relative_to(home.resolve())


def point_inside(home: Path, moved: Moved) -> None:
    """Let the configuration of a home name what was brought into it.

    Raises:
        LocalFault: the key is not found in a line of its own.
    """
    path = home / CONFIG
    table, _, name = moved.key.rpartition(".")
    lines, current = path.read_text(encoding="utf-8").splitlines(keepends=True), ""
    for index, line in enumerate(lines):
        header, entry = _TABLE.fullmatch(line.rstrip("\n")), _LINE.match(line)
        if header is not None:
            current = header[1]
        elif entry is not None and (current, entry[1]) == (table, name):
            lines[index] = f"{name} = {toml_value(moved.path)}\n"
            path.write_text("".join(lines), encoding="utf-8")
            return
    raise LocalFault(f"{path}: {moved.key} is not in a line of its own; set it to {moved.path!r}")
