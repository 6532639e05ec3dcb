"""The order of effects, as pure code shared by both drivers.

Law of the file: a visible effect leaves only after every `Persist` that the machine emitted before
it is durable. Persists may be grouped by the driver (one sync for many batches), never reordered.

::

    push(effects)      -> what may leave at once, in order
    durable(count)     -> `count` more Persists are on disk: what may leave now, in order
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, get_args

from gridtokenx.core.machine import Effect, Persist, Visible

_VISIBLE: Final = frozenset(get_args(Visible))
"""By type: `isinstance` asks every member of the union in turn, for every effect of every step."""


class Outbox:
    """One machine's queue of effects."""

    def __init__(self) -> None:
        self._held: deque[Effect] = deque()
        self._undurable = 0

    @property
    def undurable(self) -> int:
        """Persists that were released to the disk and are not yet durable."""
        return self._undurable

    def push(self, effects: Iterable[Effect]) -> list[Effect]:
        """Queue a step's effects; return those that the driver must carry out now.

        A `Persist` is released at once (so that the disk starts early); a visible effect is
        released at once only when no Persist before it is outstanding. Timers, logs and
        rejections concern nobody else and never wait.
        """
        released: list[Effect] = []
        for effect in effects:
            kind = type(effect)
            if kind is Persist:
                self._undurable += 1
                self._held.append(effect)
                released.append(effect)
            elif self._undurable and kind in _VISIBLE:
                self._held.append(effect)
            else:
                released.append(effect)
        return released

    def durable(self, count: int = 1) -> list[Effect]:
        """Note that the `count` oldest outstanding Persists are durable; release what waited."""
        if count > self._undurable:
            raise AssertionError(f"{count} Persists done, {self._undurable} outstanding")
        released: list[Effect] = []
        while self._held:
            head = self._held[0]
            if type(head) is Persist:
                if count == 0:
                    break
                count -= 1
                self._undurable -= 1
            else:
                released.append(head)
            self._held.popleft()
        return released
