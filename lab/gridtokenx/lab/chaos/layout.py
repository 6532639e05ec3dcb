"""A chain of its own on disk: keys, certificates, genesis and settings of n replicas and one client.

The chain is the energy chain with all its rules, its genesis without devices; its clients transfer
WATT. Each replica dials the others through the runner's relays (`links.py`), so every address in its
settings is a relay's; clients reach replicas directly.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.consortium.chain import Account, Attestation, ConsortiumGenesis
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.core.units import WATT
from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.chains import ChainFacts, read_chain
from gridtokenx.host.clock import wall_ms
from gridtokenx.host.config import render
from gridtokenx.host.files import write_file
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.host.settings import LinkSettings
from gridtokenx.interchain.clients import ClientGenesis, ClientKind
from gridtokenx.lab.chaos.replica import LabReplicaSettings
from gridtokenx.lab.ports import LOOPBACK, free_ports
from gridtokenx.lab.testnet.processes import ProcessSpec
from gridtokenx.ledger.identity import UNNAMED, derive_chain_id, render_genesis

CHAIN: Final = "consortium"
KEY: Final = "identity"
SCRYPT_N: Final = 1_024
"""The least: a generated password needs no slow derivation, and replicas start often."""
OPENING_WATT: Final = 1_000_000
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Laid:
    """A chain laid out in a directory."""

    home: Path
    identities: tuple[bytes, ...]
    """The replicas' keys by index."""
    ports: tuple[int, ...]
    """Where each listens."""
    accounts: tuple[Ed25519Signer, ...]
    """Who sends transactions."""
    client_seed: bytes
    """The load generator's identity on its links."""

    @property
    def genesis_path(self) -> Path:
        """The chain's genesis file."""
        return self.home / "genesis.json"

    @property
    def authority_path(self) -> Path:
        """The certificate of the chain's authority."""
        return self.home / "authority.pem"

    def directory(self, index: int) -> Path:
        """A replica's home."""
        return self.home / name_of(index)

    def data(self, index: int) -> Path:
        """A replica's store."""
        return self.directory(index) / "data"

    def heard(self, index: int) -> Path:
        """The votes that a replica heard; see `witness.py`."""
        return self.directory(index) / "heard"

    def facts(self) -> ChainFacts:
        """The chain, put together from its genesis file."""
        return read_chain(CHAIN, self.genesis_path)

    def link(self) -> LinkSettings:
        """How a client reaches the replicas."""
        return LinkSettings(
            genesis=self.genesis_path,
            nodes=tuple(f"{LOOPBACK}:{port}" for port in self.ports),
            certificate=self.home / "client.pem",
            authority=self.authority_path,
        )

    def specs(self) -> list[ProcessSpec]:
        """How to start every replica."""
        return [
            ProcessSpec(
                name_of(index),
                ("fault", "replica", "--config", str(self.directory(index) / "config.toml")),
                self.directory(index) / "log",
            )
            for index in range(len(self.identities))
        ]


def name_of(index: int) -> str:
    """What a replica's process is called."""
    return f"replica-{index}"


def prepare(home: Path, replicas: int, accounts: int, rotation_blocks: int = 0) -> Laid:
    """Make keys and certificates, for play only, and the genesis that names them.

    Args:
        home: an empty directory.
        replicas: how many there are.
        accounts: how many send transactions.
        rotation_blocks: after so many the leadership passes on; 0: it does not.
    """
    authority = Authority.create("gtx fault", _seed())
    signers = [Ed25519Signer(_seed()) for _ in range(accounts)]
    identities = []
    for index in range(replicas):
        directory = home / name_of(index)
        keys = directory / "keys"
        keys.mkdir(parents=True, mode=0o700)
        ring = KeyRing.create(keys, create_development_password(keys), scrypt_n=SCRYPT_N)
        identities.append(ring.generate(KEY))
        certificate = authority.issue(identities[-1], name_of(index), Role.PEER)
        write_file(directory / "certificate.pem", pem(certificate))
    laid = Laid(
        home=home,
        identities=tuple(identities),
        ports=tuple(free_ports(replicas)),
        accounts=tuple(signers),
        client_seed=_seed(),
    )
    client = Ed25519Signer(laid.client_seed).public_key
    write_file(home / "client.pem", pem(authority.issue(client, "load", Role.CLIENT)))
    write_file(laid.authority_path, pem(authority.certificate))
    write_file(laid.genesis_path, render_genesis(_genesis(laid, rotation_blocks)))
    return laid


def write_settings(
    laid: Laid,
    relays: Mapping[tuple[int, int], int],
    control: Path,
    waits: Mapping[str, int],
    seed: int,
) -> None:
    """Write every replica's settings, once the relays listen.

    Args:
        laid: the chain.
        relays: the port at which a replica finds another one: by (dialer, listener).
        control: the runner's socket.
        waits: the engine's, by their names.
        seed: of what faults leave to chance.
    """
    for index, port in enumerate(laid.ports):
        directory = laid.directory(index)
        peers = tuple(
            f"{key.hex()}@{LOOPBACK}:{relays[index, other]}"
            for other, key in enumerate(laid.identities)
            if other != index
        )
        settings = LabReplicaSettings(
            genesis=laid.genesis_path,
            data=laid.data(index),
            keys=directory / "keys",
            key=KEY,
            listen=f"{LOOPBACK}:{port}",
            peers=peers,
            certificate=directory / "certificate.pem",
            authority=laid.authority_path,
            block_time_ms=waits["block_time_ms"],
            index=index,
            control=control,
            heard=laid.heard(index),
            waits=tuple(f"{name}={value}" for name, value in waits.items()),
            seed=seed,
        )
        text = render(settings, show_secrets=True)
        write_file(directory / "config.toml", text.encode(), mode=0o600)


def _seed() -> bytes:
    return secrets.token_bytes(32)


def _genesis(laid: Laid, rotation_blocks: int) -> ConsortiumGenesis:
    accounts = tuple(
        Account(account=signer.public_key, opening_uwatt=OPENING_WATT * WATT)
        for signer in laid.accounts
    )
    reserve = (len(accounts) + 1) * OPENING_WATT * WATT
    made = ConsortiumGenesis(
        chain_id=UNNAMED,
        validators=laid.identities,
        clock=GridClock(wall_ms(), 1_776_823_200_000, 1),
        operator=_somebody(),
        utility=_somebody(),
        utility_uwatt=OPENING_WATT * WATT,
        attestation=Attestation(
            custodian=_somebody(),
            reserve_uwatt=reserve,
            statement="Development reserve: no baht stands behind a chain that is made to be broken.",
        ),
        accounts=accounts,
        devices=(),
        relayers=(),
        clients=tuple(_neighbour(laid, name) for name in ("oracle", "public")),
        rotation_blocks=rotation_blocks or msgspec.UNSET,
    )
    return msgspec.structs.replace(made, chain_id=derive_chain_id(made))


def _somebody() -> bytes:
    """A key that nothing is signed with."""
    return Ed25519Signer(_seed()).public_key


def _neighbour(laid: Laid, name: str) -> ClientGenesis:
    """A chain that this one has to know, and that is never heard of."""
    return ClientGenesis(
        client_id=name,
        counterparty=CHAIN,
        chain_id=sha256(b"gtx fault: neighbour", name.encode()),
        kind=ClientKind.PBFT,
        set_id=0,
        validators=laid.identities[:4],
        trusting_period_ms=14 * _DAY_MS,
        clock_drift_ms=30_000,
    )
