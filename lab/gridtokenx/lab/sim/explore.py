"""Small scope, exhaustively: every way to cut a chain with a twin, in each of its first views.

Theory: Bano et al., "Twins: BFT Systems Made Robust" (OPODIS 2021). A replica that runs twice with one
key can equivocate, vote twice and forget in every way that partitions allow; so all partitions of a few
views, with a twin of each replica in turn (leader of the first view, of the second, of neither), cover
what a drawn schedule may miss. Here a partition may also begin with any phase of the first view.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.faults import Behave, ViewPartition
from gridtokenx.lab.sim.manifest import (
    LONGEST_NAME,
    Chain,
    Liveness,
    Manifest,
    Safety,
    Workload,
)
from gridtokenx.lab.sim.outcome import Outcome

Sides = tuple[tuple[int, ...], ...]
PHASES: Final = (0, 1, 2)
_NAME: Final = LONGEST_NAME - 12
"""Of a name, so much: the number of a run comes behind it."""
SCOPE: Final = Manifest(
    name="explore",
    chain=Chain(replicas=4),
    workload=Workload(transactions_per_s=1, clients=1),
    safety=Safety(duration_ms=14_000),
    liveness=Liveness(bound_ms=60_000, blocks=2),
)
"""What is explored if no manifest says otherwise: long enough for two views to fail."""


def partitions(nodes: Sequence[int], most: int) -> Iterator[Sides]:
    """Every way to put nodes into at most so many sides, each once, the undivided one first."""
    for labels in _growth(len(nodes), most):
        count = max(labels, default=0) + 1
        yield tuple(
            tuple(node for node, label in zip(nodes, labels, strict=True) if label == side)
            for side in range(count)
        )


def _growth(length: int, most: int) -> Iterator[tuple[int, ...]]:
    """Restricted growth strings: a canonical labelling of every partition."""
    if length == 0:
        yield ()
        return
    for shorter in _growth(length - 1, most):
        for label in range(min(most, max(shorter, default=-1) + 2)):
            yield (*shorter, label)


def scenarios(base: Manifest, views: int, sides: int) -> Iterator[Manifest]:
    """All runs of the scope, resolved.

    Args:
        base: its chain, workload and phases are kept; it has no faults of its own.
        views: how many first views are cut.
        sides: the most sides of a cut.
    """
    replicas = base.chain.replicas
    cuts = list(partitions(range(replicas + 1), sides))
    number = 0
    for twin, phase in product(range(replicas), PHASES):
        for chosen in product(cuts, repeat=views):
            if phase and len(chosen[0]) == 1:
                continue
            number += 1
            yield msgspec.structs.replace(
                base,
                name=f"{base.name[:_NAME]}-{number}",
                seed=base.seed or 0,
                fault=(Behave(node=twin, behaviour="twin"), *_faults(chosen, phase)),
            )


def number_of(run: Manifest | Outcome) -> int:
    """Which run of its exploration it is, from 1: all have one seed, and names of their own."""
    return int(run.name.rpartition("-")[2])


def scope(base: Manifest) -> Manifest:
    """A manifest as the base of an exploration.

    Raises:
        LocalFault: it has faults, or draws some, or is a network.
    """
    if base.testnet is not None:
        raise LocalFault(f"manifest {base.name}: exploring is of one chain, and this is a network")
    drawn = base.swarm is not None or base.byzzfuzz is not None
    if base.fault or base.change or base.chain.observers or drawn:
        raise LocalFault(
            f"manifest {base.name}: exploring goes through all faults of its scope; leave out"
            " [[fault]], [[change]], observers, [swarm] and [byzzfuzz]"
        )
    return base


def count(base: Manifest, views: int, sides: int) -> int:
    """How many runs that are."""
    cuts = sum(1 for _ in partitions(range(base.chain.replicas + 1), sides))
    whole: int = cuts**views
    return int(base.chain.replicas * (whole + (len(PHASES) - 1) * (whole - cuts ** (views - 1))))


def _faults(chosen: Sequence[Sides], phase: int) -> Iterator[ViewPartition]:
    for view, sides in enumerate(chosen):
        if len(sides) > 1:
            yield ViewPartition(view=view, sides=sides, phase=0 if view else phase)
