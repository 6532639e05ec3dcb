"""The neighbourhood that `init` draws: plausible, repeatable, and clouded together."""

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from statistics import correlation

import pytest

from gridtokenx.devices.fleet.profiles import Neighbourhood, make_profiles, plan_neighbourhood
from gridtokenx.devices.models.profiles import STEP_MS, Profile, pack_profiles

WEDNESDAY = date(2026, 4, 22)
DAY = 1440


@pytest.fixture(scope="module")
def neighbourhood() -> Neighbourhood:
    return plan_neighbourhood(seed=7, households=8, solar=4, batteries=2)


@pytest.fixture(scope="module")
def profiles(neighbourhood: Neighbourhood) -> tuple[Profile, ...]:
    return make_profiles(7, WEDNESDAY, 2, neighbourhood)


def changes(series: Sequence[int]) -> list[int]:
    noon = series[600:840]
    return [later - earlier for earlier, later in pairwise(noon)]


def test_panels_and_batteries_are_spread(neighbourhood: Neighbourhood) -> None:
    assert [spec.solar is not None for spec in neighbourhood.specs] == [True, False] * 4
    batteries = [spec.battery is not None for spec in neighbourhood.specs]
    assert sum(batteries) == 2
    assert all(spec.solar for spec, has in zip(neighbourhood.specs, batteries, strict=True) if has)


def test_starts_at_local_midnight_in_minutes(profiles: tuple[Profile, ...]) -> None:
    # 22 April 2026 00:00 in Bangkok is 21 April 17:00 UTC.
    assert {each.start_grid_ms for each in profiles} == {1_776_790_800_000}
    assert {each.step_ms for each in profiles} == {STEP_MS}
    assert {len(each.load_w) for each in profiles} == {2 * DAY}


def test_the_same_seed_gives_the_same_bytes(
    neighbourhood: Neighbourhood, profiles: tuple[Profile, ...]
) -> None:
    start = profiles[0].start_grid_ms
    again = make_profiles(7, WEDNESDAY, 2, neighbourhood)
    other = make_profiles(8, WEDNESDAY, 2, neighbourhood)
    assert pack_profiles(start, STEP_MS, again) == pack_profiles(start, STEP_MS, profiles)
    assert pack_profiles(start, STEP_MS, other) != pack_profiles(start, STEP_MS, profiles)


def test_the_sun_shines_by_day_on_panels_only(
    neighbourhood: Neighbourhood, profiles: tuple[Profile, ...]
) -> None:
    for spec, profile in zip(neighbourhood.specs, profiles, strict=True):
        night = list(profile.solar_w[: 5 * 60]) + list(profile.solar_w[19 * 60 : DAY])
        assert not any(night)
        assert any(profile.solar_w) == (spec.solar is not None)


def test_a_kilowatt_of_panels_gives_a_plausible_day(
    neighbourhood: Neighbourhood, profiles: tuple[Profile, ...]
) -> None:
    for habits, profile in zip(neighbourhood.habits, profiles, strict=True):
        if habits.panel_w:
            kwh_per_kwp = sum(profile.solar_w) / 60 / 2 / habits.panel_w
            assert 2.0 < kwh_per_kwp < 6.0


def test_households_consume_like_households(profiles: tuple[Profile, ...]) -> None:
    for profile in profiles:
        assert 5_000 < sum(profile.load_w) / 60 / 2 < 40_000
        assert min(profile.load_w) >= 40
        assert max(profile.load_w) < 10_000


def test_neighbours_share_their_clouds(profiles: tuple[Profile, ...]) -> None:
    first, last = profiles[0].solar_w, profiles[6].solar_w
    delay = 6 * 12 // 7
    together = correlation(changes(first[: -delay or None]), changes(last[delay:]))
    assert together > 0.5
