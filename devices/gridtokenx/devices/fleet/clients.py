"""Whom the embedded broker lets in: a JSON file of keys, read again when it changes."""

import contextlib
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import structs

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.files import read_file, write_file
from gridtokenx.ledger import broker_access

Kind = Literal["oracle", "concentrator", "device"]
KINDS: Final[tuple[Kind, ...]] = ("oracle", "concentrator", "device")


class Clients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a broker's clients may be; keys in hexadecimal."""

    oracles: tuple[str, ...]
    """Nodes that read everything and publish watermarks."""
    concentrators: tuple[str, ...] = ()
    """Who carries the readings of many devices."""
    devices: tuple[str, ...] | None = None
    """The only devices that may connect; absent: any, for what they say is checked elsewhere."""


def read_clients(path: Path | None) -> Clients:
    """The clients file; without one there are no oracle nodes and any device may enter.

    Raises:
        LocalFault: it cannot be read or is no such file.
    """
    if path is None:
        return Clients(oracles=())
    try:
        clients = msgspec.json.decode(read_file(path), type=Clients)
    except msgspec.DecodeError as error:
        raise LocalFault(f"{path}: is no clients file: {error}") from None
    for name in (*clients.oracles, *clients.concentrators, *(clients.devices or ())):
        if broker_access.client_key(name) is None:
            raise LocalFault(f"{path}: {name!r} is no public key of 64 hexadecimal digits")
    return clients


class ClientsFile:
    """A clients file that is read again when it has changed.

    Args:
        path: of the file; None: see `read_clients`.

    Raises:
        LocalFault: it cannot be read or is no such file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen = self._stamp()
        self.clients: Clients = read_clients(path)
        """Who may be a client, as the file said when a client last came."""

    def read(self) -> Clients:
        """What the file says now; while it is gone or damaged, what it said before."""
        stamp = self._stamp()
        if stamp not in (None, self._seen):
            self._seen = stamp
            with contextlib.suppress(LocalFault):
                self.clients = read_clients(self._path)
        return self.clients

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes when the file does; None if there is none."""
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def admit(path: Path, key: str, kind: Kind) -> bool:
    """Let one more client in; a running broker takes note when it comes. Whether that is new.

    Raises:
        LocalFault: no such file, or no key.
    """
    clients = read_clients(path)
    if broker_access.client_key(key) is None:
        raise LocalFault(f"{key!r} is no public key of 64 hexadecimal digits")
    field = f"{kind}s"
    present = getattr(clients, field)
    if present is None or key in present:
        return False
    write_file(path, msgspec.json.encode(structs.replace(clients, **{field: (*present, key)})))
    return True
