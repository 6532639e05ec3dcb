"""The oracle's part of a process, against the embedded broker and a chain of one node in memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest
from msgspec import structs
from tests.oracle_world import PRICE, Device, OracleWorld, genesis

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.devices.fleet.broker import BrokerSettings, serve_broker
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.broker import BrokerAddress, parse_broker
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.broker_access import connect_password
from gridtokenx.ledger.readings import Watermark, device_id, reading_topic, watermark_topic
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.feeds import FEEDS
from gridtokenx.oracle.process.intake import PER_STRANGER
from gridtokenx.oracle.process.observer import Source
from gridtokenx.oracle.process.service import OracleService
from gridtokenx.pbft.membership import CURRENT

pytestmark = pytest.mark.e2e
ORACLE = Ed25519Signer(sha256(b"e2e oracle"))
ZONE = 1
PATIENCE_S = 20


def wall_ms() -> int:
    import time

    return time.time_ns() // 1_000_000


class Meter(Device):
    """A device with a production key."""

    def __post_init__(self) -> None:
        self.signer = Ed25519Signer(sha256(b"e2e device", self.name.encode()))  # type: ignore[assignment]
        self.device = self.signer.public_key


class Solo:
    """A chain node that commits whatever it is given, on demand."""

    def __init__(self) -> None:
        self.world = OracleWorld(validators=(ORACLE.public_key,))
        self.listener: Callable[[ExecutedBlock], None] = lambda _executed: None
        self.submitted: list[Transaction] = []
        self.arrived = asyncio.Event()

    @property
    def head(self) -> ExecutedBlock:
        return self.world.head

    @property
    def pending(self) -> int:
        return len(self.submitted)

    def now_ms(self) -> int:
        return self.world.now_ms

    def submit(self, transactions: Sequence[Transaction], *, everywhere: bool = False) -> None:
        self.submitted += transactions
        self.arrived.set()

    def commit(self) -> list[str]:
        batch, self.submitted = self.submitted, []
        codes = self.world.block(*batch)
        self.listener(self.world.head)
        return codes

    def register(self, *devices: Device) -> None:
        self.world.register(*devices)
        self.listener(self.world.head)

    async def submission(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.submitted:
                self.arrived.clear()
                await self.arrived.wait()


class FixedSource:
    """A source that says what it is told to."""

    name = "fixed"

    def __init__(self, *values: int | RemoteFault) -> None:
        self._values = list(values)

    async def read(self) -> int:
        value = self._values.pop(0)
        if isinstance(value, RemoteFault):
            raise value
        return value


@contextlib.asynccontextmanager
async def broker(tmp_path: Path, port: int = 0) -> AsyncIterator[int]:
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps({"oracles": [ORACLE.public_key.hex()]}))
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = BrokerSettings(port=port, clients=clients)
    task = asyncio.create_task(serve_broker(settings, Metrics(), NullLogger(), started))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield await started
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Scene:
    """A running service and a device's client."""

    def __init__(self, port: int, sources: dict[str, Source] | None = None) -> None:
        self.node = Solo()
        self.metrics = Metrics()
        self.port = port
        self.service = OracleService(
            genesis(validators=(ORACLE.public_key,)),
            self.node.world.ledger,
            self.node,
            ORACLE,
            SignatureChecker(CachingVerifier(Ed25519Verifier())),
            parse_broker(f"mqtt://127.0.0.1:{port}"),
            sources or {},
            self.node.now_ms,
            self.metrics,
            NullLogger(),
        )
        self.node.listener = self.service.committed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Scene"]:
        task = asyncio.create_task(self.service.run())
        try:
            await self.until(lambda: self.metrics.value("broker_connects") > 0)
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - a test looks from outside
                await asyncio.sleep(0.01)

    def client(self, device: Device) -> aiomqtt.Client:
        name = device_id(device.signer.public_key)
        return aiomqtt.Client(
            "127.0.0.1",
            self.port,
            identifier=name,
            username=name,
            password=connect_password(device.signer, wall_ms()),
        )

    def rejected(self) -> dict[str, int]:
        return self.metrics.by_label("readings_rejected", "reason")

    async def watermark(self, client: aiomqtt.Client, sequence: int) -> None:
        """Wait until the device's watermark has come that far, and no further."""
        reached = -1
        async with asyncio.timeout(PATIENCE_S):
            while reached < sequence:
                message = await anext(client.messages)
                assert isinstance(message.payload, bytes)
                reached = decode(message.payload, Watermark).sequence
        assert reached == sequence


async def send(client: aiomqtt.Client, device: Device, payload: bytes) -> None:
    await client.publish(reading_topic(ZONE, device.signer.public_key), payload, qos=1)


async def test_a_device_registered_in_blocks_that_were_not_seen_is_known(tmp_path: Path) -> None:
    """The node took a state over: its service hears of the last block only."""
    async with broker(tmp_path) as port, Scene(port).running() as scene:
        meter = Meter("meter")
        async with scene.client(meter) as client:
            await client.subscribe(watermark_topic(meter.device), qos=1)
            await send(client, meter, meter.reading(0, 100).encoded)
            await scene.until(lambda: scene.metrics.value("readings_kept") == 1)
            scene.node.world.register(meter)
            assert scene.node.commit() == []
            await scene.node.submission()
            scene.node.commit()
            await scene.watermark(client, 1)


async def test_a_reading_is_committed_and_its_watermark_comes_back(tmp_path: Path) -> None:
    """Sent before it was registered, kept, submitted on registration, committed, acknowledged."""
    async with broker(tmp_path) as port, Scene(port).running() as scene:
        meter = Meter("meter")
        async with scene.client(meter) as client:
            await client.subscribe(watermark_topic(meter.device), qos=1)
            await send(client, meter, meter.reading(0, 100).encoded)
            await scene.until(lambda: scene.metrics.value("readings_kept") == 1)
            assert scene.rejected() == {}, "it is not lost"
            scene.node.register(meter)
            await scene.watermark(client, 0)
            assert scene.node.commit() == ["ok"]
            await scene.watermark(client, 1)
            await send(client, meter, meter.reading(0, 100).encoded)
            await scene.node.submission()
            assert scene.node.commit() == ["ok"]
            await scene.watermark(client, 2)
        async with scene.client(meter) as again:
            await again.subscribe(watermark_topic(meter.device), qos=1)
            await scene.watermark(again, 2)  # it is retained


async def test_what_there_is_no_room_to_keep_is_rejected(tmp_path: Path) -> None:
    async with broker(tmp_path) as port, Scene(port).running() as scene:
        meter = Meter("meter")
        async with scene.client(meter) as client:
            for _ in range(PER_STRANGER + 2):
                await send(client, meter, meter.reading(0, 100).encoded)
            await scene.until(lambda: scene.rejected() == {"unknown-device": 2})
            assert scene.metrics.value("readings_kept") == PER_STRANGER


async def test_whatever_is_wrong_is_counted_by_reason_and_nothing_stalls(tmp_path: Path) -> None:
    async with broker(tmp_path) as port, Scene(port).running() as scene:
        meter, other = Meter("meter"), Meter("other")
        scene.node.register(meter, other)
        good = meter.reading(0, 100)
        body = structs.replace(good.body, nonce=77)
        bodies = {
            "oversized": bytes(2_000),
            "malformed": b"\x00garbage",
            "bad-signature": encode(Transaction(body, good.signature)),
            "wrong-topic": other.reading(0, 5).encoded,
            "wrong-chain": encode(
                Transaction(structs.replace(good.body, chain_id=bytes(32)), good.signature)
            ),
        }
        async with scene.client(meter) as client:
            for payload in bodies.values():
                await send(client, meter, payload)
            await send(client, meter, good.encoded)
            await scene.node.submission()
            await scene.until(lambda: scene.rejected() == dict.fromkeys(bodies, 1))
            assert scene.node.commit() == ["ok"]
            await client.subscribe(watermark_topic(meter.device), qos=1)
            await scene.watermark(client, 1)
            await send(client, meter, good.encoded)
            await scene.watermark(client, 1)  # a repetition is answered
            assert scene.rejected()["replayed"] == 1
        assert scene.metrics.value("readings_verified") == 1


async def test_after_a_broker_outage_everything_goes_on(tmp_path: Path) -> None:
    async with broker(tmp_path) as port:
        scene = Scene(port)
    async with contextlib.AsyncExitStack() as stack:
        task = asyncio.create_task(scene.service.run())
        stack.callback(task.cancel)
        await scene.until(lambda: scene.metrics.value("broker_losses") > 0)
        meter = Meter("meter")
        scene.node.register(meter)
        await stack.enter_async_context(broker(tmp_path, port))
        await scene.until(lambda: scene.metrics.value("broker_connects") == 1)
        client = await stack.enter_async_context(scene.client(meter))
        await client.subscribe(watermark_topic(meter.device), qos=1)
        await scene.watermark(client, 0)
        await send(client, meter, meter.reading(0, 100).encoded)
        await scene.node.submission()
        assert scene.node.commit() == ["ok"]


async def test_the_observer_signs_what_it_saw_and_skips_what_it_did_not(tmp_path: Path) -> None:
    source = FixedSource(
        3_950_000, RemoteFault("source-timeout", "slow"), PRICE.maximum + 1, 3_960_000
    )
    scene = Scene(1, {PRICE.feed: source})
    (observer,) = scene.service._observers
    for round_ in range(1, 5):
        scene.node.world.run_to(round_ * PRICE.round_ms)
        await observer.observe(round_)
        if scene.node.submitted:
            assert scene.node.commit() == ["ok"]
    feed = FEEDS.get(scene.node.world.state, PRICE.feed)
    assert feed is not None
    assert feed.latest is not None
    assert (feed.latest.round, feed.latest.value) == (4, 3_960_000)
    failures = scene.metrics.by_label("observation_failures", "reason")
    assert failures == {"source-timeout": 1, "source-range": 1}


def test_what_cannot_work_is_refused_at_start() -> None:
    with pytest.raises(LocalFault, match="the chain's feeds are: energy-price"):
        Scene(1, {"weather": FixedSource()})
    for url in ("http://x", "mqtt://", "mqtt://x:port", ""):
        with pytest.raises(LocalFault, match="mqtt"):
            parse_broker(url)
    address = parse_broker("mqtt://user:p%40ss@broker.example")
    assert address == BrokerAddress("broker.example", 1883, None, "user", "p@ss")


async def test_without_a_seat_nothing_is_served(tmp_path: Path) -> None:
    """An observer takes no readings; it begins with its seat, and ends with it."""
    async with broker(tmp_path) as port:
        scene = Scene(port)
        take_seats(scene, 1, OTHER)
        task = asyncio.create_task(scene.service.run())
        try:
            await asyncio.sleep(0.3)
            assert scene.metrics.value("broker_connects") == 0
            take_seats(scene, 2, OTHER, ORACLE.public_key)
            await scene.until(lambda: scene.metrics.value("broker_connects") == 1)
            meter = Meter("meter")
            scene.node.register(meter)
            async with scene.client(meter) as client:
                await send(client, meter, meter.reading(0, 100).encoded)
                await scene.node.submission()
                take_seats(scene, 3, OTHER)
                await scene.until(lambda: not scene.service._link.state.connected)
                await send(client, meter, meter.reading(1, 200).encoded)
                await asyncio.sleep(0.3)
                assert scene.metrics.value("readings_received") == 1
            take_seats(scene, 4, ORACLE.public_key)
            await scene.until(lambda: scene.metrics.value("broker_connects") == 2)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


OTHER = sha256(b"another oracle")


def take_seats(scene: Scene, set_id: int, *keys: bytes) -> None:
    """A block after which these keys are the oracles, as if they had decided so."""
    world = scene.node.world
    state = State(world.head.state)
    CURRENT.put(state, ValidatorSet(set_id, keys))
    world.blocks.append(replace(world.head, state=world.head.state.update(state.changes())))
    world.check = False  # such a block cannot be made again
    scene.node.listener(world.head)
