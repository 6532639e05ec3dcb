"""A day of grid time on the energy chain: orders, auctions, reports, settlement, corrections.

Households bid at random around their day; every tenth meter is estimated first and corrected
within the window. All laws are checked after every block, a second replica re-executes each one,
and at the end every account is recomputed from trades and final energies alone.
"""

import random
from collections import defaultdict

import pytest
from tests.consortium_world import (
    CHAIN_ID,
    FIRST,
    NETWORK_MS,
    WATT,
    ConsortiumWorld,
    Deliver,
    Door,
    entry,
    genesis_of,
    key,
    order,
    reports,
)

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_chain
from gridtokenx.consortium.custody import TREASURY
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import (
    AuctionCleared,
    AuctionVoided,
    CancelOrder,
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    PriceSignalUpdated,
    TradeMatched,
)
from gridtokenx.consortium.settlement.messages import (
    AccountDefaulted,
    IntervalSettled,
    Statement,
    WindowClosed,
)
from gridtokenx.core.codec import Wire
from gridtokenx.core.units import ceil_div
from gridtokenx.interchain.apps.meter_report import MeterEntry, Quality
from gridtokenx.ledger.runtime import Executed, Ledger, SetReference

BUYERS = [f"b{n}" for n in range(5)]
SELLERS = [f"s{n}" for n in range(5)]
HOUSES = BUYERS + SELLERS
OPENING = 2_000 * WATT
INTERVALS = 48
BLOCK_MS = 2_000
REPORT_DELAY_MS = 10_000
RETAIL = {True: 5_960_500, False: 2_799_200}


class Day:
    """Who does what when, from one seed."""

    def __init__(self, seed: int, opening_uwatt: int = OPENING, intervals: int = INTERVALS) -> None:
        self.random = random.Random(seed)
        self.world = ConsortiumWorld(genesis_of(5, 5, opening_uwatt))
        self.intervals = intervals
        self.final_wh: dict[tuple[int, str], int] = {}
        self.pending: dict[int, list[MeterEntry]] = defaultdict(list)
        self.submitted: dict[str, int] = defaultdict(int)
        self._numbers = 0
        self._replica = self._second_replica()

    def run(self) -> None:
        reported = FIRST - 1
        end_ms = self.world.start_ms(FIRST + self.intervals + 4) + REPORT_DELAY_MS
        while self.world.now_ms < end_ms:
            self.place_orders()
            over = self.world.chain.market.schedule.current(self.world.now_ms - REPORT_DELAY_MS)
            while reported < over - 1:
                reported += 1
                self.report(reported)
            self.world.block(BLOCK_MS)
            self.follow()

    # -- households --------------------------------------------------------------------------------

    def place_orders(self) -> None:
        now = self.world.chain.market.schedule.current(self.world.now_ms)
        for name in self.random.sample(HOUSES, 3):
            interval = now + self.random.randint(1, 3)
            side = Side.SELL if name in SELLERS else Side.BUY
            limit = (
                self.random.randint(2_250, 3_900)
                if name in SELLERS
                else (self.random.randint(3_600, 5_900))
            )
            self._numbers += 1
            self.send(
                name, order(self._numbers, interval, side, limit, self.random.randint(50, 1500))
            )
            if self.random.random() < 0.2:
                self.send(
                    name, CancelOrder(zone=0, interval=interval, client_order_id=self._numbers)
                )

    def send(self, name: str, call: Wire) -> None:
        if self.world.balance(name) < 1_000:
            return  # too little for the fee
        self.submitted[name] += self.world.ledger.weight((call,))
        self.world.submit(name, call)

    # -- meters ------------------------------------------------------------------------------------

    def report(self, interval: int) -> None:
        """Energies near what was contracted; some estimated, and corrected by a later report."""
        entries = self.pending.pop(interval, [])
        for name in HOUSES:
            net_wh = self.contracted_wh(interval, name) + self.random.randint(-300, 300)
            quality = Quality.GOOD
            self.final_wh[interval, name] = net_wh
            if self.random.random() < 0.1:
                quality = Quality.SUBSTITUTED
                later = interval + self.random.randint(1, 3)
                self.pending[later].append(energy(name, net_wh, corrects=interval))
                net_wh += self.random.randint(-400, 400)
            entries.append(energy(name, net_wh, quality))
        self.world.submit("operator", *(Deliver(each) for each in reports(interval, entries)))

    def contracted_wh(self, interval: int, name: str) -> int:
        trades = [e for e in self.world.all(TradeMatched) if e.interval == interval]
        sold = sum(e.energy_wh for e in trades if e.seller == key(name))
        return sold - sum(e.energy_wh for e in trades if e.buyer == key(name))

    # -- another replica ---------------------------------------------------------------------------

    def _second_replica(self) -> Ledger:
        """As a node has it once block 0 is in its store: without what the genesis file opens with."""
        self._copy = self._ledger_of(self.world.genesis).genesis(NETWORK_MS)
        return self._ledger_of(self.world.genesis.opened())

    def _ledger_of(self, genesis: ConsortiumGenesis) -> Ledger:
        chain = consortium_chain(genesis)
        reference = SetReference(0, self.world.genesis.validator_set.hash)
        modules = (*chain.ledger.modules, Door(chain.settlement))
        return Ledger(CHAIN_ID, modules, chain.nonces, lambda _state: reference)

    def follow(self) -> None:
        self._copy = self._replica.execute(self._copy, self.world.head.block)


def energy(
    name: str, net_wh: int, quality: Quality = Quality.GOOD, corrects: int | None = None
) -> MeterEntry:
    return entry(name, max(0, -net_wh), max(0, net_wh), quality, corrects)


@pytest.fixture(scope="module")
def day() -> Day:
    day = Day(seed=20260422)
    day.run()
    return day


def test_the_day_happened(day: Day) -> None:
    world = day.world
    cleared = world.all(AuctionCleared)
    assert len(cleared) == 30, "25 until 22:00, none where the band is empty, 5 the next morning"
    assert sum(each.trades > 0 for each in cleared) >= 25
    settled = [each.interval for each in world.all(IntervalSettled)]
    assert settled == list(range(FIRST, FIRST + INTERVALS + 3))
    assert all(each.metered for each in world.all(IntervalSettled))
    assert sum(each.corrections for each in world.all(IntervalSettled)) >= 20
    assert len(world.all(WindowClosed)) == INTERVALS
    assert world.all(AuctionVoided) == []
    assert world.all(AccountDefaulted) == []
    assert len(world.all(PriceSignalUpdated)) >= 25


def test_every_order_ended_once_or_is_open(day: Day) -> None:
    world = day.world
    placed = {event.order_id for event in world.all(OrderPlaced)}
    ended = [event.order_id for event in world.all(OrderCancelled)]
    ended += [event.order_id for event in world.all(OrderClosed)]
    desks = world.chain.market.desks.scan(world.state)
    still_open = {order.order_id for _, desk in desks for order in desk}
    assert len(set(ended)) == len(ended)
    assert placed == set(ended) | still_open
    assert not set(ended) & still_open


def test_lines_are_what_trades_and_final_energies_say(day: Day) -> None:
    """Recomputed without the chain's own arithmetic, exact in nano-WATT."""
    booked: dict[tuple[int, bytes], int] = defaultdict(int)
    for statement in day.world.all(Statement):
        for line in statement.lines:
            booked[line.interval, statement.account] += line.amount_nwatt
    prices = {e.interval: e.price_uwatt_per_kwh for e in day.world.all(AuctionCleared)}
    for interval in range(FIRST, FIRST + INTERVALS + 1):
        for name in HOUSES:
            net_wh = day.final_wh[interval, name]
            expected = amount_nwatt(day, interval, name, prices.get(interval), net_wh)
            assert booked[interval, key(name)] == expected


def amount_nwatt(day: Day, interval: int, name: str, price: int | None, net_wh: int) -> int:
    contracted = day.contracted_wh(interval, name)
    minute = day.world.genesis.tariff.local_minute(interval)
    retail = RETAIL[540 <= minute < 1_320]
    total = 0
    if price is not None:
        fee = ceil_div(price * 25, 10_000)
        each = price - fee if contracted > 0 else price + fee + 1_151_000
        total = contracted * each
    gap = net_wh - contracted
    if gap < 0:
        return total + gap * max(retail, price or 0)
    return total + gap * (2_200_000 if price is None else min(2_200_000, price))


def test_balances_are_the_opening_less_fees_plus_statements(day: Day) -> None:
    world = day.world
    paid: dict[bytes, int] = defaultdict(int)
    for statement in world.all(Statement):
        assert statement.paid_uwatt == statement.net_uwatt
        paid[statement.account] += statement.paid_uwatt
    for name in HOUSES:
        held = world.balance(name) + world.locked(name)
        assert held == OPENING - 10 * day.submitted[name] + paid[key(name)]


def test_fees_and_dust_are_all_that_leaves_the_accounts(day: Day) -> None:
    world = day.world
    pool = sum(each.pool_uwatt for each in world.all(IntervalSettled))
    assert pool == -sum(each.paid_uwatt for each in world.all(Statement))
    dust = sum(each.dust_nwatt for each in world.all(IntervalSettled))
    assert 0 < dust < 1_000 * len(world.all(Statement))


def test_refusals_are_of_the_expected_kinds(day: Day) -> None:
    codes = {result.code for event in day.world.all(Executed) for result in event.results}
    assert codes >= {"ok", "order-size", "gate-closed", "empty-band"}
    assert codes <= {
        "ok",
        "order-size",
        "gate-closed",
        "empty-band",
        "market-hours",
        "not-open",
        "outside-collar",
        "capacity",
        "connection",
        "too-many-orders",
        "unknown-order",
    }


def test_laws_hold_on_a_day_of_households_that_cannot_pay() -> None:
    """Defaults, bonds of nobody, suspensions: money is conserved all the same, block by block."""
    day = Day(seed=7, opening_uwatt=8 * WATT, intervals=12)
    day.run()
    world = day.world
    defaults, settled = world.all(AccountDefaulted), world.all(IntervalSettled)
    assert len(defaults) >= 5
    shortfall = sum(each.shortfall_uwatt for each in defaults)
    assert shortfall == sum(each.shortfall_uwatt for each in settled) > 0
    unpaid = sum(
        each.net_uwatt - each.paid_uwatt for each in world.all(Statement) if each.net_uwatt > 0
    )
    assert 0 < unpaid <= shortfall, "receivers bear it, and the pool its part"
    codes = {result.code for event in world.all(Executed) for result in event.results}
    assert codes >= {"suspended", "insufficient-funds"}
    treasury = world.chain.tokens.balance(world.state, "WATT", TREASURY)
    fees = 10 * sum(world.ledger.weight(calls) for calls in included_calls(world))
    paid = sum(each.paid_uwatt for each in world.all(Statement))
    assert treasury == fees - paid


def included_calls(world: ConsortiumWorld) -> list[tuple[Wire, ...]]:
    return [world.ledger.decode_calls(each) for each in world.included]
