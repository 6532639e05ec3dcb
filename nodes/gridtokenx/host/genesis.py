"""Block 0 of a replica's chain: made once, and from then on read.

Making it takes several times the memory that its state needs afterwards (every opening account is an
event, a change and a record of both before it is a leaf), and what Python has once taken it hardly
gives back: 25 MiB for 10,000 accounts, of which 6 are the state. So a child makes it, writes it into
the store, and ends; and later starts read a header instead of executing the opening again.

The store is bound to the chain's id, which is a hash of the genesis file (`ledger/identity.py`), so the
block that it holds is that file's.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from gridtokenx.core.errors import GridTokenXError
from gridtokenx.core.state_tree import StateTree
from gridtokenx.host.storage import Store
from gridtokenx.ledger.records import block_writes, load_block
from gridtokenx.ledger.runtime import ExecutedBlock


def prepare_genesis(directory: Path, make: Callable[[], ExecutedBlock]) -> None:
    """Have a child put block 0 into a new store; whatever hinders it is met again by who opens it.

    Args:
        directory: of the store, which nobody has opened yet.
        make: executes the opening.
    """
    if directory.exists() or not hasattr(os, "fork") or threading.active_count() > 1:
        return
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            genesis = make()
            if os.getppid() == parent:  # or a next life of it may be waiting for the store
                _write(directory, genesis)
            code = 0
        except (GridTokenXError, OSError):
            """The parent meets it, and says so."""
        finally:
            os._exit(code)
    os.waitpid(child, 0)


def _write(directory: Path, genesis: ExecutedBlock) -> None:
    store = Store.open(directory)
    store.put_now(*block_writes(genesis, None))
    store.close()


def open_genesis(store: Store, make: Callable[[], ExecutedBlock]) -> ExecutedBlock:
    """Block 0: if the store holds it, without the state, which then is the store's, too."""
    block = load_block(store, 0)
    return make() if block is None else ExecutedBlock(block, StateTree.empty(), {}, ())
