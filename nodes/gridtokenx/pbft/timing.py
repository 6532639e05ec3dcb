"""How long a replica waits for what.

Theory: Castro & Liskov (OSDI 1999) section 4.5.2. Safety needs no clock; liveness needs timeouts that
grow until they exceed the real delay, and that start only when waiting makes sense.
"""

from dataclasses import dataclass

_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Timing:
    """The waits of one replica; all in milliseconds. Equal on all replicas for good liveness."""

    block_time_ms: int = 1_000
    """From one block's timestamp to the next proposal; 0 proposes as soon as there is work."""
    heartbeat_ms: int = 5_000
    """With `block_time_ms` 0: an empty block after so long without work (the chain is a clock)."""
    view_timeout_ms: int = 3_000
    """How long beyond its due time a block, or a new-view, may be missing; doubles per attempt."""
    longest_timeout_ms: int = 60_000
    """Where doubling ends."""
    request_timeout_ms: int = 3_000
    """How long a submission may be pending before omitting it costs the primary its view."""
    retransmit_ms: int = 1_000
    """How often own votes and status are sent again while nothing moves."""
    clock_bound_ms: int = 5_000
    """How far a fresh proposal's timestamp may be from this replica's clock, either way."""
    gossip_ms: int = 20
    """How long submissions are gathered after some were passed on; the first leave at once."""
    fetch_timeout_ms: int = 2_000
    """How long a peer has to answer a question for blocks."""
    window: int = 1
    """Heights above the last committed one that may be in flight (the paper's L)."""
    checkpoint_blocks: int = 64
    """Between two heights whose states are handed out to others (the paper's K)."""
    snapshot_distance: int = 1_024
    """Who is so many blocks behind takes a state instead; 0: only where nobody has the blocks."""
    part_bytes: int = 128 * 1024
    """Keys and values that are handed out at once."""

    @property
    def interval_ms(self) -> int:
        """The longest time between two blocks of a healthy chain."""
        return self.block_time_ms or self.heartbeat_ms

    def patience_ms(self, attempts: int) -> int:
        """The timeout after so many view changes without progress (section 4.5.2: it doubles)."""
        return self._doubled(self.view_timeout_ms, attempts)

    def request_patience_ms(self, omissions: int) -> int:
        """The bound of a submission after so many views left for omitting it."""
        return self._doubled(self.request_timeout_ms, omissions)

    def _doubled(self, timeout_ms: int, times: int) -> int:
        doubled = timeout_ms << min(times, _MOST_DOUBLINGS)
        return min(doubled, max(self.longest_timeout_ms, timeout_ms))
