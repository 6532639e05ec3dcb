"""Exploring a small scope: all of it is enumerated, a broken quorum is found in it, the real one not."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from tests.stages import spread

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab import cli
from gridtokenx.lab.commands import sim as commands
from gridtokenx.lab.faults import Fault, ViewPartition
from gridtokenx.lab.manifest import Manifest as Network
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.explore import SCOPE, Sides, count, partitions, scenarios, scope
from gridtokenx.lab.sim.manifest import (
    LONGEST_NAME,
    Chain,
    Liveness,
    Manifest,
    Safety,
    Swarm,
    dump,
    load,
    parse,
)
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.sweep import read_record

QUICK = Manifest(safety=Safety(duration_ms=100), liveness=Liveness(bound_ms=0))
BELL = [1, 1, 2, 5, 15, 52, 203]
PLAIN = 16
"""Of the 2,944 runs of the scope, how many the plain stage goes through, evenly spread."""
STRIDE = int(os.environ.get("GTX_SIM_STRIDE", "7"))
"""The full stage goes through every so many-th; all of them: `gtx sim explore`, or GTX_SIM_STRIDE=1."""


@pytest.mark.parametrize("nodes", range(1, 7))
def test_partitions_are_all_of_them_and_each_once(nodes: int) -> None:
    found = list(partitions(range(nodes), nodes))
    assert len(found) == len(set(found)) == BELL[nodes]
    assert found[0] == (tuple(range(nodes)),)
    assert len(list(partitions(range(nodes), 2))) == 2 ** (nodes - 1)


def test_scenarios_are_counted_valid_and_different() -> None:
    base = msgspec.structs.replace(SCOPE, name="e" * LONGEST_NAME)
    found = list(scenarios(base, 2, 2))
    assert len(found) == count(base, 2, 2) == 2_944
    assert len({scenario.fault for scenario in found}) == len(found)
    assert parse(dump(found[-1])) == found[-1]


def test_what_has_faults_of_its_own_is_no_scope() -> None:
    with pytest.raises(LocalFault, match="leave out"):
        scope(msgspec.structs.replace(SCOPE, swarm=Swarm()))
    with pytest.raises(LocalFault, match="this is a network"):
        scope(msgspec.structs.replace(SCOPE, testnet=Network(name="local")))


@pytest.mark.parametrize("number", spread(range(0, 2_944, STRIDE), PLAIN))
def test_no_partition_with_a_twin_breaks_a_promise(number: int) -> None:
    manifest = next(islice(scenarios(SCOPE, 2, 2), number, None))
    outcome = execute(manifest, 0)
    assert outcome.verdict == "ok", outcome.finding


def test_two_f_plus_one_is_found_kept_and_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = Chain(replicas=5, variant="two-f-plus-one")
    base = tmp_path / "base.toml"
    base.write_text(dump(msgspec.structs.replace(SCOPE, name="five", chain=chain)))
    record = str(tmp_path / "runs.jsonl")
    arguments = ["explore", str(base), "--views", "1", "--jobs", "1", "--stop-after", "1"]
    assert gtx(*arguments, "--into", str(tmp_path), "--record", record) == 1
    assert "agreement" in capsys.readouterr().out
    (kept,) = tmp_path.glob("five-*.toml")
    manifest = load(kept)
    assert execute(manifest, 0).failed
    real = msgspec.structs.replace(manifest, chain=Chain(replicas=5))
    assert execute(real, 0).verdict == "ok"
    assert gtx("report", record, "--out", str(tmp_path / "page.html")) == 0
    assert f"no timeline: {kept.stem} is a run of an exploration" in capsys.readouterr().out


def test_what_was_found_shrinks_though_its_partitions_name_the_twin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of twin and partitions nothing can be left out alone."""
    chain = Chain(replicas=5, variant="two-f-plus-one")
    base = msgspec.structs.replace(SCOPE, name="five", chain=chain)
    found = next(m for m in scenarios(base, 2, 2) if execute(m, 0).failed)
    assert max(index for fault in found.fault for side in sides_of(fault) for index in side) == 5
    (tmp_path / "found.toml").write_text(dump(found))
    arguments = ("--runs", "20", "--name", "small", "--into", str(tmp_path))
    assert gtx("shrink", str(tmp_path / "found.toml"), *arguments) == 0
    assert "faults are left" in capsys.readouterr().out
    small = load(tmp_path / "small.toml")
    assert len(small.fault) <= len(found.fault)
    assert gtx("replay", str(tmp_path / "small.toml")) == 0


def sides_of(fault: Fault) -> Sides:
    return fault.sides if isinstance(fault, ViewPartition) else ()


def gtx(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sim", *arguments])
    return int(ended.value.code or 0)


def test_an_exploration_goes_on_from_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "runs.jsonl"
    asked: list[str] = []

    def some(runs: Iterable[tuple[Manifest, int]], jobs: int) -> Iterator[Outcome]:
        for manifest, seed in islice(runs, jobs):
            asked.append(manifest.name)
            outcome = execute(QUICK, seed)
            yield msgspec.structs.replace(outcome, name=manifest.name)

    monkeypatch.setattr(commands, "run_all", some)
    for views, code in (("1", 0), ("1", 0), ("2", 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["sim", "explore", "--views", views, "--jobs", "3", "--record", str(record)])
        assert ended.value.code == code
    assert asked == [f"explore-{number}" for number in range(1, 7)]
    said = capsys.readouterr()
    assert "\n3 of 184 runs are on record\n" in said.out
    assert "every partition of 1 views" in said.err
    assert [outcome.name for outcome in read_record(record)[1]] == asked
