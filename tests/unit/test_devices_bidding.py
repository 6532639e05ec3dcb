"""What a household bids: inside the band in which trade pays, what it expects, and only when it can."""

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.consortium.market.auction import (
    Collar,
    Side,
    effective_ask_tick,
    effective_bid_tick,
)
from gridtokenx.consortium.market.parameters import MarketParameters, band_of
from gridtokenx.consortium.tariff import THAI_FLAT_2026, THAI_TOU_2026
from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.devices.models.bidding import Rules, Temper, order_for, temper_of

MARKET = MarketParameters()
RULES = Rules(THAI_TOU_2026, MARKET)
WEDNESDAY_TEN = (1_776_790_800_000 + 10 * 3_600_000) // INTERVAL_MS
"""22 April 2026, 10:00 in Bangkok: on-peak."""
WEDNESDAY_SEVEN = WEDNESDAY_TEN - 6
OPEN = Collar(0, 10**6)
TEMPER = temper_of(b"seed", 3)


def test_a_lack_is_bid_for_and_a_surplus_offered() -> None:
    bid = order_for(RULES, TEMPER, 7, WEDNESDAY_TEN, 1_234, OPEN, 1)
    offer = order_for(RULES, TEMPER, 7, WEDNESDAY_TEN, -1_000, OPEN, 1)
    assert bid is not None
    assert (bid.side, bid.energy_wh, bid.zone, bid.interval) == (Side.BUY, 1_234, 7, WEDNESDAY_TEN)
    assert offer is not None
    assert (offer.side, offer.energy_wh) == (Side.SELL, 950)


def test_too_little_is_not_traded() -> None:
    for net_wh in (0, 99, -99, -105):
        assert order_for(RULES, TEMPER, 0, WEDNESDAY_TEN, net_wh, OPEN, 1) is None


def test_off_peak_nobody_bids_because_no_trade_can_pay() -> None:
    assert not RULES.can_trade(WEDNESDAY_SEVEN)
    assert order_for(RULES, TEMPER, 0, WEDNESDAY_SEVEN, 1_000, OPEN, 1) is None


def test_an_order_that_the_collar_excludes_is_not_made() -> None:
    dear, cheap = Collar(5_900, 6_000), Collar(0, 100)
    assert order_for(RULES, TEMPER, 0, WEDNESDAY_TEN, 1_000, dear, 1) is None
    assert order_for(RULES, TEMPER, 0, WEDNESDAY_TEN, -1_000, cheap, 1) is None


def test_tempers_differ_and_are_repeatable() -> None:
    tempers = {temper_of(b"seed", index).share_ppm for index in range(24)}
    assert len(tempers) == 24
    assert temper_of(b"seed", 3) == TEMPER
    assert temper_of(b"other", 3) != TEMPER


@given(
    st.sampled_from((THAI_TOU_2026, THAI_FLAT_2026)),
    st.builds(temper_of, st.binary(max_size=8), st.integers(0, 1_000)),
    st.integers(0, 48 * 14),
    st.sampled_from((2_000, -2_000)),
)
def test_every_limit_is_better_than_the_utility_and_lies_in_the_band(
    tariff: object, temper: Temper, ahead: int, net_wh: int
) -> None:
    rules = Rules(tariff, MARKET)  # type: ignore[arg-type]  # sampled_from loses the type
    interval = WEDNESDAY_TEN + ahead
    order = order_for(rules, temper, 0, interval, net_wh, OPEN, 1)
    assert (order is not None) == rules.can_trade(interval)
    if order is None:
        return
    band = band_of(MARKET, rules.tariff, interval)
    assert order.limit_uwatt_per_kwh % MARKET.tick_uwatt_per_kwh == 0
    if order.side is Side.BUY:
        assert order.limit_uwatt_per_kwh < rules.tariff.retail_uwatt_per_kwh(interval)
        tick = effective_bid_tick(
            order.limit_uwatt_per_kwh,
            network_uwatt_per_kwh=rules.tariff.network_uwatt_per_kwh,
            fee_bps=MARKET.fee_buy_bps,
            tick_uwatt_per_kwh=MARKET.tick_uwatt_per_kwh,
        )
    else:
        assert order.limit_uwatt_per_kwh > rules.tariff.buyback_uwatt_per_kwh
        tick = effective_ask_tick(
            order.limit_uwatt_per_kwh,
            fee_bps=MARKET.fee_sell_bps,
            tick_uwatt_per_kwh=MARKET.tick_uwatt_per_kwh,
        )
    assert band.floor_tick <= tick <= band.cap_tick


@given(
    st.builds(temper_of, st.binary(max_size=8), st.integers(0, 1_000)),
    st.builds(temper_of, st.binary(max_size=8), st.integers(0, 1_000)),
)
def test_any_buyer_meets_any_seller(buyer: Temper, seller: Temper) -> None:
    bid = order_for(RULES, buyer, 0, WEDNESDAY_TEN, 1_000, OPEN, 1)
    offer = order_for(RULES, seller, 0, WEDNESDAY_TEN, -2_000, OPEN, 1)
    assert bid is not None
    assert offer is not None
    network = THAI_TOU_2026.network_uwatt_per_kwh
    # Fees of both sides take less than two ticks in a hundred out of the middle of the band.
    assert bid.limit_uwatt_per_kwh - network >= offer.limit_uwatt_per_kwh * 99 // 100
