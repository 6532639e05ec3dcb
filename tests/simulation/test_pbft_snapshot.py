"""State transfer in the simulated world: far-behind, cut off, lied to; the state is always the chain's."""

import dataclasses
import random
from collections.abc import Iterable

import msgspec
import pytest
from tests.simulation.pbft_cluster import CLIENTS, Cluster, Wrapper, transfer
from tests.simulation.test_restored_nodes import Restorable, copy_of, is_released, put_back
from tests.stages import spread

from gridtokenx.core.codec import decode_own
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Effect, Send, Write
from gridtokenx.core.state_tree import NO_PART, StateLeaf, StatePart
from gridtokenx.lab.sim.network import DeliverAfter, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import (
    BLOCKS,
    EVENTS,
    FINALITY,
    base_height,
    height_key,
    load_block,
    load_head,
)
from gridtokenx.ledger.state import State
from gridtokenx.pbft.marks import Mark
from gridtokenx.pbft.messages import (
    CertifiedBlocks,
    Checkpoint,
    FetchPart,
    Part,
    Snapshot,
    Status,
)
from gridtokenx.pbft.snapshot import SNAPSHOT
from gridtokenx.pbft.timing import Timing

TIMING = Timing(checkpoint_blocks=4, snapshot_distance=12, part_bytes=200)
PRUNED = (BLOCKS, EVENTS, FINALITY)
ARCHIVE = Timing(checkpoint_blocks=4, snapshot_distance=0, part_bytes=200)


def disk(cluster: Cluster, index: int) -> SimulatedStore:
    return cluster.world.nodes[cluster.ids[index]].store


def lagging(
    cluster: Cluster, victim: int = 3, *, blocks: int = 30, among: Iterable[int] = (0, 1, 2)
) -> None:
    """Run the chain, with work in every block, while one replica is down."""
    others = list(among)
    cluster.world.start(*(cluster.ids[index] for index in others))
    for number in range(blocks):
        cluster.submit(others[0], transfer(number % 4, number // 4))
        assert cluster.run_to(number + 1, 20_000, others)
    assert cluster.height(victim) == 0


def catches_up(cluster: Cluster, index: int, limit_ms: int = 30_000) -> int:
    """Let one replica reach the others; returns the height of the state that it took over."""
    others = [other for other in cluster.honest() if other != index]
    target = max(cluster.height(other) for other in others) + 3
    assert cluster.run_to(target, limit_ms, [index]), cluster.height(index)
    return check_disk(cluster, index)


def check_disk(cluster: Cluster, index: int) -> int:
    """Its blocks from the base on are the chain's, and its state is what re-execution makes."""
    store = cluster.world.nodes[cluster.ids[index]].store
    base, head = base_height(store), cluster.height(index)
    for height in range(base, head + 1):
        block = load_block(store, height)
        assert block is not None
        assert height == 0 or block.hash == cluster.chain.setdefault(height, block.hash)
    loaded = load_head(store)  # raises if the state does not have the header's root
    assert loaded is not None
    assert not list(store.scan(SNAPSHOT))
    return base


@pytest.mark.parametrize("seed", spread(range(8), 2))
def test_who_is_far_behind_takes_a_state_and_goes_on_by_blocks(seed: int) -> None:
    cluster = Cluster(seed=seed, timing=TIMING)
    lagging(cluster)
    cluster.restart(3)
    assert catches_up(cluster, 3) >= 28
    assert not cluster.rejections()
    assert cluster.replica(3).head.state.root == cluster.replica(3).head.header.state_root


def test_the_state_is_what_replaying_gives() -> None:
    heads = []
    for timing in (TIMING, ARCHIVE):
        cluster = Cluster(seed=5, timing=timing)
        lagging(cluster)
        cluster.restart(3)
        base = catches_up(cluster, 3)
        assert bool(base) == bool(timing.snapshot_distance)
        executed = cluster.genesis
        head = cluster.height(3)
        assert cluster.run_to(head, 5_000)
        store = cluster.world.nodes[cluster.ids[3]].store
        assert cluster.height(3) == head
        for height in range(1, head + 1):
            block = load_block(cluster.world.nodes[cluster.ids[0]].store, height)
            assert block is not None
            executed = cluster.ledger.execute(executed, block)
        assert dict(store.scan("state")) == dict(executed.state.items())
        heads.append(executed.height)
    assert min(heads) > 30


# -- liars -----------------------------------------------------------------------------------------


class PartLiar(Wrapper):
    """Answers every question for a part with something that is not it."""

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Send(to, Part() as message):
                return [Send(to, Part(message.height, message.prefix, self.lie(message.part)))]
            case _:
                return [effect]

    def lie(self, part: StatePart) -> StatePart:
        if part.bitmap:
            return StatePart(part.bitmap, bytes(len(part.hashes)), ())
        leaf = part.leaves[0] if part.leaves else StateLeaf(b"key", b"value")
        return StatePart(0, b"", (StateLeaf(leaf.key, leaf.value + b"0"), *part.leaves[1:]))


class Denier(PartLiar):
    """Offers a state and then says that it has nothing of it."""

    def lie(self, part: StatePart) -> StatePart:
        return NO_PART


class Mute(Wrapper):
    """Offers a state and then answers no question."""

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Send(_, Part() | CertifiedBlocks()):
                return []
            case _:
                return [effect]


class OfferLiar(Wrapper):
    """Offers a state of its own making: another root, other transactions, other events."""

    kinds = ("root", "body", "events", "certificate")

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Send(to, Snapshot(handovers, Checkpoint() as checkpoint)):
                return [Send(to, Snapshot(handovers, self.lie(checkpoint)))]
            case _:
                return [effect]

    def lie(self, checkpoint: Checkpoint) -> Checkpoint:
        block, proof, events = checkpoint.block, checkpoint.certificate, checkpoint.events
        self.told = getattr(self, "told", -1) + 1
        match self.kinds[self.told % len(self.kinds)]:
            case "root":
                header = msgspec.structs.replace(block.header, state_root=sha256(b"mine"))
                return Checkpoint(Block(header, block.transactions), proof, events)
            case "body":
                return Checkpoint(Block(block.header, (transfer(0, 99),)), proof, events)
            case "events":
                return Checkpoint(block, proof, (*events, b"event"))
            case _:
                short = msgspec.structs.replace(proof, signatures=proof.signatures[:-1])
                return Checkpoint(block, short, events)


LIARS = (PartLiar, Denier, Mute, OfferLiar)


@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize("seed", spread(range(4), 1))
def test_a_liar_costs_only_time(liar: type[Wrapper], seed: int) -> None:
    cluster = Cluster(seed=seed, timing=TIMING, wrap={1: liar})
    lagging(cluster)
    cluster.restart(3)
    assert catches_up(cluster, 3, 60_000) >= 28


@pytest.mark.parametrize("seed", spread(range(4), 1))
def test_f_liars_of_all_kinds_cost_only_time(seed: int) -> None:
    wrap = dict(zip((1, 2, 3, 4), LIARS, strict=True))
    cluster = Cluster(n=13, seed=seed, timing=TIMING, wrap=wrap)
    lagging(cluster, 12, among=range(12), blocks=20)
    cluster.restart(12)
    assert catches_up(cluster, 12, 90_000) >= 16


def test_whose_part_is_wrong_is_blamed_and_not_asked_again() -> None:
    cluster = Cluster(seed=3, timing=TIMING, wrap={1: PartLiar})
    lagging(cluster)
    asked: list[FetchPart] = []
    liar, victim = cluster.ids[1], cluster.ids[3]

    def count(envelope: Envelope) -> None:
        if isinstance(envelope.message, FetchPart) and envelope.receiver == liar:
            asked.append(envelope.message)

    cluster.world.network.rules.append(count)
    cluster.restart(3)
    catches_up(cluster, 3)
    assert cluster.world.nodes[victim].rejections == {"wrong-part": 1}
    assert 1 <= len(asked) <= 2


# -- cuts ------------------------------------------------------------------------------------------


def staged(cluster: Cluster, index: int) -> int:
    return sum(1 for _ in cluster.world.nodes[cluster.ids[index]].store.scan(SNAPSHOT, b"part/"))


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("seed", spread(range(8), 2))
def test_who_is_killed_in_the_midst_goes_on_with_what_it_has(seed: int, *, torn: bool) -> None:
    cluster = Cluster(seed=seed, timing=TIMING)
    lagging(cluster)
    cluster.restart(3)
    parts = 0
    for wanted in (1, 3, 5):
        if not cluster.world.run_until(lambda at=wanted: staged(cluster, 3) >= at, 3_000):
            break
        parts = staged(cluster, 3)
        cluster.world.crash(cluster.ids[3], torn=torn)
        cluster.world.run_for(500)
        cluster.restart(3)
    assert parts
    assert catches_up(cluster, 3) >= 28


def test_parts_that_have_arrived_are_not_asked_for_again() -> None:
    cluster = Cluster(seed=1, timing=TIMING)
    lagging(cluster)
    cluster.restart(3)
    assert cluster.world.run_until(lambda: staged(cluster, 3) >= 4, 3_000)
    cluster.crash(3, keep=99)
    kept = [key[5:] for key, _ in disk(cluster, 3).scan(SNAPSHOT, b"part/")]
    asked: list[bytes] = []

    def note(envelope: Envelope) -> None:
        if isinstance(envelope.message, FetchPart):
            asked.append(envelope.message.prefix)

    cluster.world.network.rules.append(note)
    cluster.restart(3)
    catches_up(cluster, 3)
    assert asked
    assert not set(asked) & set(kept)


def test_every_crash_point_leaves_the_old_state_or_the_new_one() -> None:
    """Each life is one batch longer than the one before, until one of them adopts the state."""
    cluster = Cluster(seed=2, timing=TIMING)
    lagging(cluster)
    lives, store = 0, disk(cluster, 3)
    while not base_height(disk(cluster, 3)):
        lives += 1
        cluster.restart(3)
        for _ in range(lives):
            cluster.world.run_until(lambda: store.pending > 0, 5_000)
            cluster.world.run_until(lambda: store.pending == 0, 5_000)
        cluster.crash(3, keep=0)
        head = load_head(store)  # raises if the state is not that of the head
        assert head is None or head.height == 0 or head.height >= base_height(store) >= 28
        assert lives < 60
    assert lives > 2
    cluster.restart(3)
    assert catches_up(cluster, 3) >= 28


def test_a_torn_adoption_is_finished_by_the_next_life() -> None:
    for cut in spread(range(1, 22), 5):
        cluster = Cluster(seed=2, timing=TIMING)
        lagging(cluster)
        cluster.restart(3)
        store = cluster.world.nodes[cluster.ids[3]].store

        def adopting(store: SimulatedStore = store) -> bool:
            return any(w.key == b"base" for batch in store._pending for w in batch)

        assert cluster.world.run_until(adopting, 10_000)
        while not any(w.key == b"base" for w in store._pending[0]):
            store.sync()
        assert store.next_batch() > cut
        node = cluster.world.nodes[cluster.ids[3]]
        store.crash(0, torn=cut)
        node.machine = None
        node.life += 1
        cluster.restart(3)
        assert catches_up(cluster, 3) >= 28, cut


# -- who votes again -------------------------------------------------------------------------------


def marks(cluster: Cluster, index: int) -> dict[bytes, tuple[int, int, int]]:
    records = disk(cluster, index).scan("meta", b"mark/")
    return {key: decode_own(raw, Mark).position for key, raw in records}


@pytest.mark.parametrize("seed", spread(range(6), 2))
def test_a_voter_that_was_paused_under_load_votes_again_and_forgets_no_vote(seed: int) -> None:
    """The cluster itself fails if anybody contradicts a vote of an earlier life."""
    cluster = Cluster(
        seed=seed, timing=TIMING, profile=LinkProfile(delay_ms=(1, 40), loss=0.02, duplicate=0.02)
    )
    cluster.start()
    assert cluster.run_to(4, 30_000)
    before = marks(cluster, 3)
    assert before
    cluster.world.pause(cluster.ids[3])
    for number in range(30):
        cluster.submit(0, transfer(number % 4, number // 4))
        assert cluster.run_to(cluster.height(0) + 1, 20_000, [0, 1, 2])
    cluster.world.resume(cluster.ids[3])
    assert catches_up(cluster, 3, 60_000) > 4
    after = marks(cluster, 3)
    assert all(after[kind] >= position for kind, position in before.items())
    cluster.crash(0)
    assert cluster.run_to(cluster.height(1) + 3, 60_000, [1, 2, 3]), (
        "three of four: its vote counts"
    )
    cluster.restart(0)
    assert cluster.run_to(cluster.height(1) + 2, 60_000)


def test_where_nobody_keeps_the_blocks_a_state_is_taken_over_at_any_distance() -> None:
    cluster = Cluster(seed=4, timing=ARCHIVE)
    lagging(cluster)
    for index in range(3):
        pruned = [Write(table, height_key(h), None) for table in PRUNED for h in range(1, 20)]
        disk(cluster, index).write(tuple(pruned))
        disk(cluster, index).sync()
    cluster.restart(3)
    assert catches_up(cluster, 3, 60_000) >= 28


class HasNoBlocks(Wrapper):
    """Says that it keeps no block, and in the same breath that it is ahead."""

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Send(to, CertifiedBlocks(first)):
                head = self.cluster.replica(self.index).head.height
                return [Send(to, CertifiedBlocks(first, ())), Send(to, Status(0, 0, True, head))]
            case _:
                return [effect]


def test_who_answers_first_cannot_make_an_archive_do_without_blocks() -> None:
    """The others, 100 ms slower, keep them all; it took a state over, and lost what is below."""
    cluster = Cluster(seed=1, timing=ARCHIVE, wrap={0: HasNoBlocks})
    lagging(cluster, among=(1, 2, 0))

    def slow(envelope: Envelope) -> Verdict | None:
        known = envelope.receiver != cluster.ids[3] or envelope.sender == cluster.ids[0]
        return None if known else DeliverAfter(100)

    cluster.world.network.rules.append(slow)
    cluster.restart(3)
    assert catches_up(cluster, 3) == 0


def test_one_that_is_alone_ahead_is_believed_in_the_end() -> None:
    cluster = Cluster(seed=4, timing=ARCHIVE)
    lagging(cluster)
    pruned = [Write(table, height_key(h), None) for table in PRUNED for h in range(1, 20)]
    disk(cluster, 0).write(tuple(pruned))
    disk(cluster, 0).sync()
    for index in (1, 2):
        cluster.crash(index)
    cluster.restart(3)
    assert not cluster.run_to(1, 15_000, [3])
    assert cluster.run_to(28, 60_000, [3])
    assert check_disk(cluster, 3) >= 28


def test_a_chain_too_young_for_a_checkpoint_is_replayed() -> None:
    cluster = Cluster(seed=4, timing=Timing(snapshot_distance=12, checkpoint_blocks=1_000))
    lagging(cluster)
    cluster.restart(3)
    assert catches_up(cluster, 3) == 0


def test_what_waited_here_is_still_proposed_after_the_jump() -> None:
    cluster = Cluster(seed=6, timing=TIMING)
    lagging(cluster)
    replica = cluster.replica
    cluster.restart(3)
    cluster.submit(3, transfer(0, 0), transfer(0, 8))
    assert replica(3).pending == 2, "as far as it knows, the first one is new"
    catches_up(cluster, 3)
    assert cluster.world.run_until(lambda: replica(3).pending == 0, 10_000)
    assert balance_nonce(cluster, 0) == 9


def balance_nonce(cluster: Cluster, client: int) -> int | None:
    state = State(cluster.replica(0).head.state)
    return cluster.ledger.admission.standing(state, CLIENTS[client].public_key).next_nonce


# -- stores that forgot ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", spread(range(20), 2))
def test_who_forgot_everything_comes_by_snapshot_and_never_contradicts_itself(seed: int) -> None:
    """An emptied store follows first; the cluster hears every vote of all lives."""
    draw = random.Random(seed)
    cluster = Restorable(
        draw.choice([4, 7]),
        seed,
        timing=dataclasses.replace(TIMING, block_time_ms=100, window=draw.choice([1, 4])),
        profile=LinkProfile(delay_ms=(1, 60), loss=draw.choice([0, 0.05]), reorder=0.2),
        wrap={0: PartLiar} if draw.random() < 0.5 else {},
    )
    cluster.start()
    node, empty = cluster.world.nodes[cluster.ids[2]], copy_of(SimulatedStore())
    for nonce in range(4):
        cluster.world.run_for(draw.randint(2_500, 5_000))
        cluster.submit(1, transfer(0, nonce))
        cluster.crash(2)
        put_back(cluster.world, node.id, empty, "consortium")
        cluster.restart(2)
        if draw.random() < 0.5:
            cluster.world.run_until(lambda: bool(base_height(node.store)), 20_000)
    cluster.world.network.profile = LinkProfile()
    assert cluster.world.run_until(lambda: is_released(cluster.world, node.id), 200_000)
    assert base_height(node.store) > 0
    cluster.crash(1)
    others = [index for index in cluster.honest() if index != 1]
    assert cluster.run_to(cluster.height(2) + 3, 60_000, others), "its vote counts again"
