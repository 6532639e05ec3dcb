"""A PBFT chain of real nodes (sockets, disks, Ed25519) in one event loop, for the tests of the host."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.chain_node import (
    ChainNode,
    MachineStatus,
    NodeParts,
    refuse_foreign_store,
)
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import Follower, Trust
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.history import ValidatorsOf
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import open_security
from gridtokenx.host.storage import Store
from gridtokenx.host.transport import NetworkParts
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.runtime import Ledger, SetReference
from gridtokenx.ledger.tokens import Allocation, Tokens
from gridtokenx.pbft.messages import Message
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

CHAIN_ID = sha256(b"host test chain")
CLIENTS = tuple(Ed25519Signer(sha256(b"client", bytes((i,)))) for i in range(4))
TREASURY = sha256(b"treasury")
TIMING = Timing(block_time_ms=200, view_timeout_ms=1_000, retransmit_ms=300)


def node_signer(index: int) -> Ed25519Signer:
    return Ed25519Signer(sha256(b"node", bytes((index,))))


class TestChain:
    """What the nodes of one chain have in common."""

    __test__ = False
    validators_of: ValidatorsOf | None = None

    def __init__(self, count: int = 4, genesis_ms: int | None = None) -> None:
        self.validators = ValidatorSet(0, tuple(node_signer(i).public_key for i in range(count)))
        self.tokens = Tokens([Allocation("WATT", each.public_key, 10**9) for each in CLIENTS])
        self.admission = StrictNonce(TokenFee(self.tokens, "WATT", 0, TREASURY))
        reference = SetReference(0, self.validators.hash)
        self.ledger = Ledger(CHAIN_ID, [self.tokens], self.admission, lambda _: reference)
        self.genesis = self.ledger.genesis(genesis_ms or time.time_ns() // 1_000_000)

    @property
    def trust(self) -> Trust:
        return Trust(CHAIN_ID, 0, self.genesis.hash, self.validators)

    def node(
        self, index: int, home: Path, ports: Sequence[int], metrics: Metrics | None = None
    ) -> ChainNode:
        store = Store.open(home / str(index))
        signer = node_signer(index)
        refuse_foreign_store(store, self.ledger, signer)
        replica = Replica.restore(
            store,
            self.ledger,
            self.validators,
            signer,
            self.genesis,
            TIMING,
            validators_of=self.validators_of,
        )
        parts = NodeParts(
            chain="consortium",
            machine=replica,
            message_type=Message,
            ledger=self.ledger,
            genesis=self.genesis,
            head=replica.head,
            validators=self.validators,
            status=lambda: MachineStatus(
                replica.head.height, replica.view, replica.primary, replica.pending
            ),
            signer=signer,
            verifier=CachingVerifier(Ed25519Verifier()),
            store=store,
            security=open_security(),
            clock=NetworkClock(),
            metrics=metrics or Metrics(),
            log=NullLogger(),
            listen=HostPort("127.0.0.1", ports[index]),
            peers=[NodeAddress(HostPort("127.0.0.1", port)) for port in ports],
            validators_of=self.validators_of,
        )
        return ChainNode(parts)


def client_parts(chain: TestChain, number: int = 0, metrics: Metrics | None = None) -> NetworkParts:
    own = LinkIdentity(
        Ed25519Signer(sha256(b"follower", bytes((number,)))),
        "client",
        CHAIN_ID,
        chain.genesis.hash,
    )
    return NetworkParts(
        own,
        open_security(listens=False),
        CachingVerifier(Ed25519Verifier()),
        metrics or Metrics(),
        NullLogger(),
    )


def places(ports: Sequence[int]) -> list[NodeAddress]:
    return [NodeAddress(HostPort("127.0.0.1", port)) for port in ports]


@asynccontextmanager
async def running(*works: "ChainNode | Follower") -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run nodes and followers; afterwards stop them, and raise what made one fail."""
    tasks = [asyncio.create_task(work.run()) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
