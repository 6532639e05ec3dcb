"""A simulated disk: batches become durable in order, and a crash keeps any prefix of them.

Law of the file: a batch is all or nothing, batches are durable in the order they were written, and
what a crash leaves is exactly the first so many of them. The machine reads its own writes at once
(as the real store's overlay lets it), durable or not; after a crash it reads only what survived.
"""

from collections import deque
from collections.abc import Iterator

from gridtokenx.core.machine import Write

Tables = dict[str, dict[bytes, bytes]]


class SimulatedStore:
    """One node's disk; a `Reader` of what the node wrote."""

    def __init__(self) -> None:
        self._durable: Tables = {}
        self._live: Tables = {}
        self._pending: deque[tuple[Write, ...]] = deque()

    @property
    def pending(self) -> int:
        """Batches that are written and not yet durable."""
        return len(self._pending)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The last value written, or None."""
        return self._live.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All records of a table whose key starts with `prefix`, in key order."""
        records = self._live.get(table, {})
        for key in sorted(key for key in records if key.startswith(prefix)):
            yield key, records[key]

    def write(self, batch: tuple[Write, ...]) -> None:
        """Take a batch: readable now, durable when `sync` gets to it."""
        self._pending.append(batch)
        _apply(self._live, batch)

    def sync(self) -> None:
        """Make the oldest pending batch durable."""
        _apply(self._durable, self._pending.popleft())

    def crash(self, keep: int) -> None:
        """Lose all pending batches but the oldest `keep`."""
        for _ in range(min(keep, len(self._pending))):
            self.sync()
        self._pending.clear()
        self._live = {table: dict(records) for table, records in self._durable.items()}

    def wipe(self) -> None:
        """A new, empty disk."""
        self._durable, self._live = {}, {}
        self._pending.clear()


def _apply(tables: Tables, batch: tuple[Write, ...]) -> None:
    for write in batch:
        records = tables.setdefault(write.table, {})
        if write.value is None:
            records.pop(write.key, None)
        else:
            records[write.key] = write.value
