"""How memory is looked after in a node.

Almost everything in a node dies by its reference count: messages, transactions, blocks and the nodes
of state trees form no cycles. What the collector finds is little (tasks, exceptions), but to find it, it
looks at every young object again and again, and now and then at the whole state, which a chain's
life only makes larger. So what is there when a node begins is put aside, and the rest is looked at
more seldom: at 400 transactions a second that was 4 % of a replica's processor time.
What reading the genesis file and the state took besides goes back to the system.
"""

import ctypes
import gc
import sys
from typing import Final

YOUNG: Final = 100_000
"""Objects that may be made, less those that died, before the youngest are looked at; Python's: 700."""
MIDDLE: Final = 20
OLD: Final = 20


def settle_heap() -> None:
    """Put what exists aside for good, and collect more seldom; once a process's things are made."""
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
