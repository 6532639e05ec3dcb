"""A replica as the lab runs it: the real process, with one thing between its machine and its links.

::

    links ──> driver ──> Interposed: Witness ─> Skew(Puppet(Replica)) ─> Weather ──> driver ──> links
                              ^
                     control: the runner's socket, dialed from here

Law of the file: **no node of `gtx node` contains any of this.** It is a command of its own (hidden: the
runner starts it) whose process lives no longer than the connection to its runner. Store, links, TLS,
driver and service are the node's own code (`host/replica.py`).

A traitor acts by the simulator's behaviours (`sim/pbft/behaviours.py`), in its own process: it has its
own key and no accomplice's, and knows what it heard itself.
"""

import asyncio
import ctypes
import os
import random
import signal
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Instant,
    NodeId,
    Received,
    Send,
    SetTimer,
    SignatureCheck,
    TimerFired,
    Unknown,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.config import Setting
from gridtokenx.host.replica import PbftChain, make_replica, serving_node
from gridtokenx.host.role import open_role
from gridtokenx.lab.chaos import wire
from gridtokenx.lab.chaos.skew import ClockFault, Skew
from gridtokenx.lab.chaos.witness import Witness
from gridtokenx.lab.faults import Behave, ClockDrift, ClockJump, ClockOffset, OnLinks, Where
from gridtokenx.lab.sim.links import rule_of
from gridtokenx.lab.sim.network import DeliverAfter, DeliverEach, Drop, Envelope, Rule
from gridtokenx.lab.sim.pbft.behaviours import TRICKS
from gridtokenx.lab.sim.pbft.traitors import Conspiracy, PbftTrick, Puppet
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.node.consortium import (
    CHAIN,
    ConsortiumNodeSettings,
    read_genesis,
    replicated_chain,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

_PR_SET_PDEATHSIG: Final = 1


class LabReplicaSettings(ConsortiumNodeSettings, frozen=True, kw_only=True):
    """Settings of a replica that a runner starts."""

    index: Annotated[int, Setting("Its place in the genesis's list of replicas.", minimum=0)]
    control: Annotated[Path, Setting("The runner's socket.")]
    heard: Annotated[Path, Setting("File for the votes that it hears.")]
    seed: Annotated[int, Setting("Of what faults leave to chance.")] = 0
    waits: Annotated[tuple[str, ...], Setting("The engine's waits: name=milliseconds.")] = ()

    @property
    def timing(self) -> Timing:
        """How long to wait for what."""
        pairs = (text.partition("=") for text in self.waits)
        return Timing(**{name: int(value) for name, _, value in pairs})


class OwnBlocks:
    """A traitor's ledger: the blocks that its own replica has executed (see `behaviours.Blocks`)."""

    def __init__(self, ledger: Ledger, replica: Replica) -> None:
        self._ledger: Final = ledger
        self._replica: Final = replica

    @property
    def chain_id(self) -> bytes:
        """In every header and signature."""
        return self._ledger.chain_id

    def find(self, hash_: bytes) -> ExecutedBlock | None:
        """The head, or a block in flight upon it."""
        if self._replica.head.hash == hash_:
            return self._replica.head
        for slot in self._replica._in_flight():  # noqa: SLF001 - a traitor knows its own machine
            if hash_ in slot.executed:
                return slot.executed[hash_]
        return None

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """See `Ledger.build`."""
        return self._ledger.build(parent, proposal, candidates)


class Weather:
    """Faults of messages, applied to what this replica sends.

    Args:
        own: the replica's key.
        members: all replicas' keys by index.
        draw: of what the faults leave to chance.
    """

    def __init__(self, own: NodeId, members: Sequence[NodeId], draw: random.Random) -> None:
        self._own: Final = own
        self._members: Final = members
        self._draw: Final = draw
        self._rules: dict[int, Rule] = {}
        self._held: dict[Hashable, Send] = {}
        self._count = 0

    def begin(self, number: int, fault: OnLinks) -> None:
        """A fault is in force; roles were named by the runner."""
        rule = rule_of(
            fault, self._keys(fault.senders), self._keys(fault.receivers), self._draw, lambda: 0
        )
        self._rules = dict(sorted({**self._rules, number: rule}.items()))

    def end(self, number: int) -> None:
        """And is no more."""
        self._rules.pop(number, None)

    def due(self, name: Hashable) -> Send | None:
        """What was held back until this timer."""
        return self._held.pop(name, None)

    def apply(self, now: Instant, effects: Sequence[Effect]) -> Sequence[Effect]:
        """What becomes of what is sent."""
        if not self._rules:
            return effects
        return [new for effect in effects for new in self._pass(now, effect)]

    def _pass(self, now: Instant, effect: Effect) -> Iterator[Effect]:
        match effect:
            case Send(to, message):
                yield from self._deliver(now, to, message)
            case Broadcast(message):
                for to in self._members:
                    if to != self._own:
                        yield from self._deliver(now, to, message)
            case _:
                yield effect

    def _deliver(self, now: Instant, to: NodeId, message: Wire) -> Iterator[Effect]:
        for delay_ms in self._delays_ms(Envelope(now, self._own, to, message)):
            if delay_ms == 0:
                yield Send(to, message)
                continue
            self._count += 1
            name = ("weather", self._count)
            self._held[name] = Send(to, message)
            yield SetTimer(name, now + delay_ms)

    def _delays_ms(self, envelope: Envelope) -> tuple[int, ...]:
        """The first verdict wins, as in the simulator."""
        for rule in self._rules.values():
            match rule(envelope):
                case Drop():
                    return ()
                case DeliverAfter(delay_ms):
                    return (delay_ms,)
                case DeliverEach(delays_ms):
                    return delays_ms
        return (0,)

    def _keys(self, where: Iterable[Where]) -> frozenset[NodeId]:
        return frozenset(self._members[index] for index in where if isinstance(index, int))


class Interposed:
    """The machine that the driver runs in the replica's place.

    Args:
        replica: the real one.
        signer: its key.
        ledger: executes blocks.
        settings: of the process.
        validators: the chain's set.
        on_moved: called whenever the replica's view has changed.
    """

    def __init__(
        self,
        replica: Replica,
        signer: Ed25519Signer,
        ledger: Ledger,
        settings: LabReplicaSettings,
        validators: ValidatorSet,
        on_moved: Callable[[], None],
    ) -> None:
        draw = random.Random(f"{settings.seed} {settings.index}")  # noqa: S311 - repeatable on purpose
        self.replica: Final = replica
        self.witness: Final = Witness(settings.heard, validators)
        self._conspiracy: Final = Conspiracy(
            validators,
            {settings.index: signer},
            OwnBlocks(ledger, replica),
            settings.timing.clock_bound_ms,
            draw,
        )
        self._weather: Final = Weather(signer.public_key, validators.members, draw)
        self._tricks: dict[int, PbftTrick] = {}
        self._acting: Final[list[PbftTrick]] = []
        self._puppet: Final = Puppet(replica, settings.index, self._conspiracy, self._acting)
        self._on_moved: Final = on_moved
        self._skew: Final = Skew()
        self._clock_faults: dict[int, ClockFault] = {}
        self._view = -1

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        return self.replica.verification(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """See `Machine.step`."""
        if isinstance(event, TimerFired) and (held := self._weather.due(event.name)) is not None:
            return [held]
        if isinstance(event, Received):
            self.witness.note(event.verified.message)
        effects = self._skew.back(now, self._puppet.step(self._skew.local_ms(now), event))
        effects = self._weather.apply(now, effects)
        if self.replica.view != self._view:
            self._view = self.replica.view
            self._on_moved()
        return effects

    def begin(self, now: Instant, number: int, fault: wire.InnerFault) -> None:
        """A fault is in force here."""
        match fault:
            case Behave() if number not in self._tricks:
                trick = TRICKS[fault.behaviour](fault, self._conspiracy)
                trick.active = True
                self._tricks[number] = trick
                self._acting.append(trick)
            case OnLinks():
                self._weather.begin(number, fault)
            case ClockOffset() | ClockDrift() | ClockJump():
                self._clock_faults[number] = fault
                self._skew.begin(now, fault)

    def end(self, now: Instant, number: int) -> None:
        """And is no more."""
        self._weather.end(number)
        if (trick := self._tricks.pop(number, None)) is not None:
            trick.active = False
            self._acting.remove(trick)
        if (fault := self._clock_faults.pop(number, None)) is not None:
            self._skew.end(now, fault)


# -- the process -----------------------------------------------------------------------------------


class _Process:
    """A replica's process: puts the interposed machine in, and tells the runner where it stands."""

    def __init__(self, settings: LabReplicaSettings, writer: asyncio.StreamWriter) -> None:
        self._settings: Final = settings
        self._writer: Final = writer
        self._genesis: Final = read_genesis(settings.genesis).opened()
        self._ledger: Ledger | None = None
        self._between: Interposed | None = None
        self.role: Final = open_role(settings, CHAIN)
        self.node: Final = make_replica(
            settings, self.role, self._chain, timing=settings.timing, around=self._around
        ).node
        self.node.on_final(lambda _: self._tell())

    def _chain(self, verifier: CachingVerifier) -> PbftChain:
        chain = replicated_chain(self._settings.genesis, self._genesis, verifier)
        self._ledger = chain.ledger
        return chain

    def _around(self, replica: Replica, signer: Ed25519Signer) -> Interposed:
        assert self._ledger is not None, "the chain is put together before its replica"
        first = self._genesis.validator_set
        between = Interposed(replica, signer, self._ledger, self._settings, first, self._tell)
        self._between = between
        return between

    def greet(self) -> None:
        """Say who this is, and what its disk holds."""
        wire.write(self._writer, wire.Hello(self._settings.index, os.getpid()))
        self._tell()

    def _tell(self) -> None:
        assert self._between is not None, "the replica is restored before it moves"
        replica = self._between.replica
        leader = self._genesis.validator_set.index_of(replica.primary)
        height = self.node.head.height
        wire.write(self._writer, wire.Seen(height, replica.view, -1 if leader is None else leader))
        self._between.witness.write()

    async def obey(self, reader: asyncio.StreamReader) -> None:
        """Do what the runner says while it lives.

        Raises:
            LocalFault: it is gone.
        """
        assert self._between is not None, "the replica is restored before it obeys"
        async for line in wire.lines(reader):
            match line:
                case wire.Began(number, fault):
                    self._between.begin(self.role.clock.now_ms(), number, fault)
                case wire.Over(number):
                    self._between.end(self.role.clock.now_ms(), number)
                case _:
                    raise LocalFault(f"control: {type(line).__name__} is not for a replica")
        raise LocalFault("the runner is gone; nothing acknowledged is lost")


async def run_lab_replica(settings: LabReplicaSettings) -> None:
    """Run a replica until cancelled, or until its runner is gone.

    Raises:
        LocalFault: what a replica's process may raise, or the runner is gone.
    """
    _die_with_the_fork_server()
    try:
        reader, writer = await asyncio.open_unix_connection(settings.control, limit=wire.MAX_LINE)
    except OSError as error:
        raise LocalFault(f"control {settings.control}: no runner answers: {error}") from None
    try:
        process = _Process(settings, writer)
        process.greet()
        async with serving_node(process.role, process.node), asyncio.TaskGroup() as group:
            group.create_task(process.obey(reader), name="control")
            group.create_task(process.node.run(), name="node")
    finally:
        writer.close()


def _die_with_the_fork_server() -> None:
    """Even while it is stopped: then only this signal ends a process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
