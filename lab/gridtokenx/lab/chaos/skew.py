"""A replica's own clock, wrong on purpose: what its machine is told of the time.

The driver goes on by the real clock; the machine hears a shifted one, and the timers that it sets are
shifted back. So only the rules meet the wrong time, as they do in the simulator (`sim/world.py`).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gridtokenx.core.machine import Effect, Instant, SetTimer
from gridtokenx.lab.faults import ClockDrift, ClockJump, ClockOffset

ClockFault = ClockOffset | ClockDrift | ClockJump
_MILLION: Final = 1_000_000


class Skew:
    """How far a clock is off, and how fast it runs."""

    def __init__(self) -> None:
        self._offset_ms = 0
        self._drift_ppm = 0
        self._drift_from_ms: Instant = 0

    def begin(self, now: Instant, fault: ClockFault) -> None:
        """A fault is in force."""
        match fault:
            case ClockOffset(offset_ms=offset_ms) | ClockJump(jump_ms=offset_ms):
                self._offset_ms += offset_ms
            case ClockDrift(drift_ppm=drift_ppm):
                self._drift(now, self._drift_ppm + drift_ppm)

    def end(self, now: Instant, fault: ClockFault) -> None:
        """And is no more; a jump is not taken back."""
        match fault:
            case ClockOffset(offset_ms=offset_ms):
                self._offset_ms -= offset_ms
            case ClockDrift(drift_ppm=drift_ppm):
                self._drift(now, self._drift_ppm - drift_ppm)
            case ClockJump():
                """Nobody sets it back."""

    def local_ms(self, now: Instant) -> Instant:
        """What the machine is told."""
        drifted = (now - self._drift_from_ms) * self._drift_ppm // _MILLION
        return now + self._offset_ms + drifted

    def back(self, now: Instant, effects: Sequence[Effect]) -> Sequence[Effect]:
        """What the driver is told: its timers by its own clock."""
        if not self._offset_ms and not self._drift_ppm:
            return effects
        return list(self._shifted(now, effects))

    def _shifted(self, now: Instant, effects: Sequence[Effect]) -> Iterator[Effect]:
        local_ms = self.local_ms(now)
        for effect in effects:
            if isinstance(effect, SetTimer):
                wait_ms = (effect.at_ms - local_ms) * _MILLION // (_MILLION + self._drift_ppm)
                yield SetTimer(effect.name, now + wait_ms)
            else:
                yield effect

    def _drift(self, now: Instant, drift_ppm: int) -> None:
        self._offset_ms = self.local_ms(now) - now
        self._drift_ppm, self._drift_from_ms = drift_ppm, now
