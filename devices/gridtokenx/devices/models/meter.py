"""A class-1 electricity meter: two cumulative registers of whole watt-hours.

The registers only grow. What is below one watt-hour stays in an integer residue, so no energy is
lost to rounding, however often the meter is looked at. The gain error is fixed at manufacture
(class 1: within one per cent) and, below the starting power, the meter stands still (IEC 62053-21):
real meters are wrong in these two ways, and never by white noise on a register.
"""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import UInt63
from gridtokenx.devices.models.energy import MWS_PER_WH, PPM, Spec

CLASS_1_PPM: Final = 10_000
"""The largest gain error of a class-1 meter."""
_RESIDUE_PER_WH: Final = MWS_PER_WH * PPM

Gain = Annotated[int, Meta(ge=-CLASS_1_PPM, le=CLASS_1_PPM)]


class MeterSpec(Spec, frozen=True):
    """What was fixed when this meter was made."""

    gain_ppm: Gain
    """Its constant gain error."""
    starting_power_w: UInt63
    """Below this mean power it does not count; about 5 W for a 5(100) A class-1 meter."""


class MeterState(Wire, frozen=True):
    """Registers and what has not yet become a whole watt-hour."""

    import_wh: UInt63
    """Energy taken since installation."""
    export_wh: UInt63
    """Energy given since installation."""
    import_residue: UInt63
    """Part of a Wh of import not yet on the register, in 10**-6 mWs."""
    export_residue: UInt63
    """Part of a Wh of export not yet on the register, in 10**-6 mWs."""


NEW_METER: Final = MeterState(0, 0, 0, 0)


def record(spec: MeterSpec, state: MeterState, net_mws: int, duration_ms: int) -> MeterState:
    """The meter after a step in which `net_mws` flowed in (positive) or out (negative)."""
    if abs(net_mws) < spec.starting_power_w * duration_ms or net_mws == 0:
        return state
    counted = abs(net_mws) * (PPM + spec.gain_ppm)
    if net_mws > 0:
        whole, rest = divmod(state.import_residue + counted, _RESIDUE_PER_WH)
        return MeterState(state.import_wh + whole, state.export_wh, rest, state.export_residue)
    whole, rest = divmod(state.export_residue + counted, _RESIDUE_PER_WH)
    return MeterState(state.import_wh, state.export_wh + whole, state.import_residue, rest)
