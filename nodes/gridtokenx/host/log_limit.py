"""Log lines that a stranger can cause: a few of a kind in a while, and how many were left out."""

import time
from collections.abc import Callable
from typing import Final

LINES: Final = 5
WINDOW_S: Final = 10.0
MAX_KINDS: Final = 256
"""Kinds that are told apart; what comes beyond shares one."""
_OTHERS: Final = "others"


class LogLimit:
    """Lets `lines` of each kind through in every window.

    Args:
        lines: of one kind in a window.
        window_s: how long a window is.
        clock: in seconds.
    """

    def __init__(
        self,
        lines: int = LINES,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines: Final = lines
        self._window_s: Final = window_s
        self._clock: Final = clock
        self._kinds: Final[dict[str, tuple[float, int, int]]] = {}

    def admit(self, kind: str) -> dict[str, int] | None:
        """None if a line must not be written; else fields to add: how many were left out before."""
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = _OTHERS
        now_s = self._clock()
        began_s, written, left_out = self._kinds.get(kind, (now_s, 0, 0))
        if now_s - began_s >= self._window_s:
            began_s, written = now_s, 0
        if written >= self._lines:
            self._kinds[kind] = began_s, written, left_out + 1
            return None
        self._kinds[kind] = began_s, written + 1, 0
        return {"left_out": left_out} if left_out else {}
