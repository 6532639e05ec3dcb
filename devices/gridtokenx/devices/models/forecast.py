"""What a household's agent believes will happen: never what its meter will say.

A forecast is made when the network is set up, from the profile, by forgetting detail (each interval
gets its mean; solar is smeared over its neighbours, because nobody foresees a cloud) and adding
errors that are fixed per household: a bias for the day and an error per interval. It is again a
profile, with half-hour steps, and goes into the agents' own directory; the true profile never does.

Planning then runs the household's own model over the forecast, battery included.
"""

from collections.abc import Sequence
from typing import Final

from gridtokenx.core.gridtime import DAY_MS, INTERVAL_MS
from gridtokenx.core.keys import sha256
from gridtokenx.devices.models.energy import MWS_PER_WH, PPM
from gridtokenx.devices.models.household import (
    HouseholdSpec,
    HouseholdState,
    ideal_spec,
    new_household,
    run_step,
)
from gridtokenx.devices.models.profiles import Profile

_SMEAR: Final = (1, 2, 3, 2, 1)
"""Weights of the intervals around one, in its solar forecast."""


def make_forecast(
    profile: Profile, seed: bytes, household: int, day_error_ppm: int, interval_error_ppm: int
) -> Profile:
    """The forecast of one household.

    Args:
        profile: its true profile; starts on an interval boundary.
        seed: of the run; the same seed gives the same forecast on every processor.
        household: its index, so that neighbours err differently.
        day_error_ppm: largest bias of a whole day.
        interval_error_ppm: largest error of one interval, on top.
    """
    assert profile.start_grid_ms % INTERVAL_MS == 0, "profiles start on an interval boundary"
    per_interval = INTERVAL_MS // profile.step_ms
    load = _means(profile.load_w, per_interval)
    solar = _smeared(_means(profile.solar_w, per_interval))
    errors = (day_error_ppm, interval_error_ppm)
    return Profile(
        start_grid_ms=profile.start_grid_ms,
        step_ms=INTERVAL_MS,
        load_w=_disturbed(load, sha256(b"load", seed, household.to_bytes(4, "big")), errors),
        solar_w=_disturbed(solar, sha256(b"solar", seed, household.to_bytes(4, "big")), errors),
    )


def _means(series: Sequence[int], width: int) -> list[int]:
    return [sum(series[at : at + width]) // width for at in range(0, len(series), width)]


def _smeared(series: Sequence[int]) -> list[int]:
    reach = len(_SMEAR) // 2
    smeared: list[int] = []
    for at, value in enumerate(series):
        around = (series[(at + shift) % len(series)] for shift in range(-reach, reach + 1))
        weighted = sum(weight * each for weight, each in zip(_SMEAR, around, strict=True))
        # Night stays night: a forecast that promises sun after sunset fools nobody.
        smeared.append(weighted // sum(_SMEAR) if value else 0)
    return smeared


def _disturbed(series: Sequence[int], seed: bytes, errors_ppm: tuple[int, int]) -> list[int]:
    per_day = DAY_MS // INTERVAL_MS
    day_error, interval_error = errors_ppm
    disturbed: list[int] = []
    for at, value in enumerate(series):
        bias = _noise_ppm(seed, b"day", at // per_day, day_error)
        error = _noise_ppm(seed, b"interval", at, interval_error)
        disturbed.append(max(0, value * (PPM + bias + error) // PPM))
    return disturbed


def _noise_ppm(seed: bytes, what: bytes, index: int, bound_ppm: int) -> int:
    """A number in [-bound, bound], denser in the middle (the mean of two uniform ones)."""
    digest = sha256(what, index.to_bytes(8, "big"), seed)
    width = 2 * bound_ppm + 1
    first = int.from_bytes(digest[:16], "big") % width
    second = int.from_bytes(digest[16:], "big") % width
    return (first + second) // 2 - bound_ppm


class Outlook:
    """A household's plan: its own model run over its forecast, one interval at a time.

    The battery's expected charge depends on all that came before, so the plan is kept as it grows;
    asking for an interval that was passed starts it again from the beginning.

    Args:
        spec: of the household.
        forecast: of the household; its steps are intervals.
        start_grid_ms: when its meters were installed; an interval boundary.
    """

    def __init__(self, spec: HouseholdSpec, forecast: Profile, start_grid_ms: int) -> None:
        self._spec = ideal_spec(spec)
        self._forecast = forecast
        self._start_grid_ms = start_grid_ms
        self._state = new_household(self._spec, start_grid_ms)
        self._net_wh = 0

    def net_wh(self, interval: int) -> int:
        """Expected net import of an interval, in Wh; negative is export, 0 before the start."""
        start = interval * INTERVAL_MS
        if start < self._start_grid_ms:
            return 0
        if start + INTERVAL_MS < self._state.grid_ms:
            self._state = new_household(self._spec, self._start_grid_ms)
        while self._state.grid_ms <= start:
            self._state = self._step(self._state)
        return self._net_wh

    def _step(self, state: HouseholdState) -> HouseholdState:
        load_w, solar_w = self._forecast.at(state.grid_ms)
        following, flows = run_step(self._spec, state, load_w, solar_w, INTERVAL_MS)
        magnitude = abs(flows.net_mws) // MWS_PER_WH
        self._net_wh = magnitude if flows.net_mws >= 0 else -magnitude
        return following
