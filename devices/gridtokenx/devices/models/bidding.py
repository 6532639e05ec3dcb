"""How a household bids: from its forecast, within what the tariff makes worth while.

A buyer never bids the retail price or more, a seller never asks for the buyback or less: otherwise
the utility would serve them as well. Where in between is each household's temper, fixed by the
seed, and a little different from interval to interval. Off-peak, when no trade can pay, nobody
bids.
"""

from dataclasses import dataclass
from typing import Final

from gridtokenx.consortium.market.auction import (
    Collar,
    Side,
    effective_ask_tick,
    effective_bid_tick,
)
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.consortium.market.parameters import MarketParameters, band_of
from gridtokenx.consortium.tariff import Tariff
from gridtokenx.core.keys import sha256
from gridtokenx.core.units import ceil_div
from gridtokenx.devices.models.energy import PPM

LEAST_SHARE_PPM: Final = 50_000
MOST_SHARE_PPM: Final = 500_000
"""A household gives away between 5 and 50 per cent of the band, so bids and asks always meet."""
MOOD_PPM: Final = 40_000
"""Largest change of the share from one interval to another."""
OFFERED_PPM: Final = 950_000
"""Share of its expected surplus that a seller offers: falling short costs more than it earns."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the chain's genesis says about orders."""

    tariff: Tariff
    market: MarketParameters

    def can_trade(self, interval: int) -> bool:
        """Whether there is a price that pays both sides."""
        return not band_of(self.market, self.tariff, interval).empty


@dataclass(frozen=True, slots=True)
class Temper:
    """How eager a household is to trade."""

    seed: bytes
    share_ppm: int
    """Part of the band between buyback and retail that it gives away."""

    def share_at(self, interval: int) -> int:
        """The share for one interval."""
        mood = _draw(self.seed, interval.to_bytes(8, "big"), 2 * MOOD_PPM + 1) - MOOD_PPM
        return max(LEAST_SHARE_PPM, min(self.share_ppm + mood, MOST_SHARE_PPM))


def temper_of(seed: bytes, household: int) -> Temper:
    """The temper of a household in a run."""
    own = sha256(b"temper", seed, household.to_bytes(4, "big"))
    return Temper(own, LEAST_SHARE_PPM + _draw(own, b"share", MOST_SHARE_PPM - LEAST_SHARE_PPM + 1))


def order_for(
    rules: Rules,
    temper: Temper,
    zone: int,
    interval: int,
    net_wh: int,
    collar: Collar,
    client_order_id: int,
) -> PlaceOrder | None:
    """The order with which a household meets an expected net import (negative: export).

    Args:
        rules: of the market.
        temper: of the household.
        zone: of its connection.
        interval: to be delivered.
        net_wh: what it expects.
        collar: of the product's book; an order that it cannot admit is not made.
        client_order_id: the household's own name for the order.

    Returns:
        None if there is too little to trade, or no trade can pay.
    """
    side = Side.BUY if net_wh > 0 else Side.SELL
    energy_wh = net_wh if side is Side.BUY else -net_wh * OFFERED_PPM // PPM
    energy_wh = min(energy_wh, rules.market.max_order_wh)
    if energy_wh < rules.market.min_order_wh:
        return None
    if not rules.can_trade(interval):
        return None
    limit = _limit(rules, temper.share_at(interval), side, interval)
    if not collar.admits(side, _effective_tick(rules, side, limit)):
        return None
    return PlaceOrder(
        client_order_id=client_order_id,
        zone=zone,
        interval=interval,
        side=side,
        limit_uwatt_per_kwh=limit,
        energy_wh=energy_wh,
    )


def _limit(rules: Rules, share_ppm: int, side: Side, interval: int) -> int:
    """An all-in limit strictly inside what the utility would charge or pay, on a tick."""
    tick = rules.market.tick_uwatt_per_kwh
    retail = rules.tariff.retail_uwatt_per_kwh(interval)
    buyback, network = rules.tariff.buyback_uwatt_per_kwh, rules.tariff.network_uwatt_per_kwh
    given = max(0, retail - network - buyback) * share_ppm // PPM
    if side is Side.BUY:
        return (retail - given - 1) // tick * tick
    return ceil_div(buyback + given + 1, tick) * tick


def _effective_tick(rules: Rules, side: Side, limit: int) -> int:
    market = rules.market
    if side is Side.BUY:
        return effective_bid_tick(
            limit,
            network_uwatt_per_kwh=rules.tariff.network_uwatt_per_kwh,
            fee_bps=market.fee_buy_bps,
            tick_uwatt_per_kwh=market.tick_uwatt_per_kwh,
        )
    return effective_ask_tick(
        limit, fee_bps=market.fee_sell_bps, tick_uwatt_per_kwh=market.tick_uwatt_per_kwh
    )


def _draw(seed: bytes, what: bytes, width: int) -> int:
    return int.from_bytes(sha256(what, seed)[:16], "big") % width
