"""Who misbehaved lately, and who is refused because of it."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final


class Bans:
    """Points per key that are forgiven with time, and the bans that too many of them bring. Bounded.

    Args:
        points: within a minute, that ban.
        ban_s: the first ban; each further one is twice as long, up to an hour.
    """

    REMEMBERED: Final = 4096
    WINDOW_S: Final = 60.0
    LONGEST_S: Final = 3600.0

    def __init__(self, points: int, ban_s: float) -> None:
        self._limit = points
        self._ban_s = ban_s
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def record(self, identity: bytes, points: int, now: float) -> bool:
        """Note a fault; returns whether it bans."""
        record = self._records.setdefault(identity, _Record(now))
        self._records.move_to_end(identity)
        if len(self._records) > self.REMEMBERED:
            self._records.popitem(last=False)
        elapsed = now - record.at
        record.points = max(0.0, record.points - elapsed * self._limit / self.WINDOW_S) + points
        record.at = now
        if record.points < self._limit:
            return False
        duration = min(self.LONGEST_S, self._ban_s * 2**record.bans)
        record.points, record.bans, record.until = 0.0, record.bans + 1, now + duration
        return True

    def banned_for(self, identity: bytes, now: float) -> float:
        """Seconds that a ban still lasts; 0 without one."""
        record = self._records.get(identity)
        return max(0.0, record.until - now) if record is not None else 0.0


@dataclass(slots=True)
class _Record:
    at: float
    points: float = 0.0
    bans: int = 0
    until: float = 0.0
