"""Whatever members and strangers say about the set, in whatever order, a plain tally predicts it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.members_cluster import add, key, remove, replace
from tests.simulation.pbft_cluster import signer
from tests.stages import examples
from tests.unit.test_pbft_membership import Members

from gridtokenx.core.codec import Wire
from gridtokenx.core.quorum import quorum
from gridtokenx.oracle.chain.rounds import Observed, Source, empty_feed, reseat
from gridtokenx.pbft.membership import (
    MAX_MEMBERS,
    MIN_MEMBERS,
    PROPOSAL_LIFE_MS,
    ApproveChange,
    Change,
    WithdrawChange,
)

EVERYBODY = 8
PEOPLE = st.integers(0, EVERYBODY - 1)
CHANGES = st.one_of(
    st.builds(add, PEOPLE),
    st.builds(remove, PEOPLE),
    st.builds(lambda pair: replace(*pair), st.tuples(PEOPLE, PEOPLE)),
)
STEPS = st.lists(
    st.tuples(
        PEOPLE,
        st.one_of(
            CHANGES,
            st.integers(0, 3).map(lambda back: ("approve", back)),
            st.integers(0, 3).map(lambda back: ("approve", back)),
            st.integers(0, 3).map(lambda back: ("withdraw", back)),
            st.integers(0, 99),
        ),
        st.sampled_from((1_000, 1_000, 1_000, PROPOSAL_LIFE_MS // 2)),
    ),
    max_size=40,
)


@dataclass
class Tally:
    """The obvious way: lists of people, counted."""

    seats: list[int]
    now_ms: int = 0
    proposed: int = 0
    following: list[int] | None = None
    open: dict[int, tuple[Change, int, set[int], int]] = field(default_factory=dict)
    """By number: the change, its proposer, who stands for it, when it ends."""

    def tick(self, after_ms: int) -> None:
        self.now_ms += after_ms
        if self.following is not None:
            self.seats, self.following, self.open = self.following, None, {}
        self.open = {n: each for n, each in self.open.items() if each[3] > self.now_ms}

    def after(self, change: Change) -> list[int] | None:
        """The seats after a change; None if it is not allowed."""
        person = {key(i): i for i in range(EVERYBODY)}
        seats = list(self.seats)
        kind = type(change).__name__
        if kind == "AddMember":
            fits = person[change.key] not in seats and len(seats) < MAX_MEMBERS
            return [*seats, person[change.key]] if fits else None
        if person[change.key] not in seats:
            return None
        if kind == "RemoveMember":
            fits = len(seats) > MIN_MEMBERS
            return [each for each in seats if each != person[change.key]] if fits else None
        if person[change.by] in seats:
            return None
        return [person[change.by] if each == person[change.key] else each for each in seats]

    def propose(self, who: int, change: Change) -> None:
        others = self.open.values()
        if who not in self.seats or self.after(change) is None:
            return
        if any(each[0] == change or each[1] == who for each in others):
            return
        self.proposed += 1
        self.open[self.proposed] = (change, who, {who}, self.now_ms + PROPOSAL_LIFE_MS)
        self.count(self.proposed)

    def approve(self, who: int, number: int) -> None:
        if who in self.seats and number in self.open:
            self.open[number][2].add(who)
            self.count(number)

    def withdraw(self, who: int, number: int) -> None:
        if who in self.seats and number in self.open:
            if self.open[number][1] == who:
                del self.open[number]
            else:
                self.open[number][2].discard(who)

    def count(self, number: int) -> None:
        change, _, voices, _ = self.open[number]
        if len(voices) >= quorum(len(self.seats)):
            self.following = self.after(change)
            del self.open[number]


def spoken(tally: Tally, step: tuple) -> Iterator[tuple]:
    """What is said in a step: by one person; or a possible change, and then everybody's approval."""
    who, what, after_ms = step
    if not isinstance(what, int):
        yield step
        return
    seats = tally.seats if tally.following is None else tally.following
    free = [i for i in range(EVERYBODY) if i not in seats]
    possible = [remove(i) for i in seats] + [add(i) for i in free]
    possible += [replace(i, by=j) for i in seats for j in free]
    yield seats[who % len(seats)], possible[what % len(possible)], after_ms
    for i in range(EVERYBODY):
        yield (who + i) % EVERYBODY, ("approve", 0), 1_000


@given(st.integers(4, 6), STEPS)
@settings(max_examples=examples(80), deadline=None)
def test_the_set_changes_exactly_as_a_tally_says(n: int, steps: list) -> None:
    members, tally = Members(n), Tally(list(range(n)))
    sets = [members.current]
    for who, what, after_ms in (said for step in steps for said in spoken(tally, step)):
        tally.tick(after_ms)
        call: Wire
        if isinstance(what, tuple):
            verb, back = what
            number = max(1, tally.proposed - back)
            call = (ApproveChange if verb == "approve" else WithdrawChange)(proposal=number)
            getattr(tally, verb)(who, number)
        else:
            call = members.proposal(what)
            tally.propose(who, what)
        members.block((signer(who), call), after_ms=after_ms)
        expected = tally.seats if tally.following is None else tally.following
        assert members.current.members == tuple(key(i) for i in expected)
        assert members.open_numbers() == sorted(tally.open)
        if members.current != sets[-1]:
            sets.append(members.current)
    assert [each.set_id for each in sets] == list(range(len(sets)))
    for before, after in itertools.pairwise(sets):
        assert after.is_well_formed()
        assert len(set(before.members) ^ set(after.members)) in (1, 2)
        assert after.size >= min(MIN_MEMBERS, n)


@given(st.permutations(range(7)), st.integers(1, 7), st.sets(st.integers(0, 6)), st.integers(0, 3))
def test_seats_of_a_feed_follow_their_oracles(
    order: list[int], stay: int, observed: set[int], newcomers: int
) -> None:
    """Each oracle that stays keeps its observation and its history; nobody else has any."""
    feed = empty_feed(7)
    sources = tuple(Source(100 + i, 0, 0, 1, 0) for i in range(7))
    feed = type(feed)(
        0, tuple(Observed(i, 1_000 + i) for i in sorted(observed)), sources, None, None, None, 0,
        stale=True,
    )  # fmt: skip
    seats = [*order[:stay], *[None] * newcomers]
    moved = reseat(feed, seats)
    assert [each.oracle for each in moved.observed] == sorted(
        each.oracle for each in moved.observed
    )
    kept = {seats[each.oracle]: each.value for each in moved.observed}
    assert kept == {old: 1_000 + old for old in observed if old in seats}
    for new, old in enumerate(seats):
        assert moved.sources[new].value == (0 if old is None else 100 + old)
