"""Replica sets that change in simulated runs: observers get seats, keys are rotated, clients follow."""

from pathlib import Path

import msgspec
import pytest
from tests.stages import spread

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.faults import byzantine
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.execute import execute, tell
from gridtokenx.lab.sim.manifest import Change, Manifest, dump, load, parse

SWARM = load(Path(__file__).parents[2] / "compose/manifests/sim-swarm.toml")
CHANGING = """
name = "changing"
[chain]
observers = 2
block_time_ms = 200
{chain}
[workload]
transactions_per_s = 2
[safety]
duration_ms = 15000
[liveness]
bound_ms = 60000
[[change]]
add = 4
at_ms = 1000
[[change]]
replace = 0
by = 5
[[change]]
remove = 1
at_height = 20
"""


def changing(chain: str = "", *faults: str) -> Manifest:
    tables = "".join(f"[[fault]]\n{fault}\n" for fault in faults)
    return parse(CHANGING.format(chain=chain) + tables)


def members(manifest: Manifest, seed: int) -> list[tuple[int, ...]]:
    """The sets that a run went through."""
    _, history = tell(manifest, seed)
    assert history is not None
    return list(dict.fromkeys(point.members for point in history.views))


def test_observers_get_seats_keys_are_rotated_and_members_leave() -> None:
    assert members(changing(), 1) == [(0, 1, 2, 3, 4), (5, 1, 2, 3, 4), (5, 2, 3, 4)]
    outcome = execute(changing(), 1)
    assert (outcome.verdict, outcome.handovers) == ("ok", 3)


@pytest.mark.parametrize(
    "chain", ["window = 4", "rotation_blocks = 3", "checkpoint_blocks = 4\nsnapshot_distance = 8"]
)
@pytest.mark.parametrize("lie", ["snapshot-liar", "withhold"])
def test_sets_change_while_nodes_fall_and_lie(chain: str, lie: str) -> None:
    outcome = execute(
        changing(
            chain,
            'kind = "crash"\nnodes = ["leader"]\nwhen = "handover"\nfor_ms = 3000',
            'kind = "crash"\nnodes = [5]\nat_ms = 2000\nfor_ms = 6000',
            'kind = "behave"\nnode = 2\nbehaviour = "equivocate"',
            f'kind = "behave"\nnode = 2\nbehaviour = "{lie}"',
        ),
        3,
    )
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.handovers >= 2


def test_a_set_with_too_many_traitors_voids_the_promise() -> None:
    """One of five is tolerated; two of the four that remain are not."""
    traitors = [f'kind = "behave"\nnode = {node}\nbehaviour = "silent"' for node in (2, 4)]
    outcome = execute(changing("", *traitors), 1)
    assert "safety: 2 Byzantine of 5 in set 1, 1 tolerated" in outcome.voided


def test_a_change_that_is_not_allowed_is_passed_over() -> None:
    manifest = msgspec.structs.replace(
        changing(), change=(Change(add=1), Change(remove=5), Change(replace=0, by=4))
    )
    assert members(manifest, 1) == [(4, 1, 2, 3)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("add = 4\nremove = 1", "give exactly one of add, remove and replace"),
        ("add = 9", "node 9 does not exist; there are 0 to 5"),
        ("replace = 0", "`by` belongs to `replace`"),
        ("ad = 4", "unknown key 'change 1: ad'; did you mean 'add'?"),
    ],
)
def test_a_slip_is_answered(table: str, said: str) -> None:
    with pytest.raises(LocalFault, match="change 1") as slip:
        parse(f"[chain]\nobservers = 2\n[[change]]\n{table}\n")
    assert said in str(slip.value)


@pytest.mark.parametrize("seed", spread(range(200), 40))
def test_what_is_drawn_stays_within_the_assumptions(seed: int) -> None:
    """No set that there will be has more traitors than it tolerates; a dump says it all."""
    resolved = resolve(SWARM, seed)
    assert parse(dump(resolved)) == resolved
    traitors, seats = byzantine(resolved.fault), list(range(resolved.chain.replicas))
    for change in (None, *resolved.change):
        if change is not None and change.add is not None:
            seats.append(change.add)
        elif change is not None and change.remove is not None:
            seats.remove(change.remove)
        elif change is not None and change.replace is not None and change.by is not None:
            seats[seats.index(change.replace)] = change.by
        assert len(traitors.intersection(seats)) <= max_faulty(len(seats))
