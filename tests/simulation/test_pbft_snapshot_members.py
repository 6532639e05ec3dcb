"""State transfer across handovers: who joins late believes the newest set, and nobody that left."""

import dataclasses
from collections.abc import Iterable

import pytest
from tests.simulation.members_cluster import MembersCluster, add, key, remove, replace
from tests.simulation.pbft_cluster import CHAIN_ID, VERIFIER, signer, transfer
from tests.stages import spread

import gridtokenx.pbft.state_transfer as engine
from gridtokenx.core.codec import decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Received, Verified
from gridtokenx.finality.certificates import (
    CommitCertificate,
    CommitVote,
    IndexedSignature,
    verify_certificate,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile, Verdict
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.records import base_height, load_block, load_finality, load_head
from gridtokenx.pbft.messages import FetchSnapshot, PrePrepare, ProvenHandover, Snapshot
from gridtokenx.pbft.snapshot import SNAPSHOT
from gridtokenx.pbft.terms import TERMS, Term
from gridtokenx.pbft.timing import Timing

TIMING = Timing(
    block_time_ms=200, checkpoint_blocks=4, snapshot_distance=12, part_bytes=150, window=1
)
CHANGES = (replace(0, by=4), add(5), replace(1, by=6), remove(2))
"""After these the set is 4, 6, 3, 5: one of the first members is left."""


def grown(
    seed: int = 1, *, everybody: int = 9, profile: LinkProfile | None = None
) -> MembersCluster:
    """A chain whose set has changed four times, with load; 7 and 8 were never up."""
    cluster = MembersCluster(4, everybody, seed=seed, timing=TIMING, profile=profile)
    cluster.start(*range(7))
    for number, change in enumerate(CHANGES):
        cluster.submit(3, *(transfer(client, number) for client in range(4)))
        assert cluster.hand_over(change)
    assert cluster.settle(20, 60_000)
    return cluster


def joined(cluster: MembersCluster, index: int, limit_ms: int = 30_000) -> int:
    """Start one and let it reach the others; returns the height of the state that it took over."""
    cluster.start(index)
    assert cluster.settle(3, limit_ms)
    check_disk(cluster, index)
    return base_height(cluster.world.nodes[key(index)].store)


def check_disk(cluster: MembersCluster, index: int) -> None:
    """All blocks from the base on, the state, and a proof for every handover."""
    store = cluster.world.nodes[key(index)].store
    loaded = load_head(store)
    assert loaded is not None
    for height in range(base_height(store), loaded.height + 1):
        block = load_block(store, height)
        assert block is not None
        assert height == 0 or cluster.blocks.setdefault(height, block.hash) == block.hash
    terms = {term.set_id: term for term in (decode_own(raw, Term) for _, raw in store.scan(TERMS))}
    assert sorted(terms) == list(range(1, cluster.replica(index).validators.set_id + 1))
    for set_id, term in terms.items():
        assert term.validators == cluster.sets[set_id]
        raw = load_finality(store, term.root.height)
        assert raw is not None
        proof = decode_own(raw, CommitCertificate)
        verify_certificate(proof, term.root, cluster.sets[set_id - 1], VERIFIER)
    assert not list(store.scan(SNAPSHOT))


@pytest.mark.parametrize("seed", spread(range(6), 1))
def test_an_observer_joins_by_snapshot_and_gets_a_seat(seed: int) -> None:
    cluster = grown(seed, profile=LinkProfile(delay_ms=(1, 60), loss=0.03))
    base = joined(cluster, 7, 60_000)
    assert base > cluster.newest.height - 40
    assert cluster.hand_over(add(7))
    assert cluster.settle(limit_ms=60_000)
    assert 7 in cluster.voted[cluster.members.set_id]
    check_disk(cluster, 7)


def test_who_took_a_state_over_can_hand_it_on() -> None:
    """Only the one that came by snapshot is heard: it has the proofs of all sets, and checkpoints."""
    cluster = grown()
    joined(cluster, 7)
    assert cluster.settle(8)

    def only_each_other(envelope: Envelope) -> Verdict | None:
        ends = {envelope.sender, envelope.receiver}
        return Drop() if key(8) in ends and key(7) not in ends else None

    cluster.world.network.rules.append(only_each_other)
    assert joined(cluster, 8, 60_000)


def test_more_handovers_than_one_answer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SNAPSHOT_HANDOVERS", 1)
    cluster = grown()
    assert joined(cluster, 7)


def test_a_member_that_slept_through_the_end_of_its_set_wakes_in_a_later_one() -> None:
    cluster = MembersCluster(5, 6, timing=TIMING)
    cluster.start()
    assert cluster.settle()
    cluster.crash(4)
    assert cluster.hand_over(replace(0, by=5))
    assert cluster.settle(20, 60_000)
    assert joined(cluster, 4)
    assert cluster.settle(2)
    assert 4 in cluster.voted[1]


def test_a_snapshot_in_transfer_survives_a_kill_with_its_handovers() -> None:
    cluster = grown()
    cluster.start(7)
    store = cluster.world.nodes[key(7)].store
    assert cluster.world.run_until(lambda: any(True for _ in store.scan(SNAPSHOT, b"part/")), 9_000)
    cluster.crash(7, keep=99)
    assert any(True for _ in store.scan(SNAPSHOT, b"handover/"))
    assert joined(cluster, 7)


def test_the_block_that_ends_a_set_may_be_the_checkpoint() -> None:
    """The chain stands at its set's last block: whoever takes that state over is in the next set."""
    cluster = MembersCluster(4, 6, timing=dataclasses.replace(TIMING, checkpoint_blocks=1))
    cluster.start(*range(4))
    assert cluster.settle(20, 60_000)

    def nothing_of_the_next_set(envelope: Envelope) -> Verdict | None:
        message = envelope.message
        later = isinstance(message, PrePrepare) and message.block.header.set_id > 0
        return Drop() if later else None

    cluster.world.network.rules.append(nothing_of_the_next_set)
    assert cluster.hand_over(add(4), 60_000)
    last = cluster.newest.height
    assert cluster.run_to(last, 10_000, range(4))
    cluster.start(4)
    assert cluster.world.run_until(lambda: cluster.height(4) == last, 30_000)
    assert base_height(cluster.world.nodes[key(4)].store) == last
    assert cluster.replica(4).validators == cluster.sets[1]
    assert cluster.replica(4).seated
    cluster.crash(4, keep=99)
    cluster.start(4)
    cluster.world.network.rules.pop()
    assert cluster.settle(3, 60_000)
    check_disk(cluster, 4)


# -- who may be believed ---------------------------------------------------------------------------


def forged(header: Header, validators: ValidatorSet, seats: Iterable[int]) -> CommitCertificate:
    """A certificate by those who hold the keys of these replicas."""
    vote = CommitVote(header.set_id, 0, header.height, header.hash)
    what = vote.signed_bytes(CHAIN_ID)
    by_seat = sorted((validators.index_of(key(i)) or 0, signer(i).sign(what)) for i in seats)
    return CommitCertificate(CHAIN_ID, vote, tuple(IndexedSignature(i, s) for i, s in by_seat))


def test_former_members_cannot_speak_for_what_follows_their_end() -> None:
    """All of the first set turn bad after it ended: who knows its end takes nothing of theirs."""
    cluster = grown()
    victim = cluster.replica(3)
    first, ended = cluster.sets[0], victim._terms[1].root
    checkpoint = victim._checkpoints.newest()
    assert checkpoint is not None
    header = checkpoint.block.header
    later = type(header)(**{**_fields(header), "set_id": 0, "next_set_hash": first.hash})
    assert later.height > ended.height
    block = type(checkpoint.block)(later, checkpoint.block.transactions)
    lie = type(checkpoint)(block, forged(later, first, range(4)), checkpoint.events)
    victim._offers._open = None
    victim._offers._next_ms = 0
    assert victim._offers.ask([key(0)], cluster.world.now) == key(0)
    message = Snapshot((), lie)
    assert all(
        VERIFIER.verify(c.public_key, c.message, c.signature) for c in checks(victim, message)
    )
    effects = victim.step(cluster.world.now, Received(Verified(key(0), message)))
    assert [e.reason for e in effects if hasattr(e, "reason")] == ["wrong-set"]
    assert key(0) in victim._barred


def test_former_members_cannot_lead_around_a_set_that_is_known() -> None:
    """All of the first set sign another end of it, and so on up to a set that nobody knows yet."""
    cluster = grown()
    newcomer = cluster.chain.replica(cluster.world.nodes[key(7)].store, 7, TIMING)
    whole, now = cluster.replica(3), cluster.world.now
    first = next(iter(whole._handovers_from(0)))
    lies, before = [], cluster.sets[0]
    for set_id in range(1, 4):
        following = ValidatorSet(set_id, cluster.sets[0].members)
        fields = {**_fields(first.header), "height": 100 * set_id, "set_id": set_id - 1}
        header = Header(**{**fields, "next_set_hash": following.hash})
        lies.append(ProvenHandover(header, forged(header, before, range(4)), following))
        before = following
    newcomer._sync.claim(key(3), 10_000)
    for handovers, fault in (((first,), None), (tuple(lies), "wrong-next-set")):
        now += 5_000
        newcomer._offers._awaited.add(key(3))
        message = Snapshot(handovers, None)
        assert all(
            VERIFIER.verify(c.public_key, c.message, c.signature) for c in checks(newcomer, message)
        )
        effects = newcomer.step(now, Received(Verified(key(3), message)))
        assert [e.reason for e in effects if hasattr(e, "reason")] == ([fault] if fault else [])
        assert sorted(newcomer._terms) == [0, 1]
        assert newcomer._terms[1].validators == cluster.sets[1]


def test_a_chain_of_handovers_is_checked_link_by_link() -> None:
    cluster = grown()
    newcomer = cluster.chain.replica(cluster.world.nodes[key(7)].store, 7, TIMING)
    whole = cluster.replica(3)
    handovers = tuple(whole._handovers_from(0))
    assert len(handovers) == len(CHANGES)
    assert checks(newcomer, Snapshot(handovers, whole._checkpoints.newest()))
    one, two, *rest = handovers
    strangers = ValidatorSet(1, tuple(key(i) for i in range(20, 24)))
    for wrong in (
        (two, one, *rest),
        (one, *rest),
        (ProvenHandover(one.header, one.certificate, strangers), two),
        (ProvenHandover(one.header, two.certificate, one.next_set),),
        (one, ProvenHandover(two.header, forged(two.header, two.next_set, [0]), two.next_set)),
    ):
        with pytest.raises(RemoteFault):
            checks(newcomer, Snapshot(wrong, None))


def test_an_answer_about_sets_begins_where_the_asker_is() -> None:
    cluster = grown()
    whole = cluster.replica(3)
    for set_id in range(len(CHANGES) + 1):
        asked = FetchSnapshot(set_id=set_id, above=0)
        cluster.world.now += 10_000
        effects = whole.step(cluster.world.now, Received(Verified(key(8), asked)))
        (answer,) = (e.message for e in effects if isinstance(getattr(e, "message", 0), Snapshot))
        assert [h.header.set_id for h in answer.handovers] == list(range(set_id, len(CHANGES)))
        assert answer.checkpoint is not None


def checks(replica: object, message: Snapshot) -> list[object]:
    found = replica.verification(message)  # type: ignore[attr-defined]  # a replica
    assert not hasattr(found, "reason")
    return list(found)


def _fields(header: Header) -> dict[str, object]:
    return {name: getattr(header, name) for name in header.__struct_fields__}
