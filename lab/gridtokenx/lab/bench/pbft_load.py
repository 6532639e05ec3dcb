"""The load of `scripts/bench pbft`, a process of its own: signs first, then sends at a fixed rate.

Open loop: a transaction has a moment at which it is due, and its latency runs from there to the
moment at which this process has verified the block that holds it, whatever became late in between.
Each transaction goes to one replica, by turns; what falls due within `gather_ms` goes to a replica as
one question, as a gateway's submissions do.

Standard input: a `Plan` as JSON, then a line when to begin. Standard output: a line when all is
signed and connected, then a `Report` as JSON.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.gridtime import interval_at
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.chains import ChainFacts, ClientParts, open_follower, read_chain
from gridtokenx.host.client import executed_in
from gridtokenx.host.clock import NetworkClock, wall_ms
from gridtokenx.host.follow import FinalBlock, Follower
from gridtokenx.host.follow_messages import MAX_SUBMITTED, Submit, Submitted
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.settings import LinkSettings
from gridtokenx.lab.bench.pbft_network import GRID_EPOCH_MS, LOADER, buys, seed, signer
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

SETTLE_S: Final = 10.0
"""How long the last transactions may take."""
AGAIN_S: Final = 0.5
"""After which what was refused, or not answered, is offered to the next node; and twice that the next time."""
_TICK_S: Final = 0.002
PRODUCTS: Final = 10
ORDERS_PER_PRODUCT: Final = 2
ORDERS: Final = PRODUCTS * ORDERS_PER_PRODUCT
"""In one batch: a price step or two for each of the next half hours."""


class Plan(msgspec.Struct, frozen=True):
    """What to send."""

    home: str
    """Of the network: genesis and certificates."""
    nodes: tuple[str, ...]
    accounts: int
    rate_per_s: float
    """Transactions; 0 only watches."""
    seconds: float
    first: int
    """How many of these were sent by earlier loads: nonces go on."""
    orders: bool
    """Batches of orders in place of transfers."""
    gather_ms: int


class SeenBlock(msgspec.Struct, frozen=True):
    """A block as this process saw it."""

    height: int
    timestamp_ms: int
    seen_ms: int
    transactions: int


class Report(msgspec.Struct, frozen=True):
    """What became of it."""

    sent: int
    offered_per_s: float
    committed_per_s: float
    """Over the time of the load, or from the first block that held some to the last, if that is more."""
    latencies_ms: tuple[float, ...]
    """Of those that were committed, in the order in which they were seen."""
    failed: int
    """Calls that a block refused."""
    refusals: dict[str, int]
    blocks: tuple[SeenBlock, ...]
    cpu_s: float
    """Of this process, without signing."""
    bytes_per_transaction: float


def main() -> None:
    """Run one plan."""
    plan = msgspec.json.decode(sys.stdin.readline().encode(), type=Plan)
    facts = read_chain("consortium", Path(plan.home) / "genesis.json")
    transactions = list(_transactions(plan, facts))
    report = asyncio.run(_Load(plan, facts, transactions).run())
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _transactions(plan: Plan, facts: ChainFacts) -> Iterator[Transaction]:
    """Every account in its turn, so that each one's nonces are in order."""
    signers = [signer("account", index) for index in range(plan.accounts)]
    for number in range(plan.first, plan.first + int(plan.rate_per_s * plan.seconds)):
        own, nonce = signers[number % plan.accounts], number // plan.accounts
        calls = _orders(own, nonce) if plan.orders else _transfer(signers, number)
        yield sign_transaction(
            own,
            facts.chain_id,
            nonce,
            calls,
            fee=facts.fee(calls),
            valid_until_ms=wall_ms() + 3_600_000,
        )


def _transfer(signers: Sequence[Ed25519Signer], number: int) -> list[Wire]:
    to = signers[(number * 7 + 1) % len(signers)].public_key
    return [Transfer(denom="WATT", to=to, amount=1_000_000 + number)]


def _orders(own: Ed25519Signer, nonce: int) -> list[Wire]:
    """Two price steps in each of the next half hours."""
    buyer = buys(own.public_key)
    first = interval_at(GRID_EPOCH_MS) + 1
    return [
        PlaceOrder(
            client_order_id=nonce * ORDERS + product * ORDERS_PER_PRODUCT + step,
            zone=0,
            interval=first + product,
            side=Side.BUY if buyer else Side.SELL,
            limit_uwatt_per_kwh=4_500_000 - 100_000 * step if buyer else 2_500_000 + 100_000 * step,
            energy_wh=100 + 10 * step,
        )
        for product in range(PRODUCTS)
        for step in range(ORDERS_PER_PRODUCT)
    ]


class _Load:
    """Sends what is due, and watches for it in final blocks."""

    def __init__(self, plan: Plan, facts: ChainFacts, transactions: Sequence[Transaction]) -> None:
        self._plan = plan
        self._transactions = transactions
        self._follower = _follower(plan, facts)
        self._nodes = [NodeAddress.parse(text) for text in plan.nodes]
        self._due_s: dict[bytes, float] = {}
        self._latencies_ms: list[float] = []
        self._end_s = float("inf")
        self._failed = 0
        self._seen_s: list[float] = []
        """When blocks were seen that held some of those sent."""
        self._refusals: Counter[str] = Counter()
        self._blocks: list[SeenBlock] = []
        self._all_seen = asyncio.Event()
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self) -> Report:
        self._follower.on_final(self._look)
        following = asyncio.create_task(self._follower.run())
        await self._follower.wait_beyond(0)
        await self._follower.statuses()  # links to all of them are up before the first is sent
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        self._blocks.clear()
        before_s = time.process_time()
        began_s = time.monotonic()
        await self._send_all(began_s)
        if self._transactions:
            await self._until_all_seen()
        cpu_s = time.process_time() - before_s
        following.cancel()
        for task in self._asked:
            task.cancel()
        await asyncio.gather(following, *self._asked, return_exceptions=True)
        return self._report(cpu_s)

    def _report(self, cpu_s: float) -> Report:
        sizes = [len(transaction.encoded) for transaction in self._transactions]
        return Report(
            sent=len(self._transactions),
            offered_per_s=len(self._transactions) / self._plan.seconds,
            committed_per_s=rate_per_s(len(self._latencies_ms), self._plan.seconds, self._seen_s),
            latencies_ms=tuple(self._latencies_ms),
            failed=self._failed,
            refusals=dict(self._refusals),
            blocks=tuple(self._blocks),
            cpu_s=cpu_s,
            bytes_per_transaction=sum(sizes) / len(sizes) if sizes else 0.0,
        )

    async def _send_all(self, began_s: float) -> None:
        plan, sent = self._plan, 0
        self._end_s = began_s + plan.seconds
        gather_s = max(plan.gather_ms / 1_000, _TICK_S)
        turn = 0
        while (now_s := time.monotonic()) < self._end_s or sent < len(self._transactions):
            due = min(len(self._transactions), int((now_s - began_s) * plan.rate_per_s))
            for cut in range(sent, due, MAX_SUBMITTED):
                group = self._transactions[cut : min(due, cut + MAX_SUBMITTED)]
                for offset, transaction in enumerate(group, start=cut):
                    self._due_s[transaction.id] = began_s + offset / plan.rate_per_s
                self._spawn(turn, group)
                turn += 1
            sent = max(sent, due)
            await asyncio.sleep(gather_s - time.monotonic() % gather_s)

    def _spawn(self, turn: int, group: Sequence[Transaction]) -> None:
        task = asyncio.create_task(self._ask(turn, group))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _ask(self, turn: int, group: Sequence[Transaction]) -> None:
        """Ask one node after the other until one takes them, as clients do: a gap would stop an account."""
        question, again_s = Submit(transactions=tuple(group)), AGAIN_S
        while True:
            try:
                node = self._nodes[turn % len(self._nodes)]
                reply = await self._follower.nodes.ask_one(node, question)
                break
            except RemoteFault as fault:
                self._refusals[fault.reason] += len(group)
            turn += 1
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, SETTLE_S)
        assert isinstance(reply, Submitted), "a node answers what it was asked"
        for result in reply.results:
            if result.reason != "ok":
                self._refusals[result.reason] += 1

    async def _until_all_seen(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._all_seen.wait()
        except TimeoutError:
            self._refusals["never committed"] += len(self._due_s)

    def _look(self, block: FinalBlock) -> None:
        now_s, count, committed = time.monotonic(), 0, len(self._latencies_ms)
        for executed in executed_in(block):
            count += 1
            due_s = self._due_s.pop(executed.transaction_id, None)
            if due_s is None:
                continue
            self._latencies_ms.append((now_s - due_s) * 1_000)
            self._failed += sum(result.code != "ok" for result in executed.results)
        if len(self._latencies_ms) > committed:
            self._seen_s.append(now_s)
        header = block.header
        self._blocks.append(SeenBlock(header.height, header.timestamp_ms, wall_ms(), count))
        if not self._due_s and now_s >= self._end_s:
            self._all_seen.set()


def rate_per_s(committed: int, load_s: float, seen_s: Sequence[float]) -> float:
    """What was committed per second of a load: what piled up in it is carried off later, and takes time.

    Args:
        committed: transactions.
        load_s: how long they were offered.
        seen_s: when blocks were seen that held some of them.
    """
    return committed / max(load_s, seen_s[-1] - seen_s[0]) if seen_s else 0.0


def _follower(plan: Plan, facts: ChainFacts) -> Follower:
    home = Path(plan.home)
    link = LinkSettings(
        genesis=home / "genesis.json",
        nodes=plan.nodes,
        certificate=home / "loader.pem",
        authority=home / "ca.pem",
    )
    parts = ClientParts(seed(LOADER), NetworkClock(), Metrics(), NullLogger())
    return open_follower(facts, link, parts, first=1)


if __name__ == "__main__":
    main()
