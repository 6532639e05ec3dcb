"""Ctrl-C in the middle of a sweep: what was done is on record, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from gridtokenx.lab.sim.sweep import read_record
from gridtokenx.lab.testnet.processes import is_running

QUICK = """
name = "quick"
[workload]
transactions_per_s = 1
[safety]
duration_ms = 2000
[liveness]
bound_ms = 20000
blocks = 1
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_sweep_keeps_what_it_did(jobs: str, tmp_path: Path) -> None:
    with sweeping(jobs, tmp_path) as sweep:
        os.killpg(sweep.pid, signal.SIGINT)
        said, complaint = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, complaint
    assert "stopped after" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in complaint
    done = read_record(tmp_path / "record.jsonl")[1]
    assert len(done) >= 3


def test_the_workers_of_a_killed_sweep_end_with_it(tmp_path: Path) -> None:
    with sweeping("2", tmp_path) as sweep:
        children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()]
        assert len(pids) >= 2
        sweep.kill()
        sweep.communicate(timeout=30)  # until nobody holds its output open
        deadline = time.monotonic() + 10
        while any(is_running(pid) for pid in pids):
            assert time.monotonic() < deadline, pids
            time.sleep(0.05)


@contextmanager
def sweeping(jobs: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A long sweep that has runs on record; whatever happens, it is over afterwards."""
    (directory / "quick.toml").write_text(QUICK)
    record = directory / "record.jsonl"
    arguments = ("sweep", "quick.toml", "--jobs", jobs, "--record", str(record), "--seeds")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "gridtokenx.lab.cli", "sim", *arguments, "0..99999"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads
        bufsize=1,
    )
    with sweep:
        try:
            while sweep.poll() is None and (
                not record.exists() or record.read_bytes().count(b"\n") < 4
            ):
                time.sleep(0.05)
            yield sweep
        finally:
            with suppress(ProcessLookupError):
                os.killpg(sweep.pid, signal.SIGKILL)
