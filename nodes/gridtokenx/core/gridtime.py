"""Grid time: one linear map from network time, shared by every chain, device and gateway.

``grid = grid_epoch + time_scale * (network - network_genesis)``. With `time_scale` 60 a half-hour
interval lasts thirty seconds. Intervals are UTC indices: ``interval = grid_ms // 1_800_000``; local
time is used only to say when the market is open and which tariff holds.
"""

from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Millis, UInt63

INTERVAL_MS: Final = 1_800_000
DAY_MS: Final = 86_400_000
BANGKOK_UTC_OFFSET_MS: Final = 7 * 3_600_000


class GridClock(Wire, frozen=True):
    """The map between network time and grid time; part of a network's genesis."""

    network_genesis_ms: Millis
    """Network time of genesis."""
    grid_epoch_ms: Millis
    """Grid time (UTC, Unix milliseconds) at genesis."""
    time_scale: UInt63
    """Grid milliseconds per network millisecond; 1 on a real network."""

    def grid_ms(self, network_ms: int) -> int:
        """Grid time at a network time; before genesis it runs back at the same rate."""
        return self.grid_epoch_ms + self.time_scale * (network_ms - self.network_genesis_ms)

    def network_ms(self, grid_ms: int) -> int:
        """The first network millisecond at which grid time has reached `grid_ms`."""
        return self.network_genesis_ms - (self.grid_epoch_ms - grid_ms) // self.time_scale


def interval_at(grid_ms: int) -> int:
    """The interval that contains a grid time."""
    return grid_ms // INTERVAL_MS


def interval_start_ms(interval: int) -> int:
    """Grid time at which an interval starts."""
    return interval * INTERVAL_MS


def local_minute_of_day(grid_ms: int, utc_offset_ms: int = BANGKOK_UTC_OFFSET_MS) -> int:
    """Minutes since local midnight."""
    return (grid_ms + utc_offset_ms) % DAY_MS // 60_000


def local_day(grid_ms: int, utc_offset_ms: int = BANGKOK_UTC_OFFSET_MS) -> int:
    """Local days since 1970-01-01 (a Thursday: ``(day + 3) % 7`` is 0 on Mondays)."""
    return (grid_ms + utc_offset_ms) // DAY_MS
