"""One node of one chain: store, links, driver and the service for clients, put together.

::

    members ──links──> Driver ──> machine (PBFT replica or public node)
                          │ Committed
                          v
    clients ──links──> FollowService <── History (disk, recent states)
                          └── submissions ──> Driver

The same code runs all three chains; what differs is the machine, its message type and the links'
security, all given by the caller (`gridtokenx.node`, `gridtokenx.oracle.process`).
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.core.machine import Committed, Machine
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.crashpoints import crash_point
from gridtokenx.host.driver import Driver, DriverParts
from gridtokenx.host.follow_messages import BUSY, Status
from gridtokenx.host.follow_service import FollowService
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.heap import settle_heap
from gridtokenx.host.history import History, ValidatorsOf
from gridtokenx.host.link import Link
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.security import LinkSecurity
from gridtokenx.host.storage import MEBIBYTE, Store
from gridtokenx.host.tasks import Tasks
from gridtokenx.host.transport import Network, NetworkLimits, NetworkParts
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction

READY_LAG_MS: Final = 60_000
"""A node whose last final block is older than this is not ready."""
CATCHING_UP_S: Final = 5.0
"""A node that is late, but finalised something so lately, is on its way."""
LITTLE_ROOM_BYTES: Final = 64 * MEBIBYTE
"""With less on the disk a node says that it is not ready, before a write fails."""


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What a node says of its machine, for people."""

    best_height: int
    round: int
    leader: bytes
    pending: int
    congested: bool = False
    """Whether what waits for a block waits too long for more to be taken."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a chain node is made of.

    The machine must have been built on `store`; `head` is its last final block at that moment.
    """

    chain: str
    """``public``, ``consortium`` or ``oracle``; a label of metrics and logs."""
    machine: Machine
    message_type: object
    """The union of messages that members send."""
    ledger: Ledger
    genesis: ExecutedBlock
    head: ExecutedBlock
    validators: ValidatorSet
    status: Callable[[], MachineStatus]
    signer: Signer
    verifier: CachingVerifier
    store: Store
    security: LinkSecurity
    clock: NetworkClock
    metrics: Metrics
    log: Logger
    listen: HostPort
    peers: Sequence[NodeAddress]
    limits: NetworkLimits = field(default_factory=NetworkLimits)
    verify_threads: int = 0
    others: Collection[bytes] = ()
    """Keys of full nodes without a seat in `validators`, which may be linked as members too."""
    validators_of: ValidatorsOf | None = None
    """Where sets change: reads the set that finalises the next block from the state after one."""
    patient: tuple[type[Wire], ...] = ()
    """See `Driver`: messages that others may overtake."""


class ChainNode:
    """A running node. `run` drives it until cancelled; then everything is closed in order."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._tasks = Tasks()
        self._listeners: list[Callable[[ExecutedBlock], None]] = []
        self._checker = SignatureChecker(parts.verifier, parts.verify_threads)
        self._history = History(
            parts.store, parts.genesis, parts.head, parts.validators, parts.validators_of
        )
        identity = LinkIdentity(
            parts.signer, "peer", parts.ledger.chain_id, parts.genesis.header.hash
        )
        self._network = Network(
            NetworkParts(
                identity,
                parts.security,
                parts.verifier,
                parts.metrics,
                parts.log,
                parts.limits,
                parts.clock.now_ms,
            ),
            (*self._history.validators.members, *parts.others),
            parts.peers,
            self,
        )
        driver_parts = DriverParts(
            parts.store, parts.clock, self._checker, parts.metrics, parts.log
        )
        self._driver = Driver(
            parts.machine,
            parts.message_type,
            self._network,
            driver_parts,
            self._on_committed,
            parts.patient,
        )
        self._service = FollowService(
            self._history,
            self,
            self._status,
            self._checker,
            self._network.fault,
            parts.metrics,
            self._tasks,
        )
        self._final_at = time.monotonic()
        """When the last block became final here."""
        self._reasons: list[Callable[[], Iterable[str]]] = [
            parts.security.troubles,
            self._late,
            self._lonely,
            self._full,
            self._network.reasons,
        ]
        self._describe()

    # -- use ---------------------------------------------------------------------------------------

    @property
    def head(self) -> ExecutedBlock:
        """The last final block."""
        return self._history.head

    @property
    def seat(self) -> int | None:
        """Index of this node's key in the set that finalises the next block; None: it observes."""
        return self._history.validators.index_of(self._parts.signer.public_key)

    def facts(self) -> dict[str, int | str]:
        """Where it stands, for `/health`."""
        seat = self.seat
        return {
            "height": self.head.height,
            "set_id": self._history.validators.set_id,
            "members": self._history.validators.size,
            "seat": "observer" if seat is None else seat,
            "kept_from": self._history.base,
        }

    @property
    def pending(self) -> int:
        """Transactions that wait for a block here."""
        return self._parts.status().pending

    @property
    def history(self) -> History:
        """Final blocks and recent states."""
        return self._history

    @property
    def port(self) -> int:
        """The port of the listener, once `run` has begun."""
        return self._network.port

    @property
    def ready(self) -> bool:
        """Whether it does its work."""
        return self.readiness().ready

    def readiness(self) -> Readiness:
        """Whether it keeps up, is linked to enough others, and nothing is known to be wrong."""
        return Readiness.unless(reason for source in self._reasons for reason in source())

    def add_reasons(self, source: Callable[[], Iterable[str]]) -> None:
        """Let `source` say, whenever somebody asks, why this node is not ready. It must be quick."""
        self._reasons.append(source)

    def on_final(self, listener: Callable[[ExecutedBlock], None]) -> None:
        """Call `listener` with each block that becomes final. It must be short."""
        self._listeners.append(listener)

    def admit(self, transaction: Transaction) -> None:
        """Whether the pool would take a transaction whose signature was checked.

        Raises:
            RemoteFault: with the reason for the client.
        """
        state = State(self.head.state)
        self._parts.ledger.admit(state, transaction, self._parts.clock.now_ms())

    async def room(self) -> None:
        """Wait until a client's submission may be taken.

        Raises:
            RemoteFault: this node is behind what members passed on, and stays so, or the leader is.
        """
        await self._driver.room()
        if self._parts.status().congested:
            raise RemoteFault(BUSY, "more is submitted than this chain carries; try again")

    def submit(self, transactions: Sequence[Transaction], *, everywhere: bool = False) -> None:
        """Hand over transactions whose signatures were checked.

        Args:
            transactions: what to submit.
            everywhere: see `core.machine.Submitted`.

        Raises:
            RemoteFault: too many wait already.
        """
        self._driver.submit(transactions, everywhere=everywhere)

    async def run(self) -> None:
        """Take part until cancelled, or until something fails."""
        try:
            crash_point("node.ready")
            settle_heap()
            self._network.start(self._parts.listen)
            self._parts.log.info(
                "node started",
                listen=str(HostPort(self._parts.listen.host, self.port)),
                height=self.head.height,
                identity=self._parts.signer.public_key.hex(),
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(self._drive(), name="driver")
                group.create_task(self._network.watch(), name="network")
                group.create_task(self._tasks.watch(), name="clients")
        finally:
            await self._stop()

    async def _drive(self) -> None:
        """Run the machine, once it is known that no other process runs it with the same key."""
        await self._network.settle()
        await self._driver.run()

    async def _stop(self) -> None:
        await self._network.close()
        await self._tasks.close()
        self._checker.close()
        await self._parts.store.drain()
        self._parts.store.close()
        self._parts.log.info("node stopped", height=self.head.height)

    # -- links (LinkHandler) -----------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A handshake has finished."""
        if link.role == "client":
            self._service.client_up(link)
            return
        self._driver.peer_connected(link.identity)

    def link_down(self, link: Link) -> None:
        """A link has ended."""
        if link.role == "client":
            self._service.client_down(link)

    def frames_ready(self, link: Link) -> None:
        """A frame can be taken; clients' tasks wait for theirs themselves."""
        if link.role == "peer":
            self._driver.frames_ready(link)

    # -- internals ---------------------------------------------------------------------------------

    def _on_committed(self, effect: Committed) -> None:
        executed = effect.value
        assert isinstance(executed, ExecutedBlock), "chains commit executed blocks"
        before = self._history.validators
        self._history.append(executed)
        self._final_at = time.monotonic()
        following = self._history.validators
        if following is not before:
            self._network.set_members((*following.members, *self._parts.others))
            self._parts.log.info(
                "set changed", set=following.set_id, members=len(following.members)
            )
        self._parts.metrics.count("blocks_final")
        self._parts.metrics.count("transactions_final", len(executed.block.transactions))
        lag_s = (self._parts.clock.now_ms() - executed.header.timestamp_ms) / 1000
        self._parts.metrics.observe("finality_lag", max(0.0, lag_s))
        for listener in self._listeners:
            listener(executed)

    # -- why it is not ready -----------------------------------------------------------------------

    def _late(self) -> Iterator[str]:
        """The last final block is too old."""
        if self.head.height == 0:
            yield "nothing but genesis is final here"
            return
        age_ms = self._parts.clock.now_ms() - self.head.header.timestamp_ms
        if age_ms < READY_LAG_MS:
            return
        catching_up = time.monotonic() - self._final_at < CATCHING_UP_S
        yield (
            f"the last final block {self.head.height} is {age_ms // 1000} s old,"
            f" at most {READY_LAG_MS // 1000} s are allowed"
            + ("; syncing: it grows" if catching_up else "")
        )

    def _lonely(self) -> Iterator[str]:
        """Fewer members are linked than what takes a quorum (an observer: than one honest one)."""
        members, own = self._history.validators, self._parts.signer.public_key
        seated = members.index_of(own) is not None
        linked = len([key for key in self._network.members if members.index_of(key) is not None])
        others = members.size - seated
        needed = members.quorum - 1 if seated else members.faulty + 1
        if linked < needed:
            why = self._network.unreached.most_common()
            yield f"linked to {linked} of {others} other members, {needed} are needed" + (
                f" (not reached: {', '.join(f'{count} {word}' for word, count in why)})"
                if why
                else ""
            )

    def _full(self) -> Iterator[str]:
        """The disk has little room."""
        free = self._parts.store.free_bytes()
        if free < LITTLE_ROOM_BYTES:
            yield (
                f"disk: {free // MEBIBYTE} MiB are free for {self._parts.store.directory},"
                f" at least {LITTLE_ROOM_BYTES // MEBIBYTE} MiB are needed"
            )

    # -- internals ---------------------------------------------------------------------------------

    def _status(self) -> Status:
        header, machine = self.head.header, self._parts.status()
        members = self._history.validators
        return Status(
            final_height=header.height,
            final_hash=header.hash,
            final_timestamp_ms=header.timestamp_ms,
            best_height=machine.best_height,
            round=machine.round,
            leader=machine.leader,
            peers=len(self._network.peers),
            pending=machine.pending,
            set_id=members.set_id,
            members=members.size,
            seated=self.seat is not None,
        )

    def _describe(self) -> None:
        metrics, status = self._parts.metrics, self._parts.status
        metrics.gauge("final_height", lambda: self.head.height)
        metrics.gauge("kept_from_height", lambda: self._history.base)
        metrics.describe(
            "kept_from_height",
            "From which height on all blocks are here: 0, or a state taken over.",
        )
        metrics.gauge("best_height", lambda: status().best_height)
        metrics.gauge("round", lambda: status().round)
        metrics.gauge("set_id", lambda: self._history.validators.set_id)
        metrics.gauge("members", lambda: self._history.validators.size)
        metrics.gauge("seated", lambda: float(self.seat is not None))
        metrics.describe("set_id", "Number of the validator set that finalises the next block.")
        metrics.describe("members", "How many members that set has.")
        metrics.describe("seated", "1 while this node's key has a seat in it, 0 while it observes.")
        metrics.gauge("pending_transactions", lambda: status().pending)
        metrics.gauge("peers", lambda: len(self._network.peers))
        metrics.gauge("guests", lambda: len(self._network.guests))
        metrics.gauge("clients", lambda: self._network.clients)
        metrics.gauge("disk_free_bytes", self._parts.store.free_bytes)
        metrics.describe("remote_faults", "Bad input of peers and clients, by reason.")
        metrics.describe("finality_lag", "From a block's timestamp to its finality here.")


def refuse_foreign_store(store: Store, ledger: Ledger, signer: Signer) -> None:
    """Bind a store to its chain and its node.

    Raises:
        LocalFault: it was made for another chain, or by another node.
    """
    store.bind("chain", ledger.chain_id)
    store.bind("identity", signer.public_key)
