"""Laws of what a new view proposes again, against random histories of honest voting.

A history is drawn as PBFT makes it: per view some of the replicas prepare the one block of that
view, some of those learn that it is prepared, some of those commit. Whatever a quorum committed must
come out of every quorum of view-changes. The vectors at the end are indy-plenum's
`test_new_view_builder.py`, as far as they apply to signed certificates.
"""

import random
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.simulation.pbft_script import Members
from tests.stages import examples

from gridtokenx.core.quorum import max_faulty, quorum
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.messages import PreparedCertificate, ViewChangeBody
from gridtokenx.pbft.view_change import (
    ViewChangeFault,
    ballots,
    check_new_view,
    check_view_change,
    choose,
    select_quorum,
)

FOUR = Members(4)
FIRST = [FOUR.block(after_ms=1_000 + i) for i in range(3)]
"""Three rivals for height 1."""
SECOND = [FOUR.block(FIRST[0], after_ms=1_000 + i) for i in range(2)]
"""Two rivals for height 2, upon the first."""
PREPARED = {
    (block.hash, view): FOUR.prepared(block, view)
    for block in (*FIRST, *SECOND)
    for view in range(4)
}


def body(replica: int, *prepared: PreparedCertificate, view: int = 9) -> ViewChangeBody:
    return ViewChangeBody(0, view, replica, None, prepared)


def at(block: ExecutedBlock, view: int) -> PreparedCertificate:
    return PREPARED[block.hash, view]


def chosen(*bodies: ViewChangeBody) -> list[bytes]:
    return [header.hash for header in choose(bodies, FOUR.genesis.header).headers]


class History:
    """Views 0, 1, 2, ... of n replicas, f of which lie in their view-changes."""

    def __init__(self, draw: random.Random, n: int, views: int) -> None:
        self.draw, self.n = draw, n
        self.liars = set(draw.sample(range(n), max_faulty(n)))
        self.known: list[PreparedCertificate | None] = [None] * n
        self.ever: list[PreparedCertificate] = []
        self.committed: set[bytes] = set()
        for view in range(views):
            self._view(view)

    def _view(self, view: int) -> None:
        block = self._proposal(view)
        if block is None:
            return
        voters = [i for i in range(self.n) if self.draw.random() < 0.8]
        if len(voters) < quorum(self.n):
            return
        certificate = PreparedCertificate(view, block.header, bytes(64), ())
        self.ever.append(certificate)
        aware = [i for i in voters if self.draw.random() < 0.8]
        for replica in aware:
            self.known[replica] = certificate
        if len(aware) >= quorum(self.n):
            self.committed.add(block.hash)

    def _proposal(self, view: int) -> ExecutedBlock | None:
        """What a correct choice demands of this view, else a new block (liars choose any quorum)."""
        if view == 0:
            return FIRST[0]
        headers = choose(self._quorum(view), FOUR.genesis.header).headers
        if not headers:
            return self.draw.choice(FIRST)
        return next(block for block in FIRST if block.hash == headers[0].hash)

    def _quorum(self, view: int) -> list[ViewChangeBody]:
        members = self.draw.sample(range(self.n), quorum(self.n))
        return [self._body(i, view) for i in members]

    def _body(self, replica: int, view: int) -> ViewChangeBody:
        """A liar hides what it knows, or shows any old certificate; it cannot forge one."""
        known = self.known[replica]
        if replica in self.liars:
            known = self.draw.choice([None, *self.ever])
        return ViewChangeBody(0, view, replica, None, () if known is None else (known,))

    def all_choices(self, view: int) -> set[bytes | None]:
        bodies = [self._body(i, view) for i in range(self.n)]
        quorums = combinations(bodies, quorum(self.n))
        headers = (choose(q, FOUR.genesis.header).headers for q in quorums)
        return {h[0].hash if h else None for h in headers}


@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 5, 6, 7]), st.integers(1, 6))
def test_what_was_committed_is_chosen_from_every_quorum(seed: int, n: int, views: int) -> None:
    history = History(random.Random(seed), n, views)
    assert len(history.committed) <= 1, "agreement"
    if history.committed:
        assert history.all_choices(views) == history.committed


def test_the_histories_do_commit_and_do_differ() -> None:
    """The law above is not satisfied by empty histories."""
    histories = [History(random.Random(seed), 4, 2) for seed in range(200)]
    assert sum(bool(h.committed) for h in histories) > 40
    assert sum(not h.committed for h in histories) > 10


def slow_choice(bodies: tuple[ViewChangeBody, ...]) -> list[bytes]:
    """The same by the words of the paper, one height at a time, without cleverness."""
    every = [c for b in bodies for c in b.prepared]
    parent, out = FOUR.genesis.hash, []
    for height in (1, 2):
        here = [c for c in every if c.header.height == height]
        best = [c for c in here if all(c.view >= other.view for other in here)]
        if not best or best[0].header.parent != parent:
            return out
        parent = best[0].header.hash
        out.append(parent)
    return out


@st.composite
def view_change_sets(draw: st.DrawFn) -> tuple[ViewChangeBody, ...]:
    """A quorum of view-changes in which one view never prepared two blocks at one height."""
    block_of = {
        (height, view): draw(st.sampled_from(FIRST if height == 1 else SECOND))
        for height in (1, 2)
        for view in range(4)
    }
    bodies = []
    for replica in range(3):
        certificates = [
            at(block_of[height, view], view)
            for height in (1, 2)
            if (view := draw(st.integers(-1, 3))) >= 0
        ]
        bodies.append(body(replica, *certificates))
    return tuple(bodies)


@given(view_change_sets(), st.permutations(range(3)))
def test_the_choice_is_the_papers_and_knows_no_order(
    bodies: tuple[ViewChangeBody, ...], order: list[int]
) -> None:
    expected = slow_choice(bodies)
    assert chosen(*bodies) == expected
    assert chosen(*(bodies[i] for i in order)) == expected


@given(view_change_sets())
def test_a_choice_is_a_chain_upon_the_base(bodies: tuple[ViewChangeBody, ...]) -> None:
    choice = choose(bodies, FOUR.genesis.header)
    parent = FOUR.genesis.header
    for header in choice.headers:
        assert (header.parent, header.height) == (parent.hash, parent.height + 1)
        parent = header
    assert choice.fresh_from == parent.height + 1


@given(view_change_sets(), st.integers(0, 2))
def test_backups_accept_the_choice_and_nothing_else(
    bodies: tuple[ViewChangeBody, ...], change: int
) -> None:
    changes = [FOUR.view_change(b.replica, 9, prepared=b.prepared) for b in bodies]
    good = FOUR.new_view(9, changes)
    choice = check_new_view(good.body, FOUR.validators, FOUR.genesis.header)
    right = list(ballots(choice, 9))
    wrong = [right[:-1], [*right, FOUR.ballot(FIRST[2], 9)], [FOUR.ballot(FIRST[1], 9), *right]]
    if wrong[change] == right:
        return
    bad = FOUR.new_view(9, changes, wrong[change])
    with pytest.raises(ViewChangeFault, match="wrong-choice"):
        check_new_view(bad.body, FOUR.validators, FOUR.genesis.header)


def test_certified_heads_raise_the_base() -> None:
    """The paper's min-s: what is proved committed is not proposed again, nor replaced."""
    head = FOUR.certified(FIRST[0])
    changes = [
        FOUR.view_change(0, 9, head=head, prepared=[at(SECOND[0], 2)]),
        FOUR.view_change(1, 9, prepared=[at(FIRST[0], 0), at(SECOND[1], 1)]),
        FOUR.view_change(2, 9),
    ]
    choice = choose([c.body for c in changes], FOUR.genesis.header)
    assert (choice.base, choice.fresh_from) == (1, 3)
    assert [h.hash for h in choice.headers] == [SECOND[0].hash]


def test_fabric_1111_all_view_changes_count_not_only_those_with_the_highest_checkpoint() -> None:
    """One replica proves 1 committed; that 2 is prepared is known only to one that lags behind it.

    Counting only the view-changes that hold the highest checkpoint would lose block 2, which a
    replica outside this quorum may have committed.
    """
    changes = [
        body(0),
        body(1, at(FIRST[0], 0), at(SECOND[0], 0)),
        FOUR.view_change(2, 9, head=FOUR.certified(FIRST[0])).body,
    ]
    assert chosen(*changes) == [SECOND[0].hash]


def test_heights_that_do_not_ascend_or_leave_the_window_are_refused() -> None:
    twice = body(0, at(FIRST[0], 0), at(FIRST[1], 1))
    with pytest.raises(ViewChangeFault, match="bad-heights"):
        check_view_change(twice, FOUR.validators)
    with pytest.raises(ViewChangeFault, match="unknown-replica"):
        check_view_change(body(4), FOUR.validators)
    with pytest.raises(ViewChangeFault, match="wrong-set"):
        check_view_change(ViewChangeBody(1, 9, 0, None, ()), FOUR.validators)


def test_a_quorum_is_of_exactly_this_view() -> None:
    changes = [FOUR.view_change(0, 2), FOUR.view_change(1, 3), FOUR.view_change(2, 2)]
    assert select_quorum(changes, 2, FOUR.validators) is None
    found = select_quorum([*changes, FOUR.view_change(3, 2)], 2, FOUR.validators)
    assert found is not None
    assert [change.body.replica for change in found] == [0, 2, 3]


# -- indy-plenum's vectors -------------------------------------------------------------------------


def test_indy_nothing_prepared_anywhere_gives_nothing() -> None:
    assert chosen(*(body(i) for i in range(4))) == []


def test_indy_three_prepared_the_same() -> None:
    """[none prepared, d1 prepared x 3] -> d1, from every quorum."""
    d1 = FIRST[0]
    bodies = [body(0), *(body(i, at(d1, 0)) for i in (1, 2, 3))]
    for three in combinations(bodies, 3):
        assert chosen(*three) == [d1.hash]


def test_indy_one_prepared_is_enough() -> None:
    """One certificate is a proof here; without signatures it would also need f + 1 pre-prepares."""
    d1 = FIRST[0]
    assert chosen(body(0), body(1, at(d1, 0)), body(2)) == [d1.hash]


def test_indy_the_higher_view_wins_over_the_older() -> None:
    d1, d2 = FIRST[0], FIRST[1]
    assert chosen(body(0, at(d1, 0)), body(1, at(d2, 1)), body(2, at(d1, 0))) == [d2.hash]


def test_indy_prepared_at_one_and_at_two() -> None:
    """One prepared d2 at 2, another only knows d1 at 1 -> [d1, d2]."""
    d1, d2 = FIRST[0], SECOND[0]
    assert chosen(body(0, at(d1, 0), at(d2, 0)), body(1, at(d1, 0)), body(2)) == [d1.hash, d2.hash]


def test_indy_stops_at_the_first_gap() -> None:
    """Number 2 without number 1 cannot have been committed, because prepares are chained."""
    assert chosen(body(0, at(SECOND[0], 0)), body(1), body(2)) == []


def test_indy_stops_where_the_chain_breaks() -> None:
    older, newer = SECOND[0], FIRST[1]
    bodies = (body(0, at(FIRST[0], 0), at(older, 0)), body(1, at(newer, 1)), body(2))
    assert chosen(*bodies) == [newer.hash]


def test_indy_what_does_not_map_two_rivals_prepared_in_one_view() -> None:
    """Indy's [d2 prepared, d1 x 3] -> d1 and [d2, d2, d1, d1] -> "wait for more".

    Its view-changes are unsigned claims, so one may claim what never was, and the primary weighs them, or
    waits. Ours carry certificates: two rivals of one view would need f + 1 that prepared both, which
    is beyond the assumptions. So no quorum is ever undecided; the choice is a function even then.
    """
    d1, d2 = at(FIRST[0], 0), at(FIRST[1], 0)
    for one in combinations(range(4), 3):
        for other in combinations(range(4), 3):
            assert len(set(one) & set(other)) > max_faulty(4)
    claim = d2.prepares[:1]
    with pytest.raises(ViewChangeFault, match="below-quorum"):
        check_view_change(body(0, structs.replace(d2, prepares=claim)), FOUR.validators)
    bodies = [body(0, d2), body(1, d2), body(2, d1), body(3, d1)]
    assert len({tuple(chosen(*order)) for order in permutations(bodies)}) == 1
