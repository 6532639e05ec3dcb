"""The uniform-price call auction of one zone: four rules, integers only.

Law: every order trades at one price or not at all; no buyer pays above and no seller receives
below their limit; what is bought equals what is sold; no order waits whose limit is strictly
better than the price.

Theory (the four-principle algorithm of the ASX's opening auction). With D(p) the energy bid at p
or above and S(p) the energy offered at p or below, among the ticks inside the collar:

1. maximum volume: keep the prices with the greatest min(D, S);
2. minimum surplus: of these, the smallest |D - S|;
3. market pressure: if every price left has D > S take the highest, if every one has S > D the
   lowest; if the pressure turns between two of them keep those two;
4. reference: the reference price clamped into what is left, or the floored midpoint without one.

On the long side the level at the margin is shared pro rata: floors, then the largest remainders,
ties to the lower order id. With sharing instead of time priority, nobody gains by reaching a block
first.

`Ours differs:` a midpoint of the marginal bid and ask, as many engines take, is not a clearing
price in general (a better-priced order may be left over at it); rules 1 to 3 exclude that.

The collar bounds the price, not the limits: a bid above the cap competes as a bid at the cap, an
ask below the floor as one at the floor, and an order that no price inside satisfies stays out.
Limits beyond the collar therefore buy no priority.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from gridtokenx.core.units import BASIS_POINTS, ceil_div

_Levels = dict[int, list[tuple[int, int]]]
"""By price tick, the (order id, Wh) of the orders of one side."""


class Side(Enum):
    """Which way the energy of an order flows, seen from its account."""

    BUY = "buy"
    SELL = "sell"


class Rule(Enum):
    """Which of the four rules fixed the price (the last one that still had a choice to make)."""

    NO_TRADE = "no-trade"
    MAXIMUM_VOLUME = "maximum-volume"
    MINIMUM_SURPLUS = "minimum-surplus"
    MARKET_PRESSURE = "market-pressure"
    REFERENCE_PRICE = "reference-price"


@dataclass(frozen=True, slots=True)
class AuctionOrder:
    """One order as the auction sees it: its price is effective, less fees and network charges."""

    order_id: int
    side: Side
    price_tick: int
    energy_wh: int


@dataclass(frozen=True, slots=True)
class Collar:
    """The ticks, both included, among which the price must lie."""

    floor_tick: int
    cap_tick: int

    @property
    def empty(self) -> bool:
        """No price at all is allowed: nothing can trade."""
        return self.floor_tick > self.cap_tick

    def intersection(self, other: Collar) -> Collar:
        """The ticks that both collars allow."""
        return Collar(max(self.floor_tick, other.floor_tick), min(self.cap_tick, other.cap_tick))

    def clamp(self, tick: int) -> int:
        """The allowed tick nearest to `tick`."""
        return max(self.floor_tick, min(self.cap_tick, tick))

    def admits(self, side: Side, price_tick: int) -> bool:
        """Whether some price inside satisfies an order of this side and effective limit."""
        if self.empty:
            return False
        return price_tick >= self.floor_tick if side is Side.BUY else price_tick <= self.cap_tick


@dataclass(frozen=True, slots=True)
class Clearing:
    """The result of one auction.

    `price_tick` is None when nothing trades. `fills` holds the Wh of every order that trades, by
    order id. `demand_wh` and `supply_wh` are D and S at the price; when nothing trades, all that
    the collar admits.
    """

    price_tick: int | None
    volume_wh: int
    demand_wh: int
    supply_wh: int
    rule: Rule
    fills: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Trade:
    """Energy attributed from one sell order to one buy order. Attribution moves no money."""

    buy_order_id: int
    sell_order_id: int
    energy_wh: int


@dataclass(frozen=True, slots=True)
class _Plateau:
    """Ticks `lo` to `hi` (both included), over which D and S do not change."""

    lo: int
    hi: int
    demand_wh: int
    supply_wh: int

    @property
    def volume_wh(self) -> int:
        return min(self.demand_wh, self.supply_wh)

    @property
    def surplus_wh(self) -> int:
        """Positive where buyers are left over."""
        return self.demand_wh - self.supply_wh


def effective_bid_tick(
    limit_uwatt_per_kwh: int, *, network_uwatt_per_kwh: int, fee_bps: int, tick_uwatt_per_kwh: int
) -> int:
    """The highest tick at which a buyer pays no more than the all-in limit (clearing.md).

    Rounds down, so the buyer never pays above it. Negative when the network charge exceeds it.
    """
    before_fee = (limit_uwatt_per_kwh - network_uwatt_per_kwh) * BASIS_POINTS
    return before_fee // ((BASIS_POINTS + fee_bps) * tick_uwatt_per_kwh)


def effective_ask_tick(limit_uwatt_per_kwh: int, *, fee_bps: int, tick_uwatt_per_kwh: int) -> int:
    """The lowest tick at which a seller receives no less than the all-in limit: rounds up."""
    return ceil_div(
        limit_uwatt_per_kwh * BASIS_POINTS, (BASIS_POINTS - fee_bps) * tick_uwatt_per_kwh
    )


def fee_uwatt_per_kwh(price_uwatt_per_kwh: int, fee_bps: int) -> int:
    """The fee on one kWh at this price. Rounds up, in favour of the pool.

    Whole per kWh, it makes every amount of a statement an exact product of price and energy; and
    as limits are whole too, rounding it up never takes an order past its limit at its tick.
    """
    return ceil_div(price_uwatt_per_kwh * fee_bps, BASIS_POINTS)


def clear(
    orders: Iterable[AuctionOrder],
    collar: Collar | None = None,
    reference_tick: int | None = None,
) -> Clearing:
    """Clear one book. Deterministic, and independent of the order in which `orders` come.

    Args:
        orders: the book; ids are unique and energies positive.
        collar: the ticks allowed; None allows any.
        reference_tick: the price that rule 4 prefers; None takes the midpoint.

    Costs one sort of the price levels.
    """
    book = list(orders)
    if collar is None:
        collar = _widest_collar(book)
    demand = _levels(book, Side.BUY, collar)
    supply = _levels(book, Side.SELL, collar)
    price_tick, rule = _price(list(_plateaus(demand, supply, collar)), reference_tick)
    demand_wh = _energy(demand, lambda tick: price_tick is None or tick >= price_tick)
    supply_wh = _energy(supply, lambda tick: price_tick is None or tick <= price_tick)
    volume_wh = 0 if price_tick is None else min(demand_wh, supply_wh)
    fills = _fill([demand[tick] for tick in sorted(demand, reverse=True)], volume_wh)
    fills.update(_fill([supply[tick] for tick in sorted(supply)], volume_wh))
    return Clearing(price_tick, volume_wh, demand_wh, supply_wh, rule, fills)


def attribute(fills: Mapping[int, int], buys: Sequence[int], sells: Sequence[int]) -> list[Trade]:
    """Name a seller for every Wh bought, walking both lists of order ids once.

    For people and certificates only: each side has the one price, whoever the other is.
    """
    trades = []
    left = {order_id: fills[order_id] for order_id in (*buys, *sells) if fills.get(order_id)}
    sellers = [order_id for order_id in sells if order_id in left]
    seller = 0
    for buyer in (order_id for order_id in buys if order_id in left):
        while left[buyer]:
            energy_wh = min(left[buyer], left[sellers[seller]])
            trades.append(Trade(buyer, sellers[seller], energy_wh))
            left[buyer] -= energy_wh
            left[sellers[seller]] -= energy_wh
            seller += left[sellers[seller]] == 0
    return trades


def largest_remainder(parts: Sequence[tuple[int, int]], total: int) -> dict[int, int]:
    """Share `total` among (id, weight) pairs in proportion to weight, summing exactly.

    Floors first; what they leave goes one by one to the largest remainders, ties to the lower id.
    `total` is at most the sum of weights, so nobody gets more than their weight.
    """
    whole = sum(weight for _, weight in parts)
    shares = {key: weight * total // whole for key, weight in parts}
    by_remainder = sorted(parts, key=lambda part: (-(part[1] * total % whole), part[0]))
    for key, _ in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def _widest_collar(book: Sequence[AuctionOrder]) -> Collar:
    """Beyond the extreme limits of the book neither curve changes, so no rule looks further."""
    ticks = [order.price_tick for order in book] or [0]
    return Collar(min(ticks), max(ticks))


def _levels(book: Iterable[AuctionOrder], side: Side, collar: Collar) -> _Levels:
    """Energy by order id at each price, limits clamped into the collar."""
    levels: _Levels = {}
    for order in book:
        if order.side is side and collar.admits(side, order.price_tick):
            level = levels.setdefault(collar.clamp(order.price_tick), [])
            level.append((order.order_id, order.energy_wh))
    return levels


def _energy(levels: _Levels, counts: Callable[[int], bool]) -> int:
    return sum(wh for tick, level in levels.items() if counts(tick) for _, wh in level)


def _plateaus(demand: _Levels, supply: _Levels, collar: Collar) -> Iterator[_Plateau]:
    """Cut the collar where a curve changes: D drops just above a bid, S rises at an ask."""
    change: dict[int, tuple[int, int]] = {collar.floor_tick: (0, 0)}
    for tick, level in demand.items():
        lost, gained = change.get(tick + 1, (0, 0))
        change[tick + 1] = (lost + sum(wh for _, wh in level), gained)
    for tick, level in supply.items():
        lost, gained = change.get(tick, (0, 0))
        change[tick] = (lost, gained + sum(wh for _, wh in level))
    starts = sorted(tick for tick in change if tick <= collar.cap_tick)
    demand_wh, supply_wh = _energy(demand, lambda _: True), 0
    for lo, following in itertools.zip_longest(starts, starts[1:], fillvalue=collar.cap_tick + 1):
        demand_wh -= change[lo][0]
        supply_wh += change[lo][1]
        yield _Plateau(lo, following - 1, demand_wh, supply_wh)


def _price(plateaus: Sequence[_Plateau], reference_tick: int | None) -> tuple[int | None, Rule]:
    """Rules 1 to 4. Each leaves adjacent ticks, because D - S never rises with the price."""
    volume_wh = max((each.volume_wh for each in plateaus), default=0)
    if volume_wh == 0:
        return None, Rule.NO_TRADE
    left = [each for each in plateaus if each.volume_wh == volume_wh]
    if left[0].lo == left[-1].hi:
        return left[0].lo, Rule.MAXIMUM_VOLUME
    surplus_wh = min(abs(each.surplus_wh) for each in left)
    left = [each for each in left if abs(each.surplus_wh) == surplus_wh]
    lo, hi = left[0].lo, left[-1].hi
    if lo == hi:
        return lo, Rule.MINIMUM_SURPLUS
    if all(each.surplus_wh > 0 for each in left):
        return hi, Rule.MARKET_PRESSURE
    if all(each.surplus_wh < 0 for each in left):
        return lo, Rule.MARKET_PRESSURE
    if surplus_wh:  # pressure turns between two ticks: elsewhere a better-priced order would wait
        lo, hi = next((a.hi, b.lo) for a, b in itertools.pairwise(left) if b.surplus_wh < 0)
    if reference_tick is None:
        return (lo + hi) // 2, Rule.REFERENCE_PRICE  # floored midpoint
    return max(lo, min(hi, reference_tick)), Rule.REFERENCE_PRICE


def _fill(levels: Iterable[Sequence[tuple[int, int]]], volume_wh: int) -> dict[int, int]:
    """Serve levels, best first, until the volume is used up; share the last one pro rata."""
    fills: dict[int, int] = {}
    left_wh = volume_wh
    for level in levels:
        level_wh = sum(wh for _, wh in level)
        shares = dict(level) if level_wh <= left_wh else largest_remainder(level, left_wh)
        fills.update((order_id, wh) for order_id, wh in shares.items() if wh)
        left_wh -= min(level_wh, left_wh)
        if left_wh == 0:
            break
    return fills
