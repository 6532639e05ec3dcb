"""What waits between links and the machine: messages with many signatures, and those of unknown sets.

Law of the file: **who sends much delays only itself.** Nothing here was checked, so what it may cost is
bounded for each sender: in bytes for what is stashed, in signatures per turn for what is long.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import MAX_MESSAGE_BYTES, Wire
from gridtokenx.core.machine import NodeId, SignatureCheck

GUESTS: Final = b""
"""The line in which patient messages of all peers without a seat wait."""
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
    """In which it waits, if it is patient; a long one waits by its sender, members' apart from guests'."""
    checked: int = 0
    """How many of `checks` were found valid, if it is long."""
    held: frozenset[SignatureCheck] = frozenset()
    """What was found valid when it stood on that."""

    @property
    def is_long(self) -> bool:
        """Whether its signatures are checked in parts; known once the machine was asked."""
        return len(self.checks or ()) > LONG_CHECKS

    @property
    def has_more(self) -> bool:
        """Whether some are left to check."""
        return self.checked < len(self.checks or ())

    def next_part(
        self, most: int, knows: Callable[[SignatureCheck], bool]
    ) -> Sequence[SignatureCheck]:
        """What is to be checked next; most of it may be known already, which costs next to nothing."""
        checks, begin, unknown = self.checks or (), self.checked, 0
        while self.has_more and unknown < most:
            unknown += not knows(checks[self.checked])
            self.checked += 1
        return checks[begin : self.checked]

    def forget_checks(self) -> frozenset[SignatureCheck]:
        """Be as if the machine was not asked yet; returns what was found valid, if all was."""
        held = self.held.union(self.checks or ())
        self.checks, self.checked, self.held = None, 0, frozenset()
        return held

    def spare(self, held: frozenset[SignatureCheck]) -> None:
        """Of what it stands on, leave only what was not found valid earlier."""
        self.checks = [check for check in self.checks or () if check not in held]
        self.held = held


class LongLines:
    """Long messages, each at the head of its sender's line, and what came behind it.

    A proposal may carry thousands of signatures, and a traitor can sign such proposals for views that
    are far away: checked at once, each would hold up everybody's votes for a second.
    """

    def __init__(self) -> None:
        self._lines: dict[NodeId, deque[Pending]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, sender: NodeId) -> bool:
        return sender in self._lines

    def add(self, pending: Pending) -> None:
        """A long message, or one that must not overtake it."""
        self._lines.setdefault(pending.sender, deque()).append(pending)

    def first(self) -> Pending:
        """The long message of the line that has waited longest."""
        return next(iter(self._lines.values()))[0]

    def pass_on(self) -> None:
        """The first line has had its turn; it comes after all others again."""
        line = self.end()
        self._lines[line[0].sender] = line

    def end(self) -> deque[Pending]:
        """The first line, which is none any more."""
        return self._lines.pop(next(iter(self._lines)))


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
