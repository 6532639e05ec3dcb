"""Manifests of simulated runs: what is refused and how it is said, and that text and value agree."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.quorum import quorum
from gridtokenx.lab.faults import KINDS, byzantine, damaged, kind_of
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.manifest import Byzzfuzz, Manifest, Swarm, dump, load, parse
from gridtokenx.lab.sim.sweep import parse_seeds

REFUSED = {
    "[chain]\nreplica = 3": "unknown key 'chain.replica'; did you mean 'replicas'?",
    "[chain]\nreplicas = 0": "chain.replicas = 0: Expected `int` >= 1",
    "chain = 3": "chain is a table, not 3",
    '[[fault]]\nkind = "foo"': "fault 1: kind is 'foo'; allowed: crash, pause,",
    '[[fault]]\nkind = "crash"\nnode = [1]': "fault 1 (crash): node'; did you mean 'nodes'?",
    '[[fault]]\nkind = "crash"\nnodes = [9]': "node 9 does not exist; there are 0 to 3",
    '[[fault]]\nkind = "loss"\nshare = 2': "fault 1: share = 2: Expected `float` <= 1.0",
    '[[fault]]\nkind = "wipe"\nnodes = ["leader"]': "nodes must be named by index",
    '[[fault]]\nkind = "loss"\nat_ms = 5\nat_view = 1': "give one of at_ms, at_height, at_view",
    '[[fault]]\nkind = "partition"\nshape = "isolate"': "needs nodes: whom it cuts off",
    '[[fault]]\nkind = "partition"\nsides = [[0], [1]]': "sides belong to shape 'sides'",
    '[swarm]\nfeatures = ["x"]': "swarm.features[0] = 'x': Invalid enum value 'x'",
    "[swarm]\n[byzzfuzz]": "[swarm] and [byzzfuzz] both draw the faults",
    "[network]\nleast_delay_ms = 30": "network.delay_ms = 20 is below",
    "[liveness]\nleast_delay_ms = 30": "liveness.delay_ms = 5 is below",
    "[chain]\nvariant = 'honest'": "chain.variant = 'honest': known: two-f-plus-one, no-prepared",
    "[liveness]\ncore = [0]": "Expected `str`, got `array`; allowed words: all, quorum",
    "[[fault]]\nkid = 'crash'": "fault 1: it has no kind; allowed: crash, pause,",
    '[[fault]]\nkind = "crash"\nnodes = ["boss"]': "allowed words: leader, next-leader",
    "[": "not TOML",
    '[[fault]]\nkind = "loss"\nwhen = "noon"': "allowed words: view-change, prepared,",
    'liveness = [1]\ntestnet = {name = "here"}': "liveness is a table, not [1]",
    f"about = [{'0,' * 9_000}]": f"about = [{'0, ' * 66}0...: Expected `str`, got `array`",
    "a = " + "[" * 100_000: "not TOML: nested more than 31 deep",
    f"name{'.a' * 500} = 1": "not TOML: nested more than 31 deep",
    f"seed = {'9' * 5_000}": "not TOML",
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items())
def test_what_is_refused_says_key_value_and_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(LocalFault) as caught:
        parse(text, "x.toml")
    assert str(caught.value).startswith("manifest x.toml: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot be read"):
        load(tmp_path / "none.toml")


@given(st.integers(0, 2**32), st.sampled_from([4, 5, 7, 21]), st.booleans())
@settings(max_examples=examples(200), deadline=None)
def test_what_is_drawn_survives_writing_and_reading(seed: int, size: int, rounds: bool) -> None:
    swarm = None if rounds else Swarm(replicas=(size,))
    fuzz = Byzzfuzz(scope="any" if seed % 2 else "small") if rounds else None
    resolved = resolve(Manifest(swarm=swarm, byzzfuzz=fuzz), seed)
    assert parse(dump(resolved)) == resolved
    assert resolved.seed == seed
    assert len(byzantine(resolved.fault)) <= (resolved.chain.replicas - 1) // 3


def test_swarms_meet_every_kind_of_fault_that_they_may_draw() -> None:
    drawn = {
        kind_of(f) for seed in range(300) for f in resolve(Manifest(swarm=Swarm()), seed).fault
    }
    assert drawn == set(KINDS) - {"round-partition", "view-partition", "round-mutation"}


def test_at_least_so_many_traitors() -> None:
    swarm = Swarm(replicas=(7,), least_byzantine=2)
    for seed in range(20):
        assert len(byzantine(resolve(Manifest(swarm=swarm), seed).fault)) == 2


def test_a_swarm_leaves_a_sound_core() -> None:
    for seed in range(2_000):
        run = resolve(Manifest(swarm=Swarm()), seed)
        lost = byzantine(run.fault) | damaged(run.fault)
        assert run.chain.replicas - len(lost) >= quorum(run.chain.replicas)
        if run.liveness.core == "quorum":
            assert len(run.liveness.members) == quorum(run.chain.replicas)
            assert not lost & set(run.liveness.members)


def test_seeds() -> None:
    assert parse_seeds("7") == range(7, 8)
    assert parse_seeds("0..999") == range(1000)
    assert parse_seeds(f"{2**63 - 1}").stop == 2**63
    for text in ("", "x", "5..2", "-1..3", "1..x", "٣", "1_0", " 1", "0..1000000", f"{2**63}"):
        with pytest.raises(LocalFault, match="seeds"):
            parse_seeds(text)
