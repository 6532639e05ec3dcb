"""A consortium chain alone: its replicas as processes of the lab, and what they use.

The replicas are those of `./scripts/up`: forked by the same fork server, with the settings that the
lab writes, HTTP included. There is no oracle and no public chain, so no packet ever moves.
"""

import asyncio
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import structs

from gridtokenx.consortium.chain import Account, Attestation, ConsortiumGenesis, Device
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.core.units import WATT
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.stages import VARIABLE as STAGES_VARIABLE
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.clients import (
    DEFAULT_CLOCK_DRIFT_MS,
    DEFAULT_TRUSTING_PERIOD_MS,
    ClientGenesis,
    ClientKind,
)
from gridtokenx.lab.bench.network import write_config
from gridtokenx.lab.ports import free_ports
from gridtokenx.lab.testnet.processes import Processes, ProcessSpec, processor_time_s
from gridtokenx.ledger.identity import derive_chain_id, render_genesis
from gridtokenx.node.consortium import ConsortiumNodeSettings

OPENING_UWATT: Final = 1_000 * WATT
GRID_EPOCH_MS: Final = 1_776_823_200_000
"""A working day, 9:00 in Bangkok: all books that open are on-peak, where trade can pay."""
RATING_W: Final = 1_000_000
PATIENCE_S: Final = 180.0
LOADER: Final = "loader"
_STAGE: Final = re.compile(r'^gtx_stage_seconds\{.*stage="([a-z ]+)".*\} (\S+)$', re.MULTILINE)


def seed(name: str, index: int = 0) -> bytes:
    """The secret of one of the benchmark's own keys."""
    return sha256(b"bench pbft", name.encode(), index.to_bytes(4, "big"))


def signer(name: str, index: int = 0) -> Ed25519Signer:
    """One of the benchmark's own keys."""
    return Ed25519Signer(seed(name, index))


def buys(account: bytes) -> bool:
    """Whether an account buys; the others sell: nobody may have open orders of both sides."""
    return bool(account[0] & 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the chain is."""

    replicas: int
    block_time_ms: int
    accounts: int
    meters: bool = False
    """Whether each account has a connection, and so may trade."""
    stages: bool = True
    """Whether processor time is counted by stage; the counting takes half a MiB."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What all replicas had used at some moment."""

    at_s: float
    cpu_s: float
    stages_s: Mapping[str, float]

    def since(self, before: "Usage") -> "Usage":
        """The difference; `at_s` becomes the time between."""
        stages = {name: used - before.stages_s[name] for name, used in self.stages_s.items()}
        return Usage(self.at_s - before.at_s, self.cpu_s - before.cpu_s, stages)


class PbftNetwork:
    """Directories, settings and processes of the replicas.

    Args:
        home: an empty directory.
        shape: what to lay out in it.
    """

    def __init__(self, home: Path, shape: Shape) -> None:
        self.home: Final = home
        self.shape: Final = shape
        self.keys: Final = [signer("replica", index) for index in range(shape.replicas)]
        ports = free_ports(2 * shape.replicas)
        self.ports, self.http_ports = ports[: shape.replicas], ports[shape.replicas :]
        self._authority = Authority.create("bench", seed("authority"))
        self._write()
        specs = [self._spec(index) for index in range(shape.replicas)]
        self._processes = Processes(specs, {STAGES_VARIABLE: "1"} if shape.stages else {}, print)

    # -- files -------------------------------------------------------------------------------------

    def _write(self) -> None:
        home = self.home
        (home / "genesis.json").write_bytes(render_genesis(_genesis(self.shape, self.keys)))
        (home / "ca.pem").write_bytes(pem(self._authority.certificate))
        loader = self._authority.issue(signer(LOADER).public_key, LOADER, Role.CLIENT)
        (home / "loader.pem").write_bytes(pem(loader))
        for index, key in enumerate(self.keys):
            directory = home / f"replica-{index}"
            ring = KeyRing.create(directory, create_development_password(directory), scrypt_n=1024)
            ring.put("identity", seed("replica", index))
            certificate = self._authority.issue(key.public_key, f"replica-{index}", Role.PEER)
            (directory / "node.pem").write_bytes(pem(certificate))
            write_config(directory / "config.toml", self._settings(index, directory))

    def _settings(self, index: int, directory: Path) -> ConsortiumNodeSettings:
        peers = tuple(
            f"{key.public_key.hex()}@127.0.0.1:{port}"
            for other, (key, port) in enumerate(zip(self.keys, self.ports, strict=True))
            if other != index
        )
        return ConsortiumNodeSettings(
            genesis=self.home / "genesis.json",
            data=directory / "data",
            keys=directory,
            key="identity",
            listen=f"127.0.0.1:{self.ports[index]}",
            http=f"127.0.0.1:{self.http_ports[index]}",
            peers=peers,
            certificate=directory / "node.pem",
            authority=self.home / "ca.pem",
            block_time_ms=self.shape.block_time_ms,
            log_level="warning",
        )

    def _spec(self, index: int) -> ProcessSpec:
        directory = self.home / f"replica-{index}"
        config = str(directory / "config.toml")
        return ProcessSpec(
            f"replica-{index}", ("node", "consortium", "--config", config), directory / "log"
        )

    # -- processes ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All replicas run, and have committed blocks, while the context lasts."""
        await self._processes.start()
        try:
            await self._until_ready()
            yield
        finally:
            await self._processes.stop()

    async def _until_ready(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        for port in self.http_ports:
            while not await asyncio.to_thread(_is_ready, port):
                if time.monotonic() > deadline_s or self._processes.failed:
                    raise LocalFault(f"the replicas do not become ready; see {self.home}")
                await asyncio.sleep(0.2)

    async def usage(self, *, ended: bool) -> Usage:
        """What they have used so far; what it costs to tell the stages stays outside.

        Args:
            ended: whether what is measured lies before this call, and not behind it.
        """
        at_s, cpu_s = time.monotonic(), self._cpu_s()
        texts = [await asyncio.to_thread(_get, port, "/metrics") for port in self.http_ports]
        stages_s: dict[str, float] = {}
        for text in texts:
            for name, seconds in _STAGE.findall(text):
                stages_s[name] = stages_s.get(name, 0.0) + float(seconds)
        if not ended:
            at_s, cpu_s = time.monotonic(), self._cpu_s()
        return Usage(at_s, cpu_s, stages_s)

    def _cpu_s(self) -> float:
        return sum(map(processor_time_s, self._pids()))

    def memory_mib(self) -> list[float]:
        """Memory that each replica alone has: pages shared with the fork server do not count."""
        return [_private_kib(pid) / 1024 for pid in self._pids()]

    def _pids(self) -> list[int]:
        return [one.pid for one in self._processes.watched.values() if one.pid is not None]


def _genesis(shape: Shape, replicas: Sequence[Ed25519Signer]) -> ConsortiumGenesis:
    keys = [signer("account", index).public_key for index in range(shape.accounts)]
    devices = tuple(_devices(keys)) if shape.meters else ()
    made = ConsortiumGenesis(
        chain_id=bytes(32),
        validators=tuple(one.public_key for one in replicas),
        clock=GridClock(wall_ms(), GRID_EPOCH_MS, 1),
        operator=signer("operator").public_key,
        utility=signer("utility").public_key,
        utility_uwatt=OPENING_UWATT,
        attestation=Attestation(
            custodian=signer("custodian").public_key,
            reserve_uwatt=OPENING_UWATT * (shape.accounts + 1),
            statement="A benchmark's.",
        ),
        accounts=tuple(Account(account=key, opening_uwatt=OPENING_UWATT) for key in keys),
        devices=devices,
        relayers=(),
        clients=(_stranger("oracle", ClientKind.PBFT),),
    )
    return structs.replace(made, chain_id=derive_chain_id(made))


def _devices(accounts: Sequence[bytes]) -> Iterator[Device]:
    """A meter for everyone, and panels for those who sell."""
    for index, owner in enumerate(accounts):
        kinds = (DeviceKind.METER,) if buys(owner) else (DeviceKind.METER, DeviceKind.SOLAR)
        for kind in kinds:
            key = signer(kind.name, index).public_key
            yield Device(public_key=key, owner=owner, zone=0, kind=kind, rating_w=RATING_W)


def _stranger(name: str, kind: ClientKind) -> ClientGenesis:
    """A client of a chain that does not exist: the genesis has to name one."""
    return ClientGenesis(
        client_id=name,
        counterparty="consortium",
        chain_id=sha256(b"bench", name.encode()),
        kind=kind,
        set_id=0,
        validators=(signer("stranger").public_key,),
        trusting_period_ms=DEFAULT_TRUSTING_PERIOD_MS,
        clock_drift_ms=DEFAULT_CLOCK_DRIFT_MS,
    )


def _get(port: int, path: str) -> str:
    url = f"http://127.0.0.1:{port}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _is_ready(port: int) -> bool:
    try:
        return bool(_get(port, "/ready"))
    except OSError:
        return False


def _private_kib(pid: int) -> int:
    """What a process alone has written to; pages of the store's file are the system's cache."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
