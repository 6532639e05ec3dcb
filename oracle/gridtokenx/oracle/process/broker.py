"""An oracle node's connection to the MQTT broker.

Readings come in through a bounded queue; watermarks go out from `Watermarks`. A connection that
breaks is made again, with back-off; nothing is lost by it, because meters repeat what has no
watermark and every connection starts by publishing all watermarks.

So this node keeps nothing on disk of what it has received and not yet committed: the one copy that
counts is the meter's journal (`devices/fleet/journal.py`), which is deleted by nobody's word.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import aiomqtt

from gridtokenx.core.keys import Signer
from gridtokenx.host.broker import (
    BrokerAddress,
    BrokerState,
    broker_client,
    heed_cancellation,
    keep_connected,
    until_first,
)
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.readings import ALL_BATCHES, ALL_READINGS
from gridtokenx.oracle.process.watermarks import Answer, Watermarks

LAST_BACKOFF_S: Final = 10.0
KEEPALIVE_S: Final = 15
QUEUED_MESSAGES: Final = 2_048
"""Messages between the connection and the inbox."""
IN_FLIGHT: Final = 32
"""Watermarks that wait for the broker's acknowledgement together."""


class BrokerLink:
    """Keeps one oracle node connected.

    Args:
        address: of the broker.
        signer: the oracle's key; it logs in with it.
        watermarks: what to publish.
        take: gets each reading as (topic, payload); short, and never raises.
        on_connect: called when a connection is up, before anything is published.
        metrics: counts ``broker_connects``, ``broker_losses``, ``watermarks_published`` and
            ``readings_dropped``.
        log: told when the broker is lost and when it is back.
    """

    def __init__(
        self,
        address: BrokerAddress,
        signer: Signer,
        watermarks: Watermarks,
        take: Callable[[str, bytes], None],
        on_connect: Callable[[], None],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._address: Final = address
        self._signer: Final = signer
        self._watermarks: Final = watermarks
        self._take: Final = take
        self._on_connect: Final = on_connect
        self._metrics: Final = metrics
        self._name: Final = signer.public_key.hex()
        self._wake: Final = asyncio.Event()
        self.state: Final = BrokerState(log)
        """Whether there is a connection."""

    def wake(self) -> None:
        """There are watermarks to publish."""
        self._wake.set()

    async def run(self) -> None:
        """Connect, and connect again after every loss, until cancelled."""
        await keep_connected(self._connection, self._lost, LAST_BACKOFF_S, self._name)

    def _lost(self, reason: str) -> None:
        self._metrics.count("broker_losses")
        self.state.down(self._name, reason)

    async def _connection(self) -> None:
        async with self._client() as client:
            heed_cancellation()
            for topics in (ALL_READINGS, ALL_BATCHES):
                await client.subscribe(topics, qos=1)
                heed_cancellation()
            self._metrics.count("broker_connects")
            self.state.up(self._name)
            self._on_connect()
            self._wake.set()
            try:
                await until_first(self._listen(client), self._publish(client))
            finally:
                self.state.closed(self._name)

    def _client(self) -> aiomqtt.Client:
        return broker_client(
            self._address,
            self._signer,
            self._name,
            keepalive_s=KEEPALIVE_S,
            queued_messages=QUEUED_MESSAGES,
        )

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload
            if isinstance(payload, bytes | bytearray):
                self._take(str(message.topic), bytes(payload))

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while answers := self._watermarks.take(IN_FLIGHT):
                await self._answer(client, answers)

    async def _answer(self, client: aiomqtt.Client, answers: Sequence[Answer]) -> None:
        """Publish some together; what the broker did not acknowledge goes back."""
        ends: Sequence[BaseException | None] = [asyncio.CancelledError()] * len(answers)
        try:
            ends = await asyncio.gather(
                *(client.publish(each.topic, each.payload, qos=1, retain=True) for each in answers),
                return_exceptions=True,
            )
        finally:
            for each, failure in zip(answers, ends, strict=True):
                if failure is not None:
                    self._watermarks.put_back(each)
        for failure in ends:
            if failure is not None:
                raise failure
            self._metrics.count("watermarks_published")
