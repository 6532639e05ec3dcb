"""Port ``registry``: who owns which device, from the consortium chain to the oracle chain.

The consortium decides (connection approval); the oracle chain only takes note. Packets have no
order, so every registration carries a revision, and the receiver ignores one that is not newer
than what it holds. An acknowledgement tells the consortium that the oracle chain knows the device.
"""

import itertools
from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.types import Hash32, Index16, PublicKey, UInt63

PORT: Final = "registry"
MAX_REGISTRATIONS: Final = 128
"""Registrations in one packet."""


class DeviceKind(IntEnum):
    """What a device measures or does."""

    METER = 1
    """Revenue meter at the connection point: cumulative import and export registers."""
    SOLAR = 2
    """Generation sub-meter behind photovoltaic panels."""
    BATTERY = 3
    """Storage behind the meter."""
    GRID_SENSOR = 4
    """Voltage and flow at a point of the grid; belongs to the utility."""


class DeviceRegistration(Wire, frozen=True):
    """The consortium's decision about one device."""

    device: Hash32
    """Device id: the public key it was first registered with; it survives a change of key."""
    public_key: PublicKey
    """The key that signs its readings now."""
    owner: PublicKey
    """The participant's account that its energy is booked to."""
    zone: Index16
    """Grid zone of its connection point."""
    kind: DeviceKind
    rating_w: UInt63
    """Approved capacity in W: connection of a meter, inverter of solar or battery."""
    revision: UInt63
    """Counts the decisions about this device from 1; the highest holds."""
    active: bool
    """False withdraws the device: its readings are refused from then on."""


class DeviceRegistrations(Wire, frozen=True, tag="registry.devices"):
    """A batch of decisions, each about a different device."""

    registrations: Annotated[
        tuple[DeviceRegistration, ...], Meta(min_length=1, max_length=MAX_REGISTRATIONS)
    ]
    """Ascending by device id, without repetition."""


def encode_registrations(registrations: DeviceRegistrations) -> bytes:
    """The packet payload of a batch."""
    return encode(registrations)


def decode_registrations(payload: bytes) -> DeviceRegistrations:
    """The batch inside a packet payload.

    Raises:
        Malformed: not a batch, or out of order.
    """
    batch = decode(payload, DeviceRegistrations)
    devices = [registration.device for registration in batch.registrations]
    if any(later <= earlier for earlier, later in itertools.pairwise(devices)):
        raise Malformed("registrations are not in ascending order of device id, or repeat")
    return batch
