"""What clients asked for: the pool, how long each waits, and what must be passed on.

Law of the file: **an omitted submission costs the primary its view, an impossible one does not.**
A transaction counts as omitted when it has waited its bound although it could have been in the very
next block. The time of a block does not count if others' earlier work left it no room there.

What excuses a block is chosen so that an honest primary under overload always has it, and a faulty one
cannot make it. An honest primary proposes in the order of arrival, and lets no sender have more than a
quarter of a block while others wait (`Requests.candidates`). So if it passes over a transaction, the
block is at least half full (no transaction is heavier than half a block) of work that

- was here before that transaction, but for the skew of gossip: what the primary makes up on the spot,
  or hears only from its friends, was not;
- is other senders' than the proposer's;
- counts per sender up to the quarter: one busy or colluding account alone fills no block.

The work that was here before a transaction is finite, so its wait ends whatever the primary does; a
number of blocks bounds it in any case, because transactions may be heavy. An honest primary that is
suspected beyond that number proposes the transaction at once, as it is the oldest; and bounds double.

Theory: Castro & Liskov (OSDI 1999) section 4.4: a backup's timer runs while a request that it knows
waits. Clients there send to all replicas; here whoever hears of one passes it on to all, once, so a
silent or partial primary is noticed without the client's help (sawtooth RFC 29).
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Instant
from gridtokenx.ledger.blocks import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS, Block
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import (
    MAX_BLOCK_WEIGHT,
    Admission,
    ExecutedBlock,
    Proposal,
    Standing,
)
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import GOSSIP_TRANSACTIONS

_GOSSIP_BYTES: Final = 1024 * 1024
_SKEW_MS: Final = 2_000
"""What came so much later here may have come earlier to the primary: a reminder is out by then."""
MAX_EXCUSES: Final = 32
"""Blocks whose time does not count for one transaction: more than a full pool of plain ones takes."""

MAX_REMEMBERED: Final = 10_000
"""Keys of state that submissions may have read since the last block, beside those that it changed."""

_Load = tuple[int, int, int]
"""Transactions, bytes and weight."""
_LIMITS: Final[_Load] = (MAX_BLOCK_TRANSACTIONS, MAX_BLOCK_BYTES, MAX_BLOCK_WEIGHT)
_NOTHING: Final[_Load] = (0, 0, 0)
_FAIR_SHARES: Final = 4
"""A sender may have a block's capacity divided by this before others have had their turn."""
_FULL_SHARES: Final = 2
"""A block with its capacity divided by this in it may have had no room for the next transaction."""


@dataclass(slots=True)
class _Wait:
    """How long a transaction waits already."""

    transaction: Transaction
    arrival_ms: Instant
    """When it first could have been included, as far as is known here."""
    since_ms: Instant
    """Its bound runs from here: the time of blocks that excuse its absence is added."""
    excuses: int = 0
    """How many those were."""
    load: _Load | None = None
    """What it takes of a block, once somebody has asked."""


class Application(Protocol):
    """What the replica agrees about; `ledger.runtime.Ledger` is one."""

    @property
    def chain_id(self) -> bytes:
        """In every header and signature."""
        ...

    @property
    def admission(self) -> Admission:
        """Says whether a transaction could be in the very next block."""
        ...

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """A new block on `parent`, and the candidates that can not be included."""
        ...

    def execute(self, parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        """Re-run a proposed block; raises `InvalidBlock`."""
        ...

    def admit(self, state: State, transaction: Transaction, now_ms: int) -> None:
        """Whether the pool may take a transaction; raises `RemoteFault`."""

    def decode_calls(self, transaction: Transaction) -> tuple[Wire, ...]:
        """The typed calls of a transaction; raises `RemoteFault`."""
        ...

    def weight(self, calls: Iterable[Wire]) -> int:
        """Deterministic cost of one transaction of these calls."""
        ...


class Requests:
    """Submissions from admission until they are committed.

    Args:
        application: decides what is admissible.
        pool: where they wait.
    """

    def __init__(self, application: Application, pool: Pool) -> None:
        self._application: Final = application
        self.pool: Final = pool
        self._waiting: dict[bytes, _Wait] = {}
        self._by_signature: dict[bytes, Transaction] = {}
        """The same ones: in a block they are recognised for the price of a look."""
        self._committed_ms: Instant | None = None
        self._restarted_ms: Instant = 0
        self._outgoing: list[Transaction] = []
        self._kept_back: set[bytes] = set()
        self._standings: dict[bytes, Standing] = {}
        self._state: State | None = None

    def add(self, head: ExecutedBlock, transaction: Transaction, now: Instant) -> bool:
        """Admit a transaction whose signature was checked; False if it is here already.

        Raises:
            RemoteFault: it can not be included; the reason is for the client.
        """
        id_ = transaction.id
        if id_ in self.pool:
            return False
        state = self._state_after(head)
        self._application.admit(state, transaction, now)
        if not self.pool.add(transaction, now, self._standing(state, transaction.body.sender)):
            return False
        if len(self._waiting) > 2 * len(self.pool) + GOSSIP_TRANSACTIONS:
            self._forget_gone()
        self._waiting[id_] = _Wait(transaction, now, now)
        self._by_signature[transaction.signature] = transaction
        return True

    def knows(self, transaction: Transaction) -> bool:
        """Whether the very same transaction waits here, its signature checked when it came."""
        return self._by_signature.get(transaction.signature) == transaction

    def recognised(self, block: Block) -> Block:
        """The block with what waits here in place of its copies: hashes and sizes are known then."""
        known = self._by_signature
        transactions = tuple(
            found if (found := known.get(each.signature)) == each and found is not None else each
            for each in block.transactions
        )
        return Block(block.header, transactions)

    def _standing(self, state: State, sender: bytes) -> Standing:
        """How a sender stands after the newest block; asked once per sender and block."""
        found = self._standings.get(sender)
        if found is None:
            found = self._standings[sender] = self._application.admission.standing(state, sender)
        return found

    def _state_after(self, executed: ExecutedBlock) -> State:
        """The state after the newest block, read by all that is submitted until there is a newer one.

        It remembers what was read, within a bound: strangers may ask for any account.
        """
        state = self._state
        bound = len(executed.changes) + MAX_REMEMBERED
        if state is None or state.tree is not executed.state or state.remembered > bound:
            state = self._state = State(executed.state, executed.changes)
            self._standings.clear()
        return state

    def pass_on(self, transaction: Transaction, *, if_it_waits: bool = False) -> None:
        """Remember to gossip a transaction that came from a client.

        Args:
            transaction: which was added.
            if_it_waits: its source gives it to all: gossip only what the primary seems not to have.
        """
        if if_it_waits:
            self._kept_back.add(transaction.id)
        else:
            self._outgoing.append(transaction)

    def kept_back(self, waiting: Iterable[Transaction]) -> list[Transaction]:
        """Those among the waiting that were not gossiped, because they seemed to be everywhere."""
        kept = [transaction for transaction in waiting if transaction.id in self._kept_back]
        self._kept_back.difference_update(transaction.id for transaction in kept)
        return kept

    def gossip(self) -> Iterator[tuple[Transaction, ...]]:
        """Everything to be passed on, in messages of bounded size."""
        outgoing, self._outgoing = self._outgoing, []
        return batches(outgoing)

    def candidates(self) -> Iterator[Transaction]:
        """What to propose: by arrival, but what exceeds its sender's fair share comes last.

        A transaction's turn comes when it and all that its sender must send before it have arrived:
        an early one pulls no later ones forward, so a sender that never stops delays nobody.
        """
        loads: dict[bytes, _Load] = {}
        greedy: set[bytes] = set()
        deferred: list[Transaction] = []
        for transaction in self._by_arrival():
            sender = transaction.body.sender
            if sender not in greedy:
                known = loads.get(sender, _NOTHING)
                load = _sum(known, self._load(transaction))
                if known == _NOTHING or not _reaches(load, _FAIR_SHARES):
                    loads[sender] = load
                    yield transaction
                    continue
                greedy.add(sender)
            deferred.append(transaction)
        yield from deferred

    def _by_arrival(self) -> list[Transaction]:
        ordered: list[tuple[Instant, Transaction]] = []
        newest_ms: dict[bytes, Instant] = {}
        for transaction in self.pool.candidates():
            sender = transaction.body.sender
            wait = self._waiting.get(transaction.id)
            arrival_ms = 0 if wait is None else wait.arrival_ms
            newest_ms[sender] = max(arrival_ms, newest_ms.get(sender, arrival_ms))
            ordered.append((newest_ms[sender], transaction))
        ordered.sort(key=lambda each: each[0])
        return [transaction for _, transaction in ordered]

    def committed(self, executed: ExecutedBlock, proposer: bytes, now: Instant) -> None:
        """Forget what is included, and excuse the absence of what had no room.

        Args:
            executed: the new head.
            proposer: the key of the primary that first proposed it.
            now: when it was committed here.
        """
        transactions = executed.block.transactions
        full_from_ms = self._full_from_ms(transactions, proposer)
        elapsed_ms = 0 if self._committed_ms is None else max(0, now - self._committed_ms)
        self._committed_ms = now
        state = self._state_after(executed)
        self.pool.settle(transactions, lambda sender: self._standing(state, sender), now)
        for transaction in transactions:
            wait = self._waiting.pop(transaction.id, None)
            if wait is not None:
                self._by_signature.pop(wait.transaction.signature, None)
        self._kept_back.intersection_update(self._waiting)
        if full_from_ms is None:
            return
        for wait in self._waiting.values():
            if wait.arrival_ms + _SKEW_MS >= full_from_ms and wait.excuses < MAX_EXCUSES:
                wait.excuses += 1
                wait.since_ms = min(now, wait.since_ms + elapsed_ms)

    def jumped(self, head: ExecutedBlock, now: Instant) -> None:
        """Follow a head that is many blocks above the last one: keep what could still be included."""
        waiting = [wait.transaction for wait in self._waiting.values()]
        self.pool.discard(waiting)
        self._waiting, self._by_signature = {}, {}
        for transaction in waiting:
            with contextlib.suppress(RemoteFault):
                self.add(head, transaction, now)
        self._kept_back.intersection_update(self._waiting)
        self._committed_ms = now

    def refused(self, head: ExecutedBlock, refused: Iterable[Transaction], now: Instant) -> None:
        """Forget those that a block could not include, unless they only came too early."""
        state = self._state_after(head)
        self.pool.discard([t for t in refused if self._hopeless(state, t, now)])

    def restart_waits(self, now: Instant) -> None:
        """A new primary gets the full bound for each."""
        self._restarted_ms = now
        self._forget_gone()
        for wait in self._waiting.values():
            wait.since_ms = now

    def might_be_overdue(self, now: Instant, bound_ms: int) -> bool:
        """Whether it says anything that nothing is `overdue` by half the bound.

        Just after a new primary began it does not: all that waits began to wait anew.
        """
        return not len(self.pool) or now >= self._restarted_ms + bound_ms // 2

    def _forget_gone(self) -> None:
        """What the pool dropped for something better waits no more.

        It is looked at seldom, so the pool need not say whom it drops; but an account that replaces
        its own transaction again and again must not make a replica remember them all.
        """
        self._waiting = {id_: wait for id_, wait in self._waiting.items() if id_ in self.pool}
        self._by_signature = {
            wait.transaction.signature: wait.transaction for wait in self._waiting.values()
        }
        self._kept_back.intersection_update(self._waiting)

    def overdue(
        self,
        head: ExecutedBlock,
        now: Instant,
        bound_ms: int,
        proposed: Collection[bytes] = frozenset(),
        grace_ms: int = 0,
    ) -> tuple[list[Transaction], bool]:
        """Those that could have been included and were not.

        Args:
            head: the last block.
            now: the time.
            bound_ms: how long each may wait.
            proposed: ids of what the present primary has proposed: it omits none of them.
            grace_ms: how much longer than the bound those may wait. The silence timer watches one
                height; in a window of many a primary could use up each one's patience in turn.

        Returns:
            What has waited at least half the bound, to be sent to the primary again (bounded), and
            whether any has waited all of it.
        """
        state = self._state_after(head)
        waiting: list[Transaction] = []
        omitted = False
        for id_, wait in list(self._waiting.items()):
            transaction = wait.transaction
            if id_ not in self.pool:
                self._forget(id_)
            elif wait.since_ms + bound_ms // 2 > now or (
                id_ in proposed and wait.since_ms + bound_ms + grace_ms > now
            ):
                continue
            elif len(waiting) == GOSSIP_TRANSACTIONS:
                break
            elif self._hopeless(state, transaction, now):
                self.pool.discard((transaction,))
                self._forget(id_)
            elif not self._ready(state, transaction):
                wait.arrival_ms = wait.since_ms = now
            else:
                waiting.append(transaction)
                omitted = omitted or wait.since_ms + bound_ms <= now
        return waiting, omitted

    def any_late(self, proposed: Iterable[bytes], now: Instant, bound_ms: int) -> bool:
        """Whether something of what is proposed has waited half the bound."""
        waits = (self._waiting.get(id_) for id_ in proposed)
        return any(wait is not None and wait.since_ms + bound_ms // 2 <= now for wait in waits)

    def _ready(self, state: State, transaction: Transaction) -> bool:
        """Whether it could be in the very next block; an account's later ones are told by nonce."""
        body = transaction.body
        if self._standing(state, body.sender).next_nonce not in {None, body.nonce}:
            return False
        return self._application.admission.ready(state, body)

    def _forget(self, id_: bytes) -> None:
        wait = self._waiting.pop(id_)
        self._by_signature.pop(wait.transaction.signature, None)

    def _hopeless(self, state: State, transaction: Transaction, now: Instant) -> bool:
        try:
            self._application.admit(state, transaction, now)
        except RemoteFault:
            return True
        return False

    def _full_from_ms(self, transactions: Iterable[Transaction], proposer: bytes) -> Instant | None:
        """From which arrival on a transaction had no room in a block; None: there was room.

        See the head of the file for what fills a block.
        """
        known = [
            (wait.arrival_ms, transaction.body.sender, self._load(transaction))
            for transaction in transactions
            if transaction.body.sender != proposer
            and (wait := self._waiting.get(transaction.id)) is not None
        ]
        if not _reaches(_total(load for _, _, load in known), _FULL_SHARES):
            return None
        loads: dict[bytes, _Load] = {}
        total = _NOTHING
        for arrival_ms, sender, load in sorted(known, key=lambda each: each[0]):
            before = loads.get(sender, _NOTHING)
            loads[sender] = after = _sum(before, load)
            total = _sum(total, _difference(_fair(after), _fair(before)))
            if _reaches(total, _FULL_SHARES):
                return arrival_ms
        return None

    def _load(self, transaction: Transaction) -> _Load:
        """What a transaction takes of a block; found once for those that wait."""
        wait = self._waiting.get(transaction.id)
        if wait is not None and wait.load is not None:
            return wait.load
        weight = self._application.weight(self._application.decode_calls(transaction))
        load = (1, len(transaction.encoded), weight)
        if wait is not None:
            wait.load = load
        return load


def _total(loads: Iterable[_Load]) -> _Load:
    count = size = weight = 0
    for each in loads:
        count, size, weight = count + each[0], size + each[1], weight + each[2]
    return count, size, weight


def _sum(one: _Load, other: _Load) -> _Load:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _difference(one: _Load, other: _Load) -> _Load:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2]


def _fair(load: _Load) -> _Load:
    """As much of a sender's work as is its fair share."""
    count, size, weight = (
        min(each, limit // _FAIR_SHARES) for each, limit in zip(load, _LIMITS, strict=True)
    )
    return count, size, weight


def _reaches(load: _Load, shares: int) -> bool:
    """Whether any part of a load is at least its limit divided by `shares`."""
    return any(each * shares >= limit for each, limit in zip(load, _LIMITS, strict=True))


def batches(transactions: Iterable[Transaction]) -> Iterator[tuple[Transaction, ...]]:
    """Transactions in messages of bounded size."""
    batch: list[Transaction] = []
    size = 0
    for transaction in transactions:
        length = len(transaction.encoded)
        if batch and (len(batch) == GOSSIP_TRANSACTIONS or size + length > _GOSSIP_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(transaction)
        size += length
    if batch:
        yield tuple(batch)
