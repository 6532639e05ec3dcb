"""The three chains as a relayer finds them in their genesis files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from gridtokenx.bridge.relayer.book import ChainSpec, Facing
from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.client import ClockNonces, Nonces, StrictNonces
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.files import read_file
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.ledger.admission import StrictNonce
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.public.chain import PublicGenesis, public_ledger

PBFT_VALID_MS: Final = 8_000
PBFT_STAGGER_MS: Final = 5_000
PUBLIC_VALID_SLOTS: Final = 4
"""A transaction that no author included in so many slots was lost."""
PUBLIC_STAGGER_SLOTS: Final = 6
"""Inclusion and finality take about three."""


class _Genesis(Protocol):
    """What the genesis files of all chains have."""

    @property
    def chain_id(self) -> bytes: ...
    @property
    def clock(self) -> GridClock: ...
    @property
    def clients(self) -> tuple[ClientGenesis, ...]: ...
    @property
    def validator_set(self) -> ValidatorSet: ...


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What a relayer needs to know of a chain."""

    name: str
    genesis: _Genesis
    genesis_hash: bytes
    admission: object
    valid_ms: int
    stagger_ms: int
    fee_per_weight: int

    @property
    def trust(self) -> Trust:
        """Where following begins."""
        genesis = self.genesis
        return Trust(genesis.chain_id, 0, self.genesis_hash, genesis.validator_set)

    def nonces(self, follower: Follower, account: bytes, clock: NetworkClock) -> Nonces:
        """How this chain numbers an account's transactions."""
        if isinstance(self.admission, StrictNonce):
            return StrictNonces(follower, self.admission.nonces.key(account))
        return ClockNonces(clock)


G = TypeVar("G", bound=msgspec.Struct)


def read_public(path: Path) -> ChainFacts:
    """The public chain: relaying costs GRID.

    Raises:
        LocalFault: the genesis file cannot be used.
    """
    genesis = _parse(path, PublicGenesis)
    return _facts(
        "public",
        genesis,
        public_ledger(genesis),
        valid_ms=PUBLIC_VALID_SLOTS * genesis.slot_ms,
        stagger_ms=PUBLIC_STAGGER_SLOTS * genesis.slot_ms,
        fee_per_weight=genesis.fee_per_weight_ngrid,
    )


def read_consortium(path: Path) -> ChainFacts:
    """The consortium chain: free within an enrolled relayer's quota.

    Raises:
        LocalFault: the genesis file cannot be used.
    """
    genesis = _parse(path, ConsortiumGenesis)
    return _facts("consortium", genesis, consortium_ledger(genesis))


def read_oracle(path: Path) -> ChainFacts:
    """The oracle chain: free for enrolled relayers.

    Raises:
        LocalFault: the genesis file cannot be used.
    """
    genesis = _parse(path, OracleGenesis)
    return _facts("oracle", genesis, oracle_ledger(genesis))


def relayed(chains: Sequence[ChainFacts]) -> list[ChainSpec]:
    """The routes between these chains, as their genesis files agree on them.

    Raises:
        LocalFault: the files are not of one network.
    """
    names = {facts.genesis.chain_id: facts.name for facts in chains}
    return [
        ChainSpec(
            facts.name,
            {client.client_id: _facing(facts, client, names) for client in facts.genesis.clients},
            retry_ms=facts.valid_ms,
            stagger_ms=facts.stagger_ms,
        )
        for facts in chains
    ]


def _facing(facts: ChainFacts, client: ClientGenesis, names: dict[bytes, str]) -> Facing:
    name = names.get(client.chain_id)
    if name is None:
        raise LocalFault(
            f"the {facts.name} genesis has a client {client.client_id!r} of another chain "
            f"({client.chain_id.hex()[:16]}...) than the files given: use those of one network"
        )
    return Facing(name, client.counterparty)


def _parse(path: Path, type_: type[G]) -> G:
    return parse_genesis(read_file(path), type_, str(path))


def _facts(
    name: str,
    genesis: _Genesis,
    ledger: Ledger,
    *,
    valid_ms: int = PBFT_VALID_MS,
    stagger_ms: int = PBFT_STAGGER_MS,
    fee_per_weight: int = 0,
) -> ChainFacts:
    block = ledger.genesis(genesis.clock.network_genesis_ms)
    return ChainFacts(
        name,
        genesis,
        block.hash,
        ledger.admission,
        valid_ms=valid_ms,
        stagger_ms=stagger_ms,
        fee_per_weight=fee_per_weight,
    )


READERS: Final[dict[str, Callable[[Path], ChainFacts]]] = {
    "public": read_public,
    "consortium": read_consortium,
    "oracle": read_oracle,
}
