"""Seeded lives (`pbft_lives.py`) of chains that change their set in the middle of it all.

What holds at every moment is checked by `MembersCluster`: one chain, each block certified by its own
set, votes of members only, none contradicted. After healing the chain must grow for everybody,
observers too, and must still be able to change its set. More seeds:
``GTX_STAGES=slow GTX_PBFT_SEEDS=500 pytest ...``.
"""

import os
from collections.abc import Callable

import pytest
from tests.simulation.members_cluster import MembersCluster, Turncoat, add, remove, replace
from tests.simulation.pbft_cluster import Silent
from tests.simulation.pbft_lives import RECOVERY_MS, Life
from tests.stages import spread

from gridtokenx.pbft.membership import Change

SEEDS = spread(range(int(os.environ.get("GTX_PBFT_SEEDS", "40"))), 4)
EVERYBODY = 8


class ChangingSet(Life[MembersCluster]):
    """Of a chain whose replicas come and go."""

    most_down = 3

    def make(self, seed: int) -> MembersCluster:
        draw = self.draw
        traitors = draw.sample(range(4), draw.randint(0, 1))
        return MembersCluster(
            draw.choice([4, 4, 5, 6, 7]),
            EVERYBODY,
            seed,
            timing=self.timing(),
            profile=self.profile(),
            wrap={i: draw.choice([Turncoat, Silent]) for i in traitors},
            rotation_blocks=self.rotation(),
        )

    def happenings(self) -> list[Callable[[], None]]:
        self.wanted, self.wanted_in = self.next_change(), 0
        return (
            [self.crash_or_restart] * 3
            + [self.pause_or_resume, self.partition, self.worsen]
            + [self.join, self.clear] * 2
            + [self.submit] * 3
            + [self.push] * 6
        )

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

    def push(self) -> None:
        if self.cluster.members.set_id != self.wanted_in:
            self.wanted, self.wanted_in = self.next_change(), self.cluster.members.set_id
        self.cluster.push(self.wanted)

    def recover(self) -> None:
        """Everybody honest goes on, and one more change is possible."""
        cluster = self.cluster
        assert cluster.settle(limit_ms=RECOVERY_MS)
        if cluster.members.set_id != self.wanted_in:
            self.wanted = self.next_change()
        assert cluster.hand_over(self.wanted, RECOVERY_MS)
        assert cluster.settle(limit_ms=RECOVERY_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_always_and_live_after_healing(seed: int) -> None:
    life = ChangingSet(seed)
    life.suffer(45_000)
    life.heal()
    life.check()


def test_lives_do_change_their_sets() -> None:
    """What is drawn above is not all storm: sets change in the middle of it."""
    handovers = 0
    for seed in range(6):
        life = ChangingSet(seed)
        life.suffer(45_000)
        handovers += life.cluster.members.set_id
    assert handovers >= 6
