"""What an oracle node does with messages before they become transactions."""

from collections import Counter

import pytest
from tests.oracle_world import Device

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.ledger.readings import (
    MAX_BATCH_BYTES,
    MAX_BATCH_READINGS,
    ReadingBatch,
    batch_topic,
    batch_watermark_topic,
    reading_topic,
    topic_concentrator,
    topic_device,
)
from gridtokenx.oracle.process.carriers import FAULTS, MUTED_S, WINDOW_S, Carriers, unpack
from gridtokenx.oracle.process.inbox import Inbox

KEY, OTHER = b"\x01" * 32, b"\x02" * 32


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_senders_take_turns_so_that_a_flood_delays_nobody_else() -> None:
    inbox = Inbox(most=100, per_sender=10)
    refused = Counter(inbox.put("flood", b"x") for _ in range(50))
    assert refused == {None: 10, "sender-flood": 40}
    assert inbox.put("quiet", b"y") is None
    taken = [inbox.take() for _ in range(2)]
    assert taken == [("flood", b"x"), ("quiet", b"y")]
    assert len(inbox) == 9


def test_an_inbox_is_bounded_in_messages_and_in_bytes() -> None:
    by_count = Inbox(most=3)
    assert [by_count.put(str(n), b"") for n in range(4)] == [None, None, None, "overload"]
    assert by_count.full_percent == 100
    by_bytes = Inbox(most_bytes=10)
    assert [by_bytes.put(str(n), bytes(4)) for n in range(3)] == [None, None, "overload"]
    assert by_bytes.full_percent == 80
    while by_bytes.take() is not None:
        pass
    assert (len(by_bytes), by_bytes.full_percent) == (0, 0)
    by_bytes.put("x", b"x")
    by_bytes.clear()
    assert by_bytes.take() is None


def test_a_batch_is_taken_apart_and_a_false_one_refused() -> None:
    readings = tuple(Device(f"d{n}").reading(0, 5).encoded for n in range(3))
    assert unpack(encode(ReadingBatch(readings=readings))) == readings
    full = encode(ReadingBatch(readings=(bytes(400),) * MAX_BATCH_READINGS))
    assert len(full) < MAX_BATCH_BYTES
    too_many = encode(ReadingBatch(readings=(b"x",) * (MAX_BATCH_READINGS + 1)))
    for wrong in (b"", b"\xc0", too_many, encode(ReadingBatch(readings=()))):
        with pytest.raises(RemoteFault, match="malformed"):
            unpack(wrong)
    with pytest.raises(RemoteFault, match="oversized"):
        unpack(bytes(MAX_BATCH_BYTES + 65))


def test_who_carries_too_much_that_is_bad_is_muted_for_a_while() -> None:
    clock = Clock()
    carriers = Carriers(clock)
    assert [carriers.blame(KEY) for _ in range(FAULTS - 1)] == [False] * (FAULTS - 1)
    clock.now_s += WINDOW_S
    assert not carriers.blame(KEY), "what is long ago does not count"
    assert carriers.blame(KEY, FAULTS)
    assert carriers.is_muted(KEY)
    assert not carriers.is_muted(OTHER)
    clock.now_s += MUTED_S
    assert not carriers.is_muted(KEY)
    assert not carriers.blame(KEY), "it begins anew"


def test_topics_of_concentrators_and_devices_are_not_confused() -> None:
    assert topic_concentrator(batch_topic(KEY)) == KEY
    assert topic_device(batch_topic(KEY)) is None
    assert topic_concentrator(reading_topic(3, KEY)) is None
    assert topic_concentrator(batch_watermark_topic(KEY, 3)) is None
    assert topic_device(reading_topic(3, KEY)) == KEY
    for wrong in ("", "gtx/v1/concentrator//readings", "gtx/v1/concentrator/zz/readings"):
        assert topic_concentrator(wrong) is None
