"""The price that the market-data server's four sources see, each in its own way.

Every number is a function of (seed, grid time), computed in integers, so the server keeps no state
and two runs agree. The price itself follows the hours of a working day, a slow drift and a smooth
random walk; the sources differ in what they measure, how often, how precisely, and in their errors,
as an exchange, a day-ahead auction, a utility and an index differ.
"""

from hashlib import sha256
from typing import Final

from gridtokenx.core.gridtime import INTERVAL_MS, local_minute_of_day

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
MICRO: Final = 1_000_000
LOWEST: Final = 1_500_000
"""THB per MWh times 1000, that is micro-THB per kWh; the price never falls below it."""

_HOURS: Final = (
    # Micro-THB per kWh at each local hour; in between, a straight line.
    *(2_950_000, 2_880_000, 2_840_000, 2_830_000, 2_860_000, 2_980_000),
    *(3_200_000, 3_420_000, 3_580_000, 3_640_000, 3_600_000, 3_540_000),
    *(3_500_000, 3_520_000, 3_580_000, 3_640_000, 3_740_000, 3_920_000),
    *(4_180_000, 4_360_000, 4_300_000, 4_040_000, 3_640_000, 3_200_000),
)
_OCTAVES: Final = ((6 * HOUR_MS, 160_000), (HOUR_MS, 70_000), (10 * MINUTE_MS, 25_000))
"""Smooth noise: (period, amplitude in micro-THB per kWh)."""


class Market:
    """One market; `seed` decides all of its randomness."""

    def __init__(self, seed: int) -> None:
        self._seed: Final = seed

    def price(self, grid_ms: int) -> int:
        """The price at an instant, in micro-THB per kWh."""
        shape = _between(_HOURS, local_minute_of_day(grid_ms))
        wave = sum(self._smooth(grid_ms, period, size) for period, size in _OCTAVES)
        return max(LOWEST, shape + wave)

    def mean(self, start_ms: int, end_ms: int, samples: int = 5) -> int:
        """The mean price over a span."""
        step = (end_ms - start_ms) // samples
        return sum(self.price(start_ms + step * i + step // 2) for i in range(samples)) // samples

    # -- the four views ----------------------------------------------------------------------------

    def last_trade(self, grid_ms: int) -> tuple[int, int]:
        """Exchange: (time, price) of the last trade; a trade a minute, each off by up to 0.4 %."""
        trade = grid_ms // MINUTE_MS
        price = self.price(trade * MINUTE_MS)
        return trade * MINUTE_MS, self._off("exchange", trade, price, 4_000)

    def day_ahead(self, interval: int) -> int:
        """Auction of the day before: the price expected for a half hour, off by up to 1.5 %."""
        start_ms = interval * INTERVAL_MS
        return self._off("day-ahead", interval, self.mean(start_ms, start_ms + INTERVAL_MS), 15_000)

    def settled(self, grid_ms: int) -> tuple[int, int]:
        """Utility: (start, price) of the last whole five minutes, with 0.3 % of losses on top."""
        span = grid_ms // (5 * MINUTE_MS) - 1
        start_ms = span * 5 * MINUTE_MS
        price = self.mean(start_ms, start_ms + 5 * MINUTE_MS)
        return start_ms, self._off("utility", span, price + price * 3 // 1_000, 1_000)

    def index(self, grid_ms: int) -> tuple[int, int]:
        """Index: (time, price) of the last quarter hour, the mean of its trades."""
        quarter = grid_ms // (15 * MINUTE_MS)
        end_ms = quarter * 15 * MINUTE_MS
        trades = [self.last_trade(end_ms - MINUTE_MS * back)[1] for back in range(1, 16)]
        return end_ms, sum(trades) // len(trades)

    # -- noise -------------------------------------------------------------------------------------

    def _off(self, stream: str, index: int, value: int, ppm: int) -> int:
        """`value`, wrong by up to `ppm` parts per million."""
        return value + value * self._random(stream, index, ppm) // MICRO

    def _smooth(self, grid_ms: int, period_ms: int, size: int) -> int:
        """Noise that changes gradually: straight lines between random values."""
        index, rest = divmod(grid_ms, period_ms)
        before = self._random(f"wave {period_ms}", index, size)
        after = self._random(f"wave {period_ms}", index + 1, size)
        return before + (after - before) * rest // period_ms

    def _random(self, stream: str, index: int, size: int) -> int:
        """An integer from -size to size that depends on nothing but its arguments."""
        raw = sha256(f"{self._seed}/{stream}/{index}".encode()).digest()
        return int.from_bytes(raw[:8], "big") % (2 * size + 1) - size


def _between(hourly: tuple[int, ...], minute: int) -> int:
    hour, rest = divmod(minute, 60)
    before, after = hourly[hour % 24], hourly[(hour + 1) % 24]
    return before + (after - before) * rest // 60
