"""Parameters of the oracle chain, fixed in its genesis."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import INTERVAL_MS

Positive = Annotated[int, Meta(ge=1, le=2**53)]
NotNegative = Annotated[int, Meta(ge=0, le=2**53)]
Window = Annotated[int, Meta(ge=1, le=48)]

SIX_DAYS_MS: Final = 6 * 86_400_000


class MeterParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How readings are taken and intervals close."""

    grace_ms: Positive = 9_000
    """Network time from an interval's end to its closing. Outlasts a request timer and a view change,
    so that a leader who omits a meter is replaced, and the reading is in, before it matters."""
    request_and_view_change_ms: Positive = 6_000
    """What the consensus engine may need to include what its leader omits; `grace_ms` exceeds it."""
    silence_ms: Positive = 30_000
    """A chain without a block for longer than this was down: its meters get one more grace."""
    correction_window: Window = 3
    """Intervals for which a closed one may still be corrected; then its generation is attested."""
    boundary_skew_grid_ms: NotNegative = 30_000
    """A stamp within this of a boundary, in grid time, is on it."""
    boundary_limit_grid_ms: NotNegative = 300_000
    """A stamp within this is taken as uncertain; beyond it is refused."""
    ahead_ms: NotNegative = 5_000
    """How far ahead of block time, in network time, a stamp may lie: devices' clocks differ."""
    packet_timeout_ms: Annotated[int, Meta(ge=1, le=SIX_DAYS_MS)] = SIX_DAYS_MS
    """How long a report or attestation may take to arrive before it is sent again."""

    def check(self) -> None:
        """Refuse combinations that could not work.

        Raises:
            LocalFault: says which, and what is allowed.
        """
        if self.grace_ms <= self.request_and_view_change_ms:
            raise LocalFault(
                f"meters.grace_ms is {self.grace_ms}: it must exceed request_and_view_change_ms, "
                f"{self.request_and_view_change_ms}, or a leader could omit a meter unpunished"
            )
        if not self.boundary_skew_grid_ms <= self.boundary_limit_grid_ms < INTERVAL_MS // 2:
            raise LocalFault(
                f"meters.boundary_skew_grid_ms {self.boundary_skew_grid_ms} and "
                f"boundary_limit_grid_ms {self.boundary_limit_grid_ms}: "
                f"need skew <= limit < {INTERVAL_MS // 2}"
            )


class FeedSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One feed: what is observed, how often, and what is believable. Values are integers."""

    feed: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9.-]*\Z")]
    unit: Annotated[str, Meta(min_length=1, max_length=64)]
    """What one unit of the value is, such as ``micro-WATT per kWh``."""
    round_ms: Positive = 10_000
    """Network time from the start of one round to the next."""
    deadline_ms: Positive = 6_000
    """A round closes this long after its start, or as soon as all have reported."""
    minimum: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    maximum: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    max_change_ppm: Positive = 500_000
    """A median that moved further within a round must be confirmed by the next round."""
    outlier_ppm: Positive = 200_000
    """An observation further from the median counts against its oracle."""
    deviation_ppm: Positive = 5_000
    """A median that moved this far from the published value is published."""
    heartbeat_ms: Positive = 60_000
    """The value is published at least this often while rounds succeed."""
    stuck_rounds: Positive = 24
    """A source that repeats one value this often while the median moves is left out."""

    def check(self) -> None:
        """Refuse combinations that could not work.

        Raises:
            LocalFault: says which, and what is allowed.
        """
        if self.deadline_ms >= self.round_ms:
            raise LocalFault(
                f"feed {self.feed}: deadline_ms {self.deadline_ms} must be below round_ms "
                f"{self.round_ms}"
            )
        if self.minimum >= self.maximum:
            raise LocalFault(
                f"feed {self.feed}: minimum {self.minimum} must be below maximum {self.maximum}"
            )
