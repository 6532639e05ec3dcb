"""Who may log in at a broker, and what a client may say there."""

import pytest

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.ledger.broker_access import (
    FRESHNESS_MS,
    client_key,
    connect_password,
    device_may_publish,
    device_may_read,
    is_ours,
    oracle_may_publish,
    password_is_valid,
)
from gridtokenx.ledger.readings import announce_topic, reading_topic, topic_device, watermark_topic

SIGNER = Ed25519Signer(b"\x01" * 32)
OTHER = Ed25519Signer(b"\x02" * 32)
KEY = SIGNER.public_key
NOW = 1_776_000_000_000


def accepts(password: str, key: bytes = KEY, now: int = NOW) -> bool:
    return password_is_valid(Ed25519Verifier(), key, password, now)


def test_a_fresh_signature_opens() -> None:
    password = connect_password(SIGNER, NOW)
    assert accepts(password)
    assert accepts(password, now=NOW + FRESHNESS_MS)


def test_an_old_or_early_one_does_not() -> None:
    password = connect_password(SIGNER, NOW)
    assert not accepts(password, now=NOW + FRESHNESS_MS + 1)
    assert not accepts(password, now=NOW - FRESHNESS_MS - 1)


def test_nor_does_another_keys() -> None:
    assert not accepts(connect_password(OTHER, NOW))


@pytest.mark.parametrize(
    "password",
    ["", ".", f"{NOW}", f"{NOW}.", f"{NOW}.zz", f"{NOW}.{'00' * 64}", "-1.00", "٣.00", "9" * 9999],
)
def test_nor_does_rubbish(password: str) -> None:
    assert not accepts(password)


@pytest.mark.parametrize("name", [None, "", "relayer", "AB" * 32, "zz" * 32, "ab" * 31])
def test_only_a_key_is_a_clients_name(name: str | None) -> None:
    assert client_key(name) is None
    assert client_key(KEY.hex()) == KEY


@pytest.mark.parametrize(
    "topic",
    [
        reading_topic(1, OTHER.public_key),
        watermark_topic(KEY),
        f"gtx/v1/1/{KEY.hex()}/reading/more",
        f"gtx/v1/{'1' * 5000}/{KEY.hex()}/reading",
        f"gtx/v1/01/{KEY.hex()}/reading",
        f"gtx/v1/+/{KEY.hex()}/reading",
        f"gtx/v1/1/{KEY.hex()}/command",
        "",
    ],
)
def test_a_device_speaks_only_for_itself(topic: str) -> None:
    assert not device_may_publish(KEY, topic)
    assert device_may_publish(KEY, reading_topic(1, KEY))
    assert device_may_publish(KEY, announce_topic(65_535, KEY))


def test_a_device_reads_only_its_watermark() -> None:
    assert device_may_read(KEY, watermark_topic(KEY))
    assert not device_may_read(KEY, watermark_topic(OTHER.public_key))
    assert not device_may_read(KEY, "gtx/v1/#")


def test_an_oracle_node_publishes_watermarks_only() -> None:
    assert oracle_may_publish(watermark_topic(KEY))
    assert not oracle_may_publish(reading_topic(1, KEY))


def test_nobody_leaves_our_tree() -> None:
    assert is_ours("gtx/v1/+/+/reading")
    assert not is_ours("#")
    assert not is_ours("$SYS/broker")


def test_a_topic_names_its_device() -> None:
    assert topic_device(reading_topic(3, KEY)) == KEY
    assert topic_device(announce_topic(3, KEY)) == KEY
    assert topic_device(watermark_topic(KEY)) is None
    assert topic_device("gtx/v1/1/" + "zz" * 32 + "/reading") is None
