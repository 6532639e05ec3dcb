"""One recorded chain: what must never change is what its blocks hash to.

Orders, cancellations, refusals, transfers, an auction, reports, settlement and a correction, by block
hashes that an earlier program computed. A header commits to transactions, events and state, so a
faster ledger that differs anywhere differs here. These values change only with the protocol's version.
"""

import random

import pytest
from tests import consortium_world
from tests.consortium_world import FIRST, ConsortiumWorld, entry, genesis_of, key, order

from gridtokenx.consortium.custody import WATT_DENOM
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import CancelOrder
from gridtokenx.core.codec import encode
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.ledger.records import block_writes
from gridtokenx.ledger.tokens import Transfer

GENESIS = "2405c333510ae0576256b7f90e23cb90c86fd6edcbdc6da2a92a86a9a67d0a95"
LAST = "a39866ba6edac5bd732fa871bf407e8cd7fa700ce42c79ae999b02da34897307"
STORED = "04f1c71f765e96cd828e0fba96126bae21f5ee0bc671efbb1ec72d04c7025356"
"""Over every record that the chain's blocks write to disk."""


def _trade(world: ConsortiumWorld, draw: random.Random, interval: int) -> None:
    """A block of every household's orders, some of them refused, one taken back."""
    for name in (*(f"b{n}" for n in range(6)), *(f"s{n}" for n in range(6))):
        side = Side.BUY if name[0] == "b" else Side.SELL
        low, high = (3_900, 5_600) if side is Side.BUY else (2_300, 3_600)
        orders = [
            order(n, interval, side, draw.randrange(low, high), draw.randrange(50, 1_200))
            for n in range(draw.randrange(1, 10))
        ]
        back = CancelOrder(zone=0, interval=interval, client_order_id=draw.randrange(4))
        gift = Transfer(WATT_DENOM, key(f"s{draw.randrange(9)}"), draw.randrange(10**9))
        world.submit(name, *orders, back, gift)
    world.block()


def test_a_recorded_chain_is_executed_to_the_same_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        consortium_world, "signer", lambda name: Ed25519Signer(name.encode().ljust(32))
    )
    world, draw = ConsortiumWorld(genesis_of(6, 6)), random.Random(7)
    hashes, stored = sha256(world.head.hash), sha256()
    assert world.head.hash.hex() == GENESIS

    def follow() -> None:
        nonlocal hashes, stored
        hashes = sha256(hashes, world.head.hash)
        writes = sorted((w.table, w.key, w.value) for w in block_writes(world.head, b""))
        stored = sha256(stored, encode(writes))

    for interval in range(FIRST + 1, FIRST + 5):
        _trade(world, draw, interval)
        follow()
        world.run_until(world.start_ms(interval) + 1_000, 5_000)
        follow()
        entries = [
            entry(name, draw.randrange(900), draw.randrange(900))
            for name in (*(f"b{n}" for n in range(6)), *(f"s{n}" for n in range(6)))
        ]
        entries += [entry("b0", 5, 5, corrects=interval - 2)] * (interval > FIRST + 2)
        world.deliver(interval - 1, entries)
        follow()
    assert hashes.hex() == LAST
    assert stored.hex() == STORED
