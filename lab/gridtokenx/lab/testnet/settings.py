"""The settings of each process of a local testnet, as files that its operator could have written.

Paths are relative to the process's own directory: its keys, its data, and the public files in
``../genesis``.
"""

from pathlib import Path
from typing import Final

from gridtokenx.bridge.process.run import RelayerSettings
from gridtokenx.devices.fleet.agents import AgentsSettings
from gridtokenx.devices.fleet.broker import BrokerSettings
from gridtokenx.devices.fleet.fleet import FleetSettings
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.host.config import Settings
from gridtokenx.host.settings import LinkSettings
from gridtokenx.lab.testnet.genesis import WORKLOAD, Network
from gridtokenx.lab.testnet.layout import LOOPBACK, Layout, Member
from gridtokenx.node.consortium import ConsortiumNodeSettings
from gridtokenx.node.public import PublicNodeSettings
from gridtokenx.oracle.feeds.market_data import ENERGY_PRICE, MarketDataSettings, default_sources
from gridtokenx.oracle.role import OracleSettings

KEYS: Final = Path("keys")
DATA: Final = Path("data")
IDENTITY: Final = "identity"
CREDENTIAL: Final = "local-testnet"
"""What the testnet's own price sources ask for."""


def settings_of(layout: Layout, member: Member, network: Network) -> Settings:
    """The settings of one process."""
    makers = {
        "public": _public,
        "consortium": _consortium,
        "oracle": _oracle,
        "broker": _broker,
        "market-data": _market_data,
        "devices": _devices,
        "relayer": _relayer,
        "gateway": _gateway,
        "agents": _agents,
    }
    kind = member.chain or member.name.split("-", maxsplit=1)[0].replace("market", "market-data")
    return makers[kind](layout, member, network)


def _genesis(chain: str) -> Path:
    return Path("..") / "genesis" / f"{chain}.json"


def _authority(chain: str) -> Path:
    return Path("..") / "genesis" / f"{chain}-authority.pem"


def _certificate(chain: str) -> Path:
    return Path(f"{chain}-certificate.pem")


def _http(member: Member) -> str:
    return f"{LOOPBACK}:{member.http_port}"


def _peers(layout: Layout, member: Member) -> tuple[str, ...]:
    return tuple(
        f"{LOOPBACK}:{other.peer_port}" for other in layout.nodes(member.chain) if other != member
    )


def _public(layout: Layout, member: Member, _network: Network) -> Settings:
    return PublicNodeSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("public"),
        data=DATA,
        listen=f"{LOOPBACK}:{member.peer_port}",
        http=_http(member),
        peers=_peers(layout, member),
    )


def _consortium(layout: Layout, member: Member, _network: Network) -> Settings:
    return ConsortiumNodeSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("consortium"),
        data=DATA,
        listen=f"{LOOPBACK}:{member.peer_port}",
        http=_http(member),
        peers=_peers(layout, member),
        certificate=_certificate("consortium"),
        authority=_authority("consortium"),
        block_time_ms=layout.manifest.consortium.block_time_ms,
    )


def _oracle(layout: Layout, member: Member, _network: Network) -> Settings:
    index = layout.nodes("oracle").index(member)
    sources = default_sources(
        f"http://{LOOPBACK}:{layout.member('market-data').peer_port}", CREDENTIAL
    )
    return OracleSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("oracle"),
        data=DATA,
        listen=f"{LOOPBACK}:{member.peer_port}",
        http=_http(member),
        peers=_peers(layout, member),
        certificate=_certificate("oracle"),
        authority=_authority("oracle"),
        block_time_ms=layout.manifest.oracle.block_time_ms,
        broker=layout.broker_url,
        feed=ENERGY_PRICE,
        source=sources[index % len(sources)],
    )


def _link(layout: Layout, chain: str) -> LinkSettings:
    permissioned = chain != "public"
    return LinkSettings(
        genesis=_genesis(chain),
        nodes=layout.addresses(chain),
        certificate=_certificate(chain) if permissioned else None,
        authority=_authority(chain) if permissioned else None,
    )


def _relayer(layout: Layout, member: Member, _network: Network) -> Settings:
    return RelayerSettings(
        keys=KEYS,
        key=IDENTITY,
        http=_http(member),
        public=_link(layout, "public"),
        consortium=_link(layout, "consortium"),
        oracle=_link(layout, "oracle"),
        position=int(member.name.rpartition("-")[2]),
        relayers=layout.manifest.bridge.relayers,
    )


def _gateway(layout: Layout, member: Member, _network: Network) -> Settings:
    return GatewaySettings(
        keys=KEYS,
        key=IDENTITY,
        http=_http(member),
        data=DATA,
        public=_link(layout, "public"),
        consortium=_link(layout, "consortium"),
        oracle=_link(layout, "oracle"),
        network=layout.manifest.name,
    )


def _broker(_layout: Layout, member: Member, _network: Network) -> Settings:
    return BrokerSettings(
        host=LOOPBACK,
        port=member.peer_port,
        http=_http(member),
        clients=Path("clients.json"),
    )


def _market_data(layout: Layout, member: Member, network: Network) -> Settings:
    clock = network.oracle.clock
    return MarketDataSettings(
        listen=f"{LOOPBACK}:{member.peer_port}",
        http=_http(member),
        seed=layout.manifest.seed,
        credential=CREDENTIAL,
        network_genesis_ms=clock.network_genesis_ms,
        grid_epoch_ms=clock.grid_epoch_ms,
        time_scale=clock.time_scale,
    )


def _devices(layout: Layout, member: Member, network: Network) -> Settings:
    clock = network.oracle.clock
    return FleetSettings(
        http=_http(member),
        broker=layout.broker_url,
        roster=Path("roster.json"),
        profiles=Path("profiles.bin"),
        keys=KEYS,
        data=DATA,
        chain_id=network.oracle.chain_id.hex(),
        network_genesis_ms=clock.network_genesis_ms,
        grid_epoch_ms=clock.grid_epoch_ms,
        time_scale=clock.time_scale,
    )


def _agents(layout: Layout, member: Member, _network: Network) -> Settings:
    return AgentsSettings(
        keys=KEYS,
        key=IDENTITY,
        http=_http(member),
        roster=Path("roster.json"),
        forecasts=Path("forecasts.bin"),
        seed=layout.manifest.seed,
        bid=layout.manifest.workload.bid,
        retire=layout.manifest.workload.retire,
        transfers=layout.manifest.workload.transfers,
        workload=WORKLOAD,
        public=_link(layout, "public"),
        consortium=_link(layout, "consortium"),
    )
