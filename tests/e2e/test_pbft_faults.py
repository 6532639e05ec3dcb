"""Faults in real processes: each is recovered from within its bound, and no promise is broken."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from tests.e2e.docker import tell
from tests.e2e.testnet import GTX, POLL_S, gtx, whole_network
from tests.unit.gtx_command import Gtx

from gridtokenx.lab.chaos.manifest import KINDS
from gridtokenx.lab.testnet.processes import is_running

pytestmark = pytest.mark.e2e
__all__ = ["whole_network"]

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "compose" / "manifests"
UP_S = 90.0
GONE_S = 15.0
FIGURES = 25
"""Last lines of a run: one for each fault, and what it comes to."""
QUICK = """
[chain]
replicas = 4
block_time_ms = 200
view_timeout_ms = 600
request_timeout_ms = 2_000
retransmit_ms = 300
fetch_timeout_ms = 600

[workload]
transactions_per_s = 10
clients = 20
"""
Outcome = dict[str, Any]


def test_each_kind_of_fault_is_recovered_from(tmp_path: Path) -> None:
    outcome = run_to_its_end(MANIFESTS / "faults-each-kind.toml", tmp_path, limit_s=200)
    faults = outcome["faults"]
    assert [fault["kind"] for fault in faults] == [
        "crash", "pause", "partition", "partition", "loss", "delay", "behave",
    ]  # fmt: skip
    assert all(fault["level_ms"] is not None for fault in faults)
    promised = [fault for fault in faults if fault["went_on_bound_ms"] is not None]
    assert {fault["kind"] for fault in promised} == {"crash", "pause", "partition", "behave"}
    assert outcome["views"] >= 3
    assert len(outcome["byzantine"]) == 1
    assert outcome["transactions"] >= 20


def test_a_flood_of_proposals_for_views_that_are_far_away_stops_nobody(tmp_path: Path) -> None:
    """Each took 0.2 s or more to check, and votes waited behind it: no block for nine seconds."""
    manifest = tmp_path / "flood.toml"
    flood = """
[safety]
duration_ms = 12_000

[[fault]]
kind = "behave"
node = 3
behaviour = "flood"
at_ms = 2_000
for_ms = 8_000
"""
    manifest.write_text(QUICK + flood, encoding="utf-8")
    outcome = run_to_its_end(manifest, tmp_path, limit_s=120)
    assert outcome["byzantine"] == [3]
    assert outcome["longest_pause_ms"] < 4_000


def test_faults_are_added_by_hand_and_a_run_that_is_asked_to_stop_judges_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, inside = tmp_path / "home", Gtx(monkeypatch, capfd, tmp_path)
    with by_hand(tmp_path, home) as (process, said, pids):
        assert "pause of replica 2" in inside("fault", "add", home, "pause", "nodes=2").done()
        inside("fault", "add", home, "partition", "shape=isolate", "nodes=3").done()
        listed = inside("fault", "list", home).done()
        assert "1  pause of replica 2" in listed
        assert "2  partition (isolate): 3 cut off" in listed
        assert is_stopped(pids[2])
        assert inside("fault", "heal", home, "2").done() == "healed: 2\n"
        wait_for_line(said, "fault 2 ends")
        inside("fault", "heal", home, "7").refused("fault 7 is not in force")
        inside("fault", "add", home, "crash", "node=1").refused("node")
        process.send_signal(signal.SIGINT)
        wait_for_line(said, "verdict: ok")
        assert process.wait(GONE_S) == 0
        assert_gone(pids)
    inside("fault", "list", home).refused("no run")


def test_nothing_outlives_a_killed_run_not_even_what_is_stopped(tmp_path: Path) -> None:
    with by_hand(tmp_path, tmp_path / "home") as (process, _, pids):
        os.kill(pids[2], signal.SIGSTOP)
        process.send_signal(signal.SIGKILL)
        process.wait(GONE_S)
        assert_gone(pids)


def test_a_run_that_ends_before_its_first_block_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "manifest.toml").write_text(QUICK.replace("= 200", "= 5_000"), encoding="utf-8")
    run = subprocess.Popen(
        [*GTX, "fault", "run", "manifest.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with run:
        assert run.stdout is not None
        wait_for_line(run.stdout, "replica 3 is up")
        run.send_signal(signal.SIGINT)
        said = run.stdout.read().decode()
    assert "0 blocks, 0 transactions acknowledged (latency p50 -, p95 -)" in said
    assert "verdict: nothing was shown" in said
    assert run.returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(1_200, func_only=True)
@pytest.mark.usefixtures("whole_network")
def test_five_minutes_of_21_replicas_with_four_faults_a_minute(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    outcome = run_to_its_end(MANIFESTS / "faults-storm-21.toml", tmp_path, limit_s=1_100, seed=1)
    assert len(outcome["faults"]) == 20
    kinds = [fault["kind"] for fault in outcome["faults"]]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("crash", "pause", "partition", "behave"), 5
    )
    assert 1 <= len(outcome["byzantine"]) <= 6
    assert outcome["views"] >= 5
    for line in outcome["said"][-FIGURES:]:
        tell(request.config, line)


def test_every_kind_that_real_processes_have_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "researcher-guide.md").read_text(encoding="utf-8")
    section = guide[guide.index("## Faults in real processes") :]
    assert not [kind for kind in KINDS if f"`{kind}`" not in section]


# -- runs ------------------------------------------------------------------------------------------


def run_to_its_end(manifest: Path, directory: Path, limit_s: float, seed: int = 0) -> Outcome:
    """Run a manifest; what was found, with everything that it said."""
    home, out = directory / "home", directory / "out"
    said = gtx(
        "fault", "run", manifest, "--seed", str(seed), "--home", home, "--out", out,
        timeout_s=limit_s,
    )  # fmt: skip
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err, said.err
    outcome: Outcome = json.loads((out / "outcome.json").read_bytes())
    assert outcome["verdict"] == "ok", outcome["findings"]
    assert not outcome["findings"]
    assert not outcome["voided"]
    assert outcome["complete"]
    assert outcome["unanswered_why"] == {}, outcome["load_average"]
    assert not any(fault["broken"] for fault in outcome["faults"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(fault["what"] in page for fault in outcome["faults"])
    return {**outcome, "said": said.out.splitlines()}


@contextmanager
def by_hand(
    directory: Path, home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], list[int]]]:
    """A run without schedule, what it says, and its replicas; whatever happens, it is over afterwards."""
    manifest = directory / "manifest.toml"
    manifest.write_text(f"{QUICK}\n[safety]\nduration_ms = 0\n", encoding="utf-8")
    process = subprocess.Popen(
        [*GTX, "fault", "run", str(manifest), "--home", str(home.relative_to(directory))],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        wait_for_line(process.stdout, "the schedule begins")
        pids = [int((home / f"replica-{index}" / "pid").read_text()) for index in range(4)]
        yield process, process.stdout, pids
    finally:
        process.kill()
        process.wait(GONE_S)
        process.stdout.close()


def wait_for_line(said: IO[bytes], words: str) -> None:
    deadline, heard = time.monotonic() + UP_S, b""
    while words.encode() not in heard:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([said], [], [], left_s)[0]:
            raise AssertionError(f"{words!r} was not said:\n{heard.decode()}")
        chunk = os.read(said.fileno(), 65_536)
        assert chunk, heard.decode()
        heard += chunk


def is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return stat.rpartition(") ")[2][:1] == "T"


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + GONE_S
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if is_running(pid)]
        time.sleep(POLL_S)
