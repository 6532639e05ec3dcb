"""The manifest is typed, complete by default, and refuses what it does not know in one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.consortium.market.parameters import MarketParameters
from gridtokenx.core.errors import LocalFault
from gridtokenx.devices.fleet.agents import AgentsSettings
from gridtokenx.devices.fleet.bidder import GATE_MARGIN_MS
from gridtokenx.host.config import fields
from gridtokenx.lab.manifest import (
    AHEAD_INTERVALS,
    BIDDING_MS,
    GATE_MS,
    Devices,
    Manifest,
    Public,
    dump_manifest,
    load_manifest,
    parse_manifest,
)
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.oracle.chain.parameters import MeterParameters

LOCAL = Path(__file__).parents[2] / "compose" / "manifests" / "local.toml"


def test_the_shipped_manifest_is_the_default() -> None:
    assert load_manifest(LOCAL) == Manifest()


@given(
    st.builds(
        Manifest,
        seed=st.integers(0, 2**63 - 1),
        public=st.builds(Public, validators=st.integers(1, 100), slot_ms=st.integers(500, 60_000)),
        devices=st.builds(Devices, households=st.integers(2, 10_000)),
    )
)
def test_a_dumped_manifest_reads_back(manifest: Manifest) -> None:
    assert parse_manifest(dump_manifest(manifest), "dump") == manifest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[public]\nvalidatrs = 3", "unknown key 'public.validatrs'; did you mean 'validators'"),
        ("wind = 1", "unknown key 'wind'; known: name, seed"),
        ("public = 3", "public is a table, not 3"),
        ("[public]\nvalidators = 0", "public.validators: Expected `int` >= 1"),
        ("[public]\nvalidators = 'four'", "public.validators: Expected `int`, got `str`"),
        ("[public]\nvalidators = 4\ncandidates = 2", "public.candidates = 2 is fewer than"),
        ("[time]\nstart = 'tomorrow'", "time.start is 'tomorrow'; write a date"),
        ("[time]\nstart = '2026-04-22T09:00:00'", "needs an offset"),
        ("[time]\nstart = '2026-04-22T09:10:00+07:00'", "not on a whole half hour"),
        ("[time]\nstart = '1969-12-31T23:30:00+00:00'", "outside the years 1971 to 2199"),
        ("[time]\nstart = '0001-01-01T00:00:00+07:00'", "outside the years 1971 to 2199"),
        ("[time]\nstart = '9999-12-31T23:30:00-07:00'", "outside the years 1971 to 2199"),
        ("[time]\nstart = 7", "time.start: Expected `str`, got `int`"),
        ("[time]\nscale = 3600", "time.scale = 3600: a half hour lasts 500 ms"),
        ("[devices]\nbattery_percent = 60", "devices.battery_percent = 60 exceeds"),
        ("[devices]\nhouseholds = 10001", "devices.households: Expected `int` <= 10000"),
        ("[ports]\ngateway = 26610", "ports.gateway = 26610 is one of the ports 26600 to 26631"),
        (
            "[ports]\nbase = 64990\ngateway = 2000\n[public]\nvalidators = 100\ncandidates = 400",
            "at most",
        ),
        ("name = 'Not Allowed'", "name: Expected `str` matching regex"),
        ("= 3", "not TOML"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(text)
    with pytest.raises(LocalFault) as refusal:
        load_manifest(path)
    assert sentence in str(refusal.value)
    assert str(path) in str(refusal.value) or "time.start" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot be read"):
        load_manifest(tmp_path / "none.toml")


def test_the_manifest_allows_no_grace_that_the_oracle_chain_refuses() -> None:
    """It allowed one second, and the network then failed at its start."""
    least = MeterParameters().request_and_view_change_ms + 1
    MeterParameters(grace_ms=least).check()
    assert parse_manifest(f"[oracle]\ngrace_ms = {least}\n", "least").oracle.grace_ms == least
    with pytest.raises(LocalFault, match="grace_ms"):
        parse_manifest(f"[oracle]\ngrace_ms = {least - 1}\n", "less")


def test_the_ports_of_the_default_network_are_those_that_the_check_counts() -> None:
    layout = Layout(Path("home"), Manifest())
    others = [m for m in layout.members if m.name != "gateway"]
    ports = sorted(port for m in others for port in (m.peer_port, m.http_port) if port)
    assert ports == list(range(26_600, 26_632))


def test_the_testnet_bids_as_far_ahead_as_the_check_believes() -> None:
    ahead = next(field for field in fields(AgentsSettings) if field.key == "ahead")
    assert ahead.default == AHEAD_INTERVALS
    assert MarketParameters().gate_network_ms == GATE_MS
    assert GATE_MARGIN_MS == BIDDING_MS
