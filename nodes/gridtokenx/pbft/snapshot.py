"""Snapshots: what is handed out of a state, and how one is put together from several peers.

Law of the file: **nothing is taken over that does not have the hash of its place.** A certificate proves
a header, the header the root of the state, a branch the hashes of the places below it, and a place its
keys. So every part proves itself, whoever sent it; a peer whose part does not is never asked again, and
whoever is silent only delays. What is here already, under whatever header it came, is not asked for:
equal contents have equal hashes.

Theory: Castro & Liskov, "Practical Byzantine Fault Tolerance and Proactive Recovery" (ACM TOCS 2002)
section 5.3 (hierarchical state partition, fetched from the root downwards) and OSDI 1999 section 4.3
(checkpoints every K requests). `Ours differs:`

* The partition tree is the state tree itself, so a checkpoint costs nothing to make and nothing to keep
  but what later blocks change: trees share what is equal.
* A checkpoint is proved by the commit certificate of its block, not by 2f + 1 checkpoint messages.
* Parts are taken from all peers in turn, not the pages from one designated replier: each proves itself.

==============  ==============================================  =========================================
table           key                                             value
==============  ==============================================  =========================================
``snapshot``    ``target``                                      `Checkpoint` that is being taken over
``snapshot``    ``handover/`` set id (8 bytes)                  `ProvenHandover` that ended that set
``snapshot``    ``part/`` prefix                                `StagedPart`: what is below that place
==============  ==============================================  =========================================

A record of a longer prefix is newer than one of a shorter prefix above it, since a part's record
replaces all below its place: read in order of length they give what had arrived. A place is believed
for its hash again when a later life goes on, so a stale record costs a question and nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.machine import Instant, NodeId, Reader, Write
from gridtokenx.core.state_tree import NO_PART, RADIX, StatePart, StateTree, part_hash
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.messages import (
    SNAPSHOT_BYTES,
    SNAPSHOT_EVENTS,
    Checkpoint,
    FetchPart,
    Part,
    ProvenHandover,
)

SNAPSHOT: Final = "snapshot"
QUESTIONS: Final = 4
"""Parts that are asked for at once, each of another peer."""
HOLD_TIMES: Final = 5
"""A checkpoint is kept for so many fetch timeouts after somebody last asked for it."""
_HELD: Final = 2
"""Most checkpoints that are kept beside the newest for those who are at them."""
_PATIENCE_TIMES: Final = 10
"""A transfer that got nothing for so many fetch timeouts is given up: blocks may do better."""
_MOST_DOUBLINGS: Final = 4
_TARGET: Final = b"target"
_HANDOVER: Final = b"handover/"
_PART: Final = b"part/"


# -- handing out -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    executed: ExecutedBlock
    proof: CommitCertificate
    asked_ms: Instant


class Checkpoints:
    """The states that this replica hands out: the newest, and those that somebody is taking over.

    Args:
        every: heights between two checkpoints.
        hold_ms: how long one is kept after it was last asked for.
    """

    def __init__(self, every: int, hold_ms: int) -> None:
        self._every: Final = max(1, every)
        self._hold_ms: Final = hold_ms
        self._kept: dict[int, _Kept] = {}

    @property
    def heights(self) -> tuple[int, ...]:
        """What is kept, ascending."""
        return tuple(sorted(self._kept))

    def committed(self, executed: ExecutedBlock, proof: CommitCertificate, now: Instant) -> None:
        """A block is committed; every so many of them is a checkpoint."""
        if executed.height % self._every == 0:
            self.keep(executed, proof, now)

    def keep(self, executed: ExecutedBlock, proof: CommitCertificate, now: Instant) -> None:
        """Keep the state after a committed block, unless the block is too large to be sent."""
        size = sum(len(transaction.encoded) for transaction in executed.block.transactions)
        size += sum(map(len, executed.events))
        if size > SNAPSHOT_BYTES or len(executed.events) > SNAPSHOT_EVENTS:
            return
        held = [h for h, kept in self._kept.items() if kept.asked_ms + self._hold_ms > now]
        self._kept = {h: self._kept[h] for h in sorted(held)[-_HELD:]}
        bare = ExecutedBlock(executed.block, executed.state, {}, executed.events)
        self._kept[executed.height] = _Kept(bare, proof, now - self._hold_ms)

    def newest(self) -> Checkpoint | None:
        """What to begin with."""
        if not self._kept:
            return None
        kept = self._kept[max(self._kept)]
        return Checkpoint(kept.executed.block, kept.proof, kept.executed.events)

    def hold(self, height: int, now: Instant) -> None:
        """Somebody was told of this one: it will ask for the parts."""
        self._kept[height].asked_ms = now

    def part(self, question: FetchPart, limit_bytes: int, now: Instant) -> StatePart:
        """What is at a place of a checkpoint; nothing if it is not kept."""
        kept = self._kept.get(question.height)
        if kept is None or max(question.prefix, default=0) >= RADIX:
            return NO_PART
        kept.asked_ms = now
        return kept.executed.state.part(question.prefix, limit_bytes)


# -- what has arrived ------------------------------------------------------------------------------


class Staging:
    """The durable part of a transfer: table ``snapshot``.

    Args:
        reader: what earlier lives of this replica persisted.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self._keys: set[bytes] = {key for key, _ in reader.scan(SNAPSHOT)}
        target = self.target()
        self.height = 0 if target is None else target.block.height
        """Of the state that is taken over; 0: none."""
        self.handovers: dict[int, ProvenHandover] = {
            int.from_bytes(key[len(_HANDOVER) :], "big"): decode_own(raw, ProvenHandover)
            for key, raw in reader.scan(SNAPSHOT, _HANDOVER)
        }
        """Those that were proved, by the set that ended."""

    def target(self) -> Checkpoint | None:
        """What is being taken over, or was when the transfer was given up."""
        raw = self._reader.get(SNAPSHOT, _TARGET)
        return None if raw is None else decode_own(raw, Checkpoint)

    def onto(self, tree: StateTree) -> StateTree:
        """A tree with all parts that had arrived."""
        parts = self._reader.scan(SNAPSHOT, _PART)
        for key, raw in sorted(parts, key=lambda record: len(record[0])):
            part = decode_own(raw, StatePart)
            tree = tree.with_part(key[len(_PART) :], part.leaves)
        return tree

    def begin(self, checkpoint: Checkpoint) -> Iterator[Write]:
        """Another state is taken over from now on; what has arrived stays."""
        self.height = checkpoint.block.height
        yield self._put(_TARGET, encode(checkpoint))

    def crossed(self, handover: ProvenHandover) -> Iterator[Write]:
        """A handover is proved."""
        set_id = handover.header.set_id
        self.handovers[set_id] = handover
        yield self._put(_HANDOVER + set_id.to_bytes(8, "big"), encode(handover))

    def arrived(self, prefix: bytes, part: StatePart) -> Iterator[Write]:
        """All that is below a place."""
        own = _PART + prefix
        for key in sorted(key for key in self._keys if key.startswith(own)):
            yield self._delete(key)
        yield self._put(own, encode(part))

    def clear(self) -> Iterator[Write]:
        """Forget everything."""
        self.height = 0
        self.handovers = {}
        for key in sorted(self._keys):
            yield self._delete(key)

    def _put(self, key: bytes, value: bytes) -> Write:
        self._keys.add(key)
        return Write(SNAPSHOT, key, value)

    def _delete(self, key: bytes) -> Write:
        self._keys.discard(key)
        return Write(SNAPSHOT, key, None)


# -- putting one together --------------------------------------------------------------------------


class Answer(Enum):
    """What an answer to `FetchPart` was worth."""

    UNASKED = auto()
    LACKING = auto()
    WRONG = auto()
    TAKEN = auto()


@dataclass(frozen=True, slots=True)
class _Question:
    peer: NodeId
    deadline_ms: Instant


class Transfer:
    """One state that is being taken over: which places are wanted, and who was asked for which.

    Args:
        checkpoint: what it is about; its certificate was checked.
        tree: what is known already.
        timeout_ms: how long a peer has to answer.
        now: the beginning.
    """

    def __init__(
        self, checkpoint: Checkpoint, tree: StateTree, timeout_ms: int, now: Instant
    ) -> None:
        self.checkpoint: Final = checkpoint
        self.tree = tree
        self.parts = 0
        """How many were taken."""
        self._timeout_ms: Final = timeout_ms
        self._wanted: list[bytes] = []
        self._hashes: dict[bytes, bytes] = {}
        self._open: dict[bytes, _Question] = {}
        self._overdue: dict[bytes, set[NodeId]] = {}
        self._arrived: list[tuple[bytes, StatePart]] = []
        self._lacking: set[NodeId] = set()
        self._late: Counter[NodeId] = Counter()
        self._turn = 0
        self._moved_ms = now
        self._want(b"", checkpoint.block.header.state_root)

    @property
    def height(self) -> int:
        """Of the state."""
        return self.checkpoint.block.height

    @property
    def complete(self) -> bool:
        """Whether `tree` is the state."""
        return not self._hashes

    def stalled(self, now: Instant) -> bool:
        """Whether it got nothing for too long."""
        return now >= self._moved_ms + _PATIENCE_TIMES * self._timeout_ms

    def servers(self, peers: Iterable[NodeId]) -> list[NodeId]:
        """Those of some peers that have not said that they lack this state."""
        return [peer for peer in peers if peer not in self._lacking]

    def questions(
        self, peers: Iterable[NodeId], now: Instant
    ) -> Iterator[tuple[NodeId, FetchPart]]:
        """What to ask now, of whom; expects an answer within the timeout."""
        self._expire(now)
        able = self.servers(peers)
        while self._wanted and len(self._open) < QUESTIONS:
            prefix = self._wanted[-1]
            if prefix not in self._hashes:  # came after all, from one that was late
                self._wanted.pop()
                continue
            peer = self._pick(able)
            if peer is None:
                return
            self._wanted.pop()
            patience_ms = self._timeout_ms << min(self._late[peer], _MOST_DOUBLINGS)
            self._open[prefix] = _Question(peer, now + patience_ms)
            yield peer, FetchPart(self.height, prefix)

    def deadline_ms(self) -> Instant | None:
        """When the first open question has waited too long; at once if there is no more to ask."""
        if self.complete:
            return 0
        return min((question.deadline_ms for question in self._open.values()), default=None)

    def answer(self, peer: NodeId, message: Part, now: Instant) -> Answer:
        """Take an answer if it is what was asked for; a late one too, if it still is of use."""
        prefix = message.prefix
        if message.height != self.height or not self._was_asked(peer, prefix):
            return Answer.UNASKED
        if part_hash(prefix, message.part) == self._hashes[prefix]:
            self._late.pop(peer, None)
            self._moved_ms = now
            self._take(prefix, message.part)
            return Answer.TAKEN
        question = self._open.get(prefix)
        if question is not None and question.peer == peer:
            del self._open[prefix]
            self._wanted.append(prefix)
        if message.part == NO_PART:
            self._lacking.add(peer)
            return Answer.LACKING
        return Answer.WRONG

    def arrived(self) -> list[tuple[bytes, StatePart]]:
        """What was taken since the last call: the places and all that is below them."""
        arrived, self._arrived = self._arrived, []
        return arrived

    # -- internals ---------------------------------------------------------------------------------

    def _was_asked(self, peer: NodeId, prefix: bytes) -> bool:
        question = self._open.get(prefix)
        is_open = question is not None and question.peer == peer
        return prefix in self._hashes and (is_open or peer in self._overdue.get(prefix, ()))

    def _take(self, prefix: bytes, part: StatePart) -> None:
        del self._hashes[prefix]
        self._open.pop(prefix, None)
        self._overdue.pop(prefix, None)
        self.parts += 1
        if not part.bitmap:
            self._keep(prefix, part)
            return
        children = dict(part.children())
        for nibble in range(RADIX):
            below = prefix + bytes((nibble,))
            if nibble in children:
                self._want(below, children[nibble])
            elif self.tree.hash_at(below) is not None:
                self._keep(below, NO_PART)

    def _keep(self, prefix: bytes, part: StatePart) -> None:
        self.tree = self.tree.with_part(prefix, part.leaves)
        self._arrived.append((prefix, part))

    def _want(self, prefix: bytes, hash_: bytes) -> None:
        if self.tree.hash_at(prefix) != hash_:
            self._hashes[prefix] = hash_
            self._wanted.append(prefix)

    def _pick(self, able: list[NodeId]) -> NodeId | None:
        """An idle peer; those that were late least often take turns."""
        busy = {question.peer for question in self._open.values()}
        idle = [peer for peer in able if peer not in busy]
        if not idle:
            return None
        fewest = min(self._late[peer] for peer in idle)
        best = [peer for peer in idle if self._late[peer] == fewest]
        self._turn += 1
        return best[self._turn % len(best)]

    def _expire(self, now: Instant) -> None:
        for prefix, question in list(self._open.items()):
            if question.deadline_ms <= now:
                del self._open[prefix]
                self._wanted.append(prefix)
                self._late[question.peer] += 1
                self._overdue.setdefault(prefix, set()).add(question.peer)


class Offers:
    """Who is asked what it hands out: one peer at a time, at most once per timeout without success.

    Args:
        timeout_ms: how long a peer has to answer.
    """

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_ms: Final = timeout_ms
        self._open: _Question | None = None
        self._next_ms: Instant = 0
        self._asked: Counter[NodeId] = Counter()
        self._awaited: set[NodeId] = set()

    def ask(self, peers: Iterable[NodeId], now: Instant) -> NodeId | None:
        """Whom to ask now, of those that may have something: the one that was asked least often."""
        if self._open is not None and self._open.deadline_ms <= now:
            self._open = None
        able = list(peers)
        if not able or self._open is not None or now < self._next_ms:
            return None
        peer = min(able, key=lambda each: self._asked[each])
        self._asked[peer] += 1
        self._awaited.add(peer)
        self._open = _Question(peer, now + self._timeout_ms)
        self._next_ms = now + self._timeout_ms
        return peer

    def worth_waiting(self) -> bool:
        """Whether to ask for nothing else meanwhile: each peer is waited for once, not for ever."""
        return self._open is not None and self._asked[self._open.peer] == 1

    def answered(self, peer: NodeId) -> bool:
        """Take note of an answer, be it late; False if nobody asked for it."""
        if peer not in self._awaited:
            return False
        self._awaited.discard(peer)
        if self._open is not None and self._open.peer == peer:
            self._open = None
        return True

    def go_on(self) -> None:
        """The answer was good, and there is more of it."""
        self._next_ms = 0

    def deadline_ms(self) -> Instant | None:
        """When the open question has waited too long."""
        return None if self._open is None else self._open.deadline_ms
