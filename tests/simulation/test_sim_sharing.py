"""What replicas of a run share changes nothing: a run without it is the same to the last bit."""

from collections import Counter
from pathlib import Path

import pytest

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import SignatureCheck, Unknown
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Swarm, load
from gridtokenx.lab.sim.pbft.sharing import Sharing
from gridtokenx.pbft.messages import NewView, ViewChange
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.verification import Verification

SWARM = load(Path("compose/manifests/sim-swarm.toml"))
CREDULOUS = Manifest(
    name="credulous",
    chain=Chain(variant="believes-certificates"),
    safety=Safety(duration_ms=10_000),
    liveness=Liveness(bound_ms=0),
    swarm=Swarm(replicas=(4,)),
)


def _alone(self: Sharing, message: Wire) -> tuple[SignatureCheck, ...] | Unknown:
    found = super(Sharing, self).verification(message)
    return found if isinstance(found, Unknown) else tuple(found)


@pytest.mark.parametrize(
    ("manifest", "seed"),
    [(SWARM, 0), (SWARM, 21), (SWARM, 28), (CREDULOUS, 1)],
)
def test_a_run_in_which_nobody_shares_is_the_same(
    manifest: Manifest, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = execute(manifest, seed, program="test")
    monkeypatch.setattr(Sharing, "verification", _alone)
    assert execute(manifest, seed, program="test") == shared


def test_the_signatures_of_a_view_change_are_listed_once_not_once_per_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    ask, find = Sharing.verification, Verification.checks

    def asking(self: Sharing, message: Wire) -> object:
        asked[type(message).__name__] += 1
        return ask(self, message)

    def finding(self: Verification, message: Wire) -> object:
        found[type(message).__name__] += 1
        return find(self, message)

    monkeypatch.setattr(Sharing, "verification", asking)
    monkeypatch.setattr(Verification, "checks", finding)
    assert execute(SWARM, 0, program="test").verdict == "ok"
    for kind in (ViewChange, NewView):
        assert 2 * found[kind.__name__] < asked[kind.__name__]
    assert issubclass(Sharing, Replica)
