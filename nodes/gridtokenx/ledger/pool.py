"""Pending transactions, in the order in which they came.

Law of the file: **bounded, fair, and never full for nothing.** Who could be in the very next block
comes before who could not, whatever was here first:

===========  ==============================================  =====================================
kind         a transaction is                                 places
===========  ==============================================  =====================================
in sequence  next for its account, or follows pending ones   `per_sender`, and all of `capacity`
gapped       behind a nonce that is not here                 `MAX_GAPPED` a sender, a quarter in all
===========  ==============================================  =====================================

A full pool makes room at the cost of the gapped first, then of the lowest fee, then of the oldest.
A gapped one leaves after `GAPPED_LIFETIME_MS`. What a sender has pending must be payable together.
Chains without an order of nonces have no gaps. The pool never looks inside a transaction:
`Ledger.admit` has done that, and `Admission.standing` says how its sender stands.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gridtokenx.ledger.runtime import InvalidTransaction, Standing
from gridtokenx.ledger.transactions import Transaction

REPLACEMENT_PERCENT: Final = 110
"""A replacement must offer at least this share of the fee of what it replaces."""
MAX_GAPPED: Final = 16
"""Transactions of one sender that wait for a nonce that is not here."""
GAPPED_SHARE: Final = 4
"""One part in so many of the pool may be gapped."""
GAPPED_LIFETIME_MS: Final = 120_000
"""Network time in which the missing nonce has to come."""
LIFETIME_MS: Final = 3_600_000
"""Network time after which any other is forgotten: nobody included it, so nobody will."""
SWEEP_MS: Final = 5_000
"""The whole pool is looked through for what is too old at most so often."""
UNORDERED: Final = Standing(next_nonce=None, budget=None)


class _Pending(msgspec.Struct, frozen=True, eq=False):
    transaction: Transaction
    arrival_ms: int
    number: int
    """Counts arrivals."""

    @property
    def worth(self) -> tuple[int, int]:
        """What is smallest goes first when there is no room: the lowest fee, then the oldest."""
        return self.transaction.body.fee, self.number


@dataclass(slots=True)
class _Sender:
    """One sender's pending transactions."""

    next_nonce: int | None
    """Of the account, in the newest block; None where nonces have no order."""
    by_nonce: dict[int, _Pending] = field(default_factory=dict)
    run_end: int = 0
    """Where nonces are in order: the first one that is missing."""
    fees: int = 0

    def is_gapped(self, nonce: int) -> bool:
        return self.next_nonce is not None and nonce > self.run_end


class _Cheapest:
    """Finds the one worth least among pending transactions that come and go.

    Args:
        among: by id, kept by somebody else, who says here what comes; what goes is passed over.
    """

    def __init__(self, among: Mapping[bytes, _Pending]) -> None:
        self._among: Final = among
        self._heap: list[tuple[tuple[int, int], bytes]] = []

    def came(self, pending: _Pending) -> None:
        if len(self._heap) > 2 * len(self._among) + MAX_GAPPED:
            self._heap = [(each.worth, id_) for id_, each in self._among.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (pending.worth, pending.transaction.id))

    def least(self) -> _Pending | None:
        while self._heap:
            worth, id_ = self._heap[0]
            found = self._among.get(id_)
            if found is not None and found.worth == worth:
                return found
            heapq.heappop(self._heap)
        return None


class Pool:
    """Admitted transactions that wait for a block.

    Args:
        capacity: most pending transactions in all.
        per_sender: most pending transactions of one sender.
    """

    def __init__(self, capacity: int = 20_000, per_sender: int = 512) -> None:
        self._capacity: Final = capacity
        self._per_sender: Final = per_sender
        self._by_id: Final[dict[bytes, _Pending]] = {}
        self._senders: dict[bytes, _Sender] = {}
        self._gapped: Final[dict[bytes, _Pending]] = {}
        self._cheapest: Final = _Cheapest(self._by_id)
        self._cheapest_gapped: Final = _Cheapest(self._gapped)
        self._arrivals = itertools.count()
        self._swept_ms = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self._by_id

    @property
    def gapped(self) -> int:
        """How many wait for a nonce that is not here."""
        return len(self._gapped)

    def add(self, transaction: Transaction, now_ms: int, standing: Standing = UNORDERED) -> bool:
        """Take an admitted transaction; False if it is here already.

        Args:
            transaction: admitted by the ledger on the newest block.
            now_ms: network time.
            standing: of its sender, on the same block.

        Raises:
            InvalidTransaction: there is no room for one like it, its sender could not pay for all
                that is pending, or it would replace one of the same nonce without a better fee.
        """
        id_, body = transaction.id, transaction.body
        if id_ in self._by_id:
            return False
        own = self._senders.get(body.sender) or _sender(standing)
        self._renew(own, standing.next_nonce)
        rival = own.by_nonce.get(body.nonce)
        replaced_fee = 0
        if rival is not None:
            _check_replacement(rival.transaction, transaction)
            replaced_fee = rival.transaction.body.fee
        elif len(own.by_nonce) >= self._per_sender:
            raise InvalidTransaction("sender-quota", f"{self._per_sender} pending already")
        if standing.budget is not None and own.fees + body.fee - replaced_fee > standing.budget:
            raise InvalidTransaction(
                "fee-unpaid", "the account can not pay for all its pending ones"
            )
        pending = _Pending(transaction, now_ms, next(self._arrivals))
        if rival is None:
            self._make_room(own, pending)
        else:
            self._forget(rival)
        self._senders[body.sender] = own
        self._keep(own, pending)
        return True

    def candidates(self) -> Iterator[Transaction]:
        """Those that could be in the next block: by arrival, but a sender's own by nonce."""
        done: set[bytes] = set()
        for pending in list(self._by_id.values()):
            sender = pending.transaction.body.sender
            if sender in done:
                continue
            done.add(sender)
            own = self._senders[sender]
            for nonce in sorted(nonce for nonce in own.by_nonce if not own.is_gapped(nonce)):
                yield own.by_nonce[nonce].transaction

    def discard(self, transactions: Iterable[Transaction]) -> None:
        """Forget transactions that were refused, and others of the same sender and nonce."""
        for transaction in transactions:
            own = self._senders.get(transaction.body.sender)
            pending = own and own.by_nonce.get(transaction.body.nonce)
            if pending:
                self._forget(pending)

    def settle(
        self,
        included: Iterable[Transaction],
        standing_of: Callable[[bytes], Standing],
        now_ms: int,
    ) -> None:
        """Follow a block: forget what it included, and of its senders what it made impossible.

        Args:
            included: the block's transactions.
            standing_of: how a sender stands after the block.
            now_ms: network time.
        """
        block = tuple(included)
        last = {transaction.body.sender: transaction.body.nonce for transaction in block}
        for sender, nonce in last.items():
            own = self._senders.get(sender)
            if own is None or (len(own.by_nonce) == 1 and nonce in own.by_nonce):
                continue  # of most nothing is left but what the block has, and goes below
            standing = standing_of(sender)
            self._renew(own, standing.next_nonce)
            self._cut_to_budget(own, standing.budget)
        self.discard(block)
        self.expire(now_ms)

    def expire(self, now_ms: int) -> None:
        """Forget what has waited too long, or is valid no more; looks at most every `SWEEP_MS`."""
        if now_ms < self._swept_ms + SWEEP_MS:
            return
        self._swept_ms = now_ms
        for id_, pending in list(self._by_id.items()):
            lifetime_ms = GAPPED_LIFETIME_MS if id_ in self._gapped else LIFETIME_MS
            valid_until_ms = pending.transaction.body.valid_until_ms
            if pending.arrival_ms + lifetime_ms < now_ms or valid_until_ms < now_ms:
                self._forget(pending)

    # -- room --------------------------------------------------------------------------------------

    def _make_room(self, own: _Sender, pending: _Pending) -> None:
        """Check the shares, and forget what is worth less where there is no place left."""
        gapped = own.is_gapped(pending.transaction.body.nonce)
        if gapped and sum(map(own.is_gapped, own.by_nonce)) >= MAX_GAPPED:
            raise InvalidTransaction("gap-quota", f"{MAX_GAPPED} wait for a nonce already")
        full = len(self._by_id) >= self._capacity
        if gapped and (full or len(self._gapped) >= self._capacity // GAPPED_SHARE):
            self._evict(pending, self._cheapest_gapped.least())
        elif full and (least := self._cheapest_gapped.least()) is not None:
            self._forget(least)
        elif full:
            self._evict(pending, self._cheapest.least())

    def _evict(self, pending: _Pending, least: _Pending | None) -> None:
        """Forget `least` for one that offers more."""
        fee = pending.transaction.body.fee
        if least is None or least.transaction.body.fee >= fee:
            raise InvalidTransaction("pool-full", "nobody here offers less; try later")
        self._forget(least)

    def _cut_to_budget(self, own: _Sender, budget: int | None) -> None:
        """Forget a sender's last ones until it could pay for the rest."""
        while budget is not None and own.fees > budget:
            self._forget(own.by_nonce[max(own.by_nonce)])

    # -- books -------------------------------------------------------------------------------------

    def _keep(self, own: _Sender, pending: _Pending) -> None:
        body, id_ = pending.transaction.body, pending.transaction.id
        self._by_id[id_] = own.by_nonce[body.nonce] = pending
        own.fees += body.fee
        self._cheapest.came(pending)
        if own.is_gapped(body.nonce):
            self._set_apart(pending)
        self._extend(own)

    def _forget(self, pending: _Pending) -> None:
        body, id_ = pending.transaction.body, pending.transaction.id
        own = self._senders[body.sender]
        del self._by_id[id_], own.by_nonce[body.nonce]
        self._gapped.pop(id_, None)
        own.fees -= body.fee
        if own.next_nonce is not None and own.next_nonce <= body.nonce < own.run_end:
            own.run_end = body.nonce
            self._regroup(own)
        if not own.by_nonce:
            del self._senders[body.sender]

    def _renew(self, own: _Sender, next_nonce: int | None) -> None:
        """Take over the account's nonce of the newest block; lower ones are used."""
        if next_nonce is None or own.next_nonce == next_nonce:
            return
        own.next_nonce = own.run_end = next_nonce
        for nonce in [each for each in own.by_nonce if each < next_nonce]:
            self._forget(own.by_nonce[nonce])
        self._regroup(own)

    def _regroup(self, own: _Sender) -> None:
        """Find anew which of a sender's are gapped, from the first nonce that may be missing."""
        for nonce, pending in own.by_nonce.items():
            if own.is_gapped(nonce):
                self._set_apart(pending)
        self._extend(own)

    def _set_apart(self, pending: _Pending) -> None:
        id_ = pending.transaction.id
        if id_ not in self._gapped:
            self._gapped[id_] = pending
            self._cheapest_gapped.came(pending)

    def _extend(self, own: _Sender) -> None:
        """Let the run go on through what is here."""
        while own.next_nonce is not None and (found := own.by_nonce.get(own.run_end)):
            self._gapped.pop(found.transaction.id, None)
            own.run_end += 1


def _sender(standing: Standing) -> _Sender:
    return _Sender(next_nonce=standing.next_nonce, run_end=standing.next_nonce or 0)


def _check_replacement(old: Transaction, new: Transaction) -> None:
    if new.body.fee * 100 < old.body.fee * REPLACEMENT_PERCENT or new.body.fee <= old.body.fee:
        raise InvalidTransaction(
            "nonce-pending", f"offer more than {old.body.fee * REPLACEMENT_PERCENT // 100}"
        )
