"""Catch-up: answers within limits and of one set, and asks that no liar can lead astray."""

from tests.unit.public_forge import Forge

from gridtokenx.core.codec import encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Send, Write
from gridtokenx.finality.justifications import Justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.records import block_writes, height_key
from gridtokenx.public.grandpa.messages import Standing
from gridtokenx.public.messages import (
    MAX_BLOCKS,
    BranchRequest,
    FinalBlocks,
    FinalRequest,
    Status,
)
from gridtokenx.public.slots import SealedBlock
from gridtokenx.public.sync import SEALS, Sync, serve_branch, serve_final
from gridtokenx.public.tree import TreeNode

ONE, TWO = b"1" * 32, b"2" * 32
TIMEOUT = 1_000


def status(final: int, best: int = 0) -> Status:
    standing = Standing(0, 1, b"", b"", 0)
    return Status(final, sha256(b"final"), best, sha256(b"best"), standing)


def asks(sync: Sync, forge: Forge, now: int) -> list[tuple[bytes, FinalRequest]]:
    return [
        (effect.to, effect.message)
        for effect in sync.plan_final(now, forge.tree)
        if isinstance(effect, Send) and isinstance(effect.message, FinalRequest)
    ]


def sealed(nodes: list[TreeNode]) -> tuple[SealedBlock, ...]:
    return tuple(node.sealed for node in nodes if node.sealed is not None)


def test_peers_take_turns_and_one_ask_is_under_way() -> None:
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    sync.note(0, ONE, status(9))
    sync.note(0, TWO, status(9))
    (first,) = asks(sync, forge, 1)
    assert asks(sync, forge, 2) == []
    (second,) = asks(sync, forge, 2 + TIMEOUT)
    assert {first[0], second[0]} == {ONE, TWO}
    assert first[1] == second[1] == FinalRequest(1, with_blocks=True)


def test_a_chunk_without_justification_is_continued_above_it() -> None:
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    sync.note(0, ONE, status(9))
    asks(sync, forge, 1)
    line = forge.line(forge.root, 3)
    sync.final_answered(forge.tree, FinalBlocks(sealed(line), None))
    assert asks(sync, forge, 2) == [(ONE, FinalRequest(4, with_blocks=True))]


def test_an_answer_that_does_not_connect_moves_nothing() -> None:
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    sync.note(0, ONE, status(9))
    asks(sync, forge, 1)
    other = Forge()
    strangers = sealed(other.line(other.root, 5))[3:]
    sync.final_answered(forge.tree, FinalBlocks(strangers, None))
    assert asks(sync, forge, 2) == [(ONE, FinalRequest(1, with_blocks=True))]


def test_silence_starts_again_from_the_root() -> None:
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    sync.note(0, ONE, status(9))
    sync.final_answered(forge.tree, FinalBlocks(sealed(forge.line(forge.root, 2)), None))
    assert asks(sync, forge, 1) == [(ONE, FinalRequest(3, with_blocks=True))]
    sync._expire(2 + TIMEOUT)
    assert asks(sync, forge, 3 + TIMEOUT) == [(ONE, FinalRequest(1, with_blocks=True))]


def test_where_only_the_justification_is_missing_no_blocks_are_asked_for() -> None:
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    head = forge.line(forge.root, 2)[-1]
    said = Status(2, head.hash, 2, head.hash, Standing(0, 1, b"", b"", 0))
    sync.note(0, ONE, said)
    assert asks(sync, forge, 1) == [(ONE, FinalRequest(1, with_blocks=False))]


def test_a_justification_alone_is_asked_for_within_the_present_set_only() -> None:
    """The peer's is of the next set by then: the handover's must come first, with its block."""
    forge, sync = Forge(), Sync(TIMEOUT, 60_000)
    head = forge.line(forge.root, 2)[-1]
    forge.root.validators = ValidatorSet(1, forge.validators.members)
    sync.note(0, ONE, Status(2, head.hash, 2, head.hash, Standing(0, 1, b"", b"", 0)))
    assert asks(sync, forge, 1) == [(ONE, FinalRequest(1, with_blocks=True))]


# -- answers ---------------------------------------------------------------------------------------


def disk_of(forge: Forge, justified: set[int], count: int) -> SimulatedStore:
    """A disk with `count` final blocks and justifications at some heights."""
    store = SimulatedStore()
    for node in forge.line(forge.root, count):
        assert node.sealed is not None
        proof = Justification(1, 0, node.hash, node.height, (), ())
        raw = encode(proof) if node.height in justified else None
        store.write(block_writes(node.executed, raw))
        store.write((Write(SEALS, height_key(node.height), node.sealed.seal),))
    return store


def answer_to(
    store: SimulatedStore, final: int, from_height: int, *, with_blocks: bool = True
) -> tuple[list[int], int | None]:
    answer = serve_final(store, final, FinalRequest(from_height, with_blocks))
    assert answer is not None
    proof = answer.justification
    heights = [block.header.height for block in answer.blocks]
    return heights, None if proof is None else proof.target_height


def test_an_answer_ends_with_its_highest_justified_block() -> None:
    store = disk_of(Forge(), {2, 5, 7}, 7)
    assert answer_to(store, 7, 1) == ([1, 2, 3, 4, 5, 6, 7], 7)
    assert answer_to(store, 6, 1) == ([1, 2, 3, 4, 5], 5)
    assert answer_to(store, 4, 3) == ([3, 4], None)
    assert answer_to(store, 7, 1, with_blocks=False) == ([], 7)


def test_an_answer_is_bounded() -> None:
    store = disk_of(Forge(), {MAX_BLOCKS + 20}, MAX_BLOCKS + 20)
    heights, proof = answer_to(store, MAX_BLOCKS + 20, 1)
    assert (heights[-1], proof) == (MAX_BLOCKS, None)
    assert answer_to(store, MAX_BLOCKS + 20, MAX_BLOCKS + 1)[1] == MAX_BLOCKS + 20


def test_what_is_not_there_is_not_answered() -> None:
    forge = Forge()
    store = disk_of(forge, {3}, 3)
    assert serve_final(store, 3, FinalRequest(0, with_blocks=True)) is None
    assert serve_final(store, 3, FinalRequest(4, with_blocks=True)) is None
    assert serve_branch(forge.tree, BranchRequest(bytes(32), 1)) is None
    assert serve_branch(forge.tree, BranchRequest(forge.root.hash, 0)) is None


def test_a_branch_is_answered_from_the_height_asked_for() -> None:
    forge = Forge()
    line = forge.line(forge.root, 5)
    answer = serve_branch(forge.tree, BranchRequest(line[-1].hash, 4))
    assert answer is not None
    assert [block.header.height for block in answer.blocks] == [4, 5]
    assert answer.head == line[-1].hash
