"""When a product opens, closes its gate and is delivered: arithmetic on the grid clock.

Law: everything here is a function of block time, and every question is answered in O(1), so a chain
that stood still for a year knows at once what it missed.

::

    opens             gate closes      delivery starts        delivery ends
      |--- orders -------|--- cleared ------|---- 30 min grid ------|
"""

from dataclasses import dataclass

from gridtokenx.consortium.market.parameters import MarketParameters
from gridtokenx.consortium.tariff import Tariff
from gridtokenx.core.gridtime import GridClock, interval_at, interval_start_ms


@dataclass(frozen=True, slots=True)
class Schedule:
    """The timetable of all products of all zones."""

    clock: GridClock
    parameters: MarketParameters
    tariff: Tariff

    def gate_ms(self, interval: int) -> int:
        """Network time at which the gate of an interval closes: the earlier of both bounds."""
        start_ms = interval_start_ms(interval)
        return min(
            self.clock.network_ms(start_ms) - self.parameters.gate_network_ms,
            self.clock.network_ms(start_ms - self.parameters.gate_grid_ms),
        )

    def closed_through(self, now_ms: int) -> int:
        """The last interval whose gate has closed; the inverse of `gate_ms`."""
        return interval_at(
            max(
                self.clock.grid_ms(now_ms + self.parameters.gate_network_ms),
                self.clock.grid_ms(now_ms) + self.parameters.gate_grid_ms,
            )
        )

    def current(self, now_ms: int) -> int:
        """The interval that is being delivered."""
        return interval_at(self.clock.grid_ms(now_ms))

    def open_through(self, now_ms: int) -> int:
        """The last interval whose book may be open."""
        return self.current(now_ms) + self.parameters.open_ahead_intervals

    def has_market(self, interval: int) -> bool:
        """Whether there is an auction for this delivery interval: it starts in market hours."""
        minute = self.tariff.local_minute(interval)
        return self.parameters.open_from_minute <= minute < self.parameters.open_to_minute

    def signal_slot(self, now_ms: int) -> int:
        """Counts the periods of the indicative price."""
        return self.clock.grid_ms(now_ms) // self.parameters.indicative.update_grid_ms
