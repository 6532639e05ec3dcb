"""The call auction on published books: what others answer, and where they are wrong."""

import pytest

from gridtokenx.consortium.market.auction import (
    AuctionOrder,
    Clearing,
    Collar,
    Rule,
    Side,
    attribute,
    clear,
    effective_ask_tick,
    effective_bid_tick,
    fee_uwatt_per_kwh,
)

Level = tuple[int, int]


def book(bids: list[Level], asks: list[Level]) -> list[AuctionOrder]:
    """Orders from (price tick, Wh) pairs; ids count through the bids, then the asks."""
    sides = [(Side.BUY, level) for level in bids] + [(Side.SELL, level) for level in asks]
    return [AuctionOrder(n, side, tick, wh) for n, (side, (tick, wh)) in enumerate(sides)]


def cleared(
    bids: list[Level],
    asks: list[Level],
    collar: Collar | None = None,
    reference_tick: int | None = None,
) -> Clearing:
    return clear(book(bids, asks), collar, reference_tick)


def units(prices: list[int]) -> list[Level]:
    return [(price, 1) for price in prices]


# (name, bids, asks, volume, price): reference/energy.md section 3.3, prices scaled to whole ticks.
VECTORS = [
    ("P0", [(3, 1), (4, 2), (1, 5)], [(2, 4), (1, 1), (6, 5)], 3, 2),
    ("P2", units([40, 30, 20, 10]), units([10, 20, 30]), 2, 25),
    (
        "P4",
        units([10000, 9000, 8000, 6000, 4000, 2000]),
        units([1000, 2000, 4000, 6000, 7000, 1500, 2500, 3500, 4500, 6500]),
        5,
        3749,
    ),
    (
        "G1",
        [(100_000, 10), (200_000, 15), (300_000, 20)],
        [(100_002, 25), (500_000, 30), (240_000, 35)],
        25,
        200_000,
    ),
    ("A1", [(3000, 400), (3000, 100)], [(100, 300), (50, 200)], 500, 1550),
    ("S2", [(5, 100)], [(1, 10), (2, 20), (3, 30), (4, 50)], 100, 4),
    ("S3, fee-adjusted ask", [(30, 15), (30, 10), (20, 10)], [(30, 20)], 20, 30),
    ("T1", [(10, 10)], [(6, 10)], 10, 8),
]


@pytest.mark.parametrize(
    ("bids", "asks", "volume_wh", "price_tick"),
    [vector[1:] for vector in VECTORS],
    ids=[vector[0] for vector in VECTORS],
)
def test_published_books(
    bids: list[Level], asks: list[Level], volume_wh: int, price_tick: int
) -> None:
    result = cleared(bids, asks)
    assert (result.volume_wh, result.price_tick) == (volume_wh, price_tick)


def test_a_book_that_does_not_cross_trades_nothing() -> None:  # T3
    result = cleared([(5, 10)], [(9, 10)])
    assert result == Clearing(None, 0, 10, 10, Rule.NO_TRADE, {})


@pytest.mark.parametrize(("bids", "asks"), [([], []), ([(5, 1)], []), ([], [(5, 1)])])
def test_a_one_sided_book_trades_nothing(bids: list[Level], asks: list[Level]) -> None:
    assert cleared(bids, asks).price_tick is None


def test_merit_order_fills_the_cheapest_asks_first() -> None:  # S2's fills
    result = cleared([(5, 100)], [(1, 10), (2, 20), (3, 30), (4, 50)])
    assert result.fills == {0: 100, 1: 10, 2: 20, 3: 30, 4: 40}
    assert result.rule is Rule.MARKET_PRESSURE


def test_equal_priced_sellers_share_pro_rata_with_the_largest_remainder() -> None:
    # 10 Wh over weights 7, 7, 7: three floors of 3, the odd one to the lowest id.
    result = cleared([(5, 10)], [(5, 7), (5, 7), (5, 7)])
    assert result.fills == {0: 10, 1: 4, 2: 3, 3: 3}


def test_the_largest_remainder_goes_before_the_lower_id() -> None:
    # 10 Wh over 5, 8: 3.85 and 6.15.
    assert cleared([(5, 10)], [(5, 5), (5, 8)]).fills == {0: 10, 1: 4, 2: 6}


def test_each_rule_decides_in_its_turn() -> None:
    assert cleared([(5, 1)], [(5, 1)]).rule is Rule.MAXIMUM_VOLUME
    # D = 3, 2 at ticks 5, 6 and S = 2 throughout: volume ties, surplus decides for 6.
    assert cleared([(6, 2), (5, 1)], [(5, 2)]).rule is Rule.MINIMUM_SURPLUS
    assert cleared([(9, 3)], [(5, 2)]).price_tick == 9
    assert cleared([(9, 3)], [(5, 2)]).rule is Rule.MARKET_PRESSURE
    assert cleared([(9, 2)], [(5, 3)]).price_tick == 5
    assert cleared([(9, 2)], [(4, 2)]).price_tick == 6  # floored midpoint
    assert cleared([(9, 2)], [(4, 2)], reference_tick=8).price_tick == 8
    assert cleared([(9, 2)], [(4, 2)], reference_tick=80).price_tick == 9
    assert cleared([(9, 2)], [(4, 2)], reference_tick=1).rule is Rule.REFERENCE_PRICE


def test_mixed_pressure_leaves_two_ticks_to_the_reference() -> None:
    # A bid unserved at 4 and an ask unserved at 5: D - S is +1 at 4 and -1 at 5.
    # (At 3 the bid at 4 would wait, though its limit is better than the price.)
    orders = ([(9, 2), (4, 1)], [(1, 2), (5, 1)])
    assert cleared(*orders).price_tick == 4
    assert cleared(*orders, reference_tick=7).price_tick == 5


def test_the_collar_bounds_the_price_and_admits_what_it_can() -> None:
    collar = Collar(4, 6)
    result = cleared([(9, 5), (3, 5)], [(1, 2), (8, 9)], collar)
    assert (result.price_tick, result.volume_wh) == (6, 2)  # pressure up to the cap
    assert result.fills == {0: 2, 2: 2}
    assert result.demand_wh == 5, "a bid below the floor is not in the book"


def test_a_limit_beyond_the_cap_buys_no_priority() -> None:
    assert cleared([(9, 4), (6, 4)], [(5, 4)], Collar(4, 6)).fills == {0: 2, 1: 2, 2: 4}


def test_an_empty_collar_trades_nothing() -> None:
    assert cleared([(9, 5)], [(1, 5)], Collar(6, 5)).price_tick is None


def test_effective_prices_keep_the_all_in_limits() -> None:
    # A buyer at 4.000 all-in with 1.151 network and 25 bps: (4.000 - 1.151) / 1.0025 = 2.8418...
    bid = effective_bid_tick(
        4_000_000, network_uwatt_per_kwh=1_151_000, fee_bps=25, tick_uwatt_per_kwh=1_000
    )
    assert bid == 2_841
    ask = effective_ask_tick(2_200_000, fee_bps=25, tick_uwatt_per_kwh=1_000)
    assert ask == 2_206  # 2.2 / 0.9975 = 2.20551...
    assert fee_uwatt_per_kwh(2_841_000, 25) == 7_103  # 7102.5 rounds up


def test_attribution_covers_both_sides_once() -> None:
    result = cleared([(9, 5), (8, 3)], [(1, 4), (2, 4)])
    trades = attribute(result.fills, buys=[0, 1], sells=[2, 3])
    assert [(t.buy_order_id, t.sell_order_id, t.energy_wh) for t in trades] == [
        (0, 2, 4),
        (0, 3, 1),
        (1, 3, 3),
    ]
