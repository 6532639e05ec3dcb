"""What waits to be carried to one chain, worked out from two books.

Law of the file: a packet from Y to X wants exactly one of three things, and the books say which:

=======================  =====================  ==============================================
open at its sender       its receiver           wanted
=======================  =====================  ==============================================
yes                      no answer, in time     `Deliver` it to the receiver
yes                      has answered           `Return` the answer to the sender
yes                      no answer, too late    `Expire` it at the sender
=======================  =====================  ==============================================

"In time" and "too late" are said by the receiver's final block time alone. In the block or two
between, both sides wait: no header proves the lateness yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gridtokenx.bridge.relayer.book import Book, Numbered
from gridtokenx.interchain import stores
from gridtokenx.interchain.packets import Packet


@dataclass(frozen=True, slots=True)
class Task:
    """One packet's next step, to be done on the chain of the lane."""

    client_id: str
    """The acting chain's client whose headers prove it."""
    verb: str
    """``deliver``, ``return`` or ``expire``."""
    packet: Packet
    since_height: int
    """A height of the other chain from which on it can be proved."""
    since_ms: int
    """The proving header must be later than this time (only for ``expire``)."""

    @property
    def name(self) -> tuple[str, str, int]:
        """What it is, for remembering when it was seen and tried."""
        return self.client_id, self.verb, self.packet.sequence

    @property
    def key(self) -> bytes:
        """The state key on the other chain that its proof is about."""
        packet = self.packet
        match self.verb:
            case "deliver":
                return stores.COMMITMENTS.key(packet.source_client, packet.sequence)
            case "return":
                return stores.ACKNOWLEDGEMENTS.key(packet.destination_client, packet.sequence)
            case _:
                return stores.RECEIPTS.key(packet.destination_client, packet.sequence)


def open_inbound(book: Book, books: dict[str, Book]) -> Iterator[Numbered]:
    """(our client, sequence) of every open packet that the other chains sent to this one."""
    for name, facing in book.spec.clients.items():
        for client, sequence in books[facing.chain].outbox:
            if client == facing.client_id:
                yield name, sequence


def tasks(book: Book, client_id: str, other: Book) -> Iterator[Task]:
    """Everything that one client of a chain could prove now."""
    facing = book.spec.clients[client_id]
    for (client, sequence), packet in other.outbox.items():
        mine = (client_id, sequence)
        if client != facing.client_id or mine not in book.acks or book.acks[mine] is not None:
            continue
        if book.time_ms <= packet.timeout_ms:
            since = other.sent_by[client, sequence]
            yield Task(client_id, "deliver", packet, since, 0)
    for (client, sequence), packet in book.outbox.items():
        if client == client_id:
            yield from _endings(packet, other, (facing.client_id, sequence))


def _endings(packet: Packet, receiver: Book, numbered: Numbered) -> Iterator[Task]:
    if numbered not in receiver.acks:
        return
    if receiver.acks[numbered] is not None:
        since = receiver.acked_by[numbered]
        yield Task(packet.source_client, "return", packet, since, 0)
    elif receiver.time_ms > packet.timeout_ms:
        yield Task(packet.source_client, "expire", packet, 0, packet.timeout_ms)
