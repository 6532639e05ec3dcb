"""Traitors in a whole network: up to f of each chain hurt nobody, and every behaviour really acts."""

from collections.abc import Sequence

import pytest
from tests.stages import spread

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.faults import BEHAVIOURS
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.manifest import parse
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.pbft.amnesia import Amnesiac
from gridtokenx.lab.sim.testnet import oracles, validators
from gridtokenx.lab.sim.testnet import run as networks
from gridtokenx.lab.sim.testnet.naming import VALIDATORS, VARIANTS, behaviours_of
from gridtokenx.lab.sim.testnet.variants import network_variant

SMALL = """
name = "small"
[testnet.devices]
households = 4
profile_days = 1
[safety]
duration_ms = {seconds}000
"""
CRASH = '[[fault]]\nkind = "crash"\nnodes = ["{}"]\nat_ms = 4000\nfor_ms = 9000\n'
"""A view change, for those who lie then."""
SILENT_OF_DEEDS = (
    "amnesia", "snapshot-liar", "withhold", "malformed-view-change", "stale-view-change",
)  # fmt: skip
"""Some seeds give these no occasion; that they act is shown where chains are by themselves."""


def behave(node: str, behaviour: str, **options: object) -> str:
    told = "".join(f"{key} = {value}\n" for key, value in options.items())
    return f'[[fault]]\nkind = "behave"\nnode = "{node}"\nbehaviour = "{behaviour}"\n{told}'


def run(faults: str, seed: int = 1, seconds: int = 20) -> tuple[networks.TestnetRun, Outcome]:
    manifest = parse(SMALL.format(seconds=seconds) + faults)
    told = networks.TestnetRun(resolve(manifest, seed))
    return told, told.run("here")


def trios() -> list[tuple[str, str, str]]:
    """Each behaviour of each chain in some run, with one traitor on every chain."""
    everyone = [list(behaviours_of(name)) for name in ("public-1", "consortium-1", "oracle-1")]
    most = max(map(len, everyone))
    public, consortium, oracle = ([each[i % len(each)] for i in range(most)] for each in everyone)
    return list(zip(public, consortium, oracle, strict=True))


@pytest.mark.parametrize("trio", spread(trios(), 3), ids="+".join)
def test_a_traitor_on_every_chain_breaks_nothing(trio: Sequence[str]) -> None:
    nodes = ("public-1", "consortium-1", "oracle-1")
    faults = "".join(behave(node, what) for node, what in zip(nodes, trio, strict=True))
    told, outcome = run(faults + CRASH.format("consortium-0") + CRASH.format("oracle-0"), seed=3)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.voided == ()
    assert len(outcome.byzantine) == 3
    assert told.checkers.feeds.rounds > 0, "prices were looked at"
    for behaviour in set(trio) - set(SILENT_OF_DEEDS):
        assert told.testnet.traitors.deeds[behaviour] > 0, behaviour


def test_what_a_validator_may_do_is_what_there_is() -> None:
    assert set(VALIDATORS) == {*validators.TRICKS, "twin"}
    assert set(behaviours_of("oracle-0")) == {*BEHAVIOURS, *oracles.BEHAVIOURS}
    for name in VARIANTS:
        assert network_variant(name) is not None


REFUSED = (
    ("public-1", "forge-signature", "bad-signature"),
    ("public-1", "equivocate", "slot-equivocation"),
    ("public-1", "wrong-state-root", "invalid-block"),
    ("consortium-0", "forge-signature", "bad-signature"),
    ("consortium-0", "wrong-state-root", "invalid-block"),
    ("consortium-0", "wrong-digest", "wrong-body"),
    ("oracle-0", "twin", "equivocation"),
    ("oracle-0", "false-reading", "bad-signature"),
    ("relayer-0", "false-proof", "oracle: unknown-header"),
    ("relayer-0", "old-header", "consortium: unknown-header"),
)


@pytest.mark.parametrize(("node", "behaviour", "reason"), spread(REFUSED, 3))
def test_the_honest_refuse_what_a_traitor_says(node: str, behaviour: str, reason: str) -> None:
    _, outcome = run(behave(node, behaviour))
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.noticed.get(reason, 0) > 0, outcome.noticed


def test_a_voter_that_agrees_with_everybody_is_found_out() -> None:
    """It makes them disagree first, by two blocks for one slot."""
    liar = behave("public-0", "conflicting-votes") + behave("public-0", "equivocate")
    _, outcome = run(liar, seconds=40)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.noticed["grandpa-equivocation"] > 0
    assert outcome.noticed["slot-equivocation"] > 0


def test_an_amnesiac_replica_is_one_inside() -> None:
    manifest = parse(SMALL.format(seconds=1) + behave("consortium-2", "amnesia"))
    told = networks.TestnetRun(resolve(manifest, 1))
    traitors = told.testnet.traitors
    assert traitors.replica_type("consortium", 2) is Amnesiac
    assert traitors.replica_type("consortium", 1) is None


@pytest.mark.parametrize("behaviour", spread(behaviours_of("relayer-0"), 2))
def test_a_lying_relayer_costs_time_only(behaviour: str) -> None:
    told, outcome = run(behave("relayer-0", behaviour))
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.byzantine == ()
    assert outcome.voided == ()
    assert told.testnet.traitors.deeds[behaviour] > 0
    assert sum(told.tally.ended.values()) > 0


def test_false_watermarks_lose_no_reading() -> None:
    told, outcome = run(behave("oracle-1", "false-watermark"), seconds=40)
    assert outcome.verdict == "ok", outcome.finding
    assert told.testnet.traitors.deeds["false-watermark"] > 0
    assert outcome.summary is not None
    readings = outcome.summary["readings"]
    assert readings["verified"] == readings["published"] > 0


def test_old_frames_on_every_connection_end_no_process() -> None:
    """A swarm found it: market data was asked for a document that there is not."""
    told, outcome = run(behave("oracle-1", "replay"), seconds=10)
    assert outcome.verdict == "ok", outcome.finding
    assert told.testnet.traitors.deeds["replay"] > 0


BEYOND = {
    "public": behave("public-0", "equivocate")
    + behave("public-1", "equivocate")
    + behave("public-0", "conflicting-votes")
    + behave("public-1", "conflicting-votes"),
    "consortium": behave("consortium-0", "equivocate") + behave("consortium-1", "equivocate"),
    "oracle": behave("oracle-0", "false-price") + behave("oracle-1", "false-price"),
}
FALLEN = {"public": "agreement", "consortium": "agreement", "oracle": "honest-range"}


@pytest.mark.parametrize("chain", BEYOND)
def test_more_traitors_than_a_chain_tolerates_void_its_promises(chain: str) -> None:
    _, outcome = run(BEYOND[chain], seed=2, seconds=30)
    assert outcome.verdict == "voided"
    told = f"2 of 4 {chain} nodes are Byzantine, 1 tolerated"
    assert outcome.voided == (f"safety: {told}", f"liveness: {told}")
    assert outcome.finding is not None
    assert outcome.finding.checker == FALLEN[chain]


BROKEN = (
    ("mean-of-feeds", behave("oracle-0", "false-price"), "honest-range"),
    ("few-precommits", "", "certificate"),
    (
        "believes-leader",
        behave("consortium-0", "wrong-state-root"),
        "audit: consortium_reexecutes",
    ),
)


@pytest.mark.parametrize(("variant", "faults", "checker"), BROKEN)
def test_a_network_that_is_broken_on_purpose_is_caught(
    variant: str, faults: str, checker: str
) -> None:
    _, outcome = run(f'[chain]\nvariant = "{variant}"\n{faults}')
    assert outcome.verdict == "violation"
    assert outcome.finding is not None
    assert outcome.finding.checker == checker


SWARM = """
[swarm]
faults = 3
least_byzantine = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mean-of-feeds", "few-precommits", "weak-commit"])
def test_a_swarm_catches_a_network_that_is_broken(variant: str) -> None:
    verdicts = (
        run(f'[chain]\nvariant = "{variant}"\n{SWARM}', seed, seconds=40)[1].verdict
        for seed in range(20)
    )
    assert "violation" in verdicts


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        (behave("public-0", "false-price"), "public-0 may be"),
        (behave("relayer-0", "equivocate"), "relayer-0 may be silent"),
        (behave("public-0", "silent", victims='["oracle-1"]'), "no victim is of the public chain"),
        ("".join(behave(f"oracle-{i}", "silent") for i in range(4)), "every node of the oracle"),
        ('[chain]\nvariant = "wrong"\n', "known: two-f-plus-one"),
        ("[chain]\nreplicas = 5\n", "may hold `variant`"),
    ],
)
def test_slips_are_named(faults: str, complaint: str) -> None:
    with pytest.raises(LocalFault, match=complaint):
        parse(SMALL.format(seconds=5) + faults)


def test_a_replica_of_one_chain_tells_no_prices() -> None:
    with pytest.raises(LocalFault, match="what oracles and relayers of a network do"):
        parse('[[fault]]\nkind = "behave"\nnode = 0\nbehaviour = "false-price"\n')
