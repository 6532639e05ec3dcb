"""Eras on the real ledger: joiners win seats, sets follow each other through crashes, loss and forks."""

import random
from collections.abc import Sequence

import pytest
from tests.public_ledger import account, key
from tests.simulation.era_network import ERA_SLOTS, NAMES, EraNetwork, era_genesis
from tests.stages import spread

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Machine,
    SignatureCheck,
    Start,
    Unknown,
    Write,
)
from gridtokenx.core.units import GRID
from gridtokenx.finality.justifications import Stage, statement_bytes
from gridtokenx.lab.sim.network import DeliverAfter, Drop, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.public.grandpa.ballots import VOTES
from gridtokenx.public.grandpa.messages import SignedVote, Votes, signed_vote
from gridtokenx.public.grandpa.round import CastVote
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.machine import PublicNode
from gridtokenx.public.staking import Bond, Chill, Nominate, SetSessionKey, prove_session_key


def join(network: EraNetwork, name: str, stake_grid: int = 5_000) -> None:
    network.call(name, Bond(stake_grid * GRID), network.stand(name))


def test_without_a_change_nothing_is_handed_over() -> None:
    network = EraNetwork(1)
    network.start()
    network.run_slots(3 * ERA_SLOTS)
    assert network.handovers() == []
    assert [era.set_id for era in network.eras()] == [0] * len(network.eras())
    assert len(network.eras()) >= 2
    network.settle()
    assert network.rejections() == {}


def test_a_full_node_wins_a_seat_and_validates_without_a_restart() -> None:
    network = EraNetwork(2)
    network.start()
    network.run_slots(4)
    join(network, "fay")
    network.run_slots(2 * ERA_SLOTS)
    assert "fay" in network.seated()
    assert len(network.handovers()) == 1
    network.run_slots(ERA_SLOTS)
    assert any(author == network.id("fay") for author, _ in network.authored)
    assert any(voter == network.id("fay") and set_id == 1 for voter, set_id, _, _ in network.said)
    assert not any(voter == network.id("gus") for voter, *_ in network.said), "never elected"
    network.settle()
    assert network.rejections() == {}


def test_three_sets_follow_each_other_and_a_newcomer_catches_up_across_them() -> None:
    network = EraNetwork(3)
    network.start(*(name for name in NAMES if name != "gus"))
    for change in (lambda: join(network, "fay"), lambda: network.call("ann", Chill()), None):
        network.run_slots(ERA_SLOTS)
        if change is not None:
            change()
    network.call("eve", Bond(800 * GRID))
    network.run_slots(2 * ERA_SLOTS)
    assert len(network.handovers()) >= 3
    network.start("gus")
    network.settle()
    assert network.node("gus").validators.set_id >= 3
    assert network.follow_as_client("gus").set_id >= 3


def test_a_rotated_session_key_takes_the_seat_over_at_the_next_era() -> None:
    """The operator runs a second node with the new key; both nodes never hold the seat at once."""
    network = EraNetwork(4)
    network.start()
    network.run_slots(3)
    own = account("fay session")
    proof = prove_session_key(own, network.genesis.chain_id, key("ann"))
    network.call("ann", SetSessionKey(own.public_key, proof))
    network.run_slots(2 * ERA_SLOTS)
    assert network.seated() >= {"fay"}
    assert "ann" not in network.seated()
    network.settle()


def test_two_branches_elect_different_sets_and_one_survives() -> None:
    """Halves that hear different nominations cross the era boundary apart: two sets of one number."""
    network = EraNetwork(5, names=NAMES)
    network.start()
    network.run_slots(4)
    join(network, "fay")
    join(network, "gus")
    network.call("fay", Chill())
    network.call("gus", Chill())
    network.run_slots(2)
    sides = (["ann", "ben", "fay"], ["cho", "dao", "eve", "gus"])
    network.world.network.partition(*([network.id(n) for n in side] for side in sides))
    network.call("fay", network.stand("fay"), to=sides[0])
    network.call("gus", network.stand("gus"), to=sides[1])
    network.run_slots(2 * ERA_SLOTS)
    best = {side[0]: network.node(side[0]).best for side in sides}
    sets = [network.set_after(block) for block in best.values()]
    assert sets[0].set_id == sets[1].set_id == 1
    assert sets[0].hash != sets[1].hash, "the two branches elected different sets"
    network.settle(further=2 * ERA_SLOTS)
    assert network.handovers()
    assert network.rejections() == {}
    assert not any(node.misbehaviours for node in network.world.nodes.values())


def test_all_die_around_a_handover() -> None:
    network = EraNetwork(6)
    network.start()
    network.run_slots(4)
    join(network, "fay")
    network.run_slots(2)
    for _ in range(6):
        network.world.run_for(1_300)
        for name in NAMES:
            network.crash(name)
        network.start()
    network.settle(further=ERA_SLOTS)
    assert "fay" in network.seated()


@pytest.mark.parametrize("seed", spread(range(24), 1))
def test_random_stakes_crashes_and_losses(seed: int) -> None:
    """Seats change hands in most eras while nodes die, links lose, and halves part."""
    draw = random.Random(seed)
    profile = LinkProfile(delay_ms=(5, 250), loss=0.04, duplicate=0.02, reorder=0.02)
    network = EraNetwork(100 + seed, profile=profile)
    network.start()
    network.run_slots(2)
    for name in ("fay", "gus"):
        join(network, name, draw.randint(150, 900))
    for _ in range(14):
        network.run_slots(draw.randint(1, 4))
        if network.up() and draw.random() < 0.7:
            targets = draw.sample(("ann", "ben", "cho", "dao", "eve"), draw.randint(1, 2))
            network.call("nina", Nominate(tuple(map(key, targets))))
        match draw.randrange(5):
            case 0:
                network.crash(draw.choice(NAMES))
            case 1:
                sides = draw.sample(NAMES, len(NAMES))
                cut = draw.randint(2, 5)
                parts = (sides[:cut], sides[cut:])
                network.world.network.partition(*([network.id(n) for n in p] for p in parts))
            case 2:
                network.world.network.heal()
            case _:
                network.start()
    network.settle(further=2 * ERA_SLOTS, slots=120)
    assert not any(node.misbehaviours for node in network.world.nodes.values())
    assert not {"bad-signature", "wrong-set"} & set(network.rejections()), "nobody lied"


def test_every_prefix_of_a_disk_around_a_handover_restores() -> None:
    """Whatever a crash leaves: the right set finalises next, and no vote contradicts what was said."""
    network = EraNetwork(7)
    node = network.world.nodes[network.id("ann")]
    batches: list[tuple[Write, ...]] = []
    write = node.store.write

    def record(batch: tuple[Write, ...]) -> None:
        batches.append(batch)
        write(batch)

    node.store.write = record  # type: ignore[method-assign]  # the test's own ear
    network.start()
    network.run_slots(3)
    join(network, "fay")
    network.run_slots(ERA_SLOTS + 2)
    assert len(network.handovers()) == 1
    store, sets = SimulatedStore(), set()
    for batch in batches:
        store.write(batch)
        store.sync()
        machine = node.build(store)
        assert isinstance(machine, PublicNode)
        assert machine.validators == network.set_after(network.chain[machine.head.height])
        sets.add(machine.validators.set_id)
        for vote in votes_of(machine.step(network.world.now, Start())):
            place = (node.id, vote.set_id, vote.round, Stage(vote.stage))
            assert network.said.get(place, vote.target_hash) == vote.target_hash
    assert sets == {0, 1}


def votes_of(effects: Sequence[Effect]) -> list[SignedVote]:
    messages = [effect.message for effect in effects if isinstance(effect, Broadcast)]
    return [vote for message in messages if isinstance(message, Votes) for vote in message.votes]


def test_no_vote_passes_a_handover_and_the_new_set_builds_on_it_meanwhile() -> None:
    """All precommits around the handover are lost, so the new set's blocks pile up above it."""
    network = EraNetwork(8)
    heard: list[SignedVote] = []
    losing = False

    def rule(envelope: Envelope) -> Verdict | None:
        if not isinstance(envelope.message, Votes):
            return None
        heard.extend(envelope.message.votes)
        return Drop() if losing else None

    network.world.network.rules.append(rule)
    network.start()
    network.run_slots(3)
    join(network, "fay")
    network.run_slots(2)
    losing = True
    network.run_slots(ERA_SLOTS)
    node = network.node("ann")
    assert node.best.header.set_id == 1, "children of the handover are the new set's, final or not"
    assert (node.head.header.set_id, node.validators.set_id) == (0, 0)
    assert {vote.set_id for vote in heard} == {0}
    losing = False
    network.settle(further=ERA_SLOTS)
    last_of_set_0 = network.handovers()[0]
    assert max(vote.target_height for vote in heard if vote.set_id == 0) == last_of_set_0
    assert min(vote.target_height for vote in heard if vote.set_id == 1) > last_of_set_0
    assert network.rejections() == {}


class Overreacher:
    """Votes as it should, and once a round also for a block of the set after its own."""

    def __init__(self, inner: Machine, name: str, chain_id: bytes) -> None:
        assert isinstance(inner, PublicNode)
        self.inner, self.signer, self.chain_id = inner, account(f"{name} session"), chain_id
        self.lied: set[tuple[int, int]] = set()

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        return self.inner.verification(message)

    def step(self, now: int, event: Event) -> list[Effect]:
        effects = list(self.inner.step(now, event))
        validators, best = self.inner.validators, self.inner.best
        place = (validators.set_id, self.inner.round)
        index = validators.index_of(self.signer.public_key)
        if index is None or place in self.lied or best.header.set_id <= validators.set_id:
            return effects
        self.lied.add(place)
        target = BlockRef(best.hash, best.height)
        votes = (self.lie(stage, *place, index, target) for stage in VOTES)
        return [*effects, Broadcast(Votes(tuple(votes)))]

    def lie(
        self, stage: Stage, set_id: int, round_: int, index: int, target: BlockRef
    ) -> SignedVote:
        message = statement_bytes(self.chain_id, stage, round_, set_id, *target)
        cast = CastVote(index, target, self.signer.sign(message))
        return signed_vote(stage, round_, set_id, cast)


@pytest.mark.parametrize("seed", spread(range(8), 1))
def test_a_liars_votes_beyond_a_handover_carry_nobody_over_it(seed: int) -> None:
    liars: list[Overreacher] = []
    genesis = era_genesis()

    def wrap(inner: Machine) -> Machine:
        liars.append(Overreacher(inner, "ben", genesis.chain_id))
        return liars[-1]

    def slow_votes(envelope: Envelope) -> Verdict | None:
        """Honest votes take most of a slot, so blocks pile up beyond a handover meanwhile."""
        honest = envelope.sender != network.id("ben")
        return DeliverAfter(1_500) if honest and isinstance(envelope.message, Votes) else None

    profile = LinkProfile(delay_ms=(5, 300), loss=0.03)
    network = EraNetwork(40 + seed, profile=profile, genesis=genesis, wrap={"ben": wrap})
    network.world.network.rules.append(slow_votes)
    network.start()
    network.run_slots(2)
    join(network, "fay")
    for name in ("gus", "ann", "gus"):
        network.run_slots(ERA_SLOTS)
        network.call(name, Chill()) if name == "ann" else join(network, name, 800)
    network.settle(further=ERA_SLOTS, slots=120)
    assert len(network.handovers()) >= 2
    assert any(liar.lied for liar in liars)
