"""What the market's rules leave to genesis, and the prices that follow for one interval."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from gridtokenx.consortium.market.auction import Collar, fee_uwatt_per_kwh
from gridtokenx.consortium.market.indicative import DEFAULT_INDICATIVE, IndicativeParameters
from gridtokenx.consortium.parameters import Section
from gridtokenx.consortium.tariff import MinuteOfDay, Tariff, trade_band
from gridtokenx.core.types import Millis
from gridtokenx.core.units import BASIS_POINTS, ceil_div

BasisPoints = Annotated[int, Meta(ge=0, le=BASIS_POINTS)]
FeeBasisPoints = Annotated[int, Meta(ge=0, le=2_000)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]


class MarketParameters(Section, frozen=True):
    """Rules of the call auction and its orders. Defaults are the local testnet's."""

    tick_uwatt_per_kwh: Positive = 1_000
    """Limits and prices are whole multiples of this."""
    min_order_wh: Positive = 100
    max_order_wh: Positive = 1_000_000
    max_limit_uwatt_per_kwh: Positive = 100_000_000
    """No limit above this: a wrong unit is refused instead of locking a fortune."""
    max_orders_per_product: Positive = 8
    """Open orders of one account in one product."""
    min_kyc_tier: Annotated[int, Meta(ge=0, le=65_535)] = 1
    fee_buy_bps: FeeBasisPoints = 25
    """The buyer's fee, of the price."""
    fee_sell_bps: FeeBasisPoints = 25
    """The seller's fee, of the price."""
    imbalance_margin_bps: BasisPoints = 1_000
    """Locked on top of every order, of the retail price, until the correction window ends."""
    max_price_deviation_bps: BasisPoints = 5_000
    """Half width of the collar around the reference price."""
    open_from_minute: MinuteOfDay = 6 * 60
    """The first delivery interval of a local day starts at this minute or later."""
    open_to_minute: MinuteOfDay = 22 * 60
    """And the last one before this."""
    open_ahead_intervals: Annotated[int, Meta(ge=1, le=47)] = 12
    """Books open so far ahead of now; less than a day, or the reference would be missing."""
    gate_network_ms: Millis = 5_000
    """The gate closes at least this long before delivery, in real time."""
    gate_grid_ms: Millis = 300_000
    """And at least this long in grid time."""
    indicative: IndicativeParameters = DEFAULT_INDICATIVE


@dataclass(frozen=True, slots=True)
class IntervalPrices:
    """All prices of one zone and interval, micro-WATT per kWh."""

    price: int | None
    """The auction's uniform price; None if nothing traded."""
    fee_buy: int
    fee_sell: int
    network: int
    """What a buyer pays for the use of the network."""
    retail: int
    buyback: int

    @property
    def short(self) -> int:
        """What the utility asks for energy drawn beyond the contracts."""
        return self.retail if self.price is None else max(self.retail, self.price)

    @property
    def long(self) -> int:
        """What the utility pays for energy fed in beyond the contracts."""
        return self.buyback if self.price is None else min(self.buyback, self.price)

    @property
    def buyer_all_in(self) -> int:
        """What a buyer pays per kWh."""
        return (self.price or 0) + self.fee_buy + self.network

    @property
    def seller_all_in(self) -> int:
        """What a seller receives per kWh."""
        return (self.price or 0) - self.fee_sell


def interval_prices(
    parameters: MarketParameters, tariff: Tariff, interval: int, price_uwatt_per_kwh: int | None
) -> IntervalPrices:
    """The prices of an interval whose auction cleared at this price, or not at all."""
    price = price_uwatt_per_kwh or 0
    return IntervalPrices(
        price=price_uwatt_per_kwh,
        fee_buy=fee_uwatt_per_kwh(price, parameters.fee_buy_bps),
        fee_sell=fee_uwatt_per_kwh(price, parameters.fee_sell_bps),
        network=tariff.network_uwatt_per_kwh,
        retail=tariff.retail_uwatt_per_kwh(interval),
        buyback=tariff.buyback_uwatt_per_kwh,
    )


def collar_of(
    parameters: MarketParameters, band: Collar, reference_uwatt_per_kwh: int
) -> tuple[Collar, int]:
    """The collar of a book, and its reference tick.

    The reference is first brought into the band, so the collar is empty only if the band is. Its
    ends round inwards.
    """
    if band.empty:
        return band, band.floor_tick
    reference_tick = band.clamp(reference_uwatt_per_kwh // parameters.tick_uwatt_per_kwh)
    deviation = parameters.max_price_deviation_bps
    around = Collar(
        ceil_div(reference_tick * (BASIS_POINTS - deviation), BASIS_POINTS),
        reference_tick * (BASIS_POINTS + deviation) // BASIS_POINTS,
    )
    return band.intersection(around), reference_tick


def band_of(parameters: MarketParameters, tariff: Tariff, interval: int) -> Collar:
    """The band in which trade can pay in this interval."""
    return trade_band(
        tariff,
        tariff.retail_uwatt_per_kwh(interval),
        fee_buy_bps=parameters.fee_buy_bps,
        fee_sell_bps=parameters.fee_sell_bps,
        tick_uwatt_per_kwh=parameters.tick_uwatt_per_kwh,
    )


# -- collateral: the worst that an order or position can come to owe -------------------------------


def margin_uwatt(parameters: MarketParameters, retail_uwatt_per_kwh: int, energy_wh: int) -> int:
    """Held against imbalance and corrections. Rounds up."""
    return ceil_div(
        retail_uwatt_per_kwh * energy_wh * parameters.imbalance_margin_bps, BASIS_POINTS * 1_000
    )


def buy_collateral_uwatt(all_in_uwatt_per_kwh: int, energy_wh: int) -> int:
    """A contract to buy is paid in full. Rounds up."""
    return ceil_div(all_in_uwatt_per_kwh * energy_wh, 1_000)


def sell_collateral_uwatt(
    short_uwatt_per_kwh: int, all_in_uwatt_per_kwh: int, energy_wh: int
) -> int:
    """A seller who delivers nothing owes the short price less what was received. Rounds up."""
    return ceil_div(max(0, short_uwatt_per_kwh - all_in_uwatt_per_kwh) * energy_wh, 1_000)
