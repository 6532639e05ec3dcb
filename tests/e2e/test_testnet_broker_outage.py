"""A broker that is frozen for a minute, and then killed, loses no energy: registers are cumulative."""

import signal
import time
from pathlib import Path

import pytest
from tests.e2e.testnet import Network, read_summary, whole_network
from tests.e2e.testnet_disks import booked_registers, closed_intervals, signed_registers

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1_200, func_only=True),
    pytest.mark.usefixtures("whole_network"),
]
__all__ = ["whole_network"]

OUTAGE_S = 60
INTERVAL_MS = 1_800_000
INTERVAL_S = 30
"""Of network time, at the default scale."""
QUIET_S = (15, 22)
"""After a boundary: its readings are in blocks, and it is closed."""


def test_a_broker_outage_loses_no_energy(tmp_path: Path) -> None:
    network = Network(tmp_path)
    summary_path = tmp_path / "s.json"
    with network.fresh("--summary", summary_path) as process:
        network.wait_for("a settled interval", lambda: settled(network) >= 1, 120)
        before = settled(network)
        network.signal("broker", signal.SIGSTOP)
        time.sleep(OUTAGE_S)
        network.signal("broker", signal.SIGKILL)
        network.wait_for("the broker's next life", lambda: network.is_ready("broker"), 30)
        assert settled(network) > before, "intervals close without readings"
        came_back = settled(network)
        network.wait_for("two more settled", lambda: settled(network) >= came_back + 2, 120)
        network.wait_for("a quiet moment", lambda: is_quiet(network), 2 * INTERVAL_S)
        process.send_signal(signal.SIGINT)
        assert network.stopped(process, 300) == 0, network.said()
    summary = read_summary(summary_path)
    assert all(summary["invariants"].values()), summary["broken"]
    restarts = {each["name"]: each["restarts"] for each in summary["processes"]}
    assert restarts == {name: int(name == "broker") for name in restarts}
    check_energy(network)
    network.verify()
    assert not network.tracebacks()


def check_energy(network: Network) -> None:
    """What the meters last signed is what the chain last booked, and its books add up to that."""
    booked, signed = booked_registers(network, INTERVAL_MS), signed_registers(network)
    devices = network.layout.manifest.devices
    closed = closed_intervals(network)
    assert any(outcome.substituted for outcome in closed), "no interval closed without readings"
    assert any(outcome.corrections for outcome in closed), "no estimate was trued up"
    assert closed[-1].substituted == 0
    assert len(booked) == devices.households + devices.solar
    assert booked == {key: signed[key] for key in booked}
    assert sum(registers.import_wh for registers in booked.values() if registers) > 0
    assert sum(registers.export_wh for registers in booked.values() if registers) > 0


def settled(network: Network) -> int:
    """Intervals that the consortium settled."""
    status = network.status()
    return 0 if status is None else int(status["settlements"]["intervals"])


def is_quiet(network: Network) -> bool:
    """Whether the last boundary's readings had time to be final, and the next one is not near."""
    grid = network.clock().grid_ms(network.network_ms())
    since_s = grid % INTERVAL_MS / 1000 / (INTERVAL_MS / 1000 / INTERVAL_S)
    return QUIET_S[0] <= since_s <= QUIET_S[1]
