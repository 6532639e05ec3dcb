"""The block tree: fork choice, finality, pruning, and what voting asks of it."""

import msgspec
from tests.unit.public_forge import Forge

from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.slots import PRIMARY, SECONDARY
from gridtokenx.public.tree import TreeNode


def test_more_primaries_beat_more_height() -> None:
    forge = Forge()
    long = forge.line(forge.root, 3, SECONDARY)
    assert forge.tree.best is long[-1]
    short = forge.line(forge.root, 1, PRIMARY)
    assert forge.tree.best is short[-1]
    assert [node.primaries for node in (*long, *short)] == [0, 0, 0, 1]


def test_height_decides_among_equal_primaries_then_the_lower_hash() -> None:
    forge = Forge()
    one = forge.grow(forge.root, forge.slot_with(forge.root, SECONDARY))
    other = forge.grow(forge.root, forge.slot_with(forge.root, SECONDARY), offset_ms=2)
    assert forge.tree.best.hash == min(one.hash, other.hash)
    longer = forge.line(max(one, other, key=lambda node: node.hash), 1, SECONDARY)
    assert forge.tree.best is longer[-1]


def test_finality_drops_the_other_forks_and_chooses_anew() -> None:
    forge = Forge()
    trunk = forge.line(forge.root, 2, SECONDARY)
    kept = forge.line(trunk[-1], 2, SECONDARY)
    dropped = forge.line(trunk[0], 2, PRIMARY)
    assert forge.tree.best is dropped[-1]
    final, pruned = forge.tree.finalize(kept[0].hash)
    assert final == (*trunk, kept[0])
    assert set(pruned) == set(dropped)
    assert forge.tree.root is kept[0]
    assert forge.tree.best is kept[1]
    assert len(forge.tree) == 2
    assert forge.tree.finalize(kept[0].hash) == ((), ())


def test_pruned_blocks_leave_their_place_behind() -> None:
    forge = Forge()
    a = forge.line(forge.root, 1, SECONDARY)[0]
    b = forge.line(forge.root, 2, PRIMARY)
    forge.tree.finalize(a.hash)
    assert b[1].hash not in forge.tree
    assert forge.tree.height_of(b[1].hash) == 2
    assert forge.tree.parent_of(b[1].hash) == b[0].hash
    assert forge.tree.header_of(b[1].hash) == b[1].header
    assert forge.tree.header_of(a.hash) is None, "final blocks have no place in a justification"
    assert forge.tree.height_of(b"unknown") is None


def test_the_way_down_through_final_blocks_is_there_before_the_disk_has_it() -> None:
    forge = Forge()
    line = forge.line(forge.root, 4)
    forge.tree.finalize(line[2].hash)
    current: bytes | None = line[3].hash
    for below in (line[2], line[1], line[0], forge.root):
        current = forge.tree.parent_of(current or b"")
        assert current == below.hash
        assert forge.tree.height_of(current) == below.height
        assert forge.tree.header_of(current) is None


def test_best_containing_follows_the_best_chain_through_a_block() -> None:
    forge = Forge()
    short = forge.line(forge.root, 1, PRIMARY)
    long = forge.line(forge.root, 3, SECONDARY)
    tree = forge.tree
    assert tree.best_containing(forge.root.ref, 0) == short[-1].ref
    assert tree.best_containing(long[0].ref, 0) == long[-1].ref
    assert tree.best_containing(long[-1].ref, 0) == long[-1].ref
    assert tree.best_containing(BlockRef(b"unknown", 1), 0) is None


def of_set(forge: Forge, parent: TreeNode, set_id: int) -> TreeNode:
    """A block that claims to be of a set; the tree believes what it is given."""
    header = msgspec.structs.replace(
        parent.header, parent=parent.hash, height=parent.height + 1, set_id=set_id
    )
    executed = ExecutedBlock(Block(header, ()), parent.executed.state, {}, ())
    node = TreeNode(executed, parent.epoch, forge.validators)
    forge.tree.insert(node)
    return node


def test_votes_stop_at_a_handover() -> None:
    forge = Forge()
    last = of_set(forge, of_set(forge, forge.root, 0), 0)
    head = of_set(forge, of_set(forge, last, 1), 1)
    assert forge.tree.best is head
    assert forge.tree.best_containing(forge.root.ref, 0) == last.ref
    assert forge.tree.best_containing(last.ref, 1) == head.ref


def test_fork_point() -> None:
    forge = Forge()
    trunk = forge.line(forge.root, 2)
    one = forge.line(trunk[-1], 2, SECONDARY)
    other = forge.line(trunk[-1], 1, PRIMARY)
    assert forge.tree.fork_point(one[-1], other[-1]) is trunk[-1]
    assert forge.tree.fork_point(one[-1], one[0]) is one[0]
    assert forge.tree.path(one[-1]) == [*trunk, *one]
