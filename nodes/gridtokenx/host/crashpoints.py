"""Named places where a test can kill this process as a power cut would.

``GTX_CRASH_AT=storage.before_commit`` ends the process the first time that the place is reached,
``GTX_CRASH_AT=storage.before_commit:7`` the seventh time: by `os._exit`, so that no handler, buffer
or destructor runs. Without the variable a crash point costs one comparison.
"""

import os
from typing import Final

from gridtokenx.core.errors import LocalFault

VARIABLE: Final = "GTX_CRASH_AT"
CRASH_EXIT: Final = 137
"""What a shell reports for a process that SIGKILL ended."""

CRASH_POINTS: Final = (
    "storage.before_commit",  # batches are queued, nothing is written
    "storage.inside_commit",  # written into the transaction, not committed
    "storage.after_commit",  # durable, nobody was told
    "driver.before_step",  # an event was taken, the machine has not seen it
    "driver.after_step",  # the machine has stepped, no effect is carried out
    "driver.before_send",  # durable, nothing has left
    "node.ready",  # started, restored, about to take part
)


class _Plan:
    """The one crash that the environment asks for."""

    def __init__(self, text: str) -> None:
        name, _, count = text.partition(":")
        if text and name not in CRASH_POINTS:
            raise LocalFault(
                f"{VARIABLE}={text}: no such crash point; one of: {', '.join(CRASH_POINTS)}"
            )
        if count and not (count.isdecimal() and int(count) > 0):
            raise LocalFault(f"{VARIABLE}={text}: after the colon comes a positive number")
        self.name = name
        self.remaining = int(count) if count else 1


_plan: _Plan | None = None


def arm_crash_points() -> None:
    """Read the environment; a process's main wrapper calls it once, after any fork.

    Raises:
        LocalFault: the variable names no crash point.
    """
    global _plan  # one per process, like the environment that it mirrors
    text = os.environ.get(VARIABLE, "")
    _plan = _Plan(text) if text else None


def crash_point(name: str) -> None:
    """End the process here if the environment asked for it."""
    if _plan is None or _plan.name != name:
        return
    _plan.remaining -= 1
    if _plan.remaining == 0:
        os._exit(CRASH_EXIT)
