"""`gtx verify` of a replica that took a state over: proofs in place of re-execution, and lies found."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.chain_disks import Disk, builder, grown_world, make_home, records_of, seed_of
from tests.gateway_world import key
from tests.unit.test_lab_verify import verify

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.machine import Write
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import (
    BASE,
    BLOCKS,
    EVENTS,
    FINALITY,
    HASHES,
    HEAD,
    META,
    STATE,
    base_height,
    height_key,
)
from gridtokenx.pbft.timing import Timing

NAME = "consortium"
TIMING = Timing(checkpoint_blocks=4, snapshot_distance=6)
Lie = Callable[[Disk], list[Write]]


@cache
def taken_over() -> Disk:
    """The disk of a replica that was new at block 12, and lived on for a while."""
    world = grown_world(NAME, 500)
    victim = world.nodes[key(f"{NAME}-1")]
    world.crash(victim.id)
    victim.store.wipe()
    for index, node in enumerate(world.nodes.values()):
        node.build = builder(NAME, seed_of(f"{NAME}-{index}"), TIMING)
        if node is not victim:
            world.crash(node.id, keep=99)
            world.start(node.id)
    world.run_for(14_000)
    world.start(victim.id)
    world.run_for(4_000)
    assert base_height(victim.store) >= 4
    return dict(records_of(victim.store))


def base_of(disk: Disk) -> int:
    return int.from_bytes(disk[META, BASE], "big")


def head_of(disk: Disk) -> int:
    return int.from_bytes(disk[META, HEAD], "big")


def test_it_agrees_and_says_what_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = taken_over()
    assert (BLOCKS, height_key(base_of(disk) - 1)) not in disk
    assert verify(make_home(tmp_path, NAME, disk=disk)) == 0
    said = capsys.readouterr().out
    assert f"taken over at block {base_of(disk)}" in said
    assert f"{head_of(disk) - base_of(disk) + 2} blocks" in said
    assert said.endswith(": everything agrees\n")


def at(table: str, value: bytes | None, height: int) -> list[Write]:
    return [Write(table, height_key(height), value)]


def altered_block(disk: Disk) -> list[Write]:
    block = decode_own(disk[BLOCKS, height_key(base_of(disk) + 1)], Block)
    header = replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
    return at(BLOCKS, encode(Block(header, block.transactions)), block.height)


def altered_state(disk: Disk) -> list[Write]:
    return [Write(STATE, next(k for table, k in disk if table == STATE), b"\x01")]


LIES: dict[str, tuple[Lie, str]] = {
    "missing block": (lambda d: at(BLOCKS, None, base_of(d)), "is missing"),
    "a block that is noise": (lambda d: at(BLOCKS, b"noise", base_of(d) + 1), "is no block"),
    "another block": (altered_block, "its certificate"),
    "no certificate": (lambda d: at(FINALITY, None, base_of(d) + 1), "has no certificate"),
    "another certificate": (
        lambda d: at(FINALITY, d[FINALITY, height_key(base_of(d))], base_of(d) + 1),
        "its certificate",
    ),
    "other events": (lambda d: at(EVENTS, encode((b"x",)), base_of(d)), "its events"),
    "another state": (altered_state, "the stored state is not the one"),
    "a base that is too low": (
        lambda d: [Write(META, BASE, height_key(base_of(d) - 1))],
        "is missing",
    ),
    "no index": (
        lambda d: [Write(HASHES, next(k for t, k in d if t == HASHES and d[t, k][7]), None)],
        "is not found by its hash",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_on_the_disk_is_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lie, sentence = LIES[name]
    disk = taken_over()
    assert verify(make_home(tmp_path, NAME, lie(disk), disk=disk)) == 1
    assert sentence in capsys.readouterr().out
