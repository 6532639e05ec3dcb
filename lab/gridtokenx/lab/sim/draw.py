"""What a seed decides: a manifest with open ends becomes one without.

Law of the file: **everything that is drawn before a run is in the resolved manifest.** So it can be
printed first, kept, replayed, and made smaller.

Swarm testing (Groce et al., ISSTA 2012): a run that may do everything at once rarely does anything for
long; leaving out a drawn half of the features makes the others meet. ByzzFuzz (Winter et al., OOPSLA
2023): few faults, tied to rounds of the protocol instead of times, and changes of small scope.
"""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from gridtokenx.core.quorum import max_faulty, quorum
from gridtokenx.lab.faults import (
    AnyFault,
    Behave,
    BitFlip,
    Crash,
    Mutation,
    RoundMutation,
    RoundPartition,
    byzantine,
    damaged,
)
from gridtokenx.lab.sim.manifest import (
    Byzzfuzz,
    Chain,
    Feature,
    Links,
    Liveness,
    Manifest,
    Swarm,
)
from gridtokenx.lab.sim.plots import Plotter
from gridtokenx.lab.sim.schedule import Schedule, draw_changes
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.testnet.draw import draw_network

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
_VIEW_LIES: Final = ("stale-view-change", "malformed-view-change", "bogus-new-view")


def resolve(manifest: Manifest, seed: int) -> Manifest:
    """The one run of this seed. A manifest that is resolved already is returned as it is."""
    if manifest.seed is not None:
        return manifest
    draw = stream(seed, "manifest")
    if manifest.testnet is not None and manifest.swarm is not None:
        manifest = draw_network(manifest, manifest.testnet, manifest.swarm, draw)
    elif manifest.swarm is not None:
        manifest = _some_damage(_swarm(manifest, manifest.swarm, draw), manifest.swarm, draw)
    elif manifest.byzzfuzz is not None:
        manifest = _byzzfuzz(manifest, manifest.byzzfuzz, draw)
    manifest = _choose_core(manifest, draw)
    return msgspec.structs.replace(manifest, seed=seed, swarm=None, byzzfuzz=None)


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
        changes, sets = draw_changes(chain, swarm.changes, duration_ms, draw)
    traitors = _traitors(swarm, chain, sets, draw)
    if chain.replicas > _SMALL:
        safety = msgspec.structs.replace(manifest.safety, duration_ms=duration_ms // 3)
        manifest, duration_ms = msgspec.structs.replace(manifest, safety=safety), duration_ms // 3
    drawer = Schedule(draw, chain.nodes, duration_ms, traitors)
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
