"""A household battery on a hybrid inverter.

Theory: the round-trip efficiency splits evenly over the two legs, so each has its square root
(charging P for h stores ``P h eta``; delivering P for h takes ``P h / eta``). Rounding is always
against the battery: stored energy is never created.

The laws of the file:

- the stored energy stays between 10 and 95 per cent of capacity, whatever is asked;
- a set-point binds for its own window only; when it ends, or when none was accepted, the battery
  falls back to serving its own household (fail-safe, no message needed);
- **no energy is promised twice**: a set-point is accepted only if what is stored now covers it on
  top of all that was accepted before, standby included, and the household leaves that energy alone.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.types import Int64, Millis, UInt63
from gridtokenx.core.units import ceil_div
from gridtokenx.devices.models.energy import MWS_PER_WH, PPM, Spec

MAX_SETPOINTS: Final = 8
"""How many accepted set-points a battery remembers."""


class BatterySpec(Spec, frozen=True):
    """What was fixed when the battery was made."""

    capacity_wh: UInt63
    power_w: UInt63
    """The most it charges or delivers, seen from the alternating-current side."""
    round_trip_ppm: UInt63
    """Energy out over energy in, both legs."""
    min_charge_ppm: UInt63
    """Floor of the state of charge, 100_000 for ten per cent."""
    max_charge_ppm: UInt63
    """Ceiling of the state of charge, 950_000 for 95 per cent."""
    standby_w: UInt63
    """Constant consumption of its electronics."""
    inverter_ac_w: UInt63
    """Limit on panels plus battery together, in either direction."""

    @property
    def leg_ppm(self) -> int:
        """Efficiency of one leg, rounded down."""
        return isqrt(self.round_trip_ppm * PPM)

    @property
    def floor_mws(self) -> int:
        """The least that stays stored."""
        return ceil_div(self.capacity_wh * MWS_PER_WH * self.min_charge_ppm, PPM)

    @property
    def ceiling_mws(self) -> int:
        """The most that is ever stored."""
        return self.capacity_wh * MWS_PER_WH * self.max_charge_ppm // PPM


class Setpoint(Wire, frozen=True):
    """An order to deliver or take a constant power for a window of grid time."""

    power_w: Int64
    """Positive delivers, negative charges; alternating-current side."""
    start_grid_ms: Millis
    """First millisecond of the window."""
    end_grid_ms: Millis
    """First millisecond after the window: the set-point has expired."""


class BatteryState(Wire, frozen=True):
    """What a battery must remember."""

    stored_mws: UInt63
    """Energy in the cells."""
    setpoints: Annotated[tuple[Setpoint, ...], Meta(max_length=MAX_SETPOINTS)]
    """Accepted and not yet expired, by start; their windows do not overlap."""


class BatteryFlow(Wire, frozen=True):
    """What a battery did in one step, seen from the alternating-current side."""

    charge_mws: UInt63
    discharge_mws: UInt63
    standby_mws: UInt63
    """Standby that the cells could not serve, so the household did."""
    loss_mws: UInt63
    """Heat: both legs and the standby that the cells served."""


def new_battery(spec: BatterySpec, charge_ppm: int) -> BatteryState:
    """A battery delivered with some charge, kept within its limits."""
    stored = spec.capacity_wh * MWS_PER_WH * charge_ppm // PPM
    return BatteryState(max(spec.floor_mws, min(stored, spec.ceiling_mws)), ())


def accept_setpoint(
    spec: BatterySpec, state: BatteryState, setpoint: Setpoint, now_grid_ms: int, step_ms: int
) -> BatteryState:
    """The battery with one more promise.

    Raises:
        RemoteFault: it lies in the past or off the steps, overlaps another, exceeds a limit, or
            asks for energy or room that is not there or is promised already.
    """
    _check_window(state, setpoint, now_grid_ms, step_ms)
    if abs(setpoint.power_w) > min(spec.power_w, spec.inverter_ac_w):
        raise RemoteFault("setpoint-power", f"{setpoint.power_w} W exceeds the battery's limit")
    promised = tuple(sorted((*state.setpoints, setpoint), key=lambda each: each.start_grid_ms))
    if len(promised) > MAX_SETPOINTS:
        raise RemoteFault("setpoint-count", f"more than {MAX_SETPOINTS} set-points are pending")
    energy, room = _reserved(spec, promised, now_grid_ms, step_ms)
    if setpoint.power_w > 0 and state.stored_mws < spec.floor_mws + energy:
        raise RemoteFault("setpoint-energy", "the stored energy is promised or not there")
    if setpoint.power_w < 0 and state.stored_mws + room > spec.ceiling_mws:
        raise RemoteFault("setpoint-room", "the room for charging is promised or not there")
    return BatteryState(state.stored_mws, promised)


def _check_window(state: BatteryState, setpoint: Setpoint, now: int, step_ms: int) -> None:
    if setpoint.start_grid_ms < now or setpoint.end_grid_ms <= setpoint.start_grid_ms:
        raise RemoteFault("setpoint-window", "the window is empty or has begun")
    if setpoint.start_grid_ms % step_ms or setpoint.end_grid_ms % step_ms:
        raise RemoteFault("setpoint-window", f"the window is not a multiple of {step_ms} ms")
    for other in state.setpoints:
        if (
            setpoint.start_grid_ms < other.end_grid_ms
            and other.start_grid_ms < setpoint.end_grid_ms
        ):
            raise RemoteFault("setpoint-overlap", "another set-point holds part of the window")


def _reserved(
    spec: BatterySpec, setpoints: Sequence[Setpoint], now: int, step_ms: int
) -> tuple[int, int]:
    """Energy to keep stored, and room to keep free, for what is promised after `now`."""
    energy = room = 0
    last_delivery = now
    for setpoint in setpoints:
        steps = max(0, setpoint.end_grid_ms - max(now, setpoint.start_grid_ms)) // step_ms
        if setpoint.power_w > 0:
            energy += steps * ceil_div(setpoint.power_w * step_ms * PPM, spec.leg_ppm)
            last_delivery = max(last_delivery, setpoint.end_grid_ms)
        else:
            room += steps * (-setpoint.power_w * step_ms * spec.leg_ppm // PPM)
    return energy + spec.standby_w * (last_delivery - now), room


def run_battery(
    spec: BatterySpec,
    state: BatteryState,
    start_grid_ms: int,
    duration_ms: int,
    deficit_mws: int,
    solar_mws: int,
) -> tuple[BatteryState, BatteryFlow]:
    """One step.

    Args:
        spec: the battery.
        state: before the step.
        start_grid_ms: grid time at which the step starts.
        duration_ms: its length.
        deficit_mws: what the household lacks (negative: its surplus), for self-consumption.
        solar_mws: what the panels put through the shared inverter.
    """
    end = start_grid_ms + duration_ms
    from_cells = min(spec.standby_w * duration_ms, max(0, state.stored_mws - spec.floor_mws))
    stored = state.stored_mws - from_cells
    wanted = _wanted_mws(state.setpoints, start_grid_ms, duration_ms, deficit_mws)
    energy, room = _reserved(spec, state.setpoints, end, duration_ms)
    if wanted > 0:
        charge, discharge = 0, _deliverable(spec, stored, energy, wanted, solar_mws, duration_ms)
    else:
        charge, discharge = _chargeable(spec, stored, room, -wanted, solar_mws, duration_ms), 0
    kept = stored + charge * spec.leg_ppm // PPM - ceil_div(discharge * PPM, spec.leg_ppm)
    flow = BatteryFlow(
        charge_mws=charge,
        discharge_mws=discharge,
        standby_mws=spec.standby_w * duration_ms - from_cells,
        loss_mws=state.stored_mws + charge - discharge - kept,
    )
    live = tuple(each for each in state.setpoints if each.end_grid_ms > end)
    return BatteryState(kept, live), flow


def _wanted_mws(setpoints: Sequence[Setpoint], start: int, duration_ms: int, deficit: int) -> int:
    for setpoint in setpoints:
        if setpoint.start_grid_ms <= start < setpoint.end_grid_ms:
            return setpoint.power_w * duration_ms
    return deficit


def _deliverable(
    spec: BatterySpec, stored: int, reserved: int, wanted: int, solar_mws: int, duration_ms: int
) -> int:
    spare = max(0, stored - spec.floor_mws - reserved)
    headroom = max(0, spec.inverter_ac_w * duration_ms - solar_mws)
    return min(wanted, spec.power_w * duration_ms, headroom, spare * spec.leg_ppm // PPM)


def _chargeable(
    spec: BatterySpec, stored: int, reserved: int, wanted: int, solar_mws: int, duration_ms: int
) -> int:
    room = max(0, spec.ceiling_mws - stored - reserved)
    headroom = spec.inverter_ac_w * duration_ms + solar_mws
    return min(wanted, spec.power_w * duration_ms, headroom, room * PPM // spec.leg_ppm)
