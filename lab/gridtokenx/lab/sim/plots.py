"""Plots: a few faults that belong together, around one moment that a drawn schedule would rarely meet.

Law of the file: **a plot is faults, and nothing else**: what it draws is in the resolved manifest like
everything drawn, and shrinking takes it apart.

====================  ======================================================================
plot                  what it is after
====================  ======================================================================
quick restart         whoever restarts before its view ends, with a vote in flight
lost promise          a crash between saying something and having written it
lone commit           one replica that alone knows a decision, cut off from those who go on
stolen view           the same, until a traitor that lies about views leads one
lost view change      a view change whose messages are lost
cut at a view change  sides that change views apart, or without the next leader
fallen leaders        one leader after the other, so that timeouts grow
lone latecomer        a replica that comes back far behind, and the network with it
handover              crashes and cuts while the replica set changes
====================  ======================================================================
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gridtokenx.lab.faults import (
    AnyFault,
    Condition,
    Crash,
    Kind,
    Loss,
    Partition,
    Pause,
    SlowDisk,
    Where,
)

_STOLEN: Final = 0.6
_ROLES: Final[tuple[Where, ...]] = ("leader", "next-leader")


class Plotter:
    """Draws plots for one run.

    Args:
        draw: the seed's.
        honest: who may be hurt.
        duration_ms: of the safety phase.
        interval_ms: between two blocks, about.
        patience_ms: of a replica whose leader is silent.
        lies: whether a traitor lies when views change: then a decision is often open meanwhile.
    """

    def __init__(
        self,
        draw: random.Random,
        honest: Sequence[int],
        duration_ms: int,
        interval_ms: int,
        patience_ms: int,
        *,
        lies: bool = False,
    ) -> None:
        self._draw = draw
        self._honest = list(honest)
        self._duration_ms = duration_ms
        self._interval_ms = interval_ms
        self._patience_ms = patience_ms
        self._lies = lies

    def plot(self, *, members: bool) -> Iterator[AnyFault]:
        """One of them; that of handovers only if the set changes."""
        if self._lies and self._draw.random() < _STOLEN:
            yield from self.stolen_view()
            return
        plots = [*_PLOTS, Plotter.handover] if members else _PLOTS
        yield from self._draw.choice(plots)(self)

    def _time(self) -> int:
        return self._draw.randrange(max(1, self._duration_ms * 2 // 3))

    def _one(self) -> int:
        return self._draw.choice(self._honest)

    def _whom(self) -> Where:
        return "leader" if self._draw.random() < 0.7 else self._one()

    def _long(self) -> int:
        """Longer than everybody's patience."""
        return self._patience_ms * self._draw.choice((2, 3, 5)) + self._interval_ms

    def quick_restart(self) -> Iterator[AnyFault]:
        """A crash with a vote in flight, over before anybody leaves the view."""
        draw = self._draw
        conditions: tuple[Condition, ...] = ("prepared", "prepared", "")
        whom: tuple[Where, ...] = (self._whom(),)
        yield Crash(
            nodes=whom,
            when=draw.choice(conditions),
            at_ms=self._time(),
            for_ms=draw.choice((20, 100, 400)),
        )

    def lost_promise(self) -> Iterator[AnyFault]:
        """A slow disk, and a crash before it is done."""
        draw, at_ms = self._draw, self._time()
        whom: tuple[Where, ...] = (self._whom(),)
        yield SlowDisk(nodes=whom, at_ms=at_ms, for_ms=5_000, delay_ms=draw.choice((400, 2_000)))
        crash_ms = at_ms + self._interval_ms // 2 + draw.randint(0, 2_000)
        yield Crash(nodes=whom, at_ms=crash_ms, for_ms=draw.choice((20, 100, 400)))

    def lone_commit(self) -> Iterator[AnyFault]:
        """Commits reach one replica only; then nobody hears of it for longer than a view change."""
        draw, at_ms, one = self._draw, self._time(), self._one()
        others = tuple(i for i in self._honest if i != one)
        lost: tuple[Kind, ...] = ("Commit",)
        apart_ms = at_ms + self._interval_ms + draw.choice((100, 400, 1_000))
        length_ms = self._long() + 2_000
        if others:
            yield Loss(receivers=others, messages=lost, at_ms=at_ms, for_ms=length_ms)
        if draw.random() < 0.5:
            yield Crash(nodes=(one,), at_ms=apart_ms, for_ms=length_ms + 2_000)
        else:
            yield Partition(shape="isolate", nodes=(one,), at_ms=apart_ms, for_ms=length_ms + 2_000)

    def stolen_view(self) -> Iterator[AnyFault]:
        """A lone commit that lasts until every replica has led in its turn, the liar too."""
        at_ms, one = self._time() // 2, self._one()
        others = tuple(i for i in self._honest if i != one)
        length_ms, apart_ms = 20 * self._patience_ms, at_ms + self._interval_ms + 300
        if others:
            yield Loss(receivers=others, messages=("Commit",), at_ms=at_ms, for_ms=length_ms)
        yield Partition(shape="isolate", nodes=(one,), at_ms=apart_ms, for_ms=length_ms + 2_000)

    def lost_view_change(self) -> Iterator[AnyFault]:
        """The leader is gone, and so are some of the messages that would replace it."""
        draw, at_ms = self._draw, self._time()
        yield Crash(nodes=("leader",), at_ms=at_ms, for_ms=self._long())
        kinds: tuple[Kind, ...] = draw.choice(
            (("ViewChange",), ("ViewChange",), ("NewView",), ("Suspect", "ViewChange"))
        )
        yield Loss(
            messages=kinds,
            share=draw.choice((0.3, 0.7, 1.0)),
            when="view-change",
            at_ms=at_ms,
            for_ms=draw.choice((500, self._long(), 0)),
        )

    def cut_at_view_change(self) -> Iterator[AnyFault]:
        """The leader is silent, and who leaves its view is cut apart."""
        draw, at_ms = self._draw, self._time()
        yield Pause(nodes=("leader",), at_ms=at_ms, for_ms=self._long())
        cut = draw.choice(("halves", "isolate"))
        yield Partition(
            shape="halves" if cut == "halves" else "isolate",
            nodes=() if cut == "halves" else (draw.choice(_ROLES),),
            when="view-change",
            at_ms=at_ms,
            for_ms=self._long(),
        )

    def fallen_leaders(self) -> Iterator[AnyFault]:
        """Each new leader falls silent in its turn."""
        draw, at_ms = self._draw, self._time()
        for _ in range(draw.randint(2, 4)):
            yield Pause(nodes=("leader",), at_ms=at_ms, for_ms=self._long())
            at_ms += self._patience_ms + self._interval_ms + draw.randint(0, 1_000)

    def lone_latecomer(self) -> Iterator[AnyFault]:
        """It comes back just before all others go, or a part of them."""
        draw, at_ms, one = self._draw, self._time(), self._one()
        length_ms = draw.choice((5_000, 15_000))
        yield Crash(nodes=(one,), at_ms=at_ms, for_ms=length_ms)
        others = [i for i in self._honest if i != one]
        gone = draw.sample(others, draw.randint(1, max(1, len(others)))) if others else []
        if gone:
            back_ms = at_ms + length_ms + draw.choice((0, 50, 500))
            yield Crash(nodes=tuple(sorted(gone)), at_ms=back_ms, for_ms=draw.choice((100, 5_000)))

    def handover(self) -> Iterator[AnyFault]:
        """A crash or a cut while some know the new set and others do not."""
        draw, at_ms = self._draw, self._time() // 2
        length_ms = draw.choice((100, 1_000, self._long()))
        if draw.random() < 0.5:
            yield Crash(nodes=(self._whom(),), when="handover", at_ms=at_ms, for_ms=length_ms)
        else:
            yield Partition(shape="halves", when="handover", at_ms=at_ms, for_ms=length_ms)


_PLOTS: Final[list[Callable[[Plotter], Iterator[AnyFault]]]] = [
    Plotter.quick_restart,
    Plotter.lost_promise,
    Plotter.lone_commit,
    Plotter.lone_commit,
    Plotter.lost_view_change,
    Plotter.lost_view_change,
    Plotter.cut_at_view_change,
    Plotter.fallen_leaders,
    Plotter.lone_latecomer,
]
