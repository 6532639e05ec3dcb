"""Readings of many devices in one message: judged one by one, answered together, and never forged."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import aiomqtt
import pytest
from msgspec import structs
from tests.e2e.test_oracle_service import ORACLE, PATIENCE_S, Meter, Scene, send
from tests.oracle_world import CHAIN

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.devices.fleet.broker import BrokerSettings, serve_broker
from gridtokenx.devices.fleet.collector import PER_DEVICE, Collector
from gridtokenx.devices.fleet.concentrator import FleetConcentrator
from gridtokenx.devices.fleet.journal import SignedReading
from gridtokenx.devices.fleet.outbox import Outbox
from gridtokenx.host.broker import BrokerState, broker_client, parse_broker
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.readings import (
    ReadingBatch,
    Watermark,
    WatermarkBatch,
    batch_topic,
    batch_watermark_topic,
    watermark_topic,
)
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.process.carriers import FAULTS

pytestmark = pytest.mark.e2e
CARRIER = Ed25519Signer(sha256(b"e2e concentrator"))


@contextlib.asynccontextmanager
async def running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def broker(path: Path, **clients: list[str]) -> AsyncIterator[int]:
    path.write_text(json.dumps(clients))  # noqa: ASYNC240 - nothing runs yet
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = BrokerSettings(port=0, clients=path)
    async with running(serve_broker(settings, Metrics(), NullLogger(), started)):
        yield await started


@contextlib.asynccontextmanager
async def scene(path: Path) -> AsyncIterator[Scene]:
    """The network's broker, and an oracle service."""
    oracles, concentrators = [ORACLE.public_key.hex()], [CARRIER.public_key.hex()]
    async with (
        broker(path / "network.json", oracles=oracles, concentrators=concentrators) as port,
        Scene(port).running() as running_scene,
    ):
        yield running_scene


def carrier(port: int) -> aiomqtt.Client:
    address = parse_broker(f"mqtt://127.0.0.1:{port}")
    name = CARRIER.public_key.hex()
    return broker_client(address, CARRIER, name, keepalive_s=15, queued_messages=100)


async def watermarks(client: aiomqtt.Client) -> dict[bytes, int]:
    """What the next message of a bucket says."""
    async with asyncio.timeout(PATIENCE_S):
        message = await anext(client.messages)
    assert isinstance(message.payload, bytes)
    batch = decode(message.payload, WatermarkBatch)
    return {each.device: each.sequence for each in batch.watermarks}


async def until_known(client: aiomqtt.Client, expected: dict[bytes, int]) -> None:
    known: dict[bytes, int] = {}
    while known != expected:
        known |= await watermarks(client)


def damaged(transaction: Transaction) -> bytes:
    body = structs.replace(transaction.body, nonce=99)
    return encode(Transaction(body, transaction.signature))


async def test_one_bad_reading_of_a_batch_costs_itself_and_is_attributed(tmp_path: Path) -> None:
    meters = [Meter(f"meter {n}") for n in range(3)]
    async with scene(tmp_path) as here, carrier(here.port) as client:
        await client.subscribe(batch_watermark_topic(CARRIER.public_key, None), qos=1)
        here.node.register(*meters)
        readings = [meter.reading(0, 100) for meter in meters]
        payload = (readings[0].encoded, damaged(readings[1]), b"\xc1", readings[2].encoded)
        batch = encode(ReadingBatch(readings=payload))
        await client.publish(batch_topic(CARRIER.public_key), batch, qos=1)
        await here.until(lambda: len(here.node.submitted) == 2)
        assert here.node.commit() == ["ok", "ok"]
        await until_known(client, {meters[0].device: 1, meters[2].device: 1})
        await here.until(lambda: here.rejected() == {"bad-signature": 1, "malformed": 1})
        faults = here.metrics.value(
            "concentrator_faults", concentrator=CARRIER.public_key.hex()[:16]
        )
        assert faults == 2


async def test_a_committed_reading_that_comes_again_is_answered_where_it_came(
    tmp_path: Path,
) -> None:
    meter = Meter("meter")
    async with scene(tmp_path) as here, carrier(here.port) as client:
        await client.subscribe(batch_watermark_topic(CARRIER.public_key, None), qos=1)
        here.node.register(meter)
        reading = meter.reading(0, 100)
        async with here.client(meter) as itself:
            await send(itself, meter, reading.encoded)
            await here.node.submission()
            assert here.node.commit() == ["ok"]
        batch = encode(ReadingBatch(readings=(reading.encoded,)))
        await client.publish(batch_topic(CARRIER.public_key), batch, qos=1)
        assert await watermarks(client) == {meter.device: 1}
        assert here.metrics.value("concentrator_faults") == 0, "repeating is no fault"


async def test_a_concentrator_that_sends_garbage_is_muted_and_its_devices_heard_otherwise(
    tmp_path: Path,
) -> None:
    meter = Meter("meter")
    topic = batch_topic(CARRIER.public_key)
    async with scene(tmp_path) as here, carrier(here.port) as client:
        here.node.register(meter)
        good, bad = meter.reading(0, 100), damaged(meter.reading(1, 200, sequence=2))
        await client.publish(topic, encode(ReadingBatch(readings=(bad,) * FAULTS)), qos=1)
        await here.until(lambda: here.rejected().get("bad-signature") == FAULTS)
        await client.publish(topic, encode(ReadingBatch(readings=(good.encoded,))), qos=1)
        await here.until(lambda: here.rejected().get("concentrator-muted") == 1)
        async with here.client(meter) as itself:
            await send(itself, meter, good.encoded)
            await here.node.submission()
            assert here.node.commit() == ["ok"]


async def test_a_fleet_empties_its_outboxes_through_one_connection(tmp_path: Path) -> None:
    meters = [Meter(f"meter {n}") for n in range(300)]
    outboxes = [Outbox(meter.device, ()) for meter in meters]
    async with scene(tmp_path) as here:
        here.node.register(*meters)
        address = parse_broker(f"mqtt://127.0.0.1:{here.port}")
        metrics = Metrics()
        concentrator = FleetConcentrator(
            address, CARRIER, outboxes, BrokerState(NullLogger()), metrics
        )
        for meter, outbox in zip(meters, outboxes, strict=True):
            reading = meter.reading(0, 100)
            outbox.add(SignedReading(meter.device, 1, 0, reading.encoded))
        async with running(concentrator.run()):
            await here.until(lambda: len(here.node.submitted) == len(meters))
            assert set(here.node.commit()) == {"ok"}
            await here.until(lambda: not any(outbox.waiting for outbox in outboxes))
        assert metrics.value("batches_published") == 3
        # One that starts again learns from what is retained, and sends nothing.
        fresh = [
            Outbox(meter.device, list(box._readings))
            for meter, box in zip(meters, outboxes, strict=True)
        ]
        again = Metrics()
        renewed = FleetConcentrator(address, CARRIER, fresh, BrokerState(NullLogger()), again)
        async with running(renewed.run()):
            await here.until(lambda: not any(outbox.waiting for outbox in fresh))
            await asyncio.sleep(3)
        assert again.value("readings_published") == 0


async def test_a_collector_stands_between_meters_and_the_network(tmp_path: Path) -> None:
    """Meters at a broker of their own; what is forged there is not carried; watermarks come back."""
    meter, other = Meter("meter"), Meter("other")
    carriers = [CARRIER.public_key.hex()]
    async with (
        scene(tmp_path) as here,
        broker(tmp_path / "meters.json", oracles=carriers) as local,
    ):
        here.node.register(meter, other)
        metrics = Metrics()
        collector = Collector(
            parse_broker(f"mqtt://127.0.0.1:{local}"),
            parse_broker(f"mqtt://127.0.0.1:{here.port}"),
            CARRIER,
            CHAIN,
            metrics,
            NullLogger(),
        )
        near = Scene(local)
        async with running(collector.run()), near.client(meter) as itself:
            await here.until(lambda: collector.readiness().ready)
            await itself.subscribe(watermark_topic(meter.device), qos=1)
            good = meter.reading(0, 100)
            for payload in (damaged(good), b"\xc1", other.reading(0, 5).encoded, bytes(2_000)):
                await send(itself, meter, payload)
            await send(itself, meter, good.encoded)
            await here.node.submission()
            assert here.node.commit() == ["ok"]
            await near.watermark(itself, 1)
            await send(itself, meter, good.encoded)
            await near.watermark(itself, 1)
            for _ in range(PER_DEVICE):
                await send(itself, meter, good.encoded)
            flood = {"reason": "sender-flood"}
            await here.until(lambda: metrics.value("readings_rejected", **flood) == 6)
        assert metrics.by_label("readings_rejected", "reason") == {
            "bad-signature": 1,
            "malformed": 1,
            "wrong-topic": 1,
            "oversized": 1,
            "sender-flood": 6,
        }
        assert here.rejected() == {}
        assert metrics.value("readings_published") == 1


async def test_a_false_watermark_is_refused(tmp_path: Path) -> None:
    """Whoever speaks for the oracles: nothing is deleted, and a number never signed is refused."""
    meter = Meter("meter")
    outbox = Outbox(meter.device, [SignedReading(meter.device, 1, 0, meter.reading(0, 1).encoded)])
    metrics = Metrics()
    concentrator = FleetConcentrator(
        parse_broker("mqtt://127.0.0.1:1"), CARRIER, [outbox], BrokerState(NullLogger()), metrics
    )
    for device, sequence in ((meter.device, 2), (bytes(32), 1)):
        with pytest.raises(Exception, match="watermark"):
            concentrator._reached(Watermark(device, sequence, 0))
    assert outbox.watermark == 0
