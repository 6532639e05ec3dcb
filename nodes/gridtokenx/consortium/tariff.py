"""The utility's tariff, as parameters with their date and source, and the band it leaves for trade.

Law: which price holds is a function of grid time and of this struct alone. Holidays are dates in
genesis: a library's calendar may change between two releases, and consensus may not.

A trade pays both sides only between the buyback (what the seller would get anyway) and the retail
price less the use of network (what the buyer would pay anyway), fees taken off both ends. At the
flat 3.95 with 1.151 wheeling that is 2.20 to 2.80; on-peak 2.20 to 4.81; off-peak never.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.consortium.market.auction import (
    Collar,
    effective_ask_tick,
    effective_bid_tick,
)
from gridtokenx.consortium.parameters import Section
from gridtokenx.core.gridtime import interval_start_ms, local_day, local_minute_of_day
from gridtokenx.core.types import ShortText, Text, UInt63
from gridtokenx.core.units import WATT

DateText = Annotated[str, Meta(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")]
"""A calendar date, ISO 8601."""

MinuteOfDay = Annotated[int, Meta(ge=0, le=1_440)]
WEEKDAYS: Final = 5
"""Monday to Friday."""


class Tariff(Section, frozen=True):
    """What the utility charges and pays, and when."""

    name: ShortText
    """The tariff class, for people."""
    source: Text
    """Where the figures come from."""
    dated: DateText
    """The date the figures were valid or read."""
    on_peak_uwatt_per_kwh: UInt63
    """Retail energy charge while on-peak, with Ft."""
    off_peak_uwatt_per_kwh: UInt63
    """Retail energy charge at all other times, with Ft; equal to on-peak for a flat tariff."""
    buyback_uwatt_per_kwh: UInt63
    """What the utility pays for energy fed in."""
    network_uwatt_per_kwh: UInt63
    """Use of network (wheeling) that a buyer of traded energy pays per kWh."""
    on_peak_from_minute: MinuteOfDay
    """On-peak starts at this minute of a local working day."""
    on_peak_to_minute: MinuteOfDay
    """And ends before this one."""
    utc_offset_minutes: Annotated[int, Meta(ge=-720, le=840)]
    """Local time less UTC."""
    holidays: Annotated[tuple[DateText, ...], Meta(max_length=512)]
    """Local dates that are off-peak all day."""

    def is_on_peak(self, grid_ms: int) -> bool:
        """Whether the on-peak price holds at a grid time."""
        offset_ms = self.utc_offset_minutes * 60_000
        day = local_day(grid_ms, offset_ms)
        if (day + 3) % 7 >= WEEKDAYS or date_of_day(day) in self.holidays:
            return False
        minute = local_minute_of_day(grid_ms, offset_ms)
        return self.on_peak_from_minute <= minute < self.on_peak_to_minute

    def retail_uwatt_per_kwh(self, interval: int) -> int:
        """The retail price of an interval: the one at its start."""
        on_peak = self.is_on_peak(interval_start_ms(interval))
        return self.on_peak_uwatt_per_kwh if on_peak else self.off_peak_uwatt_per_kwh

    def local_minute(self, interval: int) -> int:
        """The local minute of day at which an interval starts."""
        return local_minute_of_day(interval_start_ms(interval), self.utc_offset_minutes * 60_000)


def trade_band(
    tariff: Tariff,
    retail_uwatt_per_kwh: int,
    *,
    fee_buy_bps: int,
    fee_sell_bps: int,
    tick_uwatt_per_kwh: int,
) -> Collar:
    """The effective prices at which a trade pays buyer and seller; empty where none does.

    A buyer's all-in limit is retail, a seller's is the buyback; both convert like any order's.
    """
    floor_tick = effective_ask_tick(
        tariff.buyback_uwatt_per_kwh, fee_bps=fee_sell_bps, tick_uwatt_per_kwh=tick_uwatt_per_kwh
    )
    cap_tick = effective_bid_tick(
        retail_uwatt_per_kwh,
        network_uwatt_per_kwh=tariff.network_uwatt_per_kwh,
        fee_bps=fee_buy_bps,
        tick_uwatt_per_kwh=tick_uwatt_per_kwh,
    )
    return Collar(floor_tick, cap_tick)


def empty_band_warnings(
    tariff: Tariff, *, fee_buy_bps: int, fee_sell_bps: int, tick_uwatt_per_kwh: int
) -> list[str]:
    """One sentence for each period of the tariff in which no trade can pay; for operators."""
    warnings = []
    periods = (
        ("on-peak", tariff.on_peak_uwatt_per_kwh),
        ("off-peak", tariff.off_peak_uwatt_per_kwh),
    )
    for period, retail in periods:
        band = trade_band(
            tariff,
            retail,
            fee_buy_bps=fee_buy_bps,
            fee_sell_bps=fee_sell_bps,
            tick_uwatt_per_kwh=tick_uwatt_per_kwh,
        )
        if band.empty:
            warnings.append(
                f"tariff {tariff.name!r}: no trade can pay {period}: retail {_watt(retail)} less "
                f"network {_watt(tariff.network_uwatt_per_kwh)} and fees is below the buyback "
                f"{_watt(tariff.buyback_uwatt_per_kwh)} WATT/kWh; lower network_uwatt_per_kwh or "
                "choose another tariff class"
            )
    return warnings


def date_of_day(day: int) -> str:
    """The ISO 8601 date of a day counted from 1970-01-01 (proleptic Gregorian, from 0000-03-01).

    Years are counted from March, so that the leap day is the last of its year.
    """
    era, day_of_era = divmod(day + 719_468, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    day_of_month = day_of_year - (153 * march_month + 2) // 5 + 1
    month = march_month + 3 if march_month < 10 else march_month - 9
    year = era * 400 + year_of_era + (month <= 2)
    return f"{year:04d}-{month:02d}-{day_of_month:02d}"


def _watt(price_uwatt_per_kwh: int) -> str:
    whole, micro = divmod(price_uwatt_per_kwh, WATT)
    return f"{whole}.{micro:06d}".rstrip("0").rstrip(".")


THAI_HOLIDAYS_2026: Final = (
    "2026-01-01",
    "2026-03-03",
    "2026-04-06",
    "2026-04-13",
    "2026-04-14",
    "2026-04-15",
    "2026-05-01",
    "2026-05-04",
    "2026-05-31",
    "2026-06-03",
    "2026-07-28",
    "2026-07-29",
    "2026-07-30",
    "2026-08-12",
    "2026-10-13",
    "2026-10-23",
    "2026-12-05",
    "2026-12-10",
    "2026-12-31",
)
"""Official holidays without substitution and bridge days, which stay on-peak."""

THAI_TOU_2026: Final = Tariff(
    name="residential TOU below 22 kV",
    source="MEA schedule 1.2 (5.7982 / 2.6369) with Ft 0.1623; wheeling: ERC sandbox 1.151",
    dated="2026-05-01",
    on_peak_uwatt_per_kwh=5_960_500,
    off_peak_uwatt_per_kwh=2_799_200,
    buyback_uwatt_per_kwh=2_200_000,
    network_uwatt_per_kwh=1_151_000,
    on_peak_from_minute=9 * 60,
    on_peak_to_minute=22 * 60,
    utc_offset_minutes=7 * 60,
    holidays=THAI_HOLIDAYS_2026,
)
"""Trade can pay on-peak only: 2.20 to 4.81."""

THAI_FLAT_2026: Final = Tariff(
    name="average retail",
    source="average retail May-August 2026, Ft included; wheeling: ERC sandbox 1.151",
    dated="2026-05-01",
    on_peak_uwatt_per_kwh=3_950_000,
    off_peak_uwatt_per_kwh=3_950_000,
    buyback_uwatt_per_kwh=2_200_000,
    network_uwatt_per_kwh=1_151_000,
    on_peak_from_minute=0,
    on_peak_to_minute=0,
    utc_offset_minutes=7 * 60,
    holidays=(),
)
"""The narrow band: 2.20 to 2.80."""
