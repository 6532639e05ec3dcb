"""Meters, panels, batteries and sensors: the rules one by one."""

import pytest

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.devices.models.battery import (
    BatterySpec,
    BatteryState,
    Setpoint,
    accept_setpoint,
    new_battery,
    run_battery,
)
from gridtokenx.devices.models.energy import MWS_PER_WH
from gridtokenx.devices.models.forecast import Outlook, make_forecast
from gridtokenx.devices.models.household import (
    HouseholdSpec,
    advance,
    new_household,
    reading_of,
)
from gridtokenx.devices.models.load import LoadSpec, consumption_mws
from gridtokenx.devices.models.meter import NEW_METER, MeterSpec, record
from gridtokenx.devices.models.profiles import Profile, pack_profiles, unpack_profiles
from gridtokenx.devices.models.sensor import VoltageSpec, measure_mv, voltage_flags
from gridtokenx.devices.models.solar import SolarSpec, generation_mws
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.readings import FLAG_VOLTAGE_HIGH, FLAG_VOLTAGE_LOW

MINUTE = 60_000
HALF_HOUR = 30 * MINUTE
HOUR = 60 * MINUTE
BATTERY = BatterySpec(
    capacity_wh=10_000,
    power_w=2_500,
    round_trip_ppm=900_000,
    min_charge_ppm=100_000,
    max_charge_ppm=950_000,
    standby_w=0,
    inverter_ac_w=4_000,
)
VOLTAGE = VoltageSpec(230_000, 1_000, 0, 100, 207_000, 253_000)


def household(*, solar: bool = False, battery: BatterySpec | None = None) -> HouseholdSpec:
    meter = MeterSpec(0, 5)
    return HouseholdSpec(
        load=LoadSpec(10_000),
        solar=SolarSpec(4_000, 965_000) if solar else None,
        battery=battery,
        meter=meter,
        generation_meter=meter,
        storage_meter=meter,
        voltage=VOLTAGE,
        initial_charge_ppm=500_000,
    )


def flat(load_w: int, solar_w: int = 0, steps: int = 10_080) -> Profile:
    return Profile(0, MINUTE, [load_w] * steps, [solar_w] * steps)


def stored(wh: int) -> BatteryState:
    return BatteryState(wh * MWS_PER_WH, ())


class TestMeter:
    def test_a_kilowatt_for_an_hour_is_a_kilowatt_hour(self) -> None:
        state = NEW_METER
        for _ in range(60):
            state = record(MeterSpec(0, 5), state, 1_000 * MINUTE, MINUTE)
        assert (state.import_wh, state.export_wh, state.import_residue) == (1_000, 0, 0)

    def test_export_goes_to_its_own_register(self) -> None:
        state = record(MeterSpec(0, 5), NEW_METER, -2_000 * HOUR, HOUR)
        assert (state.import_wh, state.export_wh) == (0, 2_000)

    def test_gain_error_is_constant(self) -> None:
        state = record(MeterSpec(10_000, 5), NEW_METER, 1_000 * HOUR, HOUR)
        assert state.import_wh == 1_010

    def test_stands_still_below_the_starting_power(self) -> None:
        assert record(MeterSpec(0, 5), NEW_METER, 4 * MINUTE, MINUTE) == NEW_METER
        assert record(MeterSpec(0, 5), NEW_METER, 5 * MINUTE, MINUTE) != NEW_METER


class TestPanelsAndLoad:
    def test_inverter_loses_a_little_and_clips(self) -> None:
        spec = SolarSpec(4_000, 965_000)
        assert generation_mws(spec, 1_000, 1_000) == 965_000
        assert generation_mws(spec, 5_000, 1_000) == 4_000_000

    def test_the_breaker_limits_the_load(self) -> None:
        assert consumption_mws(LoadSpec(3_000), 9_999, 1) == 3_000


class TestBattery:
    def test_each_leg_has_the_square_root(self) -> None:
        charged, flow = run_battery(BATTERY, stored(5_000), 0, HOUR, -1_000 * HOUR, 0)
        assert flow.charge_mws == 1_000 * HOUR
        assert charged.stored_mws // MWS_PER_WH == 5_000 + 948
        drained, flow = run_battery(BATTERY, stored(5_000), 0, HOUR, 1_000 * HOUR, 0)
        assert flow.discharge_mws == 1_000 * HOUR
        assert drained.stored_mws // MWS_PER_WH == 5_000 - 1_055

    def test_stays_between_its_limits(self) -> None:
        full, _ = run_battery(BATTERY, stored(9_400), 0, HOUR, -2_500 * HOUR, 0)
        assert BATTERY.ceiling_mws - 1 <= full.stored_mws <= BATTERY.ceiling_mws
        empty, flow = run_battery(BATTERY, stored(1_100), 0, HOUR, 2_500 * HOUR, 0)
        assert BATTERY.floor_mws <= empty.stored_mws <= BATTERY.floor_mws + 1
        assert flow.discharge_mws < 100 * MWS_PER_WH

    def test_shares_the_inverter_with_the_panels(self) -> None:
        _, flow = run_battery(BATTERY, stored(9_000), 0, HOUR, 2_500 * HOUR, 3_000 * HOUR)
        assert flow.discharge_mws == 1_000 * HOUR

    def test_standby_comes_from_the_cells_then_from_the_house(self) -> None:
        spec = BatterySpec(10_000, 2_500, 900_000, 100_000, 950_000, 10, 4_000)
        state, flow = run_battery(spec, stored(2_000), 0, HOUR, 0, 0)
        assert state.stored_mws == stored(1_990).stored_mws
        assert (flow.standby_mws, flow.loss_mws) == (0, 10 * HOUR)
        state, flow = run_battery(spec, stored(1_000), 0, HOUR, 0, 0)
        assert (state.stored_mws, flow.standby_mws) == (stored(1_000).stored_mws, 10 * HOUR)

    def test_a_setpoint_holds_for_its_window_and_expires(self) -> None:
        order = Setpoint(-1_000, HALF_HOUR, HOUR)
        state = accept_setpoint(BATTERY, stored(5_000), order, 0, MINUTE)
        _, before = run_battery(BATTERY, state, 0, MINUTE, 0, 0)
        _, during = run_battery(BATTERY, state, HALF_HOUR, MINUTE, 500 * MINUTE, 0)
        state, _ = run_battery(BATTERY, state, HOUR - MINUTE, MINUTE, 0, 0)
        _, after = run_battery(BATTERY, state, HOUR, MINUTE, 500 * MINUTE, 0)
        assert before.charge_mws == 0
        assert during.charge_mws == 1_000 * MINUTE
        assert state.setpoints == ()
        assert (after.charge_mws, after.discharge_mws) == (0, 500 * MINUTE)

    def test_energy_is_not_promised_twice(self) -> None:
        # 5 kWh above the floor gives 4.74 kWh on the outside: two deliveries of 2.4 kWh are too many.
        first, second = Setpoint(2_400, HOUR, 2 * HOUR), Setpoint(2_400, 3 * HOUR, 4 * HOUR)
        state = accept_setpoint(BATTERY, stored(6_000), first, 0, MINUTE)
        with pytest.raises(RemoteFault) as refused:
            accept_setpoint(BATTERY, state, second, 0, MINUTE)
        assert refused.value.reason == "setpoint-energy"
        accept_setpoint(BATTERY, state, Setpoint(2_300, 3 * HOUR, 4 * HOUR), 0, MINUTE)

    def test_the_household_leaves_promised_energy_alone(self) -> None:
        order = Setpoint(2_500, 2 * HOUR, 3 * HOUR)
        state = accept_setpoint(BATTERY, stored(4_000), order, 0, MINUTE)
        delivered = 0
        for minute in range(180):
            state, flow = run_battery(BATTERY, state, minute * MINUTE, MINUTE, 2_000 * MINUTE, 0)
            delivered += flow.discharge_mws if minute >= 120 else 0
        assert delivered == 2_500 * HOUR

    @pytest.mark.parametrize(
        ("order", "reason"),
        [
            (Setpoint(1_000, 0, HOUR), "setpoint-window"),
            (Setpoint(1_000, 2 * HOUR, 2 * HOUR), "setpoint-window"),
            (Setpoint(1_000, 2 * HOUR + 1, 3 * HOUR), "setpoint-window"),
            (Setpoint(2_501, 2 * HOUR, 3 * HOUR), "setpoint-power"),
            (Setpoint(-2_500, 2 * HOUR, 4 * HOUR), "setpoint-room"),
            (Setpoint(100, 4 * HOUR, 6 * HOUR), "setpoint-overlap"),
        ],
    )
    def test_refuses_what_it_cannot_keep(self, order: Setpoint, reason: str) -> None:
        held = accept_setpoint(
            BATTERY, stored(6_000), Setpoint(100, 5 * HOUR, 7 * HOUR), MINUTE, MINUTE
        )
        with pytest.raises(RemoteFault) as refused:
            accept_setpoint(BATTERY, held, order, MINUTE, MINUTE)
        assert refused.value.reason == reason

    def test_is_delivered_within_its_limits(self) -> None:
        assert new_battery(BATTERY, 0).stored_mws == BATTERY.floor_mws
        assert new_battery(BATTERY, 1_000_000).stored_mws == BATTERY.ceiling_mws


class TestHousehold:
    def test_panels_serve_the_house_before_the_grid(self) -> None:
        spec = household(solar=True)
        state = advance(spec, new_household(spec, 0), flat(930, 2_000), HOUR)
        assert (state.meter.import_wh, state.meter.export_wh) == (0, 1_000)
        assert state.generation_meter.export_wh == 1_930

    def test_the_battery_takes_the_surplus_first(self) -> None:
        spec = household(solar=True, battery=BATTERY)
        state = advance(spec, new_household(spec, 0), flat(930, 2_000), HOUR)
        assert state.meter == NEW_METER
        assert state.storage_meter.import_wh == 1_000

    def test_readings_show_each_device_its_own_registers(self) -> None:
        spec = household(solar=True, battery=BATTERY)
        state = advance(spec, new_household(spec, 0), flat(930, 2_000), HOUR)
        meter = reading_of(spec, state, DeviceKind.METER)
        panels = reading_of(spec, state, DeviceKind.SOLAR)
        battery = reading_of(spec, state, DeviceKind.BATTERY)
        assert meter.boundary_grid_ms == HOUR
        assert (meter.import_wh, meter.export_wh, meter.charge_wh) == (0, 0, 0)
        assert (panels.export_wh, panels.power_w) == (1_930, -1_930)
        assert (battery.import_wh, battery.power_w, battery.charge_wh) == (1_000, 1_000, 5_948)

    def test_a_profile_begins_again_after_its_end(self) -> None:
        profile = Profile(0, MINUTE, [60, 120], [0, 0])
        assert [profile.at(minute * MINUTE)[0] for minute in range(5)] == [60, 120, 60, 120, 60]

    def test_nothing_happens_before_a_whole_step_has_passed(self) -> None:
        spec = household()
        state = new_household(spec, 0)
        assert advance(spec, state, flat(1_000), MINUTE - 1) == state


class TestVoltage:
    def test_load_lowers_it_and_feed_in_raises_it(self) -> None:
        assert measure_mv(VOLTAGE, 5_000) == 225_000
        assert measure_mv(VOLTAGE, -5_000) == 235_000

    def test_the_band_is_flagged(self) -> None:
        assert voltage_flags(VOLTAGE, 0) == 0
        assert voltage_flags(VOLTAGE, 24_000) == FLAG_VOLTAGE_LOW
        assert voltage_flags(VOLTAGE, -24_000) == FLAG_VOLTAGE_HIGH


class TestProfileFile:
    def test_reads_back_what_was_written(self) -> None:
        profiles = [
            Profile(60, MINUTE, [1, 2, 3], [4, 5, 6]),
            Profile(60, MINUTE, [7] * 3, [8] * 3),
        ]
        read = unpack_profiles(pack_profiles(60, MINUTE, profiles), "x")
        assert [list(each.load_w) for each in read.households] == [[1, 2, 3], [7, 7, 7]]
        assert [list(each.solar_w) for each in read.households] == [[4, 5, 6], [8, 8, 8]]
        assert {(each.start_grid_ms, each.step_ms) for each in read.households} == {(60, MINUTE)}

    def test_refuses_every_damaged_byte_and_every_cut(self) -> None:
        data = pack_profiles(60, MINUTE, [Profile(60, MINUTE, [1, 2], [3, 4])])
        for at in range(len(data)):
            changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with pytest.raises(LocalFault, match=r"p\.bin"):
                unpack_profiles(changed, "p.bin")
            with pytest.raises(LocalFault, match=r"p\.bin"):
                unpack_profiles(data[:at], "p.bin")

    def test_refuses_a_negative_power(self) -> None:
        data = pack_profiles(0, MINUTE, [Profile(0, MINUTE, [-1], [0])])
        with pytest.raises(LocalFault, match="negative"):
            unpack_profiles(data, "p.bin")


class TestForecast:
    PROFILE = Profile(0, MINUTE, [1_000] * 2_880, [0] * 1_440 + [2_000] * 1_440)

    def test_is_repeatable_and_differs_between_neighbours(self) -> None:
        first = make_forecast(self.PROFILE, b"s", 0, 100_000, 100_000)
        again = make_forecast(self.PROFILE, b"s", 0, 100_000, 100_000)
        other = make_forecast(self.PROFILE, b"s", 1, 100_000, 100_000)
        assert first == again
        assert first.load_w != other.load_w

    def test_errs_but_within_its_bounds(self) -> None:
        forecast = make_forecast(self.PROFILE, b"s", 0, 100_000, 100_000)
        assert len(forecast.load_w) == 96
        assert all(800 <= watts <= 1_200 for watts in forecast.load_w)
        assert len(set(forecast.load_w)) > 40

    def test_promises_no_sun_at_night(self) -> None:
        forecast = make_forecast(self.PROFILE, b"s", 0, 100_000, 100_000)
        assert not any(forecast.solar_w[:48])
        assert all(forecast.solar_w[50:94])

    def test_the_outlook_plans_each_interval_the_same_whenever_it_is_asked(self) -> None:
        spec = household(solar=True, battery=BATTERY)
        forecast = make_forecast(self.PROFILE, b"s", 0, 0, 0)
        outlook = Outlook(spec, forecast, 0)
        forward = [outlook.net_wh(interval) for interval in range(96)]
        backward = [Outlook(spec, forecast, 0).net_wh(interval) for interval in reversed(range(96))]
        assert forward == backward[::-1]
        assert outlook.net_wh(-1) == 0
        assert len(set(forward)) > 1
