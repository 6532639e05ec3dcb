"""A simulated network: seeded delay, loss, duplication, reordering, and faults as small rules.

A rule looks at one envelope and passes (None), drops it, or delivers it later; the first verdict
wins. A partition is a rule that everybody needs, so it has its own two methods. Links are first in,
first out, as TCP is, unless the profile says that some messages overtake others.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from math import isqrt
from typing import Final, Literal

import msgspec

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import Instant, NodeId

_STEPS: Final = 512
"""Into so many equally likely delays a distribution with a tail is cut: integers, the same anywhere."""


@cache
def _exponential() -> tuple[int, ...]:
    """Quantiles of the exponential distribution with mean 1000; they take a tenth of a second."""
    half = Decimal("0.5")
    return tuple(int(-1_000 * ((Decimal(step) + half) / _STEPS).ln()) for step in range(_STEPS))


class Envelope(msgspec.Struct, frozen=True):
    """One message on its way over one link."""

    sent_ms: Instant
    sender: NodeId
    receiver: NodeId
    message: Wire


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is lost."""


@dataclass(frozen=True, slots=True)
class DeliverAfter:
    """The message arrives this much later than it was sent, whatever the link's profile says."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class DeliverEach:
    """The message arrives once per delay."""

    delays_ms: tuple[int, ...]


Verdict = Drop | DeliverAfter | DeliverEach
Rule = Callable[[Envelope], Verdict | None]


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """How every link behaves while no rule says otherwise."""

    delay_ms: tuple[int, int] = (1, 5)
    """Least and greatest delay where `spread` is uniform; else least and mean."""
    spread: Literal["uniform", "exponential", "heavy"] = "uniform"
    """How delays are distributed: evenly, as a Poisson process, or with a tail (Pareto, alpha 2)."""
    loss: float = 0.0
    """Share of messages that never arrive."""
    duplicate: float = 0.0
    """Share of messages that arrive twice."""
    reorder: float = 0.0
    """Share of messages that may be overtaken by later ones of the same link."""

    def delay(self, draw: random.Random) -> int:
        """One message's delay."""
        least, other = self.delay_ms
        if self.spread == "uniform":
            return least + _below(draw, other - least + 1)
        beyond = other - least
        if self.spread == "exponential":
            return least + beyond * _exponential()[_below(draw, _STEPS)] // 1_000
        return least + beyond * isqrt(_STEPS * 1_000_000 // (1 + _below(draw, _STEPS))) // 2_000


def _below(draw: random.Random, bound: int) -> int:
    """What `draw.randrange(bound)` gives, without its checks: it is asked for every message."""
    bits = bound.bit_length()
    number = draw.getrandbits(bits)
    while number >= bound:
        number = draw.getrandbits(bits)
    return number


class Network:
    """Decides when, how often and whether each message arrives."""

    def __init__(self, draw: random.Random, profile: LinkProfile) -> None:
        self.profile = profile
        self.rules: Final[list[Rule]] = []
        self._draw = draw
        self._side: dict[NodeId, int] | None = None
        self._last_arrival: dict[tuple[NodeId, NodeId], Instant] = {}

    @property
    def parted(self) -> bool:
        """Whether there are sides."""
        return self._side is not None

    def partition(self, *sides: Iterable[NodeId]) -> None:
        """Cut the network into sides; a node that is in none is alone."""
        self._side = {node: index for index, side in enumerate(sides) for node in side}

    def heal(self) -> None:
        """Join all sides again. Rules stay."""
        self._side = None

    def connected(self, one: NodeId, other: NodeId) -> bool:
        """Whether the partition lets messages pass between two nodes."""
        if self._side is None:
            return True
        side = self._side.get(one)
        return side is not None and side == self._side.get(other)

    def arrivals(self, envelope: Envelope) -> list[Instant]:
        """When the message arrives: never, once, or twice."""
        if self._side is not None and not self.connected(envelope.sender, envelope.receiver):
            return []
        for rule in self.rules:
            verdict = rule(envelope)
            if verdict is None:
                continue
            if isinstance(verdict, Drop):
                return []
            if isinstance(verdict, DeliverAfter):
                return [envelope.sent_ms + verdict.delay_ms]
            if isinstance(verdict, DeliverEach):
                return [envelope.sent_ms + delay_ms for delay_ms in verdict.delays_ms]
        return self._by_profile(envelope)

    def _by_profile(self, envelope: Envelope) -> list[Instant]:
        profile, draw = self.profile, self._draw
        if profile.loss and draw.random() < profile.loss:
            return []
        arrival = envelope.sent_ms + profile.delay(draw)
        link = (envelope.sender, envelope.receiver)
        if not (profile.reorder and draw.random() < profile.reorder):
            last = self._last_arrival.get(link, 0)
            if last > arrival:
                arrival = last
            self._last_arrival[link] = arrival
        if profile.duplicate and draw.random() < profile.duplicate:
            return [arrival, arrival + profile.delay(draw)]
        return [arrival]
