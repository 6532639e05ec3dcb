"""A replica dies in the middle of a handover, at every possible point, and goes on.

Whatever prefix of its batches survives, it is in one set or in the next; what it says in its next life
contradicts nothing that left it in the last, and the chain goes on with it.
"""

import copy
import itertools

import pytest
from tests.simulation.members_cluster import MembersCluster, add, key, remove, replace
from tests.simulation.test_pbft_members_clients import stored
from tests.stages import spread

from gridtokenx.core.machine import Write
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.pbft.membership import Change
from gridtokenx.pbft.terms import TERMS
from gridtokenx.pbft.timing import Timing

MOMENTS = 12
STEP_MS = 70
CHANGES: dict[str, Change] = {
    "a newcomer joins": add(4),
    "the first primary is replaced": replace(0, by=4),
    "a replica leaves": remove(3),
}


def around_a_handover(change: Change, n: int) -> tuple[MembersCluster, int]:
    """A cluster whose next set is agreed on in the next few blocks; and the set's number."""
    cluster = MembersCluster(
        n,
        5,
        timing=Timing(block_time_ms=100, window=4),
        profile=LinkProfile(delay_ms=(5, 30), reorder=0.2),
    )
    cluster.world._disk_ms = (10, 60)  # slow disks: several batches wait at any moment
    cluster.start()
    assert cluster.settle(2)
    while cluster.chain.open(cluster.newest, change) is None:
        cluster.push(change)
        cluster.world.run_for(400)
    return cluster, cluster.members.set_id + 1


@pytest.mark.parametrize(("name", "victim"), spread([*itertools.product(CHANGES, (0, 2, 4))], 4))
def test_a_crash_anywhere_around_a_handover(name: str, victim: int) -> None:
    change = CHANGES[name]
    n = 5 if name == "a replica leaves" else 4
    cluster, _ = around_a_handover(change, n)
    cluster.push(change)
    start = cluster.world.now
    for moment in spread(range(MOMENTS), 4):
        fresh, number = around_a_handover(change, n)
        assert fresh.world.now == start, "the same run each time"
        fresh.push(change)
        fresh.world.run_for(moment * STEP_MS + 9 * victim)
        fresh.crash(victim, keep=moment % 3)
        fresh.world.run_for(150)
        fresh.start(victim)
        if fresh.members.set_id < number:
            assert fresh.hand_over(change)
        assert fresh.settle()
        assert fresh.replica(victim).validators == fresh.members
        fresh.check_chains()


def test_every_prefix_of_a_handover_is_one_set_or_the_next() -> None:
    """On disk, a term is there exactly if the block that it stands on is, and a restart works in it."""
    change = replace(1, by=4)
    cluster, number = around_a_handover(change, 4)
    batches: list[tuple[Write, ...]] = []
    store = cluster.world.nodes[key(2)].store
    base, write = copy.deepcopy(store), store.write

    def watched(batch: tuple[Write, ...]) -> None:
        batches.append(batch)
        write(batch)

    store.write = watched  # type: ignore[method-assign]  # to see what is written together
    assert cluster.hand_over(change)
    assert cluster.settle()
    reached = set()
    for batch in ((), *batches):
        base.write(batch)
        head = int.from_bytes(base.get("meta", b"head") or b"", "big")
        replica = cluster.chain.replica(base, 2, cluster.timing)
        header = stored(cluster, head).header
        assert replica.head.hash == header.hash
        assert replica.validators.hash == header.next_set_hash
        entered = {int.from_bytes(name, "big") for name, _ in base.scan(TERMS)}
        assert entered == set(range(1, replica.validators.set_id + 1))
        begins = any(each.table == TERMS for each in batch)
        assert begins == (replica.validators.set_id not in reached and bool(reached))
        if begins:
            assert (replica.view, replica.active) == (0, True)
            assert not list(base.scan("log")), "nothing of the old set is left"
        reached.add(replica.validators.set_id)
    assert reached == {number - 1, number}
