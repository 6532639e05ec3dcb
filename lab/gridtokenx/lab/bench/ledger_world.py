"""An energy chain of ten thousand households without consensus, and what they send it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.consortium.chain import (
    Account,
    Attestation,
    ConsortiumChain,
    ConsortiumGenesis,
    Device,
    consortium_chain,
)
from gridtokenx.consortium.custody import WATT_DENOM
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.consortium.settlement.module import Settlement
from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.gridtime import GridClock, interval_at, interval_start_ms
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.units import WATT
from gridtokenx.interchain.apps.meter_report import (
    MeterEntry,
    MeterReport,
    Quality,
    chunk_entries,
)
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.clients import ClientGenesis, ClientKind
from gridtokenx.ledger.runtime import (
    Context,
    ExecutedBlock,
    Ledger,
    Module,
    Proposal,
    handles,
)
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

NETWORK_MS: Final = 1_800_000_000_000
EPOCH_MS: Final = 1_776_823_200_000
"""2026-04-22 09:00 in Bangkok, a Wednesday: on-peak, so that books are open."""
CLOCK: Final = GridClock(network_genesis_ms=NETWORK_MS, grid_epoch_ms=EPOCH_MS, time_scale=1)
FIRST: Final = interval_at(EPOCH_MS)
BLOCK_MS: Final = 1_000
BATCH_ORDERS: Final = 20
PER_PRODUCT: Final = 7
"""Of a batch's orders; the market takes eight of one account."""


class Deliver(Wire, frozen=True, tag="bench.deliver"):
    """Hand a meter report to settlement, without the oracle chain's proof."""

    report: MeterReport


class Door(Module):
    """Stands for the interchain."""

    name = "door"

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement

    @handles(Deliver)
    def deliver(self, ctx: Context, call: Deliver) -> None:
        """Take a chunk."""
        self._settlement.take_report(ctx, call.report)


@dataclass(slots=True)
class Household:
    """One account; every second one also sells."""

    signer: Ed25519Signer
    nonce: int = 0
    orders: int = 0

    @property
    def key(self) -> bytes:
        """The account."""
        return self.signer.public_key


@dataclass(slots=True)
class LedgerWorld:
    """The chain, its newest block, and its households."""

    chain: ConsortiumChain
    ledger: Ledger
    head: ExecutedBlock
    households: list[Household]
    draw: random.Random
    digest: bytes = field(default=bytes(32))
    """Over the hashes of all blocks: equal digests, equal execution."""

    @property
    def next_ms(self) -> int:
        """Network time of the next block."""
        return self.head.header.timestamp_ms + BLOCK_MS

    def follow(self, executed: ExecutedBlock) -> None:
        """Take a block for the newest one."""
        self.head = executed
        self.digest = sha256(self.digest, executed.hash)

    def advance(self, transactions: Sequence[Transaction] = (), at_ms: int | None = None) -> None:
        """Make a block of exactly these transactions.

        Raises:
            AssertionError: one of them, or of their calls, was refused.
        """
        proposal = Proposal(0, self.next_ms if at_ms is None else at_ms)
        executed, refused = self.ledger.build(self.head, proposal, transactions)
        if refused or len(executed.block.transactions) != len(transactions):
            raise AssertionError(f"{len(refused)} of {len(transactions)} transactions refused")
        self.follow(executed)

    # -- what households send ----------------------------------------------------------------------

    def transfers(self, count: int) -> list[Transaction]:
        """Transfers of different households to others."""
        return [
            self.sign(sender, [Transfer(WATT_DENOM, self._anyone().key, 1_000)])
            for sender in self._different(count)
        ]

    def orders(self, count: int) -> list[Transaction]:
        """One order of each of so many households."""
        return [self.sign(each, [self._order(each, 3)]) for each in self._different(count)]

    def batches(self, count: int) -> list[Transaction]:
        """Batches of orders, over three products each."""
        return [
            self.sign(each, [self._order(each, 3 + n // PER_PRODUCT) for n in range(BATCH_ORDERS)])
            for each in self._different(count)
        ]

    def orders_of_all(self, interval: int) -> list[Transaction]:
        """One order of every household in one product."""
        return [self.sign(each, [self._order(each, interval)]) for each in self.households]

    def report(self, interval: int) -> list[Transaction]:
        """The report of every household's meter, one chunk in a transaction."""
        entries = [
            MeterEntry(
                _device(each, "meter"), self.draw.randrange(900), 0, None, Quality.GOOD, None
            )
            for each in self.households
        ]
        chunks = chunk_entries(entries, FIRST + interval)
        root = merkle_root([encode(each) for chunk in chunks for each in chunk])
        return [
            self.sign(
                self.households[n],
                [Deliver(MeterReport(FIRST + interval, n, len(chunks), root, chunk))],
            )
            for n, chunk in enumerate(chunks)
        ]

    def sign(self, sender: Household, calls: Sequence[Wire]) -> Transaction:
        """The next transaction of a household, at the least fee."""
        nonce, sender.nonce = sender.nonce, sender.nonce + 1
        return sign_transaction(
            sender.signer, self.ledger.chain_id, nonce, calls, fee=10 * self.ledger.weight(calls)
        )

    def start_ms(self, interval: int) -> int:
        """Network time at which an interval, counted from genesis, starts."""
        return CLOCK.network_ms(interval_start_ms(FIRST + interval))

    def _order(self, household: Household, interval: int) -> PlaceOrder:
        household.orders += 1
        sells = household.key[0] & 1
        limit_ticks = (
            self.draw.randrange(2_500, 3_500) if sells else self.draw.randrange(4_000, 5_500)
        )
        return PlaceOrder(
            client_order_id=household.orders,
            zone=0,
            interval=FIRST + interval,
            side=Side.SELL if sells else Side.BUY,
            limit_uwatt_per_kwh=1_000 * limit_ticks,
            energy_wh=100 + self.draw.randrange(100),
        )

    def _different(self, count: int) -> list[Household]:
        return self.draw.sample(self.households, count)

    def _anyone(self) -> Household:
        return self.draw.choice(self.households)


def ledger_world(accounts: int) -> LedgerWorld:
    """A chain whose genesis enrols so many households."""
    households = [Household(Ed25519Signer(sha256(b"bench", b"%d" % n))) for n in range(accounts)]
    genesis = _genesis(households)
    chain = consortium_chain(genesis)
    ledger = Ledger(
        genesis.chain_id,
        (*chain.ledger.modules, Door(chain.settlement)),
        chain.nonces,
        chain.membership.reference,
    )
    head = _without_outbox(chain, ledger.genesis(NETWORK_MS))
    world = LedgerWorld(chain, ledger, head, households, random.Random(4))  # noqa: S311 - repeatable
    world.advance()
    return world


def _without_outbox(chain: ConsortiumChain, head: ExecutedBlock) -> ExecutedBlock:
    """The block as if the oracle chain had taken note of every device: nobody else is here to."""
    state = State(head.state)
    chain.participants.outbox.clear(state)
    return ExecutedBlock(head.block, head.state.update(state.changes()), {}, ())


def _genesis(households: Sequence[Household]) -> ConsortiumGenesis:
    each_uwatt = 100_000 * WATT
    utility_uwatt = 1_000_000_000 * WATT
    return ConsortiumGenesis(
        chain_id=sha256(b"bench"),
        validators=tuple(_key(f"replica{n}") for n in range(4)),
        clock=CLOCK,
        operator=_key("operator"),
        utility=_key("utility"),
        utility_uwatt=utility_uwatt,
        attestation=Attestation(
            custodian=_key("custodian"),
            reserve_uwatt=utility_uwatt + each_uwatt * len(households),
            statement="bench",
        ),
        accounts=tuple(Account(account=each.key, opening_uwatt=each_uwatt) for each in households),
        devices=tuple(
            Device(
                public_key=_device(each, name),
                owner=each.key,
                zone=0,
                kind=kind,
                rating_w=100_000,
            )
            for each in households
            for name, kind in (("meter", DeviceKind.METER), ("solar", DeviceKind.SOLAR))
        ),
        relayers=(),
        clients=tuple(_client(name) for name in ("oracle", "public")),
    )


def _client(name: str) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty="consortium",
        chain_id=sha256(b"bench", name.encode()),
        kind=ClientKind.PBFT,
        set_id=0,
        validators=tuple(_key(f"{name}{n}") for n in range(4)),
        trusting_period_ms=14 * 24 * 3_600_000,
        clock_drift_ms=30_000,
    )


def _key(name: str) -> bytes:
    return sha256(b"bench key", name.encode())


def _device(household: Household, name: str) -> bytes:
    return sha256(household.key, name.encode())
