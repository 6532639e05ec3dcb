"""A node restored from an old backup: silent while it could contradict itself, then a voter again.

The worlds watch every message: an honest key never signs two different statements for one place, in
any of its lives, those before the backup was restored included.
"""

import random
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from msgspec import structs
from tests.simulation.pbft_cluster import CHAIN_ID, Cluster, Equivocator, Wrapper, transfer
from tests.simulation.pbft_cluster import signer as replica_key
from tests.simulation.public_network import RULES, PublicNetwork
from tests.stages import spread

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.keys import Domain, KeyedHashSigner
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Instant,
    Machine,
    Persist,
    Reader,
    Received,
    Send,
    SignatureCheck,
    Start,
    Unknown,
    Write,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.process import StartAgain
from gridtokenx.host.restored import (
    HEIGHTS,
    MARK,
    Following,
    FollowingMachine,
    OldMark,
    Position,
    Restored,
    mark_writes,
    marked,
)
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.world import World
from gridtokenx.pbft.marks import Mark
from gridtokenx.pbft.messages import (
    Commit,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
    ViewChange,
    view_change_bytes,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing
from gridtokenx.public.machine import NodeKeys, PublicNode
from gridtokenx.public.messages import NewBlock
from gridtokenx.public.slots import KeyedHashVrf, KeyedHashVrfVerifier

M = TypeVar("M", bound=Machine)
STRANGER = KeyedHashSigner(b"a key without a seat".ljust(32))
SIGNED = (PrePrepare, Prepare, Commit, ViewChange, NewBlock)
"""What only its own author sends; a new-view is passed on, too."""


class Lives:
    """A process that is started again when it asks for it: two machines, one after the other."""

    def __init__(self, machine: FollowingMachine, kept: list[Write], again: Callable[[], Machine]):
        self.machine: Machine = machine
        self.kept = kept
        self.again = again
        self.released = False
        self._ends = False

    def verification(self, message: Wire) -> Iterable[SignatureCheck] | Unknown:
        return self.machine.verification(message)

    def step(self, now: Instant, event: Event) -> list[Effect]:
        if self._ends:
            self._ends, self.released = False, True
            self.machine = self.again()
            return [*self.machine.step(now, Start()), *self.machine.step(now, event)]
        try:
            effects = list(self.machine.step(now, event))
        except StartAgain:
            self._ends = True
            return [Persist(tuple(self.kept))]
        if not self.released:
            sent = [e.message for e in effects if isinstance(e, Send | Broadcast)]
            assert not [message for message in sent if isinstance(message, SIGNED)]
        return effects


class Kept:
    """Takes what a following machine leaves for its next life."""

    def __init__(self) -> None:
        self.writes: list[Write] = []

    def submit(self, writes: Iterable[Write], done: Callable[[], None]) -> None:
        self.writes += writes
        done()


def lives(
    reader: Reader,
    own: bytes,
    silent: M,
    position: Callable[[M], Position],
    chain: str,
    again: Callable[[], Machine],
) -> Lives:
    restored = marked(reader)
    assert restored is not None
    following = Following(restored, own, lambda: position(silent))
    kept = Kept()
    slot_at = RULES.slot_at if chain == "public" else lambda _now: 0
    return Lives(FollowingMachine(silent, following, chain, kept, slot_at), kept.writes, again)


def put_back(world: World, node: bytes, disk: dict[str, dict[bytes, bytes]], chain: str) -> None:
    """Replace a dead node's disk by an old one, as `gtx backup restore` does."""
    store = world.nodes[node].store
    store.wipe()
    batch = tuple(Write(t, k, v) for t, records in disk.items() for k, v in records.items())
    store.write(batch)
    store.write(tuple(mark_writes(store, chain, "test", world.now)))
    store.sync()
    store.sync()


def copy_of(store: SimulatedStore) -> dict[str, dict[bytes, bytes]]:
    return {table: dict(records) for table, records in store._durable.items()}


# -- PBFT ------------------------------------------------------------------------------------------


def replica_position(replica: Replica) -> Position:
    return Position(replica.validators, replica.view, replica.head.height)


class Restorable(Cluster):
    """A cluster whose replicas know a restored disk when they see one."""

    def _builder(self, index: int) -> Callable[[Reader], Machine]:
        honest = super()._builder(index)

        def build(reader: Reader) -> Machine:
            if marked(reader) is None:
                return honest(reader)
            silent = Replica.restore(
                reader, self.ledger, self.validators, STRANGER, self.genesis, self.timing
            )
            own = replica_key(index).public_key
            return lives(
                reader, own, silent, replica_position, "consortium", lambda: honest(reader)
            )

        return build


def is_released(world: World, node: bytes) -> bool:
    machine = world.nodes[node].machine
    return not isinstance(machine, Lives) or machine.released


def test_a_restored_replica_follows_then_votes_again() -> None:
    cluster = Restorable(timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.run_to(5, 30_000)
    old = copy_of(cluster.world.nodes[cluster.ids[1]].store)
    assert cluster.run_to(15, 30_000)
    cluster.crash(1)
    put_back(cluster.world, cluster.ids[1], old, "consortium")
    cluster.restart(1)
    assert cluster.run_to(15 + HEIGHTS - 5, 60_000)
    assert not is_released(cluster.world, cluster.ids[1])
    assert cluster.world.run_until(lambda: is_released(cluster.world, cluster.ids[1]), 60_000)
    cluster.crash(2)
    height = max(cluster.height(i) for i in range(4))
    assert cluster.run_to(height + 5, 60_000, [0, 1, 3]), "its vote is needed, and comes"
    cluster.check_chains()


def test_it_waits_for_enough_others() -> None:
    cluster = Restorable(timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.run_to(3, 30_000)
    old = copy_of(cluster.world.nodes[cluster.ids[1]].store)
    for index in (1, 2):
        cluster.crash(index)
    put_back(cluster.world, cluster.ids[1], old, "consortium")
    cluster.restart(1)
    cluster.world.run_for(120_000)
    assert not is_released(cluster.world, cluster.ids[1]), "two others cannot know what it signed"
    cluster.restart(2)
    assert cluster.world.run_until(lambda: is_released(cluster.world, cluster.ids[1]), 120_000)


@pytest.mark.parametrize("seed", spread(range(40), 2))
def test_no_restored_replica_ever_contradicts_its_earlier_lives(seed: int) -> None:
    """Old disks come back again and again, among an equivocating primary, loss and view changes."""
    draw = random.Random(seed)
    cluster = Restorable(
        draw.choice([4, 7]),
        seed,
        timing=Timing(block_time_ms=100, window=draw.choice([1, 4]), view_timeout_ms=1_000),
        profile=LinkProfile(delay_ms=(1, 60), loss=draw.choice([0, 0.1]), reorder=0.2),
        wrap={0: Equivocator} if draw.random() < 0.7 else {},
    )
    cluster.start()
    victim = draw.choice([1, 2, 3])
    node = cluster.world.nodes[cluster.ids[victim]]
    old = copy_of(node.store)
    for nonce in range(12):
        cluster.world.run_for(draw.randint(100, 2_500))
        cluster.submit(draw.randrange(cluster.n), transfer(0, nonce))
        if draw.random() < 0.4 and is_released(cluster.world, node.id):
            old = copy_of(node.store)
        elif draw.random() < 0.6:
            cluster.crash(victim)
            put_back(cluster.world, node.id, old, "consortium")
            cluster.world.run_for(draw.randint(0, 1_000))
            cluster.restart(victim)
    cluster.world.network.profile = LinkProfile()
    assert cluster.world.run_until(lambda: is_released(cluster.world, node.id), 200_000)
    height = max(cluster.height(i) for i in cluster.honest())
    assert cluster.run_to(height + 3, 60_000)
    cluster.check_chains()


class Intriguer(Wrapper):
    """Suspects the view to whom it wants to lead astray, and tells nobody what it prepared."""

    to: tuple[int, ...] = ()

    def step(self, now: Instant, event: Event) -> list[Effect]:
        out = super().step(now, event)
        whom = self.to if isinstance(event, Received) else ()
        return [*out, *(Send(self.cluster.ids[index], Suspect(0, 0)) for index in whom)]

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Broadcast(ViewChange(body)):
                body = structs.replace(body, prepared=())
                signature = replica_key(self.index).sign(view_change_bytes(body, CHAIN_ID))
                return [Broadcast(ViewChange(body, signature))]
            case _:
                return [effect]


class LeftAlone:
    """Replica 2 leaves view 0 alone and is restored; then only 0 sees block `height` decided."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.stage, self.height = "", 1 << 60
        cluster.world.network.rules.append(self)

    def __call__(self, envelope: Envelope) -> Verdict | None:
        ids, message = self.cluster.ids, envelope.message
        sender, receiver = ids.index(envelope.sender), ids.index(envelope.receiver)
        vote = getattr(message, "ballot", None) or getattr(message, "vote", None)
        late = vote is not None and vote.height >= self.height
        if self.stage == "cut off" and receiver == 2 and not isinstance(message, Suspect):
            return Drop()
        if late and vote is not None and vote.view == 0 and receiver == 1:
            return Drop()
        if self.stage == "decide" and late and receiver != 0 and isinstance(message, Commit):
            return Drop()
        return Drop() if self.stage == "alone" and 0 in (sender, receiver) else None


def test_what_a_replica_said_when_it_left_a_view_alone_does_not_undo_what_it_votes_later() -> None:
    """Its own suspicion and a traitor's made it leave; the others stayed, and say so.

    The traitor keeps its view-change and shows it after a block was decided with its new vote: the
    next view knew nothing of that block, and decided another.
    """
    cluster = Restorable(timing=Timing(block_time_ms=200), wrap={3: Intriguer})
    world, ids, weather = cluster.world, cluster.ids, LeftAlone(cluster)
    cluster.start()
    assert cluster.run_to(5, 30_000)
    old = copy_of(world.nodes[ids[2]].store)
    weather.stage, Intriguer.to = "cut off", (2,)
    assert world.run_until(lambda: cluster.replica(2).view == 1, 10_000)
    world.run_for(1_000)
    assert [cluster.replica(index).view for index in (0, 1, 3)] == [0, 0, 0]
    weather.stage, Intriguer.to = "", ()
    cluster.crash(2)
    put_back(world, ids[2], old, "consortium")
    cluster.restart(2)
    assert world.run_until(lambda: is_released(world, ids[2]), 60_000)
    world.run_for(1_000)
    weather.stage, weather.height = "decide", cluster.height(0) + 3
    world.run_until(lambda: cluster.height(0) >= weather.height, 5_000)
    weather.stage, Intriguer.to = "alone", (1,)
    try:
        assert cluster.run_to(cluster.height(0) + 3, 60_000, [1, 2]), "agreement is checked"
    finally:
        Intriguer.to = ()
    weather.stage = ""
    assert cluster.run_to(cluster.height(1) + 3, 30_000, [0, 1, 2])
    cluster.check_chains()


@pytest.mark.parametrize("silent", [0, 1, 3])
def test_who_stands_aside_votes_once_it_is_needed(silent: int) -> None:
    """It has no view-change to show for the next view, so the others cannot open it without one more."""
    cluster = Restorable(timing=Timing(block_time_ms=200))
    cluster.start()
    assert cluster.run_to(5, 30_000)
    old = copy_of(cluster.world.nodes[cluster.ids[2]].store)
    cluster.crash(2)
    put_back(cluster.world, cluster.ids[2], old, "consortium")
    cluster.restart(2)
    assert cluster.world.run_until(lambda: is_released(cluster.world, cluster.ids[2]), 60_000)
    cluster.crash(silent)
    others = [index for index in range(4) if index != silent]
    height = max(cluster.height(index) for index in others)
    assert cluster.run_to(height + 5, 30_000, others)
    cluster.check_chains()


# -- public ----------------------------------------------------------------------------------------


class RestorableNetwork(PublicNetwork):
    """A public network whose validators know a restored disk when they see one."""

    def _builder(self, index: int) -> Callable[[Reader], Machine]:
        honest = super()._builder(index)
        own = self.keys[index].signer.public_key

        def build(reader: Reader) -> Machine:
            if marked(reader) is None:
                return honest(reader)
            keys = self.keys[index]
            vrf = KeyedHashVrf(STRANGER.public_key)
            self.keys[index] = NodeKeys(STRANGER, vrf, KeyedHashVrfVerifier())
            silent = self.node_from(reader, index)
            self.keys[index] = keys
            return lives(reader, own, silent, node_position, "public", lambda: honest(reader))

        return build


def node_position(node: PublicNode) -> Position:
    return Position(node.validators, node.round, node.head.height)


@pytest.mark.parametrize("seed", spread(range(20), 1))
def test_no_restored_validator_ever_contradicts_its_earlier_lives(seed: int) -> None:
    draw = random.Random(seed)
    net = RestorableNetwork(
        seed=seed, profile=LinkProfile(delay_ms=(5, 400), loss=0.05, reorder=0.2)
    )
    net.world.start()
    victim = net.ids[1]
    store = net.world.nodes[victim].store
    old = copy_of(store)
    for _ in range(12):
        net.world.run_for(draw.randint(300, 9_000))
        if draw.random() < 0.4 and is_released(net.world, victim):
            old = copy_of(store)
        elif draw.random() < 0.6:
            net.world.crash(victim)
            put_back(net.world, victim, old, "public")
            net.world.start(victim)
    net.world.network.profile = LinkProfile()
    assert net.world.run_until(lambda: is_released(net.world, victim), 200_000)
    said = sum(index == 1 for index, _, _ in net.said)
    net.settle()
    assert sum(index == 1 for index, _, _ in net.said) > said, "it votes again"


# -- the rule --------------------------------------------------------------------------------------

MEMBERS = ValidatorSet(0, tuple(replica_key(i).public_key for i in range(4)))


def following(here: tuple[int, int], marks: tuple[OldMark, ...] = ()) -> Following:
    """Of member 0, in a view and at a height."""
    position = Position(MEMBERS, here[0], here[1])
    return Following(Restored("test", 0, marks), MEMBERS.members[0], lambda: position)


def heard(rule: Following, *claims: tuple[int, int, int]) -> str | None:
    for index, view, height in claims:
        rule.hear(MEMBERS.members[index], Status(0, view, active=True, height=height))
    return rule.missing("consortium")


def test_the_rule_for_replicas() -> None:
    enough = ((1, 2, 50), (2, 2, 60), (3, 2, 55))
    assert heard(following((2, 60 + HEIGHTS)), *enough) is None
    assert "92" in (heard(following((2, 59 + HEIGHTS)), *enough) or "")
    assert "2 have" in (heard(following((2, 500)), *enough[:2]) or "")
    assert "view 3" in (heard(following((2, 500)), (1, 3, 1), (2, 0, 1), (3, 0, 1)) or "")
    known = (OldMark(Domain.PBFT_PREPARE.value, 0, 4),)
    assert "view 4" in (heard(following((2, 500), known), *enough) or "")
    assert heard(following((4, 500), known), *enough) is None


def test_the_views_that_a_restored_replica_stands_aside_from() -> None:
    """One beyond all that was heard, or what its backup knows to be left; nothing if it is beyond."""
    left = (OldMark(Domain.PBFT_VIEW_CHANGE.value, 0, 7), OldMark(Domain.PBFT_PREPARE.value, 0, 2))
    for view, marks, expected in ((2, (), 3), (3, (), 3), (9, (), 9), (2, left, 7)):
        rule = following((view, 500), marks)
        assert heard(rule, (1, 2, 50), (2, 2, 60), (3, 2, 55)) is None
        found = {
            write.key[len(MARK) :]: decode_own(write.value, Mark)
            for write in rule.release_writes("consortium", 0)
            if write.value is not None
        }
        assert found[Domain.PBFT_VIEW_CHANGE.value].position == (0, expected, 0)
        assert found[Domain.PBFT_NEW_VIEW.value].position == (0, view, 0)
        assert found[Domain.PBFT_COMMIT.value].position == (0, view, 500)


def test_only_the_first_claim_of_each_counts_and_none_of_ones_own() -> None:
    rule = following((0, 100))
    assert "3 have" not in (heard(rule, (0, 0, 1), (1, 0, 10), (2, 0, 10)) or "")
    assert "2 have" in (rule.missing("consortium") or "")
    assert heard(rule, (3, 0, 10)) is None
    assert heard(rule, (1, 9, 9_000)) is None


def test_one_member_alone_can_never_know() -> None:
    alone = ValidatorSet(0, MEMBERS.members[:1])
    rule = Following(
        Restored("test", 0, ()), MEMBERS.members[0], lambda: Position(alone, 0, 10_000)
    )
    assert "replace the key" in (rule.missing("consortium") or "")
