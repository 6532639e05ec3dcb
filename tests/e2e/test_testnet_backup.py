"""Backups of a network that trades: restored nodes follow, sign again by themselves, and lie nowhere."""

import json
import shutil
from pathlib import Path

import pytest
from tests.e2e.test_testnet_short import SMALL
from tests.e2e.testnet import STOP_S, Network, gtx, read_summary, whole_network

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.usefixtures("whole_network"),
]
__all__ = ["whole_network"]

OLD = ("consortium-1", "public-1", "gateway")
"""Backed up while they run, and restored after the network went on: at most f of each chain."""
MOVED = "oracle-1"
EMPTIED = "oracle-2"
SIGNS_AGAIN_S = 240.0


def test_restored_nodes_follow_and_sign_again(tmp_path: Path) -> None:
    network = Network(tmp_path, SMALL)
    with network.fresh() as process:
        network.wait_for("three chains that finalise", network.finalises, 90)
        for name in OLD:
            said = gtx("backup", "create", "--home", network.home / name, "--to", tmp_path / name)
            assert said.code == 0, said
        before = network.finalized()

        def has_grown() -> bool:
            now = network.finalized()
            return bool(now) and all(now[name] >= before[name] + 3 for name in before)

        network.wait_for("blocks after the backups", has_grown, 90)
        process.terminate()
        assert network.stopped(process, STOP_S) == 0, network.said()
    for name in OLD:
        put_back(network, name, tmp_path / name)
    moves(network, tmp_path)
    assert gtx("backup", "reset", "--home", network.home / EMPTIED).code == 0
    goes_on(network, tmp_path / "s.json")
    network.verify()
    assert not network.tracebacks()


def put_back(network: Network, name: str, archive: Path) -> None:
    home = network.home / name
    shutil.rmtree(home)
    said = gtx("backup", "restore", archive, "--home", home)
    assert said.code == 0, said
    assert ("follows first" in said.out) == (name != "gateway")
    said = gtx("verify", "--home", home)
    assert said.code == 0, said


def moves(network: Network, directory: Path) -> None:
    """Retired here, it refuses to start; restored, it is as it was."""
    home, archive = network.home / MOVED, directory / "moved"
    assert gtx("backup", "create", "--home", home, "--to", archive, "--final").code == 0
    gtx("node", "oracle", "--config", home / "config.toml").refused("moved away")
    shutil.rmtree(home)
    assert gtx("backup", "restore", archive, "--home", home).code == 0


def goes_on(network: Network, summary_path: Path) -> None:
    following = [name for name in (*OLD, EMPTIED) if name != "gateway"]
    with network.up("--for", "6m", "--summary", summary_path) as process:
        network.wait_for("all processes", network.all_started, 60)
        network.wait_for(
            "nodes that say that they follow",
            lambda: any("restored" in reasons(network, name) for name in following),
            60,
        )
        for name in following:
            network.wait_for(
                f"{name}, which signs again",
                lambda name=name: network.is_ready(name),
                SIGNS_AGAIN_S,
            )
        process.terminate()
        assert network.stopped(process, 200) == 0, network.said()
    summary = read_summary(summary_path)
    assert all(summary["invariants"].values()), summary["broken"]
    for name in following:
        assert "nothing that this node signed before" in network.layout.log_path(name).read_text()


def reasons(network: Network, name: str) -> str:
    body = network.get(name, "/ready")[1]
    return " ".join(json.loads(body)["reasons"]) if body else ""
