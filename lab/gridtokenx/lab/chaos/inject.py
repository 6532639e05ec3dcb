"""Faults at work on real processes: signals, relays, and what replicas are told to do.

Law of the file: **every fault knows how to end, and ending one leaves the others in force**, as in the
simulator (`sim/inject.py`). What it does reaches only processes that this run has started.
"""

import asyncio
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Final

import msgspec

from gridtokenx.core.quorum import quorum
from gridtokenx.lab.chaos.control import Control
from gridtokenx.lab.chaos.layout import Laid, name_of
from gridtokenx.lab.chaos.links import Pair, Relays
from gridtokenx.lab.chaos.manifest import LiveFault, Treason
from gridtokenx.lab.chaos.observe import Observer
from gridtokenx.lab.faults import (
    Bandwidth,
    ClockDrift,
    ClockJump,
    ClockOffset,
    Crash,
    Delay,
    Duplicate,
    Loss,
    OnLinks,
    Partition,
    Pause,
    Reorder,
    Where,
    Wipe,
    kind_of,
)
from gridtokenx.lab.sim.links import cut_of
from gridtokenx.lab.sim.network import Envelope
from gridtokenx.lab.testnet.processes import Processes
from gridtokenx.pbft.messages import Suspect

Undo = Callable[[], None]
_ANY: Final = Suspect(set_id=0, view=0)
"""Rules of partitions look at no message; they are asked about one all the same."""


class Injector:
    """Carries out the faults of one run.

    Args:
        laid: the chain.
        processes: its replicas.
        relays: their links.
        control: what tells them.
        observer: hears of every beginning and end.
        draw: of what faults leave to chance.
        note: puts a line on the timeline.
    """

    def __init__(
        self,
        laid: Laid,
        processes: Processes,
        relays: Relays,
        control: Control,
        observer: Observer,
        draw: random.Random,
        note: Callable[[str], None],
    ) -> None:
        self._laid: Final = laid
        self._processes: Final = processes
        self._relays: Final = relays
        self._control: Final = control
        self._observer: Final = observer
        self._draw: Final = draw
        self._note: Final = note
        self._size: Final = len(laid.identities)
        self._undo: dict[int, Undo] = {}
        self._about: dict[int, str] = {}
        self._down: Counter[int] = Counter()
        self._paused: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> dict[int, str]:
        """What is in force, by number."""
        return {number: self._about[number] for number in self._undo}

    def begin(self, number: int, fault: LiveFault) -> None:
        """Do it, now."""
        hit, keeps_quorum, what, undo = self._carry_out(number, fault)
        self._undo[number], self._about[number] = undo, what
        self._note(f"fault {number} begins: {what}")
        self._observer.begin(number, fault, what, hit, keeps_quorum=keeps_quorum)

    def end(self, number: int) -> None:
        """Undo it, now."""
        undo = self._undo.pop(number, None)
        if undo is not None:
            self._note(f"fault {number} ends: {self._about[number]}")
            undo()
            self._observer.end(number)

    def heal(self) -> None:
        """End everything."""
        for number in tuple(self._undo):
            self.end(number)

    async def close(self) -> None:
        """Wait for nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what it takes -----------------------------------------------------------------------------

    def _carry_out(self, number: int, fault: LiveFault) -> tuple[Iterable[int], bool, str, Undo]:
        """Whom it hits, whether a quorum is left that hears each other, words for it, and its undoing."""
        match fault:
            case Crash(nodes=where) | Wipe(nodes=where):
                nodes = self._resolve(where)
                undo = self._kill(nodes, wipe=isinstance(fault, Wipe))
                return nodes, self._is_enough(nodes), self._named(kind_of(fault), nodes), undo
            case Pause(nodes=where):
                nodes = self._resolve(where)
                return nodes, self._is_enough(nodes), self._named("pause", nodes), self._stop(nodes)
            case ClockOffset() | ClockDrift() | ClockJump():
                return self._skew(number, fault)
            case Partition():
                return self._cut(number, fault)
            case Treason(node=where):
                return self._betray(number, fault, self._resolve([where])[0])
            case Bandwidth() | Delay(messages=()):
                return self._slow(number, fault)
            case Delay() | Loss() | Duplicate() | Reorder():
                return self._disturb(number, fault)

    def _resolve(self, where: Iterable[Where]) -> list[int]:
        leader = self._observer.leader
        roles = {"leader": leader, "next-leader": (leader + 1) % self._size}
        return list(dict.fromkeys(roles[node] if isinstance(node, str) else node for node in where))

    def _is_enough(self, hit: Sequence[int]) -> bool:
        return self._size - len(set(hit)) >= quorum(self._size)

    def _named(self, kind: str, nodes: Sequence[int]) -> str:
        leader = self._observer.leader
        names = ", ".join(f"{node} (leader)" if node == leader else f"{node}" for node in nodes)
        return f"{kind} of replica{'s' if len(nodes) > 1 else ''} {names}"

    # -- processes ---------------------------------------------------------------------------------

    def _kill(self, nodes: Sequence[int], *, wipe: bool) -> Undo:
        self._down.update(nodes)
        for node in nodes:
            self._processes.hold(name_of(node))
            if wipe:
                self._observer.byzantine.add(node)
                self._spawn(self._wipe(node))

        def undo() -> None:
            self._down.subtract(nodes)
            for node in nodes:
                if self._down[node] <= 0:
                    self._spawn(self._processes.release(name_of(node)))

        return undo

    async def _wipe(self, node: int) -> None:
        await self._processes.watched[name_of(node)].down.wait()
        await asyncio.to_thread(shutil.rmtree, self._laid.data(node), ignore_errors=True)

    def _stop(self, nodes: Sequence[int]) -> Undo:
        self._paused.update(nodes)
        for node in nodes:
            self._processes.kill(name_of(node), signal.SIGSTOP)

        def undo() -> None:
            self._paused.subtract(nodes)
            for node in nodes:
                if self._paused[node] <= 0:
                    self._processes.kill(name_of(node), signal.SIGCONT)

        return undo

    def _spawn(self, job: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _skew(
        self, number: int, fault: ClockOffset | ClockDrift | ClockJump
    ) -> tuple[Iterable[int], bool, str, Undo]:
        """Who cannot be believed about the time may not be able to lead."""
        nodes = self._resolve(fault.nodes)
        self._control.begin(number, msgspec.structs.replace(fault, nodes=tuple(nodes)), nodes)
        what = self._named(kind_of(fault), nodes)
        return nodes, self._is_enough(nodes), what, lambda: self._control.end(number)

    # -- links -------------------------------------------------------------------------------------

    def _cut(self, number: int, fault: Partition) -> tuple[Iterable[int], bool, str, Undo]:
        nodes = self._resolve(fault.nodes)
        places = self._laid.identities
        rule = cut_of(fault, places, nodes, self._draw)
        pairs = {
            (i, j)
            for i, j in self._relays.ways
            if rule(Envelope(0, places[i], places[j], _ANY)) is not None
        }
        self._relays.cut(number, pairs)
        main = _largest_group(self._size, pairs)
        hit = [node for node in range(self._size) if node not in main]
        shape = f"partition ({fault.shape})"
        what = f"{shape}: {', '.join(map(str, hit))} cut off" if hit else shape
        return hit, len(main) >= quorum(self._size), what, lambda: self._relays.end(number)

    def _slow(self, number: int, fault: Bandwidth | Delay) -> tuple[Iterable[int], bool, str, Undo]:
        """Links are worse than the timers allow for: nothing is promised meanwhile."""
        senders, receivers, what = self._ends(fault)
        pairs = [(i, j) for i, j in self._relays.ways if i in senders and j in receivers]
        self._relays.slow(number, fault, pairs)
        return (), False, what, lambda: self._relays.end(number)

    def _disturb(
        self, number: int, fault: Delay | Loss | Duplicate | Reorder
    ) -> tuple[Iterable[int], bool, str, Undo]:
        """So are messages, in the senders' own processes."""
        senders, receivers, what = self._ends(fault)
        told = msgspec.structs.replace(fault, senders=tuple(senders), receivers=tuple(receivers))
        self._control.begin(number, told, senders)
        return (), False, what, lambda: self._control.end(number)

    def _ends(self, fault: OnLinks) -> tuple[list[int], list[int], str]:
        """From whom, to whom, and words for it."""
        everybody = list(range(self._size))
        senders = self._resolve(fault.senders) or everybody
        receivers = self._resolve(fault.receivers) or everybody
        what = f"from {_some(senders, self._size)} to {_some(receivers, self._size)}"
        return senders, receivers, f"{kind_of(fault)} {what}"

    # -- traitors ----------------------------------------------------------------------------------

    def _betray(
        self, number: int, fault: Treason, node: int
    ) -> tuple[Iterable[int], bool, str, Undo]:
        self._observer.byzantine.add(node)
        self._control.begin(number, fault.of(node), [node])
        what = self._named(f"treason ({fault.behaviour})", [node])
        return [node], self._is_enough([node]), what, lambda: self._control.end(number)


def _largest_group(size: int, cut: set[Pair]) -> frozenset[int]:
    """The most replicas that all hear each other, where that is an equivalence; else none.

    In a ring everybody hears a majority, and no quorum hears each other.
    """
    best: frozenset[int] = frozenset()
    for node in range(size):
        group = frozenset(
            other
            for other in range(size)
            if other == node or ((node, other) not in cut and (other, node) not in cut)
        )
        whole = all((i, j) not in cut for i in group for j in group if i != j)
        if whole and len(group) > len(best):
            best = group
    return best


def _some(nodes: Sequence[int], size: int) -> str:
    return "all" if len(nodes) == size else ", ".join(map(str, nodes))
