"""Which watermarks to publish, and when: so that meters stop sending what is committed.

Law of the file: **a watermark says what committed state says, and nothing earlier.** It is made after
the block is durable under its certificate.

Every oracle could publish every watermark; that would be n times the traffic. For each block and
device one oracle is on duty, by turns; and whoever sees a device send what is committed already
answers it. So a silent oracle costs its share of the devices one repetition.

A device whose readings came through a concentrator is answered there, together with the others of its
bucket: one message in place of up to a thousand. Who carries whom is only known from what was heard,
so after a restart it is learned anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import decode, encode
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.readings import (
    MAX_BUCKET,
    SubmitReading,
    Watermark,
    WatermarkBatch,
    batch_watermark_topic,
    watermark_bucket,
    watermark_topic,
)
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.ledger.state import State
from gridtokenx.oracle.chain.admission import watermark
from gridtokenx.oracle.chain.registry import ORDER, DeviceRegistered, walk_devices
from gridtokenx.pbft.membership import validators_of

ANSWER_AGAIN_MS: Final = 2_000
"""A device that keeps repeating itself is answered this often."""
MAX_ANSWERED: Final = 65_536
Bucket = tuple[bytes, int]
"""A concentrator, and one of its retained messages."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One message to be published, retained."""

    topic: str
    payload: bytes
    source: "Watermark | Bucket"
    """What it says; for `Watermarks.put_back`."""


class Watermarks:
    """The watermarks that wait to be published, newest only.

    Args:
        ledger: decodes what blocks hold.
        key: this oracle's; its seat after each block says what it publishes.
    """

    def __init__(self, ledger: Ledger, key: bytes) -> None:
        self._ledger: Final = ledger
        self._key: Final = key
        self._waiting: dict[bytes, Watermark] = {}
        self._answered_ms: dict[bytes, int] = {}
        self._carriers: dict[bytes, bytes] = {}
        self._buckets: dict[Bucket, dict[bytes, Watermark]] = {}
        self._dirty: dict[Bucket, None] = {}

    def connected(self, state: State) -> list[bytes]:
        """A broker may have lost everything, or blocks went by unseen: publish for every device.

        Returns:
            The keys of all active devices.
        """
        registrations = [each.registration for each in walk_devices(state, 0, ORDER.length(state))]
        for registration in registrations:
            self._publish(state, registration.public_key)
        return [each.public_key for each in registrations if each.active]

    def heard(self, public_key: bytes, concentrator: bytes | None) -> None:
        """A device's reading came, by itself or through a concentrator: its answer goes there."""
        if self._carriers.get(public_key) == concentrator:
            return
        known = self._carriers.pop(public_key, None)
        if known is not None:
            self._buckets.get((known, watermark_bucket(public_key)), {}).pop(public_key, None)
        if concentrator is not None:
            self._carriers[public_key] = concentrator

    def committed(self, executed: ExecutedBlock) -> list[bytes]:
        """Note what a block changed; returns the keys of devices that it registered."""
        state = State(executed.state)
        registered = registered_keys(self._ledger, executed)
        for key in registered:
            self._publish(state, key)
        oracles = validators_of(executed.state)
        seat = oracles.index_of(self._key)
        for key in _readers(self._ledger, executed):
            bucket = self._bucket(key)
            if bucket is not None:
                duty = _on_duty(bucket[0], executed.height + bucket[1], oracles.size)
                self._fill(state, bucket, key, publish=duty == seat)
            elif _on_duty(key, executed.height, oracles.size) == seat:
                self._publish(state, key)
        return registered

    def repeated(
        self, state: State, public_key: bytes, concentrator: bytes | None, now_ms: int
    ) -> None:
        """A device sends what is committed: it has missed its watermark."""
        if now_ms - self._answered_ms.get(public_key, -ANSWER_AGAIN_MS) < ANSWER_AGAIN_MS:
            return
        if len(self._answered_ms) >= MAX_ANSWERED:
            self._answered_ms.clear()
        self._answered_ms[public_key] = now_ms
        self.heard(public_key, concentrator)
        self._publish(state, public_key)

    def take(self, most: int = 1) -> list[Answer]:
        """The next ones to publish; empty if nothing waits."""
        answers: list[Answer] = []
        while self._dirty and len(answers) < most:
            bucket = next(iter(self._dirty))
            del self._dirty[bucket]
            if held := self._buckets.get(bucket):
                payload = encode(WatermarkBatch(watermarks=tuple(held.values())))
                answers.append(Answer(batch_watermark_topic(*bucket), payload, bucket))
        while self._waiting and len(answers) < most:
            waiting = self._waiting.pop(next(iter(self._waiting)))
            answers.append(Answer(watermark_topic(waiting.device), encode(waiting), waiting))
        return answers

    def put_back(self, unsent: Answer) -> None:
        """It could not be published; a newer one of the same device goes first."""
        if isinstance(unsent.source, Watermark):
            self._waiting.setdefault(unsent.source.device, unsent.source)
        else:
            self._dirty[unsent.source] = None

    def _publish(self, state: State, public_key: bytes) -> None:
        bucket = self._bucket(public_key)
        if bucket is None:
            self._waiting[public_key] = watermark(state, public_key)
        else:
            self._fill(state, bucket, public_key, publish=True)

    def _fill(self, state: State, bucket: Bucket, public_key: bytes, *, publish: bool) -> None:
        held = self._buckets.setdefault(bucket, {})
        held.pop(public_key, None)
        if len(held) >= MAX_BUCKET:
            del held[next(iter(held))]
        held[public_key] = watermark(state, public_key)
        if publish:
            self._dirty[bucket] = None

    def _bucket(self, public_key: bytes) -> Bucket | None:
        """Where a device's watermark goes if a concentrator carries its readings."""
        carrier = self._carriers.get(public_key)
        return None if carrier is None else (carrier, watermark_bucket(public_key))


def registered_keys(ledger: Ledger, executed: ExecutedBlock) -> list[bytes]:
    """Keys of devices that the consortium registered, by a block's events."""
    keys = []
    for raw in executed.events:
        event = decode(decode(raw, EventRecord).data, ledger.event_union)
        if isinstance(event, DeviceRegistered) and event.registration.active:
            keys.append(event.registration.public_key)
    return keys


def _readers(ledger: Ledger, executed: ExecutedBlock) -> Iterable[bytes]:
    """Devices of which a block holds readings."""
    return dict.fromkeys(
        transaction.body.sender
        for transaction in executed.block.transactions
        if isinstance(ledger.decode_calls(transaction)[0], SubmitReading)
    )


def _on_duty(key: bytes, height: int, oracles: int) -> int:
    """The seat of the oracle that publishes for a key after a block."""
    return (int.from_bytes(key[:4], "big") + height) % oracles
