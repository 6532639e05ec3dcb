"""The light client against prepared chains: sparse proofs, handovers, long gaps, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.interchain_chains import Identity, TestChain, seed_signers
from tests.unit.host_network import LOOPBACK, until

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host import follow, follow_service
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.follow import FinalBlock, Follower, Trust
from gridtokenx.host.follow_messages import Ask, GetStatus, Status
from gridtokenx.host.follow_service import FollowService
from gridtokenx.host.framing import Channel
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.history import History
from gridtokenx.host.link import Link
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import open_security
from gridtokenx.host.storage import Store
from gridtokenx.host.tasks import Tasks
from gridtokenx.host.transport import Network, NetworkParts
from gridtokenx.interchain.clients import ClientKind
from gridtokenx.ledger.records import block_writes
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction


class Archive:
    """A node that serves a prepared chain, and takes part in nothing."""

    def __init__(self, home: Path, chain: TestChain, proven: Callable[[int], bool]) -> None:
        self.chain = chain
        self.proven = proven
        self.store = Store.open(home)
        self.tasks = Tasks()
        self.history = self.load(chain.blocks[0].height)
        own = LinkIdentity(
            Ed25519Signer(sha256(b"archive")), "peer", chain.chain_id, chain.blocks[0].hash
        )
        checker = SignatureChecker(CachingVerifier(Ed25519Verifier()))
        parts = NetworkParts(own, open_security(), Ed25519Verifier(), Metrics(), NullLogger())
        self.network = Network(parts, (), (), self)
        self.service = FollowService(
            self.history, self, self.status, checker, self.network.fault, Metrics(), self.tasks
        )

    def load(self, height: int) -> History:
        head = self.chain.blocks[height]
        return History(
            self.store, self.chain.blocks[0], head, self.chain.sets[0], self.validators_of
        )

    def validators_of(self, tree: StateTree) -> ValidatorSet:
        sets = self.chain.ledger.modules[0]
        found: ValidatorSet = sets.following.get(State(tree))  # type: ignore[attr-defined]
        return found

    async def grow(self, upto: int) -> None:
        """Finalise blocks as an engine would: a proof where `proven` says so."""
        for executed in self.chain.blocks[self.history.head.height + 1 : upto + 1]:
            certified = self.chain.certify(executed.header)
            proof = encode(certified.proof) if self.proven(executed.height) else None
            await self.store.write(block_writes(executed, proof))
            self.history.append(executed)

    def status(self) -> Status:
        raise RemoteFault("no-status")

    def admit(self, transaction: Transaction) -> None:
        raise RemoteFault("closed", "an archive takes nothing")

    async def room(self) -> None:
        """An archive refuses soon enough."""

    def submit(self, transactions: Sequence[Transaction]) -> None:
        raise RemoteFault("closed")

    def link_up(self, link: Link) -> None:
        self.service.client_up(link)

    def link_down(self, link: Link) -> None:
        self.service.client_down(link)

    def frames_ready(self, link: Link) -> None:
        """The service's task waits for its frames itself."""


def make_chain(kind: ClientKind = ClientKind.PBFT) -> TestChain:
    return TestChain(Identity("followed", kind, real=True), (), verifier=Ed25519Verifier())


def trust_in(chain: TestChain) -> Trust:
    return Trust(chain.chain_id, 0, chain.blocks[0].hash, chain.sets[0])


@asynccontextmanager
async def archive(
    home: Path, chain: TestChain, proven: Callable[[int], bool] = lambda _: True
) -> AsyncIterator[Archive]:
    node = Archive(home, chain, proven)
    node.network.start(LOOPBACK)
    try:
        yield node
    finally:
        await node.network.close()
        await node.tasks.close()
        await node.store.drain()
        node.store.close()


class Watcher:
    """A running follower and what it believed."""

    def __init__(
        self, trust: Trust, nodes: Sequence[Archive], *, from_newest: bool = False
    ) -> None:
        self.metrics = Metrics()
        own = LinkIdentity(
            Ed25519Signer(sha256(b"watcher")),
            "client",
            trust.chain_id,
            nodes[0].chain.blocks[0].hash,
        )
        parts = NetworkParts(
            own,
            open_security(listens=False),
            CachingVerifier(Ed25519Verifier()),
            self.metrics,
            NullLogger(),
        )
        where = [NodeAddress.parse(f"127.0.0.1:{node.network.port}") for node in nodes]
        self.follower = Follower(trust, where, parts, from_newest=from_newest)
        self.blocks: list[FinalBlock] = []
        self.follower.on_final(self.blocks.append)

    @property
    def heights(self) -> list[int]:
        return [block.header.height for block in self.blocks]

    @property
    def lies(self) -> dict[str, int]:
        return self.metrics.by_label("lies", "reason")


@asynccontextmanager
async def watching(
    trust: Trust, *nodes: Archive, from_newest: bool = False
) -> AsyncIterator[Watcher]:
    watcher = Watcher(trust, nodes, from_newest=from_newest)
    task = asyncio.create_task(watcher.follower.run())
    try:
        yield watcher
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("kind", list(ClientKind))
async def test_blocks_below_a_proven_one_are_believed_by_their_links(
    tmp_path: Path, kind: ClientKind
) -> None:
    chain = make_chain(kind)
    for _ in range(20):
        chain.block()
    async with archive(tmp_path, chain, lambda height: height % 7 == 0) as node:
        await node.grow(20)
        async with watching(trust_in(chain), node) as watcher:
            await watcher.follower.wait_beyond(13)
            assert watcher.heights == list(range(1, 15))  # 15 to 20 wait for a proof
            assert [b.header.height for b in watcher.blocks if b.proof] == [14]
            assert [b.header.hash for b in watcher.blocks] == [b.hash for b in chain.blocks[1:15]]
            chain.block()
            await node.grow(21)
            await watcher.follower.wait_beyond(20)
            assert watcher.heights == list(range(1, 22))
            assert not watcher.lies


async def test_a_proof_may_be_many_answers_away(tmp_path: Path) -> None:
    chain = make_chain()
    for _ in range(600):
        chain.append((), check=False)
    async with archive(tmp_path, chain, lambda height: height == 600) as node:
        await node.grow(600)
        async with watching(trust_in(chain), node) as watcher:
            await asyncio.wait_for(watcher.follower.wait_beyond(599), 30)
            assert watcher.heights == list(range(1, 601))
        async with watching(trust_in(chain), node, from_newest=True) as jumper:
            head = await jumper.follower.wait_beyond(0)
            assert head.header.height == 600
            assert jumper.heights == []


async def test_blocks_without_any_proof_are_kept_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MAX_UNPROVEN", 300)
    chain = make_chain()
    for _ in range(600):
        chain.append((), check=False)
    async with archive(tmp_path, chain, lambda _: False) as node:
        await node.grow(600)
        async with watching(trust_in(chain), node) as watcher:
            await until(lambda: watcher.lies.get("unproven"))
            assert watcher.follower.head is None
            assert not watcher.follower._unproven


async def test_sets_hand_over_and_a_restarted_node_still_shows_it(tmp_path: Path) -> None:
    chain = make_chain()
    chain.block()
    for number in (1, 2):
        chain.hand_over(seed_signers(f"set {number}", 5, real=True))
        chain.block()
        chain.block()
    last = chain.blocks[-1].height
    async with archive(tmp_path, chain) as node:
        await node.grow(last)
        async with watching(trust_in(chain), node) as watcher:
            await watcher.follower.wait_beyond(last - 1)
            assert watcher.heights == list(range(1, last + 1))
            assert watcher.follower.trust.validators == chain.sets[2]
            handovers = [b for b in watcher.blocks if b.next_set is not None]
            assert [b.next_set for b in handovers] == [chain.sets[1], chain.sets[2]]
    async with archive(tmp_path, chain) as node:
        node.history = node.service._history = node.load(last)
        async with watching(trust_in(chain), node, from_newest=True) as jumper:
            head = await jumper.follower.wait_beyond(0)
            assert head.header.height == last
            assert jumper.follower.trust.validators == chain.sets[2]
            assert jumper.heights == []
        async with watching(trust_in(chain), node) as again:
            await again.follower.wait_beyond(last - 1)
            shown = await node_handover(again, chain)
            assert shown == "no-handover"


async def node_handover(watcher: Watcher, chain: TestChain) -> str:
    """The set that is trusted now has not ended: no node can show that it has."""
    with pytest.raises(RemoteFault) as caught:
        await watcher.follower.handover()
    return "no-handover" if "no-handover" in str(caught.value) else str(caught.value)


async def test_a_set_that_the_old_one_did_not_name_is_refused(tmp_path: Path) -> None:
    """The liar finalises its own continuation, with validators of its own choice."""
    chain = make_chain()
    chain.block()
    forged = make_chain()
    forged.blocks = list(chain.blocks)
    forged.signers = {0: seed_signers("mallory", 4, real=True)}
    mallory = ValidatorSet(0, tuple(signer.public_key for signer in forged.signers[0]))
    forged.sets = {0: mallory}
    forged.append((), after_ms=5000)
    chain.block()
    async with archive(tmp_path / "liar", forged) as liar, archive(tmp_path / "b", chain) as honest:
        for node in (liar, honest):
            await node.grow(2)
        async with watching(trust_in(chain), liar, honest) as watcher:
            await asyncio.wait_for(watcher.follower.wait_beyond(1), 20)
            assert watcher.follower.head is not None
            assert watcher.follower.head.header.hash == chain.blocks[2].hash
            assert sum(watcher.lies.values()) == 1


async def test_following_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    chain = make_chain()
    for _ in range(10):
        chain.block()
    async with archive(tmp_path, chain) as node:
        await node.grow(5)
        async with watching(trust_in(chain), node) as watcher:
            await watcher.follower.wait_beyond(4)
            checkpoint = watcher.follower.trust
        await node.grow(10)
        async with watching(checkpoint, node) as again:
            await again.follower.wait_beyond(9)
            assert again.heights == list(range(6, 11))


async def test_a_node_that_has_fallen_silent_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "WAIT_MS", 300)
    chain = make_chain()
    for _ in range(6):
        chain.block()
    async with archive(tmp_path / "a", chain) as stuck, archive(tmp_path / "b", chain) as good:
        await stuck.grow(3)
        await good.grow(6)
        async with watching(trust_in(chain), stuck, good) as watcher:
            await asyncio.wait_for(watcher.follower.wait_beyond(5), 20)
            assert watcher.heights == list(range(1, 7))
            assert not watcher.lies


async def test_a_client_may_let_only_few_questions_wait(tmp_path: Path) -> None:
    from gridtokenx.host.follow_messages import Ask, Follow
    from gridtokenx.host.questions import NodeConnection

    chain = make_chain()
    chain.block()
    async with archive(tmp_path, chain) as node:
        watcher = Watcher(trust_in(chain), [node])
        connection = NodeConnection(watcher.follower.nodes.in_turn()[0], watcher.follower._parts)
        await connection.open()
        for number in range(6):
            question = Follow(after=10, limit=1, wait_ms=20_000)
            connection._link.send(Channel.REQUEST, encode(Ask(number=number, question=question)))
        await until(lambda: connection.closed)
        assert "too-many-questions" in connection._link.close_reason
        await until(lambda: not node.service._waiting)


async def test_states_older_than_the_recent_ones_are_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.host.history.RECENT", 4)
    chain = make_chain()
    for _ in range(8):
        chain.block()
    async with archive(tmp_path, chain) as node:
        await node.grow(8)
        async with watching(trust_in(chain), node) as watcher:
            await watcher.follower.wait_beyond(7)
            assert (await watcher.follower.get([b"k"], 5))[b"k"].value is None
            with pytest.raises(RemoteFault, match="states 5 to 8 are here, not 4"):
                await watcher.follower.get([b"k"], 4)
            with pytest.raises(RemoteFault, match="unknown-header"):
                await watcher.follower.get([b"k"], 99)


async def test_where_blocks_change_much_fewer_states_are_kept_but_some_always_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.host.history.RECENT_CHANGES", -1)
    monkeypatch.setattr("gridtokenx.host.history.LEAST_RECENT", 3)
    chain = make_chain()
    for _ in range(8):
        chain.block()
    async with archive(tmp_path, chain) as node:
        await node.grow(8)
        assert node.history.state_at(6) is chain.blocks[6].state
        with pytest.raises(RemoteFault, match="states 6 to 8 are here, not 5"):
            node.history.state_at(5)


async def test_blocks_that_left_the_memory_are_served_from_disk(tmp_path: Path) -> None:
    chain = make_chain()
    for _ in range(8):
        chain.block()
    async with archive(tmp_path, chain) as node:
        await node.grow(8)
        served = node.history.followed(0, 8)
        assert [block.header for block in served.blocks] == [b.header for b in chain.blocks[1:]]
        assert [block.events for block in served.blocks] == [b.events for b in chain.blocks[1:]]
        assert node.history.blocks(1, 8) == tuple(block.block for block in chain.blocks[1:])


class Hungry:
    """A client's link with as many questions as it is asked for."""

    def __init__(self, name: str) -> None:
        self.identity = sha256(name.encode())
        self.closed = False
        self.answers = 0

    async def receive(self) -> tuple[Channel, bytes]:
        return Channel.REQUEST, encode(Ask(number=1, question=GetStatus()))

    def send(self, channel: Channel, body: bytes) -> bool:
        self.answers += 1
        return True

    def refuse(self, fault: RemoteFault) -> None:
        self.closed = True


async def test_answers_to_one_client_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: one that read quickly could have blocks read and decoded for it all the time."""
    monkeypatch.setattr(follow_service, "ANSWERED_BYTES_PER_S", 2_000)
    first, second = Hungry("first"), Hungry("second")
    async with archive(tmp_path, make_chain()) as node:
        node.service.client_up(first)
        await asyncio.sleep(0.3)
        assert 1 < first.answers < 400, "a burst, and then no more than its share"
        node.service.client_up(second)
        await asyncio.sleep(0.05)
        assert second.answers > 1, "another one's share is its own"
