"""Small parts of the testnet: counters over lives, network time, amounts, genesis files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import sha256
from gridtokenx.devices.fleet.profiles import plan_neighbourhood
from gridtokenx.devices.fleet.roster import make_roster
from gridtokenx.lab.manifest import Bridge, Consortium, Devices, Manifest, Public
from gridtokenx.lab.testnet import heartbeat
from gridtokenx.lab.testnet.counters import Counters
from gridtokenx.lab.testnet.genesis import TOTAL_GRID, make_network
from gridtokenx.lab.testnet.heartbeat import Heartbeat, write_beat
from gridtokenx.lab.wallet import parse_amount, render_amount
from gridtokenx.ledger.identity import derive_chain_id


def metrics(value: int) -> str:
    return f'# TYPE gtx_x_total counter\ngtx_x_total{{a="b"}} {value}.0\ngtx_x_total{{a="c"}} 1.0\n'


def test_a_restarted_process_keeps_what_its_earlier_lives_counted() -> None:
    counters = Counters({"one": 1, "two": 2})
    counters._take("one", metrics(5))
    counters._take("two", metrics(3))
    assert counters.total("gtx_x_total") == 10
    counters._take("one", metrics(2))  # it was restarted
    assert counters.total("gtx_x_total") == 13
    counters._take("one", metrics(4))
    assert counters.total("gtx_x_total") == 15
    assert counters.total("gtx_y_total") == 0


def test_network_time_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heartbeat"
    write_beat(path, 5_000)
    monkeypatch.setattr(heartbeat, "wall_ms", lambda: 1_000_000)
    beat = Heartbeat.resume(path)
    assert beat.now_ms == 5_000
    monkeypatch.setattr(heartbeat, "wall_ms", lambda: 1_002_000)
    assert beat.now_ms == 7_000
    beat.beat()
    monkeypatch.setattr(heartbeat, "wall_ms", lambda: 9_000_000)
    assert Heartbeat.resume(path).now_ms == 7_000
    path.write_text("noon")
    with pytest.raises(LocalFault, match="not a heartbeat"):
        Heartbeat.resume(path)


@given(st.integers(0, 2**63 - 1), st.sampled_from(["GRID", "WATT", "public/GRID"]))
def test_amounts_read_back_as_they_are_shown(amount: int, denom: str) -> None:
    shown = render_amount(amount, denom).removesuffix(f" {denom}").replace(",", "")
    assert parse_amount(shown, denom) == amount


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1.2.3", "1e3", "0.1234567891", ".", "1,5", "9" * 28]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(LocalFault, match="amount"):
        parse_amount(text, "GRID")


class AnyKey(dict[str, bytes]):
    def __missing__(self, name: str) -> bytes:
        return sha256(b"test key", name.encode())


@given(
    st.integers(1, 30),
    st.integers(4, 21),
    st.integers(1, 5),
    st.integers(2, 20),
)
def test_the_three_chains_know_each_other(
    validators: int, replicas: int, relayers: int, households: int
) -> None:
    manifest = Manifest(
        public=Public(validators=validators),
        consortium=Consortium(replicas=replicas),
        bridge=Bridge(relayers=relayers),
        devices=Devices(households=households),
    )
    plan = plan_neighbourhood(1, households, manifest.devices.solar, manifest.devices.batteries)
    roster = make_roster(plan.specs, [0] * households)
    network = make_network(manifest, AnyKey(), roster, 1_700_000_000_000).by_chain()
    for name, genesis in network.items():
        genesis.check()
        assert genesis.chain_id == derive_chain_id(genesis)
        for client in genesis.clients:
            other = network[client.client_id]
            assert client.counterparty == name
            assert client.chain_id == other.chain_id
            assert client.validators == other.validator_set.members
    balances = network["public"].balances
    assert sum(each.amount_ngrid for each in balances) == TOTAL_GRID * 10**9
