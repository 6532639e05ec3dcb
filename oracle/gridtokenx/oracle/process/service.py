"""What makes a chain node an oracle: readings in, watermarks out, observations.

The node itself (consensus, storage, peers) is another's; this is what is wired to it, through the
few calls of `OracleNode`. A node whose key has no seat is no oracle: it neither takes readings nor
observes feeds, until a set begins in which it has one, and stops when one begins in which it has none.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.host.broker import BrokerAddress, until_first
from gridtokenx.host.checking import SignatureChecker
from gridtokenx.host.logs import Logger, SparseLog
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.tasks import Tasks
from gridtokenx.ledger.readings import topic_concentrator, topic_device
from gridtokenx.ledger.runtime import MAX_BLOCK_WEIGHT, TRANSACTION_WEIGHT, ExecutedBlock, Ledger
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.ledger import OracleGenesis
from gridtokenx.oracle.chain.meters import READING_WEIGHT
from gridtokenx.oracle.process.broker import BrokerLink
from gridtokenx.oracle.process.carriers import FAULTS, GUILTY, MUTED_S, Carriers, unpack
from gridtokenx.oracle.process.inbox import Inbox
from gridtokenx.oracle.process.intake import Intake, Kept, forged, parse
from gridtokenx.oracle.process.observer import Observer, Source
from gridtokenx.oracle.process.watermarks import Watermarks
from gridtokenx.pbft.membership import validators_of

BATCH: Final = 64
"""Readings judged before the event loop gets its turn: about ten milliseconds."""
MAX_PENDING: Final = 2 * MAX_BLOCK_WEIGHT // (TRANSACTION_WEIGHT + READING_WEIGHT)
"""Readings that are submitted and in no block yet."""
ROOM_S: Final = 1.0
"""How often the room is looked at when no block comes: what is pending can expire, too."""
FULL_PERCENT: Final = 80
"""Of the inbox: above this the node is not ready."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One reading's bytes, and who brought them."""

    payload: bytes
    device: bytes | None
    """Under whose name it was published; None if a concentrator carried it."""
    concentrator: bytes | None


class OracleNode(Protocol):
    """What the service needs of the chain node."""

    @property
    def head(self) -> ExecutedBlock:
        """The last committed block."""
        ...

    @property
    def pending(self) -> int:
        """Transactions that wait for a block here."""
        ...

    def submit(self, transactions: Sequence[Transaction], *, everywhere: bool = False) -> None:
        """Hand over transactions whose signatures were checked; `RemoteFault` if it is too busy."""


class OracleService:
    """The oracle's part of a process.

    Args:
        genesis: of the oracle chain.
        ledger: put together from it.
        node: the chain node.
        signer: the oracle's key.
        checker: checks devices' signatures.
        broker: where readings come from.
        sources: this oracle's own source of each feed that it observes, by feed.
        clock: network time in milliseconds.
        metrics: counts ``readings_received`` (messages), ``batches_received``, ``readings_verified``,
            ``readings_kept`` (until their device is registered), ``readings_rejected`` (dropped for
            good) by reason, ``concentrator_faults`` by concentrator and reason,
            ``submissions_refused``, and what `BrokerLink` and `Observer` count.
        log: of the process.

    Raises:
        LocalFault: a source is for a feed that the chain lacks.
    """

    def __init__(
        self,
        genesis: OracleGenesis,
        ledger: Ledger,
        node: OracleNode,
        signer: Signer,
        checker: SignatureChecker,
        broker: BrokerAddress,
        sources: Mapping[str, Source],
        clock: Callable[[], int],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._key: Final = signer.public_key
        self._node: Final = node
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._log: Final = log
        self._checker: Final = checker
        self._intake: Final = Intake(ledger, checker.verifier)
        self._carriers: Final = Carriers(lambda: clock() / 1000)
        self._sparse: Final = SparseLog(log)
        self._dropped = 0
        self._watermarks: Final = Watermarks(ledger, self._key)
        self._inbox: Final = Inbox()
        self._block: Final = asyncio.Event()
        self._arrived: Final = asyncio.Event()
        self._height = node.head.height
        self._seated = self._has_seat(node.head)
        self._seat_changed: Final = asyncio.Event()
        self._link: Final = BrokerLink(
            broker, signer, self._watermarks, self._enqueue, self._on_connect, metrics, log
        )
        self._observers: Final = tuple(self._make_observers(genesis, sources, signer))
        metrics.gauge("broker_connected", lambda: float(self._link.state.connected))
        metrics.gauge("broker_buffered", lambda: float(len(self._inbox)))

    def _make_observers(
        self, genesis: OracleGenesis, sources: Mapping[str, Source], signer: Signer
    ) -> list[Observer]:
        positions = {spec.feed: position for position, spec in enumerate(genesis.feeds)}
        for feed in sources:
            if feed not in positions:
                known = ", ".join(positions) or "none"
                raise LocalFault(f"source for feed {feed!r}, but the chain's feeds are: {known}")
        return [
            Observer(
                genesis.feeds[positions[feed]],
                positions[feed],
                len(positions),
                genesis.clock.network_genesis_ms,
                source,
                signer,
                genesis.chain_id,
                self._clock,
                self._submit_one,
                self._metrics,
                self._log,
            )
            for feed, source in sources.items()
        ]

    # -- running -----------------------------------------------------------------------------------

    def reasons(self) -> Iterator[str]:
        """Why this part of the process does not do its work, if it does not."""
        if not self._seated:
            return
        if self._link.state.reason is not None:
            yield self._link.state.reason
        if self._inbox.full_percent > FULL_PERCENT:
            yield (
                f"{len(self._inbox)} messages of the broker wait to be judged,"
                f" {self._inbox.full_percent} % of the room: this node is too slow, or is flooded"
            )

    async def run(self) -> None:
        """Serve until cancelled, whenever this key has a seat; a failure of any part is raised."""
        while True:
            if self._seated:
                await until_first(self._serve(), self._until(seated=False))
                self._inbox.clear()
            else:
                self._log.warning(
                    "no seat among the oracles: taking no readings, observing no feeds"
                )
                await self._until(seated=True)
                self._log.info("seated among the oracles: beginning to serve")

    async def _serve(self) -> None:
        tasks = Tasks()
        try:
            tasks.spawn(self._link.run(), "broker link")
            tasks.spawn(self._judge_all(), "intake")
            for observer in self._observers:
                tasks.spawn(observer.run(), "observer")
            await tasks.watch()
        finally:
            await tasks.close()

    async def _until(self, *, seated: bool) -> None:
        """Wait until this key has a seat, or has none."""
        while self._seated != seated:
            self._seat_changed.clear()
            await self._seat_changed.wait()

    def _has_seat(self, head: ExecutedBlock) -> bool:
        return validators_of(head.state).index_of(self._key) is not None

    def committed(self, executed: ExecutedBlock) -> None:
        """A block is final and durable: call it for every one, in order.

        Some are left out if the node took a state over: then all devices may be new.
        """
        seated = self._has_seat(executed)
        if seated != self._seated:
            self._seated = seated
            self._seat_changed.set()
        if executed.height > self._height + 1:
            registered = self._watermarks.connected(State(executed.state))
        else:
            registered = self._watermarks.committed(executed)
        self._height = executed.height
        for key in registered:
            kept = self._intake.registered(key)
            if kept:
                self._submit(kept)
        self._link.wake()
        self._block.set()

    # -- readings ----------------------------------------------------------------------------------

    def _on_connect(self) -> None:
        self._watermarks.connected(State(self._node.head.state))

    def _enqueue(self, topic: str, payload: bytes) -> None:
        batch = topic_concentrator(topic)
        self._metrics.count("readings_received" if batch is None else "batches_received")
        refused = self._inbox.put(topic, payload)
        if refused is not None:
            self._metrics.count("readings_rejected", reason=refused)
            return
        self._arrived.set()

    async def _judge_all(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while len(self._inbox):
                arrived = self._take()
                for cut in range(0, len(arrived), BATCH):
                    await self._room()
                    await self._judge(arrived[cut : cut + BATCH])
                    await asyncio.sleep(0)

    async def _room(self) -> None:
        """Wait while two blocks' worth is pending.

        A burst of ten thousand readings would cost leaders their views: what is pending must be
        included within a bound, and what waits here need not. The consensus comes first.
        """
        while self._node.pending >= MAX_PENDING:
            self._block.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROOM_S):
                    await self._block.wait()

    def _take(self) -> list[Arrived]:
        """Some messages' readings: at least one message's, and not many more than `BATCH`."""
        arrived: list[Arrived] = []
        while len(arrived) < BATCH and (taken := self._inbox.take()) is not None:
            topic, payload = taken
            concentrator = topic_concentrator(topic)
            if concentrator is None:
                arrived.append(Arrived(payload, topic_device(topic) or b"", None))
            else:
                arrived += self._unpack(concentrator, payload)
        return arrived

    def _unpack(self, concentrator: bytes, payload: bytes) -> list[Arrived]:
        if self._carriers.is_muted(concentrator):
            self._metrics.count("readings_rejected", reason="concentrator-muted")
            return []
        try:
            readings = unpack(payload)
        except RemoteFault as fault:
            self._metrics.count("readings_rejected", reason=fault.reason)
            self._blame(concentrator, fault, FAULTS)
            return []
        return [Arrived(reading, None, concentrator) for reading in readings]

    async def _judge(self, batch: Sequence[Arrived]) -> None:
        state, now_ms = State(self._node.head.state), self._clock()
        candidates: list[tuple[Arrived, Transaction]] = []
        for arrived in batch:
            try:
                transaction = parse(arrived.payload, arrived.device)
            except RemoteFault as fault:
                self._refuse(state, now_ms, arrived, arrived.device, fault)
                continue
            try:
                self._intake.examine(state, now_ms, transaction)
            except Kept:
                self._metrics.count("readings_kept")
            except RemoteFault as fault:
                self._refuse(state, now_ms, arrived, transaction.body.sender, fault)
            else:
                candidates.append((arrived, transaction))
        if self._intake.dropped > self._dropped:
            dropped, self._dropped = self._intake.dropped - self._dropped, self._intake.dropped
            self._metrics.count("readings_rejected", dropped, reason="unknown-device")
        valid = await self._checker.all_valid([(each.signature_check(),) for _, each in candidates])
        good: list[Transaction] = []
        for (arrived, transaction), holds in zip(candidates, valid, strict=True):
            if holds:
                self._watermarks.heard(transaction.body.sender, arrived.concentrator)
                good.append(transaction)
            else:
                sender = transaction.body.sender
                self._refuse(state, now_ms, arrived, sender, forged(transaction))
        if good:
            self._submit(good)

    def _refuse(
        self,
        state: State,
        now_ms: int,
        arrived: Arrived,
        device: bytes | None,
        fault: RemoteFault,
    ) -> None:
        """Count it, and name who sent it."""
        self._metrics.count("readings_rejected", reason=fault.reason)
        self._log.debug("reading refused", device=(device or b"").hex(), why=str(fault))
        if fault.reason == "replayed" and device is not None:
            self._watermarks.repeated(state, device, arrived.concentrator, now_ms)
            self._link.wake()
        if arrived.concentrator is not None and fault.reason in GUILTY:
            self._blame(arrived.concentrator, fault)

    def _blame(self, concentrator: bytes, fault: RemoteFault, faults: int = 1) -> None:
        name = concentrator.hex()
        self._metrics.count("concentrator_faults", concentrator=name[:16], reason=fault.reason)
        self._sparse.warning(
            "concentrator carries what it should not", name, concentrator=name, why=str(fault)[:160]
        )
        if self._carriers.blame(concentrator, faults):
            self._log.warning("concentrator muted", concentrator=name, for_s=MUTED_S)

    def _submit_one(self, transaction: Transaction) -> None:
        self._hand_over((transaction,), everywhere=False)

    def _submit(self, transactions: Sequence[Transaction]) -> None:
        self._metrics.count("readings_verified", len(transactions))
        self._hand_over(transactions, everywhere=True)  # the broker gives them to every oracle

    def _hand_over(self, transactions: Sequence[Transaction], *, everywhere: bool) -> None:
        try:
            self._node.submit(transactions, everywhere=everywhere)
        except RemoteFault as fault:
            # Meters send again what has no watermark; a round does without one observation.
            self._metrics.count("submissions_refused", len(transactions), reason=fault.reason)
