"""Small networks over real loopback sockets, for the tests of the host."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.framing import Channel
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.link import Link, LinkLimits
from gridtokenx.host.logs import Logger, NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.host.transport import Network, NetworkLimits, NetworkParts

LOOPBACK = HostPort("127.0.0.1", 0)
CHAIN = sha256(b"chain")
GENESIS = sha256(b"genesis")


def seed(number: int) -> bytes:
    return sha256(b"seed", bytes((number,)))


def signer(number: int) -> Ed25519Signer:
    return Ed25519Signer(seed(number))


class Recorder:
    """A handler that keeps what it hears."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.frames: list[tuple[bytes, Channel, bytes]] = []
        self.links: list[Link] = []

    def link_up(self, link: Link) -> None:
        self.links.append(link)

    def link_down(self, link: Link) -> None:
        self.down.append(link.identity)

    def frames_ready(self, link: Link) -> None:
        while self.takes and (found := link.take()) is not None:
            self.frames.append((link.identity, *found))


class Node:
    """One `Network` with its recorder."""

    def __init__(
        self,
        number: int,
        peers: Sequence[NodeAddress] = (),
        *,
        role: str = "peer",
        chain: bytes = CHAIN,
        genesis: bytes = GENESIS,
        security: LinkSecurity | None = None,
        limits: NetworkLimits | None = None,
        takes: bool = True,
        members: Sequence[bytes] = (),
        now_ms: Callable[[], int] = wall_ms,
        log: Logger | None = None,
    ) -> None:
        self.signer = signer(number)
        self.metrics = Metrics()
        self.recorder = Recorder(takes=takes)
        self.parts = NetworkParts(
            own=LinkIdentity(self.signer, role, chain, genesis),
            security=security or open_security(),
            verifier=Ed25519Verifier(),
            metrics=self.metrics,
            log=log or NullLogger(),
            limits=limits or NetworkLimits(),
            now_ms=now_ms,
        )
        known = [peer.identity for peer in peers if peer.identity]
        self.network = Network(self.parts, members or known, peers, self.recorder)

    @property
    def key(self) -> bytes:
        return self.signer.public_key

    @property
    def faults(self) -> dict[str, int]:
        return self.metrics.by_label("remote_faults", "reason")

    @property
    def dial_failures(self) -> dict[str, int]:
        return self.metrics.by_label("dial_failures", "reason")

    @property
    def address(self) -> NodeAddress:
        return NodeAddress(HostPort("127.0.0.1", self.network.port), self.key)


def addresses(numbers: Sequence[int], ports: Sequence[int]) -> list[NodeAddress]:
    return [
        NodeAddress(HostPort("127.0.0.1", port), signer(number).public_key)
        for number, port in zip(numbers, ports, strict=True)
    ]


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait for something that another task brings about; how soon is not the test's question."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a test looks at foreign state
            await asyncio.sleep(0.005)


def issue(
    directory: Path, authority: Authority, number: int, role: Role = Role.PEER
) -> LinkSecurity:
    """Security for a node whose certificate `authority` issues."""
    ca, own = directory / "ca.pem", directory / f"node-{number}.pem"
    ca.write_bytes(pem(authority.certificate))
    own.write_bytes(pem(authority.issue(signer(number).public_key, f"node-{number}", role)))
    return mutual_security(seed(number), own, ca)


def quick(**changes: float) -> LinkLimits:
    """Link limits with short times."""
    return LinkLimits(**{"handshake_s": 2.0, **changes})  # type: ignore[arg-type]  # mixed numbers
