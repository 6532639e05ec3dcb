"""How a chain lies on disk: one place for the tables that engines write and hosts read.

==========  =========================  =====================================================
table       key                        value
==========  =========================  =====================================================
blocks      height (8 bytes)           encoded `Block`
hashes      block hash                 height (8 bytes)
finality    height (8 bytes)           encoded finality proof, as the chain's engine makes it
events      height (8 bytes)           encoded tuple of event records
state       state key                  value, of the last final block
sets        set id (8 bytes)           encoded validator set that a final block handed over to
meta        ``b"head"``                height (8 bytes) of the last final block
meta        ``b"base"``                height (8 bytes) of the block whose state was taken over
==========  =========================  =====================================================

One final block is one `Persist`: all of these change together or not at all. All blocks from the base
to the head are here; of those between genesis and the base, where there is one, what happens to be.
"""

import itertools
from typing import Final

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Reader, Write
from gridtokenx.core.state_tree import StateTree
from gridtokenx.ledger.blocks import PROTOCOL_VERSION, Block
from gridtokenx.ledger.runtime import ExecutedBlock

BLOCKS: Final = "blocks"
HASHES: Final = "hashes"
FINALITY: Final = "finality"
EVENTS: Final = "events"
STATE: Final = "state"
SETS: Final = "sets"
META: Final = "meta"
HEAD: Final = b"head"
LOADED_KEYS: Final = 1_024
"""Keys of the stored state that are put into the tree at once."""
BASE: Final = b"base"


def height_key(height: int) -> bytes:
    """The key of a height: big-endian, so that key order is height order."""
    return height.to_bytes(8, "big")


def block_writes(executed: ExecutedBlock, finality: bytes | None) -> tuple[Write, ...]:
    """Everything that one final block changes on disk.

    Args:
        executed: the block, executed on the block that is the head on disk.
        finality: the encoded proof of its finality; None where a later block's proof covers it.
    """
    key = height_key(executed.height)
    writes = [
        Write(BLOCKS, key, encode(executed.block)),
        Write(HASHES, executed.hash, key),
        Write(EVENTS, key, encode(executed.events)),
        Write(META, HEAD, key),
        *(Write(STATE, name, value) for name, value in executed.changes.items()),
    ]
    if finality is not None:
        writes.append(Write(FINALITY, key, finality))
    return tuple(writes)


def damaged(problem: str) -> LocalFault:
    """What is wrong with a store that cannot be worked with, and what to do."""
    return LocalFault(
        f"{problem}: the store is damaged; restore a backup (`gtx backup restore`), or put the store away"
        " and fetch the chain from peers (`gtx backup reset`)"
    )


def load_head(reader: Reader) -> ExecutedBlock | None:
    """The last final block with its state, rebuilt and checked; None on an empty disk.

    Raises:
        LocalFault: the state on disk does not hash to the header's root, or other rules made it.
    """
    key = reader.get(META, HEAD)
    if key is None:
        return None
    block = load_block(reader, int.from_bytes(key, "big"))
    if block is None:
        raise damaged(f"the store names block {int.from_bytes(key, 'big')} but lacks it")
    if block.header.version != PROTOCOL_VERSION:
        raise LocalFault(
            f"block {block.height} on disk was made by protocol version {block.header.version}, and this"
            f" program speaks version {PROTOCOL_VERSION}: use the program that made it, or another home"
        )
    tree = load_state(reader)
    if tree.root != block.header.state_root:
        raise damaged(f"the stored state does not match block {block.height}")
    # The opening's events are nobody's news, and there is one for every account.
    events = load_events(reader, block.height) if block.height else ()
    return ExecutedBlock(block, tree, {}, events)


def load_state(reader: Reader) -> StateTree:
    """The tree of what is stored, whatever it is; by parts, or building it took twice its memory."""
    tree, stored = StateTree.empty(), reader.scan(STATE)
    while part := dict(itertools.islice(stored, LOADED_KEYS)):
        tree = tree.update(part)
    return tree


def load_block(reader: Reader, height: int) -> Block | None:
    """A stored final block."""
    raw = reader.get(BLOCKS, height_key(height))
    return None if raw is None else decode_own(raw, Block)


def load_events(reader: Reader, height: int) -> tuple[bytes, ...]:
    """The encoded event records of a stored block."""
    raw = reader.get(EVENTS, height_key(height))
    return () if raw is None else decode_own(raw, tuple[bytes, ...])


def load_finality(reader: Reader, height: int) -> bytes | None:
    """The encoded proof of finality stored for exactly this height."""
    return reader.get(FINALITY, height_key(height))


def base_height(reader: Reader) -> int:
    """From which height on all blocks are here; 0 unless a state was taken over from others."""
    key = reader.get(META, BASE)
    return 0 if key is None else int.from_bytes(key, "big")


def final_height(reader: Reader) -> int | None:
    """Height of the last final block; None on an empty disk."""
    key = reader.get(META, HEAD)
    return None if key is None else int.from_bytes(key, "big")
