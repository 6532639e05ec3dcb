"""Whom the embedded broker lets in: the clients file, read again when it changes."""

from pathlib import Path

import msgspec
import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.devices.fleet.clients import Clients, ClientsFile, admit, read_clients

FIRST, SECOND = "11" * 32, "22" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "clients.json"
    path.write_bytes(msgspec.json.encode(Clients(oracles=(FIRST,), devices=())))
    return path


def test_a_client_that_is_admitted_is_known_at_once(path: Path) -> None:
    file = ClientsFile(path)
    assert admit(path, SECOND, "oracle")
    assert file.read().oracles == (FIRST, SECOND)
    assert not admit(path, SECOND, "oracle")


def test_devices_are_admitted_where_only_named_ones_may_enter(path: Path) -> None:
    assert admit(path, SECOND, "device")
    assert read_clients(path).devices == (SECOND,)


def test_any_device_may_enter_where_none_is_named(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(Clients(oracles=())))
    assert not admit(path, SECOND, "device")
    assert read_clients(path).devices is None


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_file_that_cannot_be_read_changes_nothing(path: Path, harm: str) -> None:
    file = ClientsFile(path)
    if harm == "gone":
        path.unlink()
    else:
        path.write_text("{")
    assert file.read().oracles == (FIRST,)
    path.write_bytes(msgspec.json.encode(Clients(oracles=(SECOND,))))
    assert file.read().oracles == (SECOND,)


def test_only_keys_are_admitted(path: Path) -> None:
    with pytest.raises(LocalFault, match="64 hexadecimal digits"):
        admit(path, "nobody", "oracle")
    assert read_clients(path).oracles == (FIRST,)
