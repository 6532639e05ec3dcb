"""Four public validators as processes over sockets and disks; some are killed with SIGKILL."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from msgspec.structs import replace
from tests.public_ledger import public_genesis

from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.units import GRID
from gridtokenx.finality.justifications import verify_justification
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.storage import Store
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.identity import derive_chain_id, render_genesis
from gridtokenx.ledger.records import final_height, load_block
from gridtokenx.public.chain import Balance, PublicGenesis
from gridtokenx.public.staking import Candidate, Nomination
from gridtokenx.public.sync import load_justification

pytestmark = pytest.mark.e2e

N = 4
SLOT_MS = 1_000
RUN = "from gridtokenx.lab.cli import main; main()"


def seed_of(index: int) -> bytes:
    return sha256(b"e2e public validator", bytes((index,)))


def genesis_now() -> PublicGenesis:
    keys = [Ed25519Signer(seed_of(index)).public_key for index in range(N)]
    now = time.time_ns() // 1_000_000
    made = replace(
        public_genesis(
            clock=GridClock(network_genesis_ms=now, grid_epoch_ms=now, time_scale=60),
            slot_ms=SLOT_MS,
            epoch_slots=10,
        ),
        chain_id=bytes(32),
        clients=(),
        validators=N,
        candidates=tuple(Candidate(account=key, session_key=key) for key in keys),
        nominations=tuple(
            Nomination(voter=key, stake_ngrid=100 * GRID, targets=(key,)) for key in keys
        ),
        balances=tuple(Balance(account=key, amount_ngrid=1_000 * GRID) for key in keys),
    )
    return replace(made, chain_id=derive_chain_id(made))


@dataclass
class Processes:
    """A network's files, and the processes that run on them."""

    path: Path
    genesis: PublicGenesis = field(default_factory=genesis_now)
    size: int = N
    """Nodes; those beyond the genesis' candidates are full nodes."""
    ports: list[int] = field(default_factory=list)
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = free_ports(2 * self.size)
        (self.path / "genesis.json").write_bytes(render_genesis(self.genesis))
        for index in range(self.size):
            keys = self.path / f"keys-{index}"
            ring = KeyRing.create(keys, create_development_password(keys), scrypt_n=1024)
            ring.put("identity", seed_of(index))

    def start(self, index: int, **more: str) -> None:
        others = [i for i in range(self.size) if i != index]
        peers = ",".join(f"127.0.0.1:{self.ports[i]}" for i in others)
        options = {
            "genesis": self.path / "genesis.json",
            "keys": self.path / f"keys-{index}",
            "key": "identity",
            "data": self.path / f"data-{index}",
            "listen": f"127.0.0.1:{self.ports[index]}",
            "http": f"127.0.0.1:{self.ports[self.size + index]}",
            "peers": peers,
            "log-level": "warning",
            **more,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        log = (self.path / f"log-{index}").open("ab")
        command = [sys.executable, "-c", RUN, "node", "public", *flags]
        self.running[index] = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()

    def kill(self, index: int) -> None:
        process = self.running.pop(index)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(timeout=20)
        self.running.clear()

    def gauge(self, index: int, name: str) -> int:
        try:
            with urlopen(
                f"http://127.0.0.1:{self.ports[self.size + index]}/metrics", timeout=2
            ) as answer:
                text = answer.read().decode()
        except (URLError, OSError):
            return -1
        found = re.search(rf"^\w*{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
        return -1 if found is None else int(float(found.group(1)))

    def finals(self) -> dict[int, int]:
        return self.gauges("final_height")

    def gauges(self, name: str) -> dict[int, int]:
        return {index: self.gauge(index, name) for index in self.running}

    async def all_reach(self, height: int, within_s: float) -> None:
        await self.all_in("final_height", height, within_s)

    async def all_in(self, gauge: str, least: int, within_s: float) -> None:
        """Wait until a gauge of every process is so high."""
        end = time.monotonic() + within_s
        while min((found := self.gauges(gauge)).values()) < least:
            logs = {i: (self.path / f"log-{i}").read_text()[-800:] for i in self.running}
            assert time.monotonic() < end, f"{gauge}: {found} instead of {least}: {logs}"
            await asyncio.sleep(0.2)

    def check_disks(self) -> None:
        """One chain on all disks, each finalised head convincing by itself."""
        chain: dict[int, bytes] = {}
        for index in range(self.size):
            store = Store.open(self.path / f"data-{index}")
            with contextlib.closing(store):
                for height in range(1, (final_height(store) or 0) + 1):
                    block = load_block(store, height)
                    assert block is not None
                    assert chain.setdefault(height, block.hash) == block.hash
                    proof = load_justification(store, height)
                    if proof is not None and block.header.set_id == 0:
                        validators = self.genesis.validator_set
                        verify_justification(proof, block.header, validators, Ed25519Verifier())


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    for index in range(N):
        made.start(index)
    yield made
    for process in made.running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_killed_validators_come_back_and_vote_again(network: Processes) -> None:
    await network.all_reach(5, within_s=40)
    network.kill(2)
    await network.all_reach(max(network.finals().values()) + 3, within_s=25)
    network.start(2)
    await network.all_reach(max(network.finals().values()) + 2, within_s=30)
    for index in (0, 1):  # a majority is gone: nothing is final until both are back
        network.kill(index)
    await asyncio.sleep(3)
    for index in (0, 1):
        network.start(index)
    await network.all_reach(max(network.finals().values()) + 4, within_s=40)
    furthest = max(network.gauge(index, "round") for index in range(N))
    await network.all_in("round", furthest, within_s=40)  # nobody stays behind
    network.stop()
    network.check_disks()
