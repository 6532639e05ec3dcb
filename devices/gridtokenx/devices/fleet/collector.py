"""`gtx concentrator`: stands between the meters of a neighbourhood and the network's broker.

::

    meters ──> their own broker ──reading──> collector ──ReadingBatch──> the network's broker
       ^                                        │
       └──────────── Watermark, retained <──────┘

Law of the file: **it carries what is signed, and holds nothing that only it holds.** It has no
device's key; it checks every signature before it carries a reading, because it is blamed for what it
carries. It keeps nothing on disk: a meter sends again what no watermark covers, so a concentrator that
is killed, or whose buffer is full, costs time and loses nothing.

At the meters' broker it takes the place of an oracle: it reads all readings there and publishes
watermarks.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import aiomqtt

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import BadSignature, Malformed, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier, Signer, Verifier
from gridtokenx.devices.fleet.concentrator import CAPACITY, LAST_BACKOFF_S, Concentrator
from gridtokenx.devices.fleet.fleet import parse_chain_id
from gridtokenx.host.broker import (
    BrokerAddress,
    BrokerState,
    broker_client,
    heed_cancellation,
    keep_connected,
    open_broker,
    until_first,
)
from gridtokenx.host.broker_address import (
    BrokerAuthority,
    BrokerCertificate,
    BrokerCertificateKey,
    BrokerPasswordFile,
    BrokerProtocol,
    BrokerUrl,
)
from gridtokenx.host.config import Setting, Settings
from gridtokenx.host.keyfile import KeyRing, find_password
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import KeyedSettings
from gridtokenx.host.tasks import Tasks
from gridtokenx.ledger.readings import (
    ALL_READINGS,
    MAX_READING_BYTES,
    SubmitReading,
    Watermark,
    topic_device,
    watermark_topic,
)
from gridtokenx.ledger.transactions import Transaction

FULL_PERCENT: Final = 80
"""Of the buffer: above this a concentrator is not ready."""
PER_DEVICE: Final = 64
"""Readings of one device that are looked at in `WINDOW_S`."""
WINDOW_S: Final = 10.0
MAX_DEVICES: Final = 65_536
IN_FLIGHT: Final = 32
_KEEPALIVE_S: Final = 30
_QUEUE: Final = 8_192


class BrokerAccess(Settings, frozen=True, kw_only=True):
    """One broker and the way in."""

    broker: BrokerUrl
    broker_protocol: BrokerProtocol = "5"
    broker_authority: BrokerAuthority = None
    broker_certificate: BrokerCertificate = None
    broker_certificate_key: BrokerCertificateKey = None
    broker_password_file: BrokerPasswordFile = None


class ConcentratorSettings(KeyedSettings, frozen=True, kw_only=True):
    """Settings of `gtx concentrator`."""

    meters: BrokerAccess
    """Where the meters report."""
    network: BrokerAccess
    """Where the oracle nodes listen."""
    chain_id: Annotated[str, Setting("Chain id of the oracle chain, in hexadecimal.")]


class Collector:
    """What stands between: readings up, watermarks down.

    Args:
        meters: the meters' broker.
        network: the network's.
        signer: the concentrator's key.
        chain_id: the oracle chain's: readings for another are not carried.
        metrics: counts ``readings_received``, ``readings_rejected`` by reason, ``watermarks_published``
            and what `Concentrator` counts.
        log: of the process.
        verifier: checks devices' signatures.
    """

    def __init__(
        self,
        meters: BrokerAddress,
        network: BrokerAddress,
        signer: Signer,
        chain_id: bytes,
        metrics: Metrics,
        log: Logger,
        verifier: Verifier | None = None,
    ) -> None:
        self._meters: Final = meters
        self._signer: Final = signer
        self._name: Final = signer.public_key.hex()
        self._chain_id: Final = chain_id
        self._metrics: Final = metrics
        self._verifier: Final = verifier or Ed25519Verifier()
        self._states: Final = {"meters": BrokerState(log), "network": BrokerState(log)}
        self._up: Final = Concentrator(
            network, signer, self._reached, self._states["network"], metrics
        )
        self._watermarks: dict[bytes, Watermark] = {}
        self._waiting: dict[bytes, Watermark] = {}
        self._answers: Final = asyncio.Event()
        self._looked_at: dict[bytes, int] = {}
        self._window_s = time.monotonic()
        metrics.gauge("broker_buffered", lambda: float(self._up.buffered))

    def readiness(self) -> Readiness:
        """Whether both brokers can be reached, and there is room."""
        reasons = [
            f"{name}: {state.reason}"
            for name, state in self._states.items()
            if state.reason is not None
        ]
        if 100 * self._up.buffered > FULL_PERCENT * CAPACITY:
            reasons.append(
                f"{self._up.buffered} readings wait for the network's broker, of {CAPACITY}; "
                "beyond that the oldest are dropped, and their meters send them again"
            )
        return Readiness.unless(reasons)

    async def run(self) -> None:
        """Carry until cancelled."""
        tasks = Tasks()
        try:
            tasks.spawn(self._up.run(), "network")
            connected = keep_connected(self._connection, self._lost, LAST_BACKOFF_S, self._name)
            tasks.spawn(connected, "meters")
            await tasks.watch()
        finally:
            await tasks.close()

    # -- down: the meters' broker ------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        self._states["meters"].down(self._name, reason)

    async def _connection(self) -> None:
        client = broker_client(
            self._meters, self._signer, self._name,
            keepalive_s=_KEEPALIVE_S, queued_messages=_QUEUE,
        )  # fmt: skip
        async with client:
            heed_cancellation()
            await client.subscribe(ALL_READINGS, qos=1)
            heed_cancellation()
            self._states["meters"].up(self._name)
            self._waiting = dict(self._watermarks)
            self._answers.set()
            await until_first(self._listen(client), self._publish(client))

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            self._metrics.count("readings_received")
            try:
                if isinstance(message.payload, bytes | bytearray):
                    self.take(str(message.topic), bytes(message.payload))
            except RemoteFault as fault:
                self._metrics.count("readings_rejected", reason=fault.reason)

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            await self._answers.wait()
            self._answers.clear()
            while self._waiting:
                answers = [self._waiting.pop(key) for key in list(self._waiting)[:IN_FLIGHT]]
                await self._answer(client, answers)

    async def _answer(self, client: aiomqtt.Client, answers: Sequence[Watermark]) -> None:
        """What is lost with the connection is published anew by the next one."""
        await asyncio.gather(
            *(
                client.publish(watermark_topic(each.device), encode(each), qos=1, retain=True)
                for each in answers
            )
        )
        self._metrics.count("watermarks_published", len(answers))

    # -- the two ways ------------------------------------------------------------------------------

    def take(self, topic: str, payload: bytes) -> None:
        """Look at a reading, and carry it.

        Raises:
            RemoteFault: it is none, another's, for another chain, forged, or one of too many.
        """
        device = topic_device(topic)
        if device is None:
            raise RemoteFault("wrong-topic", topic[:128])
        self._count(device)
        transaction = self._read(device, payload)
        known = self._watermarks.get(device)
        if known is not None and transaction.body.nonce <= known.sequence:
            self._waiting[device] = known
            self._answers.set()
            return
        check = transaction.signature_check()
        if not self._verifier.verify(check.public_key, check.message, check.signature):
            raise BadSignature(f"reading {transaction.body.nonce} of {device.hex()[:16]}")
        self._up.offer(payload)

    def _count(self, device: bytes) -> None:
        now_s = time.monotonic()
        if now_s - self._window_s >= WINDOW_S or len(self._looked_at) >= MAX_DEVICES:
            self._looked_at, self._window_s = {}, now_s
        count = self._looked_at[device] = self._looked_at.get(device, 0) + 1
        if count > PER_DEVICE:
            raise RemoteFault("sender-flood", device.hex()[:16])

    def _read(self, device: bytes, payload: bytes) -> Transaction:
        if len(payload) > MAX_READING_BYTES:
            raise RemoteFault("oversized", f"{len(payload)} bytes, at most {MAX_READING_BYTES}")
        transaction = decode(payload, Transaction)
        body = transaction.body
        if len(body.calls) != 1:
            raise Malformed("a reading is one call")
        decode(body.calls[0], SubmitReading)
        if body.sender != device:
            raise RemoteFault("wrong-topic", f"it is {body.sender.hex()[:16]}'s")
        if body.chain_id != self._chain_id:
            raise RemoteFault("wrong-chain", body.chain_id.hex()[:16])
        return transaction

    def _reached(self, watermark: Watermark) -> None:
        known = self._watermarks.get(watermark.device)
        if known == watermark:
            return
        if known is None and len(self._watermarks) >= MAX_DEVICES:
            raise RemoteFault("too-many-devices", f"{MAX_DEVICES} are known")
        self._watermarks[watermark.device] = self._waiting[watermark.device] = watermark
        self._answers.set()


async def run_concentrator(settings: ConcentratorSettings) -> None:
    """`gtx concentrator`: carry readings until cancelled.

    Raises:
        LocalFault: bad settings, files or keys.
    """
    role = open_role(settings, "concentrator")
    ring = KeyRing.open(
        settings.keys, find_password(settings.keys, settings.keys_password_file, os.environ)
    )
    meters, network = (
        _open(access, ring.seed(settings.key)) for access in (settings.meters, settings.network)
    )
    chain_id = parse_chain_id(settings.chain_id)
    signer = ring.signer(settings.key)
    collector = Collector(meters, network, signer, chain_id, role.metrics, role.log)
    async with role.serving(collector.readiness):
        await collector.run()


def _open(access: BrokerAccess, seed: bytes) -> BrokerAddress:
    broker = open_broker(access)
    if access.broker_certificate is None:
        return broker
    key: Path | bytes = access.broker_certificate_key or seed
    return broker.with_certificate(access.broker_certificate, key)
