"""The energy chain put together: its genesis, its modules, and what others ask of its state."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.consortium.custody import TREASURY, WATT_DENOM, Custody
from gridtokenx.consortium.market.module import Market
from gridtokenx.consortium.market.parameters import MarketParameters
from gridtokenx.consortium.market.positions import Positions
from gridtokenx.consortium.parameters import Section
from gridtokenx.consortium.participants import Participants
from gridtokenx.consortium.relayers import FeeUnlessRelayed, Relayers
from gridtokenx.consortium.settlement.module import Settlement, SettlementParameters
from gridtokenx.consortium.tariff import THAI_TOU_2026, Tariff, empty_band_warnings
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Verifier
from gridtokenx.core.types import Hash32, Index16, PublicKey, Text, UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls
from gridtokenx.interchain.apps.registry import DeviceKind, DeviceRegistration
from gridtokenx.interchain.apps.transfer import TransferApp, TransferLimit
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.interchain.council import Council
from gridtokenx.interchain.module import Interchain
from gridtokenx.ledger.admission import StrictNonce
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.pbft.membership import Membership
from gridtokenx.pbft.rotation import RotationBlocks

FIRST_SET_ID: Final = 0


class Account(Section, frozen=True):
    """A participant at genesis."""

    account: PublicKey
    kyc_tier: Index16 = 1
    opening_uwatt: UInt63 = 0
    bond_uwatt: UInt63 = 0
    """Part of the opening balance that secures defaults."""


class Device(Section, frozen=True):
    """A connection approved at genesis."""

    public_key: PublicKey
    """Signs the device's readings; also its id."""
    owner: PublicKey
    zone: Index16
    kind: DeviceKind
    rating_w: UInt63


class RelayerQuota(Section, frozen=True):
    """A relayer enrolled at genesis."""

    account: PublicKey
    free_per_window: UInt63 = 1_200
    """Transactions without fee a minute."""


class Attestation(Section, frozen=True):
    """What the custodian of the baht attests; the opening supply of WATT rests on it."""

    custodian: PublicKey
    reserve_uwatt: UInt63
    statement: Text
    """The custodian's own words."""


class ConsortiumGenesis(Section, frozen=True):
    """Everything that makes an energy chain."""

    chain_id: Hash32
    validators: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=100)]
    """The replicas' keys; later sets follow from this one, see `pbft/membership.py`."""
    clock: GridClock
    operator: PublicKey
    """Enrols participants and relayers, and approves connections."""
    utility: PublicKey
    """The funded account that takes every imbalance."""
    utility_uwatt: UInt63
    """Its opening balance."""
    attestation: Attestation
    accounts: tuple[Account, ...]
    devices: tuple[Device, ...]
    relayers: tuple[RelayerQuota, ...]
    clients: tuple[ClientGenesis, ...]
    """Light clients of the oracle and the public chain."""
    zones: Annotated[tuple[Index16, ...], Meta(min_length=1, max_length=1_000)] = (0,)
    tariff: Tariff = THAI_TOU_2026
    market: MarketParameters = MarketParameters()
    settlement: SettlementParameters = SettlementParameters()
    transfer_limits: tuple[TransferLimit, ...] = ()
    default_fund_uwatt: UInt63 = 0
    """Taken from the utility's opening balance."""
    fee_uwatt_per_weight: UInt63 = 10
    """An order, of weight 30, costs 800 micro-WATT alone, and 325 as one of 20 in a transaction."""
    registry_timeout_ms: UInt63 = 120_000
    """Network time that a batch of device decisions may take to the oracle chain."""
    oracle_client: str = "oracle"
    """Which of the clients is the oracle chain."""
    rotation_blocks: RotationBlocks | msgspec.UnsetType = msgspec.UNSET
    """The leadership passes on after so many blocks, see `pbft/rotation.py`; unset: only when it fails."""

    @property
    def validator_set(self) -> ValidatorSet:
        """The first set that certifies blocks."""
        return ValidatorSet(set_id=FIRST_SET_ID, members=self.validators)

    def opened(self) -> "ConsortiumGenesis":
        """The same without its accounts and devices: once block 0 is made they are state."""
        return msgspec.structs.replace(self, accounts=(), devices=())

    def check(self) -> None:
        """Refuse a genesis that could not work.

        Raises:
            LocalFault: says what, where and what to do.
        """
        for problem in self._problems():
            raise LocalFault(f"consortium genesis: {problem}")

    def warnings(self) -> list[str]:
        """What works, but hardly as intended; for operators."""
        return empty_band_warnings(
            self.tariff,
            fee_buy_bps=self.market.fee_buy_bps,
            fee_sell_bps=self.market.fee_sell_bps,
            tick_uwatt_per_kwh=self.market.tick_uwatt_per_kwh,
        )

    def _problems(self) -> Iterator[str]:
        if not self.validator_set.is_well_formed():
            yield "validators repeats a key; give each replica its own"
        names = sorted(client.client_id for client in self.clients)
        if self.oracle_client not in names:
            yield f"clients has no {self.oracle_client!r}, only {names}"
        keys = Counter(account.account for account in self.accounts)
        for key, count in keys.items():
            if count > 1:
                yield f"accounts repeats {key.hex()[:16]}; name each account once"
        if self.utility in keys:
            yield "accounts names the utility; its balance is utility_uwatt"
        if self.default_fund_uwatt > self.utility_uwatt:
            yield "default_fund_uwatt exceeds utility_uwatt, from which it is taken"
        for account in self.accounts:
            if account.bond_uwatt > account.opening_uwatt:
                yield f"account {account.account.hex()[:16]}: bond_uwatt exceeds opening_uwatt"
        if self.market.min_order_wh > self.market.max_order_wh:
            yield "market.min_order_wh exceeds market.max_order_wh"
        if len(set(self.zones)) != len(self.zones):
            yield "zones repeats a number"


@dataclass(frozen=True, slots=True)
class ConsortiumChain:
    """The chain's ledger and the modules that others may want to reach."""

    ledger: Ledger
    membership: Membership
    tokens: Tokens
    nonces: StrictNonce
    participants: Participants
    positions: Positions
    market: Market
    settlement: Settlement
    interchain: Interchain


def consortium_chain(
    genesis: ConsortiumGenesis, verifier: Verifier | None = None
) -> ConsortiumChain:
    """Put the chain together.

    Args:
        genesis: the chain's definition.
        verifier: checks other chains' certificates; libsodium if None.

    Raises:
        LocalFault: the genesis could not work.
    """
    genesis.check()
    tokens, positions = Tokens(), Positions()
    interchain = Interchain(genesis.clients, verifier)
    custody = _custody(genesis, tokens)
    participants = _participants(genesis, interchain)
    relayers = Relayers(
        genesis.operator,
        [(each.account, each.free_per_window) for each in genesis.relayers],
        calls.RELAY_CALLS,
    )
    market = Market(
        tokens,
        participants,
        positions,
        zones=genesis.zones,
        clock=genesis.clock,
        tariff=genesis.tariff,
        parameters=genesis.market,
    )
    settlement = _settlement(genesis, tokens, participants, market, positions)
    transfer = TransferApp(interchain, tokens, genesis.transfer_limits)
    interchain.register(participants)
    interchain.register(settlement)
    membership = Membership(genesis.validator_set, verifier)
    council = Council(membership.members)
    fees = FeeUnlessRelayed(
        tokens, WATT_DENOM, genesis.fee_uwatt_per_weight, TREASURY, relayers, membership.decides
    )
    nonces = StrictNonce(fees)
    modules = (
        membership,
        tokens,
        custody,
        participants,
        relayers,
        market,
        settlement,
        transfer,
        interchain,
        council,
    )
    ledger = Ledger(genesis.chain_id, modules, nonces, membership.reference)
    return ConsortiumChain(
        ledger,
        membership,
        tokens,
        nonces,
        participants,
        positions,
        market,
        settlement,
        interchain,
    )


def consortium_ledger(genesis: ConsortiumGenesis, verifier: Verifier | None = None) -> Ledger:
    """The chain's ledger alone (see `consortium_chain`)."""
    return consortium_chain(genesis, verifier).ledger


def _custody(genesis: ConsortiumGenesis, tokens: Tokens) -> Custody:
    opening = [(each.account, each.opening_uwatt) for each in genesis.accounts]
    return Custody(
        tokens,
        genesis.attestation.custodian,
        genesis.attestation.reserve_uwatt,
        genesis.attestation.statement,
        [(genesis.utility, genesis.utility_uwatt), *opening],
    )


def _participants(genesis: ConsortiumGenesis, interchain: Interchain) -> Participants:
    devices = [
        DeviceRegistration(
            device=each.public_key,
            public_key=each.public_key,
            owner=each.owner,
            zone=each.zone,
            kind=each.kind,
            rating_w=each.rating_w,
            revision=1,
            active=True,
        )
        for each in genesis.devices
    ]
    return Participants(
        interchain,
        genesis.operator,
        genesis.zones,
        # The utility owns grid sensors, and trades with everyone without an order: tier 0.
        accounts=[(genesis.utility, 0), *((a.account, a.kyc_tier) for a in genesis.accounts)],
        devices=devices,
        oracle_client=genesis.oracle_client,
        timeout_ms=genesis.registry_timeout_ms,
    )


def _settlement(
    genesis: ConsortiumGenesis,
    tokens: Tokens,
    participants: Participants,
    market: Market,
    positions: Positions,
) -> Settlement:
    return Settlement(
        tokens,
        participants,
        market,
        positions,
        utility=genesis.utility,
        clock=genesis.clock,
        parameters=genesis.settlement,
        oracle_client=genesis.oracle_client,
        bonds={each.account: each.bond_uwatt for each in genesis.accounts if each.bond_uwatt},
        default_fund_uwatt=genesis.default_fund_uwatt,
    )
