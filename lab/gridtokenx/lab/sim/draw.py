"""What a seed decides: a manifest with open ends becomes one without.

Law of the file: **everything that is drawn before a run is in the resolved manifest.** So it can be
printed first, kept, replayed, and made smaller.

Swarm testing (Groce et al., ISSTA 2012): a run that may do everything at once rarely does anything for
long; leaving out a drawn half of the features makes the others meet. ByzzFuzz (Winter et al., OOPSLA
2023): few faults, tied to rounds of the protocol instead of times, and changes of small scope.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, get_args

import msgspec

from gridtokenx.core.quorum import max_faulty, quorum
from gridtokenx.lab.faults import (
    AnyBehaviour,
    AnyFault,
    Bandwidth,
    Behave,
    Behaviour,
    BitFlip,
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
    Mutation,
    Partition,
    Pause,
    Reorder,
    RoundMutation,
    RoundPartition,
    SlowDisk,
    TornWrite,
    Wipe,
    byzantine,
    damaged,
)
from gridtokenx.lab.sim.manifest import (
    Byzzfuzz,
    Chain,
    Change,
    Feature,
    Links,
    Liveness,
    Manifest,
    Swarm,
)
from gridtokenx.lab.sim.plots import Plotter
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.testnet.naming import names
from gridtokenx.pbft.membership import MIN_MEMBERS

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CONDITIONS: Final[tuple[Condition, ...]] = ("view-change", "prepared", "catching-up")
SMALL: Final[tuple[Mutation, ...]] = (
    "drop", "view-up", "view-down", "height-up", "height-down", "earlier-digest", "earlier-message",
)  # fmt: skip
ANY: Final[tuple[Mutation, ...]] = ("drop", "earlier-message", "any-digest", "any-view")
_DAMAGE: Final = 0.2
_LEAST_CORE: Final = 0.2
_FIRST_LEADER: Final = 0.4
"""So often a traitor leads the first view."""
_TREASON: Final = 0.6
"""In so many runs somebody is a traitor for sure, if anybody may be."""
_ROTATING: Final = 0.25
_HANDING_OUT: Final = 0.25
_SLOW: Final = 0.3
_SHORT_MS: Final = 1_000
"""A network slower than longer timeouts than that takes minutes for a view change."""
_SMALL: Final = 10
"""Messages grow with the square: a larger chain's first phase is a third as long."""
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
    ),
)
"""By what they are after: the decision, progress, the view, the block."""
_VIEW_LIES: Final = ("stale-view-change", "malformed-view-change", "bogus-new-view")
_AMNESIA: Final = 0.15
"""In so many runs with disk faults one of the traitors is an honest replica on a lying disk."""


def resolve(manifest: Manifest, seed: int) -> Manifest:
    """The one run of this seed. A manifest that is resolved already is returned as it is."""
    if manifest.seed is not None:
        return manifest
    draw = stream(seed, "manifest")
    if manifest.testnet is not None and manifest.swarm is not None:
        manifest = _network(manifest, manifest.swarm, names(manifest.testnet), draw)
    elif manifest.swarm is not None:
        manifest = _some_damage(_swarm(manifest, manifest.swarm, draw), manifest.swarm, draw)
    elif manifest.byzzfuzz is not None:
        manifest = _byzzfuzz(manifest, manifest.byzzfuzz, draw)
    manifest = _choose_core(manifest, draw)
    return msgspec.structs.replace(manifest, seed=seed, swarm=None, byzzfuzz=None)


def _network(
    manifest: Manifest, swarm: Swarm, processes: Sequence[str], draw: random.Random
) -> Manifest:
    """Faults of a whole network: of any process, and no treason among its nodes."""
    usable: list[Feature] = [each for each in swarm.features if each != "members"]
    features: list[Feature] = [each for each in usable if draw.random() < 0.5] or usable[:1]
    schedule = _Schedule(draw, len(processes), manifest.safety.duration_ms, ())
    faults = schedule.faults(features, swarm.faults) if features else ()
    return msgspec.structs.replace(manifest, fault=(*manifest.fault, *faults))


def _choose_core(manifest: Manifest, draw: random.Random) -> Manifest:
    """Of core `quorum`: who it is."""
    phase = manifest.liveness
    if phase.core != "quorum" or phase.members:
        return manifest
    lost = {*byzantine(manifest.fault), *damaged(manifest.fault)}
    honest = [i for i in range(manifest.chain.replicas) if i not in lost]
    size = min(len(honest), quorum(manifest.chain.replicas))
    members = tuple(sorted(draw.sample(honest, size)))
    return msgspec.structs.replace(
        manifest, liveness=msgspec.structs.replace(phase, members=members)
    )


# -- swarm -----------------------------------------------------------------------------------------


def _swarm(manifest: Manifest, swarm: Swarm, draw: random.Random) -> Manifest:
    timeout_ms, duration_ms = draw.choice(swarm.view_timeout_ms), manifest.safety.duration_ms
    features: list[Feature] = [each for each in swarm.features if draw.random() < 0.5]
    features = features or [draw.choice(swarm.features)]
    chain = msgspec.structs.replace(
        manifest.chain,
        replicas=draw.choice(swarm.replicas),
        observers=draw.randint(1, 3) if "members" in features else manifest.chain.observers,
        block_time_ms=draw.choice(swarm.block_time_ms),
        window=draw.choice(swarm.window),
        view_timeout_ms=timeout_ms,
        request_timeout_ms=timeout_ms,
        **_habits(draw),
    )
    changes, sets = manifest.change, [tuple(range(chain.replicas))]
    if "members" in features:
        features.remove("members")
        changes, sets = _changes(chain, swarm.changes, duration_ms, draw)
    traitors = _traitors(swarm, chain, sets, draw)
    if chain.replicas > _SMALL:
        safety = msgspec.structs.replace(manifest.safety, duration_ms=duration_ms // 3)
        manifest, duration_ms = msgspec.structs.replace(manifest, safety=safety), duration_ms // 3
    drawer = _Schedule(draw, chain.nodes, duration_ms, traitors)
    most = draw.choice((min(2, swarm.faults), swarm.faults // 2, swarm.faults))
    faults = [*drawer.treason(swarm), *(drawer.faults(features, most) if features else ())]
    lies = any(isinstance(each, Behave) and each.behaviour in _VIEW_LIES for each in faults)
    plotter = Plotter(draw, drawer.honest, duration_ms, chain.block_time_ms, timeout_ms, lies=lies)
    for _ in range(draw.randint(min(1, swarm.plots) if lies else 0, swarm.plots)):
        faults.extend(plotter.plot(members=bool(changes)))
    return msgspec.structs.replace(
        manifest,
        chain=chain,
        network=_links(draw),
        liveness=_second_phase(manifest.liveness, timeout_ms, draw),
        change=changes,
        fault=(*manifest.fault, *faults),
    )


def _habits(draw: random.Random) -> dict[str, int]:
    """Now and then leaders rotate, and replicas hand out states instead of blocks."""
    habits: dict[str, int] = {}
    if draw.random() < _ROTATING:
        habits["rotation_blocks"] = draw.choice((1, 3, 10))
    if draw.random() < _HANDING_OUT:
        habits["checkpoint_blocks"] = draw.choice((1, 4))
        habits["snapshot_distance"] = draw.choice((4, 12))
        habits["part_bytes"] = draw.choice((256, 4_096))
    return habits


def _changes(
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


def _traitors(
    swarm: Swarm, chain: Chain, sets: Sequence[Sequence[int]], draw: random.Random
) -> list[int]:
    """Who they are: no set has more than it tolerates, unless more are asked for."""
    count = _count(swarm, chain.replicas, draw)
    nodes = draw.sample(range(chain.nodes), chain.nodes)
    if draw.random() < _FIRST_LEADER:
        nodes.sort(key=bool)
    chosen: list[int] = []
    for node in nodes:
        within = all(
            sum(each in members for each in (*chosen, node)) <= max_faulty(len(members))
            for members in sets
        )
        if len(chosen) < count and (within or 0 <= max_faulty(chain.replicas) < swarm.byzantine):
            chosen.append(node)
    return chosen


def _count(swarm: Swarm, replicas: int, draw: random.Random) -> int:
    """How many traitors."""
    most = max_faulty(replicas) if swarm.byzantine < 0 else min(replicas, swarm.byzantine)
    least = min(max(swarm.least_byzantine, 1 if draw.random() < _TREASON else 0), most)
    return draw.randint(least, most)


def _second_phase(phase: Liveness, timeout_ms: int, draw: random.Random) -> Liveness:
    """Sometimes delays are bounded by more than the first timeouts: these must grow."""
    if draw.random() >= _SLOW or timeout_ms > _SHORT_MS:
        return phase
    least_ms = draw.choice((timeout_ms // 2, timeout_ms * 3 // 2))
    return msgspec.structs.replace(
        phase, least_delay_ms=least_ms, delay_ms=least_ms + timeout_ms // 4
    )


def _links(draw: random.Random) -> Links:
    return Links(
        spread=draw.choice(("uniform", "exponential", "heavy")),
        delay_ms=draw.choice((5, 20, 50, 200)),
        loss=draw.choice((0.0, 0.0, 0.02, 0.1)),
        duplicate=draw.choice((0.0, 0.0, 0.1)),
        reorder=draw.choice((0.0, 0.0, 0.3)),
        disk_ms=draw.choice((2, 2, 20)),
    )


def _some_damage(manifest: Manifest, swarm: Swarm, draw: random.Random) -> Manifest:
    """Sometimes a disk is damaged, and its replica gone; sometimes only a quorum is healed."""
    replace, chain = msgspec.structs.replace, manifest.chain
    if manifest.change:
        return manifest
    traitors = byzantine(manifest.fault)
    spare = chain.replicas - len(traitors) - quorum(chain.replicas)
    if "disk" in swarm.features and spare > 0 and draw.random() < _DAMAGE:
        honest = [i for i in range(chain.replicas) if i not in traitors]
        node, at_ms = draw.choice(honest), draw.randrange(max(1, manifest.safety.duration_ms))
        flip = BitFlip(nodes=(node,), at_ms=at_ms)
        crash = Crash(nodes=(node,), at_ms=at_ms, for_ms=1_000)
        manifest = replace(manifest, fault=(*manifest.fault, crash, flip))
    if draw.random() < _LEAST_CORE:
        manifest = replace(manifest, liveness=replace(manifest.liveness, core="quorum"))
    return manifest


class _Schedule:
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


_DRAWN: Final[dict[Feature, Callable[[_Schedule], AnyFault]]] = {
    "crash": lambda s: s.on_nodes(Crash),
    "pause": lambda s: s.on_nodes(Pause),
    "partition": _Schedule.partition,
    "delay": _Schedule.delay,
    "loss": _Schedule.loss,
    "duplicate": lambda s: s.on_links(Duplicate),
    "reorder": lambda s: s.on_links(Reorder),
    "bandwidth": _Schedule.bandwidth,
    "clock": _Schedule.clock,
    "disk": _Schedule.disk,
}


def _make(type_: type[AnyFault], options: object) -> AnyFault:
    """A fault from drawn options, checked like one from a manifest."""
    return msgspec.convert(options, type_)


# -- ByzzFuzz --------------------------------------------------------------------------------------


def _byzzfuzz(manifest: Manifest, fuzz: Byzzfuzz, draw: random.Random) -> Manifest:
    replicas = manifest.chain.replicas
    traitors = draw.sample(range(replicas), max_faulty(replicas))
    mutations = SMALL if fuzz.scope == "small" else ANY
    faults: list[AnyFault] = []
    for _ in range(fuzz.process_faults if traitors else 0):
        node = draw.choice(traitors)
        others = [i for i in range(replicas) if i != node]
        victims = tuple(sorted(draw.sample(others, draw.randint(1, len(others)))))
        faults.append(
            RoundMutation(
                node=node,
                round=draw.randrange(fuzz.rounds),
                mutation=draw.choice(mutations),
                victims=victims,
            )
        )
    faults.extend(
        RoundPartition(round=draw.randrange(fuzz.rounds), sides=_sides(replicas, draw))
        for _ in range(fuzz.network_faults)
    )
    return msgspec.structs.replace(manifest, fault=(*manifest.fault, *faults))


def _sides(replicas: int, draw: random.Random) -> tuple[tuple[int, ...], ...]:
    """A drawn partition into two or more sides."""
    count = draw.randint(2, max(2, min(3, replicas)))
    sides: list[list[int]] = [[] for _ in range(count)]
    for index in range(replicas):
        sides[draw.randrange(count)].append(index)
    return tuple(tuple(side) for side in sides if side)
