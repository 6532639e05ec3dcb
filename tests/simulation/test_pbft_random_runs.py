"""Seeded lives (`pbft_lives.py`) of chains with one set of replicas, and how they stand any faults.

More seeds: ``GTX_STAGES=slow GTX_PBFT_SEEDS=500 pytest ...``.
"""

import os
from collections.abc import Callable

import pytest
from tests.simulation.pbft_cluster import (
    Censor,
    Cluster,
    Equivocator,
    Hoarder,
    Shouter,
    Silent,
    ledger,
    transfer,
)
from tests.simulation.pbft_lives import RECOVERY_MS, Life
from tests.stages import spread

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.lab.sim.world import START_MS, World
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

PLAIN = 11
"""Lives that the plain stage draws; of all sizes, for it is no multiple of their number."""
SEEDS = spread(range(int(os.environ.get("GTX_PBFT_SEEDS", "60"))), PLAIN)
SIZES = (4, 5, 6, 7, 4)


class FixedSet(Life[Cluster]):
    """Of a chain whose replicas stay the same."""

    def make(self, seed: int) -> Cluster:
        draw, n = self.draw, SIZES[seed % len(SIZES)]
        traitors = draw.sample(range(n), draw.randint(0, (n - 1) // 3))
        return Cluster(
            n,
            seed,
            timing=self.timing(),
            profile=self.profile(),
            wrap={
                i: draw.choice([Equivocator, Silent, Shouter, Censor, Hoarder]) for i in traitors
            },
            rotation_blocks=self.rotation(),
        )

    def happenings(self) -> list[Callable[[], None]]:
        return (
            [self.crash_or_restart] * 4
            + [self.pause_or_resume, self.partition, self.worsen, self.join, self.clear]
            + [self.submit] * 5
        )

    def recover(self) -> None:
        """Every honest replica has three more blocks."""
        height = max(self.cluster.height(i) for i in self.cluster.honest())
        assert self.cluster.run_to(height + 3, RECOVERY_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_always_and_live_after_healing(seed: int) -> None:
    life = FixedSet(seed)
    life.suffer(45_000)
    life.heal()
    life.check()


@pytest.mark.parametrize("n", spread([4, 5, 6, 7, 21], 4))
def test_with_f_silent_the_chain_goes_on(n: int) -> None:
    """Quorums at every size: f silent replicas, the first primaries among them, stop nothing."""
    faulty = (n - 1) // 3
    cluster = Cluster(n, wrap=dict.fromkeys(range(faulty), Silent))
    cluster.start()
    assert cluster.run_to(3, 400_000, cluster.honest())
    cluster.check_chains()


@pytest.mark.parametrize("n", spread([4, 5, 6, 7, 21], 4))
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
