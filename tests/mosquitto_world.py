"""A real Mosquitto with a network's settings, and clients that log in by certificate."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509

from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.host.broker import BrokerAddress, broker_client, parse_broker
from gridtokenx.host.certificates import Authority, load_chain, pem
from gridtokenx.lab.deploy.mosquitto import MosquittoPlan, client_certificate, write_mosquitto
from gridtokenx.lab.deploy.mosquitto_process import MosquittoProcess, find_mosquitto, own_user
from gridtokenx.lab.ports import free_ports

needs_mosquitto = pytest.mark.skipif(
    find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)"
)
PATIENCE_S = 60


def seed_of(name: str) -> bytes:
    """The secret of a client by name."""
    return sha256(b"mosquitto test", name.encode())


def key_of(name: str) -> bytes:
    """Its public key."""
    return Ed25519Signer(seed_of(name)).public_key


class World:
    """A broker's directory, its authority, and what its clients need."""

    def __init__(
        self,
        home: Path,
        *,
        oracles: Sequence[bytes],
        concentrators: Sequence[bytes] = (),
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    ) -> None:
        self.home = home
        self.directory = home / "broker"
        self.authority = Authority.create("broker test", sha256(b"broker authority"))
        (self.port,) = free_ports(1)
        self.ca = home / "broker-authority.pem"
        self.ca.write_bytes(pem(self.authority.certificate))
        self.plan = MosquittoPlan(
            authority=self.authority,
            server_seed=sha256(b"broker server"),
            hosts=hosts,
            oracles=tuple(oracles),
            concentrators=tuple(concentrators),
            listen="127.0.0.1",
            port=self.port,
            run_as=own_user(),
        )
        write_mosquitto(self.directory, self.plan)
        self.broker = MosquittoProcess(self.directory, self.port)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtts://localhost:{self.port}"

    def address(
        self,
        name: str,
        *,
        certificate: x509.Certificate | None = None,
        ca: Path | None = None,
        host: str = "localhost",
    ) -> BrokerAddress:
        """How a client logs in; it does not look at its own certificate first."""
        shown = certificate or client_certificate(self.authority, key_of(name))
        context = ssl.create_default_context(cafile=ca or self.ca)
        load_chain(context, shown, seed_of(name))
        return BrokerAddress(
            host, self.port, context, version="5", authority=ca or self.ca, certified=True
        )

    def client(self, name: str, **how: object) -> aiomqtt.Client:
        """A client of the project's own kind."""
        return self.client_at(name, self.address(name, **how))  # type: ignore[arg-type]  # passed on

    def client_at(self, name: str, address: BrokerAddress) -> aiomqtt.Client:
        """The same, for an address made otherwise."""
        signer = Ed25519Signer(seed_of(name))
        identifier = signer.public_key.hex()
        return broker_client(address, signer, identifier, keepalive_s=15, queued_messages=100)

    def bare(self) -> BrokerAddress:
        """How someone without a certificate would try."""
        return parse_broker(self.url, self.ca, "5")


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """The broker, while the context lasts."""
    await world.broker.start()
    try:
        yield world
    finally:
        await world.broker.stop()


async def refusal(client: aiomqtt.Client) -> str:
    """Why a client does not get in."""
    try:
        async with asyncio.timeout(20), client:
            await asyncio.sleep(0.5)
    except aiomqtt.MqttError as error:
        return str(error)
    return "it was let in"


async def received(client: aiomqtt.Client, last: bytes) -> list[tuple[str, bytes]]:
    """What comes, up to what was published last.

    A broker passes on in order what it has acknowledged: what it would have let through comes before.
    """
    found: list[tuple[str, bytes]] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found or found[-1][1] != last:
            message = await anext(client.messages)
            assert isinstance(message.payload, bytes)
            found.append((str(message.topic), message.payload))
    return found
