"""Tariff periods, holidays, and the band in which trade can pay."""

import datetime as dt

import msgspec
import pytest

from gridtokenx.consortium.tariff import (
    THAI_FLAT_2026,
    THAI_TOU_2026,
    Tariff,
    date_of_day,
    empty_band_warnings,
    trade_band,
)

BANGKOK = dt.timezone(dt.timedelta(hours=7))


def grid_ms(text: str) -> int:
    moment = dt.datetime.fromisoformat(text).replace(tzinfo=BANGKOK)
    return int(moment.timestamp()) * 1_000


@pytest.mark.parametrize(
    ("local", "on_peak"),
    [
        ("2026-04-22T08:59:59", False),
        ("2026-04-22T09:00:00", True),  # the testnet's start: a Wednesday
        ("2026-04-22T21:59:59", True),
        ("2026-04-22T22:00:00", False),
        ("2026-04-24T12:00:00", True),  # Friday
        ("2026-04-25T12:00:00", False),  # Saturday
        ("2026-04-26T12:00:00", False),  # Sunday
        ("2026-04-14T12:00:00", False),  # Songkran, a Tuesday
        ("2026-06-01T12:00:00", True),  # a substitution day stays on-peak
    ],
)
def test_on_peak_is_local_working_hours(local: str, on_peak: bool) -> None:
    assert THAI_TOU_2026.is_on_peak(grid_ms(local)) is on_peak


def test_an_interval_has_the_price_of_its_start() -> None:
    nine = grid_ms("2026-04-22T09:00:00") // 1_800_000
    assert THAI_TOU_2026.retail_uwatt_per_kwh(nine - 1) == 2_799_200
    assert THAI_TOU_2026.retail_uwatt_per_kwh(nine) == 5_960_500
    assert THAI_TOU_2026.local_minute(nine) == 540


def test_dates_agree_with_the_calendar() -> None:
    epoch = dt.date(1970, 1, 1)
    for day in [*range(-800, 60_000, 7), 11_016, 11_017, 19_782]:
        assert date_of_day(day) == (epoch + dt.timedelta(days=day)).isoformat()


def band(tariff: Tariff, retail: int) -> tuple[int, int]:
    found = trade_band(tariff, retail, fee_buy_bps=0, fee_sell_bps=0, tick_uwatt_per_kwh=10_000)
    return found.floor_tick, found.cap_tick


def test_the_bands_that_the_design_states() -> None:
    assert band(THAI_FLAT_2026, 3_950_000) == (220, 279)
    assert band(THAI_TOU_2026, THAI_TOU_2026.on_peak_uwatt_per_kwh) == (220, 480)
    floor, cap = band(THAI_TOU_2026, THAI_TOU_2026.off_peak_uwatt_per_kwh)
    assert floor > cap


def test_an_empty_band_is_said() -> None:
    fees = {"fee_buy_bps": 25, "fee_sell_bps": 25, "tick_uwatt_per_kwh": 1_000}
    (warning,) = empty_band_warnings(THAI_TOU_2026, **fees)
    assert "off-peak" in warning
    assert "retail 2.7992 less network 1.151" in warning
    dear = msgspec.structs.replace(THAI_TOU_2026, network_uwatt_per_kwh=5_000_000)
    assert len(empty_band_warnings(dear, **fees)) == 2
    free = msgspec.structs.replace(THAI_TOU_2026, network_uwatt_per_kwh=0)
    assert empty_band_warnings(free, **fees) == []
