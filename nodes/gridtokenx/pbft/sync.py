"""Catching up: certified blocks in ranges, from several peers at once.

Law of the file: **a lying peer costs only time.** Blocks are believed for their certificates, never
for their sender. A peer that does not answer, or answers with nothing, is not asked again until it
says anew where it is, and then after those that failed less often. At most `RANGES` questions are
open, and at most that many ranges are kept, so memory is bounded whatever is claimed.

The time that a peer has doubles each time that it was late (as of 4.5.2): on a network slower than the
timeout every answer would come too late, and whoever lags would do so for ever. So that a faulty peer
does not hold up a range for all that time, again and again, what was asked of it is asked as well of a
peer that failed less, once that has nothing to do; whichever answers first counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from gridtokenx.core.machine import Instant, NodeId
from gridtokenx.pbft.messages import FETCH_BLOCKS, CertifiedBlock, CertifiedBlocks, FetchBlocks

RANGES: Final = 4
_MAX_PEERS: Final = 256
_MOST_DOUBLINGS: Final = 5
_PATIENCE_TIMES: Final = 10
"""So many timeouts others have to say that they are ahead, too."""


@dataclass(frozen=True, slots=True)
class _Question:
    peers: tuple[NodeId, ...]
    """Who was asked: at first one, then any that failed less."""
    first: int
    count: int
    deadline_ms: Instant


class Sync:
    """Who claims to have what, what was asked, and what has arrived out of order."""

    def __init__(self, fetch_timeout_ms: int) -> None:
        self._timeout_ms: Final = fetch_timeout_ms
        self._claims: dict[NodeId, int] = {}
        self._open: dict[int, _Question] = {}
        self._arrived: dict[int, tuple[NodeId, CertifiedBlock]] = {}
        self._failures: dict[NodeId, int] = {}
        self._late: dict[NodeId, int] = {}
        self._lacking: dict[NodeId, int] = {}
        self._alone: tuple[int, Instant] | None = None
        self._turn = 0

    def claim(self, peer: NodeId, height: int) -> None:
        """A peer says, or shows, that it has committed up to `height`."""
        if peer in self._claims or len(self._claims) < _MAX_PEERS:
            self._claims[peer] = height

    def shows(self, peer: NodeId, height: int) -> None:
        """A peer's vote shows that it has at least `height`."""
        if self._claims.get(peer, 0) < height:
            self.claim(peer, height)

    def distrust(self, peer: NodeId) -> None:
        """Forget what a peer claims, and what it sent."""
        self._fail(peer)
        self._arrived = {h: found for h, found in self._arrived.items() if found[0] != peer}

    def behind(self, head: int) -> bool:
        """Whether some peer claims to have more."""
        return any(height > head for height in self._claims.values())

    def claimants(self, height: int) -> list[NodeId]:
        """Who claims to have at least so much."""
        return [peer for peer, claimed in self._claims.items() if claimed >= height]

    def nobody_has(self, height: int, faulty: int, now: Instant) -> bool:
        """Whether all that claim to have more said that they do not keep this block.

        So few that all of them may be faulty are believed only after a while in which no other claimed
        to have more: whoever is the first to answer must not decide what this replica does without.
        """
        lacking = {peer for peer, first in self._lacking.items() if first == height}
        if not lacking or not lacking.issuperset(self.claimants(height)):
            self._alone = None
            return False
        if self._alone is None or self._alone[0] != height:
            self._alone = height, now
        waited_ms = now - self._alone[1]
        return len(lacking) > faulty or waited_ms >= _PATIENCE_TIMES * self._timeout_ms

    def questions(self, head: int, now: Instant) -> list[tuple[NodeId, FetchBlocks]]:
        """What to ask now, of whom; expects an answer within the timeout."""
        self._expire(head, now)
        asked: list[tuple[NodeId, FetchBlocks]] = []
        first = head + 1
        limit = head + FETCH_BLOCKS * RANGES
        while first <= limit and len(self._open) < RANGES:
            known = self._open.get(first)
            if known is not None:
                asked.extend(self._asked_again(known, now))
                first += known.count
            elif first in self._arrived:
                first += 1
            else:
                count = self._gap(first, limit)
                peer = self._pick(first)
                if peer is None:
                    break
                self._open[first] = _Question((peer,), first, count, now + self._patience_ms(peer))
                asked.append((peer, FetchBlocks(first=first, count=count)))
                first += count
        return asked

    def _asked_again(
        self, question: _Question, now: Instant
    ) -> Iterator[tuple[NodeId, FetchBlocks]]:
        """What waits for a peer that failed is asked of an idle one that failed less, too."""
        rank = min(map(self._rank, question.peers))
        better = [peer for peer in self._idle(question.first) if self._rank(peer) < rank]
        if not better:
            return
        peer = min(better, key=self._rank)
        deadline_ms = min(question.deadline_ms, now + self._patience_ms(peer))
        peers = (*question.peers, peer)
        self._open[question.first] = replace(question, peers=peers, deadline_ms=deadline_ms)
        yield peer, FetchBlocks(first=question.first, count=question.count)

    def deadline_ms(self) -> Instant | None:
        """When the first open question has waited too long."""
        return min((question.deadline_ms for question in self._open.values()), default=None)

    def answer(self, peer: NodeId, message: CertifiedBlocks) -> bool:
        """Take an answer whose certificates verified; False if nobody asked for it."""
        question = self._open.get(message.first)
        if question is None or peer not in question.peers:
            return False
        others = tuple(each for each in question.peers if each != peer)
        if others and not message.blocks:
            self._open[message.first] = replace(question, peers=others)
        else:
            del self._open[message.first]
        for height, certified in enumerate(message.blocks[: question.count], message.first):
            if certified.block.height != height:
                self.distrust(peer)
                return True
            self._arrived[height] = (peer, certified)
        if not message.blocks:
            if peer in self._lacking or len(self._lacking) < _MAX_PEERS:
                self._lacking[peer] = message.first
            self.distrust(peer)
        else:
            self._failures.pop(peer, None)
        return True

    def has(self, height: int) -> bool:
        """Whether a block has arrived and waits to be taken."""
        return height in self._arrived

    def take(self, height: int) -> tuple[NodeId, CertifiedBlock] | None:
        """The block that comes next, if it has arrived; older ones are dropped."""
        for old in [h for h in self._arrived if h < height]:
            del self._arrived[old]
        return self._arrived.pop(height, None)

    def _gap(self, first: int, limit: int) -> int:
        """How many heights from `first` are neither asked for nor here."""
        count = 1
        while (
            count < FETCH_BLOCKS
            and first + count <= limit
            and first + count not in self._open
            and first + count not in self._arrived
        ):
            count += 1
        return count

    def _pick(self, height: int) -> NodeId | None:
        """An idle peer that claims to have `height`; those that failed least take turns."""
        idle = self._idle(height)
        if not idle:
            return None
        fewest = min(self._failures.get(peer, 0) for peer in idle)
        best = [peer for peer in idle if self._failures.get(peer, 0) == fewest]
        self._turn += 1
        return best[self._turn % len(best)]

    def _idle(self, height: int) -> list[NodeId]:
        """Who claims to have `height`, and is asked nothing now."""
        busy = {peer for question in self._open.values() for peer in question.peers}
        return [peer for peer in self.claimants(height) if peer not in busy]

    def _rank(self, peer: NodeId) -> tuple[int, int]:
        """The less, the better: what it failed since it was last of use, then how often it was late."""
        return self._failures.get(peer, 0), self._late.get(peer, 0)

    def _patience_ms(self, peer: NodeId) -> int:
        return self._timeout_ms << min(self._late.get(peer, 0), _MOST_DOUBLINGS)

    def _fail(self, peer: NodeId) -> None:
        self._claims.pop(peer, None)
        if peer in self._failures or len(self._failures) < _MAX_PEERS:
            self._failures[peer] = self._failures.get(peer, 0) + 1

    def _expire(self, head: int, now: Instant) -> None:
        for first, question in list(self._open.items()):
            late = question.deadline_ms <= now
            for peer in question.peers if late else ():
                self._fail(peer)
                if peer in self._late or len(self._late) < _MAX_PEERS:
                    self._late[peer] = self._late.get(peer, 0) + 1
            if late or first + question.count <= head + 1:
                del self._open[first]
