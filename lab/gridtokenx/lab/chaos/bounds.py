"""How soon a chain of real processes must have recovered, from the protocol's timers.

Two promises for each fault, as sums of the waits that the rules allow (`pbft/timing.py`, `host/`):

**It goes on** while the fault lasts, if a quorum is left that hears each other. If the leader is among
the hurt, a view change comes first; if those after it are hurt too, one more for each::

    due + view timeout + retransmission                    suspected by everybody, heard by everybody
        + view timeout x 2, x 4, ... for each further hurt leader in turn
        + interval + slack                                 a block in the new view

**It is level** after the fault ends: everybody who should be has so many more blocks, and a transaction
that was sent after the end is in one::

    relink (only if links or the process were lost)
        + 2 retransmissions                                everybody shows where it is
        + view timeout + interval                          one leader more that is not ready
        + 2 fetch timeouts                                 a question that is not answered, another that is
        + (blocks + 1) intervals + slack

`slack` is what the machine may take for itself: it is the one number that no rule gives. It is for a
machine whose processors are free, and grows with the processes that wait for one (`slack_ms`).
"""

from collections.abc import Collection
from typing import Final

from gridtokenx.host.link import LinkLimits
from gridtokenx.host.transport import NetworkLimits
from gridtokenx.host.twins import SETTLE_S
from gridtokenx.lab.faults import Crash, Fault, Wipe
from gridtokenx.pbft.timing import Timing

SLACK_MS: Final = 3_000
"""For processes that share processors with all others of the run."""
MOST_SLACKS: Final = 5
"""Beyond so many times that a run on this machine says nothing about time."""
START_MS: Final = 5_000
"""For a process to be forked, open its store and derive its keys."""


def slack_ms(load: float, processors: int) -> int:
    """What the machine may take for itself.

    Args:
        load: processes that run or wait to, on average.
        processors: how many there are.
    """
    return round(SLACK_MS * min(max(1.0, load / max(1, processors)), MOST_SLACKS))


def goes_on_ms(
    hit: Collection[int], leader: int, replicas: int, timing: Timing, slack: int = SLACK_MS
) -> int:
    """From a fault's beginning until a block that was made since is final at a quorum.

    Args:
        hit: who takes no part while the fault lasts, or works against it.
        leader: who led when it began.
        replicas: how many there are.
        timing: the engine's waits.
        slack: see `slack_ms`.
    """
    hurt = 0
    while (leader + hurt) % replicas in hit and hurt < replicas:
        hurt += 1
    if hurt == 0:
        return 2 * timing.interval_ms + slack
    waits = timing.interval_ms + timing.retransmit_ms + timing.interval_ms + slack
    return waits + sum(timing.patience_ms(attempt) for attempt in range(hurt))


def level_ms(
    fault: Fault, lasted_ms: int, blocks: int, timing: Timing, slack: int = SLACK_MS
) -> int:
    """From a fault's end until everybody is level and new work is done.

    Args:
        fault: what it was.
        lasted_ms: for how long.
        blocks: how many more blocks are asked for.
        timing: the engine's waits.
        slack: see `slack_ms`.
    """
    waits = 2 * timing.retransmit_ms + timing.view_timeout_ms + timing.interval_ms
    waits += 2 * timing.fetch_timeout_ms + (blocks + 1) * timing.interval_ms + slack
    return waits + _relink_ms(fault, lasted_ms)


def _relink_ms(fault: Fault, lasted_ms: int) -> int:
    """Until links are up that were lost: the longest back-off, then a handshake."""
    links, limits = LinkLimits(), NetworkLimits()
    redial_ms = int((limits.backoff_s + links.handshake_s) * 1_000)
    if isinstance(fault, Crash | Wipe):
        return START_MS + int(SETTLE_S * 1_000) + redial_ms
    return redial_ms if lasted_ms >= links.silence_s * 1_000 else 0
