"""What the chain itself sends: reports and attestations, each until it has arrived.

Law of the file: **nothing that closed is lost on its way out.** A packet that interchain will not
take now (too many open ones, an emergency stop) waits its turn per destination; one that timed out
joins the queue again. One that the destination refused is recorded and not repeated: the same bytes
would be refused again.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Blob, ShortText, Text, UInt63
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, Packet, Refused
from gridtokenx.ledger.runtime import CallFailed, Context, Module
from gridtokenx.ledger.state import Map, State

SENT_PER_BLOCK: Final = 64
"""Most packets that one block sends to one destination."""


class Parcel(Wire, frozen=True):
    """A packet that waits."""

    port: ShortText
    payload: Blob


class Queue(Wire, frozen=True):
    """The waiting parcels of one destination are numbered `head` to before `tail`."""

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


PARCELS: Final = Map("dispatch.parcel", Parcel)
"""(client, number) -> a waiting parcel."""
QUEUES: Final = Map("dispatch.queue", Queue)
"""(client) -> bounds of its parcels."""
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
        queue = QUEUES.read(ctx.state, EMPTY_QUEUE, client_id)
        PARCELS.put(ctx.state, Parcel(port, payload), client_id, queue.tail)
        QUEUES.put(ctx.state, replace(queue, tail=queue.tail + 1), client_id)

    def end_block(self, ctx: Context) -> None:
        """Send what waits, in order, as far as interchain takes it."""
        for client_id in self._destinations:
            queue = QUEUES.read(ctx.state, EMPTY_QUEUE, client_id)
            if queue.head < queue.tail:
                self._send_some(ctx, client_id, queue)

    def _send_some(self, ctx: Context, client_id: str, queue: Queue) -> None:
        timeout_ms = ctx.timestamp_ms + self._timeout_ms
        head = queue.head
        while head < min(queue.tail, queue.head + SENT_PER_BLOCK):
            parcel = PARCELS.get(ctx.state, client_id, head)
            if parcel is None:
                raise AssertionError(f"parcel {head} to {client_id} is missing")
            try:
                self._interchain.send(ctx, client_id, parcel.port, parcel.payload, timeout_ms)
            except CallFailed:
                break  # refused before it changed anything: it waits
            PARCELS.delete(ctx.state, client_id, head)
            head += 1
        QUEUES.put(ctx.state, replace(queue, head=head), client_id)

    def record_refusal(self, ctx: Context, packet: Packet, ack: Refused) -> None:
        """Count what the destination did not accept."""
        client_id = packet.source_client
        queue = QUEUES.read(ctx.state, EMPTY_QUEUE, client_id)
        QUEUES.put(ctx.state, replace(queue, refused=queue.refused + 1), client_id)
        refusal = PacketRefused(
            client_id=client_id,
            port=packet.port,
            sequence=packet.sequence,
            code=ack.code,
            message=ack.message,
        )
        ctx.emit(refusal)

    def check_invariants(self, state: State) -> Iterator[str]:
        """Exactly the parcels between head and tail exist."""
        waiting = sum(queue.tail - queue.head for _, queue in QUEUES.scan(state))
        stored = sum(1 for _ in PARCELS.scan(state))
        if waiting != stored:
            yield f"{waiting} parcels wait, {stored} are stored"
