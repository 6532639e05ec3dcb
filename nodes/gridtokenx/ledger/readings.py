"""What a device and the oracle chain say to each other, and the topics it travels on.

A reading is a transaction of the oracle chain: sender = the device's key, nonce = the device's
sequence number (from `FIRST_SEQUENCE`, one more per reading, never reused), fee 0, and one
`SubmitReading` call. MQTT only carries it, so the broker is trusted for nothing: a reading altered
on the way has a bad signature, one seen twice has a spent nonce, one lost is sent again.

The way back is the watermark: oracle nodes publish, retained, up to which sequence a device's
readings are committed. It only tells a device what it need not send again; it never deletes
anything.

=======================================  ======  ===================================================
topic                                    retain  payload
=======================================  ======  ===================================================
gtx/v1/{zone}/{id}/reading               no      the canonical bytes of one `Transaction`; QoS 1
gtx/v1/{zone}/{id}/announce              yes     those of one `Announcement`; also the last will
gtx/v1/watermark/{id}                    yes     those of one `Watermark`
gtx/v1/concentrator/{id}/readings        no      those of one `ReadingBatch`; QoS 1
gtx/v1/concentrator/{id}/watermarks/{n}  yes     those of one `WatermarkBatch`: all devices of this
                                                 concentrator whose key falls into bucket n
=======================================  ======  ===================================================

`{zone}` is the zone's number; `{id}` is the device's or concentrator's public key in lower-case
hexadecimal, and also its MQTT client id, so that a broker can bind topics to connections without a
table.

A concentrator carries the readings of many devices in one message. It signs none of them, so it
can withhold, never forge: each reading of a batch is judged as if it had come alone.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Millis, PublicKey, ShortText, UInt63

TOPIC_ROOT: Final = "gtx/v1"
ALL_READINGS: Final = f"{TOPIC_ROOT}/+/+/reading"
"""The subscription that sees every reading of every zone."""
ALL_ANNOUNCEMENTS: Final = f"{TOPIC_ROOT}/+/+/announce"
ALL_BATCHES: Final = f"{TOPIC_ROOT}/concentrator/+/readings"
"""The subscription that sees the batches of every concentrator."""
MAX_BATCH_READINGS: Final = 128
MAX_BATCH_BYTES: Final = 60_000
"""Of an encoded batch: with its topic it stays below the 65,536 bytes that brokers let through."""
MAX_READING_BYTES: Final = 1_024
"""A reading has about 300 bytes."""
WATERMARK_BUCKETS: Final = 16
"""Retained messages in which a concentrator's watermarks come."""
MAX_BUCKET: Final = 1_024
"""Devices of one concentrator in one bucket; of more, the ones heard last."""
FIRST_SEQUENCE: Final = 1
"""The nonce of a device's first reading, so that a watermark of 0 means "none yet"."""
RETAINED_BOUNDARIES: Final = 96
"""How many boundary readings a device keeps, at least, to send again (two days of half hours)."""

FLAG_VOLTAGE_LOW: Final = 1 << 0
"""The connection point was below its voltage band at the boundary."""
FLAG_VOLTAGE_HIGH: Final = 1 << 1
"""The connection point was above its voltage band at the boundary."""
FLAG_CLOCK_UNCERTAIN: Final = 1 << 2
"""The device did not trust its clock: the interval's quality is *uncertain*."""
FLAG_REPLACED: Final = 1 << 3
"""First reading after a meter was replaced: its registers begin a new count here."""
FLAG_ROLLED_OVER: Final = 1 << 4
"""A register passed its last digit since the previous reading."""
ALL_FLAGS: Final = (1 << 5) - 1

Register = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A cumulative register in Wh; small enough that sums of many stay in 63 bits."""
PowerW = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""A power in W, signed as the meter sees it: positive is import."""
Flags = Annotated[int, Meta(ge=0, le=ALL_FLAGS)]
"""A bit set of the FLAG_ constants."""


class SubmitReading(Wire, frozen=True, tag="meters.submit_reading"):
    """The registers of one device at one interval boundary."""

    boundary_grid_ms: Millis
    """Grid time of the boundary; a multiple of the interval."""
    import_wh: Register
    """Energy from the grid since installation (OBIS 1-0:1.8.0), whole Wh, rounded down."""
    export_wh: Register
    """Energy to the grid since installation (OBIS 1-0:2.8.0); generation, of a solar sub-meter."""
    power_w: PowerW
    """Mean power of the last minute before the boundary; telemetry, nothing is paid by it."""
    charge_wh: UInt63
    """Energy stored behind this device, 0 where there is no storage; telemetry."""
    flags: Flags
    """What the device says about this reading."""


class Watermark(Wire, frozen=True):
    """How far a device's readings are committed on the oracle chain."""

    device: PublicKey
    """Whose readings."""
    sequence: UInt63
    """Every reading with this or a lower sequence is committed; 0 while none is."""
    boundary_grid_ms: Millis
    """Boundary of the reading with that sequence; 0 while none is."""


class ReadingBatch(Wire, frozen=True):
    """Signed readings of several devices, as their concentrator carries them."""

    readings: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_READING_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_BATCH_READINGS),
    ]
    """Each the canonical bytes of one `Transaction`, in the order in which they are to be judged."""


class WatermarkBatch(Wire, frozen=True):
    """Watermarks of devices whose readings came through one concentrator."""

    watermarks: Annotated[tuple[Watermark, ...], Meta(min_length=1, max_length=MAX_BUCKET)]


class Announcement(Wire, frozen=True):
    """A device's birth message, and with `online` false its last will. Informational: unsigned."""

    device: PublicKey
    """Who speaks."""
    kind: ShortText
    """What it is: meter, solar or battery."""
    online: bool
    """False in the last will, which the broker publishes when the connection breaks."""


def device_id(public_key: bytes) -> str:
    """A device's name in topics, and its MQTT client id."""
    return public_key.hex()


def reading_topic(zone: int, public_key: bytes) -> str:
    """Where a device publishes its signed readings."""
    return f"{TOPIC_ROOT}/{zone}/{public_key.hex()}/reading"


def announce_topic(zone: int, public_key: bytes) -> str:
    """Where a device announces itself, and its last will appears."""
    return f"{TOPIC_ROOT}/{zone}/{public_key.hex()}/announce"


def watermark_topic(public_key: bytes) -> str:
    """Where oracle nodes publish the retained watermark of a device."""
    return f"{TOPIC_ROOT}/watermark/{public_key.hex()}"


def batch_topic(public_key: bytes) -> str:
    """Where a concentrator publishes the readings that it carries."""
    return f"{TOPIC_ROOT}/concentrator/{public_key.hex()}/readings"


def watermark_bucket(device: bytes) -> int:
    """The bucket that a device's watermark comes in."""
    return device[0] % WATERMARK_BUCKETS


def batch_watermark_topic(public_key: bytes, bucket: int | None) -> str:
    """Where oracle nodes answer a concentrator; with None the filter of all buckets."""
    which = "+" if bucket is None else str(bucket)
    return f"{TOPIC_ROOT}/concentrator/{public_key.hex()}/watermarks/{which}"


def topic_concentrator(topic: str) -> bytes | None:
    """The concentrator that a topic of batches names; None if it is no such topic."""
    parts = topic.split("/")
    if len(parts) != 5 or parts[:3] != ["gtx", "v1", "concentrator"] or parts[4] != "readings":
        return None
    return _key(parts[3])


def topic_device(topic: str) -> bytes | None:
    """The device that a reading or announcement topic names; None if it is no such topic."""
    parts = topic.split("/")
    if len(parts) != 5 or parts[:2] != ["gtx", "v1"] or parts[2] == "concentrator":
        return None
    return _key(parts[3])


def _key(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if len(text) == 64 else None
    except ValueError:
        return None
