"""Ctrl-C in the middle of a sweep: what was done is on record, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridtokenx.lab.sim.sweep import read_record

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
    (tmp_path / "quick.toml").write_text(QUICK)
    record = tmp_path / "record.jsonl"
    arguments = ("sweep", "quick.toml", "--jobs", jobs, "--record", str(record), "--seeds")
    command = [sys.executable, "-m", "gridtokenx.lab.cli", "sim", *arguments]
    sweep = subprocess.Popen(
        [*command, "0..99999"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        bufsize=1,
    )
    with sweep:
        while sweep.poll() is None and (
            not record.exists() or record.read_bytes().count(b"\n") < 4
        ):
            time.sleep(0.05)
        os.killpg(sweep.pid, signal.SIGINT)
        said, complaint = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, complaint
    assert "stopped after" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in complaint
    done = read_record(record)[1]
    assert len(done) >= 3
