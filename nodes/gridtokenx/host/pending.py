"""What waits between links and the machine: messages with many signatures, and those of unknown sets.

Law of the file: **who sends much delays only itself.** Nothing here was checked, so what it may cost is
bounded for each sender: in bytes for what is stashed, in signatures per turn for what is long.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, Wire
from gridtokenx.core.machine import NodeId, SignatureCheck

GUESTS: Final = b""
"""The line of all peers without a seat."""
LONG_CHECKS: Final = 16
"""A message that stands on more signatures is long."""
PART_CHECKS: Final = 64
"""Signatures of a long message that are checked before others get their turn: about 5 ms."""
STASHED_PER_PEER: Final = 64
STASHED_BYTES: Final = MAX_MESSAGE_BYTES
"""Of one peer: nothing of what is stashed was checked, so each may be as large as a frame."""
STASHED: Final = 1024


@dataclass(slots=True)
class Pending:
    """A frame between its link and the machine."""

    sender: NodeId
    message: Wire
    size: int
    """Of the frame."""
    checks: Sequence[SignatureCheck] | None = None
    """What it stands on; None: the machine was not asked yet."""
    line: NodeId = GUESTS
    """In which it waits, if it has to."""
    checked: int = 0
    """How many of a long message's signatures were found valid."""

    @property
    def is_long(self) -> bool:
        """Whether its signatures are checked in parts; known once the machine was asked."""
        return self.checks is not None and len(self.checks) > LONG_CHECKS


class LongLines:
    """Long messages, each at the head of its sender's line, and what came behind it.

    A proposal may carry thousands of signatures, and a traitor can sign such proposals for views that
    are far away: checked at once, each would hold up everybody's votes for a second.
    """

    def __init__(self) -> None:
        self._lines: dict[NodeId, deque[Pending]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, line: NodeId) -> bool:
        return line in self._lines

    def add(self, pending: Pending) -> None:
        """A long message, or one that must not overtake it."""
        self._lines.setdefault(pending.line, deque()).append(pending)

    def next_part(self) -> Sequence[SignatureCheck]:
        """What is to be checked now, of the line that has waited longest."""
        pending = self._first()[0]
        assert pending.checks is not None, "the machine was asked before it was found long"
        return pending.checks[pending.checked : pending.checked + PART_CHECKS]

    def took(self, *, holds: bool) -> tuple[Pending | None, Iterable[Pending]]:
        """That part was checked; the line's next turn comes after all others'.

        Returns:
            The message, if it needs no more checks or is refused, and what has waited behind it.
        """
        line = self._first()
        pending = line[0]
        del self._lines[pending.line]
        pending.checked += PART_CHECKS
        if holds and pending.checks is not None and pending.checked < len(pending.checks):
            self._lines[pending.line] = line
            return None, ()
        return line.popleft(), line

    def _first(self) -> deque[Pending]:
        return next(iter(self._lines.values()))


class Stash:
    """Messages whose keys cannot be named yet; bounded, and tried again after a commit.

    A peer's newest are kept: whoever is a set behind hears votes that it cannot use for as long as it
    takes to catch up, and only the last of them still matter then. That is nobody's fault.
    """

    def __init__(self) -> None:
        self._messages: dict[NodeId, deque[Pending]] = {}
        self._count = 0

    def add(self, pending: Pending) -> int:
        """Keep a message; returns how many, it or older ones of its sender, are forgotten for it."""
        queue = self._messages.setdefault(pending.sender, deque())
        if self._count >= STASHED and not queue:
            return 1
        size = pending.size + sum(each.size for each in queue)
        forgotten = 0
        while queue and (
            len(queue) >= STASHED_PER_PEER
            or size > STASHED_BYTES
            or self._count - forgotten >= STASHED
        ):
            size -= queue.popleft().size
            forgotten += 1
        queue.append(pending)
        self._count += 1 - forgotten
        return forgotten

    def empty(self) -> Sequence[Pending]:
        """All of them, each peer's in order; none is left."""
        taken = [pending for queue in self._messages.values() for pending in queue]
        self._messages, self._count = {}, 0
        return taken
