"""Drawn faults: what a seed makes of features, behaviours and changes of a set.

Law of the file: **every fault that is drawn is one that a manifest may hold**; so it can be printed,
kept, replayed, and left out.
"""

# ruff: noqa: D102 - one method for each feature of a swarm, named so

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, get_args

import msgspec

from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.faults import (
    AnyBehaviour,
    AnyFault,
    Bandwidth,
    Behave,
    Behaviour,
    ClockDrift,
    ClockJump,
    ClockOffset,
    Condition,
    Crash,
    Delay,
    DiskFull,
    Duplicate,
    FailedSync,
    Kind,
    Loss,
    LostSync,
    Partition,
    Pause,
    Reorder,
    SlowDisk,
    TornWrite,
    Wipe,
)
from gridtokenx.lab.sim.manifest import Chain, Change, Feature, Swarm
from gridtokenx.pbft.membership import MIN_MEMBERS

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CONDITIONS: Final[tuple[Condition, ...]] = ("view-change", "prepared", "catching-up")
_LARGEST_DRAWN: Final = 7
"""Sets are not drawn to grow beyond this."""
_TREASONS: Final[tuple[tuple[Behaviour, ...], ...]] = (
    ("equivocate", "equivocate", "conflicting-votes", "twin", "amnesia"),
    ("silent", "selective-silence", "delay", "censor"),
    ("stale-view-change", "malformed-view-change", "bogus-new-view", "hasty-view-change"),
    (
        "wrong-digest",
        "wrong-state-root",
        "time-liar",
        "forge-signature",
        "replay",
        "block-liar",
        "snapshot-liar",
        "withhold",
    ),
)
"""By what they are after: the decision, progress, the view, the block."""
_AMNESIA: Final = 0.15
"""In so many runs with disk faults one of the traitors is an honest replica on a lying disk."""


def draw_changes(
    chain: Chain, most: int, duration_ms: int, draw: random.Random
) -> tuple[tuple[Change, ...], list[tuple[int, ...]]]:
    """Changes that follow from each other, and the sets that there will be."""
    seats = tuple(range(chain.replicas))
    made, sets = list[Change](), [seats]
    for _ in range(draw.randint(min(1, most), most)):
        free = [node for node in range(chain.nodes) if node not in seats]
        kinds = ["replace"] if free else []
        kinds += ["add"] if free and len(seats) < _LARGEST_DRAWN else []
        kinds += ["remove"] if len(seats) > MIN_MEMBERS else []
        if not kinds:
            break
        at_ms = draw.choice((0, 0, draw.randrange(max(1, duration_ms // 2))))
        gone = draw.choice(seats)
        match draw.choice(kinds):
            case "add":
                made.append(Change(add=draw.choice(free), at_ms=at_ms))
                seats = (*seats, made[-1].nodes[0])
            case "remove":
                made.append(Change(remove=gone, at_ms=at_ms))
                seats = tuple(node for node in seats if node != gone)
            case _:
                made.append(Change(replace=gone, by=draw.choice(free), at_ms=at_ms))
                seats = tuple(made[-1].nodes[1] if node == gone else node for node in seats)
        sets.append(seats)
    return tuple(made), sets


class Schedule:
    """Draws faults for one run."""

    def __init__(
        self, draw: random.Random, replicas: int, duration_ms: int, traitors: Sequence[int]
    ) -> None:
        self._draw = draw
        self._replicas = replicas
        self._duration_ms = duration_ms
        self._traitors = list(traitors)
        self.honest = [i for i in range(replicas) if i not in traitors]
        self._forgetful: int | None = None

    def treason(self, swarm: Swarm) -> Iterator[AnyFault]:
        """What each traitor does: one or two things, from the start or later."""
        draw = self._draw
        for node in self._traitors:
            if self._forgetful is None and draw.random() < _AMNESIA:
                self._forgetful = node
                continue
            for behaviour in self._behaviours(swarm.behaviours):
                yield Behave(
                    node=node,
                    behaviour=behaviour,
                    at_ms=draw.choice((0, 0, self._time() // 2)),
                    share=draw.choice((1.0, 1.0, 0.3)),
                    victims=draw.choice(((), (), self._some())),
                )  # fmt: skip
        if self._forgetful is not None:
            yield from self._amnesia(self._forgetful)

    def _behaviours(self, allowed: Sequence[AnyBehaviour]) -> list[Behaviour]:
        """One or two, each kind of treason as often as every other."""
        groups: list[list[Behaviour]] = [[b for b in group if b in allowed] for group in _TREASONS]
        groups = [group for group in groups if group]
        chosen: list[Behaviour] = []
        if groups:
            chosen = [self._draw.choice(self._draw.choice(groups)) for _ in range(2)]
        most = self._draw.choice((1, 1, 2))
        return chosen[:1] if chosen[:1] == chosen[1:] else chosen[:most]

    def faults(self, features: Sequence[Feature], most: int) -> Iterator[AnyFault]:
        """A schedule."""
        for _ in range(self._draw.randint(min(1, most), most)):
            yield _DRAWN[self._draw.choice(features)](self)

    def _time(self) -> int:
        return self._draw.randrange(max(1, self._duration_ms))

    def _length(self) -> int:
        return self._draw.choice((100, 1_000, 3_000, 10_000, 20_000))

    def _some(self) -> tuple[int, ...]:
        count = self._draw.randint(1, max(1, self._replicas // 2))
        return tuple(sorted(self._draw.sample(range(self._replicas), count)))

    def _victims(self) -> tuple[int | str, ...]:
        """Honest replicas, or whoever leads: sometimes more than f of them at once."""
        draw = self._draw
        if draw.random() < 0.3:
            return (draw.choice(("leader", "next-leader")),)
        most = draw.choice((1, 1, max_faulty(self._replicas), len(self.honest)))
        count = draw.randint(1, max(1, min(most, len(self.honest))))
        return tuple(sorted(draw.sample(self.honest, count)))

    def _trigger(self) -> dict[str, int | str]:
        """When: mostly at a time, sometimes at a height, a view or a condition."""
        draw = self._draw
        length: dict[str, int | str] = {"for_ms": self._length()}
        chance = draw.random()
        if chance < 0.7:
            return {"at_ms": self._time(), **length}
        if chance < 0.8:
            return {"at_height": draw.randint(1, 30), **length}
        if chance < 0.9:
            return {"at_view": draw.randint(1, 4), **length}
        return {"when": draw.choice(CONDITIONS), "at_ms": self._time(), **length}

    def _scope(self) -> dict[str, tuple[int, ...] | tuple[Kind, ...]]:
        """Which links and messages: mostly all, sometimes some."""
        draw = self._draw
        scope: dict[str, tuple[int, ...] | tuple[Kind, ...]] = {}
        if draw.random() < 0.4:
            scope["senders"] = self._some()
        if draw.random() < 0.4:
            scope["receivers"] = self._some()
        if draw.random() < 0.5:
            scope["messages"] = tuple(sorted(draw.sample(KINDS, draw.randint(1, 2))))
        return scope

    def _amnesia(self, node: int) -> Iterator[AnyFault]:
        """A replica that forgets what it said, in good faith."""
        draw, at_ms = self._draw, self._time()
        match draw.randrange(3):
            case 0:
                yield LostSync(nodes=(node,), at_ms=at_ms, for_ms=10_000)
                yield Crash(nodes=(node,), at_ms=at_ms + draw.randint(1, 9_000), for_ms=500)
            case 1:
                yield TornWrite(nodes=(node,), at_ms=at_ms, for_ms=500)
            case _:
                yield Wipe(nodes=(node,), at_ms=at_ms, for_ms=500)

    def partition(self) -> AnyFault:
        draw = self._draw
        shape = draw.choice(("halves", "halves", "isolate", "ring", "one-way"))
        nodes = () if shape == "ring" else self._some()
        return _make(Partition, {"shape": shape, "nodes": nodes, **self._trigger()})

    def loss(self) -> AnyFault:
        share = self._draw.choice((0.1, 0.3, 0.5, 1.0))
        return _make(Loss, {"share": share, **self._scope(), **self._trigger()})

    def delay(self) -> AnyFault:
        delay_ms = self._draw.choice((50, 500, 3_000))
        options = {"delay_ms": delay_ms, "jitter_ms": self._draw.choice((0, 500))}
        return _make(Delay, {**options, **self._scope(), **self._trigger()})

    def clock(self) -> AnyFault:
        draw, where = self._draw, {"nodes": self._victims(), **self._trigger()}
        match draw.randrange(3):
            case 0:
                offset_ms = draw.choice((-6_000, -2_000, 2_000, 6_000))
                return _make(ClockOffset, {"offset_ms": offset_ms, **where})
            case 1:
                drift_ppm = draw.choice((-100_000, -1_000, 1_000, 100_000))
                return _make(ClockDrift, {"drift_ppm": drift_ppm, **where})
            case _:
                return _make(ClockJump, {"jump_ms": draw.choice((-10_000, -500, 500, 10_000)), **where})  # fmt: skip

    def disk(self) -> AnyFault:
        draw, where = self._draw, {"nodes": self._victims(), **self._trigger()}
        match draw.randrange(4):
            case 0:
                return _make(DiskFull, where)
            case 1:
                return _make(FailedSync, where)
            case _:
                return _make(SlowDisk, {"delay_ms": draw.choice((20, 200, 2_000)), **where})

    def on_nodes(self, type_: type[Crash] | type[Pause]) -> AnyFault:
        return _make(type_, {"nodes": self._victims(), **self._trigger()})

    def on_links(self, type_: type[Duplicate] | type[Reorder]) -> AnyFault:
        share = self._draw.choice((0.1, 0.5))
        return _make(type_, {"share": share, **self._scope(), **self._trigger()})

    def bandwidth(self) -> AnyFault:
        bytes_per_s = self._draw.choice((2_000, 20_000, 200_000))
        return _make(Bandwidth, {"bytes_per_s": bytes_per_s, **self._scope(), **self._trigger()})


_DRAWN: Final[dict[Feature, Callable[[Schedule], AnyFault]]] = {
    "crash": lambda s: s.on_nodes(Crash),
    "pause": lambda s: s.on_nodes(Pause),
    "partition": Schedule.partition,
    "delay": Schedule.delay,
    "loss": Schedule.loss,
    "duplicate": lambda s: s.on_links(Duplicate),
    "reorder": lambda s: s.on_links(Reorder),
    "bandwidth": Schedule.bandwidth,
    "clock": Schedule.clock,
    "disk": Schedule.disk,
}


def _make(type_: type[AnyFault], options: object) -> AnyFault:
    """A fault from drawn options, checked like one from a manifest."""
    return msgspec.convert(options, type_)
