"""An oracle node's connection to the MQTT broker.

Readings come in through a bounded queue; watermarks go out from `Watermarks`. A connection that
breaks is made again, with back-off; nothing is lost by it, because meters repeat what has no
watermark and every connection starts by publishing all watermarks.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import aiomqtt

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Signer
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.broker_access import connect_password
from gridtokenx.ledger.readings import ALL_READINGS, watermark_topic
from gridtokenx.oracle.process.watermarks import Watermarks

FIRST_BACKOFF_S: Final = 0.25
LAST_BACKOFF_S: Final = 10.0
CANCEL_AGAIN_S: Final = 1.0
KEEPALIVE_S: Final = 15
QUEUED_MESSAGES: Final = 2_048
"""Readings that wait to be judged; what comes beyond is dropped, and sent again by its meter."""
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
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        host = None
    if not host:
        raise LocalFault(f"broker {url!r} is not mqtt[s]://[user:password@]host[:port]")
    return BrokerAddress(
        host,
        port,
        _tls(ca_file) if parts.scheme == "mqtts" else None,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
    )


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LocalFault(f"{ca_file}: cannot be used as CA file: {error}") from None


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
        log: for losses.
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
        self._log: Final = log
        self._wake: Final = asyncio.Event()
        self.connected = False

    def wake(self) -> None:
        """There are watermarks to publish."""
        self._wake.set()

    async def run(self) -> None:
        """Connect, and connect again after every loss, until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            try:
                await self._connection()
            except (aiomqtt.MqttError, OSError) as error:
                _heed_cancellation()
                self._metrics.count("broker_losses")
                self._log.warning("broker lost", reason=str(error))
            if time.monotonic() - started > LAST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _connection(self) -> None:
        async with self._client() as client:
            _heed_cancellation()
            self.connected = True
            try:
                await client.subscribe(ALL_READINGS, qos=1)
                _heed_cancellation()
                self._metrics.count("broker_connects")
                self._on_connect()
                self._wake.set()
                await _until_first(self._listen(client), self._publish(client))
            finally:
                self.connected = False

    def _client(self) -> aiomqtt.Client:
        address, identity = self._address, self._signer.public_key.hex()
        username, password = address.username, address.password
        if username is None:
            username = identity
            password = connect_password(self._signer, time.time_ns() // 1_000_000)
        return aiomqtt.Client(
            address.host,
            address.port,
            identifier=identity,
            username=username,
            password=password,
            tls_context=address.tls,
            clean_session=True,
            keepalive=KEEPALIVE_S,
            max_queued_incoming_messages=QUEUED_MESSAGES,
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
            while (waiting := self._watermarks.take()) is not None:
                try:
                    await client.publish(
                        watermark_topic(waiting.device), encode(waiting), qos=1, retain=True
                    )
                except BaseException:
                    self._watermarks.put_back(waiting)
                    raise
                self._metrics.count("watermarks_published")


async def _until_first(*works: Coroutine[None, None, None]) -> None:
    """Run side by side until one ends, then end the others, and raise what it raised.

    Ours differs from `asyncio.TaskGroup`: in Python 3.11 that leaves a cancel request on a task that
    goes on after the group has failed, as a reconnecting one does.
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

    aiomqtt stands on Python 3.11's `asyncio.wait_for`, which swallows a cancellation that coincides
    with an answer; and leaving a broken connection can turn one into an `MqttError`. A loop that then
    connects again would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
