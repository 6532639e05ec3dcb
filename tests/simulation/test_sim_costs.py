"""What a simulated run does once, it does not do once per replica: counted, never timed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.lab.bench.sampling import Stage, sampled
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Chain, Liveness, Manifest, Safety, Workload
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.pbft.log import VoteLog

REPLICAS, QUORUM = 7, 5
QUIET = Manifest(
    chain=Chain(replicas=REPLICAS),
    workload=Workload(transactions_per_s=5),
    safety=Safety(duration_ms=10_000),
    liveness=Liveness(bound_ms=0),
)


def _counted(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], owner: type, name: str) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        calls[name] += 1
        calls[f"{name} of something"] += result is not None
        return result

    monkeypatch.setattr(owner, name, counting)


def test_a_block_is_executed_by_its_maker_and_by_the_checker_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Counter[str] = Counter()
    _counted(monkeypatch, calls, Ledger, "build")
    _counted(monkeypatch, calls, Ledger, "execute")
    outcome = execute(QUIET, 1, program="test")
    assert outcome.verdict == "ok"
    assert outcome.blocks <= calls["build"] <= outcome.blocks + 1
    assert calls["execute"] == outcome.blocks


def test_a_signature_is_checked_once_and_a_certificate_made_once_per_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Counter[str] = Counter()
    _counted(monkeypatch, calls, KeyedHashVerifier, "verify")
    _counted(monkeypatch, calls, VoteLog, "prepared_certificate")
    _counted(monkeypatch, calls, VoteLog, "commit_certificate")
    outcome = execute(QUIET, 1, program="test")
    heights = outcome.blocks + 1
    votes = heights * (1 + (REPLICAS - 1) + REPLICAS)
    of_proofs = heights * REPLICAS * QUORUM
    # Replicas store different quorums of one block's commits; the checker looks at each of these.
    assert calls["verify"] <= votes + outcome.transactions + REPLICAS + of_proofs
    assert calls["prepared_certificate of something"] <= heights * REPLICAS
    assert calls["commit_certificate of something"] <= heights * REPLICAS


def test_samples_fall_into_the_first_stage_that_fits() -> None:
    stages = (Stage("inner", (), frozenset({"_spin"})), Stage("outer", ("test_sim_costs.py",)))
    with sampled(stages) as samples:
        _spin()
    assert sum(share for _, share in samples.shares()) == pytest.approx(1)
    assert samples.shares()[0][0] == "inner"


def _spin() -> None:
    for number in range(3_000_000):
        number * number
