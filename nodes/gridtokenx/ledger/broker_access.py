"""How a device or an oracle node logs in at a broker that knows no passwords.

The user name (and MQTT client id) is the public key in hexadecimal; the password is a signature of the
present time by that key. So a broker needs no table of secrets, nobody can take over another's
connection, and a password that was overheard is worthless a few minutes later. Brokers that cannot
check this (any ordinary one) get the user name and password of the broker's address instead.
"""

import re
from typing import Final

from gridtokenx.core.keys import NO_CHAIN, Domain, Signer, Verifier, signed_bytes
from gridtokenx.ledger.readings import (
    TOPIC_ROOT,
    announce_topic,
    batch_topic,
    batch_watermark_topic,
    reading_topic,
    watermark_topic,
)

FRESHNESS_MS: Final = 300_000
"""How far the clocks of a client and its broker may differ."""
_MAX_PASSWORD: Final = 160
_KEY_HEX: Final = 64
_ZONE: Final = re.compile(r"[0-9]{1,5}")


def connect_password(signer: Signer, wall_ms: int) -> str:
    """The password for one connection, made just before it."""
    return f"{wall_ms}.{signer.sign(_signed(wall_ms)).hex()}"


def password_is_valid(verifier: Verifier, public_key: bytes, password: str, wall_ms: int) -> bool:
    """Whether a password was made by the holder of a key within `FRESHNESS_MS`."""
    stamp, _, signature = password[:_MAX_PASSWORD].partition(".")
    if not (stamp.isascii() and stamp.isdigit()) or abs(int(stamp) - wall_ms) > FRESHNESS_MS:
        return False
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        return False
    return verifier.verify(public_key, _signed(int(stamp)), raw)


def client_key(name: str | None) -> bytes | None:
    """The public key that a user name or client id stands for; None if it stands for none."""
    if name is None or len(name) != _KEY_HEX or name != name.lower():
        return None
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None


def device_may_publish(public_key: bytes, topic: str) -> bool:
    """A device publishes its own readings and announcements, in any zone, and nothing else."""
    parts = topic.split("/")
    if len(parts) != 5 or not _ZONE.fullmatch(parts[2]):
        return False
    zone = int(parts[2])
    return topic in (reading_topic(zone, public_key), announce_topic(zone, public_key))


def device_may_read(public_key: bytes, topic: str) -> bool:
    """A device reads its own watermark."""
    return topic == watermark_topic(public_key)


def concentrator_may_publish(public_key: bytes, topic: str) -> bool:
    """A concentrator publishes its own batches."""
    return topic == batch_topic(public_key)


def concentrator_may_read(public_key: bytes, topic: str) -> bool:
    """A concentrator reads what answers its own batches."""
    return topic.rpartition("/")[0] == batch_watermark_topic(public_key, None).rpartition("/")[0]


def oracle_may_publish(topic: str) -> bool:
    """An oracle node publishes watermarks."""
    parts = topic.split("/")
    if parts[:3] == ["gtx", "v1", "concentrator"]:
        return len(parts) == 6 and parts[4] == "watermarks"
    return topic.startswith(f"{TOPIC_ROOT}/watermark/")


def is_ours(topic: str) -> bool:
    """Whether a topic or filter lies within the network's tree."""
    return topic.startswith(f"{TOPIC_ROOT}/")


def _signed(wall_ms: int) -> bytes:
    return signed_bytes(Domain.BROKER_CONNECT, NO_CHAIN, str(wall_ms).encode())
