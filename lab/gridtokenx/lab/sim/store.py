"""A simulated disk: batches become durable in order, and a crash keeps any prefix of them.

Law of the file: a batch is all or nothing, batches are durable in the order they were written, and
what a crash leaves is exactly the first so many of them; faults of the disk are the exceptions, each a
method below. The machine reads its own writes at once
(as the real store's overlay lets it), durable or not; after a crash it reads only what survived.
"""

import random
from collections import deque
from collections.abc import Iterator

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Write

Tables = dict[str, dict[bytes, bytes]]


class SimulatedStore:
    """One node's disk; a `Reader` of what the node wrote."""

    def __init__(self) -> None:
        self._durable: Tables = {}
        self._live: Tables = {}
        self._pending: deque[tuple[Write, ...]] = deque()
        self._cached: deque[tuple[Write, ...]] = deque()
        self._damaged: set[tuple[str, bytes]] = set()
        self.full = False
        """Nothing can be written."""
        self.fails = False
        """The next sync fails."""
        self.lies = False
        """Syncs are confirmed, and the batches stay in the disk's cache."""
        self.delay_ms = 0
        """A batch takes up to so much longer."""

    @property
    def pending(self) -> int:
        """Batches that are written and not yet durable."""
        return len(self._pending)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The last value written, or None."""
        if self._damaged:
            self._check(table, key)
        return self._live.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All records of a table whose key starts with `prefix`, in key order."""
        records = self._live.get(table, {})
        for key in sorted(key for key in records if key.startswith(prefix)):
            if self._damaged:
                self._check(table, key)
            yield key, records[key]

    def write(self, batch: tuple[Write, ...]) -> None:
        """Take a batch: readable now, durable when `sync` gets to it."""
        self._pending.append(batch)
        _apply(self._live, batch)
        if self._damaged:
            self._damaged.difference_update((write.table, write.key) for write in batch)

    def sync(self) -> None:
        """Make the oldest pending batch durable; a disk that lies only says so."""
        self._cached.append(self._pending.popleft())
        if not self.lies:
            self.flush()

    def flush(self) -> None:
        """Make everything durable that was confirmed."""
        while self._cached:
            _apply(self._durable, self._cached.popleft())

    def crash(self, keep: int, torn: int = 0) -> None:
        """Lose all pending batches but the oldest `keep`, and what a lying disk had in its cache.

        Args:
            keep: how many batches survive.
            torn: of the next batch, so many writes survive too: the disk's batches are not atomic.
        """
        for _ in range(min(keep, len(self._pending))):
            self.sync()
        if torn and self._pending and not self._cached:
            _apply(self._durable, self._pending[0][:torn])
        self._pending.clear()
        self._cached.clear()
        self._live = {table: dict(records) for table, records in self._durable.items()}

    def wipe(self) -> None:
        """A new, empty disk."""
        self._durable, self._live = {}, {}
        self._pending.clear()
        self._cached.clear()
        self._damaged.clear()

    def next_batch(self) -> int:
        """How many writes the oldest pending batch has."""
        return len(self._pending[0]) if self._pending else 0

    def durable_get(self, table: str, key: bytes) -> bytes | None:
        """What a crash now would leave, if no pending batch survived."""
        return self._durable.get(table, {}).get(key)

    @property
    def damaged(self) -> bool:
        """Whether a record is damaged that was not written since."""
        return bool(self._damaged)

    def flip_bit(self, draw: random.Random) -> None:
        """Damage one record: its checksum no longer holds."""
        keys = [
            (table, key) for table in sorted(self._durable) for key in sorted(self._durable[table])
        ]
        if keys:
            self._damaged.add(draw.choice(keys))

    def _check(self, table: str, key: bytes) -> None:
        if (table, key) in self._damaged:
            raise LocalFault(f"record {key.hex()} of table {table!r} fails its checksum")


def _apply(tables: Tables, batch: tuple[Write, ...]) -> None:
    for write in batch:
        records = tables.setdefault(write.table, {})
        if write.value is None:
            records.pop(write.key, None)
        else:
            records[write.key] = write.value
