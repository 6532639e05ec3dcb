"""Seeded lives of chains that change their set under loss, cuts, pauses, crashes and a traitor.

What holds at every moment is checked by `MembersCluster`: one chain, each block certified by its own
set, votes of members only, none contradicted. After healing the chain must grow for everybody,
observers too, and must still be able to change its set. More seeds:
``GTX_STAGES=slow GTX_PBFT_SEEDS=500 pytest ...``.
"""

import os
import random

import pytest
from tests.simulation.members_cluster import MembersCluster, Turncoat, add, remove, replace
from tests.simulation.pbft_cluster import CLIENTS, Silent, transfer
from tests.simulation.test_pbft_random_runs import Weather
from tests.stages import spread

from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.pbft.membership import Change
from gridtokenx.pbft.timing import Timing

SEEDS = spread(range(int(os.environ.get("GTX_PBFT_SEEDS", "40"))), 10)
RECOVERY_MS = 60_000
EVERYBODY = 8


class Life:
    """One chain's life, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        traitors = draw.sample(range(4), draw.randint(0, 1))
        self.cluster = MembersCluster(
            draw.choice([4, 4, 5, 6, 7]),
            EVERYBODY,
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
            wrap={i: draw.choice([Turncoat, Silent]) for i in traitors},
        )
        for node in self.cluster.world.nodes.values():
            node.clock_offset_ms = draw.choice([0, 0, 0, -1_500, 2_000])
        self.weather = Weather(draw)
        self.cluster.world.network.rules.append(self.weather)
        self.nonces = [0] * len(CLIENTS)
        self.down: set[int] = set()
        self.paused: set[int] = set()
        self.wanted = self.next_change()
        self.wanted_in = 0

    def next_change(self) -> Change:
        """Any change that the set allows, so that sizes stay between 4 and 7."""
        seats = self.cluster.seats()
        free = [i for i in range(EVERYBODY) if i not in seats]
        choices: list[Change] = [replace(self.draw.choice(seats), by=self.draw.choice(free))]
        if len(seats) < 7:
            choices += [add(self.draw.choice(free))] * 2
        if len(seats) > 4:
            choices += [remove(self.draw.choice(seats))] * 2
        return self.draw.choice(choices)

    def suffer(self, duration_ms: int) -> None:
        """The safety phase."""
        self.cluster.start()
        happenings = (
            [self._crash_or_restart] * 3
            + [self._pause_or_resume, self._partition, self._worsen]
            + [self.cluster.world.network.heal, self.weather.clear] * 2
            + [self._submit] * 3
            + [self._push] * 6
        )
        end = self.cluster.world.now + duration_ms
        while self.cluster.world.now < end:
            self.cluster.world.run_for(self.draw.randint(50, 1_500))
            self.draw.choice(happenings)()

    def _push(self) -> None:
        if self.cluster.members.set_id != self.wanted_in:
            self.wanted, self.wanted_in = self.next_change(), self.cluster.members.set_id
        self.cluster.push(self.wanted)

    def _worsen(self) -> None:
        self.weather.worsen(self.cluster.ids)

    def _partition(self) -> None:
        nodes = list(self.cluster.ids)
        self.draw.shuffle(nodes)
        cut = self.draw.randrange(len(nodes))
        self.cluster.world.network.partition(nodes[:cut], nodes[cut:])

    def _submit(self) -> None:
        client = self.draw.randrange(len(CLIENTS))
        self.cluster.submit(self.draw.randrange(EVERYBODY), transfer(client, self.nonces[client]))
        self.nonces[client] += 1

    def _crash_or_restart(self) -> None:
        index = self.draw.choice(self.cluster.honest())
        if index in self.down:
            self.cluster.start(index)
            self.down.discard(index)
        elif len(self.down) < 3:
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
        """The liveness phase: everybody honest goes on, and one more change is possible."""
        cluster = self.cluster
        cluster.world.network.heal()
        cluster.world.network.profile = LinkProfile()
        self.weather.clear()
        for index in sorted(self.paused):
            cluster.world.resume(cluster.ids[index])
        for index in sorted(self.down):
            cluster.start(index)
        assert cluster.settle(limit_ms=RECOVERY_MS)
        if cluster.members.set_id != self.wanted_in:
            self.wanted = self.next_change()
        assert cluster.hand_over(self.wanted, RECOVERY_MS)
        assert cluster.settle(limit_ms=RECOVERY_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_always_and_live_after_healing(seed: int) -> None:
    life = Life(seed)
    life.suffer(45_000)
    life.heal()
    life.cluster.check_chains()
    for node in life.cluster.world.nodes.values():
        offenders = {life.cluster.ids.index(m.offender) for m in node.misbehaviours}
        assert offenders <= life.cluster.faulty, "nobody honest is accused with proof"


def test_lives_do_change_their_sets() -> None:
    """What is drawn above is not all storm: sets change in the middle of it."""
    handovers = 0
    for seed in range(6):
        life = Life(seed)
        life.suffer(45_000)
        handovers += life.cluster.members.set_id
    assert handovers >= 6
