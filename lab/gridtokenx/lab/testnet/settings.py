"""The settings of each process of a local testnet, as files that its operator could have written.

Paths are relative to the process's own directory: its keys, its data, the public files in
``../genesis``, and where it has one, the clock file.
"""

from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.bridge.process.run import RelayerSettings
from gridtokenx.devices.fleet.agents import AgentsSettings
from gridtokenx.devices.fleet.broker import BrokerSettings
from gridtokenx.devices.fleet.fleet import FleetSettings
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.host.broker_address import Version
from gridtokenx.host.settings import LinkSettings, ProcessSettings
from gridtokenx.lab.testnet.genesis import WORKLOAD, Network
from gridtokenx.lab.testnet.layout import Layout, Member
from gridtokenx.node.consortium import ConsortiumNodeSettings
from gridtokenx.node.public import PublicNodeSettings
from gridtokenx.oracle.feeds.market_data import ENERGY_PRICE, MarketDataSettings, default_sources
from gridtokenx.oracle.role import OracleSettings

KEYS: Final = Path("keys")
DATA: Final = Path("data")
IDENTITY: Final = "identity"
BROKER: Final = "broker"
BROKER_CERTIFICATES: Final = Path("certificates")
CREDENTIAL: Final = "local-testnet"
"""What the testnet's own price sources ask for."""


def settings_of(layout: Layout, member: Member, network: Network) -> ProcessSettings:
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
    settings = makers[kind](layout, member, network)
    return msgspec.structs.replace(settings, clock_file=_clock_file(layout))


def _clock_file(layout: Layout) -> Path | None:
    path = layout.clock_path
    return None if path is None else Path("..") / path.relative_to(layout.home)


def _genesis(chain: str) -> Path:
    return Path("..") / "genesis" / f"{chain}.json"


def _authority(chain: str) -> Path:
    return Path("..") / "genesis" / f"{chain}-authority.pem"


def _revocations(chain: str) -> Path:
    return Path("..") / "genesis" / f"{chain}-revocations.pem"


def _certificate(chain: str) -> Path:
    return Path(f"{chain}-certificate.pem")


def _peers(layout: Layout, member: Member) -> tuple[str, ...]:
    return tuple(other.peer_address for other in layout.nodes(member.chain) if other != member)


def _public(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return PublicNodeSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("public"),
        data=DATA,
        listen=member.peer_listen,
        http=member.http_listen,
        peers=_peers(layout, member),
    )


def _consortium(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return ConsortiumNodeSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("consortium"),
        data=DATA,
        listen=member.peer_listen,
        http=member.http_listen,
        peers=_peers(layout, member),
        certificate=_certificate("consortium"),
        authority=_authority("consortium"),
        revocations=_revocations("consortium"),
        block_time_ms=layout.manifest.consortium.block_time_ms,
    )


def _oracle(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    index = layout.nodes("oracle").index(member)
    sources = default_sources(f"http://{layout.member('market-data').peer_address}", CREDENTIAL)
    return OracleSettings(
        keys=KEYS,
        key=IDENTITY,
        genesis=_genesis("oracle"),
        data=DATA,
        listen=member.peer_listen,
        http=member.http_listen,
        peers=_peers(layout, member),
        certificate=_certificate("oracle"),
        authority=_authority("oracle"),
        revocations=_revocations("oracle"),
        block_time_ms=layout.manifest.oracle.block_time_ms,
        broker=layout.broker_url,
        broker_protocol=broker_protocol(layout),
        broker_authority=_authority(BROKER) if layout.placement.mosquitto else None,
        broker_certificate=_certificate(BROKER) if layout.placement.mosquitto else None,
        feed=ENERGY_PRICE,
        source=sources[index % len(sources)],
    )


def broker_protocol(layout: Layout) -> Version:
    """The version of MQTT that the network's broker speaks; the embedded one knows 3.1.1 only."""
    return "5" if layout.placement.mosquitto else "3.1.1"


def _link(layout: Layout, chain: str) -> LinkSettings:
    permissioned = chain != "public"
    return LinkSettings(
        genesis=_genesis(chain),
        nodes=layout.addresses(chain),
        certificate=_certificate(chain) if permissioned else None,
        authority=_authority(chain) if permissioned else None,
        revocations=_revocations(chain) if permissioned else None,
    )


def _relayer(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return RelayerSettings(
        keys=KEYS,
        key=IDENTITY,
        http=member.http_listen,
        public=_link(layout, "public"),
        consortium=_link(layout, "consortium"),
        oracle=_link(layout, "oracle"),
        position=int(member.name.rpartition("-")[2]),
        relayers=layout.manifest.bridge.relayers,
    )


def _gateway(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return GatewaySettings(
        keys=KEYS,
        key=IDENTITY,
        http=member.http_listen,
        data=DATA,
        public=_link(layout, "public"),
        consortium=_link(layout, "consortium"),
        oracle=_link(layout, "oracle"),
        network=layout.manifest.name,
    )


def _broker(_layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return BrokerSettings(
        host=member.listen_host,
        port=member.peer_port,
        http=member.http_listen,
        clients=Path("clients.json"),
    )


def _market_data(layout: Layout, member: Member, network: Network) -> ProcessSettings:
    clock = network.oracle.clock
    return MarketDataSettings(
        listen=member.peer_listen,
        http=member.http_listen,
        seed=layout.manifest.seed,
        credential=CREDENTIAL,
        network_genesis_ms=clock.network_genesis_ms,
        grid_epoch_ms=clock.grid_epoch_ms,
        time_scale=clock.time_scale,
    )


def _devices(layout: Layout, member: Member, network: Network) -> ProcessSettings:
    clock = network.oracle.clock
    return FleetSettings(
        http=member.http_listen,
        broker=layout.broker_url,
        broker_protocol=broker_protocol(layout),
        broker_authority=_authority(BROKER) if layout.placement.mosquitto else None,
        broker_certificates=BROKER_CERTIFICATES if layout.placement.mosquitto else None,
        roster=Path("roster.json"),
        profiles=Path("profiles.bin"),
        keys=KEYS,
        data=DATA,
        chain_id=network.oracle.chain_id.hex(),
        network_genesis_ms=clock.network_genesis_ms,
        grid_epoch_ms=clock.grid_epoch_ms,
        time_scale=clock.time_scale,
    )


def _agents(layout: Layout, member: Member, _network: Network) -> ProcessSettings:
    return AgentsSettings(
        keys=KEYS,
        key=IDENTITY,
        http=member.http_listen,
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
