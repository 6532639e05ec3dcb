"""Sweeps of the manifests that are shipped: no schedule within the assumptions breaks a promise.

More seeds: ``GTX_STAGES=slow GTX_SIM_SEEDS=5000 pytest tests/simulation/test_sim_sweeps.py``, or
``gtx sim sweep compose/manifests/sim-swarm.toml --seeds 0..4999 --jobs 2``.
"""

import itertools
import os
from pathlib import Path

import msgspec
import pytest
from tests.stages import spread

from gridtokenx.lab.faults import BEHAVIOURS, KINDS, AnyFault, Behave, Crash, Fault
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Workload, load, parse
from gridtokenx.lab.sim.pbft.run import PbftRun

ROOT = Path(__file__).parents[2] / "compose"
PLAIN = 3
"""Seeds of each manifest that the plain stage draws."""
SEEDS = range(int(os.environ.get("GTX_SIM_SEEDS", "150")))


@pytest.mark.parametrize("seed", spread(SEEDS, PLAIN))
def test_swarm(seed: int) -> None:
    outcome = execute(load(ROOT / "manifests/sim-swarm.toml"), seed)
    assert outcome.verdict == "ok", outcome.finding
    assert not outcome.voided, "a swarm stays within the assumptions"


@pytest.mark.parametrize("seed", spread(SEEDS, PLAIN))
def test_byzzfuzz(seed: int) -> None:
    outcome = execute(load(ROOT / "manifests/sim-byzzfuzz.toml"), seed)
    assert outcome.verdict == "ok", outcome.finding


def short(*faults: AnyFault, replicas: int = 4, seed: int | None = None) -> Manifest:
    return Manifest(
        seed=seed,
        chain=Chain(replicas=replicas),
        workload=Workload(transactions_per_s=2),
        safety=Safety(duration_ms=12_000),
        liveness=Liveness(bound_ms=60_000),
        fault=faults,
    )


@pytest.mark.parametrize(
    ("behaviour", "replicas"), spread([*itertools.product(BEHAVIOURS, (4, 5))], 15)
)
def test_one_traitor_that_leads_breaks_nothing(behaviour: str, replicas: int) -> None:
    """With a crash in between, so that views change under every behaviour."""
    traitor = msgspec.convert({"kind": "behave", "node": 0, "behaviour": behaviour}, Behave)
    crash = Crash(nodes=(1,), at_ms=5_000, for_ms=3_000)
    outcome = execute(short(traitor, crash, replicas=replicas), 3)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.byzantine == (0,)


@pytest.mark.parametrize("chain", [Chain(), Chain(checkpoint_blocks=4, snapshot_distance=8)])
@pytest.mark.parametrize("seed", [1, 3])
def test_who_lags_gets_past_one_that_withholds(chain: Chain, seed: int) -> None:
    """One of two seeds denies that it has anything, the other never answers; by blocks and by snapshot."""
    withholds = Behave(node=0, behaviour="withhold")
    crash = Crash(nodes=(1,), at_ms=1_000, for_ms=20_000)
    run = PbftRun(
        msgspec.structs.replace(
            short(withholds, crash, seed=seed), chain=chain, safety=Safety(duration_ms=30_000)
        )
    )
    outcome = run.run("here")
    assert outcome.verdict == "ok", outcome.finding
    assert run._traitors.ring.deeds["withhold"] > 0


REQUIRED: dict[str, dict[str, object]] = {
    "clock-offset": {"offset_ms": 9_000},
    "clock-drift": {"drift_ppm": 200_000},
    "clock-jump": {"jump_ms": -20_000},
    "round-partition": {"round": 7, "sides": [[0, 1], [2, 3]]},
    "view-partition": {"view": 0, "sides": [[0, 1], [2, 3]]},
    "round-mutation": {"node": 0, "round": 6, "mutation": "view-up"},
    "behave": {"node": 0, "behaviour": "silent"},
    "delay": {"delay_ms": 2_000},
    "bandwidth": {"bytes_per_s": 3_000},
    "partition": {"nodes": [0, 1]},
}
"""What a kind of fault needs, or what makes it hurt."""


def some_fault(kind: str) -> Fault:
    options = dict(REQUIRED.get(kind, {}))
    if "nodes" in {field.name for field in msgspec.structs.fields(KINDS[kind])}:
        options.setdefault("nodes", [0])
    return msgspec.convert({"kind": kind, "at_height": 2, "for_ms": 5_000, **options}, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_of_each_kind_breaks_nothing(kind: str) -> None:
    crash = Crash(nodes=(0,), at_ms=6_000, for_ms=500)
    outcome = execute(short(some_fault(kind), crash), 1)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.recovery_ms >= 0


def test_beyond_f_the_verdict_says_what_was_never_promised() -> None:
    """Two equivocators of four split the chain; that is no violation, and it is said so."""
    traitors = [Behave(node=i, behaviour="equivocate", victims=(2,)) for i in (0, 1)]
    outcome = execute(short(*traitors), 1)
    assert outcome.verdict == "voided"
    assert outcome.finding is not None
    assert outcome.finding.checker == "agreement"
    assert outcome.voided[0] == "safety: 2 Byzantine of 4, 1 tolerated"


def test_a_core_of_a_quorum_is_enough() -> None:
    manifest = short(Crash(nodes=("leader",), at_ms=3_000))
    phase = Liveness(bound_ms=60_000, core="quorum")
    outcome = execute(msgspec.structs.replace(manifest, liveness=phase), 5)
    assert outcome.verdict == "ok", outcome.finding


def test_without_a_quorum_of_sound_disks_liveness_is_not_promised() -> None:
    flips = parse(
        """
        [safety]
        duration_ms = 8000
        [liveness]
        bound_ms = 20000
        [[fault]]
        kind = "crash"
        nodes = [0, 1]
        at_ms = 3000
        [[fault]]
        kind = "bit-flip"
        nodes = [0, 1]
        at_ms = 4000
        """
    )
    outcome = execute(flips, 1)
    assert outcome.verdict == "voided"
    assert outcome.voided == ("liveness: a core of 2 sound honest replicas, 3 needed",)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "regressions").glob("*.toml")), ids=lambda p: p.stem
)
def test_regressions_end_as_they_must(path: Path) -> None:
    manifest = load(path)
    outcome = execute(manifest, manifest.seed or 0)
    expected = manifest.expect or "ok"
    assert outcome.verdict == expected, outcome.finding
