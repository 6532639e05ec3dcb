"""What the device processes refuse to start with: one line that says what, where and what to do."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.devices.fleet.broker import BrokerSettings, run_broker
from gridtokenx.devices.fleet.clients import read_clients
from gridtokenx.devices.fleet.fleet import FleetSettings, load_households
from gridtokenx.devices.fleet.profiles import plan_neighbourhood
from gridtokenx.devices.fleet.roster import Roster, make_roster, read_roster
from gridtokenx.devices.models.profiles import STEP_MS, Profile, pack_profiles
from gridtokenx.host.broker import parse_broker
from gridtokenx.host.keyfile import KeyRing, create_development_password

ROSTER = make_roster(plan_neighbourhood(1, 2, 1, 1).specs, [0, 0])


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost", "mqtt://", "mqtt://host:port", "mqtt://h:99999"]
)
def test_a_broker_that_is_no_address(url: str) -> None:
    with pytest.raises(LocalFault, match="is not mqtt"):
        parse_broker(url)


def test_a_broker_with_everything(tmp_path: Path) -> None:
    address = parse_broker("mqtt://us%40er:pass@host:1234")
    assert (address.host, address.port, address.tls) == ("host", 1234, None)
    assert (address.username, address.password) == ("us@er", "pass")
    assert parse_broker("mqtt://host").port == 1883
    assert parse_broker("mqtts://host").port == 8883
    with pytest.raises(LocalFault, match=r"absent\.pem"):
        parse_broker("mqtts://host", tmp_path / "absent.pem")


def test_a_roster_reads_back_and_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_bytes(ROSTER.encode())
    assert read_roster(path) == ROSTER
    assert b'"inverter_ac_w"' in path.read_bytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "no roster"),
        (b'{"households": []}', "no roster"),
        (ROSTER.encode().replace(b'"meter"', b'"toaster"', 1), "no roster"),
        (ROSTER.encode().replace(b"h01-meter", b"h00-meter"), "h00-meter stands there twice"),
        (ROSTER.encode().replace(b'"zone": 0', b'"zone": -1', 1), "no roster"),
    ],
)
def test_a_roster_that_is_none(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "roster.json"
    path.write_bytes(content)
    with pytest.raises(LocalFault, match=problem) as refusal:
        read_roster(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"[]", b'{"oracles": ["00"]}', b'{"oracles": [], "devices": ["zz"]}', b'{"x": 1}']
)
def test_a_clients_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clients.json"
    path.write_bytes(content)
    with pytest.raises(LocalFault, match=r"clients\.json"):
        read_clients(path)


class Home:
    def __init__(self, path: Path, roster: Roster = ROSTER) -> None:
        (path / "roster.json").write_bytes(roster.encode())
        flat = Profile(0, STEP_MS, [100], [0])
        (path / "profiles.bin").write_bytes(pack_profiles(0, STEP_MS, [flat, flat]))
        ring = KeyRing.create(
            path / "keys", create_development_password(path / "keys"), scrypt_n=1024
        )
        for household in ROSTER.households:
            for device in household.devices:
                ring.generate(device.key)
        self.settings = FleetSettings(
            broker="mqtt://127.0.0.1",
            broker_protocol="3.1.1",
            roster=path / "roster.json",
            profiles=path / "profiles.bin",
            keys=path / "keys",
            data=path / "data",
            chain_id="0c" * 32,
            network_genesis_ms=0,
            grid_epoch_ms=0,
        )
        (path / "data").mkdir()


def test_a_home_in_order_is_loaded(tmp_path: Path) -> None:
    households = load_households(Home(tmp_path).settings)
    assert [len(household.devices) for household in households] == [3, 1]
    for household in households:
        household.close()


@pytest.mark.parametrize("chain_id", ["", "0c", "zz" * 32])
def test_a_chain_id_that_is_none(tmp_path: Path, chain_id: str) -> None:
    settings = msgspec.structs.replace(Home(tmp_path).settings, chain_id=chain_id)
    with pytest.raises(LocalFault, match="64 hexadecimal digits"):
        load_households(settings)


def test_a_missing_key_a_missing_profile_and_a_missing_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "keys" / "h01-meter.key").unlink()
    with pytest.raises(LocalFault, match="h01-meter"):
        load_households(home.settings)
    one = Profile(0, STEP_MS, [100], [0])
    (tmp_path / "profiles.bin").write_bytes(pack_profiles(0, STEP_MS, [one]))
    with pytest.raises(LocalFault, match="has profile 1"):
        load_households(home.settings)
    (tmp_path / "profiles.bin").unlink()
    with pytest.raises(LocalFault, match=r"profiles\.bin"):
        load_households(home.settings)


async def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalFault, match="choose another port"):
            await asyncio.wait_for(run_broker(BrokerSettings(port=port)), 5)


async def test_a_certificate_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    settings = BrokerSettings(port=0, certificate=tmp_path / "cert.pem")
    with pytest.raises(LocalFault, match="broker certificate"):
        await asyncio.wait_for(run_broker(settings), 5)
    settings = msgspec.structs.replace(settings, certificate_key=tmp_path / "cert.pem")
    with pytest.raises(LocalFault):
        await asyncio.wait_for(run_broker(settings), 5)
