"""The run of five minutes that everyone is promised, and the same with SIGKILL for every kind."""

import itertools
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.testnet import Network, read_summary, whole_network
from tests.e2e.testnet_disks import SEEN_VOTING_S, voted_again_after_s

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1_800, func_only=True),
    pytest.mark.usefixtures("whole_network"),
]
__all__ = ["whole_network"]

AGAIN_S = 30.0
FIRST_KILL_S = 30.0
LAST_KILL_S = 170.0
LEADER = "the consortium's leader"
VICTIMS = (
    "public-1", LEADER, "devices", "oracle-2", "broker", "relayer-0", "agents", "gateway",
    "market-data",
)  # fmt: skip
"""One of every kind, spread over the first three minutes."""


@dataclass(frozen=True, slots=True)
class Killed:
    """A process that was killed."""

    name: str
    died_ms: int
    """In network time."""
    restarted_ms: int
    ready_s: float
    """Seconds until it said that it does its work."""


@pytest.mark.parametrize("kills", [False, True], ids=["undisturbed", "killed"])
def test_five_minutes(tmp_path: Path, kills: bool) -> None:
    network = Network(tmp_path)
    summary_path = tmp_path / "s.json"
    with network.fresh("--for", "5m", "--summary", summary_path) as process:
        network.wait_for("all processes", network.all_started, 60)
        killed = kill_one_of_every_kind(network, process) if kills else []
        code = network.stopped(process, 600)
    summary = read_summary(summary_path)
    assert code == 0, (summary["broken"], network.said())
    check_summary(summary, killed)
    for each in killed:
        assert each.ready_s <= AGAIN_S, each
        if chain := network.layout.member(each.name).chain:
            again_s = voted_again_after_s(network, each.name, each.died_ms, each.restarted_ms)
            assert again_s <= SEEN_VOTING_S[chain], (each, again_s)
    network.verify()
    assert not network.tracebacks()


def check_summary(summary: dict, killed: list[Killed]) -> None:
    assert all(summary["invariants"].values()), summary["broken"]
    assert summary["auctions"]["cleared"] >= 6
    assert summary["settlements"]["intervals"] >= 4
    assert summary["certificates"]["minted_wh"] > 0
    assert summary["certificates"]["retired_wh"] > 0
    packets = summary["packets"]
    for route in ("oracle-consortium", "consortium-oracle", "oracle-public", "public-consortium"):
        assert packets[route]["sent"] > 0, packets
        assert packets[route]["delivered"] > 0, packets
    assert packets["consortium-public"]["delivered"] > 0, packets
    assert sum(counts["timed_out"] for counts in packets.values()) >= 1, packets
    names = [each.name for each in killed]
    restarts = {each["name"]: each["restarts"] for each in summary["processes"]}
    assert restarts == {name: names.count(name) for name in restarts}


def kill_one_of_every_kind(network: Network, process: subprocess.Popen[bytes]) -> list[Killed]:
    began = time.monotonic()
    network.wait_for("three chains that finalise", network.finalises, 60)
    pause_s = (LAST_KILL_S - FIRST_KILL_S) / (len(VICTIMS) - 1)
    killed = []
    for number, victim in enumerate(VICTIMS):
        time.sleep(max(0.0, began + FIRST_KILL_S + number * pause_s - time.monotonic()))
        assert process.poll() is None, network.said()
        killed.append(kill(network, leader(network) if victim is LEADER else victim))
    return killed


def leader(network: Network) -> str:
    """The process that leads the consortium now."""
    for _ in itertools.repeat(None, 50):
        status = network.status()
        if status is not None and status["chains"]["consortium"]["leader"] is not None:
            return str(status["chains"]["consortium"]["leader"])
        time.sleep(0.2)
    raise AssertionError("the gateway names no leader of the consortium")


def kill(network: Network, name: str) -> Killed:
    was = network.pid(name)
    assert was is not None
    died_ms = network.network_ms()
    os.kill(was, signal.SIGKILL)
    network.wait_for(f"a new life of {name}", lambda: network.pid(name) not in (None, was), AGAIN_S)
    restarted_ms = network.network_ms()
    ready_s = network.wait_for(f"{name} to be ready", lambda: network.is_ready(name), 2 * AGAIN_S)
    return Killed(name, died_ms, restarted_ms, ready_s)
