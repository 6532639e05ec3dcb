"""Feed rounds on the real ledger of the oracle chain: medians, deadlines, staleness, doubt."""

import pytest
from msgspec import structs
from tests.oracle_world import CHAIN, NETWORK_MS, ORACLES, PRICE, OracleWorld

from gridtokenx.core.keys import sha256
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.oracle.chain.feeds import (
    FEEDS,
    RoundClosed,
    RoundsMissed,
    SubmitObservation,
    ValuePublished,
)
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.chain.rounds import Feed, Outcome, Status

ROUND_MS = PRICE.round_ms
VALUES = (3_900_000, 3_950_000, 4_000_000, 4_100_000)


@pytest.fixture
def world() -> OracleWorld:
    world = OracleWorld()
    world.block(at_ms=1)
    return world


def feed(world: OracleWorld) -> Feed:
    found = FEEDS.get(world.state, PRICE.feed)
    assert found is not None
    return found


def start_round(world: OracleWorld, round_: int) -> None:
    world.run_to(round_ * ROUND_MS)


def hold_round(world: OracleWorld, round_: int, *values: int | None) -> Outcome:
    """Oracle i observes values[i] (None: is silent); the outcome at the latest by the deadline."""
    start_round(world, round_)
    observations = [
        world.observe(oracle, round_, value)
        for oracle, value in enumerate(values)
        if value is not None
    ]
    world.block(*observations)
    while not (closed := world.events(RoundClosed)):
        assert world.now_ms < NETWORK_MS + round_ * ROUND_MS + PRICE.deadline_ms + 1_000
        world.block()
    return closed[0].outcome


def test_a_round_closes_as_soon_as_all_have_reported(world: OracleWorld) -> None:
    outcome = hold_round(world, 1, *VALUES)
    assert (outcome.status, outcome.value, outcome.observations) == (Status.FRESH, VALUES[2], 4)
    assert outcome.closed_ms == NETWORK_MS + ROUND_MS + 1_000
    assert [event.outcome for event in world.events(ValuePublished)] == [outcome]
    assert not feed(world).stale


def test_a_silent_oracle_delays_nothing_past_the_deadline(world: OracleWorld) -> None:
    outcome = hold_round(world, 1, *VALUES[:3], None)
    assert (outcome.status, outcome.value) == (Status.FRESH, VALUES[1])
    assert outcome.closed_ms == NETWORK_MS + ROUND_MS + PRICE.deadline_ms


def test_too_few_observations_make_the_feed_stale(world: OracleWorld) -> None:
    hold_round(world, 1, *VALUES)
    outcome = hold_round(world, 2, VALUES[0], VALUES[1], None, None)
    assert outcome.status is Status.STALE
    state = feed(world)
    assert state.stale
    assert state.published is not None
    assert state.published.round == 1


def test_rounds_that_nobody_observes_are_passed_over_at_once(world: OracleWorld) -> None:
    hold_round(world, 1, *VALUES)
    world.block(at_ms=1_000 * ROUND_MS + 1)
    (missed,) = world.events(RoundsMissed)
    assert (missed.first, missed.count) == (2, 998)
    assert (feed(world).stale, feed(world).stale_rounds) == (True, 999)
    assert hold_round(world, 1_001, *VALUES).status is Status.FRESH


def test_one_liar_cannot_move_the_value_out_of_the_honest_range(world: OracleWorld) -> None:
    for round_, lie in enumerate((0, 20_000_000), start=1):
        outcome = hold_round(world, round_, lie, *VALUES[1:])
        assert VALUES[1] <= outcome.value <= VALUES[3]
    assert feed(world).sources[0].outliers == 2


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("out-of-range", {"value": 20_000_001}),
        ("refused", {"round_": 0}),
        ("refused", {"round_": 2}),
        ("refused", {"feed": "weather"}),
    ],
)
def test_refused_observations(world: OracleWorld, code: str, changes: dict[str, object]) -> None:
    start_round(world, 1)
    arguments: dict[str, object] = {"oracle": 0, "round_": 1, "value": VALUES[0], **changes}
    assert world.block(world.observe(**arguments)) == [code]  # type: ignore[arg-type]
    assert feed(world).observed == ()


def test_an_oracle_observes_once_and_only_oracles_do(world: OracleWorld) -> None:
    start_round(world, 1)
    codes = world.block(world.observe(0, 1, VALUES[0]), world.observe(0, 1, VALUES[3]))
    assert codes == ["refused", "ok"]
    stranger = structs.replace(world.observe(0, 1, 5).body, sender=sha256(b"stranger"))
    with pytest.raises(InvalidTransaction, match="not-an-oracle"):
        world.ledger.admit(
            world.state, structs.replace(world.observe(0, 1, 5), body=stranger), world.now_ms
        )


def test_whatever_an_oracle_sends_one_observation_a_round_is_included(world: OracleWorld) -> None:
    """Failing ones were free and without number: they filled blocks in which readings were missing."""
    start_round(world, 1)
    flood = [world.observe(0, round_, -1) for round_ in (1, 1, 0, 2, 1)]
    assert world.block(*flood) == ["refused"] * 4 + ["out-of-range"]
    spare = world.observe(0, 1, VALUES[0])
    with pytest.raises(InvalidTransaction, match="observed-already"):
        world.ledger.admit(world.state, spare, world.now_ms)
    start_round(world, 2)
    assert world.block(world.observe(0, 2, VALUES[0])) == ["ok"]


def test_one_transaction_observes_a_feed_once(world: OracleWorld) -> None:
    start_round(world, 1)
    call = SubmitObservation(feed=PRICE.feed, round=1, value=-1, source="twice")
    twice = sign_transaction(ORACLES[0], CHAIN, 900, [call, call])
    assert world.block(twice) == ["refused"]


def test_an_observation_that_comes_early_waits_for_its_round(world: OracleWorld) -> None:
    world.run_to(ROUND_MS - 500)
    early = world.observe(0, 1, VALUES[0])
    world.ledger.admit(world.state, early, world.now_ms)
    assert not world.ledger.admission.ready(world.state, early.body)
    assert world.block(early, at_ms=ROUND_MS - 1) == ["refused"]
    assert world.block(early, at_ms=ROUND_MS) == ["ok"]


def test_an_observation_after_the_deadline_is_too_late(world: OracleWorld) -> None:
    world.run_to(ROUND_MS + PRICE.deadline_ms)
    assert world.block(world.observe(0, 1, VALUES[0])) == ["round-not-open"]


def test_small_moves_wait_for_the_heartbeat(world: OracleWorld) -> None:
    published = []
    for round_ in range(1, 9):
        hold_round(world, round_, *(value + round_ for value in VALUES))
        published += [event.outcome.round for event in world.events(ValuePublished)]
    assert published == [1, 7]
    assert feed(world).latest.round == 8  # type: ignore[union-attr]


def test_a_jump_is_published_only_when_it_is_confirmed(world: OracleWorld) -> None:
    hold_round(world, 1, *VALUES)
    doubled = [2 * value for value in VALUES]
    assert hold_round(world, 2, *doubled).status is Status.UNCERTAIN
    assert feed(world).published.round == 1  # type: ignore[union-attr]
    assert hold_round(world, 3, *doubled).status is Status.FRESH
    assert feed(world).published.round == 3  # type: ignore[union-attr]


def test_a_spike_is_never_published(world: OracleWorld) -> None:
    hold_round(world, 1, *VALUES)
    hold_round(world, 2, *(4 * value for value in VALUES))
    assert hold_round(world, 3, *VALUES).status is Status.FRESH
    state = feed(world)
    assert (state.pending, state.published.round) == (None, 1)  # type: ignore[union-attr]


def test_a_stuck_source_is_left_out_while_the_others_move() -> None:
    spec = FeedSpec(feed=PRICE.feed, unit="u", minimum=0, maximum=20_000_000, stuck_rounds=5)
    world = OracleWorld(feeds=(spec,))
    counted = []
    for round_ in range(1, 9):
        moving = [value + 50_000 * round_ for value in VALUES[1:]]
        counted.append(hold_round(world, round_, VALUES[0], *moving).observations)
    assert counted == [4, 4, 4, 4, 4, 3, 3, 3]


def test_a_price_that_does_not_move_sticks_nobody() -> None:
    spec = FeedSpec(feed=PRICE.feed, unit="u", minimum=0, maximum=20_000_000, stuck_rounds=3)
    world = OracleWorld(feeds=(spec,))
    assert {hold_round(world, r, *VALUES).observations for r in range(1, 9)} == {4}


def test_the_oracles_of_the_test_are_four() -> None:
    assert len(ORACLES) == 4
