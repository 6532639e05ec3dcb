"""Rotation: the leadership passes on after so many blocks, though nothing is wrong.

Law of the file: **a period begins upon a committed block, and that block's certificate is its
new-view.** The heights of a term are cut into periods of `blocks` each, and every period has views of its
own: view ``p * PERIOD_VIEWS + a`` is the a-th attempt at period p. So view numbers still only grow,
and everything that counts views, orders marks by them, or is signed for one stays as it is.

Theory: Castro & Liskov (OSDI 1999) change the primary by view change only; sawtooth RFC 29 forces view
changes now and then. A view change costs a quorum of messages with certificates because nobody knows
what the others prepared. Between two periods everybody does, for

- in a view of period p only heights of period p are proposed, prepared and committed;
- who has committed the last of them moves to the first view of period p + 1, in the same step, and
  nobody acts there who has not: a view-change into a view of p + 1 must prove a head in it.

So below that head nothing is open any more, above it nothing was ever prepared in an earlier view, and
the first view of a period opens without a message. If its leader fails, a view change leads to the
period's next view, as ever. What it costs: with several heights in flight, nothing is proposed beyond
a period before its last block is committed.

Each replica leads at the first attempt of every n-th period. One that is down costs a view change each
time, so periods should be long against a timeout: a hundred blocks, say.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from gridtokenx.finality.validators import ValidatorSet

RotationBlocks = Annotated[int, Meta(ge=1, le=1_000_000)]
"""Blocks of a period in a genesis. Where it is unset it is not encoded, and changes no chain's id."""
PERIOD_VIEWS: Final = 1_000_000
"""Views of one period: more attempts than a timeout of a minute allows in a year."""


def primary_of(view: int, validators: ValidatorSet) -> int:
    """Index of the replica that proposes in a view (section 4.1: view modulo the set's size).

    Ours differs: each period begins with the next replica, whatever happened in the one before.
    """
    if view < PERIOD_VIEWS:
        return view % validators.size
    return turn_of(view) % validators.size


def turn_of(view: int) -> int:
    """Whose turn a view is, modulo the set's size."""
    period, attempt = divmod(view, PERIOD_VIEWS)
    return period + attempt


def blocks_of(setting: int | UnsetType) -> int:
    """A genesis' setting as the replica takes it: 0 if the leadership does not rotate."""
    return 0 if setting is UNSET else setting


@dataclass(frozen=True, slots=True)
class Periods:
    """How the heights of one term are cut into periods; see the head of the file."""

    root: int = 0
    """The height that the term stands on; its first block is the next."""
    blocks: int = 0
    """Heights of a period; 0: the term is one period."""

    def first_view(self, height: int) -> int:
        """The view that decides a height of the term if no leader of its period fails."""
        if not self.blocks:
            return 0
        return (height - self.root - 1) // self.blocks * PERIOD_VIEWS

    def covers(self, view: int, height: int) -> bool:
        """Whether a height may be decided in a view."""
        if not self.blocks:
            return True
        first = self.first_view(height)
        return first <= view < first + PERIOD_VIEWS

    def is_next(self, view: int, later: int) -> bool:
        """Whether `later` is the view that follows upon `view` if only a block is missing."""
        return bool(self.blocks) and later == (view // PERIOD_VIEWS + 1) * PERIOD_VIEWS
