"""What clients asked for: the pool, how long each waits, and what must be passed on.

Law of the file: **an omitted submission costs the primary its view, an impossible one does not.**
A transaction counts as omitted when it has waited its bound although it could have been in the very
next block and the latest block had room.

Theory: Castro & Liskov (OSDI 1999) section 4.4: a backup's timer runs while a request that it knows
waits. Clients there send to all replicas; here whoever hears of one passes it on to all, once, so a
silent or partial primary is noticed without the client's help (sawtooth RFC 29).
"""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Instant
from gridtokenx.ledger.blocks import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS, Block
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import MAX_BLOCK_WEIGHT, Admission, ExecutedBlock, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import GOSSIP_TRANSACTIONS

_GOSSIP_BYTES: Final = 1024 * 1024
_FULL_PERCENT: Final = 70
"""A block counts as full from here on: the next transaction may not have fitted."""


class Application(Protocol):
    """What the replica agrees about; `ledger.runtime.Ledger` is one."""

    @property
    def chain_id(self) -> bytes:
        """In every header and signature."""

    @property
    def admission(self) -> Admission:
        """Says whether a transaction could be in the very next block."""

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """A new block on `parent`, and the candidates that can not be included."""

    def execute(self, parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        """Re-run a proposed block; raises `InvalidBlock`."""

    def admit(self, state: State, transaction: Transaction, now_ms: int) -> None:
        """Whether the pool may take a transaction; raises `RemoteFault`."""

    def decode_calls(self, transaction: Transaction) -> tuple[Wire, ...]:
        """The typed calls of a transaction; raises `RemoteFault`."""

    def weight(self, calls: Iterable[Wire]) -> int:
        """Deterministic cost of calls."""


class Requests:
    """Submissions from admission until they are committed.

    Args:
        application: decides what is admissible.
        pool: where they wait.
    """

    def __init__(self, application: Application, pool: Pool) -> None:
        self._application: Final = application
        self.pool: Final = pool
        self._waiting: dict[bytes, tuple[Transaction, Instant]] = {}
        self._outgoing: list[Transaction] = []

    def add(self, head: ExecutedBlock, transaction: Transaction, now: Instant) -> bool:
        """Admit a transaction whose signature was checked; False if it is here already.

        Raises:
            RemoteFault: it can not be included; the reason is for the client.
        """
        if transaction.id in self.pool:
            return False
        self._application.admit(State(head.state), transaction, now)
        if not self.pool.add(transaction, now):
            return False
        self._waiting[transaction.id] = (transaction, now)
        return True

    def pass_on(self, transaction: Transaction) -> None:
        """Remember to gossip a transaction that came from a client."""
        self._outgoing.append(transaction)

    def gossip(self) -> Iterator[tuple[Transaction, ...]]:
        """Everything to be passed on, in messages of bounded size."""
        outgoing, self._outgoing = self._outgoing, []
        return batches(outgoing)

    def committed(self, executed: ExecutedBlock) -> None:
        """Forget what is included."""
        self.pool.discard(executed.block.transactions)

    def refused(self, head: ExecutedBlock, refused: Iterable[Transaction], now: Instant) -> None:
        """Forget those that a block could not include, unless they only came too early."""
        self.pool.discard([t for t in refused if self._hopeless(State(head.state), t, now)])

    def restart_waits(self, now: Instant) -> None:
        """A new primary gets the full bound for each."""
        self._waiting = {
            id_: (waiting, now) for id_, (waiting, _) in self._waiting.items() if id_ in self.pool
        }

    def overdue(
        self, head: ExecutedBlock, now: Instant, bound_ms: int
    ) -> tuple[list[Transaction], bool]:
        """Those that could have been included and were not.

        Returns:
            What has waited at least half the bound, to be sent to the primary again (bounded), and
            whether any has waited all of it.
        """
        state = State(head.state)
        full = self._is_full(head.block)
        waiting: list[Transaction] = []
        omitted = False
        for id_, (transaction, since) in list(self._waiting.items()):
            if id_ not in self.pool:
                del self._waiting[id_]
            elif since + bound_ms // 2 > now or len(waiting) == GOSSIP_TRANSACTIONS:
                break
            elif self._hopeless(state, transaction, now):
                self.pool.discard((transaction,))
                del self._waiting[id_]
            elif full or not self._application.admission.ready(state, transaction.body):
                self._waiting.pop(id_)
                self._waiting[id_] = (transaction, now)
            else:
                waiting.append(transaction)
                omitted = omitted or since + bound_ms <= now
        return waiting, omitted

    def _hopeless(self, state: State, transaction: Transaction, now: Instant) -> bool:
        try:
            self._application.admit(state, transaction, now)
        except RemoteFault:
            return True
        return False

    def _is_full(self, block: Block) -> bool:
        """Whether a block left no room worth speaking of (calls were decoded when it was made)."""
        if not block.transactions:
            return False
        application = self._application
        size = sum(len(transaction.encoded) for transaction in block.transactions)
        weight = sum(application.weight(application.decode_calls(t)) for t in block.transactions)
        return (
            len(block.transactions) * 100 >= MAX_BLOCK_TRANSACTIONS * _FULL_PERCENT
            or size * 100 >= MAX_BLOCK_BYTES * _FULL_PERCENT
            or weight * 100 >= MAX_BLOCK_WEIGHT * _FULL_PERCENT
        )


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
