"""The pool is bounded, fair and never offers a sender's later nonce first."""

import pytest

from gridtokenx.core.keys import KeyedHashSigner
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

CHAIN = bytes(32)
A, B = KeyedHashSigner(b"a"), KeyedHashSigner(b"b")


def send(signer: KeyedHashSigner, nonce: int, fee: int = 1) -> Transaction:
    return sign_transaction(
        signer, CHAIN, nonce, [Transfer(denom="GRID", to=bytes(32), amount=1)], fee=fee
    )


def test_arrival_decides_and_nonces_stay_in_order() -> None:
    pool = Pool()
    arrivals = [send(A, 1), send(B, 0), send(A, 0)]
    for now_ms, transaction in enumerate(arrivals):
        assert pool.add(transaction, now_ms)
    assert list(pool.candidates()) == [arrivals[2], arrivals[0], arrivals[1]]
    assert pool.oldest_ms() == 0


def test_the_same_again_is_no_news() -> None:
    pool = Pool()
    assert pool.add(send(A, 0), 0)
    assert not pool.add(send(A, 0), 5)
    assert len(pool) == 1


def test_replacement_needs_a_better_fee() -> None:
    pool = Pool()
    pool.add(send(A, 0, fee=100), 0)
    with pytest.raises(InvalidTransaction, match="nonce-pending"):
        pool.add(send(A, 0, fee=109), 1)
    assert pool.add(send(A, 0, fee=110), 2)
    assert [transaction.body.fee for transaction in pool.candidates()] == [110]


def test_quotas_hold() -> None:
    pool = Pool(capacity=3, per_sender=2)
    pool.add(send(A, 0), 0)
    pool.add(send(A, 1), 0)
    with pytest.raises(InvalidTransaction, match="sender-quota"):
        pool.add(send(A, 2), 0)
    pool.add(send(B, 0), 0)
    with pytest.raises(InvalidTransaction, match="pool-full"):
        pool.add(send(B, 1), 0)


def test_discard_forgets_the_nonce_and_touch_restarts_the_waits() -> None:
    pool = Pool()
    pool.add(send(A, 0, fee=1), 0)
    pool.add(send(A, 1, fee=1), 3)
    pool.discard([send(A, 0, fee=50)])
    assert pool.oldest_ms() == 3
    pool.touch(9)
    assert pool.oldest_ms() == 9
    pool.drop_stale(lambda transaction: transaction.body.nonce == 1)
    assert len(pool) == 0
    assert pool.oldest_ms() is None
