"""The calls that relayers make and the events that they follow: the edge between chains.

=====================  ======================================  =================================
call                   proves                                  effect
=====================  ======================================  =================================
`UpdateClient`         a header of the other chain is final    its root may be used for proofs
`ReceivePacket`        the sender committed to the packet      receipt, app, acknowledgement
`AcknowledgePacket`    the receiver acknowledged it            commitment ends, app told
`TimeoutPacket`        the receiver never will                 commitment ends, app refunds
`SubmitMisbehaviour`   two certified headers contradict        the client freezes
=====================  ======================================  =================================

Anyone may make them; nothing in them is believed because of who sent it.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.state_tree import StateProof
from gridtokenx.core.types import Hash32, Height, Millis
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.clients import CertifiedHeader, Misbehaviour
from gridtokenx.interchain.packets import (
    Acknowledgement,
    ClientId,
    Packet,
    Port,
    Sequence63,
)
from gridtokenx.ledger.runtime import TRANSACTION_WEIGHT


class UpdateClient(Wire, frozen=True, tag="interchain.update_client"):
    """Teach a client a later header."""

    client_id: ClientId
    certified: CertifiedHeader
    next_set: ValidatorSet | None
    """The set behind the header's `next_set_hash`, exactly when the header hands over."""


class ReceivePacket(Wire, frozen=True, tag="interchain.receive_packet"):
    """Deliver a packet."""

    packet: Packet
    proof_height: Height
    """A recorded header of the sender's chain."""
    proof: StateProof
    """Membership of the commitment under that header's state root."""


class AcknowledgePacket(Wire, frozen=True, tag="interchain.acknowledge_packet"):
    """Bring a packet's acknowledgement home."""

    packet: Packet
    acknowledgement: Acknowledgement
    proof_height: Height
    """A recorded header of the receiver's chain."""
    proof: StateProof
    """Membership of the acknowledgement under that header's state root."""


class TimeoutPacket(Wire, frozen=True, tag="interchain.timeout_packet"):
    """End a packet that its receiver can no longer receive."""

    packet: Packet
    proof_height: Height
    """A recorded header of the receiver's chain, later than the timeout."""
    proof: StateProof
    """Absence of the receipt under that header's state root."""


class SubmitMisbehaviour(Wire, frozen=True, tag="interchain.submit_misbehaviour"):
    """Freeze a client by evidence that its chain finalised contradicting blocks."""

    client_id: ClientId
    evidence: Misbehaviour


RelayCall = UpdateClient | ReceivePacket | AcknowledgePacket | TimeoutPacket | SubmitMisbehaviour
RELAY_CALLS: Final = (
    UpdateClient,
    ReceivePacket,
    AcknowledgePacket,
    TimeoutPacket,
    SubmitMisbehaviour,
)
"""What an enrolled relayer may send for free on the permissioned chains."""

WEIGHTS: Final[Mapping[type[Wire], int]] = {
    UpdateClient: 4_000,
    ReceivePacket: 200,
    AcknowledgePacket: 100,
    TimeoutPacket: 100,
    SubmitMisbehaviour: 8_000,
}
"""What each call weighs: the signatures of a hundred validators (about 20 ms), the work of an app,
a proof."""


def relay_weight(calls: Iterable[RelayCall]) -> int:
    """The weight of a transaction of relay calls, which its fee must cover."""
    return TRANSACTION_WEIGHT + sum(WEIGHTS[type(call)] for call in calls)


class PacketSent(Wire, frozen=True, tag="interchain.packet_sent"):
    """A packet left this chain."""

    packet_id: Hash32
    """`packets.packet_hash`: the same on both chains."""
    packet: Packet


class PacketReceived(Wire, frozen=True, tag="interchain.packet_received"):
    """A packet arrived here; the app accepted or refused it."""

    packet_id: Hash32
    client_id: ClientId
    """Our client of the sender's chain."""
    sequence: Sequence63
    port: Port
    acknowledgement: Acknowledgement


class PacketAcknowledged(Wire, frozen=True, tag="interchain.packet_acknowledged"):
    """A packet of ours ended: it had arrived."""

    packet_id: Hash32
    client_id: ClientId
    """Our client of the receiver's chain."""
    sequence: Sequence63
    port: Port
    acknowledgement: Acknowledgement
    """A refusal means that the app took the packet back."""


class PacketTimedOut(Wire, frozen=True, tag="interchain.packet_timed_out"):
    """A packet of ours ended: it can no longer arrive, and the app took it back."""

    packet_id: Hash32
    client_id: ClientId
    sequence: Sequence63
    port: Port


class ClientUpdated(Wire, frozen=True, tag="interchain.client_updated"):
    """A client learnt a header."""

    client_id: ClientId
    height: Height
    header_hash: Hash32
    timestamp_ms: Millis


class ClientFrozen(Wire, frozen=True, tag="interchain.client_frozen"):
    """A client saw its chain contradict itself."""

    client_id: ClientId
    height: Height
    """The lower height of the evidence."""


EVENTS: Final = (
    PacketSent,
    PacketReceived,
    PacketAcknowledged,
    PacketTimedOut,
    ClientUpdated,
    ClientFrozen,
)
