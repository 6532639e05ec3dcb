"""Typed stores and savepoints behave like a dictionary that can go back."""

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import UInt63
from gridtokenx.ledger.state import Log, Map, State, store_key

keys = st.sampled_from([b"a", b"b", b"c", b"d"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.binary(min_size=1, max_size=3)),
        st.tuples(st.just("delete"), keys, st.just(b"")),
        st.tuples(st.just("save"), st.just(b""), st.just(b"")),
        st.tuples(st.just("back"), st.just(b""), st.just(b"")),
    ),
    max_size=60,
)


@given(st.dictionaries(keys, st.binary(min_size=1, max_size=3)), steps)
def test_overlay_equals_a_dictionary_with_history(base, script) -> None:
    state, model = State(StateTree.empty().update(base)), dict(base)
    saved: list[tuple[int, dict[bytes, bytes]]] = []
    for word, key, value in script:
        if word == "put":
            state.put(key, value)
            model[key] = value
        elif word == "delete":
            state.put(key, None)
            model.pop(key, None)
        elif word == "save":
            saved.append((state.savepoint(), dict(model)))
        elif saved:
            savepoint, model = saved.pop()
            state.rollback(savepoint)
        assert {k: v for k in (b"a", b"b", b"c", b"d") if (v := state.get(k)) is not None} == model
        assert dict(state.scan(b"")) == model
    assert dict(state.tree.update(state.changes()).items()) == model


parts = st.lists(
    st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=40), st.text(max_size=10)), max_size=3
)


@given(parts, parts)
def test_composite_keys_of_one_shape_are_injective(one, other) -> None:
    if [type(part) for part in one] == [type(part) for part in other] and one != other:
        assert store_key(*one) != store_key(*other)


@given(st.lists(st.integers(0, 100)), st.lists(st.integers(0, 100)))
def test_logs_keep_order_and_do_not_mix(left, right) -> None:
    state, log = State(StateTree.empty()), Log("test.log", UInt63)
    for value in left:
        log.append(state, value, "left")
    for value in right:
        log.append(state, value, "right")
    assert list(log.walk(state, "left")) == left
    assert list(log.walk(state, "right")) == right
    log.clear(state, "left")
    assert list(log.walk(state, "left")) == []
    assert list(log.walk(state, "right")) == right
    assert log.drain(state, "right") == right
    assert list(log.walk(state, "right")) == []
    assert state.changes() == {}, "neither way leaves anything behind"


class _SlowLog(Log[int]):
    """Appends as it overwrites: what is there is read first."""

    def append(self, state: State, value: int, *parts: bytes | int | str) -> int:
        index = self.length(state, *parts)
        self._items.put(state, value, *parts, index)
        self._lengths.put(state, index + 1, *parts)
        return index


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "clear", "drain", "save", "back", "block"]),
            st.integers(0, 3),
        )
    )
)
def test_appending_without_looking_is_appending(script: list[tuple[str, int]]) -> None:
    """Across savepoints and blocks: the same values, and the same changes of the tree."""
    fast, slow = Log("test.log", UInt63), _SlowLog("test.log", UInt63)
    ours, theirs = State(StateTree.empty()), State(StateTree.empty())
    saved: list[tuple[int, int]] = []
    for word, value in script:
        for log, state in ((fast, ours), (slow, theirs)):
            if word == "append":
                log.append(state, value, "left")
            elif word == "clear":
                log.clear(state, "left")
            elif word == "drain":
                log.drain(state, "left")
        if word == "save":
            saved.append((ours.savepoint(), theirs.savepoint()))
        elif word == "back" and saved:
            back = saved.pop()
            ours.rollback(back[0])
            theirs.rollback(back[1])
        elif word == "block":
            assert ours.changes() == theirs.changes()
            ours, theirs = (State(s.tree.update(s.changes())) for s in (ours, theirs))
            saved.clear()
        assert list(fast.walk(ours, "left")) == list(slow.walk(theirs, "left"))
    assert ours.changes() == theirs.changes()


class Pair(Wire, frozen=True):
    left: UInt63
    right: tuple[UInt63, ...]


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "delete", "save", "back", "foreign"]), st.integers(0, 3))
    )
)
def test_what_a_map_remembers_is_what_the_bytes_say(script: list[tuple[str, int]]) -> None:
    """Values come from memory as long as the key has the bytes that they were made of."""
    pairs = Map("test.pair", Pair)
    tree = StateTree.empty().update({pairs.key(n): encode(Pair(n, (n,))) for n in range(3)})
    state, saved = State(tree, {pairs.key(0): encode(Pair(0, (0,)))}), []
    for number, (word, at) in enumerate(script):
        key = pairs.key(at)
        if word == "put":
            pairs.put(state, Pair(number, (at,)), at)
        elif word == "delete":
            pairs.delete(state, at)
        elif word == "foreign":
            state.put(key, encode(Pair(number, ())))
        elif word == "save":
            saved.append(state.savepoint())
        elif saved:
            state.rollback(saved.pop())
        raw = state.get(key)
        assert pairs.get(state, at) == (None if raw is None else decode_own(raw, Pair))
    written = tree.update(state.changes())
    assert all(state.get(pairs.key(n)) == written.get(pairs.key(n)) for n in range(4))


def test_a_map_forgets_and_defaults() -> None:
    state, numbers = State(StateTree.empty()), Map("test.map", UInt63)
    assert numbers.get(state, "x") is None
    assert numbers.read(state, 7, "x") == 7
    numbers.put(state, 1, "x")
    assert numbers.has(state, "x")
    assert [value for _, value in numbers.scan(state)] == [1]
    numbers.delete(state, "x")
    numbers.delete(state, "x")
    assert state.changes() == {}
