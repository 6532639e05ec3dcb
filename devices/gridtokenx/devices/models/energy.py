"""The unit of the models: milliwatt-seconds, exact for whole watts over whole milliseconds."""

from typing import Final

MWS_PER_WH: Final = 3_600_000
PPM: Final = 1_000_000


def mean_power_w(energy_mws: int, duration_ms: int) -> int:
    """Mean power of an energy over a duration, rounded towards zero; telemetry only."""
    magnitude = abs(energy_mws) // duration_ms
    return magnitude if energy_mws >= 0 else -magnitude
