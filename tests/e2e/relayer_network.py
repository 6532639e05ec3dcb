"""A small network of real nodes and relayers in one process, over loopback sockets and disks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.test_devices_fleet import SPECS

from gridtokenx.bridge.process.run import RelayerSettings, run_relayer
from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.devices.fleet.roster import make_roster
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.chains import ClientParts, open_follower, read_chain
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.client import ChainClient, Inclusion
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import Follower
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.replica import PbftChain, make_replica
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import LinkSettings, PermissionedNodeSettings
from gridtokenx.lab.manifest import Manifest, Public
from gridtokenx.lab.ports import free_ports
from gridtokenx.lab.testnet.genesis import make_network
from gridtokenx.ledger.identity import render_genesis
from gridtokenx.node.consortium import ConsortiumNodeSettings, run_consortium
from gridtokenx.node.public import PublicNodeSettings, run_public
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger

NODES = 4
LOG_LEVEL = "error"
CHAINS = ("public", "consortium", "oracle")


def seed_of(name: str) -> bytes:
    return sha256(b"e2e relayer", name.encode())


class _Publics(dict[str, bytes]):
    def __missing__(self, name: str) -> bytes:
        return Ed25519Signer(seed_of(name)).public_key


@dataclass
class Network:
    """Files of a network; `running` starts it."""

    path: Path
    slot_ms: int = 1_000
    relayers: int = 2
    ports: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {chain: free_ports(NODES) for chain in CHAINS}
        manifest = Manifest(public=Public(slot_ms=self.slot_ms))
        roster = make_roster(SPECS, [0] * len(SPECS))
        made = make_network(manifest, _Publics(), roster, time.time_ns() // 1_000_000)
        for name, genesis in made.by_chain().items():
            (self.path / f"{name}.json").write_bytes(render_genesis(genesis))
        self.oracle: OracleGenesis = made.oracle
        for chain in ("consortium", "oracle"):
            authority = Authority.create(chain, seed_of(f"{chain} authority"))
            (self.path / f"{chain}-ca.pem").write_bytes(pem(authority.certificate))
            members = [f"{chain}-{index}" for index in range(NODES)]
            clients = [f"relayer-{index}" for index in range(self.relayers)] + ["alice"]
            for name in (*members, *clients):
                role = Role.PEER if name in members else Role.CLIENT
                public_key = Ed25519Signer(seed_of(name)).public_key
                certificate = authority.issue(public_key, name, role)
                (self.path / f"{chain}-{name}.pem").write_bytes(pem(certificate))

    def addresses(self, chain: str) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.ports[chain])

    def keys(self, name: str) -> Path:
        directory = self.path / f"{name}-keys"
        if not directory.exists():
            ring = KeyRing.create(directory, create_development_password(directory), scrypt_n=1024)
            ring.put("identity", seed_of(name))
        return directory

    # -- processes ---------------------------------------------------------------------------------

    def node(self, chain: str, index: int) -> Callable[[], object]:
        name = f"{chain}-{index}"
        peers = tuple(
            f"{Ed25519Signer(seed_of(f'{chain}-{other}')).public_key.hex()}@{address}"
            for other, address in enumerate(self.addresses(chain))
            if other != index
        )
        common = {
            "genesis": self.path / f"{chain}.json",
            "data": self.path / f"{name}-data",
            "listen": self.addresses(chain)[index],
            "peers": peers,
            "keys": self.keys(name),
            "key": "identity",
            "log_level": LOG_LEVEL,
        }
        if chain == "public":
            return lambda: run_public(PublicNodeSettings(**common))
        common |= {
            "certificate": self.path / f"{chain}-{name}.pem",
            "authority": self.path / f"{chain}-ca.pem",
        }
        if chain == "consortium":
            return lambda: run_consortium(ConsortiumNodeSettings(**common))
        return lambda: self.run_oracle(PermissionedNodeSettings(**common))

    async def run_oracle(self, settings: PermissionedNodeSettings) -> None:
        def chain_of(verifier: CachingVerifier) -> PbftChain:
            ledger = oracle_ledger(self.oracle, verifier)
            opening_ms = self.oracle.clock.network_genesis_ms
            validators = self.oracle.validator_set
            return PbftChain("oracle", ledger, validators, lambda: ledger.genesis(opening_ms))

        await make_replica(settings, open_role(settings, "oracle"), chain_of).node.run()

    def relayer(self, index: int) -> Callable[[], object]:
        name = f"relayer-{index}"
        settings = RelayerSettings(
            keys=self.keys(name),
            key="identity",
            log_level=LOG_LEVEL,
            position=index,
            relayers=self.relayers,
            **{chain: self.link(chain, name) for chain in CHAINS},
        )
        return lambda: run_relayer(settings)

    def link(self, chain: str, name: str) -> LinkSettings:
        permissioned = chain != "public"
        return LinkSettings(
            genesis=self.path / f"{chain}.json",
            nodes=self.addresses(chain),
            certificate=self.path / f"{chain}-{name}.pem" if permissioned else None,
            authority=self.path / f"{chain}-ca.pem" if permissioned else None,
        )

    # -- a person ----------------------------------------------------------------------------------

    def wallet(self, chain: str, name: str = "alice") -> "Wallet":
        facts = read_chain(chain, self.path / f"{chain}.json")
        signer, clock = Ed25519Signer(seed_of(name)), NetworkClock()
        parts = ClientParts(seed_of(name), clock, Metrics(), NullLogger())
        follower = open_follower(facts, self.link(chain, name), parts, from_newest=False)
        nonces = facts.nonces(follower, signer.public_key, clock)
        return Wallet(follower, ChainClient(follower, signer, nonces, clock), facts.fee_per_weight)


@dataclass
class Wallet:
    """Follows a chain, reads its verified state, and sends."""

    follower: Follower
    client: ChainClient
    fee_per_weight: int

    async def call(self, batch: Sequence[Wire], weight: int) -> Inclusion:
        return await self.client.call(batch, fee=self.fee_per_weight * weight)

    async def wait_for(self, key: bytes, wanted: Callable[[bytes | None], bool]) -> bytes | None:
        """The first verified value of a key that is as wanted."""
        while True:
            value = await self.follower.value(key)
            if wanted(value):
                return value
            await self.next_block()

    async def passed(self, time_ms: int) -> None:
        """Wait until the chain's own time is later."""
        while (head := self.follower.head) is None or head.header.timestamp_ms <= time_ms:
            await self.next_block()

    async def next_block(self) -> None:
        head = self.follower.head
        await self.follower.wait_beyond(0 if head is None else head.header.height)


@asynccontextmanager
async def running(*works: Callable[[], object]) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Run coroutines until the context ends; a failure of one ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for work in works]  # type: ignore[arg-type]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
