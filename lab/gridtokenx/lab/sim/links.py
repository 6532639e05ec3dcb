"""Faults of links as rules: what becomes of one message, decided from the message and a draw.

The simulator's network asks them of everything that is sent; a replica of a run of real processes asks
them of what it sends itself (`chaos/replica.py`).
"""

import random
from collections.abc import Callable, Iterable, Sequence

from gridtokenx.core.codec import encode
from gridtokenx.core.machine import Instant, NodeId
from gridtokenx.lab.faults import (
    Bandwidth,
    Delay,
    Duplicate,
    Loss,
    OnLinks,
    Partition,
    Reorder,
    kind_of,
)
from gridtokenx.lab.sim.network import (
    DeliverAfter,
    DeliverEach,
    Drop,
    Envelope,
    Rule,
    Verdict,
)


def rule_of(
    fault: OnLinks,
    senders: frozenset[NodeId],
    receivers: frozenset[NodeId],
    draw: random.Random,
    delay: Callable[[], int],
) -> Rule:
    """The rule of a fault of links, for the messages that it concerns.

    Args:
        fault: what goes wrong.
        senders: of whom; of everybody if empty.
        receivers: to whom; to everybody if empty.
        draw: of what it leaves to chance.
        delay: how long a message takes otherwise, in ms.
    """
    kinds, effect = frozenset(fault.messages), _effect(fault, draw, delay)

    def rule(envelope: Envelope) -> Verdict | None:
        if senders and envelope.sender not in senders:
            return None
        if receivers and envelope.receiver not in receivers:
            return None
        if kinds and type(envelope.message).__name__ not in kinds:
            return None
        return effect(envelope)

    return rule


def _effect(fault: OnLinks, draw: random.Random, delay: Callable[[], int]) -> Rule:
    match fault:
        case Delay(delay_ms=delay_ms, jitter_ms=jitter_ms):
            return lambda _: DeliverAfter(delay() + delay_ms + draw.randint(0, jitter_ms))
        case Loss(share=share):
            return lambda _: Drop() if share >= 1 or draw.random() < share else None
        case Duplicate(share=share, within_ms=within_ms):
            return lambda _: _twice(share, within_ms, draw, delay)
        case Reorder(share=share, within_ms=within_ms):
            return lambda _: (
                DeliverAfter(delay() + draw.randint(0, within_ms))
                if draw.random() < share
                else None
            )
        case Bandwidth(bytes_per_s=bytes_per_s):
            return _Queue(bytes_per_s, delay)
        case _:
            raise AssertionError(f"a fault of kind {kind_of(fault)} has nobody to do it")


def _twice(
    share: float, within_ms: int, draw: random.Random, delay: Callable[[], int]
) -> Verdict | None:
    if draw.random() >= share:
        return None
    first_ms = delay()
    return DeliverEach((first_ms, first_ms + draw.randint(0, within_ms)))


class _Queue:
    """Links of bounded bandwidth: each message waits until those before it are through."""

    def __init__(self, bytes_per_s: int, delay: Callable[[], int]) -> None:
        self._bytes_per_s = bytes_per_s
        self._delay = delay
        self._free_us: dict[tuple[NodeId, NodeId], Instant] = {}

    def __call__(self, envelope: Envelope) -> Verdict:
        link, sent_us = (envelope.sender, envelope.receiver), envelope.sent_ms * 1_000
        begins_us = max(sent_us, self._free_us.get(link, 0))
        size = len(encode(envelope.message))
        self._free_us[link] = begins_us + size * 1_000_000 // self._bytes_per_s
        return DeliverAfter((self._free_us[link] - sent_us) // 1_000 + self._delay())


# -- partitions ------------------------------------------------------------------------------------


def cut_of(
    fault: Partition, places: Sequence[NodeId], nodes: Sequence[int], draw: random.Random
) -> Rule:
    """The rule of a partition.

    Args:
        fault: how links are cut.
        places: nodes by index.
        nodes: whom the fault names, roles resolved.
        draw: chooses a half where none is named.
    """
    named = [places[index] for index in nodes]
    match fault.shape:
        case "one-way":
            unheard = frozenset(named)
            return lambda e: Drop() if e.sender in unheard else None
        case "ring":
            return _ring(places)
        case "isolate":
            side = {place: number for number, place in enumerate(named, 1)}
        case "sides":
            side = sides_of(fault.sides, places)
        case "halves":
            if not named:
                shuffled = list(places)
                draw.shuffle(shuffled)
                named = shuffled[: len(places) // 2]
            side = dict.fromkeys(named, 1)
    return between(side)


def sides_of(sides: Iterable[Iterable[int]], places: Sequence[NodeId]) -> dict[NodeId, int]:
    """Each node's side; who is in none is alone."""
    side = {place: -number for number, place in enumerate(places, 1)}
    for number, members in enumerate(sides, 1):
        side.update((places[index], number) for index in members)
    return side


def between(side: dict[NodeId, int]) -> Rule:
    """Drops what goes from one side to another; who is in none is on the rest's."""
    return lambda e: Drop() if side.get(e.sender, 0) != side.get(e.receiver, 0) else None


def _ring(places: Sequence[NodeId]) -> Rule:
    """Everybody reaches a bare majority, and no two the same (Jepsen's majorities ring)."""
    index = {place: position for position, place in enumerate(places)}
    size = len(places)
    reach = (size // 2 + 1) // 2

    def rule(envelope: Envelope) -> Verdict | None:
        distance = (index[envelope.sender] - index[envelope.receiver]) % size
        return Drop() if min(distance, size - distance) > reach else None

    return rule
