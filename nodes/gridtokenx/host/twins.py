"""Two processes with one key, and what is done about it.

A copied data directory, a container started twice, a restored virtual machine: two processes sign with
one key, and an honest replica turns into a faulty one. Nobody can see that from inside; the others can,
because each process draws an instance number when it starts.

Law of the file: **who was first stays, and one voice alone stops nobody.**

- A node that is linked to a key refuses another instance of it while the first answers a ping
  (`Link.answers`), with the reason `identity-in-use`. If it does not answer, it is replaced: that is
  what a process looks like that was cut off and started again.
- A process that starts holds its machine back until enough members have answered (`Twins.settle`).
  One more voice than there may be liars ends it, before it has signed anything. So does one handshake
  with the other process itself, because only a holder of the key can answer it.
- A process that already works goes on, since it may have been the first; it says that it is not ready.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.logs import SparseLog
from gridtokenx.host.metrics import Metrics

PROBE_S: Final = 1.5
"""How long a link may take to give a sign of life, before another process takes its place."""
SETTLE_S: Final = 3.0
"""How long a machine is held back when too few members are reached: they may all be down."""
REMEMBERED_S: Final = 60.0
"""A refusal is repeated with each attempt to link, which come every few seconds."""
_MAX_VOICES: Final = 1024


class Twins:
    """What others said of another process with our key.

    Args:
        own_key: ours.
        log: hears of it.
        metrics: counts it.
    """

    def __init__(self, own_key: bytes, log: SparseLog, metrics: Metrics) -> None:
        self._own_key = own_key
        self._log = log
        self._metrics = metrics
        self._voices: dict[bytes, tuple[float, str]] = {}
        self._news = asyncio.Event()
        self._settled = False

    def told(self, member: bytes, detail: str) -> None:
        """A member refused us because of another process; our own key if it was that process."""
        self._metrics.count("identity_in_use")
        who = "the other process itself" if member == self._own_key else member.hex()[:16]
        self._log.warning("identity in use", who, told_by=who, detail=detail)
        if member in self._voices or len(self._voices) < _MAX_VOICES:
            self._voices[member] = (time.monotonic(), detail)
        self._news.set()

    def met(self, where: str) -> None:
        """The other process has dialed us, and proven that it has our key."""
        if self._settled:
            self._metrics.count("identity_in_use")
            self._log.warning("identity in use", "met", dialed_from=where)
        else:
            self.told(self._own_key, f"it dialed us from {where}")

    def linked(self, member: bytes) -> None:
        """A member has taken us; what it said before is no longer so."""
        self._voices.pop(member, None)
        self._news.set()

    async def settle(self, linked: Callable[[], int], needed: int, tolerated: int) -> None:
        """Hold until `needed` members are linked, or it has taken too long.

        Args:
            linked: how many members are linked.
            needed: how many must be.
            tolerated: how many members may lie.

        Raises:
            LocalFault: enough of them say that another process has our key.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while linked() < needed:
                    self._stop_if_twin(tolerated)
                    self._news.clear()
                    await self._news.wait()
        self._stop_if_twin(tolerated)
        self._settled = True

    def reasons(self, tolerated: int) -> Iterator[str]:
        """Why a process that works already is not ready."""
        believed = self._believed(tolerated)
        if believed is not None:
            yield f"identity in use: {believed}"

    def _stop_if_twin(self, tolerated: int) -> None:
        believed = self._believed(tolerated)
        if believed is not None:
            raise LocalFault(
                f"another process runs with the key {self._own_key.hex()} ({believed});"
                " stop it, or give this node its own key; nothing was signed here"
            )

    def _believed(self, tolerated: int) -> str | None:
        """What enough voices say, in words."""
        since = time.monotonic() - REMEMBERED_S
        recent = {who: detail for who, (at, detail) in self._voices.items() if at >= since}
        own = recent.pop(self._own_key, None)
        if own is not None:
            return own
        if len(recent) <= tolerated:
            return None
        who, detail = next(iter(recent.items()))
        return f"{len(recent)} members say so; {who.hex()[:16]}: {detail}"
