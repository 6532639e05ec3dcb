"""A replica's wrong clock: its machine hears another time, and its timers still fire when they should."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.machine import CancelTimer, SetTimer
from gridtokenx.lab.chaos.skew import ClockFault, Skew
from gridtokenx.lab.faults import ClockDrift, ClockJump, ClockOffset

NOW = 1_776_823_200_000


def test_a_right_clock_changes_nothing() -> None:
    skew, effects = Skew(), [SetTimer("a", NOW + 5), CancelTimer("b")]
    assert skew.local_ms(NOW) == NOW
    assert skew.back(NOW, effects) is effects


@pytest.mark.parametrize("offset_ms", [-4_000, 4_000])
def test_an_offset_ends_and_a_jump_stays(offset_ms: int) -> None:
    skew = Skew()
    offset, jump = ClockOffset(nodes=(0,), offset_ms=offset_ms), ClockJump(nodes=(0,), jump_ms=7)
    skew.begin(NOW, offset)
    skew.begin(NOW, jump)
    assert skew.local_ms(NOW) == NOW + offset_ms + 7
    skew.end(NOW, offset)
    skew.end(NOW, jump)
    assert skew.local_ms(NOW) == NOW + 7


def test_a_drift_grows_and_leaves_what_it_grew_to() -> None:
    skew, drift = Skew(), ClockDrift(nodes=(0,), drift_ppm=100_000)
    skew.begin(NOW, drift)
    assert skew.local_ms(NOW + 1_000) == NOW + 1_100
    skew.end(NOW + 1_000, drift)
    assert skew.local_ms(NOW + 5_000) == NOW + 5_100


@given(
    st.sampled_from(
        (
            lambda value: ClockOffset(nodes=(0,), offset_ms=value),
            lambda value: ClockDrift(nodes=(0,), drift_ppm=value),
        )
    ),
    st.integers(-400_000, 400_000),
    st.integers(0, 60_000),
)
def test_a_timer_fires_when_the_machine_s_clock_shows_its_time(
    make: Callable[[int], ClockFault], value: int, wait_ms: int
) -> None:
    skew = Skew()
    skew.begin(NOW - 10_000, make(value))
    at_ms = skew.local_ms(NOW) + wait_ms
    (timer,) = skew.back(NOW, [SetTimer("t", at_ms)])
    assert isinstance(timer, SetTimer)
    assert abs(skew.local_ms(timer.at_ms) - at_ms) <= 2
