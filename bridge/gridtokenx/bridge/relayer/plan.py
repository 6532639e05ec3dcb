"""How a lane's tasks become calls: which header proves them, and what is sent.

Law of the file: **a client is updated only if what is to be proved needs it**, if it expires soon, or
if it trusts a set that has ended; then to the newest header known, through every header on the way
that changed the validator set, in order. None is ever passed over: the client would refuse the next.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gridtokenx.bridge.relayer.book import Book
from gridtokenx.bridge.relayer.edge import HandedOver, Proven
from gridtokenx.bridge.relayer.work import Task
from gridtokenx.core.codec import encode
from gridtokenx.interchain import packets, stores
from gridtokenx.interchain.calls import (
    AcknowledgePacket,
    ReceivePacket,
    RelayCall,
    TimeoutPacket,
    UpdateClient,
)
from gridtokenx.interchain.clients import ClientState
from gridtokenx.ledger.transactions import MAX_CALLS

MAX_BATCH_BYTES: Final = 192 * 1024
"""Of encoded calls in one transaction: three quarters of what a transaction may have."""
MAX_LANE_TASKS: Final = 56
"""Tasks of one client in one transaction: with its updates it stays below `MAX_CALLS`."""
MAX_LANE_UPDATES: Final = 8
"""Set changes that one transaction passes through; a client far behind takes several."""
RECENT_HEIGHTS: Final = 16
"""How far below a chain's head nodes are expected to serve proofs."""


@dataclass(slots=True)
class LanePlan:
    """What one client of a chain is about to be told."""

    client_id: str
    proof_height: int
    updates: tuple[UpdateClient, ...]
    tasks: tuple[Task, ...]
    values: Mapping[bytes, Proven] | None = None
    """Answer to the read of the tasks' keys; None while it is under way."""


@dataclass(frozen=True, slots=True)
class MissingHandover:
    """A lane cannot go on before the end of this set is known."""

    chain: str
    set_id: int


def plan_lane(
    client: ClientState,
    other: Book,
    due: tuple[Task, ...],
    handovers: Mapping[tuple[str, int], HandedOver],
    *,
    must_update: bool,
) -> LanePlan | MissingHandover | None:
    """A plan for the due tasks of one client; None if our view of the other chain is behind.

    Args:
        client: as the acting chain holds it.
        other: the chain that it faces.
        due: at least one task, unless the update itself is wanted.
        handovers: set changes of all chains, as far as they were fetched.
        must_update: whether recorded headers are of no use (nodes forgot them, or they expire).
    """
    if other.head is None or other.height < client.latest_height:
        return None
    due = due[:MAX_LANE_TASKS]
    recorded = client.latest_height
    if not must_update and other.height - recorded <= RECENT_HEIGHTS and _all_proved(client, due):
        return LanePlan(client.client_id, recorded, (), due)
    if other.height == recorded:
        return None
    provable = tuple(task for task in due if other.time_ms > task.since_ms)
    if due and not provable:
        return None
    updates: list[UpdateClient] = []
    for set_id in range(client.set_id, other.head.header.set_id):
        handover = handovers.get((other.spec.name, set_id))
        if handover is None:
            return MissingHandover(other.spec.name, set_id)
        updates.append(UpdateClient(client.client_id, handover.certified, handover.next_set))
        if len(updates) == MAX_LANE_UPDATES:
            return LanePlan(client.client_id, handover.certified.header.height, tuple(updates), ())
    updates.append(UpdateClient(client.client_id, other.head, other.next_set))
    return LanePlan(client.client_id, other.height, tuple(updates), provable)


def _all_proved(client: ClientState, due: Iterable[Task]) -> bool:
    """Whether the client's latest header proves every task."""
    return client.latest_hash is not None and all(
        task.since_height <= client.latest_height and task.since_ms < client.latest_timestamp_ms
        for task in due
    )


def batch(
    lanes: Iterable[LanePlan], acting: Book, others: Mapping[str, Book]
) -> tuple[tuple[RelayCall, ...], tuple[Task, ...]]:
    """The calls of one transaction, within its bounds, and the tasks that they carry out.

    Args:
        lanes: plans whose values have arrived.
        acting: the chain that they are for.
        others: by client, the chain that it faces.
    """
    chosen: list[RelayCall] = []
    carried: list[Task] = []
    size = 0
    for lane in lanes:
        pairs = list(_calls(lane, acting, others[lane.client_id]))
        if lane.tasks and not pairs:
            continue
        bytes_of_updates = sum(len(encode(update)) for update in lane.updates)
        if (
            size + bytes_of_updates > MAX_BATCH_BYTES
            or len(chosen) + len(lane.updates) >= MAX_CALLS
        ):
            break
        size += bytes_of_updates
        chosen += lane.updates
        for task, call in pairs:
            size += len(encode(call))
            if size > MAX_BATCH_BYTES or len(chosen) == MAX_CALLS:
                return tuple(chosen), tuple(carried)
            chosen.append(call)
            carried.append(task)
    return tuple(chosen), tuple(carried)


def _calls(lane: LanePlan, acting: Book, other: Book) -> Iterator[tuple[Task, RelayCall]]:
    """Each task that the values still support, as a call; the others are done or not yet true."""
    for task in lane.tasks:
        proven = (lane.values or {}).get(task.key)
        if proven is not None:
            call = _call(task, lane.proof_height, proven, acting, other)
            if call is not None:
                yield task, call


def _call(task: Task, height: int, proven: Proven, acting: Book, other: Book) -> RelayCall | None:
    packet = task.packet
    match task.verb:
        case "deliver" if proven.value == _commitment(task, acting, other):
            return ReceivePacket(packet, height, proven.proof)
        case "return" if proven.value is not None:
            ack = stores.ACKNOWLEDGEMENTS.decode(proven.value)
            return AcknowledgePacket(packet, ack, height, proven.proof)
        case "expire" if proven.value is None:
            return TimeoutPacket(packet, height, proven.proof)
        case _:
            return None


def _commitment(task: Task, acting: Book, other: Book) -> bytes | None:
    """What the sender's state must hold for the packet to be received."""
    if acting.head is None or other.head is None:
        return None
    source, destination = other.head.header.chain_id, acting.head.header.chain_id
    return encode(packets.packet_hash(task.packet, source, destination))
