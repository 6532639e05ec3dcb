"""The indicative price on the reference's vectors, and its laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.consortium.market.indicative import (
    DEFAULT_INDICATIVE,
    IndicativeParameters,
    indicative_price,
)

VOLUMES_WH = st.integers(0, 10**15)
PARAMETERS = st.builds(
    IndicativeParameters,
    balance_uwatt_per_kwh=st.integers(0, 10**8),
    range_uwatt_per_kwh=st.integers(0, 10**8),
    sensitivity_milli=st.integers(0, 20_000),
    min_ratio_ppm=st.integers(1, 1_000_000),
    update_grid_ms=st.just(300_000),
)


@pytest.mark.parametrize(
    ("supply_wh", "demand_wh", "price"),
    [
        (1, 100, 5_727_746),
        (1, 2, 4_771_726),
        (1, 1, 4_000_000),
        (2, 1, 3_228_274),
        (100, 1, 2_272_254),
        (0, 0, 4_000_000),
        (0, 7, 5_727_746),
        (7, 0, 2_272_254),
        (1, 1_000, 5_727_746),
    ],
)
def test_reference_vectors(supply_wh: int, demand_wh: int, price: int) -> None:
    assert indicative_price(DEFAULT_INDICATIVE, supply_wh, demand_wh) == price


@given(PARAMETERS, VOLUMES_WH, VOLUMES_WH)
def test_it_is_the_nearest_micro_watt(
    parameters: IndicativeParameters, supply_wh: int, demand_wh: int
) -> None:
    low = parameters.min_ratio_ppm / 1e6
    ratio = 1.0 if supply_wh == demand_wh else supply_wh / demand_wh if demand_wh else math.inf
    log = math.log(max(low, min(1 / low, ratio)))
    moved = 2 / math.pi * math.atan(parameters.sensitivity_milli / 1e3 * log)
    exact = parameters.balance_uwatt_per_kwh - parameters.range_uwatt_per_kwh * moved
    price = indicative_price(parameters, supply_wh, demand_wh)
    assert abs(price - exact) <= 0.5 + 1e-5


@given(PARAMETERS, VOLUMES_WH, VOLUMES_WH)
def test_exchanging_supply_and_demand_mirrors_the_price(
    parameters: IndicativeParameters, supply_wh: int, demand_wh: int
) -> None:
    one = indicative_price(parameters, supply_wh, demand_wh)
    other = indicative_price(parameters, demand_wh, supply_wh)
    assert one + other == 2 * parameters.balance_uwatt_per_kwh


@given(PARAMETERS, VOLUMES_WH, VOLUMES_WH, st.integers(1, 10**12))
def test_more_supply_never_raises_it(
    parameters: IndicativeParameters, supply_wh: int, demand_wh: int, more_wh: int
) -> None:
    if supply_wh == demand_wh == 0:
        return  # an empty book says nothing, and is p_balance by decision
    before = indicative_price(parameters, supply_wh, demand_wh)
    assert indicative_price(parameters, supply_wh + more_wh, demand_wh) <= before
