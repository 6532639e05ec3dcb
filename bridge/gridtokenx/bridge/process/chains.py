"""What a relayer makes of the three chains: which packets travel where, and how patient it is."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gridtokenx.bridge.relayer.book import ChainSpec, Facing
from gridtokenx.host.chains import ChainFacts, faced
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
    return [_spec(facts, faced(facts, chains)) for facts in chains]


def relaying_fee(facts: ChainFacts) -> int:
    """What a relayer pays per unit of weight: where relayers are enrolled, relaying is free."""
    return facts.fee_per_weight if isinstance(facts.genesis, PublicGenesis) else 0


def _spec(facts: ChainFacts, names: dict[str, str]) -> ChainSpec:
    patience = _patience(facts)
    return ChainSpec(
        facts.name,
        {
            client.client_id: Facing(names[client.client_id], client.counterparty)
            for client in facts.clients
        },
        retry_ms=patience.valid_ms,
        stagger_ms=patience.stagger_ms,
    )


def _patience(facts: ChainFacts) -> Patience:
    if isinstance(facts.genesis, PublicGenesis):
        slot_ms = facts.genesis.slot_ms
        return Patience(PUBLIC_VALID_SLOTS * slot_ms, PUBLIC_STAGGER_SLOTS * slot_ms)
    return Patience(PBFT_VALID_MS, PBFT_STAGGER_MS)
