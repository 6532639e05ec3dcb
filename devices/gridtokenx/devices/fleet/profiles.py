"""Makes the profiles of a neighbourhood in Bangkok.

Used only when a network is set up: what computes the sun is heavy, and imported when it is used. Here,
and nowhere else in the project, floats describe energy. What comes out is rounded to whole watts and
never computed again.

Sun: pvlib's clear sky (Ineichen, bundled Linke turbidity), transposed to each roof, with NOCT cell
temperature and -0.4 %/K. Clouds: one field for the whole neighbourhood, passing over it from west
to east, with a small part of its own for each roof. Load: a base, a morning and an evening peak
(two Gaussians), air conditioning that follows the heat and whether anyone is at home, and
appliances.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gridtokenx.core.gridtime import BANGKOK_UTC_OFFSET_MS, DAY_MS
from gridtokenx.devices.models.battery import BatterySpec
from gridtokenx.devices.models.household import HouseholdSpec
from gridtokenx.devices.models.load import LoadSpec
from gridtokenx.devices.models.meter import MeterSpec
from gridtokenx.devices.models.profiles import STEP_MS, Profile
from gridtokenx.devices.models.sensor import VoltageSpec
from gridtokenx.devices.models.solar import SolarSpec

if TYPE_CHECKING:
    import pandas as pd

Series = NDArray[np.float64]

BANGKOK_LATITUDE: Final = 13.7563
BANGKOK_LONGITUDE: Final = 100.5018
BANGKOK_ALTITUDE_M: Final = 2.0
BANGKOK_ZONE: Final = "Asia/Bangkok"
TEMPERATURE_COEFFICIENT: Final = -0.004
"""Relative change of panel power per kelvin above 25 degrees."""
NOCT_RISE_K: Final = 20.0
"""Cell temperature above ambient at 800 W/m2 (nominal operating cell temperature less 20
degrees)."""
NOCT_IRRADIANCE: Final = 800.0
STANDARD_IRRADIANCE: Final = 1000.0
_MINUTES_PER_DAY: Final = 1440
_WEATHER: Final = (1.0, 0.72, 0.42, 0.18)
"""Share of the clear sky's light in clear, broken, overcast and raining hours."""
_WEATHER_STEP: Final = (
    (0.72, 0.24, 0.04, 0.00),
    (0.30, 0.50, 0.18, 0.02),
    (0.08, 0.42, 0.42, 0.08),
    (0.02, 0.38, 0.40, 0.20),
)
"""Chance of each weather in the next hour, given this hour's: a dry-season afternoon in Bangkok."""
_CLOUD_LAG_STEPS: Final = 12
"""Minutes that a cloud's edge needs from the first roof to the last."""
_MEMORY: Final = 0.8
"""Correlation of the cloud texture from one minute to the next."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What makes one household's demand and roof different from its neighbour's."""

    scale: float
    """Size of base load and peaks."""
    home_by_day: bool
    """Whether somebody is in by day: a shop house, a home office, grandparents."""
    cooling_w: float
    """Air conditioning at full heat with everybody in."""
    panel_w: float
    """Rated panel power; 0 without panels."""
    azimuth_deg: float
    tilt_deg: float
    cloud_lag: int
    """Steps after which the neighbourhood's clouds reach this roof."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Households as they are set up: their fixed physics and their habits, index by index."""

    specs: tuple[HouseholdSpec, ...]
    habits: tuple[Habits, ...]


def plan_neighbourhood(seed: int, households: int, solar: int, batteries: int) -> Neighbourhood:
    """Draw the households of a run.

    Args:
        seed: of the run.
        households: how many.
        solar: how many of them have panels; spread evenly over the indices.
        batteries: how many of those with panels also have a battery.
    """
    assert 0 <= batteries <= solar <= households, "batteries stand behind panels"
    specs: list[HouseholdSpec] = []
    habits: list[Habits] = []
    with_panels = 0
    for index in range(households):
        has_panels = _spread(index, solar, households)
        has_battery = has_panels and _spread(with_panels, batteries, solar)
        with_panels += has_panels
        habit = _draw_habits(seed, index, households, has_panels=has_panels)
        habits.append(habit)
        specs.append(_draw_spec(seed, index, habit, has_battery=has_battery))
    return Neighbourhood(tuple(specs), tuple(habits))


def make_profiles(
    seed: int, start_local_date: date, days: int, neighbourhood: Neighbourhood
) -> tuple[Profile, ...]:
    """Minute profiles from local midnight of a date, one per household.

    Args:
        seed: of the run; with the date it fixes every cloud and kettle.
        start_local_date: first day, in Bangkok.
        days: how many; a multiple of seven keeps weekdays in place when the profile repeats.
        neighbourhood: from `plan_neighbourhood`.
    """
    import pandas as pd  # noqa: PLC0415 - see the head of the file

    times = pd.date_range(
        start_local_date.isoformat(), periods=days * _MINUTES_PER_DAY, freq="60s", tz=BANGKOK_ZONE
    )
    days_since_1970 = start_local_date.toordinal() - date(1970, 1, 1).toordinal()
    start_grid_ms = days_since_1970 * DAY_MS - BANGKOK_UTC_OFFSET_MS
    clear_sky = _ClearSky(times)
    clouds = _cloud_field(seed, days)
    ambient = _ambient_temperature(seed, days, clouds[: len(times)])
    days_off = _days_off(start_local_date, days)
    profiles: list[Profile] = []
    for index, habits in enumerate(neighbourhood.habits):
        load = _load_w(seed, index, habits, days_off, ambient)
        solar = _solar_w(seed, index, habits, clear_sky, clouds, ambient)
        profiles.append(Profile(start_grid_ms, STEP_MS, _whole(load), _whole(solar)))
    return tuple(profiles)


def _spread(index: int, chosen: int, total: int) -> bool:
    """Whether `index` is one of `chosen` evenly spread ones; the first index is one of them."""
    return bool(total) and -(-index * chosen // total) != -(-(index + 1) * chosen // total)


def _generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, index, purpose]))


def _draw_habits(seed: int, index: int, households: int, *, has_panels: bool) -> Habits:
    draw = _generator(seed, index, 1)
    scale, cooling_w = draw.uniform(0.45, 0.85), draw.uniform(700.0, 1500.0)
    panel_w = round(draw.uniform(2.4, 4.8), 1) * 1000.0
    return Habits(
        scale=scale,
        # Every other pair, so that both kinds exist with and without panels.
        home_by_day=index // 2 % 2 == 0,
        cooling_w=cooling_w,
        panel_w=panel_w if has_panels else 0.0,
        azimuth_deg=float(draw.choice([90.0, 150.0, 180.0, 210.0, 270.0])),
        tilt_deg=float(draw.uniform(8.0, 20.0)),
        cloud_lag=index * _CLOUD_LAG_STEPS // max(1, households - 1),
    )


def _draw_spec(seed: int, index: int, habits: Habits, *, has_battery: bool) -> HouseholdSpec:
    draw = _generator(seed, index, 2)
    inverter_w = int(habits.panel_w * 0.9)
    solar = SolarSpec(inverter_w, 965_000) if inverter_w else None
    battery = None
    if has_battery:
        battery = BatterySpec(
            capacity_wh=int(draw.choice([5_000, 7_500, 10_000])),
            power_w=2_500,
            round_trip_ppm=900_000,
            min_charge_ppm=100_000,
            max_charge_ppm=950_000,
            standby_w=8,
            inverter_ac_w=inverter_w,
        )
    gains = [int(draw.integers(-8_000, 8_001)) for _ in range(4)]
    return HouseholdSpec(
        load=LoadSpec(10_000),
        solar=solar,
        battery=battery,
        meter=MeterSpec(gains[0], 5),
        generation_meter=MeterSpec(gains[1], 5),
        storage_meter=MeterSpec(gains[2], 5),
        voltage=VoltageSpec(
            no_load_mv=229_000,
            drop_uv_per_w=int(draw.integers(800, 1_800)),
            gain_ppm=gains[3] // 2,
            resolution_mv=100,
            low_mv=207_000,
            high_mv=253_000,
        ),
        initial_charge_ppm=int(draw.integers(300_000, 600_001)),
    )


class _ClearSky:
    """The cloudless sky over Bangkok; turned to a roof on demand."""

    def __init__(self, times: "pd.DatetimeIndex") -> None:
        import pvlib  # noqa: PLC0415 - see the head of the file

        self._irradiance = pvlib.irradiance
        place = pvlib.location.Location(
            BANGKOK_LATITUDE, BANGKOK_LONGITUDE, BANGKOK_ZONE, BANGKOK_ALTITUDE_M
        )
        self._sun = place.get_solarposition(times)
        with warnings.catch_warnings():
            # pvlib 0.16 still asks pandas 3 for the old name of `day_of_year`.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._sky = place.get_clearsky(times, solar_position=self._sun)

    def on_roof(self, tilt_deg: float, azimuth_deg: float) -> Series:
        """Irradiance on the roof's plane in W/m2."""
        plane = self._irradiance.get_total_irradiance(
            tilt_deg,
            azimuth_deg,
            self._sun["apparent_zenith"],
            self._sun["azimuth"],
            self._sky["dni"],
            self._sky["ghi"],
            self._sky["dhi"],
        )
        series: Series = plane["poa_global"].fillna(0.0).clip(lower=0.0).to_numpy()
        return series


def _cloud_field(seed: int, days: int) -> Series:
    """Share of the clear sky's light, minute by minute, at the western edge."""
    draw = _generator(seed, 0, 3)
    minutes = days * _MINUTES_PER_DAY + _CLOUD_LAG_STEPS + 1
    hourly: list[float] = []
    state = 0
    for _ in range(minutes // 60 + 2):
        state = int(draw.choice(len(_WEATHER), p=_WEATHER_STEP[state]))
        hourly.append(_WEATHER[state])
    level = np.interp(np.arange(minutes), np.arange(len(hourly)) * 60.0, hourly)
    # Broken skies flicker; clear and overcast ones hardly do.
    flicker = 0.9 * level * (1.0 - level) + 0.01
    return np.clip(level + flicker * _texture(draw, minutes), 0.04, 1.05)


def _texture(draw: np.random.Generator, length: int) -> Series:
    """First-order autoregressive noise of unit variance."""
    shocks = draw.standard_normal(length) * (1.0 - _MEMORY**2) ** 0.5
    remembered = accumulate(shocks.tolist(), lambda before, shock: shock + _MEMORY * before)
    return np.fromiter(remembered, dtype=np.float64, count=length)


def _ambient_temperature(seed: int, days: int, clouds: Series) -> Series:
    """Air temperature: warmest at half past two, cooler under clouds."""
    minute = np.arange(days * _MINUTES_PER_DAY)
    daily = _generator(seed, 0, 4).normal(0.0, 0.8, days).repeat(_MINUTES_PER_DAY)
    cycle = np.cos((minute % _MINUTES_PER_DAY - 870) / _MINUTES_PER_DAY * 2.0 * np.pi)
    ambient: Series = 30.5 + daily + 4.2 * cycle - 1.5 * (1.0 - clouds)
    return ambient


def _days_off(start: date, days: int) -> tuple[bool, ...]:
    """For each day whether it is a weekend or a public holiday in Thailand."""
    import holidays  # noqa: PLC0415 - see the head of the file

    dates = [start + timedelta(days=day) for day in range(days)]
    official = holidays.country_holidays("TH", years={each.year for each in dates})
    return tuple(each.weekday() >= 5 or each in official for each in dates)


def _solar_w(
    seed: int,
    index: int,
    habits: Habits,
    clear_sky: _ClearSky,
    clouds: Series,
    ambient: Series,
) -> Series:
    if not habits.panel_w:
        return np.zeros(len(ambient))
    plane = clear_sky.on_roof(habits.tilt_deg, habits.azimuth_deg)
    arriving = clouds[_CLOUD_LAG_STEPS - habits.cloud_lag :][: len(ambient)]
    own = 0.03 * _texture(_generator(seed, index, 5), len(ambient))
    irradiance = plane * np.clip(arriving + own, 0.03, 1.08)
    cell = ambient + irradiance / NOCT_IRRADIANCE * NOCT_RISE_K
    derating = 1.0 + TEMPERATURE_COEFFICIENT * (cell - 25.0)
    # 14 % for soiling, mismatch, wiring and age: PVWatts' default.
    power: Series = habits.panel_w * irradiance / STANDARD_IRRADIANCE * derating * 0.86
    return power


def _load_w(
    seed: int, index: int, habits: Habits, days_off: Sequence[bool], ambient: Series
) -> Series:
    draw = _generator(seed, index, 6)
    steps = len(ambient)
    hour = np.arange(steps) % _MINUTES_PER_DAY / 60.0
    off = np.repeat(np.asarray(days_off, dtype=np.float64), _MINUTES_PER_DAY)
    shift = draw.normal(0.0, 0.4)
    morning = 800.0 * _peak(hour, 7.5 + 1.5 * off + shift, 1.2)
    evening = 1500.0 * _peak(hour, 18.5 + 2.0 * off + shift, 2.5)
    by_day = np.maximum(0.9 if habits.home_by_day else 0.15, 0.7 * off)
    presence = np.where((hour > 8.5) & (hour < 17.0), by_day, 1.0)
    heat = 1.0 / (1.0 + np.exp(-(ambient - 30.0)))
    cooling = habits.cooling_w * heat * presence
    noise = 1.0 + 0.08 * _texture(draw, steps)
    base = habits.scale * (350.0 + morning + evening * presence)
    load: Series = (base + 0.6 * cooling) * noise + _appliances(draw, steps, presence)
    return np.maximum(load, 40.0)


def _peak(hour: Series, centre: Series, width: float) -> Series:
    """A Gaussian on the circle of the day."""
    distance = (hour - centre + 12.0) % 24.0 - 12.0
    peak: Series = np.exp(-0.5 * (distance / width) ** 2)
    return peak


def _appliances(draw: np.random.Generator, steps: int, presence: Series) -> Series:
    """Kettles, irons, pumps, washing: a few short blocks a day while somebody is in."""
    power = np.zeros(steps)
    for _ in range(int(draw.poisson(7.0 * steps / _MINUTES_PER_DAY))):
        start, length = int(draw.integers(0, steps)), int(draw.integers(4, 35))
        watts = draw.uniform(400.0, 1800.0)
        if draw.random() < presence[start] and 360 < start % _MINUTES_PER_DAY < 1380:
            power[start : start + length] += watts
    return power


def _whole(series: Series) -> list[int]:
    whole: list[int] = np.rint(series).astype(np.int64).tolist()
    return whole
