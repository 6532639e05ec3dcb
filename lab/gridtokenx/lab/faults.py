"""The vocabulary of faults: one list for manifests, the simulator and real processes.

Law of the file: **a fault is data.** It says what goes wrong, where, from when and for how long; who
carries it out (the simulator's rules, a supervisor's signals) reads it and adds nothing.

==================  ============================================================  ============
kind                what goes wrong                                               counts as
==================  ============================================================  ============
crash               killed, all unsynced batches lost but a prefix; starts again  down
pause               stopped without ending (SIGSTOP); what arrives waits          down
wipe                killed, started again on an empty disk                        Byzantine
partition           halves, isolate, ring, one-way, or sides by name              network
delay               messages take longer                                          network
loss                a share of messages never arrives                             network
duplicate           a share of messages arrives twice                             network
reorder             a share of messages is overtaken by later ones                network
bandwidth           a link carries only so many bytes per second                  network
round-partition     sides cut for the messages of one round (ByzzFuzz)            network
view-partition      sides cut for the messages of one view (Twins)                network
clock-offset        a clock is wrong by so much                                   clock
clock-drift         a clock runs too fast or too slow                             clock
clock-jump          a clock is set forward or back once                           clock
disk-full           nothing can be written: the process ends                      down
failed-sync         a sync fails: the process ends and never retries              down
slow-disk           batches take longer to be durable                             disk
lost-sync           the disk confirms what it does not keep                       Byzantine
torn-write          a crash leaves a part of a batch                              Byzantine
bit-flip            a stored record is damaged: its checksum ends the process     down
behave              a node breaks the protocol, a relayer lies (`AnyBehaviour`)   Byzantine
round-mutation      a replica's messages of one round are changed (ByzzFuzz)      Byzantine
==================  ============================================================  ============

"Byzantine" is counted against f. A replica whose disk forgets what it confirmed is Byzantine too: it
may contradict what it said, in good faith. "down" costs liveness only.

A fault starts at the first moment at which its one trigger holds, and lasts `for_ms` (0: until the
network heals). Faults stack: every message is shown to all active rules in the order of the manifest,
and the first verdict wins.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**53)]
Millis = Annotated[int, Meta(ge=0, le=86_400_000)]
SignedMillis = Annotated[int, Meta(ge=-86_400_000, le=86_400_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Index = Annotated[int, Meta(ge=0, le=999)]
Where = Index | Literal["leader", "next-leader"]
"""A node by its index, or by its role at the moment when the fault starts."""
Condition = Literal["", "view-change", "prepared", "catching-up", "handover"]
"""`view-change`: an honest replica has left its view. `prepared`: one knows a prepared block that is
not committed. `catching-up`: one has started anew and is behind. `handover`: the replica set has changed,
and one does not know it yet."""

Kind = Literal[
    "PrePrepare", "Prepare", "Commit", "Suspect", "ViewChange", "NewView", "Status", "FetchBlocks",
    "CertifiedBlocks", "FetchBody", "Body", "Transactions", "FetchSnapshot", "Snapshot", "FetchPart",
    "Part",
]  # fmt: skip
"""Messages by the names of `pbft/messages.py`."""

Behaviour = Literal[
    "silent", "selective-silence", "delay", "equivocate", "conflicting-votes", "forge-signature",
    "wrong-digest", "wrong-state-root", "time-liar", "censor", "replay", "hasty-view-change",
    "stale-view-change", "malformed-view-change", "bogus-new-view", "block-liar", "snapshot-liar",
    "withhold", "amnesia", "twin", "flood",
]  # fmt: skip
"""What a Byzantine replica does; one sentence on each in `sim/pbft/behaviours.py`."""
BEHAVIOURS: Final[tuple[str, ...]] = get_args(Behaviour)
OfOracles = Literal[
    "false-price", "withheld-data", "late-data", "false-reading", "false-watermark",
]  # fmt: skip
"""What an oracle of a whole network does to data beside; see `sim/testnet/oracles.py`."""
OfRelayers = Literal["false-proof", "old-header"]
"""What a relayer does beside; see `sim/testnet/relayers.py`."""
AnyBehaviour = Literal[Behaviour, OfOracles, OfRelayers]
DRAWN: Final[tuple[AnyBehaviour, ...]] = tuple(
    each for each in get_args(AnyBehaviour) if each != "flood"
)
"""What a swarm draws from. A flood costs its victims processor time, which virtual time has plenty of."""
Mutation = Literal[
    "drop", "view-up", "view-down", "height-up", "height-down", "earlier-digest", "earlier-message",
    "any-digest", "any-view",
]  # fmt: skip
"""Small-scope changes are those by one, or to something seen before; `any-` ones are arbitrary."""


class Fault(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"
):
    """Base of all faults: when it starts and ends."""

    at_ms: Millis = 0
    """Trigger: so long after the start of the run."""
    at_height: Count = 0
    """Trigger, if not 0: an honest replica has committed this height."""
    at_view: Count = 0
    """Trigger, if not 0: an honest replica is in this view or beyond."""
    when: Condition = ""
    """Trigger, if not empty: this holds for an honest replica (not before `at_ms`)."""
    for_ms: Millis = 0
    """How long it lasts; 0: until the network heals."""


class OnNodes(Fault, frozen=True):
    """Base of faults of nodes."""

    nodes: Annotated[tuple[Where, ...], Meta(min_length=1, max_length=128)]


class OnLinks(Fault, frozen=True):
    """Base of faults of links: of all, unless senders, receivers or messages narrow it."""

    senders: tuple[Where, ...] = ()
    receivers: tuple[Where, ...] = ()
    messages: tuple[Kind, ...] = ()


# -- processes -------------------------------------------------------------------------------------


class Crash(OnNodes, frozen=True, tag="crash"):
    """Kill nodes; they start again when the fault ends."""


class Pause(OnNodes, frozen=True, tag="pause"):
    """Stop nodes without ending them."""


class Wipe(OnNodes, frozen=True, tag="wipe"):
    """Kill nodes and start them on empty disks: they forget their votes."""


# -- network ---------------------------------------------------------------------------------------


class Partition(Fault, frozen=True, tag="partition"):
    """Cut links between nodes."""

    shape: Literal["halves", "isolate", "ring", "one-way", "sides"] = "halves"
    """`halves`: the nodes named, and the rest. `isolate`: each node named is alone. `ring`: each node
    hears its neighbours only (of a majority at most). `one-way`: the nodes named are heard by nobody, but
    hear. `sides`: as listed; who is in none is alone."""
    nodes: tuple[Where, ...] = ()
    """For `halves` the one half (a drawn one if empty); for `isolate` and `one-way` who is cut off."""
    sides: tuple[tuple[Index, ...], ...] = ()


class Delay(OnLinks, frozen=True, tag="delay"):
    """Messages take so much longer, and up to `jitter_ms` more."""

    delay_ms: Millis = 0
    jitter_ms: Millis = 0


class Loss(OnLinks, frozen=True, tag="loss"):
    """A share of messages is lost."""

    share: Share = 1.0


class Duplicate(OnLinks, frozen=True, tag="duplicate"):
    """A share of messages arrives once more, within `within_ms`."""

    share: Share = 0.1
    within_ms: Millis = 1_000


class Reorder(OnLinks, frozen=True, tag="reorder"):
    """A share of messages is late by up to `within_ms`: later ones overtake it."""

    share: Share = 0.1
    within_ms: Millis = 1_000


class Bandwidth(OnLinks, frozen=True, tag="bandwidth"):
    """Each link carries so many bytes a second; messages queue."""

    bytes_per_s: Annotated[int, Meta(ge=1, le=10**12)] = 100_000


class RoundPartition(Fault, frozen=True, tag="round-partition"):
    """Messages of one round do not pass between sides (ByzzFuzz's network fault)."""

    round: Count
    sides: tuple[tuple[Index, ...], ...]


class ViewPartition(Fault, frozen=True, tag="view-partition"):
    """Messages of one view do not pass between sides; nor do those that belong to no view (Twins)."""

    view: Count
    sides: tuple[tuple[Index, ...], ...]
    phase: Annotated[int, Meta(ge=0, le=2)] = 0
    """Cut from this phase of the view on: 0 pre-prepare, 1 prepare, 2 commit."""


# -- clocks ----------------------------------------------------------------------------------------


class ClockOffset(OnNodes, frozen=True, tag="clock-offset"):
    """Clocks are wrong by so much."""

    offset_ms: SignedMillis


class ClockDrift(OnNodes, frozen=True, tag="clock-drift"):
    """Clocks run fast (or slow, if negative) by so many millionths."""

    drift_ppm: Annotated[int, Meta(ge=-500_000, le=500_000)]


class ClockJump(OnNodes, frozen=True, tag="clock-jump"):
    """Clocks are set by so much, once; nothing sets them back."""

    jump_ms: SignedMillis


# -- disks -----------------------------------------------------------------------------------------


class DiskFull(OnNodes, frozen=True, tag="disk-full"):
    """Nothing can be written: whoever tries ends. It starts again when the fault ends."""


class FailedSync(OnNodes, frozen=True, tag="failed-sync"):
    """The next sync fails and the process ends. It starts again when the fault ends."""


class SlowDisk(OnNodes, frozen=True, tag="slow-disk"):
    """A batch takes up to so much longer until it is durable."""

    delay_ms: Millis = 200


class LostSync(OnNodes, frozen=True, tag="lost-sync"):
    """The disk confirms batches and keeps them in its cache: a crash loses them."""


class TornWrite(OnNodes, frozen=True, tag="torn-write"):
    """Killed in the middle of a batch, on a disk whose batches are not atomic."""


class BitFlip(OnNodes, frozen=True, tag="bit-flip"):
    """A record on disk is damaged: whoever reads it ends, and stays down."""


# -- traitors --------------------------------------------------------------------------------------


class Behave(Fault, frozen=True, tag="behave"):
    """A node breaks the protocol, alone or together with the others that do."""

    node: Index
    behaviour: AnyBehaviour
    share: Share = 1.0
    """Of the opportunities, how many it uses."""
    victims: tuple[Index, ...] = ()
    """Whom it wrongs, where that can be chosen; everybody (or half of them) if empty."""
    messages: tuple[Kind, ...] = ()
    """Which messages are concerned, where that can be chosen; all if empty."""
    delay_ms: Millis = 2_000
    """Of `delay`: how long it holds messages back."""


class RoundMutation(Fault, frozen=True, tag="round-mutation"):
    """A replica's messages of one round are changed (ByzzFuzz's process fault)."""

    node: Index
    round: Count
    mutation: Mutation
    victims: tuple[Index, ...] = ()
    """Who gets the changed message; everybody if empty."""


AnyFault: TypeAlias = (
    Crash
    | Pause
    | Wipe
    | Partition
    | Delay
    | Loss
    | Duplicate
    | Reorder
    | Bandwidth
    | RoundPartition
    | ViewPartition
    | ClockOffset
    | ClockDrift
    | ClockJump
    | DiskFull
    | FailedSync
    | SlowDisk
    | LostSync
    | TornWrite
    | BitFlip
    | Behave
    | RoundMutation
)
KINDS: Final[dict[str, type[Fault]]] = {
    str(type_.__struct_config__.tag): type_ for type_ in get_args(AnyFault)
}


def kind_of(fault: Fault) -> str:
    """The word by which manifests name this fault."""
    return str(fault.__struct_config__.tag)


def byzantine(faults: Iterable[Fault], kinds: frozenset[str] | None = None) -> frozenset[int]:
    """Indices of the nodes that count against f.

    Args:
        faults: of one run.
        kinds: of these kinds only; None for all that count.
    """
    named: set[int] = set()
    for fault in faults:
        if kinds is not None and kind_of(fault) not in kinds:
            continue
        if isinstance(fault, Behave | RoundMutation):
            named.add(fault.node)
        elif isinstance(fault, Wipe | LostSync | TornWrite):
            named.update(node for node in fault.nodes if isinstance(node, int))
    return frozenset(named)


def damaged(faults: Iterable[Fault]) -> frozenset[int]:
    """Indices of the nodes whose disks are damaged: they may be gone for good."""
    flips = (fault for fault in faults if isinstance(fault, BitFlip))
    return frozenset(node for fault in flips for node in fault.nodes if isinstance(node, int))


def problems(fault: Fault, nodes: int) -> Iterable[str]:
    """What is wrong with a fault beyond the types of its values, for so many nodes (twins come last)."""
    triggers = (fault.at_height > 0) + (fault.at_view > 0) + bool(fault.when)
    if triggers > 1 or (triggers and not fault.when and fault.at_ms):
        yield "give one of at_ms, at_height, at_view and when (at_ms may go with when)"
    if isinstance(fault, Wipe | LostSync | TornWrite) and any(
        isinstance(node, str) for node in fault.nodes
    ):
        yield "nodes must be named by index: these count as Byzantine, whenever the fault comes"
    for index in _indices(fault):
        if index >= nodes:
            yield f"node {index} does not exist; there are 0 to {nodes - 1}"
    if isinstance(fault, Partition):
        yield from _partition_problems(fault)


def _partition_problems(fault: Partition) -> Iterable[str]:
    if (fault.shape == "sides") != bool(fault.sides):
        yield f"sides belong to shape 'sides', and only to it (shape is {fault.shape!r})"
    if fault.shape in ("isolate", "one-way") and not fault.nodes:
        yield f"shape {fault.shape!r} needs nodes: whom it cuts off"
    if fault.shape in ("ring", "sides") and fault.nodes:
        yield f"shape {fault.shape!r} takes no nodes"


def _indices(fault: Fault) -> Iterable[int]:
    for name in ("nodes", "senders", "receivers", "victims"):
        yield from (node for node in getattr(fault, name, ()) if isinstance(node, int))
    for side in getattr(fault, "sides", ()):
        yield from side
    node = getattr(fault, "node", None)
    if isinstance(node, int):
        yield node
