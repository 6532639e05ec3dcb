"""Relayers at work on chains in memory: a driver of the pure relayer in virtual time.

The world makes a block on each chain at its own pace, tells every relayer of it a little later,
answers their reads from the chains' states and puts what they submit into the next block. Faults
are options: reads that fail, a node that lies about values, a relayer that is silent.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gridtokenx.bridge.relayer.book import ChainSpec, Facing
from gridtokenx.bridge.relayer.edge import (
    Advanced,
    Asked,
    FetchHandover,
    HandedOver,
    Heard,
    Proven,
    Read,
    ReadDone,
    ReadFailed,
    Settled,
    Submit,
    WakeAt,
    Woke,
)
from gridtokenx.bridge.relayer.machine import Options, Relayer
from gridtokenx.core.keys import Signer
from gridtokenx.interchain import calls
from gridtokenx.ledger.runtime import Executed
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from tests.interchain_chains import TestChain, account, three_chains

BLOCK_MS = {"oracle": 1_000, "consortium": 1_000, "public": 6_000}
SERVED_HEIGHTS = 64


def specs(chains: dict[str, TestChain]) -> list[ChainSpec]:
    return [
        ChainSpec(
            name,
            {client: Facing(*facing) for client, facing in chain.facing.items()},
            retry_ms=5 * BLOCK_MS[name],
            stagger_ms=3 * BLOCK_MS[name],
        )
        for name, chain in chains.items()
    ]


@dataclass
class Driven:
    """One relayer and its driver's state."""

    signer: Signer
    machine: Relayer
    silent: bool = False
    wake_ms: int | None = None
    told: dict[str, int] = field(default_factory=dict)
    """By chain, the height of the last block it heard of."""


@dataclass
class Pending:
    relayer: Driven
    submit: Submit


@dataclass
class World:
    relayers: int = 2
    seed: int = 0
    read_failures: float = 0.0
    lie: Callable[[Proven], Proven] = lambda proven: proven
    chains: dict[str, TestChain] = field(default_factory=three_chains)
    now: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.order = itertools.count()
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.pools: dict[str, list[Pending]] = {name: [] for name in self.chains}
        self.codes: Counter[str] = Counter()
        self.updates: Counter[tuple[str, int, str]] = Counter()
        self.now = max(chain.now_ms for chain in self.chains.values())
        self.driven = [self.relayer(position) for position in range(self.relayers)]
        for name in self.chains:
            self.at(BLOCK_MS[name], lambda name=name: self.make_block(name))

    def relayer(self, position: int) -> Driven:
        options = Options(position=position, relayers=self.relayers)
        machine = Relayer(specs(self.chains), options)
        return Driven(account(f"relayer {position}"), machine)

    # -- time --------------------------------------------------------------------------------------

    def at(self, after_ms: int, action: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + after_ms, next(self.order), action))

    def run(self, for_ms: int) -> None:
        end = self.now + for_ms
        while self.queue and self.queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.now = end

    # -- chains ------------------------------------------------------------------------------------

    def make_block(self, name: str) -> None:
        chain = self.chains[name]
        transactions: dict[bytes, Pending] = {}
        candidates: list[Transaction] = []
        nonces: dict[bytes, int] = {}
        for pending in self.pools[name]:
            submit, signer = pending.submit, pending.relayer.signer
            first = chain.next_nonce(signer.public_key)
            nonce = nonces[signer.public_key] = nonces.get(signer.public_key, first - 1) + 1
            transaction = sign_transaction(
                signer,
                chain.chain_id,
                nonce,
                submit.calls,
                fee=chain.fee(submit.calls),
                valid_until_ms=submit.valid_until_ms,
            )
            transactions[transaction.id] = pending
            candidates.append(transaction)
        self.pools[name] = []
        after_ms = self.now - chain.now_ms
        chain.append(candidates, after_ms=after_ms, check=bool(candidates))
        height = chain.head.height
        included = {transaction.id for transaction in chain.head.block.transactions}
        for event in chain.events(calls.ClientUpdated):
            self.updates[name, height, event.client_id] += 1
        self.note_results(chain)
        for key, pending in transactions.items():
            result = height if key in included else None
            settled = Settled(pending.submit.token, result, "")
            if result is None:
                self.codes["kept out"] += 1
            self.at(20, lambda r=pending.relayer, s=settled: self.tell(r, s))
        for relayer in self.driven:
            self.at(self.random.randrange(5, 60), lambda r=relayer: self.tell_head(r, name))
        self.at(BLOCK_MS[name], lambda: self.make_block(name))

    def note_results(self, chain: TestChain) -> None:
        for event in chain.events(Executed):
            self.codes.update(result.code for result in event.results)

    # -- relayers ----------------------------------------------------------------------------------

    def tell_head(self, relayer: Driven, name: str) -> None:
        chain = self.chains[name]
        header = chain.head.header
        since = relayer.told.get(name, 0)
        if header.height == since:
            return
        touched = any(
            chain.events(event, height)
            for event in calls.EVENTS
            for height in range(since + 1, header.height + 1)
        )
        relayer.told[name] = header.height
        current = chain.sets[header.set_id].hash
        next_set = None if header.next_set_hash == current else chain.sets[header.set_id + 1]
        self.tell(relayer, Advanced(name, chain.certified(), next_set, touched))

    def tell(self, relayer: Driven, heard: Heard) -> None:
        if relayer.silent:
            return
        for asked in relayer.machine.step(self.now, heard):
            self.carry_out(relayer, asked)

    def carry_out(self, relayer: Driven, asked: Asked) -> None:
        delay = self.random.randrange(2, 30)
        match asked:
            case Read():
                answer = self.answer(asked)
                self.at(delay, lambda: self.tell(relayer, answer))
            case Submit(chain=name):
                self.pools[name].append(Pending(relayer, asked))
            case WakeAt(at_ms=at_ms):
                relayer.wake_ms = at_ms
                self.at(max(0, at_ms - self.now), lambda: self.wake(relayer, at_ms))
            case FetchHandover(chain=name, set_id=set_id):
                found = self.handover(name, set_id)
                if found is not None:
                    self.at(delay, lambda: self.tell(relayer, found))

    def handover(self, name: str, set_id: int) -> HandedOver | None:
        chain = self.chains[name]
        for block in chain.blocks[1:]:
            header = block.header
            if header.set_id == set_id and header.next_set_hash != chain.sets[set_id].hash:
                return HandedOver(name, chain.certified(header.height), chain.sets[set_id + 1])
        return None

    def wake(self, relayer: Driven, at_ms: int) -> None:
        if relayer.wake_ms == at_ms:
            relayer.wake_ms = None
            self.tell(relayer, Woke())

    def answer(self, read: Read) -> Heard:
        chain = self.chains[read.chain]
        too_old = read.height < chain.head.height - SERVED_HEIGHTS
        if too_old or self.random.random() < self.read_failures:
            return ReadFailed(read.token, "no node answered")
        tree = chain.blocks[read.height].state
        return ReadDone(
            read.token,
            {key: self.lie(Proven(tree.get(key), tree.prove(key))) for key in read.keys},
        )

    # -- looking -----------------------------------------------------------------------------------

    def open_packets(self) -> int:
        return sum(
            len(chain.packets(client)) for chain in self.chains.values() for client in chain.facing
        )
