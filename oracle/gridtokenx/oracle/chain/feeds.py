"""The feeds module: signed observations in, closed rounds out (`rounds.py` has the rules).

An observation is a transaction of an oracle, unique by (oracle, feed, round). Its validity depends
on block time and state alone. A round that nobody observes costs nothing: it is passed over.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Int64, ShortText, UInt63
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Map, State
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.chain.rounds import (
    Feed,
    Outcome,
    close_round,
    empty_feed,
    is_over,
    observe,
    reseat,
    round_at,
    skip_missed,
)
from gridtokenx.pbft.membership import Membership, current_set


class SubmitObservation(Wire, frozen=True, tag="feeds.submit_observation"):
    """What one oracle saw of one feed in one round."""

    feed: ShortText
    round: UInt63
    value: Int64
    """In the feed's unit."""
    source: ShortText
    """Where the oracle looked, in its own words; for the record."""


class RoundClosed(Wire, frozen=True, tag="feeds.round_closed"):
    """A round closed, with or without a value."""

    feed: ShortText
    outcome: Outcome


class ValuePublished(Wire, frozen=True, tag="feeds.value_published"):
    """A new value for those who go by the feed."""

    feed: ShortText
    outcome: Outcome


class RoundsMissed(Wire, frozen=True, tag="feeds.rounds_missed"):
    """Rounds that nobody observed are over: the feed is stale."""

    feed: ShortText
    first: UInt63
    count: UInt63


FEEDS: Final = Map("feeds.feed", Feed)
"""(feed) -> its state."""


class Feeds(Module):
    """All feeds of the chain.

    Args:
        specs: the feeds, by genesis.
        membership: tells of new sets of oracles; observations name them by index.
        genesis_ms: network time from which rounds are numbered.
    """

    name = "feeds"
    events = (RoundClosed, RoundsMissed, ValuePublished)

    def __init__(self, specs: Sequence[FeedSpec], membership: Membership, genesis_ms: int) -> None:
        self.specs: Final = {spec.feed: spec for spec in specs}
        self._genesis_ms: Final = genesis_ms
        membership.on_handover(self._reseat)

    def genesis(self, ctx: Context) -> None:
        """Every feed starts stale."""
        oracles = current_set(ctx.state).size
        for name in self.specs:
            FEEDS.put(ctx.state, empty_feed(oracles), name)

    def _reseat(self, ctx: Context, before: ValidatorSet, after: ValidatorSet) -> None:
        """Another set: who left counts no longer, who stays keeps its history, who came has none."""
        seats = [before.index_of(key) for key in after.members]
        for name in self.specs:
            FEEDS.put(ctx.state, reseat(_required(ctx.state, name), seats), name)

    @handles(SubmitObservation)
    def submit_observation(self, ctx: Context, call: SubmitObservation) -> None:
        """Take one oracle's observation of the running round."""
        oracle = current_set(ctx.state).index_of(ctx.sender)
        if oracle is None:
            raise CallFailed("not-an-oracle", "only the chain's oracles observe")
        spec = self.specs.get(call.feed)
        if spec is None:
            raise CallFailed("unknown-feed", f"{call.feed}; there are: {', '.join(self.specs)}")
        if not spec.minimum <= call.value <= spec.maximum:
            raise CallFailed("out-of-range", f"{call.value} {spec.unit}")
        feed = self._up_to_date(ctx, spec)
        running = round_at(spec, self._genesis_ms, ctx.timestamp_ms)
        if call.round != running or call.round != feed.round:
            raise CallFailed("round-not-open", f"round {call.round}; {feed.round} is next to close")
        if any(each.oracle == oracle for each in feed.observed):
            raise CallFailed("observed-already", f"round {call.round}")
        FEEDS.put(ctx.state, observe(feed, oracle, call.value), call.feed)

    def end_block(self, ctx: Context) -> None:
        """Close rounds that are complete or over."""
        oracles = current_set(ctx.state).size
        for spec in self.specs.values():
            feed = self._up_to_date(ctx, spec)
            if len(feed.observed) == oracles:
                feed = self._close(ctx, spec, feed)
            FEEDS.put(ctx.state, feed, spec.feed)

    def _up_to_date(self, ctx: Context, spec: FeedSpec) -> Feed:
        """The feed with every round closed or passed over whose deadline is over."""
        feed = _required(ctx.state, spec.feed)
        if feed.observed and is_over(spec, self._genesis_ms, feed.round, ctx.timestamp_ms):
            feed = self._close(ctx, spec, feed)
        skipped = skip_missed(feed, spec, self._genesis_ms, ctx.timestamp_ms)
        if skipped.round > feed.round:
            missed = RoundsMissed(
                feed=spec.feed, first=feed.round, count=skipped.round - feed.round
            )
            ctx.emit(missed)
        return skipped

    def _close(self, ctx: Context, spec: FeedSpec, feed: Feed) -> Feed:
        needed = 2 * current_set(ctx.state).faulty + 1
        closed, outcome = close_round(feed, spec, needed, ctx.timestamp_ms)
        ctx.emit(RoundClosed(feed=spec.feed, outcome=outcome))
        if closed.published is not feed.published and closed.published is not None:
            ctx.emit(ValuePublished(feed=spec.feed, outcome=closed.published))
        return closed

    def check_invariants(self, state: State) -> Iterator[str]:
        """Observations are one per oracle and in range; published values are in range."""
        for name, spec in self.specs.items():
            feed = _required(state, name)
            oracles = [each.oracle for each in feed.observed]
            count = current_set(state).size
            if len(feed.sources) != count or any(oracle >= count for oracle in oracles):
                yield f"{name}: its sources are not the {count} oracles"
            if oracles != sorted(set(oracles)):
                yield f"{name}: an oracle observed round {feed.round} twice"
            values = [each.value for each in feed.observed]
            values += [each.value for each in (feed.latest, feed.published) if each is not None]
            if any(not spec.minimum <= value <= spec.maximum for value in values):
                yield f"{name}: a value outside {spec.minimum} .. {spec.maximum}"


def _required(state: State, name: str) -> Feed:
    feed = FEEDS.get(state, name)
    if feed is None:
        raise AssertionError(f"feed {name} was not in genesis")
    return feed
