"""An energy chain without consensus: blocks as fast as a test wants them, reports through a door.

The door stands for the interchain: it hands a meter report to settlement as the packet's app would,
so that a scenario can be about the market and not about proofs.
"""

from typing import TypeVar

from msgspec.structs import replace

from gridtokenx.consortium.chain import (
    Account,
    Attestation,
    ConsortiumGenesis,
    Device,
    RelayerQuota,
    consortium_chain,
)
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.consortium.settlement.module import Settlement
from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.gridtime import GridClock, interval_at, interval_start_ms
from gridtokenx.core.keys import KeyedHashSigner
from gridtokenx.core.merkle import merkle_root
from gridtokenx.interchain.apps.meter_report import (
    MeterEntry,
    MeterReport,
    Quality,
    chunk_entries,
)
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.clients import ClientGenesis, ClientKind
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import (
    CallResult,
    Context,
    Executed,
    Ledger,
    Module,
    Proposal,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction, sign_transaction

NETWORK_MS = 1_800_000_000_000
EPOCH_MS = 1_776_823_200_000
"""2026-04-22 09:00 in Bangkok, a Wednesday."""
CLOCK = GridClock(network_genesis_ms=NETWORK_MS, grid_epoch_ms=EPOCH_MS, time_scale=60)
FIRST = interval_at(EPOCH_MS)
"""The interval that genesis lies in."""
WATT = 1_000_000
CHAIN_ID = b"\x0c" * 32

E = TypeVar("E", bound=Wire)


def key(name: str) -> bytes:
    return signer(name).public_key


def signer(name: str) -> KeyedHashSigner:
    return KeyedHashSigner(name.encode().ljust(32, b"\0"))


def device(name: str, owner: str, kind: DeviceKind, rating_w: int) -> Device:
    return Device(public_key=key(name), owner=key(owner), zone=0, kind=kind, rating_w=rating_w)


def genesis_of(
    buyers: int = 2, sellers: int = 2, opening_uwatt: int = 500 * WATT
) -> ConsortiumGenesis:
    """Households ``b0``, ``b1``, ... with a 10 kW meter; ``s0``, ... with 5 kW of panels too."""
    names = [f"b{n}" for n in range(buyers)] + [f"s{n}" for n in range(sellers)]
    devices = [device(f"{name}-meter", name, DeviceKind.METER, 10_000) for name in names]
    devices += [
        device(f"{name}-solar", name, DeviceKind.SOLAR, 5_000)
        for name in names
        if name.startswith("s")
    ]
    accounts = [Account(account=key(name), opening_uwatt=opening_uwatt) for name in names]
    return ConsortiumGenesis(
        chain_id=CHAIN_ID,
        validators=tuple(key(f"replica{n}") for n in range(4)),
        clock=CLOCK,
        operator=key("operator"),
        utility=key("utility"),
        utility_uwatt=1_000_000 * WATT,
        attestation=Attestation(
            custodian=key("custodian"), reserve_uwatt=2_000_000 * WATT, statement="test reserve"
        ),
        accounts=(*accounts, Account(account=key("operator"), opening_uwatt=100 * WATT)),
        devices=tuple(devices),
        relayers=(RelayerQuota(account=key("relayer"), free_per_window=3),),
        clients=tuple(client(name) for name in ("oracle", "public")),
    )


def client(name: str) -> ClientGenesis:
    return ClientGenesis(
        client_id=name,
        counterparty="consortium",
        chain_id=name.encode().ljust(32, b"\0"),
        kind=ClientKind.PBFT,
        set_id=0,
        validators=tuple(key(f"{name}{n}") for n in range(4)),
        trusting_period_ms=14 * 24 * 3_600_000,
        clock_drift_ms=30_000,
    )


class Deliver(Wire, frozen=True, tag="test.deliver"):
    """Hand a meter report to settlement."""

    report: MeterReport


class Door(Module):
    """Stands for the interchain in scenarios."""

    name = "door"

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement

    @handles(Deliver)
    def deliver(self, ctx: Context, call: Deliver) -> None:
        self._settlement.take_report(ctx, call.report)


class ConsortiumWorld:
    """One chain, its newest block, and every event so far."""

    def __init__(self, genesis: ConsortiumGenesis | None = None) -> None:
        self.genesis = genesis or genesis_of()
        self.chain = consortium_chain(self.genesis)
        reference = SetReference(0, self.genesis.validator_set.hash)
        self.ledger = Ledger(
            CHAIN_ID,
            (*self.chain.ledger.modules, Door(self.chain.settlement)),
            self.chain.nonces,
            lambda _state: reference,
        )
        self.head = self.ledger.genesis(NETWORK_MS)
        self.events: list[Wire] = []
        self.included: list[Transaction] = []
        self.check_every_block = True
        self._queue: list[Transaction] = []
        self._nonces: dict[str, int] = {}
        self._note()

    # -- time --------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self.head.header.timestamp_ms

    @property
    def state(self) -> State:
        return State(self.head.state)

    def block(self, after_ms: int = 1_000) -> None:
        """One more block, with whatever was submitted."""
        proposal = Proposal(0, self.now_ms + after_ms)
        parent = self.head
        self.head, refused = self.ledger.build(parent, proposal, self._queue)
        assert refused == ()
        assert len(self.head.block.transactions) == len(self._queue)
        self.included += self._queue
        self._queue = []
        self._note()
        if self.check_every_block:
            assert self.ledger.check_invariants(self.head.state) == []

    def run_until(self, network_ms: int, step_ms: int = 1_000) -> None:
        """Blocks until one at `network_ms`."""
        while self.now_ms < network_ms:
            self.block(min(step_ms, network_ms - self.now_ms))

    def start_ms(self, interval: int) -> int:
        """Network time at which an interval starts."""
        return CLOCK.network_ms(interval_start_ms(interval))

    # -- actions -----------------------------------------------------------------------------------

    def submit(self, name: str, *calls: Wire, fee: int | None = None) -> bytes:
        """Queue a transaction for the next block; returns its id."""
        nonce = self._nonces.get(name, 0)
        self._nonces[name] = nonce + 1
        if fee is None:
            fee = self.ledger.weight(calls) * self.genesis.fee_uwatt_per_weight
        transaction = sign_transaction(signer(name), CHAIN_ID, nonce, calls, fee=fee)
        self._queue.append(transaction)
        return transaction.id

    def include(self, transaction: Transaction) -> None:
        """Make a block of one transaction that a test signed itself."""
        self._queue.append(transaction)
        self.block()

    def do(self, name: str, *calls: Wire) -> list[CallResult]:
        """Submit, make a block, and return the results."""
        transaction_id = self.submit(name, *calls)
        self.block()
        return self.results(transaction_id)

    def deliver(self, interval: int, entries: list[MeterEntry]) -> list[CallResult]:
        """The report of an interval, all chunks in one transaction of the operator."""
        return self.do("operator", *(Deliver(report) for report in reports(interval, entries)))

    # -- looking -----------------------------------------------------------------------------------

    def results(self, transaction_id: bytes) -> list[CallResult]:
        """How the calls of a transaction ended."""
        for event in reversed(self.events):
            if isinstance(event, Executed) and event.transaction_id == transaction_id:
                return list(event.results)
        raise AssertionError("no such transaction")

    def all(self, kind: type[E]) -> list[E]:
        """Every event of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E:
        """The newest event of one kind."""
        return self.all(kind)[-1]

    def balance(self, name: str) -> int:
        """Free WATT of an account, in micro-WATT."""
        return self.chain.tokens.balance(self.state, "WATT", key(name))

    def locked(self, name: str) -> int:
        """Collateral of an account, in micro-WATT."""
        return self.chain.tokens.locked(self.state, "WATT", key(name), "energy")

    def _note(self) -> None:
        for raw in self.head.events:
            data = decode(raw, EventRecord).data
            event: Wire = decode(data, self.ledger.event_union)
            self.events.append(event)


def order(
    number: int, interval: int, side: Side, limit_milliwatt: int, energy_wh: int
) -> PlaceOrder:
    """An order with its limit in thousandths of a WATT per kWh, which is one tick."""
    return PlaceOrder(
        client_order_id=number,
        zone=0,
        interval=interval,
        side=side,
        limit_uwatt_per_kwh=limit_milliwatt * 1_000,
        energy_wh=energy_wh,
    )


def entry(
    name: str,
    import_wh: int = 0,
    export_wh: int = 0,
    quality: Quality = Quality.GOOD,
    corrects: int | None = None,
) -> MeterEntry:
    """A line about the revenue meter of a household."""
    return MeterEntry(
        device=key(f"{name}-meter"),
        import_wh=import_wh,
        export_wh=export_wh,
        generation_wh=None,
        quality=quality,
        corrects=corrects,
    )


def reports(interval: int, entries: list[MeterEntry]) -> list[MeterReport]:
    """The chunks that the oracle chain would send."""
    chunks = chunk_entries(entries, interval)
    root = merkle_root([encode(each) for chunk in chunks for each in chunk])
    return [
        MeterReport(interval=interval, chunk=n, chunks=len(chunks), root=root, entries=chunk)
        for n, chunk in enumerate(chunks)
    ]


def with_market(genesis: ConsortiumGenesis, **changes: int) -> ConsortiumGenesis:
    """The genesis with other market parameters."""
    return replace(genesis, market=replace(genesis.market, **changes))
