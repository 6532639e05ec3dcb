"""`gtx testnet up`, short: what is promised of starting, looking, stopping and going on."""

import os
import signal
from pathlib import Path

import pytest
from tests.e2e.testnet import STOP_S, Network, gtx, is_alive, read_summary, whole_network

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600, func_only=True),
    pytest.mark.usefixtures("whole_network"),
]
__all__ = ["whole_network"]

SMALL = """
[devices]
households = 8
profile_days = 1
[public]
slot_ms = 3000
"""
ROUTES = {
    "oracle-consortium", "consortium-oracle", "oracle-public", "public-consortium",
    "consortium-public",
}  # fmt: skip
INVARIANTS = {
    "public_agreement", "consortium_agreement", "oracle_agreement", "public_reexecutes",
    "consortium_reexecutes", "oracle_reexecutes", "public_ledger", "consortium_ledger",
    "oracle_ledger", "packets_end_once", "settled_once", "settled_as_reported", "certified_once",
    "certified_as_attested",
}  # fmt: skip


def test_it_finalises_trades_stops_and_goes_on(tmp_path: Path) -> None:
    network = Network(tmp_path, SMALL)
    summary_path = tmp_path / "s.json"
    with network.fresh("--for", "40s", "--summary", summary_path) as process:
        network.wait_for("all processes", network.all_started, 60)
        network.wait_for("three chains that finalise", network.finalises, 30)
        assert network.stopped(process, 120) == 0, network.said()
    summary = read_summary(summary_path)
    check_summary(summary, network)
    network.verify()
    goes_on(network, summary)
    assert not network.tracebacks()


def refuses_to_be_disturbed(network: Network) -> None:
    home = ("--home", network.home)
    gtx("testnet", "up", *home).refused("already runs", "gtx testnet down")
    gtx("testnet", "up", *home, "--fresh").refused("running", "gtx testnet down")
    gtx("testnet", "up", *home, "--households", "9").refused("--households", "--fresh")
    gtx("testnet", "init", *home).refused("--fresh")


def check_summary(summary: dict, network: Network) -> None:
    for chain in ("public", "consortium", "oracle"):
        seen = summary["chains"][chain]
        assert seen["finalized"] > 0, chain
        assert seen["height"] >= seen["finalized"]
        assert seen["interval_p50_ms"] > 0
        assert summary["first_finality_s"][chain] <= 30
    assert summary["readings"]["verified"] > 0
    assert summary["readings"].keys() == {"published", "verified", "rejected"}
    assert summary["auctions"].keys() == {"held", "cleared", "trades", "energy_wh"}
    assert summary["auctions"]["cleared"] >= 1
    assert summary["settlements"].keys() == {"intervals", "trades"}
    assert summary["certificates"].keys() == {"minted_wh", "retired_wh"}
    assert summary["packets"].keys() <= ROUTES
    for counts in summary["packets"].values():
        assert counts.keys() >= {"sent", "delivered", "timed_out"}
    assert summary["invariants"].keys() >= INVARIANTS
    assert all(summary["invariants"].values()), summary["broken"]
    processes = {each["name"]: each for each in summary["processes"]}
    assert processes.keys() == {member.name for member in network.layout.members}
    assert all(each["restarts"] == 0 for each in processes.values()), network.said()
    assert all(each["peak_memory_mib"] > 0 for each in processes.values())


def goes_on(network: Network, before: dict) -> None:
    """The next start has the heights that the last one had, and grows from there; Ctrl-C ends it."""
    chain_ids, last = network.chain_ids(), before["chains"]
    with network.up() as process:

        def has_grown() -> bool:
            heights = network.finalized()
            return bool(heights) and all(
                height > last[name]["finalized"] for name, height in heights.items()
            )

        network.wait_for("heights beyond the last ones", has_grown, 40)
        assert network.chain_ids() == chain_ids
        shown = gtx("testnet", "status", "--home", network.home)
        assert shown.code == 0, shown
        assert "consortium" in shown.out
        refuses_to_be_disturbed(network)
        process.send_signal(signal.SIGINT)
        assert network.stopped(process, STOP_S) == 0, network.said()
    assert network.pids() == {}


@pytest.mark.slow
def test_nothing_is_left_when_it_is_stopped_from_elsewhere_or_killed(tmp_path: Path) -> None:
    network = Network(tmp_path, SMALL)
    gtx("testnet", "status", "--home", network.home).refused("no testnet", "init")
    with network.fresh() as process:
        network.wait_for("all processes", network.all_started, 60)
        down = gtx("testnet", "down", "--home", network.home)
        assert (down.code, down.out) == (0, "stopped\n")
        assert network.stopped(process, STOP_S) == 0
    gtx("testnet", "status", "--home", network.home).refused("does not answer")
    killed_supervisor_leaves_nothing(network)
    down = gtx("testnet", "down", "--home", network.home)
    assert (down.code, "no testnet is running" in down.out) == (0, True)
    a_killed_fork_server_is_replaced(network)


def killed_supervisor_leaves_nothing(network: Network) -> None:
    with network.up() as process:
        network.wait_for("all processes", network.all_started, 30)
        pids = network.pids()
        process.kill()
        process.wait()
        wait_for_the_end_of(pids, network)


def a_killed_fork_server_is_replaced(network: Network) -> None:
    """What it had started ends with it, another one starts it again, and the chains go on."""
    with network.up() as process:
        network.wait_for("three chains that finalise", network.finalises, 40)
        pids, heights = network.pids(), network.finalized()
        os.kill(parent_of(pids["gateway"]), signal.SIGKILL)
        wait_for_the_end_of(pids, network)
        network.wait_for("all processes again", network.all_started, 40)

        def goes_on() -> bool:
            now = network.finalized()
            return bool(now) and all(now[name] > heights[name] for name in heights)

        network.wait_for("chains that go on", goes_on, 60)
        process.terminate()
        assert network.stopped(process, STOP_S) == 0
    assert "the fork server ended; another one starts its" in network.said()


def wait_for_the_end_of(pids: dict[str, int], network: Network) -> None:
    network.wait_for("the end of the orphans", lambda: not any(map(is_alive, pids.values())), 15)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
