"""One connection for the readings of many devices.

Law of the file: **a concentrator signs no reading, so it can withhold, and nothing else.** It collects
what devices have signed, publishes it in batches, and hears up to where each device's readings are
committed. What it holds is a copy: whoever signed a reading keeps it until its watermark has come,
so a buffer that is full drops its oldest, and a crash loses nothing.

::

    devices' outboxes ──Feed──> Concentrator ──ReadingBatch──> broker ──> oracle nodes
             ^                                                                 │
             └──────────────────── WatermarkBatch (retained, by bucket) <──────┘
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import aiomqtt

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.devices.fleet.journal import SignedReading
from gridtokenx.devices.fleet.outbox import Feed, Outbox
from gridtokenx.host.broker import (
    BrokerAddress,
    BrokerState,
    broker_client,
    heed_cancellation,
    keep_connected,
    until_first,
)
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.readings import (
    MAX_BATCH_BYTES,
    MAX_BATCH_READINGS,
    MAX_READING_BYTES,
    ReadingBatch,
    Watermark,
    WatermarkBatch,
    batch_topic,
    batch_watermark_topic,
)

CAPACITY: Final = 65_536
"""Readings that wait for the broker, about 20 MB; beyond it the oldest give way."""
GATHER_S: Final = 0.2
"""How long a batch that is not full waits for more."""
IN_FLIGHT: Final = 8
"""Batches that wait for the broker's acknowledgement together."""
WATERMARK_PATIENCE_S: Final = 2.0
"""How long a fresh connection waits for the retained watermarks before anything is sent."""
FEED_S: Final = 1.0
"""How often outboxes are looked through for what is to be sent again."""
REPEATS: Final = 128
"""Readings that are sent again in that time: where all are late, the network is slow, and to repeat
everything would make it slower."""
LAST_BACKOFF_S: Final = 15.0
_KEEPALIVE_S: Final = 30
_QUEUE: Final = 1_024
_FRAMING_BYTES: Final = 4
"""More than MessagePack adds to one reading."""


class Concentrator:
    """The connection: readings out in batches, watermarks in.

    Args:
        broker: where, and how to log in.
        signer: the concentrator's key: its name, and its login where there is no certificate.
        on_watermark: gets each watermark as it comes; raises `RemoteFault` for a false one.
        state: told of connections and losses.
        metrics: counts ``batches_published``, ``readings_published``, ``readings_given_up`` (by a full
            buffer) and ``watermarks_refused``.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        signer: Signer,
        on_watermark: Callable[[Watermark], None],
        state: BrokerState,
        metrics: Metrics,
    ) -> None:
        self._broker: Final = broker
        self._signer: Final = signer
        self._name: Final = signer.public_key.hex()
        self._on_watermark: Final = on_watermark
        self._state: Final = state
        self._metrics: Final = metrics
        self._waiting: Final[deque[bytes]] = deque()
        self._arrived: Final = asyncio.Event()
        self.heard: Final = asyncio.Event()
        """Set when the first connection has had time to bring the retained watermarks."""

    @property
    def buffered(self) -> int:
        """Readings that wait for the broker."""
        return len(self._waiting)

    def offer(self, reading: bytes) -> None:
        """Take a signed reading; the oldest gives way where there is no room."""
        if len(reading) > MAX_READING_BYTES:
            raise ValueError(f"a reading of {len(reading)} bytes")
        if len(self._waiting) >= CAPACITY:
            self._waiting.popleft()
            self._metrics.count("readings_given_up")
        self._waiting.append(reading)
        self._arrived.set()

    async def run(self) -> None:
        """Connect, and connect again after every loss, until cancelled."""
        await keep_connected(self._connection, self._lost, LAST_BACKOFF_S, self._name)

    def _lost(self, reason: str) -> None:
        self._state.down(self._name, reason)

    async def _connection(self) -> None:
        client = broker_client(
            self._broker,
            self._signer,
            self._name,
            keepalive_s=_KEEPALIVE_S,
            queued_messages=_QUEUE,
        )
        async with client:
            heed_cancellation()
            await client.subscribe(batch_watermark_topic(self._signer.public_key, None), qos=1)
            heed_cancellation()
            self._state.up(self._name)
            await until_first(self._listen(client), self._send(client))

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            try:
                batch = decode(message.payload, WatermarkBatch)
            except RemoteFault as fault:
                self._metrics.count("watermarks_refused", reason=fault.reason)
                continue
            for watermark in batch.watermarks:
                try:
                    self._on_watermark(watermark)
                except RemoteFault as fault:
                    self._metrics.count("watermarks_refused", reason=fault.reason)

    async def _send(self, client: aiomqtt.Client) -> None:
        if not self.heard.is_set():
            await asyncio.sleep(WATERMARK_PATIENCE_S)
            self.heard.set()
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if len(self._waiting) < MAX_BATCH_READINGS:
                await asyncio.sleep(GATHER_S)
            await self._publish(client)

    async def _publish(self, client: aiomqtt.Client) -> None:
        """Some batches at a time; what the broker did not acknowledge goes back to the front."""
        batches = [self._take() for _ in range(IN_FLIGHT) if self._waiting]
        topic = batch_topic(self._signer.public_key)
        sent: list[BaseException | None] = [asyncio.CancelledError()] * len(batches)
        try:
            sent = await asyncio.gather(
                *(
                    client.publish(topic, encode(ReadingBatch(readings=batch)), qos=1)
                    for batch in batches
                ),
                return_exceptions=True,
            )
        finally:
            for batch, failure in reversed(list(zip(batches, sent, strict=True))):
                if failure is not None:
                    self._waiting.extendleft(reversed(batch))
        for batch, failure in zip(batches, sent, strict=True):
            if failure is not None:
                raise failure
            self._metrics.count("batches_published")
            self._metrics.count("readings_published", len(batch))

    def _take(self) -> tuple[bytes, ...]:
        """The next batch, within the bounds of the wire."""
        batch: list[bytes] = []
        size = _FRAMING_BYTES
        while self._waiting and len(batch) < MAX_BATCH_READINGS:
            size += len(self._waiting[0]) + _FRAMING_BYTES
            if size > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return tuple(batch)


class FleetConcentrator:
    """Keeps the outboxes of a whole fleet empty through one `Concentrator`.

    Args:
        broker: where, and how to log in.
        signer: the concentrator's key.
        outboxes: of all devices, by public key.
        state: told of connections and losses.
        metrics: see `Concentrator`.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        signer: Signer,
        outboxes: Sequence[Outbox],
        state: BrokerState,
        metrics: Metrics,
    ) -> None:
        self._outboxes: Final = {outbox.device: outbox for outbox in outboxes}
        self._concentrator: Final = Concentrator(broker, signer, self._reached, state, metrics)
        self._woken: Final = asyncio.Event()

    @property
    def buffered(self) -> int:
        """Readings that wait for the broker."""
        return self._concentrator.buffered

    def wake(self) -> None:
        """There are new readings."""
        self._woken.set()

    async def run(self) -> None:
        """Report until cancelled."""
        await until_first(self._concentrator.run(), self._feed())

    async def _feed(self) -> None:
        await self._concentrator.heard.wait()
        loop = asyncio.get_running_loop()
        repeated_s = loop.time()
        feeds = deque(Feed(outbox, repeated_s) for outbox in self._outboxes.values())
        while True:
            now_s = loop.time()
            for feed in feeds:
                self._offer(feed.fresh(now_s))
            if now_s - repeated_s >= FEED_S:
                repeated_s = now_s
                self._repeat(feeds, now_s)
            self._woken.clear()
            try:
                async with asyncio.timeout(FEED_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _repeat(self, feeds: "deque[Feed]", now_s: float) -> None:
        """Some of what is to be sent again, the devices by turns, once the buffer is empty."""
        repeated = 0
        for _ in range(len(feeds)):
            if repeated >= REPEATS or self._concentrator.buffered:
                return
            repeated += self._offer(feeds[0].again(now_s))
            feeds.rotate(-1)

    def _offer(self, readings: Sequence[SignedReading]) -> int:
        for reading in readings:
            self._concentrator.offer(reading.transaction)
        return len(readings)

    def _reached(self, watermark: Watermark) -> None:
        outbox = self._outboxes.get(watermark.device)
        if outbox is None:
            raise RemoteFault("watermark-device", watermark.device.hex())
        outbox.reached(watermark)
