"""Pending transactions, in the order in which they came.

Law of the file: **bounded and fair.** A sender has at most `per_sender` pending transactions, the
pool at most `capacity`; arrival order decides, except that a sender's own go by nonce. The pool
never looks inside a transaction: `Ledger.admit` has done that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.transactions import Transaction

REPLACEMENT_PERCENT: Final = 110
"""A replacement must offer at least this share of the fee of what it replaces."""


@dataclass(frozen=True, slots=True)
class _Pending:
    transaction: Transaction
    arrival_ms: int


class Pool:
    """Admitted transactions that wait for a block.

    Args:
        capacity: most pending transactions in all.
        per_sender: most pending transactions of one sender.
    """

    def __init__(self, capacity: int = 20_000, per_sender: int = 512) -> None:
        self._capacity: Final = capacity
        self._per_sender: Final = per_sender
        self._by_id: dict[bytes, _Pending] = {}
        self._by_sender: dict[bytes, dict[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self._by_id

    def add(self, transaction: Transaction, now_ms: int) -> bool:
        """Take an admitted transaction; False if it is here already.

        Raises:
            InvalidTransaction: the pool or the sender's share is full, or it would replace one of
                the same nonce without a better fee.
        """
        if transaction.id in self._by_id:
            return False
        body = transaction.body
        own = self._by_sender.get(body.sender, {})
        rival = own.get(body.nonce)
        if rival is not None:
            self._check_replacement(self._by_id[rival].transaction, transaction)
            self.discard((self._by_id[rival].transaction,))
        elif len(own) >= self._per_sender:
            raise InvalidTransaction("sender-quota", f"{self._per_sender} pending already")
        elif len(self._by_id) >= self._capacity:
            raise InvalidTransaction("pool-full", f"{self._capacity} pending already; try later")
        self._by_id[transaction.id] = _Pending(transaction, now_ms)
        self._by_sender.setdefault(body.sender, {})[body.nonce] = transaction.id
        return True

    def candidates(self) -> Iterator[Transaction]:
        """All pending ones for a block: by arrival, but never a sender's later nonce first."""
        done: set[bytes] = set()
        for pending in list(self._by_id.values()):
            sender = pending.transaction.body.sender
            if sender in done:
                continue
            done.add(sender)
            own = self._by_sender[sender]
            for nonce in sorted(own):
                yield self._by_id[own[nonce]].transaction

    def oldest_ms(self) -> int | None:
        """When the longest-waiting transaction arrived; None if nothing is pending."""
        return next((pending.arrival_ms for pending in self._by_id.values()), None)

    def touch(self, now_ms: int) -> None:
        """Start every wait anew: after a view change each pending one gets a full bound again."""
        self._by_id = {
            key: _Pending(pending.transaction, now_ms) for key, pending in self._by_id.items()
        }

    def discard(self, transactions: Iterable[Transaction]) -> None:
        """Forget transactions, included or refused, and others of the same sender and nonce."""
        for transaction in transactions:
            body = transaction.body
            own = self._by_sender.get(body.sender)
            if own is None:
                continue
            known = own.pop(body.nonce, None)
            if known is not None:
                del self._by_id[known]
            if not own:
                del self._by_sender[body.sender]

    def drop_stale(self, is_stale: Callable[[Transaction], bool]) -> None:
        """Forget whatever can no longer be included."""
        self.discard([p.transaction for p in self._by_id.values() if is_stale(p.transaction)])

    @staticmethod
    def _check_replacement(old: Transaction, new: Transaction) -> None:
        if new.body.fee * 100 < old.body.fee * REPLACEMENT_PERCENT or new.body.fee <= old.body.fee:
            raise InvalidTransaction(
                "nonce-pending", f"offer more than {old.body.fee * REPLACEMENT_PERCENT // 100}"
            )
