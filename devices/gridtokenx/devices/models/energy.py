"""What all models share: the unit of energy, and the base of what was fixed at manufacture."""

from typing import Final

import msgspec

MWS_PER_WH: Final = 3_600_000
"""Milliwatt-seconds (a watt for a millisecond) in a watt-hour."""
PPM: Final = 1_000_000


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what does not change during a run; stands as readable JSON in the fleet's roster."""


def mean_power_w(energy_mws: int, duration_ms: int) -> int:
    """Mean power of an energy over a duration, rounded towards zero; telemetry only."""
    magnitude = abs(energy_mws) // duration_ms
    return magnitude if energy_mws >= 0 else -magnitude
