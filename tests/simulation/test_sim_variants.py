"""Replicas that are broken on purpose are caught: by the general swarm, and by a sweep of their own.

`CAUGHT` and `MOST` state after how many seeds at most. They are bounds, not golden numbers: a change of
the engine moves the runs. `SWARM` names, for every variant, the first seed of the general swarm that
caught it when this was written, so that none need be looked for; if it does no longer, all seeds below
`MOST` are looked through, and `caught_by_seed` of the report is the one to name here.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.stages import spread

from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Manifest, load
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.pbft.variants import VARIANTS

MANIFESTS = Path(__file__).parent / "sim_variants"
GENERAL = Path(__file__).parents[2] / "compose/manifests/sim-swarm.toml"
PLAIN = 2
"""Of how many variants the plain stage runs the general swarm."""
MOST = 300
"""Seeds of the general swarm that catch every variant."""
SWARM = {
    "two-f-plus-one": 37,
    "no-prepared": 7,
    "sends-first": 4,
    "forgets-marks": 1,
    "weak-commit": 0,
    "believes-leader": 17,
    "believes-certificates": 162,
    "never-catches-up": 1,
    "no-silence-timer": 30,
    "no-request-timer": 88,
    "says-it-once": 8,
    "no-patience": 4,
}
"""Variant: a seed of the general swarm that catches it."""
RARE = {"trusts-new-view"}
"""Not caught below `MOST`: a decision that one replica alone knows must be open in the very view that a
liar opens. Its own sweep, four seeds long, makes it so."""
CAUGHT = {
    "two-f-plus-one": (20, {"agreement"}),
    "two-f-plus-one-of-21": (3, {"agreement"}),
    "no-prepared": (20, {"agreement", "survival"}),
    "sends-first": (20, {"contradiction", "agreement", "durability"}),
    "forgets-marks": (20, {"contradiction"}),
    "weak-commit": (3, {"certificate", "agreement"}),
    "believes-leader": (20, {"validity"}),
    "trusts-new-view": (30, {"agreement", "liveness", "validity", "contradiction"}),
    "believes-certificates": (40, {"innocence", "agreement", "validity", "survival"}),
    "never-catches-up": (5, {"liveness"}),
    "no-silence-timer": (20, {"liveness"}),
    "no-request-timer": (20, {"liveness"}),
    "says-it-once": (30, {"liveness"}),
    "no-patience": (3, {"liveness"}),
}
"""Manifest: within how many seeds, and which promises may be the first to break."""


def in_swarm(variant: str, seed: int) -> Outcome:
    """A run of the general swarm, in which the honest replicas are broken."""
    swarm = load(GENERAL)
    chain = msgspec.structs.replace(swarm.chain, variant=variant)
    return execute(msgspec.structs.replace(swarm, chain=chain), seed)


@pytest.mark.parametrize("variant", spread(list(SWARM), PLAIN))
def test_the_general_swarm_catches_it(
    variant: str, record_property: Callable[[str, object], None]
) -> None:
    seeds = (SWARM[variant], *range(MOST))
    caught = next((seed for seed in seeds if in_swarm(variant, seed).failed), None)
    assert caught is not None, f"not caught in {MOST} seeds"
    record_property("caught_by_seed", caught)
    assert in_swarm("", caught).verdict == "ok", "the real replica fails there, too"


def test_the_general_swarm_knows_every_variant() -> None:
    assert set(SWARM) | RARE == set(VARIANTS) - {Chain().variant}


def manifest(name: str) -> Manifest:
    return load(MANIFESTS / f"{name}.toml")


def first_failure(name: str, most: int) -> Outcome | None:
    outcomes = (execute(manifest(name), seed) for seed in range(most))
    return next((outcome for outcome in outcomes if outcome.failed), None)


@pytest.mark.parametrize("name", spread(list(CAUGHT), 3 * PLAIN))
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
