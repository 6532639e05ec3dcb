"""Drives the pure relayer under asyncio: its requests become tasks, their outcomes its events.

Law of the file: **every request is answered exactly once**, whatever fails: a read by its values
or by `ReadFailed`, a submission by `Settled`. So the machine never waits for something that
nobody does.

Chains come as ports (`RelayChain`): the production one follows real nodes and verifies everything
(`follower.py`); tests bring their own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

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
from gridtokenx.bridge.relayer.machine import Relayer
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Log
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.tasks import Tasks
from gridtokenx.interchain.calls import RelayCall
from gridtokenx.interchain.clients import CertifiedHeader

INBOX: Final = 1_024


@dataclass(frozen=True, slots=True)
class Head:
    """A verified final header, newer than the one before."""

    certified: CertifiedHeader
    next_set: ValidatorSet | None
    touched: bool
    """Whether a block since the last head had interchain events."""


class RelayChain(Protocol):
    """One chain; whatever comes from it was verified, whoever sent it."""

    async def next_head(self) -> Head:
        """The newest final header, once it is newer than the one returned before."""
        ...

    async def read(self, height: int, keys: Sequence[bytes]) -> Mapping[bytes, Proven]:
        """Values at a final height, their proofs checked.

        Raises:
            RemoteFault: no node serves that height, or none answers in time.
        """
        ...

    async def handover(self, set_id: int) -> tuple[CertifiedHeader, ValidatorSet]:
        """The header that ended a set, and the set that followed.

        Raises:
            RemoteFault: no node has it.
        """
        ...

    async def submit(self, calls: Sequence[RelayCall], valid_until_ms: int) -> int:
        """Sign and send; returns the height of the final block that includes the transaction.

        Raises:
            RemoteFault: refused, or not included while it was valid.
        """
        ...


class Clock(Protocol):
    """Network time."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...


class RelayerDriver:
    """One relayer at work; `run` ends only by cancellation or by a bug.

    Args:
        machine: the pure relayer.
        chains: by the names that the machine knows.
        clock: network time.
        log: where to say what happens.
        metrics: what to count.
    """

    def __init__(
        self,
        machine: Relayer,
        chains: Mapping[str, RelayChain],
        clock: Clock,
        log: Logger,
        metrics: Metrics,
    ) -> None:
        self._machine: Final = machine
        self._chains: Final = dict(chains)
        self._clock: Final = clock
        self._log: Final = log
        self._metrics: Final = metrics
        self._inbox: Final[asyncio.Queue[Heard]] = asyncio.Queue(INBOX)
        self._tasks: Final = Tasks()
        self._timer: asyncio.TimerHandle | None = None
        metrics.describe("bridge_calls", "Relay calls submitted, by chain and kind.")
        metrics.describe("bridge_submissions", "Transactions sent, by chain and how they ended.")
        metrics.describe("bridge_waiting", "Packets whose next step is known and not done.")
        metrics.gauge("bridge_waiting", lambda: machine.waiting)

    async def run(self) -> None:
        """Relay until cancelled."""
        for name in self._chains:
            self._tasks.spawn(self._watch(name), f"watch {name}")
        self._tasks.spawn(self._listen(), "relayer")
        try:
            await self._tasks.watch()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._tasks.close()

    async def _listen(self) -> None:
        while True:
            heard = await self._inbox.get()
            for asked in self._machine.step(self._clock.now_ms(), heard):
                self._carry_out(asked)

    async def _watch(self, name: str) -> None:
        """Tell the machine of every newer head; heads that nobody waited for are passed over."""
        while True:
            head = await self._chains[name].next_head()
            await self._inbox.put(Advanced(name, head.certified, head.next_set, head.touched))

    # -- what is asked -----------------------------------------------------------------------------

    def _carry_out(self, asked: Asked) -> None:
        match asked:
            case Read():
                self._tasks.spawn(self._read(asked), f"read {asked.chain}")
            case Submit():
                self._tasks.spawn(self._submit(asked), f"submit {asked.chain}")
            case FetchHandover():
                self._tasks.spawn(self._fetch(asked), f"handover {asked.chain}")
            case WakeAt(at_ms=at_ms):
                self._wake_at(at_ms)
            case Log(level=level, event=event, fields=fields):
                getattr(self._log, level)(event, **fields)

    async def _read(self, asked: Read) -> None:
        try:
            values = await self._chains[asked.chain].read(asked.height, asked.keys)
        except RemoteFault as fault:
            await self._inbox.put(ReadFailed(asked.token, str(fault)))
        else:
            await self._inbox.put(ReadDone(asked.token, values))

    async def _submit(self, asked: Submit) -> None:
        chain = asked.chain
        for call in asked.calls:
            self._metrics.count("bridge_calls", chain=chain, kind=type(call).__name__)
        try:
            height = await self._chains[chain].submit(asked.calls, asked.valid_until_ms)
        except RemoteFault as fault:
            self._metrics.count("bridge_submissions", chain=chain, end=fault.reason)
            self._log.info("relay-refused", chain=chain, reason=fault.reason, detail=fault.detail)
            await self._inbox.put(Settled(asked.token, None, str(fault)))
        else:
            self._metrics.count("bridge_submissions", chain=chain, end="included")
            await self._inbox.put(Settled(asked.token, height, ""))

    async def _fetch(self, asked: FetchHandover) -> None:
        try:
            certified, next_set = await self._chains[asked.chain].handover(asked.set_id)
        except RemoteFault as fault:
            self._log.info("handover-unknown", chain=asked.chain, set=asked.set_id, why=str(fault))
        else:
            await self._inbox.put(HandedOver(asked.chain, certified, next_set))

    def _wake_at(self, at_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, at_ms - self._clock.now_ms()) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        """A full inbox needs no waking: whatever is in it makes the machine look at the time."""
        self._timer = None
        try:
            self._inbox.put_nowait(Woke())
        except asyncio.QueueFull:
            self._log.warning("relayer-behind", waiting=self._inbox.qsize())
