"""The pool is bounded, fair, never full for nothing, and keeps a sender's nonces in order."""

import random
from contextlib import suppress

import pytest

from gridtokenx.core.keys import KeyedHashSigner
from gridtokenx.ledger.pool import (
    GAPPED_LIFETIME_MS,
    LIFETIME_MS,
    MAX_GAPPED,
    SWEEP_MS,
    Pool,
)
from gridtokenx.ledger.runtime import InvalidTransaction, Standing
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import FOREVER_MS, Transaction, sign_transaction

CHAIN = bytes(32)
A, B, C = KeyedHashSigner(b"a"), KeyedHashSigner(b"b"), KeyedHashSigner(b"c")
FRESH = Standing(next_nonce=0, budget=10**9)


def send(
    signer: KeyedHashSigner, nonce: int, fee: int = 1, valid_until_ms: int = FOREVER_MS
) -> Transaction:
    call = Transfer(denom="GRID", to=bytes(32), amount=1)
    return sign_transaction(signer, CHAIN, nonce, [call], fee=fee, valid_until_ms=valid_until_ms)


def at(next_nonce: int | None, budget: int | None = 10**9) -> Standing:
    return Standing(next_nonce=next_nonce, budget=budget)


def test_arrival_decides_and_nonces_stay_in_order() -> None:
    pool = Pool()
    arrivals = [send(A, 1), send(B, 0), send(A, 0)]
    for now_ms, transaction in enumerate(arrivals):
        assert pool.add(transaction, now_ms, FRESH)
    assert list(pool.candidates()) == [arrivals[2], arrivals[0], arrivals[1]]


def test_where_nonces_have_no_order_nothing_is_gapped() -> None:
    pool = Pool()
    sent = [send(A, nonce, fee=0) for nonce in range(0, 200, 7)]
    for transaction in sent:
        assert pool.add(transaction, 0, at(None, None))
    assert pool.gapped == 0
    assert list(pool.candidates()) == sent
    pool.settle(sent[3:5], lambda _sender: at(None, None), 10)
    assert list(pool.candidates()) == sent[:3] + sent[5:]


def test_the_same_again_is_no_news() -> None:
    pool = Pool()
    assert pool.add(send(A, 0), 0, FRESH)
    assert not pool.add(send(A, 0), 5, FRESH)
    assert len(pool) == 1


def test_a_replacement_must_pay_for_its_place() -> None:
    pool = Pool()
    pool.add(send(A, 0, fee=100), 0, FRESH)
    pool.add(send(A, 1, fee=100), 0, FRESH)
    with pytest.raises(InvalidTransaction, match="nonce-pending"):
        pool.add(send(A, 0, fee=109), 1, FRESH)
    assert pool.add(send(A, 0, fee=110), 2, FRESH)
    assert [each.body.fee for each in pool.candidates()] == [110, 100]
    assert pool.gapped == 0


def test_quotas_hold() -> None:
    pool = Pool(capacity=3, per_sender=2)
    pool.add(send(A, 0), 0, FRESH)
    pool.add(send(A, 1), 0, FRESH)
    with pytest.raises(InvalidTransaction, match="sender-quota"):
        pool.add(send(A, 2), 0, FRESH)
    pool.add(send(B, 0), 0, FRESH)
    with pytest.raises(InvalidTransaction, match="pool-full"):
        pool.add(send(B, 1), 0, FRESH)


# -- gaps ------------------------------------------------------------------------------------------


def test_the_pool_can_not_be_filled_with_nonces_that_never_come() -> None:
    """79 accounts with one fee each took all places, for ever."""
    pool = Pool(capacity=400)
    for number in range(79):
        signer = KeyedHashSigner(b"%d" % number)
        for nonce in range(1, 257):
            with suppress(InvalidTransaction):
                pool.add(send(signer, nonce), 0, at(0, budget=10**6))
    assert pool.gapped == len(pool) == 100
    for nonce in range(300):
        assert pool.add(send(A, nonce), 1, FRESH)
    assert list(pool.candidates()) == [send(A, nonce) for nonce in range(300)]
    assert pool.add(send(B, 0), 2, FRESH), "a gapped one makes room"
    assert (pool.gapped, len(pool)) == (99, 400)
    pool.expire(GAPPED_LIFETIME_MS + 3)
    assert (pool.gapped, len(pool)) == (0, 301)


def test_few_of_a_sender_may_wait_for_a_nonce() -> None:
    pool = Pool()
    for nonce in range(1, MAX_GAPPED + 1):
        pool.add(send(A, nonce), 0, FRESH)
    with pytest.raises(InvalidTransaction, match="gap-quota"):
        pool.add(send(A, 200), 0, FRESH)
    assert list(pool.candidates()) == []
    pool.add(send(A, 0), 0, FRESH)
    assert pool.gapped == 0
    assert [each.body.nonce for each in pool.candidates()] == list(range(MAX_GAPPED + 1))
    assert pool.add(send(A, 200), 0, FRESH)


def test_what_a_refused_one_leaves_behind_is_gapped() -> None:
    pool = Pool()
    sent = [send(A, nonce) for nonce in range(4)]
    for transaction in sent:
        pool.add(transaction, 0, FRESH)
    pool.discard([sent[1]])
    assert list(pool.candidates()) == [sent[0]]
    assert pool.gapped == 2
    pool.add(sent[1], 5, FRESH)
    assert list(pool.candidates()) == sent


# -- room ------------------------------------------------------------------------------------------


def test_a_full_pool_forgets_the_lowest_fee_then_the_oldest() -> None:
    pool = Pool(capacity=3)
    cheap = [send(A, 0, fee=5), send(B, 0, fee=5)]
    dear = send(C, 0, fee=9)
    for transaction in (*cheap, dear):
        pool.add(transaction, 0, FRESH)
    late = send(KeyedHashSigner(b"d"), 0, fee=6)
    assert pool.add(late, 1, FRESH)
    assert list(pool.candidates()) == [cheap[1], dear, late]
    with pytest.raises(InvalidTransaction, match="pool-full"):
        pool.add(send(KeyedHashSigner(b"e"), 0, fee=5), 2, FRESH)


def test_a_gapped_one_never_takes_the_place_of_a_ready_one() -> None:
    pool = Pool(capacity=4)
    for nonce in range(4):
        pool.add(send(A, nonce, fee=1), 0, FRESH)
    with pytest.raises(InvalidTransaction, match="pool-full"):
        pool.add(send(B, 7, fee=1_000), 0, at(7 - 1))
    assert len(pool) == 4


def test_all_that_is_pending_must_be_payable_together() -> None:
    pool = Pool()
    pool.add(send(A, 0, fee=40), 0, at(0, budget=100))
    pool.add(send(A, 1, fee=40), 0, at(0, budget=100))
    with pytest.raises(InvalidTransaction, match="fee-unpaid"):
        pool.add(send(A, 2, fee=40), 0, at(0, budget=100))
    assert pool.add(send(A, 1, fee=60), 0, at(0, budget=100)), "a replacement counts once"


# -- blocks and time -------------------------------------------------------------------------------


def test_a_block_settles_its_senders_and_touches_no_others() -> None:
    pool = Pool()
    for nonce in range(4):
        pool.add(send(A, nonce, fee=10), 0, FRESH)
    pool.add(send(B, 0), 0, FRESH)
    asked: list[bytes] = []

    def standing_of(sender: bytes) -> Standing:
        asked.append(sender)
        return at(2, budget=10)

    other = send(A, 1, fee=99)
    pool.settle([send(A, 0, fee=10), other], standing_of, 1_000)
    assert asked == [A.public_key]
    assert list(pool.candidates()) == [send(A, 2, fee=10), send(B, 0)], "nonce 3 is unpaid"


def test_after_a_block_only_who_has_more_is_asked_about() -> None:
    """Also who has one left, if that is another than what the block includes."""
    pool, asked = Pool(), list[bytes]()

    def standing_of(sender: bytes) -> Standing:
        asked.append(sender)
        return at(1)

    for transaction in (send(A, 0), send(B, 1), send(C, 0), send(C, 1)):
        pool.add(transaction, 0, FRESH)
    pool.settle([send(A, 0), send(B, 0), send(C, 0)], standing_of, 10)
    assert set(asked) == {B.public_key, C.public_key}
    assert set(pool.candidates()) == {send(B, 1), send(C, 1)}
    assert pool.gapped == 0


def test_a_fork_that_takes_a_nonce_back_opens_a_gap() -> None:
    pool = Pool()
    sent = [send(A, nonce) for nonce in range(3)]
    for transaction in sent:
        pool.add(transaction, 0, FRESH)
    pool.settle(sent[:2], lambda _sender: at(2), 10)
    assert list(pool.candidates()) == sent[2:]
    pool.add(sent[1], 20, at(0))
    assert (list(pool.candidates()), pool.gapped) == ([], 2)
    pool.add(sent[0], 20, at(0))
    assert list(pool.candidates()) == sent


def test_nothing_waits_for_ever() -> None:
    pool = Pool()
    pool.add(send(A, 0), 0, FRESH)
    pool.add(send(B, 0, valid_until_ms=SWEEP_MS), 0, FRESH)
    pool.add(send(C, 1), 0, FRESH)
    pool.expire(SWEEP_MS + 1)
    assert len(pool) == 2
    pool.expire(GAPPED_LIFETIME_MS + SWEEP_MS)
    assert len(pool) == 1
    pool.expire(LIFETIME_MS + 1)
    assert len(pool) == 0


def test_the_books_agree_with_a_slow_count() -> None:
    """Whatever happens, in any order: what is ready is the unbroken run from the account's nonce."""
    chance = random.Random(7)
    for _ in range(60):
        pool = Pool(capacity=24, per_sender=10)
        nexts = dict.fromkeys((A, B, C), 0)
        for step in range(120):
            signer = chance.choice((A, B, C))
            sent = send(signer, nexts[signer] + chance.randrange(6), fee=chance.randrange(1, 9))
            action = chance.randrange(8)
            if action == 0:
                nexts[signer] += 1
                included = [send(signer, nexts[signer] - 1)]
                pool.settle(included, lambda _s, n=nexts[signer]: at(n, 40), step * 900)
            elif action == 1:
                pool.discard([sent])
            else:
                with suppress(InvalidTransaction):
                    pool.add(sent, step * 900, at(nexts[signer], 40))
            _check(pool, {each.public_key: nonce for each, nonce in nexts.items()})
            if chance.randrange(8) == 0:
                _check_least(pool)


def _check(pool: Pool, nexts: dict[bytes, int]) -> None:
    everything = [each.transaction for each in pool._by_id.values()]
    assert len(everything) == len(pool) <= 24
    ready = set()
    for sender, next_nonce in nexts.items():
        own = {each.body.nonce: each for each in everything if each.body.sender == sender}
        assert len(own) <= 10
        nonce = next_nonce
        while nonce in own:
            ready.add(own[nonce].id)
            nonce += 1
        assert sum(each.body.fee for each in own.values()) <= 40
    assert {each.id for each in pool.candidates()} == ready
    assert pool.gapped == len(pool) - len(ready)


def _check_least(pool: Pool) -> None:
    """Who has to go is found without looking through all; this does look."""
    for found, among in (
        (pool._cheapest.least(), pool._by_id),
        (pool._cheapest_gapped.least(), pool._gapped),
    ):
        assert found is min(among.values(), key=lambda each: each.worth, default=None)
