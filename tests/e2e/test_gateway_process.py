"""`gtx gateway` as a process: it starts, verifies, survives a kill, stops when asked, and refuses."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.e2e.testnet import Commands
from tests.gateway_nodes import Node, node_seed
from tests.gateway_world import real_chains
from tests.unit.host_network import LOOPBACK

from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.gateway.facts import CONSORTIUM, PUBLIC
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.chains import CHAINS
from gridtokenx.host.keyfile import KeyRing
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.identity import render_genesis

pytestmark = pytest.mark.e2e

PASSWORD = "gateway test"
START_S = 20.0


class Home:
    """The nodes of three chains, and a gateway's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create("test", b"a" * 32)
        (directory / "authority.pem").write_bytes(pem(self.authority.certificate))
        self.chains = real_chains()
        for chain in self.chains.values():
            for _ in range(3):
                chain.block()
        self.nodes = {
            name: Node(0, chain, security=self._security(name))
            for name, chain in self.chains.items()
        }
        self.port = free_ports(1)[0]
        self._make_gateway()

    def _security(self, chain: str) -> LinkSecurity:
        if chain == PUBLIC:
            return open_security()
        seed = node_seed(chain, 0)
        own = self.directory / f"{chain}-node.pem"
        key = Ed25519Signer(seed).public_key
        own.write_bytes(pem(self.authority.issue(key, f"{chain}-0", Role.PEER)))
        return mutual_security(seed, own, self.directory / "authority.pem")

    def _make_gateway(self) -> None:
        key = KeyRing.create(self.directory / "keys", PASSWORD, scrypt_n=1_024).generate("gateway")
        issued = self.authority.issue(key, "gateway", Role.CLIENT)
        (self.directory / "gateway.pem").write_bytes(pem(issued))
        for name, chain in self.chains.items():
            (self.directory / f"{name}.json").write_bytes(render_genesis(chain.genesis))

    def settings(self) -> dict[str, str]:
        """Flags of a gateway that works."""
        found = {
            "http": f"127.0.0.1:{self.port}",
            "keys": str(self.directory / "keys"),
            "key": "gateway",
            "data": str(self.directory / "data"),
            "network": "e2e",
            "stale-after-ms": "86400000",
        }
        for name, node in self.nodes.items():
            found[f"{name}-genesis"] = str(self.directory / f"{name}.json")
            found[f"{name}-nodes"] = f"127.0.0.1:{node.network.port}"
            if name != PUBLIC:
                found[f"{name}-certificate"] = str(self.directory / "gateway.pem")
                found[f"{name}-authority"] = str(self.directory / "authority.pem")
        return found

    async def start(self, settings: Mapping[str, str]) -> asyncio.subprocess.Process:
        flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gridtokenx.lab.cli", "gateway", *flags,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "GTX_PASSWORD": PASSWORD},
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await self.start(self.settings())
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def heights(self, least: int) -> dict[str, Any]:
        """The gateway's status, once every chain has this height."""
        url = f"http://127.0.0.1:{self.port}/api/v1/status"
        async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(url) as answer:
                        status = await answer.json()
                    if all(each["finalized"] >= least for each in status["chains"].values()):
                        return dict(status)
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    made = Home(tmp_path)
    for node in made.nodes.values():
        node.network.start(LOOPBACK)
    yield made
    for node in made.nodes.values():
        await node.network.close()
        await node.tasks.close()


async def test_it_verifies_is_killed_goes_on_and_stops_when_asked(home: Home) -> None:
    async with home.running() as process:
        status = await home.heights(3)
        assert status["network"] == "e2e"
        process.kill()
        await process.wait()
    for chain in CHAINS:
        home.chains[chain].block()
        home.nodes[chain].grow()
    async with home.running() as process:
        await home.heights(4)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0


def without(name: str) -> dict[str, str | None]:
    return {name: None}


REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "no data directory": (without("data"), "--data"),
    "no certificate": (without("oracle-certificate"), "oracle.certificate"),
    "no nodes": ({"public-nodes": ""}, "public.nodes"),
    "bad address": ({"public-nodes": "somewhere"}, "somewhere"),
    "bad http": ({"http": "80"}, "'80'"),
    "unset http": ({"http": ""}, "http"),
    "other key": ({"key": "nobody"}, "nobody"),
    "missing genesis": ({"public-genesis": "nowhere.json"}, "nowhere.json"),
    "swapped genesis": ({"public-genesis": "{directory}/oracle.json"}, "oracle.json"),
    "data is a file": ({"data": "{directory}/public.json"}, "public.json"),
    "certificate of another": (
        {"consortium-certificate": "{directory}/consortium-node.pem"},
        "consortium-node.pem",
    ),
    "too fresh": ({"stale-after-ms": "1"}, "--stale-after-ms"),
    "port in use": ({"http": "{taken}"}, "cannot listen"),
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Starts gateways quickly: the fork server has imported them."""
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_it_can_not_use_is_one_line_and_code_2(
    home: Home, commands: Commands, name: str
) -> None:
    changes, word = REFUSED[name]
    taken = f"127.0.0.1:{home.nodes[CONSORTIUM].network.port}"
    settings = home.settings()
    for key, value in changes.items():
        settings.pop(key, None)
        if value is not None:
            settings[key] = value.format(directory=home.directory, taken=taken)
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    said = await asyncio.to_thread(commands.run, "gateway", *flags, GTX_PASSWORD=PASSWORD)
    lines = said.err.strip().splitlines()
    assert said.code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert word in lines[0]
