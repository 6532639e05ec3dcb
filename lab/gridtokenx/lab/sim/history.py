"""What happened in a run, in numbers that can be drawn: faults, blocks, views, sets.

Law of the file: **a history is observed, never decided**: a run with one goes exactly as without.
"""

from collections.abc import Sequence

import msgspec

from gridtokenx.lab.faults import (
    Behave,
    Fault,
    OnLinks,
    OnNodes,
    Partition,
    RoundMutation,
    Where,
    kind_of,
)


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
    """The median of its transactions, from their first sending; -1 if it is empty or nobody knows."""
    chain: str = ""
    """Which one, of a network."""


class PacketPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A packet between chains, at the moment when its sender knew how it ended."""

    at_ms: int
    latency_ms: int
    """From its leaving."""
    end: str
    """`acknowledged` or `timed out`."""
    route: str
    """From which chain to which."""


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
    packets: tuple[PacketPoint, ...] = ()
    """Of a network."""
    healed_ms: int
    """When the second phase began; -1: there was none."""
    ended_ms: int


def about(fault: Fault, names: Sequence[str] = ()) -> str:
    """Who and what of a fault, in a few words.

    Args:
        fault: what goes wrong.
        names: of nodes, by index; without them they are named by index.
    """

    def name(node: Where) -> str:
        return names[node] if isinstance(node, int) and node < len(names) else str(node)

    match fault:
        case Behave(node=node, behaviour=behaviour):
            return f"{behaviour} by {name(node)}"
        case RoundMutation(node=node, mutation=mutation):
            return f"{mutation} by {name(node)}"
        case Partition(shape=shape, nodes=nodes, sides=sides):
            named = ["|".join(map(name, side)) for side in sides] or [*map(name, nodes)]
            return f"partition {shape} {' '.join(named)}".rstrip()
        case OnNodes(nodes=nodes):
            return f"{kind_of(fault)} {' '.join(map(name, nodes))}"
        case OnLinks(messages=messages):
            return f"{kind_of(fault)} {' '.join(messages)}".rstrip()
        case _:
            return kind_of(fault)
