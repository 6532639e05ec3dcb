"""One device's own connection to the broker: birth, readings out, watermark in, last will."""

import asyncio
from typing import Final

import aiomqtt

from gridtokenx.core.codec import encode
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
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.readings import (
    Announcement,
    announce_topic,
    device_id,
    reading_topic,
    watermark_topic,
)

LAST_BACKOFF_S: Final = 15.0
WATERMARK_PATIENCE_S: Final = 2.0
"""How long a fresh connection waits for the retained watermark before it sends all that it
keeps."""
_KEEPALIVE_S: Final = 30
_QUEUE: Final = 32


class DeviceLink:
    """Keeps one device connected and its outbox empty.

    Args:
        broker: where to connect.
        signer: the device's key; it logs in with it.
        kind: for the announcement.
        zone: for the topics.
        outbox: what there is to send.
        state: told of connections and losses.
        metrics: counts ``readings_published``, ``readings_resent``, ``device_reconnects`` and
            ``watermarks_refused``.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        signer: Signer,
        kind: DeviceKind,
        zone: int,
        outbox: Outbox,
        state: BrokerState,
        metrics: Metrics,
    ) -> None:
        self._broker = broker
        self._signer = signer
        self._kind = kind
        self._outbox = outbox
        self._state = state
        self._metrics = metrics
        self._id = device_id(signer.public_key)
        self._reading_topic = reading_topic(zone, signer.public_key)
        self._announce_topic = announce_topic(zone, signer.public_key)
        self._published = outbox.newest

    async def run(self) -> None:
        """Connect, and connect again after every loss, until cancelled."""
        await keep_connected(self._connection, self._lost, LAST_BACKOFF_S, self._id)

    def _lost(self, reason: str) -> None:
        self._metrics.count("device_reconnects")
        self._state.down(self._id, reason)

    async def _connection(self) -> None:
        async with self._client() as client:
            heed_cancellation()
            self._state.up(self._id)
            # The listener is the one that notices a broken connection at once.
            await until_first(self._listen(client), self._send(client))

    def _client(self) -> aiomqtt.Client:
        return broker_client(
            self._broker,
            self._signer,
            self._id,
            keepalive_s=_KEEPALIVE_S,
            queued_messages=_QUEUE,
            will=aiomqtt.Will(
                self._announce_topic, self._announcement(online=False), qos=1, retain=True
            ),
        )

    def _announcement(self, *, online: bool) -> bytes:
        kind = self._kind.name.lower()
        return encode(Announcement(device=self._signer.public_key, kind=kind, online=online))

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            try:
                self._outbox.observe(message.payload)
            except RemoteFault as fault:
                self._metrics.count("watermarks_refused", reason=fault.reason)

    async def _send(self, client: aiomqtt.Client) -> None:
        """Birth; then new readings at once, and those that stay uncommitted again and again."""
        birth = self._announcement(online=True)
        await client.publish(self._announce_topic, birth, qos=1, retain=True)
        await client.subscribe(watermark_topic(self._signer.public_key), qos=1)
        await self._await_watermark()
        now_s = asyncio.get_running_loop().time
        feed = Feed(self._outbox, now_s())
        while True:
            for reading in feed.due(now_s()):
                await self._publish(client, reading)
            await self._outbox.wait_for_new(feed.sent, feed.repeat_at_s - now_s())

    async def _await_watermark(self) -> None:
        try:
            async with asyncio.timeout(WATERMARK_PATIENCE_S):
                await self._outbox.heard.wait()
        except TimeoutError:
            return

    async def _publish(self, client: aiomqtt.Client, reading: SignedReading) -> None:
        await client.publish(self._reading_topic, reading.transaction, qos=1)
        again = reading.sequence <= self._published
        self._published = max(self._published, reading.sequence)
        self._metrics.count("readings_resent" if again else "readings_published")
