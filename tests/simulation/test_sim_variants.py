"""Replicas that are broken on purpose are caught, each by a sweep; the real one passes the same runs.

`CAUGHT` states after how many seeds at most. It is a bound, not a golden number: a change of the engine
moves the runs. Measured when written: 2, 1, 3, 3, 4, 1, 4, 2, 7 and 1 seeds.
"""

from pathlib import Path

import msgspec
import pytest

from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Manifest, load
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.pbft.variants import VARIANTS

MANIFESTS = Path(__file__).parent / "sim_variants"
CAUGHT = {
    "two-f-plus-one": (20, {"agreement"}),
    "two-f-plus-one-of-21": (3, {"agreement"}),
    "no-prepared": (20, {"agreement"}),
    "sends-first": (20, {"contradiction", "agreement", "durability"}),
    "forgets-marks": (20, {"contradiction"}),
    "weak-commit": (3, {"certificate", "agreement"}),
    "believes-leader": (20, {"validity"}),
    "no-silence-timer": (20, {"liveness"}),
    "says-it-once": (30, {"liveness"}),
    "no-patience": (3, {"liveness"}),
}
"""Manifest: within how many seeds, and which promises may be the first to break."""


def manifest(name: str) -> Manifest:
    return load(MANIFESTS / f"{name}.toml")


def first_failure(name: str, most: int) -> Outcome | None:
    outcomes = (execute(manifest(name), seed) for seed in range(most))
    return next((outcome for outcome in outcomes if outcome.failed), None)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_sweep_catches_it_and_spares_the_real_replica(name: str) -> None:
    most, checkers = CAUGHT[name]
    outcome = first_failure(name, most)
    assert outcome is not None, f"not caught in {most} seeds"
    assert outcome.finding is not None
    assert outcome.finding.checker in checkers
    chain = msgspec.structs.replace(manifest(name).chain, variant="")
    real = msgspec.structs.replace(manifest(name), chain=chain)
    for seed in range(outcome.seed + 1):
        assert execute(real, seed).verdict == "ok"


def test_every_variant_has_its_sweep() -> None:
    swept = {manifest(path.stem).chain.variant for path in MANIFESTS.glob("*.toml")}
    assert swept == set(VARIANTS) - {Chain().variant}
    assert {path.stem for path in MANIFESTS.glob("*.toml")} == set(CAUGHT)
