"""State: an overlay with savepoints over a persistent tree, and the typed stores on it.

Law of the file: **modules reach state only through typed stores.** A store owns a key prefix; its
values are wire structs. Keys are hashed by the tree, so there is no cheap iteration: a module that
must walk something keeps an explicit `Log` of it. `State.scan` walks everything and is for
invariants and migrations alone.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.state_tree import StateTree

KeyPart = bytes | int | str
MAX_KEY_PART: Final = 255
"""Bytes of one text or byte string in a key: its length is one byte."""
T = TypeVar("T")


class BadKey(RemoteFault):
    """A part of a key is out of bounds. What made it came from a client: it fails the call."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad-key", detail)


class State:
    """Reads fall through to the tree; writes stay here until `commit`."""

    __slots__ = ("_changes", "_journal", "tree")

    def __init__(self, tree: StateTree) -> None:
        self.tree: Final = tree
        self._changes: dict[bytes, bytes | None] = {}
        self._journal: list[tuple[bytes, bool, bytes | None]] = []

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        if key in self._changes:
            return self._changes[key]
        return self.tree.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set `key`, or delete it with None."""
        self._journal.append((key, key in self._changes, self._changes.get(key)))
        self._changes[key] = value

    def savepoint(self) -> int:
        """A mark that `rollback` can return to."""
        return len(self._journal)

    def rollback(self, savepoint: int) -> None:
        """Undo every write since `savepoint`."""
        while len(self._journal) > savepoint:
            key, was_changed, value = self._journal.pop()
            if was_changed:
                self._changes[key] = value
            else:
                del self._changes[key]

    def changes(self) -> dict[bytes, bytes | None]:
        """What differs from the tree (writes of an unchanged value are left out)."""
        return {k: v for k, v in self._changes.items() if self.tree.get(k) != v}

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with `prefix`, in no order. Costs a walk of the whole state."""
        for key, value in self.tree.items():
            if key.startswith(prefix) and key not in self._changes:
                yield key, value
        for key, changed in self._changes.items():
            if changed is not None and key.startswith(prefix):
                yield key, changed


def store_key(*parts: KeyPart) -> bytes:
    """An injective key of several parts: integers in 8 bytes, text and bytes behind their length.

    Raises:
        BadKey: an integer outside 64 bits, or a text or byte string above `MAX_KEY_PART` bytes.
    """
    return b"".join(map(_key_part, parts))


def _key_part(part: KeyPart) -> bytes:
    if isinstance(part, int):
        if not 0 <= part < 1 << 64:
            raise BadKey(f"{part} is outside 64 bits")
        return part.to_bytes(8, "big")
    raw = part.encode() if isinstance(part, str) else part
    if len(raw) > MAX_KEY_PART:
        raise BadKey(f"a name of {len(raw)} bytes, where {MAX_KEY_PART} are allowed")
    return bytes((len(raw),)) + raw


class Map(Generic[T]):
    """Values of one type under composite keys."""

    __slots__ = ("_type", "prefix")

    def __init__(self, prefix: str, type_: type[T]) -> None:
        self.prefix: Final = prefix.encode() + b":"
        self._type: Final = type_

    def key(self, *parts: KeyPart) -> bytes:
        """The state key: what a proof of this value is about."""
        return self.prefix + store_key(*parts)

    def get(self, state: State, *parts: KeyPart) -> T | None:
        """The value, or None."""
        raw = state.get(self.key(*parts))
        return None if raw is None else decode_own(raw, self._type)

    def read(self, state: State, default: T, *parts: KeyPart) -> T:
        """The value, or `default`."""
        raw = state.get(self.key(*parts))
        return default if raw is None else decode_own(raw, self._type)

    def has(self, state: State, *parts: KeyPart) -> bool:
        """Whether there is a value."""
        return state.get(self.key(*parts)) is not None

    def put(self, state: State, value: T, *parts: KeyPart) -> None:
        """Set the value."""
        state.put(self.key(*parts), encode(value))

    def delete(self, state: State, *parts: KeyPart) -> None:
        """Forget the value; nothing happens if there is none."""
        key = self.key(*parts)
        if state.get(key) is not None:
            state.put(key, None)

    def decode(self, raw: bytes) -> T:
        """A value from its stored bytes, for readers that verified a proof of them."""
        return decode_own(raw, self._type)

    def scan(self, state: State) -> Iterator[tuple[bytes, T]]:
        """All (composite key, value) pairs; for invariants only (see `State.scan`)."""
        start = len(self.prefix)
        for key, raw in state.scan(self.prefix):
            yield key[start:], decode_own(raw, self._type)


class Cell(Generic[T]):
    """One value with a default."""

    __slots__ = ("_default", "_map")

    def __init__(self, name: str, type_: type[T], default: T) -> None:
        self._map: Final = Map(name, type_)
        self._default: Final = default

    @property
    def key(self) -> bytes:
        """The state key."""
        return self._map.key()

    def get(self, state: State) -> T:
        """The value, or the default."""
        return self._map.read(state, self._default)

    def put(self, state: State, value: T) -> None:
        """Set the value."""
        self._map.put(state, value)

    def decode(self, raw: bytes) -> T:
        """The value from its stored bytes."""
        return self._map.decode(raw)


class Log(Generic[T]):
    """An append-only list per composite key: how a module walks what belongs together."""

    __slots__ = ("_items", "_lengths")

    def __init__(self, prefix: str, type_: type[T]) -> None:
        self._lengths: Final = Map(f"{prefix}.length", int)
        self._items: Final = Map(f"{prefix}.item", type_)

    def length(self, state: State, *parts: KeyPart) -> int:
        """How many entries were appended."""
        return self._lengths.read(state, 0, *parts)

    def append(self, state: State, value: T, *parts: KeyPart) -> int:
        """Add an entry; returns its index."""
        index = self.length(state, *parts)
        self._items.put(state, value, *parts, index)
        self._lengths.put(state, index + 1, *parts)
        return index

    def get(self, state: State, index: int, *parts: KeyPart) -> T | None:
        """The entry at `index`, or None."""
        return self._items.get(state, *parts, index)

    def put(self, state: State, index: int, value: T, *parts: KeyPart) -> None:
        """Replace the entry at `index`."""
        self._items.put(state, value, *parts, index)

    def walk(self, state: State, *parts: KeyPart) -> Iterator[T]:
        """All entries in order."""
        for index in range(self.length(state, *parts)):
            value = self._items.get(state, *parts, index)
            if value is not None:
                yield value

    def clear(self, state: State, *parts: KeyPart) -> None:
        """Drop all entries of one list."""
        for index in range(self.length(state, *parts)):
            self._items.delete(state, *parts, index)
        self._lengths.delete(state, *parts)

    def length_key(self, *parts: KeyPart) -> bytes:
        """The state key of the length, for proofs."""
        return self._lengths.key(*parts)

    def item_key(self, index: int, *parts: KeyPart) -> bytes:
        """The state key of an entry, for proofs."""
        return self._items.key(*parts, index)
