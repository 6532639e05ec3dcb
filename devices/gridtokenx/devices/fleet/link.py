"""One device's own connection to the broker: birth, readings out, watermark in, last will."""

import asyncio
import random
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import aiomqtt

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.devices.fleet.journal import SignedReading
from gridtokenx.devices.fleet.outbox import Outbox, Pace
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.broker_access import connect_password
from gridtokenx.ledger.readings import (
    Announcement,
    announce_topic,
    device_id,
    reading_topic,
    watermark_topic,
)

FIRST_BACKOFF_S: Final = 0.25
LAST_BACKOFF_S: Final = 15.0
WATERMARK_PATIENCE_S: Final = 2.0
"""How long a fresh connection waits for the retained watermark before it sends all that it
keeps."""
CANCEL_AGAIN_S: Final = 1.0
_KEEPALIVE_S: Final = 30
_QUEUE: Final = 32
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and how to log in where its own scheme is not ours."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None


def parse_broker(url: str, ca_file: Path | None = None) -> BrokerAddress:
    """A broker's address from ``mqtt[s]://[user:password@]host[:port]``.

    Raises:
        LocalFault: it is no such address, or the CA file cannot be used.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
        host = parts.hostname or ""
    except (ValueError, KeyError):
        host = ""
        port = 0
    if not host:
        raise LocalFault(f"broker {url!r} is not mqtt[s]://[user:password@]host[:port]")
    tls = None
    if parts.scheme == "mqtts":
        try:
            tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise LocalFault(f"{ca_file}: cannot be used as CA file: {error}") from None
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return BrokerAddress(host, port, tls, username, password)


class DeviceLink:
    """Keeps one device connected and its outbox empty.

    Args:
        broker: where to connect.
        signer: the device's key; it logs in with it.
        kind: for the announcement.
        zone: for the topics.
        outbox: what there is to send.
        metrics: counts ``readings_published``, ``readings_resent``, ``device_reconnects`` and
            ``watermarks_refused``.
        log: for losses.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        signer: Signer,
        kind: DeviceKind,
        zone: int,
        outbox: Outbox,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._broker = broker
        self._signer = signer
        self._kind = kind
        self._outbox = outbox
        self._metrics = metrics
        self._log = log
        self._id = device_id(signer.public_key)
        self._reading_topic = reading_topic(zone, signer.public_key)
        self._announce_topic = announce_topic(zone, signer.public_key)
        self._published = outbox.newest
        self.connected = False

    async def run(self) -> None:
        """Connect, and connect again after every loss, until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            try:
                await self._connection()
            except (aiomqtt.MqttError, OSError) as error:
                _heed_cancellation()
                self._metrics.count("device_reconnects")
                self._log.debug("broker lost", device=self._id[:8], reason=str(error))
            if time.monotonic() - started > LAST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            # A whole fleet must not come back in the same instant.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _connection(self) -> None:
        async with self._client() as client:
            _heed_cancellation()
            self.connected = True
            try:
                # The listener is the one that notices a broken connection at once.
                await _until_first(self._listen(client), self._send(client))
            finally:
                self.connected = False

    def _client(self) -> aiomqtt.Client:
        username, password = self._broker.username, self._broker.password
        if username is None:
            username = self._id
            password = connect_password(self._signer, time.time_ns() // 1_000_000)
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier=self._id,
            username=username,
            password=password,
            tls_context=self._broker.tls,
            clean_session=True,
            keepalive=_KEEPALIVE_S,
            max_queued_incoming_messages=_QUEUE,
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
        outbox, pace = self._outbox, Pace()
        birth = self._announcement(online=True)
        await client.publish(self._announce_topic, birth, qos=1, retain=True)
        await client.subscribe(watermark_topic(self._signer.public_key), qos=1)
        await self._await_watermark()
        sent = repeated = 0
        repeat_at = time.monotonic() + pace.wait_s
        while True:
            fresh = outbox.after(sent)
            for reading in fresh:
                await self._publish(client, reading)
            sent = max(sent, outbox.watermark, *(each.sequence for each in fresh))
            if fresh and outbox.waiting <= len(fresh):
                # All that waits has just gone out for the first time.
                pace = Pace()
                repeat_at = time.monotonic() + pace.wait_s
            if await outbox.wait_for_new(sent, repeat_at - time.monotonic()):
                continue
            for reading in outbox.batch_after(repeated):
                await self._publish(client, reading)
                repeated = reading.sequence
            pace.note(outbox.watermark)
            repeat_at = time.monotonic() + pace.wait_s

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


async def _until_first(*works: Coroutine[None, None, None]) -> None:
    """Run all until one ends, with that one's error if it has one; none outlives this call.

    Ours differs: no `TaskGroup`, which in Python 3.11 leaves its own cancel request on a task that
    goes on after the group failed, as a reconnecting one does.
    """
    tasks = {asyncio.ensure_future(work) for work in works}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pending = {task for task in tasks if not task.done()}
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
        for task in tasks:
            # Looked at, so that asyncio does not report the error that came second.
            _ = task.cancelled() or task.exception()
    for task in done:
        task.result()


def _heed_cancellation() -> None:
    """Be cancelled, if that was asked.

    Python 3.11's `asyncio.wait_for`, on which aiomqtt stands, swallows a cancellation that
    coincides with an answer, and leaving a broken connection turns one into an `MqttError`; a loop
    that then connects again would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
