"""A chain changes its replica set while it runs: seats come, go and change hands."""

import pytest
from msgspec import structs
from tests.simulation.members_cluster import Chain, MembersCluster, add, key, remove, replace
from tests.simulation.pbft_cluster import CHAIN_ID, VERIFIER, signer, transfer

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import Effect, Received, Reject, Send, Start, Unknown, Verified
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.blocks import Block, Header, transaction_root
from gridtokenx.ledger.records import load_block, load_finality
from gridtokenx.pbft.marks import MarkedSigner, SigningRefused
from gridtokenx.pbft.messages import (
    CertifiedBlock,
    CertifiedBlocks,
    CertifiedHeader,
    FetchBlocks,
    PreparedCertificate,
    Status,
    ViewChangeBody,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import Periods
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.view_change import Choice, check_view_change, choose


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


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 4])
def test_a_set_grows_to_ten_under_load(window: int) -> None:
    cluster = MembersCluster(
        4,
        10,
        seed=window,
        timing=Timing(block_time_ms=200, window=window),
        profile=LinkProfile(delay_ms=(1, 80), loss=0.05),
    )
    cluster.start()
    for newcomer in range(4, 10):
        for nonce in range(8):
            cluster.submit(nonce % newcomer, transfer(nonce % 4, 2 * (newcomer - 4) + nonce // 4))
        assert cluster.hand_over(add(newcomer), limit_ms=60_000)
    assert cluster.members.size == 10
    for index in (1, 4, 9):
        cluster.crash(index)
    assert cluster.settle(limit_ms=120_000), "ten tolerate three"
    cluster.crash(2)
    stuck = cluster.newest.height
    cluster.world.run_for(30_000)
    assert cluster.newest.height <= stuck + 1, "and not four"
    cluster.start(1, 2, 4, 9)
    assert cluster.settle(limit_ms=120_000)
    cluster.check_chains()


def test_the_new_set_changes_its_view_before_its_first_block() -> None:
    """The first primary of the new set is down: its set has nothing but the block it stands on."""
    cluster = MembersCluster(5, 6, timing=Timing(block_time_ms=200, view_timeout_ms=1_000))
    cluster.start()
    assert cluster.settle()
    change = replace(0, by=5)
    while cluster.chain.open(cluster.newest, change) is None:
        cluster.push(change)
        cluster.world.run_for(300)
    cluster.crash(5)
    assert cluster.hand_over(change)
    last = cluster.newest.height
    assert cluster.settle(limit_ms=20_000)
    assert cluster.replica(1).view > 0
    first = load_block(cluster.world.nodes[key(1)].store, last + 1)
    assert first is not None
    assert (first.header.set_id, first.header.round) == (1, 1)
    cluster.start(5)
    assert cluster.settle()


def test_members_of_the_old_set_that_missed_its_end_are_helped() -> None:
    """A minority is cut off while the set ends; what it wants to leave is over when it is back."""
    cluster = MembersCluster(4, 5, timing=Timing(block_time_ms=200, view_timeout_ms=1_000))
    cluster.start()
    assert cluster.settle()
    others = [key(i) for i in (0, 1, 2, 4)]
    cluster.world.network.partition(others, [key(3)])
    assert cluster.hand_over(add(4))
    cluster.world.run_for(15_000)
    assert cluster.replica(3).validators.set_id == 0
    cluster.world.network.heal()
    assert cluster.settle(limit_ms=5_000)
    assert cluster.replica(3).seated
    assert cluster.replica(3).validators.set_id == 1


def test_blocks_certified_by_a_former_set_are_not_taken() -> None:
    """The old members' keys are worth nothing for what comes after their last block."""
    cluster = MembersCluster(4, 5, timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.hand_over(replace(0, by=4))
    assert cluster.settle()
    store = cluster.world.nodes[key(1)].store
    last = next(
        height
        for height in range(1, cluster.newest.height)
        if load_header(store, height + 1).set_id == 1
    )
    victim = SimulatedStore()
    replica = cluster.chain.replica(victim, 3, cluster.timing)
    effects = list(replica.step(cluster.world.now, Start()))
    real = [certified_block(store, height) for height in range(1, last + 1)]
    forged = forge(cluster, real[-1], last + 1)
    for first, answer in ((1, tuple(real)), (last + 1, (forged,))):
        status = Status(set_id=1, view=0, active=True, height=first + len(answer) - 1)
        effects += hear(replica, cluster, status)
        message = CertifiedBlocks(first=first, blocks=answer)
        checks = replica.verification(message)
        assert not isinstance(checks, Unknown)
        assert all(VERIFIER.verify(c.public_key, c.message, c.signature) for c in checks)
        effects += hear(replica, cluster, message)
    assert replica.head.height == last
    assert replica.validators.set_id == 1
    assert [e.reason for e in effects if isinstance(e, Reject)] == ["wrong-set"]


def test_an_answer_of_two_sets_is_refused() -> None:
    cluster = MembersCluster(4, 5, timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.hand_over(add(4))
    assert cluster.settle()
    store, replica = cluster.world.nodes[key(1)].store, cluster.replica(1)
    every = tuple(certified_block(store, height) for height in range(1, replica.head.height + 1))
    with pytest.raises(RemoteFault, match="mixed-sets"):
        replica.verification(CertifiedBlocks(first=1, blocks=every[:16]))
    answered = [
        effect.message
        for effect in hear(replica, cluster, FetchBlocks(first=1, count=16))
        if isinstance(effect, Send)
    ]
    assert {each.block.header.set_id for each in answered[0].blocks} == {0}, "cut at the handover"


def hear(replica: Replica, cluster: MembersCluster, message: Wire) -> list[Effect]:
    return list(replica.step(cluster.world.now, Received(Verified(key(1), message))))


def load_header(store: SimulatedStore, height: int) -> Header:
    block = load_block(store, height)
    assert block is not None
    return block.header


def certified_block(store: SimulatedStore, height: int) -> CertifiedBlock:
    block, raw = load_block(store, height), load_finality(store, height)
    assert block is not None
    assert raw is not None
    return CertifiedBlock(block, decode_own(raw, CommitCertificate))


def forge(cluster: MembersCluster, parent: CertifiedBlock, height: int) -> CertifiedBlock:
    """A block above the old set's last one, with the old set's quorum behind it."""
    header = structs.replace(
        parent.block.header,
        height=height,
        parent=parent.block.hash,
        timestamp_ms=parent.block.header.timestamp_ms + 1,
        next_set_hash=cluster.sets[0].hash,
        transaction_root=transaction_root(()),
    )
    vote = CommitVote(0, 0, height, header.hash)
    signed = tuple(
        IndexedSignature(i, signer(i).sign(vote.signed_bytes(CHAIN_ID))) for i in range(3)
    )
    return CertifiedBlock(Block(header, ()), CommitCertificate(CHAIN_ID, vote, signed))


def test_what_a_view_change_of_a_later_set_may_prove() -> None:
    """Its head is of its own set, or there is none: everybody in the set stands on the same root."""
    chain = Chain(4)
    members = ValidatorSet(3, chain.first.members)
    root = structs.replace(chain.genesis.header, height=70, set_id=2, next_set_hash=members.hash)
    of_old_set = CertifiedHeader(
        root, CommitCertificate(CHAIN_ID, CommitVote(2, 0, 70, root.hash), ())
    )
    with pytest.raises(RemoteFault, match="wrong-set"):
        check_view_change(ViewChangeBody(3, 1, 0, of_old_set, ()), members, Periods(root.height))
    check_view_change(ViewChangeBody(3, 1, 0, None, ()), members, Periods(root.height))
    first = structs.replace(root, height=71, parent=root.hash, set_id=3)
    prepares = tuple(IndexedSignature(i, bytes(64)) for i in (1, 2, 3))
    prepared = PreparedCertificate(0, first, bytes(64), prepares)
    bodies = [ViewChangeBody(3, 1, i, None, (prepared,)) for i in range(3)]
    for body in bodies:
        check_view_change(body, members, Periods(root.height))
        with pytest.raises(RemoteFault, match="bad-heights"):
            check_view_change(body, members)
    assert choose(bodies, root) == Choice(70, (first,))


def test_the_marks_order_by_set_first() -> None:
    """A seat that is had again in a later set may sign from view 0; nothing of an earlier set."""
    signer_, turn = MarkedSigner(signer(0), SimulatedStore()), Turn(0)
    signer_.sign(turn, Domain.PBFT_PREPARE, (1, 5, 90), b"in set 1")
    signer_.sign(turn, Domain.PBFT_PREPARE, (2, 0, 91), b"in set 2")
    with pytest.raises(SigningRefused):
        signer_.sign(turn, Domain.PBFT_PREPARE, (1, 6, 95), b"late in set 1")
