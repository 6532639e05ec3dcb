"""A real fleet at a real broker over real sockets: outages and kills change nothing."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import msgspec
import pytest

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.devices.fleet.broker import BrokerSettings, serve_broker
from gridtokenx.devices.fleet.clients import Clients
from gridtokenx.devices.fleet.fleet import Fleet, FleetSettings, open_fleet, run_fleet
from gridtokenx.devices.fleet.roster import make_roster
from gridtokenx.devices.models.battery import BatterySpec
from gridtokenx.devices.models.household import (
    HouseholdSpec,
    HouseholdState,
    advance,
    new_household,
    reading_of,
)
from gridtokenx.devices.models.load import LoadSpec
from gridtokenx.devices.models.meter import MeterSpec
from gridtokenx.devices.models.profiles import STEP_MS, Profile, pack_profiles
from gridtokenx.devices.models.sensor import VoltageSpec
from gridtokenx.devices.models.solar import SolarSpec
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.broker_access import connect_password
from gridtokenx.ledger.readings import (
    ALL_ANNOUNCEMENTS,
    ALL_READINGS,
    FIRST_SEQUENCE,
    Announcement,
    SubmitReading,
    Watermark,
    announce_topic,
    reading_topic,
    topic_device,
    watermark_topic,
)
from gridtokenx.ledger.transactions import Transaction

pytestmark = pytest.mark.e2e

CHAIN = b"\x0c" * 32
ZONE = 4
TIME_SCALE = 3600
"""A half hour of grid time every half second."""
EPOCH_MS = 1_776_790_800_000
ORACLE = Ed25519Signer(b"\x05" * 32)
PROCESS = Path(__file__).with_name("devices_process.py")
METER = MeterSpec(3_000, 5)
BATTERY = BatterySpec(5_000, 2_000, 900_000, 100_000, 950_000, 8, 4_000)


def spec(*, solar: bool) -> HouseholdSpec:
    return HouseholdSpec(
        load=LoadSpec(10_000),
        solar=SolarSpec(4_000, 965_000) if solar else None,
        battery=BATTERY if solar else None,
        meter=METER,
        generation_meter=METER,
        storage_meter=METER,
        voltage=VoltageSpec(230_000, 1_000, 0, 100, 207_000, 253_000),
        initial_charge_ppm=500_000,
    )


SPECS = (spec(solar=True), spec(solar=False))


def profiles() -> tuple[Profile, ...]:
    draw = random.Random(3)
    return tuple(
        Profile(
            EPOCH_MS,
            STEP_MS,
            [draw.randrange(100, 3_000) for _ in range(1440)],
            [draw.randrange(0, 4_000) if each.solar else 0 for _ in range(1440)],
        )
        for each in SPECS
    )


class Home:
    """What `init` would have written for a fleet of two households."""

    def __init__(self, path: Path) -> None:
        self.path = path
        roster = make_roster(SPECS, [ZONE] * len(SPECS))
        (path / "roster.json").write_bytes(roster.encode())
        (path / "profiles.bin").write_bytes(pack_profiles(EPOCH_MS, STEP_MS, profiles()))
        ring = KeyRing.create(
            path / "keys", create_development_password(path / "keys"), scrypt_n=1024
        )
        self.devices: dict[bytes, tuple[int, str]] = {}
        for index, household in enumerate(roster.households):
            for device in household.devices:
                self.devices[ring.generate(device.key)] = (index, device.kind)
        self.ring = ring
        self.genesis_ms = time.time_ns() // 1_000_000
        facts = {
            "chain_id": CHAIN.hex(),
            "network_genesis_ms": self.genesis_ms,
            "grid_epoch_ms": EPOCH_MS,
            "time_scale": TIME_SCALE,
        }
        (path / "facts.json").write_bytes(msgspec.json.encode(facts))
        clients = Clients(oracles=(ORACLE.public_key.hex(),))
        (path / "clients.json").write_bytes(msgspec.json.encode(clients))

    def settings(self, port: int) -> FleetSettings:
        facts = msgspec.json.decode((self.path / "facts.json").read_bytes())
        return FleetSettings(
            broker=f"mqtt://127.0.0.1:{port}",
            broker_protocol="3.1.1",
            roster=self.path / "roster.json",
            profiles=self.path / "profiles.bin",
            keys=self.path / "keys",
            data=self.path / "data",
            **facts,
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@asynccontextmanager
async def broker(home: Home, port: int = 0) -> AsyncIterator[int]:
    started = asyncio.get_running_loop().create_future()
    settings = BrokerSettings(port=port, clients=home.path / "clients.json")
    task = asyncio.create_task(serve_broker(settings, Metrics(), NullLogger(), started))
    try:
        yield await started
    finally:
        await ended(task)


@asynccontextmanager
async def fleet(home: Home, port: int, metrics: Metrics | None = None) -> AsyncIterator[Fleet]:
    async with open_fleet(
        home.settings(port), clock, metrics or Metrics(), NullLogger()
    ) as devices:
        running = asyncio.create_task(devices.run())
        try:
            yield devices
        finally:
            await ended(running)


def committed(fleet: Fleet) -> int:
    """The sequence up to which a fleet knows every device's readings to be committed."""
    return min(
        device.outbox.watermark for household in fleet.households for device in household.devices
    )


async def until_committed(fleet: Fleet, sequence: int, patience_s: float = 30.0) -> None:
    async with asyncio.timeout(patience_s):
        while committed(fleet) < sequence:  # noqa: ASYNC110 - a look from outside
            await asyncio.sleep(0.1)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task until it is gone: leaving a broken MQTT connection can eat a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    if not task.cancelled():
        task.result()


def clock() -> int:
    return time.time_ns() // 1_000_000


def login(signer: Ed25519Signer, port: int, **more: object) -> aiomqtt.Client:
    name = signer.public_key.hex()
    arguments = {
        "identifier": name,
        "username": name,
        "password": connect_password(signer, clock()),
        "clean_session": True,
        "timeout": 3.0,
        **more,
    }
    client = aiomqtt.Client("127.0.0.1", port, **arguments)  # type: ignore[arg-type]  # test's mix
    # Its loss is looked at: asyncio reports at the end of a run what nobody asked about.
    client._disconnected.add_done_callback(lambda lost: lost.cancelled() or lost.exception())
    return client


async def enter(client: aiomqtt.Client) -> None:
    async with client:
        pass


class Listener:
    """An oracle node as devices see it: takes readings, and tells how far it has them."""

    def __init__(self, *, watermarks: bool = True) -> None:
        self.readings: dict[bytes, dict[int, SubmitReading]] = {}
        self.announcements: dict[bytes, list[bool]] = {}
        self.received = 0
        self._watermarks = watermarks
        self._changed = asyncio.Condition()

    async def run(self, port: int) -> None:
        while True:
            with suppress(aiomqtt.MqttError):
                async with login(ORACLE, port) as client:
                    await client.subscribe(ALL_ANNOUNCEMENTS, qos=1)
                    await client.subscribe(ALL_READINGS, qos=1)
                    async for message in client.messages:
                        await self._take(client, message)
            await asyncio.sleep(0.05)

    async def until(self, sequence: int, devices: int, patience_s: float = 30.0) -> None:
        """Until every device's readings up to a sequence are here."""
        async with asyncio.timeout(patience_s), self._changed:
            await self._changed.wait_for(
                lambda: (
                    len(self.readings) == devices
                    and all(self.contiguous(device) >= sequence for device in self.readings)
                )
            )

    @property
    def online(self) -> int:
        """How often a device said that it is there."""
        return sum(said.count(True) for said in self.announcements.values())

    async def until_online(self, count: int, patience_s: float = 60.0) -> None:
        async with asyncio.timeout(patience_s), self._changed:
            await self._changed.wait_for(lambda: self.online >= count)

    def contiguous(self, device: bytes) -> int:
        """The sequence up to which nothing is missing."""
        sequence = FIRST_SEQUENCE
        while sequence in self.readings[device]:
            sequence += 1
        return sequence - 1

    async def _take(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        device = topic_device(str(message.topic))
        assert device is not None
        if str(message.topic).endswith("/announce"):
            said = decode(message.payload, Announcement)
            assert said.device == device
            self.announcements.setdefault(device, []).append(said.online)
            async with self._changed:
                self._changed.notify_all()
            return
        self.received += 1
        transaction = decode(message.payload, Transaction)
        check = transaction.signature_check()
        assert Ed25519Verifier().verify(check.public_key, check.message, check.signature)
        body = transaction.body
        assert (body.sender, body.chain_id, body.fee) == (device, CHAIN, 0)
        reading = decode(body.calls[0], SubmitReading)
        known = self.readings.setdefault(device, {}).setdefault(body.nonce, reading)
        assert known == reading, "one sequence number, one content"
        if self._watermarks:
            done = self.contiguous(device)
            boundary = self.readings[device][done].boundary_grid_ms if done else 0
            await client.publish(
                watermark_topic(device), encode(Watermark(device, done, boundary)), 1, True
            )
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def listening(port: int, *, watermarks: bool = True) -> AsyncIterator[Listener]:
    listener = Listener(watermarks=watermarks)
    task = asyncio.create_task(listener.run(port))
    try:
        yield listener
    finally:
        await ended(task)


def assert_true_to_the_models(home: Home, listener: Listener) -> None:
    """Every reading, up to the first that is still on its way, is what the model gives."""
    for device, (index, kind) in home.devices.items():
        got = listener.readings[device]
        state: HouseholdState = new_household(SPECS[index], EPOCH_MS)
        for step, sequence in enumerate(range(FIRST_SEQUENCE, listener.contiguous(device) + 1)):
            state = advance(SPECS[index], state, profiles()[index], EPOCH_MS + step * INTERVAL_MS)
            expected = reading_of(SPECS[index], state, DeviceKind[kind.upper()])
            assert got[sequence] == expected


async def test_devices_announce_themselves_and_deliver_every_boundary(home: Home) -> None:
    metrics = Metrics()
    async with broker(home) as port, listening(port) as listener:
        async with fleet(home, port, metrics):
            await listener.until(4, len(home.devices))
        assert {
            device: said[0] for device, said in listener.announcements.items()
        } == dict.fromkeys(home.devices, True)
    assert_true_to_the_models(home, listener)
    assert metrics.value("readings_published") >= 4 * len(home.devices)


async def test_a_broker_outage_loses_nothing(home: Home) -> None:
    async with broker(home) as port:
        pass
    async with listening(port) as listener, fleet(home, port):
        async with broker(home, port):
            await listener.until(2, len(home.devices))
        await asyncio.sleep(2.0)
        async with broker(home, port):
            await listener.until(9, len(home.devices))
    assert_true_to_the_models(home, listener)


@pytest.mark.slow
async def test_killed_at_any_instant_a_fleet_goes_on_where_it_was(home: Home) -> None:
    draw = random.Random(11)
    async with broker(home) as port, listening(port) as listener:
        for life in range(6):
            online = listener.online
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(PROCESS), str(home.path), str(port)
            )
            if life % 2:  # this one has been at work for a while; another may still begin
                await listener.until_online(online + len(home.devices))
            await asyncio.sleep(1.0 + draw.random())
            process.kill()
            await process.wait()
        intervals = (clock() - home.genesis_ms) * TIME_SCALE // INTERVAL_MS
        async with fleet(home, port):
            await listener.until(intervals + 2, len(home.devices))
        # The broker published the last will of every device that was killed.
        assert listener.announcements.keys() == home.devices.keys()
        assert all(False in said for said in listener.announcements.values())
    assert_true_to_the_models(home, listener)


async def test_what_no_watermark_covers_is_sent_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.devices.fleet.outbox.FIRST_RESEND_S", 0.1)
    async with broker(home) as port:
        async with listening(port, watermarks=False) as deaf, fleet(home, port):
            await deaf.until(3, len(home.devices))
        # A fleet that starts again does not know what was committed, and sends all that it kept.
        async with fleet(home, port), listening(port) as listener:
            await listener.until(4, len(home.devices))
    assert_true_to_the_models(home, listener)


async def test_a_committed_reading_is_not_sent_after_a_restart(home: Home) -> None:
    async with broker(home) as port:
        async with listening(port), fleet(home, port) as devices:
            await until_committed(devices, 4)
        metrics = Metrics()
        async with listening(port) as after, fleet(home, port, metrics):
            await after.until(0, len(home.devices))
        assert all(min(got) > FIRST_SEQUENCE for got in after.readings.values())


async def test_two_fleets_cannot_share_a_home(home: Home) -> None:
    async with broker(home) as port, fleet(home, port):
        await asyncio.sleep(0.2)
        with pytest.raises(LocalFault, match="another devices process"):
            await run_fleet(home.settings(port))


async def test_refuses_another_networks_journals(home: Home) -> None:
    async with broker(home) as port, listening(port) as listener:
        async with fleet(home, port):
            await listener.until(1, len(home.devices))
        foreign = msgspec.structs.replace(home.settings(port), chain_id="ee" * 32)
        with pytest.raises(LocalFault, match="belongs to the network"):
            await run_fleet(foreign)


# -- the broker's guard ----------------------------------------------------------------------------


async def test_nobody_enters_with_anothers_name(home: Home) -> None:
    device = home.ring.signer("h00-meter")
    stranger = Ed25519Signer(b"\x09" * 32)
    async with broker(home) as port, login(device, port) as rightful:
        with pytest.raises(aiomqtt.MqttError):
            await enter(login(device, port, password=connect_password(stranger, clock())))
        with pytest.raises(aiomqtt.MqttError):
            await enter(login(stranger, port, identifier=device.public_key.hex()))
        with pytest.raises(aiomqtt.MqttError):
            await enter(aiomqtt.Client("127.0.0.1", port, identifier="anybody", timeout=3.0))
        await rightful.publish(reading_topic(ZONE, device.public_key), b"still here", qos=1)


async def test_a_client_is_heard_only_where_it_may_speak(home: Home) -> None:
    device = home.ring.signer("h00-meter")
    other = home.ring.signer("h01-meter")
    async with broker(home) as port, login(ORACLE, port) as oracle:
        await oracle.subscribe("gtx/v1/#", qos=1)
        async with login(device, port) as client:
            for topic in (
                reading_topic(ZONE, other.public_key),
                announce_topic(ZONE, other.public_key),
                watermark_topic(device.public_key),
                reading_topic(ZONE, device.public_key),
            ):
                await client.publish(topic, topic.encode(), qos=1)
            refused = await client.subscribe("gtx/v1/#", qos=1)
            allowed = await client.subscribe(watermark_topic(device.public_key), qos=1)
        message = await asyncio.wait_for(anext(aiter(oracle.messages)), 5)
        assert str(message.topic) == reading_topic(ZONE, device.public_key)
        assert [code.value for code in (*refused, *allowed)] == [0x80, 1]
        will = aiomqtt.Will(reading_topic(ZONE, other.public_key), b"forged")
        with pytest.raises(aiomqtt.MqttError):
            await enter(login(device, port, will=will))


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes([0x10, 0xFF, 0xFF, 0xFF, 0x7F]) + b"\0" * 100,
        bytes([0x10, 0x02, 0x00, 0x00]),
        bytes([0x30, 0x05]) + b"hello",
        bytes(range(256)) * 8,
        b"\xff" * 4096,
    ],
)
async def test_rubbish_ends_its_own_connection_only(home: Home, rubbish: bytes) -> None:
    async with broker(home) as port, login(ORACLE, port) as oracle:
        await oracle.subscribe(ALL_READINGS, qos=1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(rubbish)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        device = home.ring.signer("h00-meter")
        async with login(device, port) as client:
            await client.publish(reading_topic(ZONE, device.public_key), b"fine", qos=1)
        message = await asyncio.wait_for(anext(aiter(oracle.messages)), 5)
        assert message.payload == b"fine"


async def test_an_oversized_frame_ends_its_connection(home: Home) -> None:
    device = home.ring.signer("h00-meter")
    async with broker(home) as port, login(ORACLE, port) as oracle:
        await oracle.subscribe(ALL_READINGS, qos=1)
        async with login(device, port) as client:
            with pytest.raises(aiomqtt.MqttError):
                await client.publish(reading_topic(ZONE, device.public_key), b"x" * 1_000_000, 1)
        async with login(device, port) as client:
            await client.publish(reading_topic(ZONE, device.public_key), b"fine", qos=1)
        message = await asyncio.wait_for(anext(aiter(oracle.messages)), 5)
        assert message.payload == b"fine"
