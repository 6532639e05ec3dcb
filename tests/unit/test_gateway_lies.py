"""A gateway among nodes that lie: over real sockets, with the real light client.

Whatever a node says that is not so, the gateway asks another one, counts the lie and shows nothing of
it; if all of them lie it says that it can show nothing.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace
from tests.gateway_nodes import Node, Twist, honest
from tests.gateway_world import FIRST, key, make_facts, real_chains, signer
from tests.unit.host_network import LOOPBACK, until

from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.market.messages import PlaceOrder
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import decode, encode
from gridtokenx.core.keys import Ed25519Verifier, sha256
from gridtokenx.core.merkle import merkle_root
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, PUBLIC
from gridtokenx.gateway.index import Index
from gridtokenx.gateway.process import Gateway
from gridtokenx.host import follow
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.chains import CHAINS
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.follow_messages import (
    Blocks,
    Followed,
    FollowedBlock,
    ProvenValue,
    Reply,
    StateValues,
)
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.role import Role
from gridtokenx.host.security import open_security
from gridtokenx.host.transport import NetworkParts
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.tokens import Transfer, Transferred
from gridtokenx.ledger.transactions import sign_transaction

FACTS = make_facts()
GIFT = 7_000_000_000
"""What alice gives bob, in 10**-9 GRID, in the public chain's first block."""


class World:
    """Three chains with two nodes each, and a gateway; the first node of a chain may lie."""

    def __init__(self, directory: Path, twists: dict[str, tuple[Twist, ...]]) -> None:
        self.directory = directory
        self.chains = real_chains()
        self.public = self.chains[PUBLIC]
        self._tell_the_story()
        self.nodes = {
            name: [
                Node(number, chain, twist)
                for number, twist in enumerate(twists.get(name, (honest, honest)))
            ]
            for name, chain in self.chains.items()
        }
        self.metrics = Metrics()
        self.age_ms = 0
        self.asked_after: dict[str, list[int]] = {name: [] for name in CHAINS}

    def _tell_the_story(self) -> None:
        public, oracle = self.public, self.chains[ORACLE]
        call = Transfer("GRID", key("bob"), GIFT)
        fee = public.genesis.fee_per_weight_ngrid * public.ledger.weight([call])
        public.block(
            sign_transaction(signer("alice"), FACTS.chains[PUBLIC].chain_id, 0, [call], fee=fee)
        )
        for _ in range(3):
            for chain in self.chains.values():
                chain.block()
        oracle.block()

    def now_ms(self) -> int:
        newest = min(chain.head.header.timestamp_ms for chain in self.chains.values())
        return newest + self.age_ms

    def grow(self) -> None:
        for name, chain in self.chains.items():
            chain.block()
            for node in self.nodes[name]:
                node.grow()

    def open_chain(self, name: str, trust: Trust) -> Follower:
        facts = FACTS.chains[name].facts
        own = LinkIdentity(signer("gateway"), "client", facts.chain_id, facts.genesis_block.hash)
        security, verifier = open_security(listens=False), Ed25519Verifier()
        parts = NetworkParts(own, security, verifier, self.metrics, NullLogger())
        places = [NodeAddress.parse(f"127.0.0.1:{n.network.port}") for n in self.nodes[name]]
        self.asked_after[name].append(trust.height)
        return Follower(trust, places, parts)

    @asynccontextmanager
    async def gateway(self, stale_ms: int = 60_000) -> AsyncIterator["Client"]:
        role = Role(NullLogger(), self.metrics, NetworkClock(0, self.now_ms), LOOPBACK)
        index = Index(self.directory / "index.sqlite", FACTS)
        gateway = Gateway(FACTS, index, self.open_chain, role, stale_ms)
        task = asyncio.create_task(gateway.run(LOOPBACK))
        try:
            await until(lambda: gateway.port or task.done())
            async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as session:
                yield Client(session, index, gateway)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            index.close()

    @property
    def lies(self) -> dict[str, int]:
        return self.metrics.by_label("lies", "reason")


class Client:
    def __init__(self, session: aiohttp.ClientSession, index: Index, gateway: Gateway) -> None:
        self.session = session
        self.index = index
        self.gateway = gateway

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(path) as answer:
            return answer.status, await answer.json()

    def height(self, chain: str) -> int:
        cursor = self.index.cursor(chain)
        return cursor.height if cursor else 0

    async def caught_up(self, world: World, *chains: str) -> None:
        await until(
            lambda: all(
                self.height(name) == world.chains[name].head.height for name in chains or CHAINS
            ),
            15,
        )

    async def balance(self, name: str) -> tuple[int, Any]:
        status, found = await self.get(f"/api/v1/accounts/{address(key(name))}")
        return status, found if status != 200 else found["chains"]["public"]["grid_free_ngrid"]


@asynccontextmanager
async def world(
    directory: Path, twists: dict[str, tuple[Twist, ...]] | None = None
) -> AsyncIterator[World]:
    made = World(directory, twists or {})
    nodes = [node for group in made.nodes.values() for node in group]
    for node in nodes:
        node.network.start(LOOPBACK)
    try:
        yield made
    finally:
        for node in nodes:
            await node.network.close()
            await node.tasks.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "WAIT_MS", 400)
    monkeypatch.setattr(follow, "_RETRY_S", 0.05)
    monkeypatch.setattr("gridtokenx.gateway.process._PAUSE_S", 0.05)


OPENING = 1_000 * 10**9


# -- honest nodes ----------------------------------------------------------------------------------


async def test_what_honest_nodes_say_is_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway() as client:
        await client.caught_up(made)
        assert await client.balance("bob") == (200, OPENING + GIFT)
        _, status = await client.get("/api/v1/status")
        assert status["chains"]["public"]["finalized"] == 4
        await until(lambda: not client.gateway.troubles())
        assert (await client.get("/ready"))[0] == 200
        made.grow()
        await client.caught_up(made)
        assert made.lies == {}


async def test_an_order_reaches_two_nodes_and_its_receipt_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway() as client:
        await client.caught_up(made)
        chain = made.chains[CONSORTIUM]
        call = PlaceOrder(1, 0, FIRST + 2, Side.BUY, 4_000_000, 500)
        order = sign_transaction(signer("alice"), chain.ledger.chain_id, 0, [call], fee=800)
        asking = asyncio.create_task(
            client.session.post("/api/v1/orders?wait=1", json={"transaction": order.encoded.hex()})
        )
        nodes = made.nodes[CONSORTIUM]
        await until(lambda: all(node.taken for node in nodes))
        chain.block(order)
        for node in nodes:
            node.grow()
        answer = await (await asking).json()
        assert answer["final"]
        assert answer["results"][0]["code"] in {"capacity", "connection", "order-size"}


async def test_the_next_life_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        async with made.gateway() as client:
            await client.caught_up(made)
        made.grow()
        async with made.gateway() as client:
            await client.caught_up(made)
            assert made.asked_after[PUBLIC] == [0, 4]


async def test_an_index_damaged_while_in_use_is_made_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway() as client:
        await client.caught_up(made)

        class Broken:
            in_transaction = False

            def execute(self, *_: object) -> None:
                raise sqlite3.DatabaseError("database disk image is malformed")

            def close(self) -> None:
                pass

        client.index.connection.close()
        client.index.connection = Broken()  # type: ignore[assignment]
        assert (await client.get("/api/v1/events"))[0] == 503
        made.grow()
        await client.caught_up(made)
        assert client.index.rebuilds == 1
        assert (await client.get("/api/v1/events"))[0] == 200


# -- one node lies ---------------------------------------------------------------------------------


def in_block(height: int, change: Callable[[FollowedBlock], FollowedBlock]) -> Twist:
    """Lies about one followed block."""

    def twist(reply: Reply) -> Reply:
        if not isinstance(reply, Followed):
            return reply
        blocks = tuple(change(b) if b.header.height == height else b for b in reply.blocks)
        return replace(reply, blocks=blocks)

    return twist


def altered_event(block: FollowedBlock) -> FollowedBlock:
    """The gift becomes ten times larger."""
    record = decode(block.events[0], EventRecord)
    event = decode(record.data, Transferred)
    data = encode(replace(event, amount=10 * event.amount))
    return replace(block, events=(encode(replace(record, data=data)), *block.events[1:]))


def altered_event_and_root(block: FollowedBlock) -> FollowedBlock:
    """The same, with a header to match."""
    lied = altered_event(block)
    header = replace(lied.header, event_root=merkle_root(lied.events))
    return replace(lied, header=header)


def truncated_events(block: FollowedBlock) -> FollowedBlock:
    return replace(block, events=block.events[:-1])


def no_events(block: FollowedBlock) -> FollowedBlock:
    return replace(block, events=())


def other_chain(block: FollowedBlock) -> FollowedBlock:
    return replace(block, header=replace(block.header, chain_id=bytes(32)))


def other_state(block: FollowedBlock) -> FollowedBlock:
    return replace(block, header=replace(block.header, state_root=sha256(b"mine")))


def unproven(reply: Reply) -> Reply:
    """Another chain's certificate in place of the block's own."""
    if isinstance(reply, Followed) and reply.proof is not None:
        head = real_chains()[CONSORTIUM].head.header
        return replace(reply, proof=real_chains()[CONSORTIUM].proof(head))
    return reply


LIES = {
    "altered-event": in_block(1, altered_event),
    "altered-event-and-root": in_block(1, altered_event_and_root),
    "truncated-events": in_block(1, truncated_events),
    "no-events": in_block(1, no_events),
    "other-chain": in_block(2, other_chain),
    "other-state": in_block(4, other_state),
    "unproven": unproven,
}


@pytest.mark.parametrize("lie", list(LIES))
async def test_a_lie_about_blocks_is_counted_and_the_truth_shown(tmp_path: Path, lie: str) -> None:
    twists = {PUBLIC: (LIES[lie], honest)}
    async with world(tmp_path, twists) as made, made.gateway() as client:
        await client.caught_up(made)
        assert sum(made.lies.values()) >= 1
        assert await client.balance("bob") == (200, OPENING + GIFT)
        _, found = await client.get("/api/v1/chains/public/headers")
        shown = [each["hash"] for each in found["headers"]]
        assert shown == [block.hash.hex() for block in reversed(made.public.blocks[1:])]


@pytest.mark.parametrize("lie", list(LIES))
async def test_if_every_node_lies_about_blocks_nothing_of_it_is_shown(
    tmp_path: Path, lie: str
) -> None:
    twists = {PUBLIC: (LIES[lie], LIES[lie])}
    async with world(tmp_path, twists) as made, made.gateway() as client:
        await until(lambda: sum(made.lies.values()) >= 2)
        await client.caught_up(made, CONSORTIUM, ORACLE)
        assert client.height(PUBLIC) == 0
        status, found = await client.balance("bob")
        assert (status, found["error"]["code"]) == (503, "nothing-verified")
        status, found = await client.get("/ready")
        assert status == 503
        assert found["reasons"] == ["public: nothing verified yet"]
        assert (await client.get("/api/v1/status"))[0] == 200


def first_value(change: Callable[[ProvenValue], ProvenValue]) -> Twist:
    """Lies about every value that is there."""

    def twist(reply: Reply) -> Reply:
        if not isinstance(reply, StateValues):
            return reply
        values = tuple(each if each.value is None else change(each) for each in reply.values)
        return replace(reply, values=values)

    return twist


def altered_proof(proven: ProvenValue) -> ProvenValue:
    level = proven.proof.levels[0]
    siblings = bytes((level.siblings[0] ^ 1,)) + level.siblings[1:]
    levels = (replace(level, siblings=siblings), *proven.proof.levels[1:])
    return replace(proven, proof=replace(proven.proof, levels=levels))


def swapped(reply: Reply) -> Reply:
    """Each value with another key's proof."""
    if isinstance(reply, StateValues):
        return replace(reply, values=reply.values[1:] + reply.values[:1])
    return reply


def fewer(reply: Reply) -> Reply:
    return replace(reply, values=reply.values[1:]) if isinstance(reply, StateValues) else reply


STATE_LIES = {
    "altered-value": first_value(lambda each: replace(each, value=encode(10**15))),
    "altered-proof": first_value(altered_proof),
    "hidden-value": first_value(lambda each: replace(each, value=None)),
    "swapped-values": swapped,
    "fewer-values": fewer,
}


@pytest.mark.parametrize("lie", list(STATE_LIES))
async def test_a_lie_about_state_is_counted_and_the_truth_shown(tmp_path: Path, lie: str) -> None:
    twists = {PUBLIC: (STATE_LIES[lie], honest)}
    async with world(tmp_path, twists) as made, made.gateway() as client:
        await client.caught_up(made)
        for _ in range(2):
            assert await client.balance("bob") == (200, OPENING + GIFT)
        assert sum(made.lies.values()) >= 1


@pytest.mark.parametrize("lie", list(STATE_LIES))
async def test_if_every_node_lies_about_state_it_is_not_shown(tmp_path: Path, lie: str) -> None:
    twists = {PUBLIC: (STATE_LIES[lie], STATE_LIES[lie])}
    async with world(tmp_path, twists) as made, made.gateway() as client:
        await client.caught_up(made)
        status, found = await client.balance("bob")
        assert (status, found["error"]["code"]) == (503, "no-proof")
        assert sum(made.lies.values()) >= 2


async def test_a_lie_about_a_blocks_transactions_counts_no_readings(tmp_path: Path) -> None:
    call = SubmitReading(1_776_825_000_000, 5, 0, 0, 0, 0)
    chain_id = FACTS.chains[ORACLE].chain_id
    fake = sign_transaction(signer("meter"), chain_id, 1, [call])

    def invented(reply: Reply) -> Reply:
        if isinstance(reply, Blocks):
            return replace(
                reply, blocks=tuple(replace(each, transactions=(fake,)) for each in reply.blocks)
            )
        return reply

    async with world(tmp_path, {ORACLE: (invented, honest)}) as made:
        from gridtokenx.oracle.chain.feeds import SubmitObservation

        chain = made.chains[ORACLE]
        observed = SubmitObservation("energy-price", 0, 3_900_000, "test")
        chain.block(sign_transaction(signer("oracle-0"), chain_id, 1, [observed]))
        for node in made.nodes[ORACLE]:
            node.grow()
        async with made.gateway() as client:
            await client.caught_up(made)
            assert made.lies == {"wrong-block": 1}
            _, status = await client.get("/api/v1/status")
            assert status["readings"] == {"verified": 0, "rejected": 0}


# -- nodes that stand still ------------------------------------------------------------------------


async def test_a_node_that_stands_still_is_left_for_one_that_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway() as client:
        await client.caught_up(made)
        for _ in range(3):
            made.public.block()
        made.nodes[PUBLIC][1].grow()
        await client.caught_up(made)
        assert await client.balance("bob") == (200, OPENING + GIFT)


async def test_an_old_head_is_no_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway(stale_ms=30_000) as client:
        await client.caught_up(made)
        await until(lambda: not client.gateway.troubles())
        made.age_ms = 45_000
        status, found = await client.balance("bob")
        assert (status, found["error"]["code"]) == (503, "stale")
        assert (await client.get("/ready"))[0] == 503
        _, shown = await client.get("/api/v1/status")
        assert shown["chains"]["public"]["lag_ms"] > 30_000


async def test_nobody_answers(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.gateway() as client:
        await client.caught_up(made)
        for node in made.nodes[PUBLIC]:
            await node.network.close()
        began = time.monotonic()
        status, found = await client.balance("bob")
        assert (status, found["error"]["code"]) == (503, "no-proof")
        assert time.monotonic() - began < 15
