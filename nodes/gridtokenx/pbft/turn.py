"""What one step of the replica does, collected so that promises are durable before they are made.

Law of the file: **one step, one batch.** All records that a step writes form one atomic `Persist`,
and it comes before everything that the step sends. So a crash leaves the replica either before or
after a step, never inside one, and nobody has seen what it does not remember.
"""

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Instant,
    Log,
    NodeId,
    Persist,
    Reject,
    Send,
    Write,
)


class Turn:
    """The effects of one step."""

    __slots__ = ("_effects", "_writes", "now")

    def __init__(self, now: Instant) -> None:
        self.now = now
        self._writes: dict[tuple[str, bytes], Write] = {}
        self._effects: list[Effect] = []

    def write(self, *writes: Write) -> None:
        """Add records to the step's batch; a later write of a key replaces an earlier one."""
        for write in writes:
            self._writes[write.table, write.key] = write

    def add(self, effect: Effect) -> None:
        """Any effect that is not a `Persist`."""
        self._effects.append(effect)

    def send(self, to: NodeId, message: Wire) -> None:
        """To one peer."""
        self._effects.append(Send(to, message))

    def broadcast(self, message: Wire) -> None:
        """To all peers."""
        self._effects.append(Broadcast(message))

    def reject(self, peer: NodeId, reason: str, detail: str = "") -> None:
        """Count a fault of a peer."""
        self._effects.append(Reject(peer, reason, detail))

    def log(self, level: str, event: str, **fields: object) -> None:
        """Tell the operator."""
        self._effects.append(Log(level, event, fields))

    def effects(self) -> list[Effect]:
        """The step's effects in the order that the driver must keep."""
        if not self._writes:
            return self._effects
        return [Persist(tuple(self._writes.values())), *self._effects]
