"""Processor time that a transaction costs one replica, from the bytes on a link to those on disk.

One chain's ledger in this process, with ten thousand households and no consensus, transport or disk.
Each workload is taken through the stages of a backup: it hears of every transaction by gossip, checks
it and keeps it in its pool, gets it again inside a proposed block, executes that and stores it. The
reference is what no replica can do without: libsodium's check of the signature and one hash of the
bytes (BLAKE2b, the fastest at hand), measured between the stages.

Stages are timed apart with `time.process_time`, the least of several blocks: other work on the machine
adds to the time of a stage and never takes from it.
"""

import gc
import hashlib
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from nacl import bindings

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.core.merkle import merkle_root
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.lab.bench.ledger_world import BATCH_ORDERS, LedgerWorld, ledger_world
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.records import block_writes
from gridtokenx.ledger.runtime import ExecutedBlock, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import GOSSIP_TRANSACTIONS, Transactions
from gridtokenx.pbft.requests import Requests

ACCOUNTS: Final = 10_000
BLOCKS: Final = 6
ORDERS_PER_BLOCK: Final = 1_500
T = TypeVar("T")

STAGES: Final = (
    "decode",
    "signature",
    "pool",
    "decode block",
    "check block",
    "execute",
    "event root",
    "state tree",
    "settle pool",
    "encode",
)


class Stages:
    """The least processor seconds of each stage over several blocks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], T]) -> T:
        """Do the work once, and note how long it took."""
        started_s = time.process_time()
        result = work()
        self.note(stage, time.process_time() - started_s)
        return result

    def note(self, stage: str, seconds: float) -> None:
        """Keep the least."""
        self.seconds[stage] = min(seconds, self.seconds.get(stage, seconds))


def run() -> None:
    """Measure every workload and print a row of each."""
    started_s = time.process_time()
    world = ledger_world(ACCOUNTS)
    print(
        f"{ACCOUNTS} households, {len(world.head.state)} keys of state,"
        f" genesis in {time.process_time() - started_s:.1f} s"
    )
    print(f"{'us of processor time per transaction':<38}{'reference':>10}{'all':>8}  of which")
    print(" " * 56 + "  ".join(f"{name:>{_width(name)}}" for name in STAGES))
    rows: tuple[tuple[str, int, Callable[[int], list[Transaction]]], ...] = (
        ("transfers, 1,500 a block", 1_500, world.transfers),
        ("transfers, 200 a block", 200, world.transfers),
        ("orders, 1,500 a block", ORDERS_PER_BLOCK, world.orders),
        ("batches of 20 orders, 300 a block", 300, world.batches),
    )
    for name, count, make in rows:
        stages = Stages()
        for _ in range(BLOCKS):
            _block(world, stages, make(count))
        _print_row(name, stages, count)
        if make == world.batches:
            _print_row("    per order", stages, count * BATCH_ORDERS)
    _print_single_blocks(world)
    _print_memory(world)
    print(f"digest of all blocks {world.digest.hex()[:16]}")


def _block(world: LedgerWorld, stages: Stages, transactions: Sequence[Transaction]) -> None:
    """One block's transactions through all stages; the world follows."""
    batches = [
        encode(Transactions(tuple(transactions[at : at + GOSSIP_TRANSACTIONS])))
        for at in range(0, len(transactions), GOSSIP_TRANSACTIONS)
    ]
    proposal = Proposal(0, world.next_ms)
    built, refused = world.ledger.build(world.head, proposal, transactions)
    assert not refused, refused
    raw = encode(built.block)
    stages.time("reference", lambda: _reference(transactions))
    gc.collect()

    verifier = CachingVerifier(Ed25519Verifier(), size=1 << 20)
    requests = Requests(world.ledger, Pool())
    messages = stages.time("decode", lambda: [decode(each, Transactions) for each in batches])
    heard = [transaction for message in messages for transaction in message.transactions]
    stages.time("signature", lambda: _check(verifier, heard))
    stages.time("pool", lambda: _add(world, requests, heard))
    block = stages.time("decode block", lambda: decode(raw, Block))
    block = stages.time("check block", lambda: _check_block(verifier, requests, block))
    executed = _execute(world, stages, block)
    proposer = bytes(32)
    stages.time("settle pool", lambda: requests.committed(executed, proposer, world.next_ms))
    assert not len(requests.pool)
    stages.time("encode", lambda: block_writes(executed, None))
    world.follow(executed)


def _execute(world: LedgerWorld, stages: Stages, block: Block) -> ExecutedBlock:
    """Execute, and take the two parts out that are functions of their own."""
    parent = world.head
    started_s = time.process_time()
    executed = world.ledger.execute(parent, block)
    all_s = time.process_time() - started_s
    started_s = time.process_time()
    parent.state.update(executed.changes)
    tree_s = time.process_time() - started_s
    started_s = time.process_time()
    merkle_root(executed.events)
    roots_s = time.process_time() - started_s
    stages.note("state tree", tree_s)
    stages.note("event root", roots_s)
    stages.note("execute", all_s - tree_s - roots_s)
    return executed


def _add(world: LedgerWorld, requests: Requests, transactions: Sequence[Transaction]) -> None:
    for transaction in transactions:
        requests.add(world.head, transaction, world.next_ms)


def _check(verifier: CachingVerifier, transactions: Sequence[Transaction]) -> None:
    for transaction in transactions:
        check = transaction.signature_check()
        if not verifier.verify(check.public_key, check.message, check.signature):
            raise AssertionError("a valid signature is refused")


def _check_block(verifier: CachingVerifier, requests: Requests, block: Block) -> Block:
    """What a replica does with a proposal: only what it does not know is checked."""
    _check(verifier, [each for each in block.transactions if not requests.knows(each)])
    block = requests.recognised(block)
    if block.transaction_root != block.header.transaction_root:
        raise AssertionError("the body is another's")
    return block


def _reference(transactions: Sequence[Transaction]) -> None:
    for transaction in transactions:
        check = transaction.signature_check()
        bindings.crypto_sign_open(check.signature + check.message, check.public_key)
        hashlib.blake2b(check.message, digest_size=32).digest()


def _print_row(name: str, stages: Stages, count: int) -> None:
    each = {stage: 1e6 * stages.seconds[stage] / count for stage in ("reference", *STAGES)}
    total = sum(each[stage] for stage in STAGES)
    columns = "  ".join(f"{each[stage]:{_width(stage)}.1f}" for stage in STAGES)
    print(f"{name:<38}{each['reference']:10.1f}{total:8.1f}{'':<2}{columns}")


def _width(name: str) -> int:
    return max(6, len(name))


# -- blocks that are one of a kind -----------------------------------------------------------------


def _print_single_blocks(world: LedgerWorld) -> None:
    """An empty block, and the blocks that clear and settle a product of every household."""
    empty_s = min(_seconds(world.advance) for _ in range(20))
    print(f"an empty block {1e6 * empty_s:.0f} us")
    interval = 2
    orders = world.orders_of_all(interval)
    for at in range(0, len(orders), ORDERS_PER_BLOCK):
        world.advance(orders[at : at + ORDERS_PER_BLOCK])
    gate_ms = world.chain.market.schedule.gate_ms
    first = world.chain.market.schedule.current(world.next_ms)
    cleared_ms = gate_ms(first + interval)
    clear_s = _seconds(lambda: world.advance(at_ms=cleared_ms))
    print(f"clearing a product of {len(orders)} orders {1e3 * clear_s:.0f} ms")
    for earlier in range(interval):
        _settle(world, earlier)
    settle_s = _settle(world, interval)
    print(f"settling it with {len(orders)} meters {1e3 * settle_s:.0f} ms")


def _settle(world: LedgerWorld, interval: int) -> float:
    """Deliver the report of an interval once it is over; how long its last block took."""
    chunks = world.report(interval)
    over_ms = max(world.next_ms, world.start_ms(interval + 1))
    world.advance(chunks[:-1], at_ms=over_ms)
    return _seconds(lambda: world.advance(chunks[-1:]))


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


# -- memory ----------------------------------------------------------------------------------------


def _print_memory(world: LedgerWorld) -> None:
    """What the state of one replica takes, made anew as at a replica's start."""
    items = dict(world.head.state.items())
    payload = sum(len(key) + len(value) for key, value in items.items())
    gc.collect()
    tracemalloc.start()
    tree = (
        type(world.head.state)
        .empty()
        .update({bytes(bytearray(key)): bytes(bytearray(value)) for key, value in items.items()})
    )
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"state of {len(tree)} keys: {size / 2**20:.1f} MiB in memory,"
        f" {payload / 2**20:.1f} MiB of keys and values"
    )
