"""Nodes of a simulated chain: the machine in the world, and beside it what serves clients.

What `host.chain_node` puts around a machine on a real network is here around the same machine: history,
follow service, and on the oracle chain the intake of readings. Store, links and driver are the world's.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gridtokenx.core.keys import Signer, Verifier
from gridtokenx.core.machine import Machine, Reader, Write
from gridtokenx.host.broker_address import BrokerAddress
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.follow_messages import Status
from gridtokenx.host.follow_service import FollowService
from gridtokenx.host.history import History, ValidatorsOf
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.tasks import Tasks
from gridtokenx.lab.sim.pbft.chain import SharedLedger
from gridtokenx.lab.sim.testnet.links import PORT, ServedClient
from gridtokenx.lab.sim.testnet.oracles import Desk, Lie
from gridtokenx.lab.sim.testnet.processes import End, Life
from gridtokenx.lab.sim.testnet.variants import NetworkVariant
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.ledger import OracleGenesis
from gridtokenx.oracle.process.observer import Source
from gridtokenx.oracle.process.service import OracleNode, OracleService
from gridtokenx.pbft.membership import validators_of as pbft_validators_of
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import blocks_of
from gridtokenx.pbft.timing import Timing
from gridtokenx.public.chain import PublicGenesis, public_chain
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.slots import KeyedHashVrf, KeyedHashVrfVerifier


class ChainMachine(Machine, Protocol):
    """What both engines tell of themselves."""

    @property
    def head(self) -> ExecutedBlock:
        """The last final block."""
        ...

    @property
    def pending(self) -> int:
        """Transactions that wait for a block."""
        ...


@dataclass(frozen=True, slots=True)
class SimulatedChain:
    """One chain of the network, as its nodes are made.

    Attributes:
        facts: put together from its genesis.
        ledger: the chain's, which remembers for all nodes what one has executed.
        timing: of its engine; None for the public chain.
        verifier: of signatures.
        variant: how its nodes are broken on purpose, if they are.
    """

    facts: ChainFacts
    ledger: SharedLedger
    timing: Timing | None
    verifier: Verifier
    variant: NetworkVariant

    def restore(
        self, reader: Reader, signer: Signer, traitor: type[Replica] | None = None
    ) -> Replica | PublicNode:
        """A node's machine as its earlier lives left it.

        Args:
            reader: its disk.
            signer: its key.
            traitor: what a traitor's replica is inside; None for whoever is none.
        """
        facts, rule = self.facts, self.variant.rule
        if self.timing is not None:
            assert not isinstance(facts.genesis, PublicGenesis), "that one has no timing"
            return (traitor or self.variant.replica).restore(
                reader,
                self.ledger,
                rule(facts.validators),
                signer,
                facts.genesis_block,
                self.timing,
                validators_of=lambda tree: rule(pbft_validators_of(tree)),
                rotation_blocks=blocks_of(facts.genesis.rotation_blocks),
            )
        assert isinstance(facts.genesis, PublicGenesis), "the other two have a timing"
        keys = NodeKeys(signer, KeyedHashVrf(signer.public_key), KeyedHashVrfVerifier())
        return self.variant.validator(
            facts.ledger,
            facts.genesis_block,
            facts.validators,
            keys,
            PublicConfig(facts.genesis.slot_rules),
            reader,
            self.validators_of,
        )

    @property
    def validators_of(self) -> ValidatorsOf:
        """Reads from a state who finalises the next block."""
        if isinstance(self.facts.genesis, PublicGenesis):
            return public_chain(self.facts.genesis, self.verifier).staking.validators_of
        return pbft_validators_of


class _Disk:
    """The node's disk for its history, which keeps sets in memory: the machine keeps its own."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader

    def get(self, table: str, key: bytes) -> bytes | None:
        """See `Reader`."""
        return self._reader.get(table, key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `Reader`."""
        return self._reader.scan(table, prefix)

    def submit(self, writes: Iterable[Write], done: Callable[[], None]) -> None:  # noqa: ARG002
        """Nothing is kept that another life could not learn again."""
        done()


class ServingNode:
    """What one life of a node has beside its machine.

    Args:
        life: of the node.
        chain: which it is of.
        machine: of the node.
        reader: its disk.
        signer: its key.
        metrics: its numbers.
    """

    def __init__(
        self,
        life: Life,
        chain: SimulatedChain,
        machine: ChainMachine,
        reader: Reader,
        signer: Signer,
        metrics: Metrics,
    ) -> None:
        self._life: Final = life
        self._chain: Final = chain
        self._machine: Final = machine
        self._signer: Final = signer
        self.metrics: Final = metrics
        facts = chain.facts
        self._history: Final = History(
            _Disk(reader), facts.genesis_block, machine.head, facts.validators, chain.validators_of
        )
        self._listeners: Final[list[Callable[[ExecutedBlock], None]]] = [self._history.append]
        checker = SignatureChecker(CachingVerifier(chain.verifier))
        self._service: Final = FollowService(
            self._history,
            self,
            self._status,
            checker,
            lambda _client, fault: self.metrics.count("remote_faults", reason=fault.reason),
            self.metrics,
            Tasks(),
        )
        life.listeners[PORT] = self._accept

    @property
    def head(self) -> ExecutedBlock:
        """The last final block."""
        return self._history.head

    @property
    def pending(self) -> int:
        """Transactions that wait for a block here."""
        return self._machine.pending

    def committed(self, executed: ExecutedBlock) -> None:
        """A block is final and durable."""
        for listener in self._listeners:
            listener(executed)

    def admit(self, transaction: Transaction) -> None:
        """Whether the pool would take a transaction; raises `RemoteFault` if not."""
        now_ms = self._life.clock.now_ms()
        self._chain.ledger.admit(State(self.head.state), transaction, now_ms)

    async def room(self) -> None:
        """Simulated nodes are never behind: what they do takes no time."""

    def submit(self, transactions: Sequence[Transaction], *, everywhere: bool = False) -> None:
        """Hand over transactions whose signatures were checked."""
        world, node = self._life.wires.world, self._life.node.id
        batch = tuple(transactions)
        self._life.after(0, lambda: world.submit(node, batch, everywhere=everywhere))

    def take_readings(
        self,
        broker: BrokerAddress,
        sources: dict[str, Source],
        lies: Sequence[Lie],
        told: Counter[str],
    ) -> None:
        """Be an oracle: readings in, watermarks out, observations.

        Args:
            broker: where readings come from.
            sources: of prices, by feed.
            lies: what it does to all that, if it is a liar.
            told: counts what it did.
        """
        facts = self._chain.facts
        genesis = facts.genesis
        assert isinstance(genesis, OracleGenesis), "only its nodes take readings"
        feeds = {spec.feed: spec for spec in genesis.feeds}
        node: OracleNode = self
        if lies:
            node = Desk(self, self._life, self._signer, facts.ledger, feeds, lies, told)
        service = OracleService(
            genesis,
            facts.ledger,
            node,
            self._signer,
            SignatureChecker(CachingVerifier(self._chain.verifier)),
            broker,
            sources,
            self._life.clock.now_ms,
            self.metrics,
            NullLogger(),
        )
        self._listeners.append(service.committed)
        self._life.spawn(service.run(), "oracle service")

    def _accept(self, end: End) -> None:
        client, loop = ServedClient(end), self._life.loop
        lost = end.on_closed

        def closed(reason: str) -> None:
            lost(reason)
            loop.call_soon(self._service.client_down, client)

        end.on_closed = closed
        loop.call_soon(self._service.client_up, client)

    def _status(self) -> Status:
        header, members = self.head.header, self._history.validators
        return Status(
            final_height=header.height,
            final_hash=header.hash,
            final_timestamp_ms=header.timestamp_ms,
            best_height=header.height,
            round=header.round,
            leader=members.members[0],
            peers=0,
            pending=self.pending,
            set_id=members.set_id,
            members=members.size,
            seated=members.index_of(self._signer.public_key) is not None,
        )
