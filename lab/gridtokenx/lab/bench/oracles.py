"""Four oracle nodes and a broker as real processes, and a consortium that is keys and a state tree.

The consortium here has no chain: it commits to registrations in a tree and certifies a header of it,
which is all that the oracle chain can see of it anyway. So what is measured is the way of a reading
from a concentrator into a certified block, and nothing else runs.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import structs

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.merkle import EMPTY_LIST_ROOT
from gridtokenx.core.state_tree import StateTree
from gridtokenx.devices.fleet.broker import BrokerSettings
from gridtokenx.devices.fleet.clients import Clients
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.broker import BrokerAddress, parse_broker
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.client import ChainClient, ClockNonces
from gridtokenx.host.clock import NetworkClock, wall_ms
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import mutual_security
from gridtokenx.host.transport import NetworkParts
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps import registry
from gridtokenx.interchain.apps.registry import DeviceRegistration, DeviceRegistrations
from gridtokenx.interchain.calls import ReceivePacket, UpdateClient
from gridtokenx.interchain.clients import CertifiedHeader, ClientGenesis, ClientKind
from gridtokenx.interchain.packets import Packet, packet_hash
from gridtokenx.lab.bench.network import write_config
from gridtokenx.lab.deploy.mosquitto import (
    MosquittoPlan,
    client_certificate,
    write_client_certificates,
    write_mosquitto,
)
from gridtokenx.lab.deploy.mosquitto_process import MosquittoProcess, find_mosquitto, own_user
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.blocks import PROTOCOL_VERSION, Header
from gridtokenx.ledger.identity import derive_chain_id, render_genesis
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.oracle.chain.parameters import MeterParameters
from gridtokenx.oracle.role import OracleSettings

NODES: Final = 4
TIME_SCALE: Final = 60
GRID_EPOCH_MS: Final = 1_776_823_200_000
PACKETS_PER_CALL: Final = 8
PATIENCE_S: Final = 60.0


def signer(name: str, index: int = 0) -> Ed25519Signer:
    """One of the benchmark's own keys."""
    return Ed25519Signer(seed(name, index))


def seed(name: str, index: int = 0) -> bytes:
    """Its secret."""
    return sha256(b"bench", name.encode(), index.to_bytes(4, "big"))


ORACLES: Final = tuple(signer("oracle", index) for index in range(NODES))
MEMBERS: Final = tuple(signer("member", index) for index in range(NODES))
RELAYER: Final = signer("relayer")


class OracleBench:
    """The processes' directories and settings.

    Args:
        home: an empty directory.
        grace_ms: from an interval's end to its closing.
        block_time_ms: of the oracle chain.
        concentrators: how many log in at the broker.
        devices: keys of devices with a connection of their own, by name.
        time_scale: grid time per network time.
    """

    def __init__(
        self,
        home: Path,
        grace_ms: int,
        block_time_ms: int,
        concentrators: int,
        devices: Mapping[str, bytes] = MappingProxyType({}),
        time_scale: int = TIME_SCALE,
    ) -> None:
        self.home: Final = home
        self.mosquitto: Final = find_mosquitto() is not None
        self.concentrators: Final = tuple(
            signer("concentrator", index) for index in range(concentrators)
        )
        self._devices: Final = devices
        self.genesis: Final = _genesis(grace_ms, time_scale)
        ports = free_ports(2 * NODES + 2)
        self.ports, self.http_ports = ports[:NODES], ports[NODES : 2 * NODES]
        self.broker_port, self._broker_http = ports[2 * NODES :]
        self._block_time_ms: Final = block_time_ms
        self._authority = Authority.create("bench", seed("authority"))
        self._broker_authority = Authority.create("bench broker", seed("broker authority"))
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.broker = MosquittoProcess(home / "broker", self.broker_port)
        self._write()

    # -- files -------------------------------------------------------------------------------------

    def _write(self) -> None:
        home = self.home
        (home / "genesis.json").write_bytes(render_genesis(self.genesis))
        (home / "ca.pem").write_bytes(pem(self._authority.certificate))
        (home / "broker-ca.pem").write_bytes(pem(self._broker_authority.certificate))
        relayer = self._authority.issue(RELAYER.public_key, "relayer", Role.CLIENT)
        (home / "relayer.pem").write_bytes(pem(relayer))
        for index, oracle in enumerate(ORACLES):
            directory = home / f"oracle-{index}"
            ring = KeyRing.create(directory, create_development_password(directory), scrypt_n=1024)
            ring.put("oracle", seed("oracle", index))
            node = self._authority.issue(oracle.public_key, f"oracle-{index}", Role.PEER)
            (directory / "node.pem").write_bytes(pem(node))
            login = client_certificate(self._broker_authority, oracle.public_key)
            (directory / "broker.pem").write_bytes(pem(login))
            write_config(directory / "config.toml", self._oracle(index, directory))
        clients = {f"c{i}": one.public_key for i, one in enumerate(self.concentrators)}
        write_client_certificates(
            home / "clients", self._broker_authority, {**clients, **self._devices}
        )
        self._write_broker()

    def _oracle(self, index: int, directory: Path) -> OracleSettings:
        peers = tuple(
            f"{ORACLES[other].public_key.hex()}@127.0.0.1:{self.ports[other]}"
            for other in range(NODES)
            if other != index
        )
        return OracleSettings(
            genesis=self.home / "genesis.json",
            data=directory / "data",
            keys=directory,
            key="oracle",
            listen=f"127.0.0.1:{self.ports[index]}",
            http=f"127.0.0.1:{self.http_ports[index]}",
            peers=peers,
            certificate=directory / "node.pem",
            authority=self.home / "ca.pem",
            block_time_ms=self._block_time_ms,
            broker=self.broker_url,
            broker_protocol="5" if self.mosquitto else "3.1.1",
            broker_authority=self.home / "broker-ca.pem" if self.mosquitto else None,
            broker_certificate=directory / "broker.pem" if self.mosquitto else None,
            log_level="warning",
        )

    @property
    def broker_url(self) -> str:
        """Where the broker listens."""
        return f"mqtt{'s' if self.mosquitto else ''}://127.0.0.1:{self.broker_port}"

    def _write_broker(self) -> None:
        directory = self.home / "broker"
        oracles = tuple(one.public_key for one in ORACLES)
        concentrators = tuple(one.public_key for one in self.concentrators)
        if self.mosquitto:
            plan = MosquittoPlan(
                authority=self._broker_authority,
                server_seed=seed("broker"),
                hosts=("127.0.0.1",),
                oracles=oracles,
                concentrators=concentrators,
                devices=len(self._devices),
                listen="127.0.0.1",
                port=self.broker_port,
                run_as=own_user(),
            )
            write_mosquitto(directory, plan)
            return
        directory.mkdir()
        clients = Clients(
            oracles=tuple(key.hex() for key in oracles),
            concentrators=tuple(key.hex() for key in concentrators),
        )
        (directory / "clients.json").write_bytes(msgspec.json.encode(clients))
        settings = BrokerSettings(port=self.broker_port, clients=directory / "clients.json")
        write_config(directory / "config.toml", settings)

    def login(self, name: str, key: bytes) -> BrokerAddress:
        """How one of the clients logs in at the broker."""
        if not self.mosquitto:
            return parse_broker(self.broker_url)
        address = parse_broker(self.broker_url, self.home / "broker-ca.pem", "5")
        return address.with_certificate(self.home / "clients" / f"{name}.pem", key)

    # -- processes ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, int]]:
        """All processes, by name with their ids, while the context lasts."""
        try:
            if self.mosquitto:
                await self.broker.start()
            else:
                await self._start("broker", "broker")
            for index in range(NODES):
                await self.start_oracle(index)
            pids = {name: process.pid for name, process in self._processes.items()}
            yield ({"broker": self.broker.pid} if self.mosquitto else {}) | pids
        finally:
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await asyncio.gather(*(each.wait() for each in self._processes.values()))
            await self.broker.stop()

    async def start_oracle(self, index: int) -> None:
        """Start one, for the first time or after it ended."""
        await self._start(f"oracle-{index}", "node", "oracle")

    async def kill_oracle(self, index: int) -> None:
        """End one at once."""
        process = self._processes[f"oracle-{index}"]
        process.kill()
        await process.wait()

    async def _start(self, name: str, *command: str) -> None:
        directory = self.home / name
        with (directory / "log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gridtokenx.lab.cli", *command,
                "--config", str(directory / "config.toml"), stdout=log, stderr=log,
            )  # fmt: skip

    # -- registrations -----------------------------------------------------------------------------

    async def register(self, registrations: Sequence[DeviceRegistration]) -> None:
        """Carry registrations to the oracle chain, as a relayer does, until they are included."""
        async with self._relaying() as client:
            for calls in _registry_calls(self.genesis, registrations):
                async with asyncio.timeout(PATIENCE_S):
                    inclusion = await client.call(calls)
                if not inclusion.ok:
                    raise RuntimeError(f"registrations refused: {inclusion.results}")

    @asynccontextmanager
    async def _relaying(self) -> AsyncIterator[ChainClient]:
        genesis = self.genesis
        block = oracle_ledger(genesis).genesis(genesis.clock.network_genesis_ms)
        trust = Trust(genesis.chain_id, 0, block.hash, genesis.validator_set)
        identity = LinkIdentity(RELAYER, "client", genesis.chain_id, block.hash)
        security = mutual_security(
            seed("relayer"), self.home / "relayer.pem", self.home / "ca.pem", listens=False
        )
        parts = NetworkParts(identity, security, Ed25519Verifier(), Metrics(), NullLogger())
        nodes = [NodeAddress(HostPort("127.0.0.1", port)) for port in self.ports]
        follower, clock = Follower(trust, nodes, parts), NetworkClock()
        following = asyncio.create_task(follower.run())
        try:
            yield ChainClient(follower, RELAYER, ClockNonces(clock), clock)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _genesis(grace_ms: int, time_scale: int) -> OracleGenesis:
    made = OracleGenesis(
        chain_id=bytes(32),
        validators=tuple(one.public_key for one in ORACLES),
        relayers=(RELAYER.public_key,),
        clock=GridClock(wall_ms(), GRID_EPOCH_MS, time_scale),
        clients=(
            _client("consortium", ClientKind.PBFT),
            _client("public", ClientKind.GRANDPA),
        ),
        meters=MeterParameters(grace_ms=grace_ms),
    )
    return structs.replace(made, chain_id=derive_chain_id(made))


def _client(name: str, kind: ClientKind) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty="oracle",
        chain_id=sha256(b"bench", name.encode()),
        kind=kind,
        set_id=0,
        validators=tuple(one.public_key for one in MEMBERS),
        trusting_period_ms=86_400_000,
        clock_drift_ms=30_000,
    )


def _registry_calls(
    genesis: OracleGenesis, registrations: Sequence[DeviceRegistration]
) -> list[list[Wire]]:
    """One certified header for all packets, and the packets, a few a transaction."""
    ordered = sorted(registrations, key=lambda each: each.device)
    consortium = next(each.chain_id for each in genesis.clients if each.client_id == "consortium")
    size = registry.MAX_REGISTRATIONS
    packets = [
        Packet(
            "oracle", "consortium", number, registry.PORT, wall_ms() + 10**7,
            encode(DeviceRegistrations(registrations=tuple(ordered[cut : cut + size]))),
        )
        for number, cut in enumerate(range(0, len(ordered), size), start=1)
    ]  # fmt: skip
    tree = StateTree.empty().update(
        {
            stores.COMMITMENTS.key("oracle", each.sequence): encode(
                packet_hash(each, consortium, genesis.chain_id)
            )
            for each in packets
        }
    )
    received: list[Wire] = [
        ReceivePacket(each, 1, tree.prove(stores.COMMITMENTS.key("oracle", each.sequence)))
        for each in packets
    ]
    update: Wire = UpdateClient("consortium", _certified(consortium, tree.root), None)
    groups = [
        received[cut : cut + PACKETS_PER_CALL] for cut in range(0, len(received), PACKETS_PER_CALL)
    ]
    return [[update], *groups]


def _certified(chain_id: bytes, state_root: bytes) -> CertifiedHeader:
    members = ValidatorSet(0, tuple(one.public_key for one in MEMBERS))
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
    vote = CommitVote(set_id=0, view=0, height=1, block_hash=header.hash)
    message = vote.signed_bytes(chain_id)
    by_index = sorted((members.index_of(one.public_key) or 0, one) for one in MEMBERS)
    signatures = tuple(
        IndexedSignature(index, one.sign(message)) for index, one in by_index[: members.quorum]
    )
    return CertifiedHeader(header, CommitCertificate(chain_id, vote, signatures))
