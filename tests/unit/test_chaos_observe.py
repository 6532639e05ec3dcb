"""How a chain comes through a fault, as its replicas show it; and how soon it must."""

import time

import pytest

from gridtokenx.lab.chaos import bounds
from gridtokenx.lab.chaos.load import Acknowledged
from gridtokenx.lab.chaos.observe import Observer
from gridtokenx.lab.chaos.wire import Seen
from gridtokenx.lab.faults import Crash, Partition, Pause
from gridtokenx.pbft.rotation import PERIOD_VIEWS
from gridtokenx.pbft.timing import Timing

TIMING = Timing()
PAUSE = Pause(nodes=(0,))


def observer(*, bound_ms: int = 0, asks_work: bool = False, rotates: bool = False) -> Observer:
    made = Observer(
        4,
        TIMING,
        blocks=2,
        bound_ms=bound_ms,
        asks_work=asks_work,
        note=lambda _: None,
        rotates=rotates,
    )
    made.start_clock()
    for index in range(4):
        made.seen(index, Seen(10, 0, 0))
    return made


class Clock:
    """Time that passes when it is told to."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gridtokenx.lab.chaos.observe.time", made)
    return made


def grow(chain: Observer, height: int, *indices: int) -> None:
    for index in indices:
        chain.seen(index, Seen(height, chain.view, chain.leader))


def test_a_quorum_goes_on_and_the_hurt_one_is_level_when_it_has_caught_up() -> None:
    chain = observer()
    chain.begin(1, PAUSE, "pause", [0], keeps_quorum=True)
    grow(chain, 11, 1, 2, 3)
    assert chain.watches[0].went_on_s is None, "it may have been in flight before"
    grow(chain, 12, 1, 2, 3)
    assert chain.watches[0].went_on_s is not None
    chain.end(1)
    grow(chain, 14, 1, 2, 3)
    assert chain.unsettled
    grow(chain, 14, 0)
    assert not chain.unsettled
    (outcome,) = chain.outcomes(time.monotonic())
    assert not outcome.broken
    assert outcome.level_ms is not None
    assert outcome.hit == (0,)


def test_a_traitor_is_not_waited_for() -> None:
    chain = observer()
    chain.byzantine.add(0)
    chain.begin(1, PAUSE, "treason", [0], keeps_quorum=True)
    chain.end(1)
    grow(chain, 12, 1, 2, 3)
    assert not chain.unsettled


def test_new_work_is_asked_for_that_was_sent_after_the_end() -> None:
    chain = observer(asks_work=True)
    before_s = time.monotonic()
    chain.begin(1, PAUSE, "pause", [0], keeps_quorum=True)
    chain.end(1)
    grow(chain, 13, 0, 1, 2, 3)
    chain.acknowledged(Acknowledged(bytes(32), 13, before_s, time.monotonic()))
    assert chain.unsettled
    chain.acknowledged(Acknowledged(bytes(32), 13, time.monotonic(), time.monotonic()))
    assert not chain.unsettled


def test_who_is_late_has_broken_its_bound(clock: Clock) -> None:
    chain = observer(bound_ms=1)
    chain.begin(1, PAUSE, "pause", [0], keeps_quorum=False)
    chain.end(1)
    clock.now_s += 0.01
    assert not chain.unsettled, "given up"
    assert "level" in chain.outcomes(0.0)[0].broken


def test_a_fault_in_the_way_puts_the_bound_off_until_it_is_over(clock: Clock) -> None:
    chain = observer(bound_ms=1)
    chain.begin(1, PAUSE, "pause", [0], keeps_quorum=False)
    chain.end(1)
    chain.begin(2, Partition(), "partition", [0, 1], keeps_quorum=False)
    clock.now_s += 0.01
    assert {watch.number for watch in chain.unsettled} == {1, 2}
    assert not chain.watches[0].broken(clock.now_s)
    assert chain.watches[0].deadline_s() is None


def test_nothing_is_promised_without_a_quorum_or_under_a_second_fault() -> None:
    chain = observer()
    chain.begin(1, Partition(), "halves", [0, 1], keeps_quorum=False)
    chain.begin(2, PAUSE, "pause", [2], keeps_quorum=True)
    assert [outcome.went_on_bound_ms for outcome in chain.outcomes(0.0)] == [None, None]


@pytest.mark.parametrize("leader", range(4))
def test_each_further_hurt_leader_takes_twice_as_long(leader: int) -> None:
    waits = [
        bounds.goes_on_ms({(leader + i) % 4 for i in range(hurt)}, leader, 4, TIMING)
        for hurt in range(4)
    ]
    assert waits[0] == 5_000
    assert waits[1] == 9_000
    assert waits[2] - waits[1] == 2 * TIMING.view_timeout_ms
    assert waits[3] - waits[2] == 4 * TIMING.view_timeout_ms
    assert bounds.goes_on_ms({(leader + 1) % 4}, leader, 4, TIMING) == waits[0]


def test_links_and_processes_that_were_lost_take_longer() -> None:
    short = bounds.level_ms(PAUSE, 5_000, 2, TIMING)
    assert short == 16_000
    assert bounds.level_ms(PAUSE, 60_000, 2, TIMING) == short + 10_000
    assert bounds.level_ms(Crash(nodes=(0,)), 1_000, 2, TIMING) == short + 18_000


def test_a_machine_without_a_free_processor_gets_more_slack_up_to_a_point() -> None:
    assert bounds.slack_ms(0.5, 2) == bounds.slack_ms(2.0, 2) == bounds.SLACK_MS
    assert bounds.slack_ms(4.0, 2) == 2 * bounds.SLACK_MS
    assert bounds.slack_ms(500.0, 2) == bounds.MOST_SLACKS * bounds.SLACK_MS


def test_a_leader_whose_turn_comes_during_a_fault_costs_a_view_change_and_a_turn_does_not() -> None:
    chain = observer(rotates=True)
    chain.begin(1, Pause(nodes=(2,)), "pause", [2], keeps_quorum=True)
    assert chain.watches[0].goes_on_bound_ms > TIMING.view_timeout_ms
    for view, leader in ((PERIOD_VIEWS, 1), (2 * PERIOD_VIEWS, 2), (2 * PERIOD_VIEWS + 1, 3)):
        chain.seen(3, Seen(10, view, leader))
    assert chain.changes == 1
    chain.seen(3, Seen(10, 3 * PERIOD_VIEWS + 2, 1))
    assert chain.changes == 3
