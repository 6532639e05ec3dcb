"""Manifests of real runs: the simulator's words, roles for traitors, storms drawn from a seed."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.chaos.manifest import Treason, dump, fault_lines, load, parse, resolve
from gridtokenx.lab.faults import Behave, Crash, Partition, kind_of
from gridtokenx.lab.sim import manifest as simulated

STORM_21 = Path(__file__).parents[2] / "compose" / "manifests" / "faults-storm-21.toml"
SHARED = """
[[fault]]
kind = "crash"
nodes = ["leader"]
at_ms = 1000
for_ms = 2000

[[fault]]
kind = "behave"
node = 2
behaviour = "equivocate"
at_view = 3
"""


def test_a_schedule_of_the_simulator_is_one_of_real_processes() -> None:
    real, sim = parse(SHARED).fault, simulated.parse(SHARED).fault
    assert real[0] == sim[0]
    assert isinstance(real[1], Treason)
    assert isinstance(sim[1], Behave)
    assert real[1].of(2) == Behave(node=2, behaviour="equivocate", at_view=3)


BEHAVE = '[[fault]]\nkind = "behave"\nnode = 0\nbehaviour'


def test_a_traitor_may_be_named_by_its_role() -> None:
    fault = parse('[[fault]]\nkind = "behave"\nnode = "leader"\nbehaviour = "silent"\n').fault[0]
    assert isinstance(fault, Treason)
    assert fault.of(7).node == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[chain]\nreplicas = 3\n", "chain.replicas = 3"),
        ("[chain]\nreplica = 4\n", "replica"),
        ("[chain]\nvariant = 'hasty'\n", "gtx sim run"),
        ('[[fault]]\nkind = "torn-write"\nnodes = [0]\n', "torn-write"),
        ('[[fault]]\nkind = "crash"\nnodes = [4]\n', "node 4 does not exist"),
        ('[[fault]]\nkind = "crash"\nnodes = [0]\nwhen = "prepared"\n', "only the simulator can"),
        ('[[fault]]\nkind = "behave"\nnode = 0\nbehaviour = "twin"\n', "twin"),
        ('[[fault]]\nkind = "bandwidth"\nmessages = ["Prepare"]\n', "one stream"),
        ("[storm]\nperiod_ms = 10_000\nfor_ms = [4_000]\n", "2500 ms for each"),
        ("seed =", "not TOML"),
        ("[[fault]]\nkid = 'crash'\n", "fault 1: it has no kind; allowed: crash, pause"),
        (
            "[[fault]]\nkind = 'crash'\nforms = 9\n",
            r"fault 1 \(crash\): forms'; did you mean 'for_ms'",
        ),
        (
            f"{BEHAVE} = 'floood'\n",
            "fault 1: behaviour = 'floood': Invalid enum value 'floood'; allowed words: .*, flood",
        ),
        ("[[fault]]\nkind = 'behave'\n", "fault 1 = .*missing required field `node`"),
        ("[chain]\nreplicas = 'x'\n", "chain.replicas = 'x': Expected `int`, got `str`"),
        (f"a = {'[' * 100_000}", "not TOML: nested more than 31 deep"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(text: str, words: str) -> None:
    with pytest.raises(LocalFault, match=words):
        parse(text)


def test_a_seed_decides_the_storm_and_nothing_else_does() -> None:
    manifest = load(STORM_21)
    resolved = resolve(manifest, 7)
    assert resolved == resolve(manifest, 7)
    assert resolved != resolve(manifest, 8)
    assert resolve(resolved, 9) == resolved
    assert parse(dump(resolved)) == resolved


def test_each_minute_of_the_storm_has_one_of_each_kind_and_none_over_another() -> None:
    manifest = resolve(load(STORM_21), 3)
    faults = manifest.fault
    assert len(faults) == 20
    for minute in range(5):
        kinds = [kind_of(f) for f in faults if f.at_ms // 60_000 == minute]
        assert Counter(kinds) == Counter(("crash", "pause", "partition", "behave"))
    for one, following in itertools.pairwise(faults):
        assert one.at_ms + one.for_ms < following.at_ms
    cut = [f for f in faults if isinstance(f, Partition) and f.shape in ("isolate", "one-way")]
    assert all(len(f.nodes) <= max_faulty(21) for f in cut)


def test_a_fault_as_text_is_the_fault() -> None:
    fault = Crash(nodes=("leader", 2), at_height=4, for_ms=100)
    assert parse("\n".join(fault_lines(fault))).fault == (fault,)
