"""A traitor that no wrapper can play: it forgets its locks, in the middle of its life.

What it prepared it denies when it leaves a view, and where another proposal comes it votes again as if
it had never voted. (A replica that forgets in good faith has a lying disk: `wipe`, `lost-sync`.)
"""

from collections.abc import Callable, Sequence

from gridtokenx.core.machine import Effect, Event, Instant, Received
from gridtokenx.pbft.messages import NewView, PreparedCertificate, PrePrepare
from gridtokenx.pbft.replica import Replica


class Amnesiac(Replica):
    """The real replica, without its memory of votes."""

    forgets: Callable[[], bool] = staticmethod(lambda: True)
    """Whether it does so now."""

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """See `Machine.step`."""
        if isinstance(event, Received) and self.forgets():
            self._forget_for(event.verified.message)
        return super().step(now, event)

    def prepared_above_head(self) -> tuple[PreparedCertificate, ...]:
        """Nothing, while it forgets."""
        return () if self.forgets() else super().prepared_above_head()

    def _forget_for(self, message: object) -> None:
        """Make room for votes that contradict the old ones."""
        match message:
            case PrePrepare(block=block):
                slot = self._log.find(block.height)
                if slot is None or slot.ballot is None or slot.ballot == message.ballot:
                    return
            case NewView():
                """All of it."""
            case _:
                return
        self._signer._marks.clear()  # noqa: SLF001 - a traitor breaks its own parts
        for slot in self._log.above(self._head.height):
            slot.end_view()
            slot.prepared = slot.own_prepare = slot.own_commit = None
