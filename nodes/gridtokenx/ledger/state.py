"""State: an overlay with savepoints over a persistent tree, and the typed stores on it.

Law of the file: **modules reach state only through typed stores.** A store owns a key prefix; its
values are wire structs. Keys are hashed by the tree, so there is no cheap iteration: a module that
must walk something keeps an explicit `Log` of it. `State.scan` walks everything and is for
invariants and migrations alone.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, Generic, TypeVar, cast

from gridtokenx.core.codec import encode, reader_of
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
    """Reads fall through to the tree, once for each key; writes stay here.

    Args:
        tree: what is below.
        known: values that the tree is known to hold, such as what its block changed: a read of one
            costs no walk.
    """

    __slots__ = ("_before", "_decoded", "_journal", "_now", "tree")

    def __init__(self, tree: StateTree, known: Mapping[bytes, bytes | None] | None = None) -> None:
        self.tree: Final = tree
        self._now: dict[bytes, bytes | None] = dict(known or ())
        """All that was read or written, as it stands."""
        self._before: dict[bytes, bytes | None] = {}
        """What the tree holds where something was written, even if that was undone."""
        self._journal: list[tuple[bytes, bytes | None]] = []
        self._decoded: dict[bytes, tuple[bytes, object]] = {}
        """What `Map` made of a key's bytes; of use only while the key has these very bytes."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        try:
            return self._now[key]
        except KeyError:
            value = self._now[key] = self.tree.get(key)
            return value

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set `key`, or delete it with None."""
        now = self._now
        before = now[key] if key in now else self.tree.get(key)
        self._before.setdefault(key, before)
        self._journal.append((key, before))
        now[key] = value

    def put_new(self, key: bytes, value: bytes) -> None:
        """`put` where the caller knows that there is nothing: the tree is not asked."""
        before = self._now.get(key)
        self._before.setdefault(key, before)
        self._journal.append((key, before))
        self._now[key] = value

    @property
    def root(self) -> bytes | None:
        """The root of the tree, as long as nothing was written here: it stands for all that is read."""
        return None if self._before else self.tree.root

    @property
    def remembered(self) -> int:
        """How many keys it holds, read or written."""
        return len(self._now)

    def savepoint(self) -> int:
        """A mark that `rollback` can return to."""
        return len(self._journal)

    def rollback(self, savepoint: int) -> None:
        """Undo every write since `savepoint`."""
        while len(self._journal) > savepoint:
            key, value = self._journal.pop()
            self._now[key] = value

    def changes(self) -> dict[bytes, bytes | None]:
        """What differs from the tree (writes of an unchanged value are left out)."""
        now = self._now
        return {key: now[key] for key, before in self._before.items() if now[key] != before}

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with `prefix`, in no order. Costs a walk of the whole state."""
        for key, value in self.tree.items():
            if key.startswith(prefix) and key not in self._before:
                yield key, value
        for key in self._before:
            changed = self._now[key]
            if changed is not None and key.startswith(prefix):
                yield key, changed

    # -- for stores --------------------------------------------------------------------------------

    def decoded(self, key: bytes, raw: bytes) -> object | None:
        """What `keep_decoded` was told of a key, while `raw` are the very bytes it was told of."""
        found = self._decoded.get(key)
        return found[1] if found is not None and found[0] is raw else None

    def keep_decoded(self, key: bytes, raw: bytes, value: object) -> None:
        """Spare the next reader of a key the decoding: values are immutable."""
        self._decoded[key] = (raw, value)


def store_key(*parts: KeyPart) -> bytes:
    """An injective key of several parts: integers in 8 bytes, text and bytes behind their length.

    Raises:
        BadKey: an integer outside 64 bits, or a text or byte string above `MAX_KEY_PART` bytes.
    """
    return _extend(b"", parts)


_RECENT_KEYS: Final = 128
"""Whole keys that each `Map` remembers."""
_INT_PART: Final = 1 << 64
_LENGTHS: Final = tuple(bytes((length,)) for length in range(MAX_KEY_PART + 1))


def _extend(key: bytes, parts: tuple[KeyPart, ...]) -> bytes:
    """Every read and write of a module comes here."""
    for part in parts:
        if isinstance(part, bytes):
            key += _LENGTHS[len(part)] + part if len(part) <= MAX_KEY_PART else _bytes_part(part)
        elif isinstance(part, int):
            if not 0 <= part < _INT_PART:
                raise BadKey(f"{part} is outside 64 bits")
            key += part.to_bytes(8, "big")
        else:
            key += _text_part(part)
    return key


def _bytes_part(raw: bytes) -> bytes:
    if len(raw) > MAX_KEY_PART:
        raise BadKey(f"a name of {len(raw)} bytes, where {MAX_KEY_PART} are allowed")
    return _LENGTHS[len(raw)] + raw


@lru_cache(maxsize=1_024)
def _text_part(text: str) -> bytes:
    """Names of tokens, purposes, clients and ports: few, and the same all the time."""
    return _bytes_part(text.encode())


class Map(Generic[T]):
    """Values of one type under composite keys.

    The methods that end in `_at` take a whole key (of `key`), for those who read and write one.
    """

    __slots__ = ("_decode", "_is_small", "key", "prefix")

    def __init__(self, prefix: str, type_: type[T]) -> None:
        self.prefix: Final = prefix.encode() + b":"
        # A transaction comes back to the keys of its sender again and again, and all of them to a few.
        self.key: Final = lru_cache(maxsize=_RECENT_KEYS)(self._make_key)
        """(*parts) -> the state key: what a proof of this value is about."""
        self._decode: Final = reader_of(type_)
        self._is_small: Final = type_ in (int, bytes, bool)
        """Decoding costs no more than looking for what was decoded."""

    def get(self, state: State, *parts: KeyPart) -> T | None:
        """The value, or None."""
        return self.get_at(state, self.key(*parts))

    def read(self, state: State, default: T, *parts: KeyPart) -> T:
        """The value, or `default`."""
        value = self.get_at(state, self.key(*parts))
        return default if value is None else value

    def has(self, state: State, *parts: KeyPart) -> bool:
        """Whether there is a value."""
        return state.get(self.key(*parts)) is not None

    def put(self, state: State, value: T, *parts: KeyPart) -> None:
        """Set the value."""
        self.put_at(state, value, self.key(*parts))

    def delete(self, state: State, *parts: KeyPart) -> None:
        """Forget the value; nothing happens if there is none."""
        self.delete_at(state, self.key(*parts))

    def get_at(self, state: State, key: bytes) -> T | None:
        """The value at a key, or None."""
        raw = state.get(key)
        if raw is None:
            return None
        if self._is_small:
            return self._decode(raw)
        value = state.decoded(key, raw)
        if value is None:
            value = self._decode(raw)
            state.keep_decoded(key, raw, value)
        return cast("T", value)

    def put_at(self, state: State, value: T, key: bytes) -> None:
        """Set the value at a key."""
        raw = encode(value)
        state.put(key, raw)
        if not self._is_small:
            state.keep_decoded(key, raw, value)

    def put_new_at(self, state: State, value: T, key: bytes) -> None:
        """Set the value at a key at which there is none."""
        raw = encode(value)
        state.put_new(key, raw)
        if not self._is_small:
            state.keep_decoded(key, raw, value)

    def delete_at(self, state: State, key: bytes) -> None:
        """Forget the value at a key; nothing happens if there is none."""
        if state.get(key) is not None:
            state.put(key, None)

    def decode(self, raw: bytes) -> T:
        """A value from its stored bytes, for readers that verified a proof of them."""
        return self._decode(raw)

    def _make_key(self, *parts: KeyPart) -> bytes:
        return _extend(self.prefix, parts)

    def scan(self, state: State) -> Iterator[tuple[bytes, T]]:
        """All (composite key, value) pairs; for invariants only (see `State.scan`)."""
        start = len(self.prefix)
        for key, raw in state.scan(self.prefix):
            yield key[start:], self._decode(raw)


class Cell(Generic[T]):
    """One value with a default."""

    __slots__ = ("_default", "_map", "key")

    def __init__(self, name: str, type_: type[T], default: T) -> None:
        self._map: Final = Map(name, type_)
        self._default: Final = default
        self.key: Final = self._map.key()
        """The state key."""

    def get(self, state: State) -> T:
        """The value, or the default."""
        value = self._map.get_at(state, self.key)
        return self._default if value is None else value

    def put(self, state: State, value: T) -> None:
        """Set the value."""
        self._map.put_at(state, value, self.key)

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
        index = self.length(state, *parts)  # at which nothing is: emptying a list deletes it all
        self._items.put_new_at(state, value, self._items.key(*parts, index))
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

    def drain(self, state: State, *parts: KeyPart) -> list[T]:
        """All entries of one list in order, which is empty then."""
        # A key of several parts is the joined keys of its parts.
        start, drained = self._items.key(*parts), list[T]()
        for index in range(self.length(state, *parts)):
            key = start + store_key(index)
            value = self._items.get_at(state, key)
            if value is not None:
                drained.append(value)
                state.put(key, None)
        self._lengths.delete(state, *parts)
        return drained

    def length_key(self, *parts: KeyPart) -> bytes:
        """The state key of the length, for proofs."""
        return self._lengths.key(*parts)

    def item_key(self, index: int, *parts: KeyPart) -> bytes:
        """The state key of an entry, for proofs."""
        return self._items.key(*parts, index)
