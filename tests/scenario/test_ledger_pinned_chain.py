"""One recorded chain: what must never change is what its blocks hash to.

Orders, cancellations, refusals, transfers, an auction, reports, settlement and a correction, by block
hashes that an earlier program computed. A header commits to transactions, events and state, so a
faster ledger that differs anywhere differs here. These values change only with the protocol's version.
"""

import random

from tests.consortium_world import FIRST, ConsortiumWorld, entry, genesis_of, key, order

from gridtokenx.consortium.custody import WATT_DENOM
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import CancelOrder
from gridtokenx.core.codec import encode
from gridtokenx.core.keys import sha256
from gridtokenx.ledger.records import block_writes
from gridtokenx.ledger.tokens import Transfer

GENESIS = "8adf03735da8908b03640f7f7ae00262f5cf139a5ef08534021131e6c0c1482b"
LAST = "36e35eda4a11d57186209aea357be27eb576e629ba7c26fd322f936fe15f3320"
STORED = "d7a306cc8da650036e04e797fa80093c970c961584e64186a3da79fbcb940b39"
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


def test_a_recorded_chain_is_executed_to_the_same_hashes() -> None:
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
