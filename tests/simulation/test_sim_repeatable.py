"""Seed and commit are the run: in every process, under every hash seed, drawn or resolved."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gridtokenx.lab.faults import Crash, Delay, Loss, Partition
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Swarm, dump, load, parse
from gridtokenx.lab.sim.shrink import Shrinker

ROOT = Path(__file__).parents[2]
SWARM = Manifest(
    safety=Safety(duration_ms=8_000),
    liveness=Liveness(bound_ms=60_000),
    swarm=Swarm(replicas=(4, 7)),
)
PROGRAM = """
import sys
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import parse
text = sys.stdin.read()
print(*(execute(parse(text), seed).trace for seed in (3, 8)))
"""


def traces_elsewhere(hash_seed: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=dump(SWARM),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout.split()


def test_the_same_seed_is_the_same_trace_in_every_process() -> None:
    here = [execute(SWARM, seed).trace for seed in (3, 8)]
    assert len(set(here)) == 2
    for hash_seed in ("0", "1", "4242"):
        assert traces_elsewhere(hash_seed) == here


@pytest.mark.parametrize("seed", [0, 5])
def test_a_resolved_manifest_is_the_run(seed: int) -> None:
    resolved = resolve(SWARM, seed)
    again = parse(dump(resolved))
    assert again == resolved
    assert resolve(again, 999) == again, "nothing is left to draw"
    assert execute(again, 999) == execute(SWARM, seed)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    drawn = [dump(resolve(SWARM, seed)) for seed in range(30)]
    assert drawn == [dump(resolve(SWARM, seed)) for seed in range(30)]
    assert len(set(drawn)) == 30


def test_shrinking_leaves_what_is_needed() -> None:
    """Of a schedule of six faults, the one that hides a leader's silence is not what fails."""
    noise = (
        Delay(at_ms=1_000, for_ms=500, delay_ms=100),
        Loss(at_ms=2_000, for_ms=500, share=0.1),
        Partition(at_ms=3_000, for_ms=300, nodes=(1, 2)),
        Crash(nodes=(3,), at_ms=4_100, for_ms=600),
    )
    manifest = load(ROOT / "tests/simulation/sim_variants/no-silence-timer.toml")
    chain = Chain(variant="no-silence-timer")
    silent = parse('[[fault]]\nkind = "behave"\nnode = 0\nbehaviour = "silent"').fault
    failing = msgspec.structs.replace(
        manifest, chain=chain, swarm=None, seed=1, fault=(*noise[:2], *silent, *noise[2:])
    )
    outcome = execute(failing, 1)
    assert outcome.failed
    smallest = Shrinker(failing, outcome).run()
    assert smallest.fault == silent
    assert smallest.workload.transactions_per_s == 0
    assert execute(smallest, 1).failed
