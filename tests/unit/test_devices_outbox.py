"""What a device still has to send, and when it repeats itself."""

import asyncio

import pytest

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.devices.fleet.journal import SignedReading
from gridtokenx.devices.fleet.outbox import (
    FIRST_RESEND_S,
    LAST_RESEND_S,
    RESEND_BATCH,
    Outbox,
    Pace,
)
from gridtokenx.ledger.readings import Watermark

DEVICE = b"\x07" * 32


def reading(sequence: int) -> SignedReading:
    return SignedReading(DEVICE, sequence, sequence, b"t")


def outbox(count: int) -> Outbox:
    return Outbox(DEVICE, [reading(number) for number in range(1, count + 1)])


def watermark(sequence: int, device: bytes = DEVICE) -> bytes:
    return encode(Watermark(device, sequence, 0))


def sequences(readings: list[SignedReading]) -> list[int]:
    return [each.sequence for each in readings]


def test_everything_waits_until_a_watermark_comes() -> None:
    box = outbox(5)
    assert sequences(box.after(0)) == [1, 2, 3, 4, 5]
    box.observe(watermark(3))
    assert sequences(box.after(0)) == [4, 5]
    assert sequences(box.after(4)) == [5]
    assert (box.newest, box.waiting) == (5, 2)


def test_a_lower_watermark_makes_it_send_again() -> None:
    box = outbox(5)
    box.observe(watermark(5))
    box.observe(watermark(2))
    assert sequences(box.after(0)) == [3, 4, 5]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"x" * 10_000, "malformed"),
        (watermark(1) + b"\0", "malformed"),
        (watermark(1, b"\x08" * 32), "watermark-device"),
        (watermark(6), "watermark-ahead"),
    ],
)
def test_refuses_what_is_no_watermark_of_its_own(payload: bytes, reason: str) -> None:
    box = outbox(5)
    with pytest.raises(RemoteFault) as refused:
        box.observe(payload)
    assert refused.value.reason == reason
    assert box.watermark == 0


def test_repetition_goes_round_from_the_oldest() -> None:
    box = outbox(RESEND_BATCH + 3)
    first = sequences(box.batch_after(0))
    second = sequences(box.batch_after(first[-1]))
    third = sequences(box.batch_after(second[-1]))
    assert first == list(range(1, RESEND_BATCH + 1))
    assert second == [RESEND_BATCH + 1, RESEND_BATCH + 2, RESEND_BATCH + 3]
    assert third == first


def test_repetition_slows_down_while_nothing_moves() -> None:
    pace = Pace()
    waits = []
    for _ in range(6):
        pace.note(0)
        waits.append(pace.wait_s)
    assert waits == sorted(waits)
    assert waits[-1] == LAST_RESEND_S
    pace.note(1)
    assert pace.wait_s == FIRST_RESEND_S


async def test_waiting_ends_with_the_next_reading() -> None:
    box = outbox(1)
    waiting = asyncio.create_task(box.wait_for_new(1, 5.0))
    await asyncio.sleep(0)
    box.add(reading(2))
    assert await waiting
    assert not await box.wait_for_new(2, 0.01)
