"""Lay a testnet out on disk: keys, certificates, genesis files, profiles, settings.

Law of the file: each process gets its own directory with its own keys, and nothing of another's but
public files. Secrets are made here, and kept only in the directory of the process that uses them.
All of them are for development: their passwords lie beside them, and say so.
"""

import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.devices.fleet.clients import Clients
from gridtokenx.devices.fleet.profiles import make_profiles, plan_neighbourhood
from gridtokenx.devices.fleet.roster import Roster, household_name, make_roster
from gridtokenx.devices.models.forecast import make_forecast
from gridtokenx.devices.models.profiles import Profile, pack_profiles
from gridtokenx.host.certificates import VALID_DAYS, Authority, Role, load_certificate, pem
from gridtokenx.host.config import Settings, render
from gridtokenx.host.enrolment import EnrolmentRequest
from gridtokenx.host.files import read_file, write_file
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.lab.authority import AuthorityHome
from gridtokenx.lab.deploy.mosquitto import (
    MosquittoPlan,
    client_certificate,
    write_client_certificates,
    write_mosquitto,
)
from gridtokenx.lab.manifest import Manifest, dump_manifest
from gridtokenx.lab.network import ChainEntry, NetworkFacts
from gridtokenx.lab.testnet.genesis import PEOPLE, WORKLOAD, Network, make_network
from gridtokenx.lab.testnet.heartbeat import wall_ms, write_beat
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.settings import (
    BROKER,
    BROKER_CERTIFICATES,
    broker_protocol,
    settings_of,
)
from gridtokenx.ledger.blocks import PROTOCOL_VERSION
from gridtokenx.ledger.identity import render_genesis

SCRYPT_N: Final = 1_024
"""The least: a generated password of 144 bits needs no slow derivation, and starts faster."""
PERMISSIONED: Final = ("consortium", "oracle")
CLIENTS: Final = ("gateway", "agents", "wallet")
"""Who talks to all chains as a client; relayers do too."""
DAY_ERROR_PPM: Final = 100_000
INTERVAL_ERROR_PPM: Final = 150_000

Report = Callable[[str], None]


def initialise(layout: Layout, report: Report) -> None:
    """Write everything that `layout` names, below `layout.home`.

    Args:
        layout: where; the directory exists and is empty.
        report: told what is being done.
    """
    manifest = layout.manifest
    report("making weather, households and their profiles")
    neighbourhood = plan_neighbourhood(
        manifest.seed,
        manifest.devices.households,
        manifest.devices.solar,
        manifest.devices.batteries,
    )
    profiles = make_profiles(
        manifest.seed,
        datetime.fromisoformat(manifest.time.start).date(),
        manifest.devices.profile_days,
        neighbourhood,
    )
    roster = make_roster(neighbourhood.specs, [0] * manifest.devices.households)
    report("making keys and certificates (for development only)")
    authorities = _Authorities(layout)
    keys = _make_keys(layout, roster, authorities)
    genesis_ms = wall_ms()
    network = make_network(manifest, keys, roster, genesis_ms)
    _write_genesis(layout, network)
    _write_fleet(layout, roster, profiles)
    if layout.placement.mosquitto:
        authorities.write_broker(keys, roster)
    else:
        _write_clients(layout, network)
    for member in layout.members:
        if layout.config_path(member.name).suffix == ".toml":
            _write_settings(layout, member.name, settings_of(layout, member, network))
    write_file(layout.manifest_path, dump_manifest(manifest).encode())
    layout.heartbeat_path.parent.mkdir(parents=True, exist_ok=True)
    write_beat(layout.heartbeat_path, genesis_ms)
    _write_facts(layout, network)


# -- keys and certificates -------------------------------------------------------------------------


def _make_keys(layout: Layout, roster: Roster, authority: "_Authorities") -> dict[str, bytes]:
    """Every key in its owner's directory; returns the public keys by name."""
    manifest = layout.manifest
    keys: dict[str, bytes] = {}
    for member in layout.members:
        if member.chain or member.name.startswith("relayer-") or member.name in CLIENTS:
            ring = _ring(layout, member.name)
            keys[member.name] = ring.generate("identity")
            if member.name == "agents":
                for name in (*_households(manifest), WORKLOAD):
                    keys[name] = ring.generate(name)
            if member.chain != "public":
                chains = (member.chain,) if member.chain else PERMISSIONED
                authority.certify(member.name, keys[member.name], chains, peer=bool(member.chain))
    wallet = _ring(layout, "wallet")
    keys["wallet"] = wallet.generate("identity")
    authority.certify("wallet", keys["wallet"], PERMISSIONED, peer=False)
    stakes = [f"stake-{index}" for index in range(len(layout.nodes("public")))]
    for name in (*PEOPLE, *stakes):
        keys[name] = wallet.generate(name)
    devices = _ring(layout, "devices")
    for household in roster.households:
        for device in household.devices:
            keys[device.key] = devices.generate(device.key)
    return keys


class _Authorities:
    """The certificate authorities of the permissioned chains, and of a broker that wants one."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        ring, directory = _ring(layout, "authority"), layout.directory("authority")
        self._by_chain: dict[str, Authority] = {}
        self._homes: dict[str, AuthorityHome] = {}
        for chain in (*PERMISSIONED, BROKER) if layout.placement.mosquitto else PERMISSIONED:
            name = f"{layout.manifest.name} {chain}"
            home = AuthorityHome.create(directory, chain, ring, name, VALID_DAYS)
            write_file(layout.authority_path(chain), read_file(home.certificate_path))
            write_file(layout.revocations_path(chain), read_file(home.list_path))
            self._by_chain[chain], self._homes[chain] = home.unlock(ring), home

    def certify(self, name: str, public_key: bytes, chains: tuple[str, ...], *, peer: bool) -> None:
        """Issue a certificate on each of the chains."""
        for chain in chains:
            role = Role.PEER if peer else Role.CLIENT
            request = EnrolmentRequest(public_key, name, role, chain)
            certificate = self._homes[chain].issue(
                self._by_chain[chain], request, role, VALID_DAYS - 1
            )
            write_file(self._layout.certificate_path(name, chain), pem(certificate))

    def write_broker(self, keys: dict[str, bytes], roster: Roster) -> None:
        """The broker's own files, and a certificate for each of its clients."""
        layout, authority = self._layout, self._by_chain[BROKER]
        oracles = [member.name for member in layout.nodes("oracle")]
        for name in oracles:
            certificate = client_certificate(authority, keys[name])
            write_file(layout.certificate_path(name, BROKER), pem(certificate))
        devices = {
            device.key: keys[device.key]
            for household in roster.households
            for device in household.devices
        }
        directory = layout.directory("devices") / BROKER_CERTIFICATES
        write_client_certificates(directory, authority, devices)
        member = layout.member(BROKER)
        plan = MosquittoPlan(
            authority=authority,
            server_seed=secrets.token_bytes(32),
            hosts=(member.host,),
            oracles=tuple(keys[name] for name in oracles),
            devices=len(devices),
            listen=member.listen_host,
            port=member.peer_port,
        )
        write_mosquitto(layout.directory(BROKER), plan)
        files = [layout.certificate_path(name, BROKER) for name in oracles]
        files += [*sorted(directory.glob("*.pem")), layout.directory(BROKER) / "server.pem"]
        self._homes[BROKER].note([load_certificate(file) for file in files])


def _ring(layout: Layout, name: str) -> KeyRing:
    directory = layout.directory(name) / "keys"
    directory.mkdir(parents=True, mode=0o700)
    password = create_development_password(directory)
    return KeyRing.create(directory, password, scrypt_n=SCRYPT_N)


def _households(manifest: Manifest) -> list[str]:
    return [household_name(index) for index in range(manifest.devices.households)]


# -- files -----------------------------------------------------------------------------------------


def _write_genesis(layout: Layout, network: Network) -> None:
    for chain, genesis in network.by_chain().items():
        write_file(layout.genesis_path(chain), render_genesis(genesis))


def _write_clients(layout: Layout, network: Network) -> None:
    """Whom the embedded broker lets in."""
    oracles = tuple(key.hex() for key in network.oracle.validators)
    devices = tuple(device.public_key.hex() for device in network.consortium.devices)
    clients = msgspec.json.encode(Clients(oracles=oracles, devices=devices))
    write_file(layout.directory("broker") / "clients.json", clients)


def _write_facts(layout: Layout, network: Network) -> None:
    """Last of all: who finds these facts finds the whole network."""
    manifest = layout.manifest
    block_times_ms = {
        "consortium": manifest.consortium.block_time_ms,
        "oracle": manifest.oracle.block_time_ms,
    }
    facts = NetworkFacts(
        note="public facts of a development network; all of its keys were generated",
        name=manifest.name,
        chains={
            chain: ChainEntry(
                chain_id=genesis.chain_id.hex(),
                genesis=str(layout.genesis_path(chain).relative_to(layout.network_path.parent)),
                nodes=tuple(layout.addresses(chain)),
                block_time_ms=block_times_ms.get(chain),
            )
            for chain, genesis in network.by_chain().items()
        },
        gateway=layout.gateway_url,
        broker=layout.broker_url,
        broker_protocol=broker_protocol(layout),
        protocol=PROTOCOL_VERSION,
    )
    write_file(layout.network_path, msgspec.json.format(msgspec.json.encode(facts), indent=2))


def _write_fleet(layout: Layout, roster: Roster, profiles: tuple[Profile, ...]) -> None:
    manifest = layout.manifest
    devices, agents = layout.directory("devices"), layout.directory("agents")
    first = profiles[0]
    write_file(devices / "roster.json", roster.encode())
    write_file(
        devices / "profiles.bin", pack_profiles(first.start_grid_ms, first.step_ms, profiles)
    )
    seed = manifest.seed.to_bytes(8, "big")
    forecasts = [
        make_forecast(profile, seed, index, DAY_ERROR_PPM, INTERVAL_ERROR_PPM)
        for index, profile in enumerate(profiles)
    ]
    start = forecasts[0]
    write_file(agents / "roster.json", roster.encode())
    write_file(
        agents / "forecasts.bin", pack_profiles(start.start_grid_ms, start.step_ms, forecasts)
    )


def _write_settings(layout: Layout, name: str, settings: Settings) -> None:
    path: Path = layout.config_path(name)
    note = "# Written by `gtx testnet init`; paths are relative to this file.\n"
    write_file(path, (note + render(settings, show_secrets=True)).encode(), mode=0o600)
