"""Packets, and the three facts about a packet that one chain proves to another.

Law of the file: **a packet ends exactly once**: delivered, refused with a refund, or timed out with
a refund. Each fact is one record of state, so each is provable by the state tree:

===============  ========  =================================================================
fact             kept by   record (`interchain/stores.py`)
===============  ========  =================================================================
commitment       sender    `packet_hash`; from send until acknowledgement or timeout
receipt          receiver  `receipt_hash`; from receive, for ever
acknowledgement  receiver  the `Acknowledgement`; from receive, for ever
===============  ========  =================================================================

Theory: IBC v2 packet handling (cosmos/ibc, spec/IBC_V2, PACKET_HANDLER.md). A receipt needs a
proven commitment; an acknowledgement needs a receipt; a timeout needs proven *absence* of the
receipt at a header later than the timeout, after which the receiver's own clock refuses the
packet. Receipts are never pruned: an absence that was made by pruning would let a delivered
packet time out too.

`Ours differs:` hashes bind both chains' ids besides the client names, so that a packet means
nothing on a third chain that happens to use the same names.
"""

import re
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Millis, ShortText, Text

MAX_PAYLOAD_BYTES: Final = 32_768
MAX_RESULT_BYTES: Final = 256
"""What an app may answer in a positive acknowledgement."""

ClientId = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z][a-z0-9-]*\Z")]
"""A chain's own name for its light client of another chain, such as ``oracle``."""
Port = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z][a-z0-9-]*\Z")]
"""The name of the app that a packet is for, such as ``transfer``."""
Sequence63 = Annotated[int, Meta(ge=1, le=2**63 - 1)]
"""Packets of one client are numbered from 1, without gaps."""

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Packet(Wire, frozen=True):
    """One message from an app on one chain to its twin on another."""

    source_client: ClientId
    """The sender's client of the receiver."""
    destination_client: ClientId
    """The receiver's client of the sender."""
    sequence: Sequence63
    port: Port
    timeout_ms: Millis
    """Last block time of the receiver, in network time, at which it may be received."""
    payload: Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
    """Decoded by the app of the port."""


class Delivered(Wire, frozen=True, tag="packet.delivered"):
    """The app accepted the packet."""

    result: Annotated[bytes, Meta(max_length=MAX_RESULT_BYTES)]
    """What the app answers; often empty."""


class Refused(Wire, frozen=True, tag="packet.refused"):
    """The app refused the packet, and everything that it had done was undone."""

    code: ShortText
    message: Text


Acknowledgement = Delivered | Refused


def is_name(text: str) -> bool:
    """Whether `text` may name a client or a port."""
    return _NAME.fullmatch(text) is not None


def packet_hash(packet: Packet, source_chain: bytes, destination_chain: bytes) -> bytes:
    """What the sender commits to; also the packet's identity across chains."""
    return sha256(b"gtx:packet:1", source_chain, destination_chain, encode(packet))


def receipt_hash(packet_hash_: bytes) -> bytes:
    """What the receiver records; never equal to a commitment of the same packet."""
    return sha256(b"gtx:receipt:1", packet_hash_)
