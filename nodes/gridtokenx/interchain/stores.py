"""Where interchain state lies: the records that other chains ask proofs of, and our own books.

The keys of the first three stores are part of the protocol between chains: a proof is about them.
The other stores are what a relayer reads to rebuild itself, with proofs, from either chain.
"""

from typing import Final

from msgspec import structs

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.clients import MAX_CONSENSUS_STATES, ClientState, ConsensusState
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.ledger.state import Cell, Map, State


class Channel(Wire, frozen=True):
    """The books of the packets that leave by one client."""

    next_sequence: UInt63
    """Number of the next packet; from 1."""
    oldest_open: UInt63
    """Every packet below this one has ended."""
    open_packets: UInt63
    """Sent, and neither acknowledged nor timed out."""
    delivered: UInt63
    """Acknowledged as accepted."""
    refused: UInt63
    """Acknowledged as refused."""
    timed_out: UInt63
    received: UInt63
    """Packets of the other direction that were received here."""


EMPTY_CHANNEL: Final = Channel(
    next_sequence=1, oldest_open=1, open_packets=0, delivered=0, refused=0, timed_out=0, received=0
)

COMMITMENTS: Final = Map("interchain.commitment", bytes)
"""(source client, sequence) -> packet hash, on the sender, while the packet is open."""
RECEIPTS: Final = Map("interchain.receipt", bytes)
"""(destination client, sequence) -> receipt hash, on the receiver, for ever."""
ACKNOWLEDGEMENTS: Final[Map[Acknowledgement]] = Map(
    "interchain.acknowledgement",
    Acknowledgement,  # type: ignore[arg-type]  # a union is a type to the decoder, not to mypy
)
"""(destination client, sequence) -> acknowledgement, on the receiver, for ever."""

CLIENTS: Final = Map("interchain.client", ClientState)
"""(client) -> what is believed of the other chain."""
SETS: Final = Map("interchain.set", ValidatorSet)
"""(client, set id) -> a validator set: the current one, and those of headers still recorded."""
CONSENSUS: Final = Map("interchain.consensus", ConsensusState)
"""(client, height) -> a recorded header."""
RING: Final = Map("interchain.ring", int)
"""(client, update number mod `MAX_CONSENSUS_STATES`) -> the height that it recorded."""
CHANNELS: Final = Map("interchain.channel", Channel)
"""(client) -> the books of its packets."""
OUTBOX: Final = Map("interchain.outbox", Packet)
"""(source client, sequence) -> the open packet, so that relayers need no history."""
OPEN_BY_PORT: Final = Map("interchain.open", int)
"""(source client, port) -> open packets of one app."""
PAUSED: Final = Cell("interchain.paused", bool, default=False)
"""Emergency stop: nothing is sent or received; refunds and client updates go on."""


def channel(state: State, client_id: str) -> Channel:
    """The books of a client; empty ones before its first packet."""
    return CHANNELS.read(state, EMPTY_CHANNEL, client_id)


def record_header(
    state: State, client: ClientState, header: ConsensusState, following: ValidatorSet
) -> None:
    """Remember a verified header, and forget the oldest one beyond the bound."""
    name = client.client_id
    _forget_oldest(state, client)
    RING.put(state, header.height, name, client.updates % MAX_CONSENSUS_STATES)
    CONSENSUS.put(state, header, name, header.height)
    if following.set_id != client.set_id:
        SETS.put(state, following, name, following.set_id)
    advanced = structs.replace(
        client,
        set_id=following.set_id,
        latest_height=header.height,
        latest_timestamp_ms=header.timestamp_ms,
        latest_hash=header.header_hash,
        updates=client.updates + 1,
    )
    CLIENTS.put(state, advanced, name)


def restart_client(
    state: State, client: ClientState, header: ConsensusState, following: ValidatorSet
) -> None:
    """Forget all that a client believed, and let it go on from one header."""
    name = client.client_id
    forgotten = {client.set_id}
    for place in range(min(client.updates, MAX_CONSENSUS_STATES)):
        recorded = _in_ring(state, name, place)
        if recorded is not None:
            forgotten.add(recorded.set_id)
            CONSENSUS.delete(state, name, recorded.height)
        RING.delete(state, name, place)
    for set_id in forgotten:
        SETS.delete(state, name, set_id)
    SETS.put(state, following, name, following.set_id)
    fresh = structs.replace(client, set_id=following.set_id, frozen=False)
    record_header(state, fresh, header, following)


def _forget_oldest(state: State, client: ClientState) -> None:
    """Drop the header whose place in the ring is needed, and its set if it was the set's last.

    Every set certified at least the header that ended it, so in the ring's order a set's headers
    are neighbours: the next oldest tells whether one of them remains.
    """
    name = client.client_id
    oldest, next_oldest = (_in_ring(state, name, client.updates + step) for step in (0, 1))
    if oldest is None:
        return
    CONSENSUS.delete(state, name, oldest.height)
    if next_oldest is not None and next_oldest.set_id != oldest.set_id:
        SETS.delete(state, name, oldest.set_id)


def _in_ring(state: State, name: str, update: int) -> ConsensusState | None:
    height = RING.get(state, name, update % MAX_CONSENSUS_STATES)
    return None if height is None else CONSENSUS.get(state, name, height)
