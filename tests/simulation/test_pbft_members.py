"""A chain changes its replica set while it runs: seats come, go and change hands."""

import pytest
from tests.simulation.members_cluster import MembersCluster, add, key, remove, replace
from tests.simulation.pbft_cluster import transfer

from gridtokenx.pbft.timing import Timing


@pytest.mark.parametrize("window", [1, 4])
def test_a_set_grows_to_seven_and_shrinks_back(window: int) -> None:
    cluster = MembersCluster(4, 7, timing=Timing(block_time_ms=200, window=window))
    cluster.start()
    for change in (add(4), add(5), add(6), remove(0), remove(2), remove(5)):
        assert cluster.hand_over(change)
        assert cluster.settle()
    assert cluster.seats() == [1, 3, 4, 6]
    assert cluster.members.set_id == 6
    assert cluster.voted[6] == {1, 3, 4, 6}
    assert [cluster.replica(i).seated for i in range(7)] == [i in (1, 3, 4, 6) for i in range(7)]
    cluster.check_chains()


def test_a_key_is_replaced_while_the_chain_works() -> None:
    cluster = MembersCluster(4, 5, timing=Timing(block_time_ms=0))
    cluster.start()
    for nonce in range(20):
        cluster.submit(nonce % 5, transfer(nonce % 4, nonce // 4))
        cluster.world.run_for(100)
    assert cluster.hand_over(replace(2, by=4))
    assert cluster.members.members == (key(0), key(1), key(4), key(3))
    assert cluster.settle()
    cluster.crash(2)  # the old key is of no more use
    cluster.crash(1)  # and the new one is needed
    assert cluster.settle(blocks=5)
    assert cluster.voted[1] == {0, 1, 3, 4}


def test_the_primary_of_the_view_may_lose_its_seat() -> None:
    cluster = MembersCluster(5, 5, timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.hand_over(remove(0))
    assert cluster.settle(limit_ms=3_000), "no view is lost over it"
    assert not cluster.replica(0).seated
    assert cluster.replica(0).head.height >= cluster.newest.height - 1
