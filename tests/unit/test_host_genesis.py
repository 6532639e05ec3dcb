"""Block 0 is made once, by a child, and read from then on; the state comes from the store by parts."""

from pathlib import Path

import pytest
from tests.simulation.pbft_script import Members

from gridtokenx.core.state_tree import StateTree
from gridtokenx.host.genesis import open_genesis, prepare_genesis
from gridtokenx.host.storage import Store
from gridtokenx.ledger import records
from gridtokenx.ledger.records import load_head, load_state
from gridtokenx.ledger.runtime import ExecutedBlock

GENESIS = Members(4).genesis


def make() -> ExecutedBlock:
    return GENESIS


def refuse() -> ExecutedBlock:
    raise AssertionError("it is there already")


def test_a_child_writes_it_and_it_is_read_from_then_on(tmp_path: Path) -> None:
    prepare_genesis(tmp_path / "data", make)
    store = Store.open(tmp_path / "data")
    found = open_genesis(store, refuse)
    head = load_head(store)
    store.close()
    assert found.hash == GENESIS.hash
    assert found.state.root == StateTree.empty().root, "nobody holds the opening state twice"
    assert head is not None
    assert head.state.root == GENESIS.state.root


def test_a_store_that_exists_is_left_alone(tmp_path: Path) -> None:
    prepare_genesis(tmp_path, refuse)
    assert not list(tmp_path.iterdir())


def test_where_no_child_can_be_had_it_is_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 2)
    prepare_genesis(tmp_path / "data", refuse)
    store = Store.open(tmp_path / "data")
    assert open_genesis(store, make) is GENESIS
    store.close()


def test_a_child_that_fails_leaves_the_failure_to_its_parent(tmp_path: Path) -> None:
    prepare_genesis(tmp_path / "data", refuse)
    store = Store.open(tmp_path / "data")
    assert open_genesis(store, make) is GENESIS
    store.close()


def test_a_state_read_by_parts_is_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_genesis(tmp_path / "data", make)
    store = Store.open(tmp_path / "data")
    for size in (1, 2, 7, 100_000):
        monkeypatch.setattr(records, "LOADED_KEYS", size)
        assert load_state(store).root == GENESIS.state.root
    store.close()
