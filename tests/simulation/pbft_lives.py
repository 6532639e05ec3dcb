"""Seeded lives of whole chains: loss, cuts, wrong clocks, pauses, crashes, a traitor or two.

First anything may happen; agreement, valid certificates and no contradiction by an honest replica
are checked at every commit and every message by the cluster. Then the network heals, everybody honest
starts, and the chain must grow again within a bound.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, get_args

from tests.simulation.members_cluster import MembersCluster
from tests.simulation.pbft_cluster import CLIENTS, Cluster, transfer

from gridtokenx.core.machine import NodeId
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile, Verdict
from gridtokenx.pbft.messages import Message
from gridtokenx.pbft.timing import Timing

RECOVERY_MS = 60_000
KINDS = [kind.__name__ for kind in get_args(Message)]
C = TypeVar("C", Cluster, MembersCluster)


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


class Life(ABC, Generic[C]):
    """One chain's life, drawn from a seed."""

    most_down = 128

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.cluster = self.make(seed)
        for node in self.cluster.world.nodes.values():
            node.clock_offset_ms = self.draw.choice([0, 0, 0, -1_500, 2_000])
        self.weather = Weather(self.draw)
        self.cluster.world.network.rules.append(self.weather)
        self.nonces = [0] * len(CLIENTS)
        self.down: set[int] = set()
        self.paused: set[int] = set()

    @abstractmethod
    def make(self, seed: int) -> C:
        """The chain."""

    @abstractmethod
    def happenings(self) -> list[Callable[[], None]]:
        """What may happen, each as often as it is in the list."""

    @abstractmethod
    def recover(self) -> None:
        """What must be possible once everything is healed."""

    def timing(self) -> Timing:
        draw = self.draw
        return Timing(block_time_ms=draw.choice([0, 200, 1_000]), window=draw.choice([1, 1, 4]))

    def profile(self) -> LinkProfile:
        draw = self.draw
        return LinkProfile(
            delay_ms=(1, draw.choice([5, 50, 400])),
            loss=draw.choice([0, 0.02, 0.1, 0.3]),
            duplicate=draw.choice([0, 0.1]),
            reorder=draw.choice([0, 0.3]),
        )

    def rotation(self) -> int:
        return self.draw.choice([0, 0, 1, 3])

    def suffer(self, duration_ms: int) -> None:
        """The safety phase."""
        self.cluster.start()
        happenings = self.happenings()
        end = self.cluster.world.now + duration_ms
        while self.cluster.world.now < end:
            self.cluster.world.run_for(self.draw.randint(50, 1_500))
            self.draw.choice(happenings)()

    def heal(self) -> None:
        """The liveness phase: within a bound everybody honest goes on."""
        cluster = self.cluster
        cluster.world.network.heal()
        cluster.world.network.profile = LinkProfile()
        self.weather.clear()
        for index in sorted(self.paused):
            cluster.world.resume(cluster.ids[index])
        for index in sorted(self.down):
            cluster.restart(index)
        self.recover()

    def check(self) -> None:
        """All chains are one, and nobody honest is accused with proof."""
        self.cluster.check_chains()
        for node in self.cluster.world.nodes.values():
            offenders = {self.cluster.ids.index(m.offender) for m in node.misbehaviours}
            assert offenders <= self.cluster.faulty

    # -- what happens ------------------------------------------------------------------------------

    def clear(self) -> None:
        self.weather.clear()

    def join(self) -> None:
        self.cluster.world.network.heal()

    def worsen(self) -> None:
        self.weather.worsen(self.cluster.ids)

    def partition(self) -> None:
        nodes = list(self.cluster.ids)
        self.draw.shuffle(nodes)
        cut = self.draw.randrange(len(nodes))
        self.cluster.world.network.partition(nodes[:cut], nodes[cut:])

    def submit(self) -> None:
        client = self.draw.randrange(len(CLIENTS))
        to = self.draw.randrange(len(self.cluster.ids))
        self.cluster.submit(to, transfer(client, self.nonces[client]))
        self.nonces[client] += 1

    def crash_or_restart(self) -> None:
        index = self.draw.choice(self.cluster.honest())
        if index in self.down:
            self.cluster.restart(index)
            self.down.discard(index)
        elif len(self.down) < self.most_down:
            self.cluster.crash(index)
            self.down.add(index)
            self.paused.discard(index)

    def pause_or_resume(self) -> None:
        index = self.draw.choice(self.cluster.honest())
        if index in self.paused:
            self.cluster.world.resume(self.cluster.ids[index])
            self.paused.discard(index)
        elif index not in self.down:
            self.cluster.world.pause(self.cluster.ids[index])
            self.paused.add(index)
