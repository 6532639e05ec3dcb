"""Laws of the device models, on random households, profiles and moments of looking."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.stages import examples

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.devices.models.battery import (
    BatterySpec,
    BatteryState,
    Setpoint,
    accept_setpoint,
    run_battery,
)
from gridtokenx.devices.models.energy import MWS_PER_WH, PPM
from gridtokenx.devices.models.household import (
    HouseholdSpec,
    HouseholdState,
    advance,
    new_household,
    trace,
)
from gridtokenx.devices.models.load import LoadSpec
from gridtokenx.devices.models.meter import NEW_METER, MeterSpec, record
from gridtokenx.devices.models.profiles import Profile
from gridtokenx.devices.models.sensor import VoltageSpec
from gridtokenx.devices.models.solar import SolarSpec

MINUTE = 60_000
meters = st.builds(MeterSpec, st.integers(-10_000, 10_000), st.integers(0, 20))
batteries = st.builds(
    BatterySpec,
    capacity_wh=st.integers(100, 20_000),
    power_w=st.integers(1, 5_000),
    round_trip_ppm=st.integers(500_000, 1_000_000),
    min_charge_ppm=st.just(100_000),
    max_charge_ppm=st.just(950_000),
    standby_w=st.integers(0, 30),
    inverter_ac_w=st.integers(1, 6_000),
)
households = st.builds(
    HouseholdSpec,
    load=st.builds(LoadSpec, st.integers(1_000, 12_000)),
    solar=st.none() | st.builds(SolarSpec, st.integers(0, 6_000), st.integers(900_000, 1_000_000)),
    battery=st.none() | batteries,
    meter=meters,
    generation_meter=meters,
    storage_meter=meters,
    voltage=st.just(VoltageSpec(230_000, 1_000, 0, 100, 207_000, 253_000)),
    initial_charge_ppm=st.integers(0, PPM),
)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    steps = draw(st.integers(1, 60))
    powers = st.lists(st.integers(0, 8_000), min_size=steps, max_size=steps)
    return Profile(0, MINUTE, draw(powers), draw(powers))


@given(households, profiles(), st.integers(1, 120))
def test_energy_is_conserved_in_every_step(
    spec: HouseholdSpec, profile: Profile, steps: int
) -> None:
    state = new_household(spec, 0)
    for following, flows in trace(spec, state, profile, steps * MINUTE):
        entering = flows.net_mws + flows.generation_mws + state.battery.stored_mws
        leaving = flows.consumption_mws + following.battery.stored_mws + flows.loss_mws
        assert entering == leaving
        assert flows.loss_mws >= 0
        assert not (flows.charge_mws and flows.discharge_mws)
        state = following
    assert state.grid_ms == steps * MINUTE


@given(households, profiles(), st.integers(1, 120))
def test_limits_hold_in_every_step(spec: HouseholdSpec, profile: Profile, steps: int) -> None:
    state = new_household(spec, 0)
    for following, flows in trace(spec, state, profile, steps * MINUTE):
        for before, after in (
            (state.meter, following.meter),
            (state.generation_meter, following.generation_meter),
            (state.storage_meter, following.storage_meter),
        ):
            assert after.import_wh >= before.import_wh
            assert after.export_wh >= before.export_wh
        if spec.battery is not None:
            limit = spec.battery.inverter_ac_w * MINUTE
            assert spec.battery.floor_mws <= following.battery.stored_mws
            assert following.battery.stored_mws <= spec.battery.ceiling_mws
            assert flows.discharge_mws + flows.generation_mws <= max(limit, flows.generation_mws)
            assert flows.charge_mws - flows.generation_mws <= limit
        state = following


@given(households, profiles(), st.lists(st.integers(0, 7_200_000), max_size=12))
def test_one_long_catch_up_equals_many_short_ones_with_crashes_between(
    spec: HouseholdSpec, profile: Profile, moments: list[int]
) -> None:
    end = 120 * MINUTE
    state = new_household(spec, 0)
    for moment in sorted(moments):
        state = advance(spec, state, profile, moment)
        state = decode(encode(state), HouseholdState)
    assert advance(spec, state, profile, end) == advance(spec, new_household(spec, 0), profile, end)


@given(meters, st.lists(st.integers(-10_000, 10_000), max_size=200))
def test_a_meter_is_within_its_class_and_loses_no_energy_to_rounding(
    spec: MeterSpec, powers_w: list[int]
) -> None:
    state, counted = NEW_METER, 0
    for power_w in powers_w:
        state = record(spec, state, power_w * MINUTE, MINUTE)
        counted += power_w * MINUTE if abs(power_w) >= spec.starting_power_w else 0
    imported = state.import_wh * MWS_PER_WH * PPM + state.import_residue
    exported = state.export_wh * MWS_PER_WH * PPM + state.export_residue
    assert imported - exported == counted * (PPM + spec.gain_ppm)
    assert max(state.import_residue, state.export_residue) < MWS_PER_WH * PPM


setpoints = st.builds(
    lambda power_w, start, length: Setpoint(power_w, start * MINUTE, (start + length) * MINUTE),
    st.integers(-5_000, 5_000),
    st.integers(0, 40),
    st.integers(1, 20),
)


@settings(max_examples=examples(100))
@given(
    batteries,
    st.integers(100_000, 950_000),
    st.lists(setpoints, max_size=6),
    st.lists(st.integers(-6_000, 6_000), min_size=64, max_size=64),
)
def test_every_accepted_delivery_and_charge_is_kept_whatever_the_household_does(
    spec: BatterySpec, charge_ppm: int, orders: list[Setpoint], deficits_w: list[int]
) -> None:
    stored = max(spec.floor_mws, spec.capacity_wh * MWS_PER_WH * charge_ppm // PPM)
    state = BatteryState(min(stored, spec.ceiling_mws), ())
    accepted = []
    for order in orders:
        try:
            state = accept_setpoint(spec, state, order, 0, MINUTE)
        except RemoteFault:
            continue
        accepted.append(order)
    assume(accepted)
    for minute, deficit_w in enumerate(deficits_w):
        now = minute * MINUTE
        state, flow = run_battery(spec, state, now, MINUTE, deficit_w * MINUTE, 0)
        for order in accepted:
            if order.start_grid_ms <= now < order.end_grid_ms:
                given_mws = flow.discharge_mws - flow.charge_mws
                assert given_mws == order.power_w * MINUTE
