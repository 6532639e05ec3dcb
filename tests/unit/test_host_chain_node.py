"""Whole nodes over real sockets and disks: they finalise, serve clients, stop, resume; clients verify."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.unit.host_chain import (
    CHAIN_ID,
    CLIENTS,
    TREASURY,
    TestChain,
    client_parts,
    node_signer,
    places,
    running,
)
from tests.unit.host_network import until

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.host.chain_node import ChainNode, refuse_foreign_store
from gridtokenx.host.client import (
    ChainClient,
    NotIncluded,
    StrictNonces,
    SubmissionRefused,
    submit_to_some,
)
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import FinalBlock, Follower, Trust
from gridtokenx.host.follow_messages import (
    Answer,
    Ask,
    Failed,
    Followed,
    GetState,
    GetStatus,
    Newest,
    ProvenValue,
    Reply,
    StateValues,
    Status,
    Submit,
    Submitted,
)
from gridtokenx.host.framing import Channel
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.link import Link, LinkLimits
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.questions import NoAnswer, NodeConnection, Refusal
from gridtokenx.host.storage import Store
from gridtokenx.host.transport import dial
from gridtokenx.lab.ports import free_ports
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import sign_transaction


def balance_key(chain: TestChain, account: bytes) -> bytes:
    return chain.tokens.balances.key("WATT", account)


async def test_four_nodes_finalise_and_a_client_transfers(tmp_path: Path) -> None:
    chain, ports = TestChain(), free_ports(4)
    nodes = [chain.node(index, tmp_path, ports) for index in range(4)]
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    seen: list[FinalBlock] = []
    follower.on_final(seen.append)
    async with running(*nodes, follower):
        account = CLIENTS[0]
        nonces = StrictNonces(follower, chain.admission.nonces.key(account.public_key))
        client = ChainClient(follower, account, nonces, NetworkClock())
        ended = await asyncio.gather(
            *(client.call([Transfer("WATT", TREASURY, 5)]) for _ in range(3))
        )
        assert all(inclusion.ok for inclusion in ended)
        assert len({inclusion.transaction_id for inclusion in ended}) == 3
        head = await follower.wait_beyond(max(i.height for i in ended) - 1)
        key = balance_key(chain, TREASURY)
        found = await follower.get([key, b"nothing here"], head.header.height)
        assert decode_own(found[key].value or b"", int) == 15
        assert found[b"nothing here"].value is None
        block = await follower.block(ended[0].height)
        assert ended[0].transaction_id in {each.id for each in block.transactions}
        assert [b.header.height for b in seen] == list(range(1, len(seen) + 1))
        await until(lambda: all(node.ready and len(node._network.peers) == 3 for node in nodes))
        statuses = await follower.statuses()
        assert len(statuses) == 4
        assert all(isinstance(each, Status) and each.peers == 3 for each in statuses.values())


async def test_nodes_resume_at_their_height_and_followers_come_back(tmp_path: Path) -> None:
    chain, ports = TestChain(), free_ports(4)
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    async with running(follower):
        nodes = [chain.node(index, tmp_path, ports) for index in range(4)]
        async with running(*nodes):
            await follower.wait_beyond(3)
        heights = [node.head.height for node in nodes]
        again = [chain.node(index, tmp_path, ports) for index in range(4)]
        assert [node.head.height for node in again] == heights
        async with running(*again):
            head = await asyncio.wait_for(follower.wait_beyond(max(heights) + 2), 20)
            assert (await follower.get([b"x"], head.header.height))[b"x"].value is None


async def test_one_dead_node_stops_nobody(tmp_path: Path) -> None:
    chain, ports = TestChain(), free_ports(4)
    nodes = [chain.node(index, tmp_path, ports) for index in range(1, 4)]
    follower = Follower(chain.trust, places(ports), client_parts(chain))  # begins with the dead one
    async with running(*nodes, follower):
        await asyncio.wait_for(follower.wait_beyond(5), 30)


async def test_a_late_follower_jumps_to_the_newest_header(tmp_path: Path) -> None:
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, tmp_path, ports)
    async with running(node):
        await until(lambda: node.head.height >= 6)
        late = Follower(chain.trust, places(ports), client_parts(chain), from_newest=True)
        seen: list[FinalBlock] = []
        late.on_final(seen.append)
        async with running(late):
            head = await late.wait_beyond(0)
            assert head.header.height >= 6
            await late.wait_beyond(head.header.height)
            assert seen[0].header.height == head.header.height + 1


async def test_a_stream_gives_every_block_and_waits_for_its_reader(tmp_path: Path) -> None:
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, tmp_path, ports)
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    stream = follower.blocks(queued=2)
    async with running(node, follower):
        heights = []
        async for block in stream:
            heights.append(block.header.height)
            await asyncio.sleep(0.05)
            if len(heights) == 8:
                break
        assert heights == list(range(1, 9))
        stream.close()


async def test_refusals_and_expiry_reach_the_client(tmp_path: Path) -> None:
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, tmp_path, ports)
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    clock = NetworkClock()

    async def submit(signer: Ed25519Signer, nonce: int, valid_ms: int = 60_000) -> None:
        nonces = StrictNonces(follower, chain.admission.nonces.key(signer.public_key))
        client = ChainClient(follower, signer, nonces, clock)
        until_ms = clock.now_ms() + valid_ms
        call = Transfer("WATT", TREASURY, 1)
        await client.submit(
            sign_transaction(signer, CHAIN_ID, nonce, [call], valid_until_ms=until_ms)
        )

    async with running(node, follower):
        await submit(CLIENTS[0], 0)
        with pytest.raises(SubmissionRefused, match="nonce-used"):
            await submit(CLIENTS[0], 0)
        with pytest.raises(SubmissionRefused, match="expired"):
            await submit(CLIENTS[0], 1, valid_ms=-5000)
        with pytest.raises(NotIncluded, match="expired"):
            await submit(CLIENTS[0], 7, valid_ms=700)  # a gap before it: it can only expire
        other = sign_transaction(CLIENTS[1], bytes(32), 0, [Transfer("WATT", TREASURY, 1)])
        stranger = ChainClient(follower, CLIENTS[1], StrictNonces(follower, b""), clock)
        with pytest.raises(SubmissionRefused, match="wrong-chain"):
            await stranger.submit(other)


PAYMENT = sign_transaction(CLIENTS[0], CHAIN_ID, 0, [Transfer("WATT", TREASURY, 1)])


@asynccontextmanager
async def alone(directory: Path) -> AsyncIterator[tuple[ChainNode, Follower]]:
    """A chain of one node, which has made a block, and a client of it."""
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, directory, ports)
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    async with running(node, follower):
        await until(lambda: node.head.height >= 1)
        yield node, follower


async def test_a_node_that_is_behind_takes_no_submissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.host.driver.ROOM_S", 0.05)
    async with alone(tmp_path) as (node, follower):
        monkeypatch.setattr(node._driver, "_look_for_room", node._driver._has_room.clear)
        node.submit([])
        await until(lambda: not node._driver._has_room.is_set())
        assert await submit_to_some(follower, PAYMENT) is None


async def test_a_node_whose_leader_is_behind_takes_no_submissions(tmp_path: Path) -> None:
    async with alone(tmp_path) as (node, follower):
        status = node._parts.status
        congested = dataclasses.replace(status(), congested=True)
        node._parts = dataclasses.replace(node._parts, status=lambda: congested)
        assert await submit_to_some(follower, PAYMENT) is None
        assert node._parts.metrics.value("submissions_refused", reason="busy") == 1
        node._parts = dataclasses.replace(node._parts, status=status)
        taken = await submit_to_some(follower, PAYMENT)
        assert taken is not None
        assert taken.reason == "ok"


async def test_reads_do_not_wait_behind_submissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was behind held up everything that its clients asked, and their following, by seconds."""
    monkeypatch.setattr("gridtokenx.host.driver.ROOM_S", 3.0)
    chain, ports = TestChain(1), free_ports(1)
    node = chain.node(0, tmp_path, ports)
    follower = Follower(chain.trust, places(ports), client_parts(chain))
    payments = [
        sign_transaction(CLIENTS[0], CHAIN_ID, nonce, [Transfer("WATT", TREASURY, 1)])
        for nonce in range(100)
    ]
    async with running(node, follower):
        await until(lambda: node.head.height >= 2)

        def fall_behind() -> None:
            node._driver._has_room.clear()
            node._driver._behind_s = asyncio.get_running_loop().time()

        monkeypatch.setattr(node._driver, "_look_for_room", fall_behind)
        node.submit([])
        await until(lambda: not node._driver._has_room.is_set())
        address = follower.nodes.in_turn()[0]
        asked = [
            asyncio.create_task(follower.nodes.ask_one(address, Submit(transactions=(each,))))
            for each in payments
        ]
        await asyncio.sleep(0)
        height = follower.head.header.height
        async with asyncio.timeout(2):
            await follower.value(balance_key(chain, TREASURY))
            await follower.wait_beyond(height)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {str(answer) for answer in answers if "busy" not in str(answer)} == set()


async def test_what_a_node_refuses_of_a_client(tmp_path: Path) -> None:
    chain, ports = TestChain(1), free_ports(1)
    metrics = Metrics()
    node = chain.node(0, tmp_path, ports, metrics)
    async with running(node):
        await until(lambda: node.head.height >= 2)
        connection = NodeConnection(places(ports)[0], client_parts(chain))
        await connection.open()
        with pytest.raises(Refusal, match="height-unavailable"):
            await connection.ask(GetState(height=999, keys=(b"k",)))
        good = sign_transaction(CLIENTS[0], CHAIN_ID, 0, [Transfer("WATT", TREASURY, 1)])
        forged = msgspec.structs.replace(good, signature=bytes(64))
        reply = await connection.ask(Submit(transactions=(forged, good)))
        assert isinstance(reply, Submitted)
        assert [result.reason for result in reply.results] == ["bad-signature", "ok"]
        assert metrics.by_label("submissions_refused", "reason") == {"bad-signature": 1}

        connection._link.send(Channel.REQUEST, b"\xc1")
        await until(lambda: connection.closed)
        assert metrics.by_label("remote_faults", "reason")["malformed"] == 1

        fresh = NodeConnection(places(ports)[0], client_parts(chain, 1))
        await fresh.open()
        fresh._link.send(Channel.MACHINE, b"not for clients")
        await until(lambda: fresh.closed)
        assert metrics.by_label("remote_faults", "reason")["wrong-channel"] == 1

        last = NodeConnection(places(ports)[0], client_parts(chain, 2))
        await last.open()
        assert isinstance(await last.ask(GetStatus()), Status)  # and it still serves others
        last.close()


async def test_a_member_that_sends_garbage_is_banned_and_stops_nobody(tmp_path: Path) -> None:
    """Member 3 is Byzantine: it knows its key, and sends noise, truncations and huge lengths."""
    chain, ports, chance = TestChain(), free_ports(4), random.Random(5)
    metrics = Metrics()
    nodes = [
        chain.node(index, tmp_path, ports, metrics if index == 0 else None) for index in range(3)
    ]
    own = LinkIdentity(node_signer(3), "peer", CHAIN_ID, chain.genesis.hash)
    parts = dataclasses.replace(client_parts(chain), own=own)
    samples = [
        encode(Note(number=n, data=chance.randbytes(chance.randrange(300)))) for n in range(30)
    ]
    async with running(*nodes):
        await until(lambda: nodes[0].head.height >= 2)
        for attempt in range(20):
            link = Link(LinkLimits())
            try:
                await dial(parts, places(ports)[0], link)
            except RemoteFault as fault:
                link.close("refused")
                refusal = str(fault)
                break
            link.raise_up(node_signer(0).public_key, "peer")
            for sample in samples:
                cut = sample[: chance.randrange(len(sample) + 1)]
                noise = bytes(byte ^ (chance.random() < 0.05) for byte in cut)
                link.send(Channel(chance.choice([1, 1, 1, 2, 3])), noise)
            if attempt % 2:
                link.send_frame(chance.randbytes(50))
            await asyncio.sleep(0.05)
            link.close("enough")
        else:
            raise AssertionError("never banned")
        assert "banned" in refusal
        faults = metrics.by_label("remote_faults", "reason")
        assert faults["malformed"] >= 5
        height = nodes[0].head.height
        await until(lambda: min(node.head.height for node in nodes) >= height + 3)


async def test_a_store_belongs_to_one_node_of_one_chain(tmp_path: Path) -> None:
    chain = TestChain(1)
    store = Store.open(tmp_path)
    refuse_foreign_store(store, chain.ledger, node_signer(0))
    with pytest.raises(LocalFault, match="belongs to identity"):
        refuse_foreign_store(store, chain.ledger, node_signer(1))
    store.close()


# -- lying nodes -----------------------------------------------------------------------------------


class Note(Wire, frozen=True, tag="test.noise"):
    """No message of any chain."""

    number: int
    data: bytes


Twist = Callable[[Reply], Reply]


class LyingService:
    """Passes a node's answers through a twist."""

    def __init__(self, twist: Twist) -> None:
        self.twist = twist
        self.told = 0

    def install(self, monkeypatch: pytest.MonkeyPatch, liar: bytes) -> None:
        from gridtokenx.host import follow_service

        original = follow_service.FollowService._reply

        def reply(link: Link, number: int, answer: Reply) -> int:
            twisted = self.twist(answer)
            self.told += twisted is not answer
            return original(link, number, twisted)

        def choose(service: object, link: Link, number: int, answer: Reply) -> int:
            own = service._status().final_hash and service._intake._parts.signer  # type: ignore[attr-defined]
            return (reply if own.public_key == liar else original)(link, number, answer)

        monkeypatch.setattr(follow_service.FollowService, "_reply", choose)


def forged_header(reply: Reply) -> Reply:
    """Another state root, under the true certificate."""
    if isinstance(reply, Followed) and reply.blocks:
        last = reply.blocks[-1]
        header = msgspec.structs.replace(last.header, state_root=sha256(b"lie"))
        blocks = (*reply.blocks[:-1], msgspec.structs.replace(last, header=header))
        return msgspec.structs.replace(reply, blocks=blocks)
    if isinstance(reply, Newest):
        header = msgspec.structs.replace(reply.header, state_root=sha256(b"lie"))
        return msgspec.structs.replace(reply, header=header)
    return reply


def forged_events(reply: Reply) -> Reply:
    """An event that never happened."""
    if isinstance(reply, Followed) and reply.blocks:
        last = reply.blocks[-1]
        fake = encode(EventRecord(origin=0, data=b"fake"))
        block = msgspec.structs.replace(last, events=(*last.events, fake))
        return msgspec.structs.replace(reply, blocks=(*reply.blocks[:-1], block))
    return reply


def dropped_block(reply: Reply) -> Reply:
    """A block is left out."""
    if isinstance(reply, Followed) and reply.blocks and reply.blocks[0].header.height > 2:
        empty = msgspec.structs.replace(reply.blocks[0].header, height=99)
        block = msgspec.structs.replace(reply.blocks[0], header=empty)
        return msgspec.structs.replace(reply, blocks=(block,))
    return reply


def weak_certificate(reply: Reply) -> Reply:
    """A certificate with a signature too few."""
    if isinstance(reply, Followed) and isinstance(reply.proof, CommitCertificate):
        few = msgspec.structs.replace(reply.proof, signatures=reply.proof.signatures[:2])
        return msgspec.structs.replace(reply, proof=few)
    return reply


def other_values(reply: Reply) -> Reply:
    """Another balance, with the true one's proof."""
    if isinstance(reply, StateValues):
        values = tuple(ProvenValue(value=encode(10**12), proof=v.proof) for v in reply.values)
        return msgspec.structs.replace(reply, values=values)
    return reply


def nothing_there(reply: Reply) -> Reply:
    """The value is denied, with the true one's proof."""
    if isinstance(reply, StateValues):
        values = tuple(ProvenValue(value=None, proof=v.proof) for v in reply.values)
        return msgspec.structs.replace(reply, values=values)
    return reply


def wrong_kind(reply: Reply) -> Reply:
    """An answer to another question."""
    return Submitted(results=())


@pytest.mark.parametrize(
    "twist",
    [
        forged_header,
        forged_events,
        dropped_block,
        weak_certificate,
        other_values,
        nothing_there,
        wrong_kind,
    ],
)
async def test_a_lying_node_is_counted_and_left_and_the_truth_is_found_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twist: Twist
) -> None:
    liar = LyingService(twist)
    liar.install(monkeypatch, node_signer(0).public_key)
    chain, ports, metrics = TestChain(), free_ports(4), Metrics()
    nodes = [chain.node(index, tmp_path, ports) for index in range(4)]
    follower = Follower(chain.trust, places(ports), client_parts(chain, metrics=metrics))
    seen: list[FinalBlock] = []
    follower.on_final(seen.append)
    key = balance_key(chain, CLIENTS[0].public_key)
    async with running(*nodes, follower):
        await asyncio.wait_for(follower.wait_beyond(4), 30)
        assert decode_own(await follower.value(key) or b"", int) == 10**9
        assert liar.told
        assert metrics.value("lies") >= 1
        history = nodes[1].history
        for block in seen:
            if block.header.height <= history.head.height:
                true = history.blocks(block.header.height, 1)[0]
                assert block.header == true.header


async def test_if_all_nodes_lie_nothing_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LyingService(other_values).install(monkeypatch, node_signer(0).public_key)
    chain, ports, metrics = TestChain(1), free_ports(1), Metrics()
    follower = Follower(chain.trust, places(ports), client_parts(chain, metrics=metrics))
    async with running(chain.node(0, tmp_path, ports), follower):
        await follower.wait_beyond(1)
        with pytest.raises(NoAnswer, match="wrong-proof"):
            await follower.get([balance_key(chain, TREASURY)])


async def test_a_follower_of_another_genesis_is_refused(tmp_path: Path) -> None:
    chain, ports, metrics = TestChain(1, genesis_ms=1_700_000_000_000), free_ports(1), Metrics()
    other = TestChain(1, genesis_ms=1_700_000_000_001)
    follower = Follower(other.trust, places(ports), client_parts(other, metrics=metrics))
    async with running(chain.node(0, tmp_path, ports), follower):
        await until(lambda: metrics.by_label("follow_failures", "reason").get("wrong-genesis"))
        assert follower.head is None


async def test_a_trusted_hash_that_is_no_ancestor_is_not_followed(tmp_path: Path) -> None:
    chain, ports, metrics = TestChain(1), free_ports(1), Metrics()
    trust = Trust(CHAIN_ID, 0, sha256(b"another past"), chain.validators)
    follower = Follower(trust, places(ports), client_parts(chain, metrics=metrics))
    async with running(chain.node(0, tmp_path, ports), follower):
        await until(lambda: metrics.by_label("lies", "reason").get("broken-link"))
        assert follower.head is None


def test_answers_and_questions_are_wire_structs() -> None:
    from gridtokenx.core.codec import decode

    ask = Ask(number=1, question=GetStatus())
    assert decode(encode(ask), Ask) == ask
    answer = Answer(number=1, reply=Failed(reason="r", detail="d"))
    assert decode(encode(answer), Answer) == answer
    with pytest.raises(RemoteFault, match="malformed"):
        decode(encode(Ask(number=-1, question=GetStatus())), Ask)
