"""What a relayer makes of the three chains: which packets travel where, and how patient it is."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gridtokenx.bridge.relayer.book import ChainSpec, Facing
from gridtokenx.core.errors import LocalFault
from gridtokenx.host.chains import ChainFacts
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.public.chain import PublicGenesis

PBFT_VALID_MS: Final = 8_000
PBFT_STAGGER_MS: Final = 5_000
PUBLIC_VALID_SLOTS: Final = 4
"""A transaction that no author included in so many slots was lost."""
PUBLIC_STAGGER_SLOTS: Final = 6
"""Inclusion and finality take about three."""


class Patience(NamedTuple):
    """How long a relayer waits for its own transaction, and for another relayer's."""

    valid_ms: int
    stagger_ms: int


def relayed(chains: Sequence[ChainFacts]) -> list[ChainSpec]:
    """The routes between these chains, as their genesis files agree on them.

    Raises:
        LocalFault: the files are not of one network.
    """
    names = {facts.chain_id: facts.name for facts in chains}
    return [_spec(facts, names) for facts in chains]


def relaying_fee(facts: ChainFacts) -> int:
    """What a relayer pays per unit of weight: where relayers are enrolled, relaying is free."""
    return facts.fee_per_weight if isinstance(facts.genesis, PublicGenesis) else 0


def _spec(facts: ChainFacts, names: dict[bytes, str]) -> ChainSpec:
    patience = _patience(facts)
    return ChainSpec(
        facts.name,
        {client.client_id: _facing(facts, client, names) for client in facts.clients},
        retry_ms=patience.valid_ms,
        stagger_ms=patience.stagger_ms,
    )


def _patience(facts: ChainFacts) -> Patience:
    if isinstance(facts.genesis, PublicGenesis):
        slot_ms = facts.genesis.slot_ms
        return Patience(PUBLIC_VALID_SLOTS * slot_ms, PUBLIC_STAGGER_SLOTS * slot_ms)
    return Patience(PBFT_VALID_MS, PBFT_STAGGER_MS)


def _facing(facts: ChainFacts, client: ClientGenesis, names: dict[bytes, str]) -> Facing:
    name = names.get(client.chain_id)
    if name is None:
        raise LocalFault(
            f"the {facts.name} genesis has a client {client.client_id!r} of another chain "
            f"({client.chain_id.hex()[:16]}...) than the files given: use those of one network"
        )
    return Facing(name, client.counterparty)
