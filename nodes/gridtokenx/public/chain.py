"""The public chain put together: its genesis, its modules, and what others ask of its state."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Verifier
from gridtokenx.core.types import UINT63_MAX, Hash32, PublicKey, UInt63
from gridtokenx.core.units import GRID, AmountError, checked_amount
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.apps.transfer import TransferApp, TransferLimit
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.interchain.council import Council
from gridtokenx.interchain.module import Interchain
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.ledger.tokens import Allocation, Tokens, module_account
from gridtokenx.public.rec import Certificates
from gridtokenx.public.slots import SlotRules
from gridtokenx.public.staking import (
    GRID_DENOM,
    Candidate,
    Elected,
    Nomination,
    Staking,
    StakingRules,
    elect_at_genesis,
)

TREASURY: Final = module_account("treasury")
"""Receives transaction fees."""
MAX_SLOT_MS: Final = 600_000


class Balance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """GRID that an account has at genesis; what it bonds is taken from that."""

    account: PublicKey
    amount_ngrid: UInt63
    """In 10**-9 GRID."""


class PublicGenesis(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True
):
    """Everything that makes a public chain."""

    chain_id: Hash32
    """The hash of all the rest but `clients` (see `ledger.identity`)."""
    clock: GridClock
    """Network time of genesis, and the map to grid time."""
    validators: Annotated[int, Meta(ge=1, le=1_000)]
    """Seats that every election fills."""
    candidates: tuple[Candidate, ...]
    nominations: tuple[Nomination, ...]
    """Stakes; a candidate backs itself by a nomination of its own."""
    balances: tuple[Balance, ...]
    """All GRID that there is."""
    clients: tuple[ClientGenesis, ...]
    """Light clients of the oracle and the consortium chain; none for a chain on its own."""
    oracle_client: str = "oracle"
    """Which of them is the oracle chain: generation is attested by it alone."""
    transfer_limits: tuple[TransferLimit, ...] = ()
    """The most that may pass between chains per window."""
    slot_ms: Annotated[int, Meta(ge=100, le=MAX_SLOT_MS)] = 6_000
    epoch_slots: Annotated[int, Meta(ge=1, le=1_000_000)] = 600
    era_slots: Annotated[int, Meta(ge=2, le=10_000_000)] = 14_400
    """An era: so often the validators are elected anew (a day)."""
    unbonding_eras: Annotated[int, Meta(ge=1, le=10_000)] = 28
    """How long unbonded stake stays locked. On a real network longer than any light client's trusting
    period: while clients believe a set, its members have something to lose."""
    minimum_stake_ngrid: UInt63 = 100 * GRID
    """Least bond of its own that a candidate needs."""
    minimum_nomination_ngrid: UInt63 = 10 * GRID
    """Least bond that a nominator needs."""
    primary_chance: tuple[
        Annotated[int, Meta(ge=1, le=UINT63_MAX)], Annotated[int, Meta(ge=1, le=UINT63_MAX)]
    ] = (1, 4)
    """c, the chance that a slot has a primary author, as a fraction of at most one."""
    fee_per_weight_ngrid: UInt63 = 1_000
    """Fee per unit of weight; a plain transfer weighs 60, a client update 4,050."""

    @property
    def slot_rules(self) -> SlotRules:
        """The rules of this chain's slots."""
        return SlotRules(
            chain_id=self.chain_id,
            genesis_ms=self.clock.network_genesis_ms,
            slot_ms=self.slot_ms,
            epoch_slots=self.epoch_slots,
            primary_chance=self.primary_chance,
        )

    @property
    def staking_rules(self) -> StakingRules:
        """The rules of this chain's staking."""
        return StakingRules(
            seats=self.validators,
            first_slot=self.slot_rules.slot_at(self.clock.network_genesis_ms),
            era_slots=self.era_slots,
            unbonding_eras=self.unbonding_eras,
            minimum_stake_ngrid=self.minimum_stake_ngrid,
            minimum_nomination_ngrid=self.minimum_nomination_ngrid,
        )

    @cached_property
    def elected(self) -> Elected:
        """The validators that the nominations elect; computed once.

        Raises:
            LocalFault: they contradict each other, or support too few.
        """
        return elect_at_genesis(self.validators, self.candidates, self.nominations)

    @property
    def validator_set(self) -> ValidatorSet:
        """The first set: what other chains' clients of this one start from."""
        return self.elected.validator_set

    def check(self) -> None:
        """Refuse a genesis that could not work.

        Raises:
            LocalFault: says what, where and what to do.
        """
        if not self.elected.validator_set.is_well_formed():
            raise AssertionError("an election seated one key twice")
        self._check_balances()
        self._check_candidates()
        names = [client.client_id for client in self.clients]
        if len(set(names)) < len(names):
            raise LocalFault("public genesis: clients repeats a client_id; give each its own")
        if names and self.oracle_client not in names:
            raise LocalFault(
                f"public genesis: oracle_client is {self.oracle_client!r}, but clients are {names}"
            )
        if self.primary_chance[0] > self.primary_chance[1]:
            raise LocalFault(f"public genesis: primary_chance {self.primary_chance} is above one")
        if self.clock.time_scale == 0:
            raise LocalFault("public genesis: clock.time_scale is 0; grid time would stand still")

    def _check_candidates(self) -> None:
        """A candidate's own stake backs itself, as it must for all who stand later."""
        own = {each.voter: each for each in self.nominations}
        for candidate in self.candidates:
            nomination = own.get(candidate.account)
            backed = nomination is not None and candidate.account in nomination.targets
            if nomination is None or not backed:
                raise LocalFault(
                    f"public genesis: candidate {candidate.account.hex()[:16]}... does not nominate "
                    "itself; add it to the targets of a nomination of its own"
                )
            if nomination.stake_ngrid < self.minimum_stake_ngrid:
                raise LocalFault(
                    f"public genesis: candidate {candidate.account.hex()[:16]}... stakes "
                    f"{nomination.stake_ngrid} of its own, minimum_stake_ngrid is "
                    f"{self.minimum_stake_ngrid}; stake more, or lower the minimum"
                )

    def _check_balances(self) -> None:
        held = {balance.account: balance.amount_ngrid for balance in self.balances}
        if len(held) < len(self.balances):
            raise LocalFault("public genesis: balances repeats an account; join the two")
        try:
            checked_amount(sum(held.values()))
        except AmountError as error:
            raise LocalFault(f"public genesis: balances add up to too much: {error}") from None
        for nomination in self.nominations:
            has = held.get(nomination.voter, 0)
            if nomination.stake_ngrid > has:
                raise LocalFault(
                    f"public genesis: {nomination.voter.hex()[:16]}... stakes "
                    f"{nomination.stake_ngrid} of a balance of {has}; raise its entry in balances"
                )


@dataclass(frozen=True, slots=True)
class PublicChain:
    """The chain's ledger and the modules that others may want to reach."""

    ledger: Ledger
    genesis: PublicGenesis
    tokens: Tokens
    staking: Staking
    certificates: Certificates
    interchain: Interchain
    transfers: TransferApp

    def genesis_block(self) -> ExecutedBlock:
        """Block 0."""
        return self.ledger.genesis(self.genesis.clock.network_genesis_ms)


def public_chain(genesis: PublicGenesis, verifier: Verifier | None = None) -> PublicChain:
    """Put the chain together.

    Args:
        genesis: the chain's definition.
        verifier: checks other chains' certificates; libsodium if None.

    Raises:
        LocalFault: the genesis could not work.
    """
    genesis.check()
    tokens = Tokens(
        tuple(
            Allocation(denom=GRID_DENOM, account=each.account, amount=each.amount_ngrid)
            for each in genesis.balances
        )
    )
    staking = Staking(
        tokens,
        genesis.staking_rules,
        genesis.candidates,
        genesis.nominations,
        genesis.elected,
        verifier,
    )
    interchain = Interchain(genesis.clients, verifier)
    transfers = TransferApp(interchain, tokens, genesis.transfer_limits)
    certificates = Certificates(genesis.clock, genesis.oracle_client)
    interchain.register(certificates)
    fees = TokenFee(tokens, GRID_DENOM, genesis.fee_per_weight_ngrid, TREASURY)
    ledger = Ledger(
        genesis.chain_id,
        (tokens, staking, certificates, transfers, interchain, Council(staking.accounts)),
        StrictNonce(fees),
        staking.reference,
    )
    return PublicChain(ledger, genesis, tokens, staking, certificates, interchain, transfers)


def public_ledger(genesis: PublicGenesis, verifier: Verifier | None = None) -> Ledger:
    """The chain's ledger alone (see `public_chain`)."""
    return public_chain(genesis, verifier).ledger
