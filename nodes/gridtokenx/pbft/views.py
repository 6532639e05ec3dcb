"""Which view, and when to leave it: the counting behind a view change.

Law of the file: **a view number never goes back, and one faulty replica moves nobody.**

Theory: Castro & Liskov (OSDI 1999) sections 4.4 and 4.5.2.

==========  ===========================================  ==========================================
status      what happens                                 then
==========  ===========================================  ==========================================
in view v   own timer runs out                           suspect v: tell all, go on taking part
in view v   f + 1 suspect v or moved beyond it           leave for v + 1
either      f + 1 moved beyond v                         leave for the smallest of their views
left for v  a quorum moved to v or beyond                start the new-view timer (sawtooth #133)
left for v  the new-view timer runs out                  leave for v + 1, with a doubled timeout
left for v  primary of v, a quorum moved to exactly v,
            and this replica has what they committed     open v
either      a valid new-view of a view >= v              enter it
either      the last block of the period is committed    enter the next period's first view
==========  ===========================================  ==========================================

Ours differs: in the paper a replica whose timer runs out leaves at once. One that was merely paused
would then wait alone, without a vote, until the others fail too: with f silent faults that is a
halt. Here its suspicion is a message, and f + 1 suspicions make it leave; f + 1 contain an honest
one, and whenever no block can be committed every honest replica's timer runs out.
"""

from typing import Final

from gridtokenx.core.machine import Instant
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.pbft.messages import NewView, ViewChange
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.view_change import NOTHING, Choice, select_quorum


class Views:
    """The view and all that was heard about leaving it.

    Args:
        validators: the set whose primaries take turns.
        me: this replica's index; None for an observer, which only follows.
    """

    def __init__(self, validators: ValidatorSet, me: int | None) -> None:
        self._validators: Final = validators
        self._me: Final = me
        self._suspects: dict[int, Instant] = {}
        self._primary = (0, primary_of(0, validators))
        self.view = 0
        self.active = True
        self.attempts = 0
        """View changes since the last progress; the timeouts double with it."""
        self.reasons: set[str] = set()
        """Why this replica itself suspects the view; empty while it does not."""
        self.changes: dict[int, ViewChange] = {}
        """The latest view-change of each replica that is of use, own included."""
        self.new_view: NewView | None = None
        """What opened the current view; None in view 0 and while it is not open."""
        self.choice: Choice = NOTHING
        """Where the current view starts."""

    @property
    def primary(self) -> int:
        """Index of the view's primary; asked for after every event, so the last answer is kept."""
        view, primary = self._primary
        if view != self.view:
            primary = primary_of(self.view, self._validators)
            self._primary = (self.view, primary)
        return primary

    @property
    def leads(self) -> bool:
        """Whether this replica proposes now."""
        return self.active and self.primary == self._me

    @property
    def own_change(self) -> ViewChange | None:
        """The own view-change by which this replica left for `view`."""
        return None if self._me is None else self.changes.get(self._me)

    # -- hearing -----------------------------------------------------------------------------------

    def note_suspect(self, replica: int, until: Instant) -> None:
        """A replica suspects the current view; it says so again while it does."""
        self._suspects[replica] = until

    def note_change(self, change: ViewChange) -> bool:
        """A verified view-change; False if it is of no use or known already."""
        body = change.body
        if body.view < self.view or (body.view == self.view and self.active):
            return False
        known = self.changes.get(body.replica)
        if known is not None and known.body.view >= body.view:
            return False
        self.changes[body.replica] = change
        return True

    # -- deciding ----------------------------------------------------------------------------------

    def destination(self, now: Instant) -> int | None:
        """The view to leave for, if enough others want to leave this one."""
        if self._me is None:
            return None
        beyond = {i: c.body.view for i, c in self.changes.items() if c.body.view > self.view}
        weak = self._validators.faulty + 1
        if len(beyond) >= weak:
            return min(beyond.values())
        if self.active and len(self._suspecting(now) | beyond.keys()) >= weak:
            return self.view + 1
        return None

    def quorum_moved(self) -> bool:
        """Whether waiting for the new-view makes sense: a quorum is in this change or beyond.

        This replica too, if it stands aside and so says nothing of its own.
        """
        silent = self._me is not None and self._me not in self.changes
        return not self.active and len(self.changes) + silent >= self._validators.quorum

    def openable(self, height: int) -> tuple[ViewChange, ...] | None:
        """The quorum of view-changes with which this replica may open the view.

        Only those whose heads it has committed itself: what the view stands on, everybody can then
        fetch from its primary. A faulty one may prove a block that it alone can prove, and keep it.

        Args:
            height: of this replica's head.
        """
        if self.active or self.primary != self._me:
            return None
        heads = ((change, change.body.head) for change in self.changes.values())
        known = (c for c, head in heads if head is None or head.header.height <= height)
        return select_quorum(known, self.view, self._validators)

    def _suspecting(self, now: Instant) -> set[int]:
        suspecting = {i for i, until in self._suspects.items() if until > now}
        if self.reasons and self._me is not None:
            suspecting.add(self._me)
        return suspecting

    # -- moving ------------------------------------------------------------------------------------

    def leave(self, change: ViewChange) -> None:
        """Move to the view that the own view-change names."""
        self.view, self.active = change.body.view, False
        self.attempts += 1
        self.new_view, self.choice = None, NOTHING
        self.changes[change.body.replica] = change
        self._clear()

    def stand_aside(self, view: int) -> None:
        """Wait for `view` as if left for it, with no view-change of its own to show.

        If the others move there without a new-view it goes on with them to the next, and says so.
        """
        self.view, self.active = view, False
        self.new_view, self.choice = None, NOTHING
        self._clear()

    def enter(self, new_view: NewView, choice: Choice) -> None:
        """Take part in the view that `new_view` opened."""
        self.view, self.active = new_view.body.view, True
        self.new_view, self.choice = new_view, choice
        self._clear()
        if self._me is not None:
            self.changes.pop(self._me, None)

    def begin_period(self, view: int) -> None:
        """Take part in the first view of a period: the block below it opened it (`rotation.py`)."""
        self.view, self.active = view, True
        self.attempts = 0
        self.new_view, self.choice = None, NOTHING
        self._clear()

    def _clear(self) -> None:
        self._suspects.clear()
        self.reasons.clear()
        floor = self.view + 1 if self.active else self.view
        self.changes = {i: c for i, c in self.changes.items() if c.body.view >= floor}
