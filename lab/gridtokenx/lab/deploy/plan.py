"""What runs where: the services of a network as plain data, whatever engine is to run them.

Law of the file: **a service gets what it needs and nothing else**: its own home, the public files
read-only, and the networks of those that it talks to. As in life there is no network of everybody:

=============  ==================================================================================
network        who is in it
=============  ==================================================================================
public         the public chain's nodes, and its clients: relayers, gateway, agents
consortium     the consortium's replicas, and its clients: relayers, gateway, agents
oracle         the oracle nodes, and their clients: relayers, gateway
devices        the broker, what publishes to it, and the oracle nodes that read it
feeds          the price sources and the oracle nodes that ask them
edge           the gateway, towards the outside: the only network that is not internal
=============  ==================================================================================
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.manifest import Manifest, dump_manifest
from gridtokenx.lab.testnet.layout import Layout, Member
from gridtokenx.lab.testnet.placement import CONTAINERS, MACHINES, Placement

HOME: Final = PurePosixPath("/home/gridtokenx/home")
EDGE: Final = "edge"
NETWORKS: Final = ("public", "consortium", "oracle", "devices", "feeds", EDGE)
OPERATOR_HOMES: Final = ("authority", "wallet")
"""Directories that `initialise` makes and no process reads."""
PLACES: Final = {"public": 128, "consortium": 32, "oracle": 32, "relayer": 32}
"""Mount points that the image has (`compose/Dockerfile`), by the beginning of the name."""
USER: Final = 10_001
"""The image's user and group."""


class Image(Enum):
    """Which image a service runs."""

    VALIDATOR = "validator"
    FULL = "full"
    BROKER = "broker"
    """Somebody else's: Mosquitto."""


class Life(Enum):
    """How long a service runs."""

    ALWAYS = "always"
    """Started again whenever it ends, until somebody stops it."""
    ONCE = "once"
    """Ends by itself; others wait for its success."""
    ON_REQUEST = "on request"
    """A tool that a person starts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a service may use."""

    memory_mib: int
    cpus: str = "1.0"
    pids: int = 128


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume inside a service."""

    volume: str
    target: PurePosixPath
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One container, or one pod."""

    name: str
    image: Image
    command: tuple[str, ...]
    """Arguments of `gtx`, or of a shell where the image is not ours."""
    life: Life
    limits: Limits
    networks: tuple[str, ...] = ()
    """None: the service has no network at all."""
    mounts: tuple[Mount, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    peer_port: int = 0
    """What others in its networks dial; 0: nothing."""
    http_port: int = 0
    """`/health`, `/ready` and `/metrics`; 0: none."""
    published: int = 0
    """Port of the machine, on loopback, that leads to `http_port`; 0: none."""
    after: tuple[str, ...] = ()
    """Services that have to be there, or done, before."""

    @property
    def dialed_in(self) -> str | None:
        """The network in which others dial `peer_port`: its first."""
        return self.networks[0] if self.peer_port else None


@dataclass(frozen=True, slots=True)
class Plan:
    """All services of a network."""

    manifest: Manifest
    placement: Placement
    services: tuple[Service, ...]
    volumes: tuple[str, ...]
    parts: tuple[tuple[str, int], ...] = ()
    """Of the bundles: (process, how many); none where `init` makes the homes."""

    @property
    def bundled(self) -> bool:
        """Whether each process brings its home in a bundle."""
        return self.placement is MACHINES

    def service(self, name: str) -> Service:
        """The service of that name."""
        return next(service for service in self.services if service.name == name)


NODE_LIMITS: Final = Limits(memory_mib=384)
_LIMITS: Final = {
    "gateway": Limits(memory_mib=512),
    "market-data": Limits(memory_mib=128),
    "devices": Limits(memory_mib=512),
    "agents": Limits(memory_mib=384),
}
_NETWORKS: Final = {
    "public": ("public",),
    "consortium": ("consortium",),
    "oracle": ("oracle", "devices", "feeds"),
    "relayer": ("public", "consortium", "oracle"),
    "gateway": ("public", "consortium", "oracle", EDGE),
    "broker": ("devices",),
    "market-data": ("feeds",),
    "devices": ("devices",),
    "agents": ("public", "consortium"),
}


def plan_network(manifest: Manifest, parts: dict[str, int] | None = None) -> Plan:
    """The services of a network.

    Args:
        manifest: what the network is.
        parts: of each process's bundle, where the homes were made elsewhere (several machines);
            None: the service `init` makes them, on the one machine of all containers.

    Raises:
        LocalFault: the network has more processes than the image has places for, or a process
            has no bundle.
    """
    placement = CONTAINERS if parts is None else MACHINES
    layout = Layout(Path(HOME), manifest, placement)
    _check(layout, parts)
    members = tuple(
        _process(layout, member, bundled=parts is not None) for member in layout.members
    )
    names = tuple(member.name for member in layout.members)
    if parts is not None:
        members = (_broker_home(), *members)
        return Plan(manifest, placement, members, names, tuple(parts.items()))
    volumes = ("genesis", "clock", *OPERATOR_HOMES, *names)
    others = (_init(layout, volumes), _heartbeat(), _audit(layout), _wallet())
    return Plan(manifest, placement, (*others, *members), volumes)


def process_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of all processes of a network."""
    return tuple(member.name for member in Layout(Path(HOME), manifest, MACHINES).members)


def family(name: str) -> str:
    """``public-3`` belongs to ``public``, ``market-data`` to itself."""
    head, _, tail = name.rpartition("-")
    return head if tail.isdecimal() else name


def _check(layout: Layout, parts: dict[str, int] | None) -> None:
    for member in layout.members:
        places = PLACES.get(family(member.name))
        if places is not None and int(member.name.rpartition("-")[2]) >= places:
            raise LocalFault(
                f"{member.name}: the image has places for {places} of {family(member.name)}; "
                "make the network smaller, or add places in compose/Dockerfile"
            )
        if parts is not None and not parts.get(member.name):
            raise LocalFault(
                f"{member.name} has no bundle; make them from this manifest: gtx testnet bundle"
            )


BROKER_SCRIPT: Final = """
until [ -f {home}/mosquitto.conf ]; do echo "waiting: {home}/mosquitto.conf is not there yet"; sleep 2; done
cd {home} && exec mosquitto -c mosquitto.conf
"""


def _broker(layout: Layout, *, bundled: bool) -> Service:
    """Mosquitto from its own image, which knows nothing of us: a shell waits for the settings."""
    member = layout.member("broker")
    return Service(
        name=member.name,
        image=Image.BROKER,
        command=(BROKER_SCRIPT.strip().format(home=HOME / member.name) + "\n",),
        life=Life.ALWAYS,
        limits=Limits(memory_mib=256),
        networks=_NETWORKS[member.name],
        mounts=(Mount(member.name, HOME if bundled else HOME / member.name),),
        peer_port=member.peer_port,
        after=() if bundled else ("init",),
    )


def _broker_home() -> Service:
    """Unpacks the broker's bundle into its volume: its own image cannot."""
    return Service(
        name="broker-home",
        image=Image.VALIDATOR,
        command=("--version",),
        life=Life.ONCE,
        limits=Limits(memory_mib=96),
        networks=_NETWORKS["broker"],  # a swarm knows no service without one
        mounts=(Mount("broker", HOME),),
        environment=(("GTX_PROCESS", "broker"), ("GTX_BUNDLE", "/run/secrets")),
    )


def _process(layout: Layout, member: Member, *, bundled: bool) -> Service:
    if member.name == "broker":
        return _broker(layout, bundled=bundled)
    config = HOME / member.name / "config.toml"
    environment = [("GTX_PROCESS", member.name)]
    if bundled:
        environment.append(("GTX_BUNDLE", "/run/secrets"))
    else:
        environment.append(("GTX_CLOCK", str(HOME / "clock")))
    return Service(
        name=member.name,
        image=Image.VALIDATOR,
        command=(*member.command, "--config", str(config)),
        life=Life.ALWAYS,
        limits=_LIMITS.get(member.name, NODE_LIMITS),
        networks=_NETWORKS[family(member.name)],
        mounts=_mounts(member.name, bundled=bundled),
        environment=tuple(environment),
        peer_port=member.peer_port,
        http_port=member.http_port,
        published=layout.manifest.ports.gateway if member.name == "gateway" else 0,
        after=() if bundled else ("init", "heartbeat"),
    )


def _mounts(name: str, *, bundled: bool) -> tuple[Mount, ...]:
    if bundled:  # the one volume holds its own directory and a copy of the public files
        return (Mount(name, HOME),)
    return (
        Mount(name, HOME / name),
        Mount("genesis", HOME / "genesis", read_only=True),
        Mount("clock", HOME / "clock", read_only=True),
    )


def _init(layout: Layout, volumes: tuple[str, ...]) -> Service:
    return Service(
        name="init",
        image=Image.FULL,
        command=("testnet", "prepare", "--home", str(HOME)),
        life=Life.ONCE,
        limits=Limits(memory_mib=1024, cpus="2.0"),
        mounts=tuple(Mount(name, HOME / name) for name in volumes),
        environment=(("GTX_MANIFEST", dump_manifest(layout.manifest, brief=True)),),
    )


def _heartbeat() -> Service:
    return Service(
        name="heartbeat",
        image=Image.VALIDATOR,
        command=("testnet", "heartbeat", "--clock", str(HOME / "clock")),
        life=Life.ALWAYS,
        limits=Limits(memory_mib=96, cpus="0.2"),
        mounts=(Mount("clock", HOME / "clock"),),
        after=("init",),
    )


def _audit(layout: Layout) -> Service:
    return Service(
        name="audit",
        image=Image.FULL,
        command=("testnet", "audit", "--home", str(HOME)),
        life=Life.ON_REQUEST,
        limits=Limits(memory_mib=2048, cpus="2.0"),
        mounts=tuple(_audited(layout)),
    )


def _wallet() -> Service:
    """`gtx` with the keys of the testnet's people: ``run --rm wallet tx balance alice``."""
    return Service(
        name="wallet",
        image=Image.VALIDATOR,
        command=("tx", "--help"),
        life=Life.ON_REQUEST,
        limits=Limits(memory_mib=256),
        networks=("public", "consortium", "oracle"),
        mounts=(
            Mount("wallet", HOME / "wallet"),
            Mount("genesis", HOME / "genesis", read_only=True),
            Mount("clock", HOME / "clock", read_only=True),
        ),
        environment=(("GTX_HOME", str(HOME)),),
    )


def _audited(layout: Layout) -> Iterator[Mount]:
    yield Mount("genesis", HOME / "genesis", read_only=True)
    for member in layout.members:
        if member.chain:
            yield Mount(member.name, HOME / member.name)
