"""What a seed decides of a whole network: faults of its processes, traitors, changes of a set.

Law of the file: **no set has more traitors than it tolerates, and one relayer at least is honest**, unless
the swarm asks for more (`byzantine`): then the run says what that voids.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from gridtokenx.core.quorum import max_faulty
from gridtokenx.lab.faults import AnyBehaviour, AnyFault, Behave
from gridtokenx.lab.manifest import Manifest as Network
from gridtokenx.lab.sim.manifest import Chain, Change, Feature, Manifest, Swarm
from gridtokenx.lab.sim.schedule import Schedule, draw_changes
from gridtokenx.lab.sim.testnet.naming import CHAINS, behaviours_of, names, node_names

_GOVERNED: Final = ("consortium", "oracle")
_TREASON: Final = 0.6
"""In so many runs each chain that may have traitors has one."""
_LYING_RELAYER: Final = 0.3
_MEDDLING_DEVICES: Final = 0.2
_MEDDLE_MS: Final = 20_000
"""Devices are trusted for liveness: theirs is over before everybody must go on."""
_GROWING: Final = 0.5
"""In so many of the runs that may, a set changes."""


def draw_network(
    manifest: Manifest, network: Network, swarm: Swarm, draw: random.Random
) -> Manifest:
    """The one run of a seed."""
    usable: list[Feature] = [each for each in swarm.features if each != "members"]
    features: list[Feature] = [each for each in usable if draw.random() < 0.5] or usable[:1]
    changes: tuple[Change, ...] = manifest.change
    chain, sets = manifest.chain, {name: _seats(network, name) for name in CHAINS}
    if "members" in swarm.features and swarm.changes and draw.random() < _GROWING:
        governed = draw.choice(_GOVERNED)
        chain = msgspec.structs.replace(chain, observers=max(1, chain.observers))
        drawn, sets[governed] = _changes(manifest, network, chain, governed, draw)
        changes = (*changes, *drawn)
    processes = names(network, chain.observers)
    schedule = Schedule(draw, len(processes), manifest.safety.duration_ms, ())
    treason = list(_treason(swarm, processes, sets, manifest.safety.duration_ms, draw))
    faults = tuple(schedule.faults(features, swarm.faults)) if features else ()
    return msgspec.structs.replace(
        manifest, chain=chain, change=changes, fault=(*manifest.fault, *treason, *faults)
    )


def _seats(network: Network, chain: str) -> list[list[str]]:
    """Its only set, by name."""
    return [node_names(network, chain)]


def _changes(
    manifest: Manifest, network: Network, chain: Chain, governed: str, draw: random.Random
) -> tuple[list[Change], list[list[str]]]:
    """Changes of one chain, and its sets by name."""
    assert manifest.swarm is not None, "it is drawn from one"
    own = node_names(network, governed, chain.observers)
    sized = Chain(replicas=len(own) - chain.observers, observers=chain.observers)
    duration_ms = manifest.safety.duration_ms
    drawn, sets = draw_changes(sized, manifest.swarm.changes, duration_ms, draw)
    processes = names(network, chain.observers)
    place = {index: processes.index(name) for index, name in enumerate(own)}

    def named(change: Change) -> Change:
        keys = ("add", "remove", "replace", "by")
        given = ((key, getattr(change, key)) for key in keys)
        return msgspec.structs.replace(
            change, **{key: place[node] for key, node in given if node is not None}
        )

    return [named(each) for each in drawn], [[own[index] for index in seats] for seats in sets]


def _treason(
    swarm: Swarm,
    processes: Sequence[str],
    sets: dict[str, list[list[str]]],
    duration_ms: int,
    draw: random.Random,
) -> Iterator[AnyFault]:
    for chain in CHAINS:
        for name in _traitors(swarm, sets[chain], draw):
            yield from _deeds(swarm, name, processes, draw, duration_ms)
    relayers = [name for name in processes if name.startswith("relayer-")]
    if len(relayers) > 1 and draw.random() < _LYING_RELAYER:
        yield from _deeds(swarm, draw.choice(relayers), processes, draw, duration_ms)
    if draw.random() < _MEDDLING_DEVICES:
        for deed in _deeds(swarm, "devices", processes, draw, duration_ms):
            yield msgspec.structs.replace(deed, for_ms=_MEDDLE_MS, share=0.3)


def _traitors(swarm: Swarm, sets: list[list[str]], draw: random.Random) -> list[str]:
    """Who they are on one chain."""
    tolerated = max_faulty(len(sets[0]))
    most = tolerated if swarm.byzantine < 0 else min(len(sets[0]), swarm.byzantine)
    least = min(most, max(swarm.least_byzantine, 1 if draw.random() < _TREASON else 0))
    count, chosen = draw.randint(least, most), list[str]()
    everybody = list(dict.fromkeys(name for seats in sets for name in seats))
    for name in draw.sample(everybody, len(everybody)):
        within = all(
            sum(each in seats for each in (*chosen, name)) <= max_faulty(len(seats))
            for seats in sets
        )
        if len(chosen) < count and (within or swarm.byzantine > tolerated):
            chosen.append(name)
    return chosen


def _deeds(
    swarm: Swarm,
    name: str,
    processes: Sequence[str],
    draw: random.Random,
    duration_ms: int,
) -> Iterator[Behave]:
    """One or two things that a traitor does, from the start or later."""
    allowed: list[AnyBehaviour] = [x for x in swarm.behaviours if x in behaviours_of(name)]
    count = min(len(allowed), draw.choice((1, 1, 2)))
    for behaviour in draw.sample(allowed, count):
        yield Behave(
            node=processes.index(name),
            behaviour=behaviour,
            at_ms=draw.choice((0, 0, draw.randrange(max(1, duration_ms // 2)))),
            share=draw.choice((1.0, 1.0, 0.3)),
        )
