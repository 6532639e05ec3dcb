"""Feed rounds: when one closes, and what its observations amount to.

Law of the file: **with at most f of n = 3f + 1 oracles lying, a round's value lies among the honest
ones**: it is the upper median (``sorted[len // 2]``) of at least 2f + 1 observations. A round closes
as soon as all have reported, or at its deadline; with fewer than 2f + 1 it is *stale*, and the last
value is never passed off as a new one.

Theory: OCR (smartcontractkit/libocr): median, deviation threshold and heartbeat. `Ours differs:` the
observations are transactions, so there is no leader to collect them and no report to sign: the
block that closes the round is the report.

=====================  ===========================================================================
check                  consequence
=====================  ===========================================================================
range                  the observation is refused
stuck value            a source that repeats itself while the median moves is left out of the median
outlier                counted against the oracle; the median needs no more protection
rate of change         a median that jumps is *uncertain*: published only when the next one confirms
=====================  ===========================================================================
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Index16, Int64, Millis, UInt63
from gridtokenx.oracle.chain.parameters import FeedSpec

PPM: Final = 1_000_000


class Status(IntEnum):
    """What became of a round."""

    FRESH = 0
    """A median of enough observations."""
    UNCERTAIN = 1
    """A median that jumped, and waits for the next round to confirm it."""
    STALE = 2
    """Too few observations; there is no value."""


class Observed(Wire, frozen=True):
    """One oracle's observation of the open round."""

    oracle: Index16
    """Index of the oracle in the validator set."""
    value: Int64


class Outcome(Wire, frozen=True):
    """A closed round."""

    round: UInt63
    status: Status
    value: Int64
    """The median; 0 and meaningless when stale."""
    observations: Index16
    """How many counted."""
    closed_ms: Millis
    """Block time of closing."""


class Source(Wire, frozen=True):
    """What is remembered of one oracle's observations of one feed."""

    value: Int64
    """Its last observation."""
    median: Int64
    """The median when it last changed its value."""
    repeats: UInt63
    """How often in a row it has repeated its value."""
    observations: UInt63
    """How many it made in all."""
    outliers: UInt63
    """How many were far from the median."""


NEW_SOURCE: Final = Source(0, 0, 0, 0, 0)


class Feed(Wire, frozen=True):
    """The state of one feed."""

    round: UInt63
    """The first round that is not closed: the only one that may hold observations."""
    observed: tuple[Observed, ...]
    """Its observations, ascending by oracle."""
    sources: tuple[Source, ...]
    """By index of the oracle."""
    latest: Outcome | None
    """The newest round with a value."""
    published: Outcome | None
    """What consumers of the feed go by."""
    pending: Int64 | None
    """A median that jumped and waits for confirmation."""
    stale_rounds: UInt63
    """Rounds that closed without a value, in all."""
    stale: bool
    """Whether the newest closed round was one of them."""


def empty_feed(oracles: int) -> Feed:
    """A feed before its first round."""
    return Feed(0, (), (NEW_SOURCE,) * oracles, None, None, None, 0, stale=True)


def round_at(spec: FeedSpec, genesis_ms: int, now_ms: int) -> int:
    """The round that runs at a network time."""
    return max(0, now_ms - genesis_ms) // spec.round_ms


def is_over(spec: FeedSpec, genesis_ms: int, round_: int, now_ms: int) -> bool:
    """Whether a round's deadline has passed."""
    return now_ms >= genesis_ms + round_ * spec.round_ms + spec.deadline_ms


def median(values: Sequence[int]) -> int:
    """The upper median; `values` is not empty."""
    return sorted(values)[len(values) // 2]


def moved_ppm(old: int, new: int) -> int:
    """How far a value moved, in parts per million of the old one; from 0, any move is all of it."""
    if old == 0:
        return 0 if new == 0 else PPM * PPM
    return abs(new - old) * PPM // abs(old)


def skip_missed(feed: Feed, spec: FeedSpec, genesis_ms: int, now_ms: int) -> Feed:
    """Pass over rounds that nobody observed and whose deadline is over, in one step."""
    running = round_at(spec, genesis_ms, now_ms)
    next_ = running + 1 if is_over(spec, genesis_ms, running, now_ms) else running
    if feed.observed or next_ <= feed.round:
        return feed
    missed = next_ - feed.round
    return replace(feed, round=next_, stale_rounds=feed.stale_rounds + missed, stale=True)


def observe(feed: Feed, oracle: int, value: int) -> Feed:
    """The feed with one more observation of its open round; the caller checked it is the first."""
    observed = sorted((*feed.observed, Observed(oracle, value)), key=lambda each: each.oracle)
    return replace(feed, observed=tuple(observed))


def reseat(feed: Feed, seats: Sequence[int | None]) -> Feed:
    """The feed of another set of oracles.

    Args:
        feed: as the old set left it.
        seats: by new index, the old index of the same oracle; None if it is new.
    """
    moved = {old: new for new, old in enumerate(seats) if old is not None}
    stayed = (each for each in feed.observed if each.oracle in moved)
    observed = (Observed(moved[each.oracle], each.value) for each in stayed)
    sources = (NEW_SOURCE if old is None else feed.sources[old] for old in seats)
    return replace(
        feed,
        observed=tuple(sorted(observed, key=lambda each: each.oracle)),
        sources=tuple(sources),
    )


def close_round(feed: Feed, spec: FeedSpec, needed: int, now_ms: int) -> tuple[Feed, Outcome]:
    """Close the open round.

    Args:
        feed: its state; may hold any number of observations.
        spec: its rules.
        needed: 2f + 1.
        now_ms: block time.
    """
    values = [each.value for each in feed.observed if not _stuck(feed, each, spec)]
    if len(values) < needed:
        outcome = Outcome(feed.round, Status.STALE, 0, len(values), now_ms)
        sources = feed.sources
    else:
        outcome = _judge(feed, spec, median(values), len(values), now_ms)
        sources = _remember(feed, outcome.value, spec)
    feed = replace(
        feed,
        round=feed.round + 1,
        observed=(),
        sources=sources,
        stale=outcome.status is Status.STALE,
        stale_rounds=feed.stale_rounds + (outcome.status is Status.STALE),
    )
    return _accept(feed, spec, outcome), outcome


def _judge(feed: Feed, spec: FeedSpec, value: int, count: int, now_ms: int) -> Outcome:
    """A median that jumped counts only if the round before jumped to the same place."""
    before = feed.latest
    jumped = before is not None and moved_ppm(before.value, value) > spec.max_change_ppm
    confirmed = feed.pending is not None and moved_ppm(feed.pending, value) <= spec.max_change_ppm
    status = Status.UNCERTAIN if jumped and not confirmed else Status.FRESH
    return Outcome(feed.round, status, value, count, now_ms)


def _accept(feed: Feed, spec: FeedSpec, outcome: Outcome) -> Feed:
    if outcome.status is Status.STALE:
        return feed
    if outcome.status is Status.UNCERTAIN:
        return replace(feed, pending=outcome.value)
    published = feed.published
    if (
        published is None
        or moved_ppm(published.value, outcome.value) >= spec.deviation_ppm
        or outcome.closed_ms - published.closed_ms >= spec.heartbeat_ms
    ):
        published = outcome
    return replace(feed, latest=outcome, pending=None, published=published)


def _stuck(feed: Feed, observed: Observed, spec: FeedSpec) -> bool:
    """Whether a source repeats itself although the others have moved away from where it began."""
    source = feed.sources[observed.oracle]
    if feed.latest is None or observed.value != source.value:
        return False
    moved = moved_ppm(source.median, feed.latest.value) >= spec.deviation_ppm
    return source.repeats + 1 >= spec.stuck_rounds and moved


def _remember(feed: Feed, value: int, spec: FeedSpec) -> tuple[Source, ...]:
    sources = list(feed.sources)
    for each in feed.observed:
        source = sources[each.oracle]
        same = source.observations > 0 and each.value == source.value
        outlier = moved_ppm(value, each.value) > spec.outlier_ppm
        sources[each.oracle] = Source(
            value=each.value,
            median=source.median if same else value,
            repeats=source.repeats + 1 if same else 0,
            observations=source.observations + 1,
            outliers=source.outliers + outlier,
        )
    return tuple(sources)
