"""What the chain itself sends: reports and attestations, each until it has arrived.

Law of the file: **nothing that closed is lost on its way out.** A packet that interchain will not
take now (too many open ones, an emergency stop) waits its turn per destination; one that timed out
joins the queue again. One that the destination refused is sent again `RETRIES` times, after a while
each, since what stands in its way there may pass (a device that it does not know yet); every refusal is
an event, and the last one says that it was given up.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Blob, Millis, ShortText, Text, UInt63
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, Packet, Refused
from gridtokenx.ledger.runtime import CallFailed, Context, Module
from gridtokenx.ledger.state import Map, State

SENT_PER_BLOCK: Final = 64
"""Most packets that one block sends to one destination."""
RETRIES: Final = 3
"""How often a packet that was refused is sent again."""
RETRY_MS: Final = 60_000
"""Network time from a refusal to the next attempt."""


class Parcel(Wire, frozen=True):
    """A packet that waits."""

    port: ShortText
    payload: Blob
    due_ms: Millis
    """It does not leave before this time."""


class Queue(Wire, frozen=True):
    """The waiting parcels of one line are numbered `head` to before `tail`, by due time."""

    head: UInt63
    tail: UInt63
    refused: UInt63
    """Packets that the destination refused, in all."""


class PacketRefused(Wire, frozen=True, tag="dispatch.packet_refused"):
    """The destination refused what this chain reported: someone has to look."""

    client_id: ShortText
    port: ShortText
    sequence: UInt63
    code: ShortText
    message: Text
    retries_left: UInt63
    """How often it will be sent again; 0: given up."""


PARCELS: Final = Map("dispatch.parcel", Parcel)
"""(line, number) -> a waiting parcel. Each client has two lines: see `_retry_line`."""
QUEUES: Final = Map("dispatch.queue", Queue)
"""(line) -> bounds of its parcels."""
REFUSALS: Final = Map("dispatch.refusals", int)
"""(client, port, hash of the payload) -> how often it was refused, while it is not given up."""
EMPTY_QUEUE: Final = Queue(0, 0, 0)


class OutgoingPort:
    """The app of a port that only sends (see `interchain.module.App`)."""

    def __init__(self, port: str, dispatch: "Dispatch") -> None:
        self.port: Final = port
        self._dispatch: Final = dispatch

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:  # noqa: ARG002 - the port's
        """Refuse: these packets only leave the oracle chain."""
        raise CallFailed("wrong-direction", f"{packet.port} packets only leave this chain")

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Record a refusal."""
        if isinstance(ack, Refused):
            self._dispatch.record_refusal(ctx, packet, ack)
        else:
            self._dispatch.record_arrival(ctx, packet)

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Send it again."""
        self._dispatch.post(ctx, packet.source_client, packet.port, packet.payload)


class Dispatch(Module):
    """See the head of the file; its `end_block` runs after those that post.

    Args:
        interchain: where packets leave.
        destinations: our clients of the chains that are sent to.
        timeout_ms: how long a packet may take before it is sent again.
    """

    name = "dispatch"
    events = (PacketRefused,)

    def __init__(
        self, interchain: Interchain, destinations: Sequence[str], timeout_ms: int
    ) -> None:
        self._interchain: Final = interchain
        self._destinations: Final = tuple(destinations)
        self._timeout_ms: Final = timeout_ms

    def post(self, ctx: Context, client_id: str, port: str, payload: bytes) -> None:
        """Queue a packet; it leaves at the end of this block, or as soon as it can."""
        _append(ctx, client_id, Parcel(port=port, payload=payload, due_ms=ctx.timestamp_ms))

    def end_block(self, ctx: Context) -> None:
        """Send what waits, in order, as far as interchain takes it."""
        for client_id in self._destinations:
            for line in (client_id, _retry_line(client_id)):
                queue = QUEUES.read(ctx.state, EMPTY_QUEUE, line)
                if queue.head < queue.tail:
                    self._send_some(ctx, client_id, line, queue)

    def _send_some(self, ctx: Context, client_id: str, line: str, queue: Queue) -> None:
        timeout_ms = ctx.timestamp_ms + self._timeout_ms
        head = queue.head
        while head < min(queue.tail, queue.head + SENT_PER_BLOCK):
            parcel = PARCELS.get(ctx.state, line, head)
            if parcel is None:
                raise AssertionError(f"parcel {head} of {line} is missing")
            if parcel.due_ms > ctx.timestamp_ms:
                break
            try:
                self._interchain.send(ctx, client_id, parcel.port, parcel.payload, timeout_ms)
            except CallFailed:
                break  # refused before it changed anything: it waits
            PARCELS.delete(ctx.state, line, head)
            head += 1
        QUEUES.put(ctx.state, replace(queue, head=head), line)

    def record_arrival(self, ctx: Context, packet: Packet) -> None:
        """Forget the refusals of what arrived after all."""
        key = _content(packet)
        if REFUSALS.has(ctx.state, *key):
            REFUSALS.delete(ctx.state, *key)

    def record_refusal(self, ctx: Context, packet: Packet, ack: Refused) -> None:
        """Count and tell what the destination did not accept, and send it again some times."""
        client_id, key = packet.source_client, _content(packet)
        queue = QUEUES.read(ctx.state, EMPTY_QUEUE, client_id)
        QUEUES.put(ctx.state, replace(queue, refused=queue.refused + 1), client_id)
        refusals = REFUSALS.read(ctx.state, 0, *key) + 1
        if refusals <= RETRIES:
            REFUSALS.put(ctx.state, refusals, *key)
            due_ms = ctx.timestamp_ms + RETRY_MS
            parcel = Parcel(port=packet.port, payload=packet.payload, due_ms=due_ms)
            _append(ctx, _retry_line(client_id), parcel)
        else:
            REFUSALS.delete(ctx.state, *key)
        refusal = PacketRefused(
            client_id=client_id,
            port=packet.port,
            sequence=packet.sequence,
            code=ack.code,
            message=ack.message,
            retries_left=max(0, RETRIES + 1 - refusals),
        )
        ctx.emit(refusal)

    def check_invariants(self, state: State) -> Iterator[str]:
        """Exactly the parcels between head and tail exist."""
        waiting = sum(queue.tail - queue.head for _, queue in QUEUES.scan(state))
        stored = sum(1 for _ in PARCELS.scan(state))
        if waiting != stored:
            yield f"{waiting} parcels wait, {stored} are stored"


def _append(ctx: Context, line: str, parcel: Parcel) -> None:
    queue = QUEUES.read(ctx.state, EMPTY_QUEUE, line)
    PARCELS.put(ctx.state, parcel, line, queue.tail)
    QUEUES.put(ctx.state, replace(queue, tail=queue.tail + 1), line)


def _retry_line(client_id: str) -> str:
    """Where refused parcels wait, apart from the others, whom their due time would hold up."""
    return f"{client_id}/retry"


def _content(packet: Packet) -> tuple[str, str, bytes]:
    return packet.source_client, packet.port, sha256(packet.payload)
