"""Nodes that serve chains made by a test to the gateway's light clients, honestly or not."""

from collections.abc import Callable, Iterator, Sequence

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.follow_messages import Reply, Status
from gridtokenx.host.follow_service import FollowService
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.history import History
from gridtokenx.host.link import Link
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import LinkSecurity, open_security
from gridtokenx.host.tasks import Tasks
from gridtokenx.host.transport import Network, NetworkParts
from gridtokenx.ledger.records import block_writes
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.transactions import Transaction
from tests.gateway_world import RealChain

Twist = Callable[[Reply], Reply]


def honest(reply: Reply) -> Reply:
    return reply


def node_seed(chain: str, number: int) -> bytes:
    return sha256(b"node", chain.encode(), bytes((number,)))


class Disk:
    """Records in memory."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {}

    def take(self, executed: ExecutedBlock, proof: bytes) -> None:
        for write in block_writes(executed, proof):
            table = self.tables.setdefault(write.table, {})
            table[write.key] = write.value or b""

    def get(self, table: str, name: bytes) -> bytes | None:
        return self.tables.get(table, {}).get(name)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for name, value in sorted(self.tables.get(table, {}).items()):
            if name.startswith(prefix):
                yield name, value


class Service(FollowService):
    """Answers as its node's twist has it."""

    node: "Node"

    def _reply(self, link: Link, number: int, reply: Reply) -> int:  # type: ignore[override]
        return FollowService._reply(link, number, self.node.twist(reply))


class Node:
    """Serves a chain that the test makes; `twist` alters its answers."""

    def __init__(
        self,
        number: int,
        chain: RealChain,
        twist: Twist = honest,
        security: LinkSecurity | None = None,
    ) -> None:
        self.chain = chain
        self.twist = twist
        self.disk = Disk()
        self.taken: list[Transaction] = []
        genesis = chain.blocks[0]
        self.history = History(
            self.disk, genesis, genesis, chain.validators, lambda _: chain.validators
        )
        identity = Ed25519Signer(node_seed(chain.chain, number))
        own = LinkIdentity(identity, "peer", chain.ledger.chain_id, genesis.hash)
        verifier = CachingVerifier(Ed25519Verifier())
        parts = NetworkParts(own, security or open_security(), verifier, Metrics(), NullLogger())
        self.tasks = Tasks()
        self.network = Network(parts, (), (), self)
        checker = SignatureChecker(verifier)
        self.service = Service(
            self.history, self, self.status, checker, self.network.fault, Metrics(), self.tasks
        )
        self.service.node = self
        self.grow()

    def grow(self) -> None:
        for executed in self.chain.blocks[self.history.head.height + 1 :]:
            self.disk.take(executed, encode(self.chain.proof(executed.header)))
            self.history.append(executed)

    def status(self) -> Status:
        raise RemoteFault("no-status")

    async def room(self) -> None:
        """There always is."""

    def admit(self, transaction: Transaction) -> None:
        self.chain.ledger.decode_calls(transaction)

    def submit(self, transactions: Sequence[Transaction]) -> None:
        self.taken += transactions

    def link_up(self, link: Link) -> None:
        self.service.client_up(link)

    def link_down(self, link: Link) -> None:
        self.service.client_down(link)

    def frames_ready(self, link: Link) -> None:
        """The service's task waits for its frames itself."""
