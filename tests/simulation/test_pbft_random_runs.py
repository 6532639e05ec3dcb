"""Seeded lives of whole chains: loss, cuts, wrong clocks, pauses, crashes, a traitor or two.

First anything may happen; agreement, valid certificates and no contradiction by an honest replica
are checked at every commit and every message. Then the network heals, everybody honest starts, and
the chain must grow again within a bound. More seeds: ``GTX_STAGES=slow GTX_PBFT_SEEDS=500 pytest ...``.
"""

import os
import random
from collections.abc import Sequence
from typing import get_args

import pytest
from tests.simulation.pbft_cluster import (
    CLIENTS,
    Censor,
    Cluster,
    Equivocator,
    Shouter,
    Silent,
    ledger,
    transfer,
)
from tests.stages import spread

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.core.machine import NodeId
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.world import START_MS, World
from gridtokenx.pbft.messages import Message
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

PLAIN = 16
"""Lives that the plain stage draws; of all sizes, for it is no multiple of their number."""
SEEDS = spread(range(int(os.environ.get("GTX_PBFT_SEEDS", "60"))), PLAIN)
SIZES = (4, 5, 6, 7, 4)
RECOVERY_MS = 60_000
KINDS = [kind.__name__ for kind in get_args(Message)]


class Weather:
    """Faults of the network beyond loss and delay: one-way cuts, and kinds of messages that vanish."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.loss: dict[str, float] = {}

    def __call__(self, envelope: Envelope) -> Verdict | None:
        if (envelope.sender, envelope.receiver) in self.cut:
            return Drop()
        loss = self.loss.get(type(envelope.message).__name__, 0.0)
        return Drop() if loss and self.draw.random() < loss else None

    def worsen(self, ids: Sequence[NodeId]) -> None:
        draw = self.draw
        if draw.random() < 0.5:
            self.cut = {(draw.choice(ids), draw.choice(ids)) for _ in range(draw.randrange(8))}
        else:
            self.loss = {draw.choice(KINDS): draw.choice([0.5, 1.0]) for _ in range(2)}

    def clear(self) -> None:
        self.cut, self.loss = set(), {}


class Life:
    """One chain's life, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        draw = self.draw
        n = SIZES[seed % len(SIZES)]
        traitors = draw.sample(range(n), draw.randint(0, (n - 1) // 3))
        behaviours = [Equivocator, Silent, Shouter, Censor]
        self.cluster = Cluster(
            n,
            seed,
            timing=Timing(
                block_time_ms=draw.choice([0, 200, 1_000]), window=draw.choice([1, 1, 4])
            ),
            profile=LinkProfile(
                delay_ms=(1, draw.choice([5, 50, 400])),
                loss=draw.choice([0, 0.02, 0.1, 0.3]),
                duplicate=draw.choice([0, 0.1]),
                reorder=draw.choice([0, 0.3]),
            ),
            wrap={i: draw.choice(behaviours) for i in traitors},
        )
        for node in self.cluster.world.nodes.values():
            node.clock_offset_ms = draw.choice([0, 0, 0, -1_500, 2_000])
        self.weather = Weather(draw)
        self.cluster.world.network.rules.append(self.weather)
        self.nonces = [0] * len(CLIENTS)
        self.down: set[int] = set()
        self.paused: set[int] = set()

    def suffer(self, duration_ms: int) -> None:
        """The safety phase."""
        self.cluster.start()
        happenings = (
            [self._crash_or_restart] * 4
            + [self._pause_or_resume, self._partition, self._worsen]
            + [self.cluster.world.network.heal, self.weather.clear]
            + [self._submit] * 5
        )
        end = self.cluster.world.now + duration_ms
        while self.cluster.world.now < end:
            self.cluster.world.run_for(self.draw.randint(50, 1_500))
            self.draw.choice(happenings)()

    def _worsen(self) -> None:
        self.weather.worsen(self.cluster.ids)

    def _partition(self) -> None:
        nodes = list(self.cluster.ids)
        self.draw.shuffle(nodes)
        cut = self.draw.randrange(len(nodes))
        self.cluster.world.network.partition(nodes[:cut], nodes[cut:])

    def _submit(self) -> None:
        client = self.draw.randrange(len(CLIENTS))
        to = self.draw.randrange(self.cluster.n)
        self.cluster.submit(to, transfer(client, self.nonces[client]))
        self.nonces[client] += 1

    def _crash_or_restart(self) -> None:
        index = self.draw.choice(self.cluster.honest())
        if index in self.down:
            self.cluster.restart(index)
            self.down.discard(index)
        else:
            self.cluster.crash(index)
            self.down.add(index)
            self.paused.discard(index)

    def _pause_or_resume(self) -> None:
        index = self.draw.choice(self.cluster.honest())
        if index in self.paused:
            self.cluster.world.resume(self.cluster.ids[index])
            self.paused.discard(index)
        elif index not in self.down:
            self.cluster.world.pause(self.cluster.ids[index])
            self.paused.add(index)

    def heal(self) -> None:
        """The liveness phase: within the bound every honest replica has three more blocks."""
        cluster = self.cluster
        cluster.world.network.heal()
        cluster.world.network.profile = LinkProfile()
        self.weather.clear()
        for index in sorted(self.paused):
            cluster.world.resume(cluster.ids[index])
        for index in sorted(self.down):
            cluster.restart(index)
        height = max(cluster.height(i) for i in cluster.honest())
        assert cluster.run_to(height + 3, RECOVERY_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_always_and_live_after_healing(seed: int) -> None:
    life = Life(seed)
    life.suffer(45_000)
    life.heal()
    life.cluster.check_chains()
    for node in life.cluster.world.nodes.values():
        offenders = {life.cluster.ids.index(m.offender) for m in node.misbehaviours}
        assert offenders <= life.cluster.faulty, "nobody honest is accused with proof"


@pytest.mark.parametrize("n", [4, 5, 6, 7, 21])
def test_with_f_silent_the_chain_goes_on(n: int) -> None:
    """Quorums at every size: f silent replicas, the first primaries among them, stop nothing."""
    faulty = (n - 1) // 3
    cluster = Cluster(n, wrap=dict.fromkeys(range(faulty), Silent))
    cluster.start()
    assert cluster.run_to(3, 400_000, cluster.honest())
    cluster.check_chains()


@pytest.mark.parametrize("n", [4, 5, 6, 7, 21])
def test_with_f_plus_1_down_nothing_is_committed(n: int) -> None:
    """Where 2f + 1 votes are left but no quorum (5, 6, 21), nothing may be decided."""
    cluster = Cluster(n)
    votes = cluster.validators.quorum - 1
    cluster.world.start(*cluster.ids[:votes])
    cluster.world.run_for(20_000)
    assert cluster.chain == {}
    cluster.world.start()
    assert cluster.run_to(2, 60_000)


def test_the_same_seed_is_the_same_run() -> None:
    digests = set()
    for _ in range(2):
        cluster = Cluster(4, 7, profile=LinkProfile((1, 50), loss=0.1), trace=True)
        cluster.start()
        cluster.submit(2, transfer(0, 0))
        cluster.world.run_for(10_000)
        cluster.crash(1)
        cluster.world.run_for(10_000)
        digests.add(cluster.world.trace_digest())
    assert len(digests) == 1


def test_with_real_cryptography() -> None:
    """The simulator's keyed hashes stand for Ed25519; here a life with the real thing."""
    signers = [Ed25519Signer(bytes((index + 1,)) * 32) for index in range(4)]
    validators = ValidatorSet(0, tuple(key.public_key for key in signers))
    chain = ledger(validators)
    genesis = chain.genesis(START_MS)
    world = World(5, Ed25519Verifier())
    for key in signers:
        world.add(
            key.public_key,
            lambda reader, key=key: Replica.restore(
                reader, chain, validators, key, genesis, Timing()
            ),
        )
    world.start()

    def heights() -> list[int]:
        return [node.machine.head.height for node in world.nodes.values() if node.alive]

    assert world.run_until(lambda: min(heights()) >= 3, 10_000)
    world.crash(signers[0].public_key)
    assert world.run_until(lambda: min(heights()) >= 6, 20_000)
    world.start()
    assert world.run_until(lambda: min(heights()) >= 8, 20_000)
    assert len({tuple(node.rejections) for node in world.nodes.values()}) == 1
