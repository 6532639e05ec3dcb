"""Sets of replicas change in a whole network, and the other chains' clients follow."""

import pytest
from tests.stages import spread

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.manifest import Change, dump, parse
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.testnet import run as networks

SMALL = """
name = "small"
[testnet.devices]
households = 4
profile_days = 1
[safety]
duration_ms = 16000
[chain]
observers = 1
"""
BRIEF = "[liveness]\nbound_ms = 0\n"
"""Nobody has to go on at the end."""
CHANGES = """
[[change]]
add = "consortium-4"
at_ms = 2000
[[change]]
remove = "consortium-0"
at_ms = 9000
[[change]]
replace = "oracle-1"
by = "oracle-4"
at_ms = 3000
"""
TROUBLE = """
[[fault]]
kind = "crash"
nodes = ["consortium-4", "oracle-2"]
when = "handover"
for_ms = 4000
[[fault]]
kind = "behave"
node = "oracle-4"
behaviour = "equivocate"
[[fault]]
kind = "behave"
node = "consortium-3"
behaviour = "stale-view-change"
[[fault]]
kind = "crash"
nodes = ["relayer-0"]
at_ms = 6000
for_ms = 8000
"""


def run(text: str, seed: int = 1) -> tuple[networks.TestnetRun, Outcome, list[str]]:
    lines: list[str] = []
    manifest = resolve(parse(SMALL + text), seed)
    told = networks.TestnetRun(manifest, lambda _at_ms, line: lines.append(line))
    return told, told.run("here"), lines


def test_both_chains_change_their_sets_and_the_network_goes_on() -> None:
    told, outcome, lines = run(CHANGES)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.handovers == 3
    assert outcome.refused == ()
    assert "set 1 of oracle is announced: oracle-0, oracle-4, oracle-2, oracle-3" in lines
    assert not list(told._unfollowed()), "clients of the other chains know the last sets"
    newcomer = told.testnet.parts.count("oracle-4")
    assert newcomer.value("observations") > 0, "it began to observe when it got its seat"
    assert outcome.summary is not None
    assert outcome.summary["settlements"]["intervals"] >= 1


@pytest.mark.parametrize("seed", spread(range(4), 1))
def test_changes_are_survived_with_crashes_and_traitors_around(seed: int) -> None:
    _, outcome, _ = run(CHANGES + TROUBLE, seed)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.handovers == 3


def test_a_change_that_a_set_does_not_allow_is_passed_over() -> None:
    removals = '[[change]]\nremove = "oracle-0"\n[[change]]\nremove = "oracle-4"\n'
    _, outcome, lines = run(f"{BRIEF}{removals}")
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.handovers == 0
    assert len(outcome.refused) == 2
    assert outcome.refused[0].startswith("oracle: change 1 (remove 0): ")
    assert any(line.startswith("oracle: refused: change 1") for line in lines)


def test_traitors_are_counted_in_each_set() -> None:
    """A second one gets a seat: from then on nothing is promised."""
    traitors = "".join(
        f'[[fault]]\nkind = "behave"\nnode = "consortium-{index}"\nbehaviour = "silent"\n'
        for index in (0, 4)
    )
    swap = '[[change]]\nreplace = "consortium-1"\nby = "consortium-4"\n'
    _, outcome, _ = run(f"{BRIEF}{swap}{traitors}")
    told = "2 of 4 consortium nodes are Byzantine in set 1, 1 tolerated"
    assert outcome.voided == (f"safety: {told}", f"liveness: {told}")


def test_changes_name_nodes_and_are_written_so() -> None:
    manifest = parse(SMALL + CHANGES)
    assert manifest.change[2] == Change(replace=10, by=13, at_ms=3_000)
    assert parse(dump(manifest)) == manifest
    assert 'by = "oracle-4"' in dump(manifest)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('remove = "public-0"', "of one of the PBFT chains, not public-0"),
        ('replace = "oracle-0"\nby = "consortium-4"', "of one of the PBFT chains, not oracle-0, c"),
        ('add = "oracle-5"', "oracle-5"),
        ("add = 99", "node 99 does not exist"),
    ],
)
def test_slips_in_changes_are_named(change: str, complaint: str) -> None:
    with pytest.raises(LocalFault, match=complaint):
        parse(f"{SMALL}[[change]]\n{change}\n")
