"""Where everything of a local testnet lies, and which processes it consists of.

::

    HOME/
      manifest.toml  network.json  heartbeat
      genesis/{public,consortium,oracle}.json      what everyone may know
      NAME/config.toml, keys, data/, log, pid       one directory a process; it reads only its own

In containers each NAME and `genesis` is a volume, so the manifest and `network.json` lie in
`genesis` and the heartbeat has a volume of its own (`placement`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.chains import CHAINS, read_chain
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.network import read_network
from gridtokenx.lab.ports import LOOPBACK, is_free
from gridtokenx.lab.testnet.placement import (
    HTTP_PORT,
    LOCAL,
    MQTTS_PORT,
    PEER_PORT,
    Placement,
)
from gridtokenx.lab.testnet.processes import ProcessSpec
from gridtokenx.ledger.blocks import PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a testnet and where it can be reached."""

    name: str
    command: tuple[str, ...]
    """Words of `gtx` before its flags."""
    peer_port: int
    """Peer transport, or the one service port; 0 where it listens on none."""
    http_port: int
    """`/health`, `/ready`, `/metrics`."""
    host: str = LOOPBACK
    """How the others reach it."""
    listen_host: str = LOOPBACK
    """Where it listens."""

    @property
    def peer_address(self) -> str:
        """``host:port`` that others dial."""
        return f"{self.host}:{self.peer_port}"

    @property
    def peer_listen(self) -> str:
        """``host:port`` that it listens on."""
        return f"{self.listen_host}:{self.peer_port}"

    @property
    def http_listen(self) -> str:
        """``host:port`` that it serves HTTP on."""
        return f"{self.listen_host}:{self.http_port}"

    @property
    def chain(self) -> str:
        """The chain that a node belongs to, or an empty text."""
        chain = self.name.rpartition("-")[0]
        return chain if chain in CHAINS else ""


class Layout:
    """Paths and processes of one testnet."""

    def __init__(self, home: Path, manifest: Manifest, placement: Placement = LOCAL) -> None:
        self.home: Final = home
        self.manifest: Final = manifest
        self.placement: Final = placement
        self.members: Final = tuple(_members(manifest, placement))
        self._by_name: Final = {member.name: member for member in self.members}

    @property
    def manifest_path(self) -> Path:
        """The manifest that the network was made from."""
        return self.home / self.placement.public / "manifest.toml"

    @property
    def network_path(self) -> Path:
        """Public facts: chain ids and addresses."""
        return self.home / self.placement.public / "network.json"

    @property
    def heartbeat_path(self) -> Path:
        """See `heartbeat`."""
        return self.home / self.placement.clock / "heartbeat"

    @property
    def clock_path(self) -> Path | None:
        """The file that holds the offset of network time, where each process reads it itself."""
        name = self.placement.clock_file
        return None if name is None else self.home / self.placement.clock / name

    def genesis_path(self, chain: str) -> Path:
        """The genesis file of a chain."""
        return self.home / "genesis" / f"{chain}.json"

    def authority_path(self, chain: str) -> Path:
        """The certificate of the authority of a permissioned chain, or of the ``broker``."""
        return self.home / "genesis" / f"{chain}-authority.pem"

    def revocations_path(self, chain: str) -> Path:
        """Whom that authority no longer admits; `gtx ca revoke --out` writes it anew."""
        return self.home / "genesis" / f"{chain}-revocations.pem"

    def certificate_path(self, name: str, chain: str) -> Path:
        """A process's certificate on a permissioned chain, or at the ``broker``."""
        return self.directory(name) / f"{chain}-certificate.pem"

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers, on the machine that it runs or is published on."""
        return f"http://{LOOPBACK}:{self.manifest.ports.gateway}"

    @property
    def broker_url(self) -> str:
        """Where readings go."""
        scheme = "mqtts" if self.placement.mosquitto else "mqtt"
        return f"{scheme}://{self.member('broker').peer_address}"

    def directory(self, name: str) -> Path:
        """The directory of one process."""
        return self.home / name

    def config_path(self, name: str) -> Path:
        """The settings of one process."""
        foreign = name == "broker" and self.placement.mosquitto
        return self.directory(name) / ("mosquitto.conf" if foreign else "config.toml")

    def log_path(self, name: str) -> Path:
        """Standard output and error of one process."""
        return self.directory(name) / "log"

    def member(self, name: str) -> Member:
        """The process of that name."""
        return self._by_name[name]

    def nodes(self, chain: str) -> tuple[Member, ...]:
        """The nodes of a chain, in index order."""
        return tuple(member for member in self.members if member.chain == chain)

    def addresses(self, chain: str) -> tuple[str, ...]:
        """``host:port`` of the peer transport of every node of a chain."""
        return tuple(member.peer_address for member in self.nodes(chain))

    def specs(self) -> list[ProcessSpec]:
        """How to start every process."""
        return [
            ProcessSpec(
                member.name,
                (*member.command, "--config", str(self.config_path(member.name))),
                self.log_path(member.name),
            )
            for member in self.members
        ]

    def check_files(self) -> None:
        """Refuse a home that is not whole, not by this program's rules, or by another manifest.

        Raises:
            LocalFault: naming the file.
        """
        needed = [self.network_path, *map(self.genesis_path, CHAINS)]
        needed += [self.config_path(member.name) for member in self.members]
        for path in needed:
            if not path.is_file():
                raise LocalFault(f"{path} is missing; restore it, or start over with --fresh")
        facts = read_network(self.network_path)
        if facts.protocol != PROTOCOL_VERSION:
            raise LocalFault(
                f"{self.network_path}: made by protocol version {facts.protocol}, and this program speaks "
                f"version {PROTOCOL_VERSION}; use the program that made it, or start over (--fresh; with "
                "containers: docker-compose down --volumes)"
            )
        if facts.gateway != self.gateway_url:
            raise LocalFault(
                f"{self.manifest_path} is not the one that the network was made from "
                f"({facts.gateway}); restore it, or start over with --fresh"
            )
        for chain in CHAINS:
            read_chain(chain, self.genesis_path(chain))

    def check_ports(self) -> None:
        """Refuse to start where another program already listens.

        Raises:
            LocalFault: naming the port and the process that wants it.
        """
        for member in self.members:
            for port in (member.peer_port, member.http_port):
                if port and not is_free(port):
                    raise LocalFault(
                        f"port {port} of {member.name} is in use: is another testnet running? "
                        "stop it, or choose others with [ports] in the manifest and --fresh"
                    )


def _members(manifest: Manifest, placement: Placement) -> Iterator[Member]:
    ports = iter(range(manifest.ports.base, 65_536))

    def member(name: str, *command: str, listens: bool = True) -> Member:
        if placement.by_name:
            peer_port, http_port = PEER_PORT, HTTP_PORT
        else:
            peer_port, http_port = next(ports) if listens else 0, next(ports)
        host, listen = placement.host(name), placement.listen_host
        return Member(name, command, peer_port if listens else 0, http_port, host, listen)

    candidates = manifest.public.candidates or manifest.public.validators
    counts = (
        ("public", candidates),
        ("consortium", manifest.consortium.replicas),
        ("oracle", manifest.oracle.nodes),
    )
    if placement.mosquitto:
        host, listen = placement.host("broker"), placement.listen_host
        yield Member("broker", ("mosquitto",), MQTTS_PORT, 0, host, listen)
    else:
        yield member("broker", "broker")
    yield member("market-data", "market-data")
    for chain, count in counts:
        for index in range(count):
            yield member(f"{chain}-{index}", "node", chain)
    for index in range(manifest.bridge.relayers):
        yield member(f"relayer-{index}", "bridge", listens=False)
    host, listen = placement.host("gateway"), placement.listen_host
    yield Member("gateway", ("gateway",), 0, manifest.ports.gateway, host, listen)
    yield member("devices", "devices", listens=False)
    yield member("agents", "agents", listens=False)
