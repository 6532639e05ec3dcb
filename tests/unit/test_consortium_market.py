"""Orders at the door of the market, and what the hooks do with products."""

import pytest
from msgspec.structs import replace
from tests.consortium_world import (
    CHAIN_ID,
    EPOCH_MS,
    FIRST,
    NETWORK_MS,
    WATT,
    ConsortiumWorld,
    genesis_of,
    key,
    order,
    signer,
    with_market,
)

from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import (
    AuctionCleared,
    AuctionVoided,
    BookOpened,
    CancelOrder,
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    PlaceOrder,
    PriceSignalUpdated,
    TradeMatched,
)
from gridtokenx.consortium.market.parameters import MarketParameters
from gridtokenx.consortium.market.schedule import Schedule
from gridtokenx.consortium.participants import Enrol, Suspend
from gridtokenx.consortium.tariff import THAI_FLAT_2026, THAI_TOU_2026
from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import GridClock
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.transactions import sign_transaction

NEXT = FIRST + 1
BUY, SELL = Side.BUY, Side.SELL


@pytest.fixture
def world() -> ConsortiumWorld:
    world = ConsortiumWorld()
    world.block()
    return world


def code(world: ConsortiumWorld, name: str, call: Wire) -> str:
    (result,) = world.do(name, call)
    return result.code


# -- entry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call", "refusal"),
    [
        ("operator", order(1, NEXT, BUY, 4_000, 500), "connection"),  # has no meter
        ("b0", order(1, NEXT, BUY, 4_000, 99), "order-size"),
        ("b0", order(1, NEXT, BUY, 4_000, 1_000_001), "order-size"),
        ("b0", order(1, NEXT, BUY, 0, 500), "limit-range"),
        ("b0", replace(order(1, NEXT, BUY, 1, 500), limit_uwatt_per_kwh=4_000_001), "tick"),
        ("b0", order(1, NEXT, BUY, 4_000, 5_001), "connection"),  # 10 kW for half an hour
        ("s0", order(1, NEXT, SELL, 3_000, 2_501), "capacity"),  # 5 kW of panels
        ("b0", order(1, NEXT, SELL, 3_000, 100), "capacity"),
        ("b0", order(1, NEXT, BUY, 3_000, 500), "outside-collar"),
        ("s0", order(1, NEXT, SELL, 5_500, 500), "outside-collar"),
        ("b0", order(1, FIRST, BUY, 4_000, 500), "gate-closed"),
        ("b0", order(1, NEXT + 12, BUY, 4_000, 500), "not-open"),
        ("b0", order(1, NEXT + 26, BUY, 4_000, 500), "market-hours"),  # 22:00
        ("b0", replace(order(1, NEXT, BUY, 4_000, 500), zone=3), "unknown-zone"),
    ],
)
def test_entry_refuses(world: ConsortiumWorld, name: str, call: PlaceOrder, refusal: str) -> None:
    free = world.balance(name)
    assert code(world, name, call) == refusal
    assert world.locked(name) == 0
    assert world.balance(name) == free - 800, "only the fee is gone"


def test_orders_of_a_period_in_which_no_trade_can_pay_are_refused() -> None:
    world = ConsortiumWorld(with_market(genesis_of(), open_ahead_intervals=47))
    world.block()
    off_peak = FIRST + 2 * 21 + 1  # 06:30 the next morning
    assert code(world, "b0", order(1, off_peak, BUY, 2_700, 500)) == "empty-band"


def test_only_identified_participants_in_good_standing_trade(world: ConsortiumWorld) -> None:
    bid = order(1, NEXT, BUY, 4_000, 500)
    assert code(world, "operator", Enrol(account=key("b0"), kyc_tier=0)) == "ok"
    assert code(world, "b0", bid) == "kyc-tier"
    assert code(world, "operator", Suspend(account=key("b1"))) == "ok"
    assert code(world, "b1", bid) == "suspended"


def test_who_has_no_watt_does_not_get_into_a_block(world: ConsortiumWorld) -> None:
    calls = (order(1, NEXT, BUY, 4_000, 500),)
    free = sign_transaction(signer("stranger"), CHAIN_ID, 0, calls)
    with pytest.raises(InvalidTransaction, match="fee-too-low"):
        world.ledger.admit(world.state, free, world.now_ms)
    promised = sign_transaction(signer("stranger"), CHAIN_ID, 0, calls, fee=800)
    with pytest.raises(InvalidTransaction, match="fee-unpaid"):
        world.ledger.admit(world.state, promised, world.now_ms)


def test_no_account_trades_with_itself(world: ConsortiumWorld) -> None:
    assert code(world, "s0", order(1, NEXT, SELL, 3_000, 500)) == "ok"
    assert code(world, "s0", order(2, NEXT, BUY, 4_500, 500)) == "self-trade"
    assert code(world, "s0", order(2, NEXT + 1, BUY, 4_500, 500)) == "ok"


def test_capacity_counts_all_open_orders_of_a_product(world: ConsortiumWorld) -> None:
    assert code(world, "s0", order(1, NEXT, SELL, 3_000, 1_500)) == "ok"
    assert code(world, "s0", order(2, NEXT, SELL, 3_100, 1_001)) == "capacity"
    assert code(world, "s0", CancelOrder(zone=0, interval=NEXT, client_order_id=1)) == "ok"
    assert code(world, "s0", order(2, NEXT, SELL, 3_100, 1_001)) == "ok"


def test_a_client_order_id_names_one_open_order(world: ConsortiumWorld) -> None:
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "ok"
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "client-order-id"
    assert code(world, "b1", order(1, NEXT, BUY, 4_000, 500)) == "ok"


def test_the_number_of_open_orders_is_limited() -> None:
    world = ConsortiumWorld(with_market(genesis_of(), max_orders_per_product=1))
    world.block()
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "ok"
    assert code(world, "b0", order(2, NEXT, BUY, 4_000, 500)) == "too-many-orders"


def test_an_order_without_cover_leaves_no_trace() -> None:
    world = ConsortiumWorld(genesis_of(opening_uwatt=1 * WATT))
    world.block()
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "insufficient-funds"
    assert world.locked("b0") == 0


# -- collateral ------------------------------------------------------------------------------------


def test_a_buyer_locks_the_limit_and_the_margin(world: ConsortiumWorld) -> None:
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "ok"
    margin = 298_025  # a tenth of 0.5 kWh at 5.9605
    assert world.locked("b0") == 2_000_000 + margin
    assert world.last(OrderPlaced).locked_uwatt == world.locked("b0")


def test_a_seller_locks_what_not_delivering_costs(world: ConsortiumWorld) -> None:
    assert code(world, "s0", order(1, NEXT, SELL, 3_000, 500)) == "ok"
    assert world.locked("s0") == (5_960_500 - 3_000_000) // 2 + 298_025


def test_cancelling_frees_the_collateral(world: ConsortiumWorld) -> None:
    code(world, "b0", order(7, NEXT, BUY, 4_000, 500))
    assert code(world, "b0", CancelOrder(zone=0, interval=NEXT, client_order_id=7)) == "ok"
    assert world.locked("b0") == 0
    assert world.last(OrderCancelled).reason == "owner"
    assert (
        code(world, "b0", CancelOrder(zone=0, interval=NEXT, client_order_id=7)) == "unknown-order"
    )
    assert (
        code(world, "b1", CancelOrder(zone=0, interval=NEXT, client_order_id=7)) == "unknown-order"
    )


def test_clearing_shrinks_collateral_to_the_contract(world: ConsortiumWorld) -> None:
    world.submit("b0", order(1, NEXT, BUY, 4_500, 1_000))
    world.submit("b1", order(1, NEXT, BUY, 4_400, 1_000))
    world.do("s0", order(1, NEXT, SELL, 3_000, 1_000))
    world.run_until(world.start_ms(NEXT) - 4_000)
    cleared = world.last(AuctionCleared)
    assert (cleared.price_uwatt_per_kwh, cleared.volume_wh) == (3_340_000, 1_000)
    # 3.340 + 0.00835 fee + 1.151 network for 1 kWh, and a tenth of retail.
    assert world.locked("b0") == 4_499_350 + 596_050
    assert world.locked("b1") == 0
    assert world.locked("s0") == 5_960_500 - 3_340_000 + 8_350 + 596_050


# -- products over time ----------------------------------------------------------------------------


def test_books_open_with_a_frozen_collar(world: ConsortiumWorld) -> None:
    book = next(each for each in world.all(BookOpened) if each.interval == NEXT)
    # The band is 2.206 to 4.797; around the indicative 4.000 the collar is 2.000 to 6.000.
    assert book.reference_uwatt_per_kwh == 4_000_000
    assert (book.floor_uwatt_per_kwh, book.cap_uwatt_per_kwh) == (2_206_000, 4_797_000)
    assert book.gate_ms == world.start_ms(NEXT) - 5_000
    assert len(world.all(BookOpened)) == 12


def test_an_auction_is_held_in_the_first_block_after_the_gate(world: ConsortiumWorld) -> None:
    gate_ms = world.start_ms(NEXT) - 5_000
    world.run_until(gate_ms - 1)
    assert world.all(AuctionCleared) == []
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "gate-closed"
    assert world.last(AuctionCleared).interval == NEXT


def test_an_order_in_the_last_block_before_the_gate_takes_part(world: ConsortiumWorld) -> None:
    gate_ms = world.start_ms(NEXT) - 5_000
    world.run_until(gate_ms - 1_001)
    assert code(world, "b0", order(1, NEXT, BUY, 4_000, 500)) == "ok"
    assert world.now_ms == gate_ms - 1
    world.block(1)
    assert world.last(AuctionCleared).orders == 1
    assert world.last(OrderClosed).filled_wh == 0
    assert world.locked("b0") == 0


def test_orders_across_the_gate_cannot_be_cancelled(world: ConsortiumWorld) -> None:
    code(world, "b0", order(1, NEXT, BUY, 4_000, 500))
    world.run_until(world.start_ms(NEXT) - 5_001)
    assert (
        code(world, "b0", CancelOrder(zone=0, interval=NEXT, client_order_id=1)) == "unknown-order"
    )


def test_trades_name_both_sides(world: ConsortiumWorld) -> None:
    world.submit("b0", order(1, NEXT, BUY, 4_500, 1_000))
    world.submit("s0", order(1, NEXT, SELL, 3_000, 600))
    world.do("s1", order(1, NEXT, SELL, 3_100, 600))
    world.run_until(world.start_ms(NEXT) - 4_000)
    first, second = world.all(TradeMatched)
    assert (first.buyer, first.seller, first.energy_wh) == (key("b0"), key("s0"), 600)
    assert (second.seller, second.energy_wh) == (key("s1"), 400)


def test_a_chain_that_stood_still_voids_what_it_missed(world: ConsortiumWorld) -> None:
    code(world, "b0", order(1, NEXT, BUY, 4_000, 500))
    code(world, "b0", order(2, NEXT + 1, BUY, 4_000, 500))
    world.block(world.start_ms(NEXT) - world.now_ms)  # delivery of NEXT begins now
    voided = world.last(AuctionVoided)
    assert (voided.interval, voided.orders) == (NEXT, 1)
    assert world.last(OrderCancelled).reason == "void"
    assert [each.interval for each in world.all(AuctionCleared)] == []
    world.run_until(world.start_ms(NEXT + 1) - 1)
    assert world.last(AuctionCleared).interval == NEXT + 1


def test_a_late_auction_is_held_until_delivery_begins(world: ConsortiumWorld) -> None:
    code(world, "b0", order(1, NEXT, BUY, 4_000, 500))
    world.block(world.start_ms(NEXT) - 1 - world.now_ms)
    assert world.last(AuctionCleared).interval == NEXT


def test_a_year_of_standstill_costs_one_block(world: ConsortiumWorld) -> None:
    code(world, "b0", order(1, NEXT, BUY, 4_000, 500))
    world.block(365 * 24 * 3_600_000 // 60)
    assert world.locked("b0") == 0
    assert len(world.all(AuctionVoided)) == 12
    assert len(world.head.changes) < 200
    now = world.chain.market.schedule.current(world.now_ms)
    assert world.last(BookOpened).interval <= now + 12


def test_the_last_price_of_the_time_of_day_is_tomorrows_reference() -> None:
    world = ConsortiumWorld()
    world.check_every_block = False
    world.block()
    world.submit("b0", order(1, NEXT, BUY, 4_500, 1_000))
    world.do("s0", order(1, NEXT, SELL, 2_500, 2_000))
    world.run_until(world.start_ms(NEXT + 37), step_ms=4_000)
    price = next(e for e in world.all(AuctionCleared) if e.interval == NEXT).price_uwatt_per_kwh
    tomorrow = next(e for e in world.all(BookOpened) if e.interval == NEXT + 48)
    assert tomorrow.reference_uwatt_per_kwh == price == 2_507_000


# -- the indicative price --------------------------------------------------------------------------


def test_a_signal_every_five_grid_minutes_and_only_on_change(world: ConsortiumWorld) -> None:
    first = world.last(PriceSignalUpdated)
    assert first.price_uwatt_per_kwh == 4_000_000
    world.run_until(NETWORK_MS + 9_000)
    assert world.last(PriceSignalUpdated) == first
    world.submit("b0", order(1, NEXT, BUY, 4_500, 1_000))
    world.submit("b1", order(1, NEXT, BUY, 4_500, 1_000))
    world.submit("s0", order(1, NEXT, SELL, 3_000, 1_000))
    world.block(999)
    world.block(1)
    signal = world.last(PriceSignalUpdated)
    assert signal.price_uwatt_per_kwh == 4_771_726  # one to two
    assert (signal.interval, signal.grid_ms) == (NEXT, EPOCH_MS + 600_000)


# -- the timetable ---------------------------------------------------------------------------------


@pytest.mark.parametrize("time_scale", [1, 7, 60, 3_600])
def test_closed_through_is_the_inverse_of_the_gate(time_scale: int) -> None:
    clock = GridClock(NETWORK_MS, EPOCH_MS, time_scale)
    schedule = Schedule(clock, MarketParameters(), THAI_TOU_2026)
    for interval in range(FIRST + 1, FIRST + 8):
        gate_ms = schedule.gate_ms(interval)
        assert schedule.closed_through(gate_ms) >= interval
        assert schedule.closed_through(gate_ms - 1) < interval
        assert clock.network_ms(interval * 1_800_000) - gate_ms >= 5_000
        assert interval * 1_800_000 - clock.grid_ms(gate_ms - 1) > 300_000


def test_markets_run_from_six_to_ten_in_the_evening() -> None:
    clock = GridClock(NETWORK_MS, EPOCH_MS, 60)
    schedule = Schedule(clock, MarketParameters(), THAI_FLAT_2026)
    midnight = FIRST - 18
    open_at = [n for n in range(48) if schedule.has_market(midnight + n)]
    assert open_at == list(range(12, 44))
