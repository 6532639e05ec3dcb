"""`gtx sim`: what it prints, keeps and refuses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gridtokenx.lab import cli
from gridtokenx.lab.commands import sim
from gridtokenx.lab.files import check_outputs
from gridtokenx.lab.sim.manifest import load

QUICK = """
name = "quick"
[workload]
transactions_per_s = 1
[safety]
duration_ms = 3000
[liveness]
bound_ms = 20000
blocks = 1
"""
BROKEN = """
name = "broken"
[chain]
replicas = 5
variant = "weak-commit"
[safety]
duration_ms = 2000
[[fault]]
kind = "pause"
nodes = [4]
at_ms = 500
for_ms = 500
"""


def gtx(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sim", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.toml"
    path.write_text(BROKEN)
    return path


def test_run_says_seed_and_commit_first_and_keeps_what_a_replay_needs(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert gtx("run", str(quick), "--seed", "7", "--out", str(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed 7, commit ")
    assert "verdict: ok" in lines
    outcome = json.loads((out / "outcome.json").read_text())
    assert outcome["verdict"] == "ok"
    assert load(out / "run.toml").trace == outcome["trace"]
    assert gtx("replay", str(out / "run.toml")) == 0


def test_replay_says_that_a_run_went_differently(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    gtx("run", str(quick), "--seed", "7", "--out", str(out), "--quiet")
    run = out / "run.toml"
    run.write_text(run.read_text().replace("seed = 7", "seed = 8"))
    capsys.readouterr()
    assert gtx("run", str(run), "--seed", "9") == gtx("shrink", str(run), "--seed", "9") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "run.toml: a recorded run of seed 8: leave out --seed 9" in said.err
    assert gtx("run", str(run), "--seed", "8", "--quiet") == 0
    assert gtx("replay", str(run), "--quiet") == 1
    assert re.search(r"differs: .* the manifest was changed since", capsys.readouterr().out)
    run.write_text(re.sub('commit = ".*"', 'commit = "0123456789ab"', run.read_text()))
    assert gtx("replay", str(run), "--quiet") == 1
    assert "it is of commit 0123456789ab, this is " in capsys.readouterr().out
    assert gtx("replay", str(quick)) == 2


def test_a_sweep_goes_on_where_it_was_stopped(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.jsonl"
    arguments = ("sweep", str(quick), "--jobs", "1", "--record", str(record))
    assert gtx(*arguments, "--seeds", "0..1") == 0
    with record.open("a") as file:
        file.write('{"name": "cut sho')
    assert gtx(*arguments, "--seeds", "0..2") == 0
    said = capsys.readouterr().out
    assert "2 of 3 runs are on record" in said
    assert "3 runs: 3 ok, 0 violations" in said
    assert len(record.read_text().splitlines()) == 4
    quick.write_text(QUICK.replace("3000", "2000"))
    assert gtx(*arguments, "--seeds", "0..2") == 2
    assert "Name another file" in capsys.readouterr().err


def test_a_sweep_over_processes_is_the_same_sweep(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for jobs in ("1", "2"):
        record = str(tmp_path / f"{jobs}.jsonl")
        assert gtx("sweep", str(quick), "--seeds", "0..3", "--jobs", jobs, "--record", record) == 0
    one, two = (sorted((tmp_path / f"{jobs}.jsonl").read_text().splitlines()) for jobs in "12")
    assert one == two


def test_a_violation_is_told_shrunk_and_told_again(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gtx("run", str(broken), "--quiet") == 1
    assert "certificate at" in capsys.readouterr().out
    assert gtx("sweep", str(broken), "--seeds", "0..9", "--jobs", "1", "--stop-after", "1") == 1
    assert "make the first one smaller: gtx sim shrink" in capsys.readouterr().out
    into = tmp_path / "regressions"
    assert gtx("shrink", str(broken), "--name", "too-few-commits", "--into", str(into)) == 0
    kept = load(into / "too-few-commits.toml")
    assert (kept.fault, kept.expect) == ((), "violation")
    assert gtx("replay", str(into / "too-few-commits.toml")) == 0


def test_shrinking_goes_on_in_the_same_file_and_its_name_is_never_too_long(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken.write_text(BROKEN.replace('"broken"', f'"{"b" * 61}"'))
    into = tmp_path / "regressions"
    path, seed = broken, str(2**62)
    for more in (("--seed", seed), ()):
        arguments = ("--runs", "1", "--into", str(into), *more)
        assert gtx("shrink", str(path), *arguments) == 0
        (path,) = into.iterdir()
        assert path.stem == f"certificate-{'b' * 29}-{seed}"
        assert gtx("replay", str(path), "--quiet") == 0
    assert f"tell it again: gtx sim replay {path}" in capsys.readouterr().out


def test_shrinking_replaces_only_what_it_began_with(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again began anew, and put its first step over the smallest one so far."""
    kept = tmp_path / "regressions" / "mine.toml"
    arguments = ("--runs", "1", "--name", "mine", "--into", str(kept.parent))
    assert gtx("shrink", str(broken), *arguments) == 0
    before = kept.read_text()
    assert gtx("shrink", str(broken), *arguments) == 2
    assert f"is there already: make that one smaller (gtx sim shrink {kept})" in (
        capsys.readouterr().err
    )
    assert kept.read_text() == before
    assert gtx("shrink", str(kept)) == 0
    assert load(kept).safety.duration_ms < load(broken).safety.duration_ms
    assert gtx("replay", str(kept), "--quiet") == 0
    assert [path.name for path in kept.parent.iterdir()] == ["mine.toml"]


def test_there_is_nothing_to_shrink_where_nothing_fails(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gtx("shrink", str(quick)) == 2
    assert "there is nothing to make smaller" in capsys.readouterr().err


def test_variants_are_listed_and_unknown_ones_refused(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gtx("variants") == 0
    said = capsys.readouterr().out
    assert "weak-commit" in said
    assert len({len(line) - len(re.sub(r"^\S+ +", "", line)) for line in said.splitlines()}) == 1
    quick.write_text(QUICK + '[chain]\nvariant = "honest"\n')
    assert gtx("run", str(quick)) == 2
    assert "chain.variant = 'honest': known: two-f-plus-one," in capsys.readouterr().err


def test_a_sweeps_record_becomes_a_figure(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, out = tmp_path / "four.jsonl", tmp_path / "figure.svg"
    gtx("sweep", str(quick), "--seeds", "0..3", "--jobs", "1", "--record", str(record))
    assert gtx("figure", str(record), "--of", "recovery_ms", "--out", str(out)) == 0
    drawn = ET.fromstring(out.read_text())
    ticks = [text.text or "" for text in drawn.iter() if text.get("text-anchor") == "middle"][:-1]
    assert len(ticks) > 2
    assert all(tick.rstrip("0") in ("", "1", "2", "4", "6", "8", "5", "15") for tick in ticks), (
        ticks
    )
    assert any("4 runs, commit" in (text.text or "") for text in drawn.iter())
    assert "four" in capsys.readouterr().out
    assert gtx("figure", str(quick)) == 2
    assert "no record of a sweep" in capsys.readouterr().err


def test_no_output_replaces_an_input_or_another_output(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, page = str(tmp_path / "four.jsonl"), str(tmp_path / "page.html")
    gtx("sweep", str(quick), "--seeds", "0..1", "--jobs", "1", "--record", record)
    before = Path(record).read_text()
    (tmp_path / "link.jsonl").symlink_to(record)
    for arguments in (
        ("report", record, "--out", page, "--table", record),
        ("report", record, "--out", page, "--json", str(tmp_path / "link.jsonl")),
        ("report", record, "--out", page, "--json", page),
        ("figure", record, "--out", record),
        ("run", str(quick), "--report", str(quick)),
    ):
        assert gtx(*arguments) == 2
        assert "write to another file" in capsys.readouterr().err
    assert Path(record).read_text() == before
    assert not Path(page).exists()


def test_only_regular_files_are_read(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        for arguments in (("run", path), ("sweep", path), ("figure", path), ("report", path)):
            assert gtx(*map(str, arguments)) == 2
            error = capsys.readouterr().err
            assert f"{path}: cannot be read: not a regular file" in error
            assert len(error.splitlines()) == 1
    for record in ("/dev/full", str(tmp_path / "pipe")):
        assert gtx("sweep", str(quick), "--record", record) == 2
        assert "not a regular file" in capsys.readouterr().err
    (tmp_path / "testnet.toml").write_text('testnet = "pipe"\n')
    assert gtx("run", str(tmp_path / "testnet.toml")) == 2
    assert "testnet = 'pipe' cannot be read: not a regular file" in capsys.readouterr().err


def test_what_cannot_be_written_is_said_before_the_run(
    quick: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "run.toml").mkdir(parents=True)
    for arguments in (
        ("run", str(quick), "--out", "/proc/none"),
        ("run", str(quick), "--out", str(tmp_path / "out")),
        ("run", str(quick), "--report", "/proc/none/one.html"),
        ("explore", "--into", "/proc/none"),
        ("figure", str(quick), "--out", "/proc/none.svg"),
    ):
        assert gtx(*arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "cannot be written" in said.err
        assert len(said.err.splitlines()) == 1
    assert gtx("shrink", str(broken), "--into", "/proc/none") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert gtx("run", str(quick), "--quiet", "--report", "/dev/full") == 2
    assert "No space left" in capsys.readouterr().err


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    check_outputs(tmp_path / "a" / "b" / "file", tmp_path / "mine", None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_change_that_the_set_does_not_allow_is_said(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = "".join(
        f"[[change]]\n{change}\n" for change in ("add = 4", "remove = 0", "remove = 1")
    )
    longer = QUICK.replace("duration_ms = 3000", "duration_ms = 20000")
    quick.write_text(f"{longer}[chain]\nobservers = 1\n{changes}")
    assert gtx("run", str(quick), "--out", str(tmp_path / "out")) == 0
    said = "change 3 (remove 1): set-too-small: 4 members"
    assert f"s  refused: {said}" in capsys.readouterr().out
    (refused,) = json.loads((tmp_path / "out" / "outcome.json").read_text())["refused"]
    assert refused.startswith(said)


def test_a_bar_fits_a_terminal_of_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = sim._Bar(5_000, 4_000)
    monkeypatch.setattr(bar, "_started", time.perf_counter() - 1_000)
    bar.step(100)
    shown = capsys.readouterr().err
    assert "4001/5000  0.00 runs/s  999000 s left  100 violations" in shown
    assert len(shown.strip("\r").removesuffix("\x1b[K")) < 80


def test_a_full_disk_under_standard_output_is_one_line(quick: Path) -> None:
    for arguments in (("--help",), ("run", str(quick)), ("variants",)):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "gridtokenx.lab.cli", "sim", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60,
            )
        assert done.returncode == 2
        assert done.stderr == (
            "error: standard output, or a file: cannot be written: No space left on device\n"
        )


def test_what_has_no_figure_is_shown_as_none(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.write_text(
        QUICK.replace("per_s = 1", "per_s = 0").replace("bound_ms = 20000", "bound_ms = 0")
    )
    assert gtx("run", str(quick)) == 0
    assert gtx("sweep", str(quick), "--seeds", "0") == 0
    said = capsys.readouterr().out
    assert "(latency p50 -, p95 -)" in said
    assert "recovery after healing: p50 -, p95 -, longest -" in said
    assert "-1" not in said


def test_help_keeps_its_examples_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert gtx("--help") == 0
    said = capsys.readouterr().out
    assert "\\b" not in said
    assert "\n  a small scope, all of it      gtx sim explore\n" in said
