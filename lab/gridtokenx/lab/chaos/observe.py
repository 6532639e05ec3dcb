"""What the runner sees of the chain while it runs: heights, views, and how it comes through each fault.

Law of the file: **what is seen is what replicas have acknowledged**, block by block, as durable. Whether
they may have is judged afterwards, from their disks (`audit.py`).
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.core.quorum import quorum
from gridtokenx.lab.chaos import bounds
from gridtokenx.lab.chaos.load import Acknowledged
from gridtokenx.lab.chaos.outcome import FaultOutcome
from gridtokenx.lab.chaos.wire import Seen
from gridtokenx.lab.faults import Fault, kind_of
from gridtokenx.pbft.rotation import PERIOD_VIEWS
from gridtokenx.pbft.timing import Timing


@dataclass(slots=True)
class Watch:
    """One fault, from its beginning until the chain has recovered from it."""

    number: int
    fault: Fault
    what: str
    hit: frozenset[int]
    promised: bool
    """Whether the chain must go on while it lasts."""
    leader: int
    changes: int
    """View changes before it."""
    began_s: float
    began_height: int
    goes_on_bound_ms: int
    ended_s: float | None = None
    ended_height: int = 0
    level_bound_ms: int = 0
    went_on_s: float | None = None
    level_s: float | None = None
    level_changes: int = 0
    clock_s: float = 0.0
    """From when its bound is counted: its end, or that of the last fault that came before it was level."""
    disturbed_by: set[int] = field(default_factory=set)

    def deadline_s(self) -> float | None:
        """When it should be level; None while another fault is in the way."""
        if self.ended_s is None or self.disturbed_by:
            return None
        return self.clock_s + self.level_bound_ms / 1_000

    def broken(self, now_s: float) -> str:
        """Which promise was not kept."""
        went_on = self.went_on_s
        if self.promised and (went_on or now_s) - self.began_s > self.goes_on_bound_ms / 1_000:
            return "it did not go on within its bound"
        deadline_s = self.deadline_s()
        if deadline_s is not None and (self.level_s or now_s) > deadline_s:
            return "it was not level within its bound"
        return ""


class Observer:
    """The chain as it shows itself.

    Args:
        replicas: how many.
        timing: the engine's waits.
        blocks: how many more blocks everybody must have after a fault.
        bound_ms: of recovery; 0: by the timers.
        asks_work: whether a transaction must be final, too.
        note: puts a line on the timeline.
        rotates: whether the leadership passes on by itself.
    """

    def __init__(
        self,
        replicas: int,
        timing: Timing,
        *,
        blocks: int,
        bound_ms: int,
        asks_work: bool,
        note: Callable[[str], None],
        rotates: bool = False,
    ) -> None:
        self.replicas: Final = replicas
        self.heights: Final = [0] * replicas
        """What each has acknowledged, in any of its lives."""
        self.byzantine: Final[set[int]] = set()
        self.watches: Final[list[Watch]] = []
        self.view = 0
        self.changes = 0
        """Views that were left because their leader failed; rotation leaves none so."""
        self.leader = 0
        self.longest_pause_s = 0.0
        self.blocks: Final[list[tuple[int, float]]] = []
        """Heights, and when a quorum had acknowledged each."""
        self.views: Final[list[tuple[int, float]]] = []
        """Views, and when an honest replica was first in each."""
        self.on_changed: Callable[[], None] = lambda: None
        self._rotates: Final = rotates
        self._timing: Final = timing
        self._blocks: Final = blocks
        self._bound_ms: Final = bound_ms
        self._asks_work: Final = asks_work
        self._note: Final = note
        self._needed: Final = quorum(replicas)
        self._quorum_height = 0
        self._quorum_at_s: float | None = None
        self._newest_work_s = 0.0

    # -- what is seen ------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """The highest that somebody has acknowledged."""
        return max(self.heights)

    @property
    def quorum_height(self) -> int:
        """The highest that a quorum has acknowledged."""
        return self._quorum_height

    def seen(self, index: int, seen: Seen) -> None:
        """A replica says where it stands."""
        self.heights[index] = max(self.heights[index], seen.height)
        if seen.view > self.view and index not in self.byzantine:
            self.changes += _changes(self.view, seen.view)
            self.view, self.leader = seen.view, seen.leader
            self.views.append((self.view, time.monotonic()))
            self._note(f"view {self.view}, replica {self.leader} leads")
        self._look()

    def acknowledged(self, done: Acknowledged) -> None:
        """A client knows a transaction to be final."""
        self._newest_work_s = max(self._newest_work_s, done.sent_s)
        self._look()

    def start_clock(self) -> None:
        """The schedule begins: pauses count from here."""
        self._quorum_at_s = time.monotonic()

    def _look(self) -> None:
        now_s = time.monotonic()
        height = sorted(self.heights, reverse=True)[self._needed - 1]
        if height > self._quorum_height:
            self.blocks.extend((new, now_s) for new in range(self._quorum_height + 1, height + 1))
            self._quorum_height = height
            if self._quorum_at_s is not None:
                self.longest_pause_s = max(self.longest_pause_s, now_s - self._quorum_at_s)
                self._quorum_at_s = now_s
        for watch in self.watches:
            if watch.level_s is None:
                self._follow(watch, now_s)
        self.on_changed()

    def _follow(self, watch: Watch, now_s: float) -> None:
        fresh = watch.began_height + self._timing.window
        if watch.went_on_s is None and self._quorum_height > fresh:
            watch.went_on_s = now_s
        if watch.ended_s is None:
            return
        if self._asks_work and self._newest_work_s < watch.ended_s:
            return
        hurt = set[int]().union(*(other.hit for other in self.active), self.byzantine)
        goal = watch.ended_height + self._blocks
        if all(self.heights[i] >= goal for i in range(self.replicas) if i not in hurt):
            watch.level_s, watch.level_changes = now_s, self.changes
            self._note(f"level {now_s - watch.ended_s:.1f} s after fault {watch.number} ended")
            for other in self.watches:
                if other.disturbed_by:
                    self._undisturb(other, watch.number, now_s)

    # -- faults ------------------------------------------------------------------------------------

    @property
    def active(self) -> list[Watch]:
        """Faults in force."""
        return [watch for watch in self.watches if watch.ended_s is None]

    @property
    def unsettled(self) -> list[Watch]:
        """Faults in force, or not recovered from and not given up."""
        now_s = time.monotonic()
        return [
            watch
            for watch in self.watches
            if watch.level_s is None
            and ((deadline_s := watch.deadline_s()) is None or now_s <= deadline_s)
        ]

    def begin(
        self, number: int, fault: Fault, what: str, hit: Iterable[int], *, keeps_quorum: bool
    ) -> None:
        """A fault is in force from now on."""
        now_s = time.monotonic()
        hurt = frozenset(hit)
        others = [watch for watch in self.watches if watch.level_s is None]
        for watch in others:
            watch.disturbed_by.add(number)
            watch.promised = watch.promised and watch.went_on_s is not None
        leaders = range(self.replicas) if self._rotates else (self.leader,)
        bound_ms = max(
            bounds.goes_on_ms(hurt, leader, self.replicas, self._timing, _slack_ms())
            for leader in leaders
        )
        alone = not any(watch.ended_s is None for watch in others)
        self.watches.append(
            Watch(
                number=number,
                fault=fault,
                what=what,
                hit=hurt,
                promised=keeps_quorum and alone,
                leader=self.leader,
                changes=self.changes,
                began_s=now_s,
                began_height=self.height,
                goes_on_bound_ms=bound_ms,
            )
        )

    def end(self, number: int) -> None:
        """It is no more in force."""
        now_s = time.monotonic()
        for watch in self.watches:
            if watch.number == number and watch.ended_s is None:
                lasted_ms = round((now_s - watch.began_s) * 1_000)
                watch.ended_s = watch.clock_s = now_s
                watch.ended_height = self.height
                watch.level_bound_ms = self._bound_ms or bounds.level_ms(
                    watch.fault, lasted_ms, self._blocks, self._timing, _slack_ms()
                )

    def _undisturb(self, watch: Watch, number: int, now_s: float) -> None:
        """A fault that was in the way has been recovered from: the bound begins anew."""
        if number in watch.disturbed_by:
            watch.disturbed_by.discard(number)
            watch.clock_s = now_s

    def give_up_disturbed(self) -> None:
        """Faults that were in the way and never recovered from: they are broken themselves."""
        for watch in self.watches:
            watch.disturbed_by.clear()

    def outcomes(self, zero_s: float) -> list[FaultOutcome]:
        """All faults, for the outcome of the run."""
        now_s = time.monotonic()
        return [self._outcome(watch, zero_s, now_s) for watch in self.watches]

    def _outcome(self, watch: Watch, zero_s: float, now_s: float) -> FaultOutcome:
        ended_s = now_s if watch.ended_s is None else watch.ended_s
        went_on, level = watch.went_on_s, watch.level_s
        return FaultOutcome(
            number=watch.number,
            kind=kind_of(watch.fault),
            what=watch.what,
            hit=tuple(sorted(watch.hit)),
            leader=watch.leader,
            began_ms=_ms(watch.began_s - zero_s),
            ended_ms=_ms(ended_s - zero_s),
            went_on_ms=None if went_on is None else _ms(went_on - watch.began_s),
            went_on_bound_ms=watch.goes_on_bound_ms if watch.promised else None,
            level_ms=None if level is None else _ms(level - ended_s),
            level_bound_ms=watch.level_bound_ms,
            views=(watch.level_changes if level is not None else self.changes) - watch.changes,
            broken=watch.broken(now_s),
        )


def _changes(before: int, after: int) -> int:
    """View changes between two views; a period's first view takes none (`pbft/rotation.py`)."""
    if before // PERIOD_VIEWS == after // PERIOD_VIEWS:
        return after - before
    return after % PERIOD_VIEWS


def _slack_ms() -> int:
    try:
        load = os.getloadavg()[0]
    except OSError:  # this system does not tell
        load = 0.0
    return bounds.slack_ms(load, os.cpu_count() or 1)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
