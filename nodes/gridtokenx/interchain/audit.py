"""Conservation of tokens over two chains, at a consistent cut.

Law of the file: ``escrowed at home = minted away + in flight`` holds under load, not only when
nothing moves. It needs two states that do not know each other's future: the home chain at some
header, and the away chain at the *latest header that home's client had recorded by then*. Then
everything that home has learnt of away is in away's state, and away, being older, knows nothing
that home lacks.

In flight, by sequence, is every transfer whose sending took effect and whose arrival or refund has
not: open at its sender, and without an accepting acknowledgement at its receiver.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from gridtokenx.core.codec import decode
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps import transfer
from gridtokenx.interchain.packets import Delivered, Packet
from gridtokenx.ledger.state import KeyPart, Map

Read = Callable[[bytes], bytes | None]
"""The value of a state key: `StateTree.get`, or a reader that verifies proofs."""
T = TypeVar("T")


def open_transfers(
    sender: Read, receiver: Read, source_client: str, destination_client: str, denom: str
) -> int:
    """What of a token (by its name at the sender) is on its way from `sender` to `receiver`."""
    return sum(
        sent.amount
        for packet, sent in _open(sender, source_client)
        if sent.denom == denom and not _accepted(receiver, destination_client, packet)
    )


def conservation_gap(home: Read, away: Read, home_client: str, away_client: str, denom: str) -> int:
    """Escrowed at home less what is minted away and in flight; 0 if the law holds.

    Args:
        home: state of the chain where the token lives.
        away: state of the other chain, at the latest header recorded by home's client.
        home_client: home's client of away.
        away_client: away's client of home.
        denom: the token's name at home.
    """
    voucher = transfer.voucher(away_client, denom)
    escrowed = _read(home, transfer.ESCROWED, home_client, denom) or 0
    minted = _read(away, transfer.MINTED, away_client, voucher) or 0
    outward = open_transfers(home, away, home_client, away_client, denom)
    homeward = open_transfers(away, home, away_client, home_client, voucher)
    return escrowed - minted - outward - homeward


def _open(read: Read, client: str) -> Iterator[tuple[Packet, transfer.FungibleTransfer]]:
    books = _read(read, stores.CHANNELS, client) or stores.EMPTY_CHANNEL
    for sequence in range(books.oldest_open, books.next_sequence):
        packet = _read(read, stores.OUTBOX, client, sequence)
        if packet is not None and packet.port == transfer.PORT:
            yield packet, decode(packet.payload, transfer.FungibleTransfer)


def _accepted(read: Read, client: str, packet: Packet) -> bool:
    ack = _read(read, stores.ACKNOWLEDGEMENTS, client, packet.sequence)
    return isinstance(ack, Delivered)


def _read(read: Read, store: Map[T], *key: KeyPart) -> T | None:
    raw = read(store.key(*key))
    return None if raw is None else store.decode(raw)
