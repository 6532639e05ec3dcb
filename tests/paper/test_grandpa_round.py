"""The vectors of paritytech/finality-grandpa `round.rs`: Alice 4, Bob 7, Eve 3 of 14."""

from tests.paper.grandpa_chain import forked_at_e

from gridtokenx.finality.justifications import Stage
from gridtokenx.public.grandpa.round import CastVote, Equivocation, Round
from gridtokenx.public.grandpa.vote_graph import BlockRef

WEIGHTS = {"Alice": 4, "Bob": 7, "Eve": 3}


class Table:
    """A round on the forked chain of letters, base C, as all the vectors have it."""

    def __init__(self) -> None:
        self.chain = forked_at_e()
        self.round = Round(1, tuple(WEIGHTS.values()), self.chain.ref("C"))

    def prevote(self, who: str, block: str) -> Equivocation | None:
        return self._vote(Stage.PREVOTE, who, block)

    def precommit(self, who: str, block: str) -> Equivocation | None:
        return self._vote(Stage.PRECOMMIT, who, block)

    def ghost(self) -> BlockRef | None:
        return self.round.state.prevote_ghost

    def finalized(self) -> BlockRef | None:
        return self.round.state.finalized

    def _vote(self, stage: Stage, who: str, block: str) -> Equivocation | None:
        vote = CastVote(list(WEIGHTS).index(who), self.chain.ref(block), who.encode())
        return self.round.import_vote(stage, vote, self.chain.parent_of).equivocation


def test_threshold_is_a_strict_supermajority() -> None:
    assert Table().round.threshold == 10


def test_estimate_is_valid() -> None:
    table = Table()
    table.prevote("Alice", "FC")
    table.prevote("Bob", "ED")
    assert table.ghost() == (b"E", 6)
    assert table.round.state.estimate == (b"E", 6)
    assert not table.round.state.completable
    table.prevote("Eve", "F")
    assert table.ghost() == (b"E", 6)
    assert table.round.state.estimate == (b"E", 6)


def test_finalization() -> None:
    table = Table()
    table.precommit("Alice", "FC")
    table.precommit("Bob", "ED")
    assert table.finalized() is None
    table.prevote("Alice", "FC")
    table.prevote("Bob", "ED")
    table.prevote("Eve", "EA")
    assert table.finalized() == (b"E", 6)
    table.precommit("Eve", "EA")
    assert table.finalized() == (b"EA", 7)


def test_equivocate_does_not_double_count() -> None:
    table = Table()
    assert table.prevote("Eve", "FC") is None
    assert table.ghost() is None
    evidence = table.prevote("Eve", "ED")
    assert evidence is not None
    assert (evidence.first.target.hash, evidence.second.target.hash) == (b"FC", b"ED")
    assert table.prevote("Eve", "F") is None  # a third vote is not even stored
    assert len(table.round.votes(Stage.PREVOTE)) == 2
    assert table.ghost() is None
    assert table.prevote("Bob", "FA") is None
    assert table.ghost() == (b"FA", 8)


def test_vote_weight_discounts_equivocators() -> None:
    """Voters 1, 2, 3 of weights 1..5 voted, 1 and 5 equivocate: 1 + 5 + 2 + 3, no weight twice."""
    chain = forked_at_e()
    round_ = Round(1, (1, 2, 3, 4, 5), chain.ref("C"))
    for voter, block in ((0, "FA"), (1, "FA"), (2, "FA"), (0, "FB"), (4, "ED"), (4, "EC")):
        vote = CastVote(voter, chain.ref(block), b"")
        round_.import_vote(Stage.PREVOTE, vote, chain.parent_of)
    assert round_.threshold == 11
    assert round_.state.prevote_ghost == (b"FA", 8)
    round_.import_vote(Stage.PREVOTE, CastVote(4, chain.ref("FA"), b""), chain.parent_of)
    assert round_.state.prevote_ghost == (b"FA", 8)


def test_precommit_ghost_may_be_above_what_the_prevotes_finalise() -> None:
    table = Table()
    table.precommit("Alice", "FC")
    table.precommit("Bob", "FB")
    assert table.round.precommit_ghost() == (b"FB", 9)
    table.prevote("Alice", "FA")
    table.prevote("Bob", "FA")
    assert table.finalized() == (b"FA", 8)
    assert [vote.voter for vote in table.round.precommits_for(table.chain.ref("FA"))] == [0, 1]


def test_a_justification_leaves_out_equivocators_who_voted_elsewhere() -> None:
    table = Table()
    for who in WEIGHTS:
        table.prevote(who, "FA")
    table.precommit("Bob", "FA")
    table.precommit("Eve", "EC")
    table.precommit("Eve", "ED")
    assert table.finalized() == (b"FA", 8)
    assert table.round.precommits_for(table.chain.ref("FA")) == ()
    table.precommit("Alice", "FC")
    voters = [vote.voter for vote in table.round.precommits_for(table.chain.ref("FA"))]
    assert voters == [0, 1]


def test_a_vote_off_the_base_counts_as_seen_and_for_no_block() -> None:
    table = Table()
    table.precommit("Eve", "A")
    for who in ("Alice", "Bob"):
        table.prevote(who, "FC")
        table.precommit(who, "FC")
    assert table.finalized() == (b"FC", 10)
    assert table.round.state.completable
