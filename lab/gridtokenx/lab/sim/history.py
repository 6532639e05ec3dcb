"""What happened in a run, in numbers that can be drawn: faults, blocks, views, sets.

Law of the file: **a history is observed, never decided**: a run with one goes exactly as without.
"""

import msgspec

from gridtokenx.lab.faults import Behave, Fault, OnLinks, OnNodes, Partition, RoundMutation, kind_of


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A fault at work."""

    number: int
    """In the manifest, from 1."""
    kind: str
    about: str
    """Who and what, in a few words."""
    starts_ms: int
    ends_ms: int | None
    """None: it lasted to the end."""


class BlockPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A block, at the moment when an honest replica committed it first."""

    at_ms: int
    height: int
    transactions: int
    latency_ms: int
    """The median of its transactions, from their first sending; -1 if it is empty."""


class ViewPoint(msgspec.Struct, frozen=True, kw_only=True):
    """An honest replica is further than any before."""

    at_ms: int
    set_id: int
    view: int
    """Attempts since the set, or the leader's period, began."""
    members: tuple[int, ...]
    """Nodes of the set, by index."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    bands: tuple[Band, ...]
    blocks: tuple[BlockPoint, ...]
    views: tuple[ViewPoint, ...]
    healed_ms: int
    """When the second phase began; -1: there was none."""
    ended_ms: int


def about(fault: Fault) -> str:
    """Who and what of a fault, in a few words."""
    match fault:
        case Behave(node=node, behaviour=behaviour):
            return f"{behaviour} by {node}"
        case RoundMutation(node=node, mutation=mutation):
            return f"{mutation} by {node}"
        case Partition(shape=shape, nodes=nodes, sides=sides):
            named = sides or nodes
            return f"partition {shape} {_names(named)}".rstrip()
        case OnNodes(nodes=nodes):
            return f"{kind_of(fault)} {_names(nodes)}"
        case OnLinks(messages=messages):
            return f"{kind_of(fault)} {' '.join(messages)}".rstrip()
        case _:
            return kind_of(fault)


def _names(named: tuple[object, ...]) -> str:
    return " ".join(
        "|".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in named
    )
