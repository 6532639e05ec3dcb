"""The relayer under asyncio: requests are answered once, failures survived, the end is clean."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.interchain_chains import BOB, HOUR_MS, Poke, TestChain, account, three_chains
from tests.relayer_world import specs

from gridtokenx.bridge.process.driver import Head, RelayerDriver
from gridtokenx.bridge.relayer.edge import Proven
from gridtokenx.bridge.relayer.machine import Options, Relayer
from gridtokenx.core.errors import RemoteFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.calls import RelayCall
from gridtokenx.interchain.clients import CertifiedHeader
from gridtokenx.ledger.transactions import Transaction, sign_transaction

TICK_S = 0.01
RELAYER = account("a relayer")


class FakeChain:
    """A chain that makes a block every few milliseconds and serves it truthfully."""

    def __init__(self, chain: TestChain) -> None:
        self.chain = chain
        self.grown = asyncio.Condition()
        self.told = 0
        self.pool: list[Transaction] = []
        self.deaf = False

    async def live(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            async with self.grown:
                self.chain.append(self.pool, check=False)
                self.pool = []
                self.grown.notify_all()

    async def next_head(self) -> Head:
        async with self.grown:
            await self.grown.wait_for(lambda: self.chain.head.height > self.told)
        heights = range(self.told + 1, self.chain.head.height + 1)
        touched = any(self.chain.events(event, h) for h in heights for event in calls.EVENTS)
        self.told = self.chain.head.height
        return Head(self.chain.certified(), None, touched)

    async def read(self, height: int, keys: Sequence[bytes]) -> Mapping[bytes, Proven]:
        await asyncio.sleep(0)
        if self.deaf:
            raise RemoteFault("no-answer", "deaf")
        tree = self.chain.blocks[height].state
        return {key: Proven(tree.get(key), tree.prove(key)) for key in keys}

    async def handover(self, set_id: int) -> tuple[CertifiedHeader, ValidatorSet]:
        raise RemoteFault("unknown-set", str(set_id))

    async def submit(self, batch: Sequence[RelayCall], valid_until_ms: int) -> int:
        if self.deaf:
            raise RemoteFault("no-answer", "deaf")
        nonce = self.chain.admission.next_nonce(self.chain.state, RELAYER.public_key)
        transaction = sign_transaction(RELAYER, self.chain.chain_id, nonce, batch)
        self.pool.append(transaction)
        async with self.grown:
            await self.grown.wait()
        if transaction not in self.chain.head.block.transactions:
            raise RemoteFault("redundant", "kept out")
        return self.chain.head.height

    def send(self, client: str) -> None:
        nonce = self.chain.admission.next_nonce(self.chain.state, BOB.public_key)
        poke = Poke(client, b"hi", self.chain.now_ms + HOUR_MS)
        self.pool.append(sign_transaction(BOB, self.chain.chain_id, nonce, [poke]))

    def delivered(self, client: str) -> int:
        return stores.channel(self.chain.state, client).delivered


class ChainTime:
    """Network time as the fake chains' blocks tell it."""

    def __init__(self, chain: FakeChain) -> None:
        self.chain = chain

    def now_ms(self) -> int:
        return self.chain.chain.now_ms


@asynccontextmanager
async def relaying() -> AsyncIterator[tuple[dict[str, FakeChain], Metrics]]:
    chains = three_chains()
    fakes = {name: FakeChain(chain) for name, chain in chains.items()}
    metrics = Metrics()
    driver = RelayerDriver(
        Relayer(specs(chains), Options()),
        fakes,
        ChainTime(fakes["oracle"]),
        NullLogger(),
        metrics,
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fake.live()) for fake in fakes.values()]
        tasks.append(group.create_task(driver.run()))
        try:
            yield fakes, metrics
        finally:
            for task in tasks:
                task.cancel()


async def until(condition, for_s: float = 20.0) -> None:
    async with asyncio.timeout(for_s):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await asyncio.sleep(TICK_S)


async def test_packets_are_relayed_under_asyncio() -> None:
    async with relaying() as (chains, metrics):
        for source, client in (("oracle", "consortium"), ("public", "consortium")):
            chains[source].send(client)
        await until(lambda: chains["oracle"].delivered("consortium") == 1)
        await until(lambda: chains["public"].delivered("consortium") == 1)
        assert metrics.value("bridge_calls", kind="ReceivePacket") == 2
        assert metrics.value("bridge_submissions", end="included") >= 3


async def test_a_chain_that_does_not_answer_is_tried_again() -> None:
    async with relaying() as (chains, _):
        await until(lambda: chains["oracle"].chain.head.height > 3)
        chains["consortium"].deaf = True
        chains["oracle"].send("consortium")
        await until(lambda: chains["oracle"].chain.head.height > 40)
        assert chains["oracle"].delivered("consortium") == 0
        chains["consortium"].deaf = False
        await until(lambda: chains["oracle"].delivered("consortium") == 1)


async def test_cancelling_leaves_no_task_behind() -> None:
    before = len(asyncio.all_tasks())
    async with relaying() as (chains, _):
        chains["oracle"].send("consortium")
        await until(lambda: chains["oracle"].chain.head.height > 3)
    assert len(asyncio.all_tasks()) == before


async def test_a_bug_ends_the_relayer_aloud() -> None:
    chains = three_chains()
    fakes = {name: FakeChain(chain) for name, chain in chains.items()}

    async def broken() -> Head:
        raise ZeroDivisionError

    fakes["oracle"].next_head = broken
    machine = Relayer(specs(chains), Options())
    clock = ChainTime(fakes["oracle"])
    driver = RelayerDriver(machine, fakes, clock, NullLogger(), Metrics())
    with pytest.raises(ZeroDivisionError):
        await driver.run()
