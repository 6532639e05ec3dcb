"""Batches of concentrators: taken apart, and held against whoever sent them.

Law of the file: **each reading is judged as if it had come alone.** A bad one costs itself only; who
signed nothing answers for what it carries, because an honest concentrator checks before it carries.
One that goes on sending what no honest one sends is not listened to for a while, and named.
"""

from collections.abc import Callable, Sequence
from typing import Final

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import Malformed, RemoteFault
from gridtokenx.ledger.readings import MAX_BATCH_BYTES, ReadingBatch

FAULTS: Final = 32
"""Bad readings of one concentrator in `WINDOW_S`; a batch that does not read counts as so many."""
WINDOW_S: Final = 60.0
MUTED_S: Final = 60.0
MAX_KNOWN: Final = 1_024
GUILTY: Final = frozenset({"oversized", "malformed", "wrong-chain", "bad-signature"})
"""Faults of a reading that its concentrator could have seen; the others are the device's, or time's."""


def unpack(payload: bytes) -> Sequence[bytes]:
    """The readings of a batch.

    Raises:
        RemoteFault: it is none, or too large.
    """
    if len(payload) > MAX_BATCH_BYTES + 64:
        raise RemoteFault("oversized", f"a batch of {len(payload)} bytes")
    try:
        return decode(payload, ReadingBatch).readings
    except Malformed as fault:
        raise Malformed(f"batch: {fault.detail}") from None


class Carriers:
    """How concentrators behave.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._faults: Final[dict[bytes, list[float]]] = {}
        self._muted: Final[dict[bytes, float]] = {}

    def is_muted(self, concentrator: bytes) -> bool:
        """Whether it is not listened to at present."""
        until_s = self._muted.get(concentrator)
        if until_s is None:
            return False
        if self._clock() < until_s:
            return True
        del self._muted[concentrator]
        return False

    def blame(self, concentrator: bytes, faults: int = 1) -> bool:
        """Count faults; whether that was too much, so that it is muted from now on."""
        now_s = self._clock()
        if concentrator not in self._faults and len(self._faults) >= MAX_KNOWN:
            self._faults.clear()
        counted = self._faults.setdefault(concentrator, [])
        counted[:] = [at for at in counted if now_s - at < WINDOW_S] + [now_s] * faults
        if len(counted) < FAULTS:
            return False
        del self._faults[concentrator]
        if len(self._muted) >= MAX_KNOWN:
            self._muted.clear()
        self._muted[concentrator] = now_s + MUTED_S
        return True
