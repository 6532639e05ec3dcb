"""`gtx fault`: what it refuses before anything starts, and how keys on the command line become a fault."""

from pathlib import Path

import pytest
from tests.unit.gtx_command import Gtx, gtx

from gridtokenx.consortium.chain import ConsortiumGenesis
from gridtokenx.lab.chaos.layout import prepare
from gridtokenx.lab.chaos.manifest import Treason, parse
from gridtokenx.lab.chaos.outcome import Outcome
from gridtokenx.lab.commands.fault import _as_toml, told
from gridtokenx.lab.faults import Crash, Loss, Partition
from gridtokenx.pbft.rotation import blocks_of

__all__ = ["gtx"]


def test_a_run_is_refused_before_anything_starts(gtx: Gtx, tmp_path: Path) -> None:
    gtx("fault", "run", "none.toml").refused("none.toml", "cannot be read")
    manifest = tmp_path / "run.toml"
    manifest.write_text('[[fault]]\nkind = "crash"\nnodes = [7]\n', encoding="utf-8")
    gtx("fault", "run", manifest).refused("node 7 does not exist")
    manifest.write_text("[safety]\nduration_ms = 1\n", encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine").touch()
    assert "is not empty" in gtx("fault", "run", manifest, "--home", tmp_path / "home").err
    assert (tmp_path / "home" / "mine").exists()
    manifest.write_text("[workload]\nretry_ms = 100\n", encoding="utf-8")
    gtx("fault", "run", manifest).refused("workload.retry_ms belongs to `gtx sim run`")
    manifest.write_text("[safety]\nduration_ms = 1\n", encoding="utf-8")
    gtx("fault", "run", tmp_path).refused("not a regular file")
    for option in ("--out", "--home"):
        said = gtx("fault", "run", manifest, option, "/proc/none", "--quiet")
        assert said.code == 2
        (line,) = said.err.splitlines()
        assert line.startswith("error: /proc/none")


def test_nobody_answers_where_no_run_is(gtx: Gtx, tmp_path: Path) -> None:
    gtx("fault", "list", tmp_path).refused("no run of")
    (tmp_path / "control").write_text(str(tmp_path / "gone"), encoding="utf-8")
    gtx("fault", "heal", tmp_path).refused("no run answers")


def test_a_replica_without_its_runner_does_not_start(gtx: Gtx, tmp_path: Path) -> None:
    said = gtx("fault", "replica", "--config", tmp_path / "none.toml")
    assert said.code == 2
    assert "replica" not in gtx("fault", "--help").out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("kind", "values", "fault"),
    [
        ("crash", ("nodes=leader,2", "for_ms=500"), Crash(nodes=("leader", 2), for_ms=500)),
        ("partition", ("shape=one-way", "nodes=1"), Partition(shape="one-way", nodes=(1,))),
        ("loss", ("share=0.5", "messages=Prepare"), Loss(share=0.5, messages=("Prepare",))),
        ("behave", ("node=leader", "behaviour=silent"), Treason(node="leader", behaviour="silent")),
    ],
)
def test_keys_and_values_are_a_fault(kind: str, values: tuple[str, ...], fault: object) -> None:
    assert parse(_as_toml(kind, values)).fault == (fault,)


@pytest.mark.parametrize("blocks", [0, 5])
def test_the_chain_rotates_if_its_manifest_says_so(tmp_path: Path, blocks: int) -> None:
    """Regression: the setting was shown with what was drawn, and had no effect."""
    genesis = prepare(tmp_path, 4, 1, blocks).facts().genesis
    assert isinstance(genesis, ConsortiumGenesis)
    assert blocks_of(genesis.rotation_blocks) == blocks


def test_traitors_are_named_and_not_mistaken_for_their_number() -> None:
    outcome = Outcome(
        name="one",
        seed=1,
        commit="c",
        verdict="ok",
        findings=(),
        voided=(),
        complete=True,
        replicas=4,
        byzantine=(0,),
        faults=(),
        blocks=1,
        views=0,
        transactions=0,
        unanswered=0,
        latency_p50_ms=0,
        latency_p95_ms=0,
        longest_pause_ms=0,
        duration_ms=1_000,
        cpu_s=0.0,
        memory_kib=0,
        memory_growth_kib=0,
        load_average=0.0,
    )
    assert "Byzantine: replica 0" in told(outcome)
