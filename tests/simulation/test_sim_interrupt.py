"""A sweep is stopped, or a part of it killed: what was done is on record, and the same command goes on."""

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
LONG = QUICK.replace("ms = 2000\n", "ms = 86_000_000\n")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_sweep_keeps_what_it_did(
    jobs: str, stop: signal.Signals, tmp_path: Path
) -> None:
    with sweeping(jobs, tmp_path) as sweep:
        os.kill(sweep.pid, stop) if stop == signal.SIGTERM else os.killpg(sweep.pid, stop)
        said, complaint = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, complaint
    assert "stopped after" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in complaint
    done = read_record(tmp_path / "record.jsonl")[1]
    assert len(done) >= 3


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.005, 0.01, 0.02, 0.1])
def test_who_is_impatient_and_stops_it_twice_does_not_wait_for_ever(
    after_s: float, tmp_path: Path
) -> None:
    """Its workers were in the midst of runs of minutes, and ended with it.

    The second could come while the first was dealt with: then it waited for them, or ended with 1.
    """
    with sweeping("2", tmp_path, LONG) as sweep:
        pids = workers(sweep)
        os.killpg(sweep.pid, signal.SIGINT)
        time.sleep(after_s)
        os.killpg(sweep.pid, signal.SIGINT)
        _, complaint = sweep.communicate(timeout=15)
        assert sweep.returncode in (130, -signal.SIGINT)
        assert "Traceback" not in complaint
        until_gone(pids)


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_the_second_may_come_while_the_interpreter_shuts_down(stop: str, tmp_path: Path) -> None:
    """A sweep had told its end already; what logging does on exit was interrupted by a traceback."""
    program = (
        "import atexit, os, signal, sys\n"
        "from gridtokenx.lab.cli import main\n"
        "from gridtokenx.lab.commands import sim\n"
        f"stop = lambda: os.kill(os.getpid(), signal.{stop})\n"
        "atexit.register(stop)\n"
        "sim.sweep = lambda *_sweep: (stop() for _ in range(1))\n"
        "main(sys.argv[1:])\n"
    )
    (tmp_path / "long.toml").write_text(LONG)
    done = subprocess.run(
        [sys.executable, "-c", program, "sim", "sweep", "long.toml", "--jobs", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert "stopped after 0 of 100 runs" in done.stdout


def test_a_killed_worker_ends_the_sweep_in_one_line(tmp_path: Path) -> None:
    with sweeping("2", tmp_path) as sweep:
        os.kill(workers(sweep)[0], signal.SIGKILL)
        _, complaint = sweep.communicate(timeout=60)
    assert sweep.returncode == 2
    assert complaint.startswith("error: a process that ran seeds was killed")
    assert len(complaint.splitlines()) == 1
    assert len(read_record(tmp_path / "record.jsonl")[1]) >= 3


def test_two_sweeps_do_not_write_one_record(tmp_path: Path) -> None:
    with sweeping("2", tmp_path) as sweep:
        second = subprocess.run(
            [*map(str, sweep.args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert second.returncode == 2
        assert second.stderr == (
            f"error: record {tmp_path}/record.jsonl: another sweep is writing it; wait for its end, or"
            " name another file\n"
        )
        assert sweep.poll() is None


def test_the_workers_of_a_killed_sweep_end_with_it(tmp_path: Path) -> None:
    with sweeping("2", tmp_path) as sweep:
        pids = workers(sweep)
        sweep.kill()
        sweep.communicate(timeout=30)  # until nobody holds its output open
        until_gone(pids)


def until_gone(pids: list[int]) -> None:
    """A process that is killed gives up its files a moment before it is no more."""
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def workers(sweep: subprocess.Popen[str]) -> list[int]:
    """Who runs its seeds."""
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
    deadline = time.monotonic() + 30
    while len(pids := [int(pid) for pid in children.read_text().split()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return pids


@contextmanager
def sweeping(jobs: str, directory: Path, manifest: str = QUICK) -> Iterator[subprocess.Popen[str]]:
    """A long sweep that has begun (a quick one has runs on record); it is over afterwards in any case."""
    (directory / "quick.toml").write_text(manifest)
    lines = 4 if manifest == QUICK else 1
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
                not record.exists() or record.read_bytes().count(b"\n") < lines
            ):
                time.sleep(0.05)
            yield sweep
        finally:
            with suppress(ProcessLookupError):
                os.killpg(sweep.pid, signal.SIGKILL)
