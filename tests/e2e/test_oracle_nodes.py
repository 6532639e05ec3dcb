"""Four oracle nodes with real links, stores, keys and certificates, a broker, a market and meters."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import aiohttp
import aiomqtt
import pytest
from msgspec import structs
from tests.interchain_chains import certificate
from tests.oracle_world import Device, genesis

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.merkle import EMPTY_LIST_ROOT
from gridtokenx.core.state_tree import StateTree
from gridtokenx.devices.fleet.broker import BrokerSettings, serve_broker
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.client import ChainClient, ClockNonces
from gridtokenx.host.clock import NetworkClock, wall_ms
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import mutual_security
from gridtokenx.host.storage import Store
from gridtokenx.host.transport import NetworkParts
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps import registry
from gridtokenx.interchain.apps.registry import DeviceRegistrations
from gridtokenx.interchain.calls import ReceivePacket, UpdateClient
from gridtokenx.interchain.clients import CertifiedHeader
from gridtokenx.interchain.packets import Packet, packet_hash
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.blocks import PROTOCOL_VERSION, Header
from gridtokenx.ledger.broker_access import connect_password
from gridtokenx.ledger.identity import derive_chain_id, render_genesis
from gridtokenx.ledger.readings import (
    SubmitReading,
    Watermark,
    device_id,
    reading_topic,
    watermark_topic,
)
from gridtokenx.ledger.records import load_head
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.oracle.chain.admission import watermark
from gridtokenx.oracle.chain.feeds import FEEDS
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.oracle.chain.meters import SCHEDULE
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.feeds.market_data import (
    ENERGY_PRICE,
    MarketDataSettings,
    default_sources,
    run_market_data,
)
from gridtokenx.oracle.role import OracleSettings, run_oracle

pytestmark = pytest.mark.e2e
NODES = 4
PATIENCE_S = 60
SIGNERS = [Ed25519Signer(sha256(b"nodes test", bytes((i,)))) for i in range(NODES)]
RELAYER_SEED = sha256(b"nodes test relayer")
RELAYER = Ed25519Signer(RELAYER_SEED)
MEMBERS = [Ed25519Signer(sha256(b"nodes test member", bytes((i,)))) for i in range(NODES)]
FEED = FeedSpec(
    feed=ENERGY_PRICE,
    unit="micro-WATT per kWh",
    minimum=500_000,
    maximum=20_000_000,
    round_ms=4_000,
    deadline_ms=3_000,
)


def network_genesis() -> OracleGenesis:
    made = genesis(
        validators=tuple(signer.public_key for signer in SIGNERS),
        relayers=(RELAYER.public_key,),
        clock=GridClock(wall_ms(), 1_776_823_200_000, 60),
        feeds=(FEED,),
    )
    keys = tuple(signer.public_key for signer in MEMBERS)
    made = structs.replace(
        made, clients=tuple(structs.replace(each, validators=keys) for each in made.clients)
    )
    return structs.replace(made, chain_id=derive_chain_id(made))


class Meter(Device):
    """A device with a production key that signs for this network."""

    chain_id = b""

    def __post_init__(self) -> None:
        self.signer = Ed25519Signer(sha256(b"nodes test device", self.name.encode()))  # type: ignore[assignment]
        self.device = self.signer.public_key

    def signed(self, import_wh: int, sequence: int) -> bytes:
        """A reading of the first boundary."""
        (call,) = super().reading(0, import_wh, sequence=sequence).body.calls
        decoded = decode(call, SubmitReading)
        return sign_transaction(self.signer, self.chain_id, sequence, [decoded]).encoded


class Testbed:
    """Directories and settings of four nodes."""

    __test__ = False

    def __init__(self, home: Path, broker_port: int, market_port: int) -> None:
        self.home = home
        self.genesis = network_genesis()
        self.ports = free_ports(2 * NODES)
        self.broker_port = broker_port
        self.sources = default_sources(f"http://127.0.0.1:{market_port}", "local-testnet")
        (home / "oracle.json").write_bytes(render_genesis(self.genesis))
        authority = Authority.create("test", sha256(b"authority"))
        (home / "ca.pem").write_bytes(pem(authority.certificate))
        for index, signer in enumerate(SIGNERS):
            directory = home / f"oracle-{index}"
            ring = KeyRing.create(directory, create_development_password(directory), scrypt_n=1024)
            ring.put("oracle", sha256(b"nodes test", bytes((index,))))
            certificate = authority.issue(signer.public_key, f"oracle-{index}", Role.PEER)
            (directory / "node.pem").write_bytes(pem(certificate))
        relayer = authority.issue(RELAYER.public_key, "relayer", Role.CLIENT)
        (home / "relayer.pem").write_bytes(pem(relayer))

    def settings(self, index: int) -> OracleSettings:
        directory = self.home / f"oracle-{index}"
        peers = tuple(
            f"{SIGNERS[other].public_key.hex()}@127.0.0.1:{self.ports[other]}"
            for other in range(NODES)
            if other != index
        )
        return OracleSettings(
            genesis=self.home / "oracle.json",
            data=directory / "data",
            keys=directory,
            key="oracle",
            listen=f"127.0.0.1:{self.ports[index]}",
            http=f"127.0.0.1:{self.ports[NODES + index]}",
            peers=peers,
            certificate=directory / "node.pem",
            authority=self.home / "ca.pem",
            broker=f"mqtt://127.0.0.1:{self.broker_port}",
            broker_protocol="3.1.1",
            feed=ENERGY_PRICE,
            source=self.sources[index],
            log_level="error",
        )

    def state(self, index: int) -> State:
        """What a stopped node has on disk; its invariants are checked on the way."""
        store = Store.open(self.home / f"oracle-{index}" / "data")
        try:
            head = load_head(store)
        finally:
            store.close()
        assert head is not None
        assert oracle_ledger(self.genesis).check_invariants(head.state) == []
        return State(head.state)

    async def numbers(self, index: int) -> str:
        url = f"http://127.0.0.1:{self.ports[NODES + index]}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()


@contextlib.asynccontextmanager
async def running(
    *works: Coroutine[object, object, None],
) -> AsyncIterator[list["asyncio.Task[None]"]]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [r for r in results if isinstance(r, Exception)]
    assert not failures, failures


@contextlib.asynccontextmanager
async def opened_bed(home: Path) -> AsyncIterator[Testbed]:
    """Broker and market data are running; the nodes are not."""
    loop = asyncio.get_running_loop()
    broker_started: asyncio.Future[int] = loop.create_future()
    market_started: asyncio.Future[int] = loop.create_future()
    clients = home / "clients.json"
    clients.write_text(json.dumps({"oracles": [s.public_key.hex() for s in SIGNERS]}))
    broker = BrokerSettings(port=0, clients=clients)
    market = MarketDataSettings(
        listen="127.0.0.1:0",
        network_genesis_ms=wall_ms(),
        grid_epoch_ms=1_776_823_200_000,
        time_scale=60,
        log_level="error",
    )
    async with running(
        serve_broker(broker, Metrics(), NullLogger(), broker_started),
        run_market_data(market, market_started),
    ):
        async with asyncio.timeout(PATIENCE_S):
            ports = await broker_started, await market_started
        yield Testbed(home, *ports)


async def reach(client: aiomqtt.Client, device: Meter, sequence: int) -> None:
    """Send a reading, again and again as a meter does, until its watermark has come."""
    topic, payload = reading_topic(1, device.device), device.signed(1_000, sequence)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await client.publish(topic, payload, qos=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        if decode(message.payload, Watermark).sequence >= sequence:
                            return


class Consortium:
    """Commits to registrations with production keys; see `oracle_world`."""

    def __init__(self, made: OracleGenesis) -> None:
        self._genesis = made
        self._chain = next(c.chain_id for c in made.clients if c.client_id == "consortium")

    def packet(self, *devices: Meter) -> list[Wire]:
        batch = tuple(sorted((d.registration() for d in devices), key=lambda each: each.device))
        payload = encode(DeviceRegistrations(registrations=batch))
        packet = Packet("oracle", "consortium", 1, registry.PORT, wall_ms() + 10**6, payload)
        key = stores.COMMITMENTS.key("oracle", 1)
        commitment = encode(packet_hash(packet, self._chain, self._genesis.chain_id))
        tree = StateTree.empty().update({key: commitment})
        certified = certified_header(self._chain, tree.root)
        update = UpdateClient("consortium", certified, None)
        return [update, ReceivePacket(packet, 1, tree.prove(key))]


def certified_header(chain_id: bytes, state_root: bytes) -> CertifiedHeader:
    members = ValidatorSet(0, tuple(signer.public_key for signer in MEMBERS))
    header = Header(
        version=PROTOCOL_VERSION,
        chain_id=chain_id,
        height=1,
        round=0,
        parent=sha256(b"parent"),
        timestamp_ms=wall_ms(),
        transaction_root=EMPTY_LIST_ROOT,
        state_root=state_root,
        event_root=EMPTY_LIST_ROOT,
        set_id=0,
        next_set_hash=members.hash,
        digest=b"",
    )
    return CertifiedHeader(header, certificate(header, members, MEMBERS))


async def relay(bed: Testbed, calls: list[Wire]) -> None:
    """Submit as an enrolled relayer does, and wait for the inclusion."""
    ledger = oracle_ledger(bed.genesis)
    block = ledger.genesis(bed.genesis.clock.network_genesis_ms)
    trust = Trust(bed.genesis.chain_id, 0, block.hash, bed.genesis.validator_set)
    identity = LinkIdentity(RELAYER, "client", bed.genesis.chain_id, block.hash)
    security = mutual_security(
        RELAYER_SEED, bed.home / "relayer.pem", bed.home / "ca.pem", listens=False
    )
    parts = NetworkParts(identity, security, Ed25519Verifier(), Metrics(), NullLogger())
    nodes = [NodeAddress(HostPort("127.0.0.1", port)) for port in bed.ports[:NODES]]
    follower, clock = Follower(trust, nodes, parts), NetworkClock()
    async with running(follower.run()):
        client = ChainClient(follower, RELAYER, ClockNonces(clock), clock)
        async with asyncio.timeout(PATIENCE_S):
            assert (await client.call(calls)).ok


def meter_client(bed: Testbed, device: Meter) -> aiomqtt.Client:
    name = device_id(device.device)
    return aiomqtt.Client(
        "127.0.0.1",
        bed.broker_port,
        identifier=name,
        username=name,
        password=connect_password(device.signer, wall_ms()),
    )


@pytest.mark.slow
async def test_four_nodes_take_readings_and_observe_and_resume(tmp_path: Path) -> None:
    """Readings before and after registration, prices, one node lost, and a restart from disk."""
    meter = Meter("e2e meter")
    async with opened_bed(tmp_path) as bed:
        meter.chain_id = bed.genesis.chain_id
        topic = reading_topic(1, meter.device)
        async with (
            running(*(run_oracle(bed.settings(index)) for index in range(NODES))) as nodes,
            meter_client(bed, meter) as client,
        ):
            await client.subscribe(watermark_topic(meter.device), qos=1)
            await client.publish(topic, meter.signed(1_000, 1), qos=1)
            await relay(bed, Consortium(bed.genesis).packet(meter))
            await reach(client, meter, 1)
            nodes[3].cancel()
            await reach(client, meter, 2)
            await client.publish(topic, meter.signed(1_000, 3)[:-1] + b"?", qos=1)
            await until_counted(bed, 'gtx_readings_rejected_total{reason="bad-signature"')
            await until_counted(bed, 'gtx_observations_total{feed="energy-price"')
            await asyncio.sleep(2 * FEED.round_ms / 1000)
        state = bed.state(0)
        assert watermark(state, meter.device).sequence == 2
        check_price(state)
        async with (
            running(*(run_oracle(bed.settings(index)) for index in range(NODES))),
            meter_client(bed, meter) as client,
        ):
            await client.subscribe(watermark_topic(meter.device), qos=1)
            await reach(client, meter, 3)
        last_ms = SCHEDULE.get(state).block_ms
        assert all(SCHEDULE.get(bed.state(index)).block_ms > last_ms for index in range(3))


def check_price(state: State) -> None:
    feed = FEEDS.get(state, ENERGY_PRICE)
    assert feed is not None
    assert feed.published is not None
    assert 2_000_000 < feed.published.value < 5_000_000


async def until_counted(bed: Testbed, prefix: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while prefix not in await bed.numbers(0):  # noqa: ASYNC110 - a look from outside
            await asyncio.sleep(0.2)


async def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    bed = Testbed(tmp_path, 1, 1)
    bad = {
        "broker": structs.replace(bed.settings(0), broker="http://x"),
        "no positive decimal": structs.replace(
            bed.settings(0), source=structs.replace(bed.sources[0], units="x")
        ),
        "say which feed": structs.replace(bed.settings(0), feed=None),
        "the chain's feeds are": structs.replace(bed.settings(0), feed="weather"),
    }
    for index, (words, settings) in enumerate(bad.items()):
        changed = structs.replace(settings, data=tmp_path / f"data-{index}")
        with pytest.raises(LocalFault, match=words):
            await run_oracle(changed)
