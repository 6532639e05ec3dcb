"""A household: load, panels, battery, and the meters that see them.

Law of the file: in every step, and exactly,

    import + generation + stored before  =  export + consumption + stored after + losses

The grid meter sees the net of the house, after self-consumption; the generation sub-meter sees the
inverter's output before it (certificates count generation, not export, which may be a battery
charged from the grid); the storage meter sees what went into and came out of the battery.

`advance` runs whole steps only, so one long catch-up is the same computation as many short ones.
"""

from collections.abc import Iterator
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Int64, Millis, UInt63
from gridtokenx.devices.models.battery import (
    BatteryFlow,
    BatterySpec,
    BatteryState,
    new_battery,
    run_battery,
)
from gridtokenx.devices.models.energy import MWS_PER_WH, PPM, Spec, mean_power_w
from gridtokenx.devices.models.load import LoadSpec, consumption_mws
from gridtokenx.devices.models.meter import NEW_METER, MeterSpec, MeterState, record
from gridtokenx.devices.models.profiles import Profile
from gridtokenx.devices.models.sensor import VoltageSpec, voltage_flags
from gridtokenx.devices.models.solar import SolarSpec, generation_mws
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.readings import SubmitReading

_NO_BATTERY: Final = BatteryState(0, ())
_IDLE: Final = BatteryFlow(0, 0, 0, 0)


class HouseholdSpec(Spec, frozen=True):
    """Everything about a household that does not change."""

    load: LoadSpec
    solar: SolarSpec | None
    battery: BatterySpec | None
    meter: MeterSpec
    generation_meter: MeterSpec
    storage_meter: MeterSpec
    voltage: VoltageSpec
    initial_charge_ppm: UInt63
    """State of charge with which the battery was delivered."""


class HouseholdState(Wire, frozen=True):
    """Everything about a household that a crash must not lose."""

    grid_ms: Millis
    """The state holds at this grid time: a multiple of the profile's step."""
    meter: MeterState
    generation_meter: MeterState
    storage_meter: MeterState
    battery: BatteryState
    power_w: Int64
    """Mean net power of the last step; positive is import."""
    generation_w: Int64
    """Mean generation of the last step."""
    storage_w: Int64
    """Mean battery power of the last step; positive is charging."""


class Flows(Wire, frozen=True):
    """Energies of one step, true ones: meters see them with their errors."""

    consumption_mws: int
    """Load, and standby that the cells could not serve."""
    generation_mws: int
    charge_mws: int
    discharge_mws: int
    loss_mws: int
    """Heat inside the battery and its inverter."""

    @property
    def net_mws(self) -> int:
        """What the grid delivers; negative when the house feeds in."""
        taken = self.consumption_mws + self.charge_mws
        return taken - self.generation_mws - self.discharge_mws


def new_household(spec: HouseholdSpec, grid_ms: int) -> HouseholdState:
    """A household on the day its meters were installed."""
    battery = _NO_BATTERY
    if spec.battery is not None:
        battery = new_battery(spec.battery, spec.initial_charge_ppm)
    return HouseholdState(grid_ms, NEW_METER, NEW_METER, NEW_METER, battery, 0, 0, 0)


def advance(
    spec: HouseholdSpec, state: HouseholdState, profile: Profile, until_grid_ms: int
) -> HouseholdState:
    """The household after every whole step that ends at or before `until_grid_ms`."""
    for following, _ in trace(spec, state, profile, until_grid_ms):
        state = following
    return state


def trace(
    spec: HouseholdSpec, state: HouseholdState, profile: Profile, until_grid_ms: int
) -> Iterator[tuple[HouseholdState, Flows]]:
    """`advance`, step by step, with the true flows of each."""
    while state.grid_ms + profile.step_ms <= until_grid_ms:
        load_w, solar_w = profile.at(state.grid_ms)
        state, flows = run_step(spec, state, load_w, solar_w, profile.step_ms)
        yield state, flows


def run_step(
    spec: HouseholdSpec, state: HouseholdState, load_w: int, solar_w: int, duration_ms: int
) -> tuple[HouseholdState, Flows]:
    """One step at constant load and panel power."""
    consumed = consumption_mws(spec.load, load_w, duration_ms)
    generated = 0
    if spec.solar is not None:
        generated = generation_mws(spec.solar, solar_w, duration_ms)
    battery, flow = state.battery, _IDLE
    if spec.battery is not None:
        deficit = consumed - generated
        battery, flow = run_battery(
            spec.battery, battery, state.grid_ms, duration_ms, deficit, generated
        )
    flows = Flows(
        consumption_mws=consumed + flow.standby_mws,
        generation_mws=generated,
        charge_mws=flow.charge_mws,
        discharge_mws=flow.discharge_mws,
        loss_mws=flow.loss_mws,
    )
    return _metered(spec, state, battery, flows, duration_ms), flows


def _metered(
    spec: HouseholdSpec,
    state: HouseholdState,
    battery: BatteryState,
    flows: Flows,
    duration_ms: int,
) -> HouseholdState:
    stored = flows.charge_mws - flows.discharge_mws
    generated = flows.generation_mws
    return HouseholdState(
        grid_ms=state.grid_ms + duration_ms,
        meter=record(spec.meter, state.meter, flows.net_mws, duration_ms),
        generation_meter=record(
            spec.generation_meter, state.generation_meter, -generated, duration_ms
        ),
        storage_meter=record(spec.storage_meter, state.storage_meter, stored, duration_ms),
        battery=battery,
        power_w=mean_power_w(flows.net_mws, duration_ms),
        generation_w=mean_power_w(generated, duration_ms),
        storage_w=mean_power_w(stored, duration_ms),
    )


def reading_of(spec: HouseholdSpec, state: HouseholdState, kind: DeviceKind) -> SubmitReading:
    """What one of the household's devices says at the state's time, which is a boundary."""
    registers, power_w = _view(state, kind)
    has_charge = kind is DeviceKind.BATTERY
    return SubmitReading(
        boundary_grid_ms=state.grid_ms,
        import_wh=registers.import_wh,
        export_wh=registers.export_wh,
        power_w=power_w,
        charge_wh=state.battery.stored_mws // MWS_PER_WH if has_charge else 0,
        flags=voltage_flags(spec.voltage, state.power_w) if kind is DeviceKind.METER else 0,
    )


def _view(state: HouseholdState, kind: DeviceKind) -> tuple[MeterState, int]:
    if kind is DeviceKind.METER:
        return state.meter, state.power_w
    if kind is DeviceKind.SOLAR:
        return state.generation_meter, -state.generation_w
    return state.storage_meter, state.storage_w


def ideal_spec(spec: HouseholdSpec) -> HouseholdSpec:
    """The same household with perfect meters: what its owner assumes when planning."""
    perfect = MeterSpec(0, 0)
    return HouseholdSpec(
        load=spec.load,
        solar=spec.solar,
        battery=spec.battery,
        meter=perfect,
        generation_meter=perfect,
        storage_meter=perfect,
        voltage=spec.voltage,
        initial_charge_ppm=min(spec.initial_charge_ppm, PPM),
    )
