"""The oracles change while feeds go on: who leaves counts no longer, who joins must report."""

import pytest
from tests.oracle_world import CHAIN, NETWORK_MS, ORACLES, PRICE, OracleWorld

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import KeyedHashSigner, sha256
from gridtokenx.core.quorum import quorum
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.feeds import FEEDS, RoundClosed, SubmitObservation
from gridtokenx.oracle.chain.rounds import NEW_SOURCE, Feed, Outcome, Status
from gridtokenx.pbft.membership import (
    OPEN,
    AddMember,
    ApproveChange,
    Change,
    ProposeChange,
    RemoveMember,
    ReplaceMember,
    SetEntered,
    new_key,
    possession_bytes,
    validators_of,
)

ROUND_MS = PRICE.round_ms
NEWCOMER = KeyedHashSigner(sha256(b"a new oracle"))
EVERYBODY = {signer.public_key: signer for signer in (*ORACLES, NEWCOMER)}
CLOCK_NONCE = NETWORK_MS // 100
"""As a person's client numbers transactions: from the clock."""


class Oracles(OracleWorld):
    """An oracle world in which members decide."""

    def __init__(self) -> None:
        super().__init__()
        self.nonce = CLOCK_NONCE
        self.block(at_ms=1)

    def say(self, by: KeyedHashSigner, call: Wire) -> list[str]:
        self.nonce += 1
        return self.block(sign_transaction(by, CHAIN, self.nonce, [call]))

    def seats(self) -> list[KeyedHashSigner]:
        return [EVERYBODY[key] for key in validators_of(self.head.state).members]

    def change(self, change: Change) -> None:
        """Decide it; the last block made is the first of the new set."""
        self.propose(change)
        self.agree()

    def propose(self, change: Change) -> None:
        members, newcomer = validators_of(self.head.state), new_key(change)
        what = possession_bytes(CHAIN, members.set_id, change)
        proof = None if newcomer is None else EVERYBODY[newcomer].sign(what)
        assert self.say(self.seats()[0], ProposeChange(change=change, proof=proof)) == ["ok"]

    def agree(self) -> None:
        """Enough others approve the last proposal in one block; the set's first block follows."""
        number, said = OPEN.get(self.state)[-1].proposal, []
        for other in self.seats()[1 : quorum(len(self.seats()))]:
            self.nonce += 1
            call = ApproveChange(proposal=number)
            said.append(sign_transaction(other, CHAIN, self.nonce, [call]))
        assert set(self.block(*said)) == {"ok"}
        self.block()
        assert self.events(SetEntered)

    def sees(self, by: KeyedHashSigner, round_: int, value: int) -> list[str]:
        return self.see(round_, {by: value})

    def see(self, round_: int, values: dict[KeyedHashSigner, int]) -> list[str]:
        """One block of observations."""
        return self.block(*(self.observation(by, round_, values[by]) for by in values))

    def observation(self, by: KeyedHashSigner, round_: int, value: int) -> Transaction:
        call = SubmitObservation(feed=PRICE.feed, round=round_, value=value, source="test")
        return sign_transaction(by, CHAIN, round_, [call])

    def feed(self) -> Feed:
        found = FEEDS.get(self.state, PRICE.feed)
        assert found is not None
        return found

    def closed(self) -> Outcome | None:
        found = self.events(RoundClosed)
        return found[0].outcome if found else None

    def wait_for_round(self) -> int:
        """Begin the next round that is wholly ahead."""
        round_ = (self.now_ms - NETWORK_MS) // ROUND_MS + 1
        self.run_to(round_ * ROUND_MS)
        return round_


@pytest.fixture
def world() -> Oracles:
    return Oracles()


def join() -> AddMember:
    return AddMember(key=NEWCOMER.public_key, label="another operator")


def test_who_joins_must_report_and_counts(world: Oracles) -> None:
    round_ = world.wait_for_round()
    assert world.sees(NEWCOMER, round_, 4_000_000) == ["refused"]
    world.change(join())
    round_ = world.wait_for_round()
    for oracle in ORACLES:
        assert world.sees(oracle, round_, 4_000_000) == ["ok"]
    assert world.closed() is None, "four of five"
    assert world.sees(NEWCOMER, round_, 4_000_000) == ["ok"]
    outcome = world.closed()
    assert outcome is not None
    assert (outcome.status, outcome.observations) == (Status.FRESH, 5)
    assert world.feed().sources[4].observations == 1


def test_who_leaves_is_taken_out_of_the_open_round(world: Oracles) -> None:
    world.change(join())
    world.propose(RemoveMember(key=ORACLES[1].public_key))
    round_ = world.wait_for_round()
    world.see(round_, {ORACLES[1]: 9_000_000, ORACLES[0]: 4_000_000, ORACLES[2]: 4_000_000})
    world.agree()
    assert [each.oracle for each in world.feed().observed] == [0, 1], "seats close up"
    assert world.sees(ORACLES[1], round_, 9_000_000) == ["refused"]
    assert world.see(round_, {ORACLES[3]: 4_000_000, NEWCOMER: 4_000_000}) == ["ok", "ok"]
    outcome = world.closed()
    assert outcome is not None
    assert (outcome.value, outcome.observations) == (4_000_000, 4)


def test_a_round_that_waited_for_the_one_that_left_closes(world: Oracles) -> None:
    world.change(join())
    world.propose(RemoveMember(key=NEWCOMER.public_key))
    round_ = world.wait_for_round()
    for oracle in ORACLES:
        world.sees(oracle, round_, 4_000_000)
    assert world.closed() is None
    world.agree()
    outcome = world.closed()
    assert outcome is not None, "in the first block of the smaller set"
    assert outcome.observations == 4


def test_histories_stay_with_their_oracles(world: Oracles) -> None:
    world.change(join())
    round_ = world.wait_for_round()
    for value, oracle in enumerate((*ORACLES, NEWCOMER), start=4_000_000):
        world.sees(oracle, round_, value)
    before = world.feed().sources
    assert [source.value for source in before] == list(range(4_000_000, 4_000_005))
    world.change(RemoveMember(key=ORACLES[0].public_key))
    assert world.feed().sources == before[1:]


def test_a_rotated_key_begins_anew_in_its_seat(world: Oracles) -> None:
    round_ = world.wait_for_round()
    for oracle in ORACLES:
        world.sees(oracle, round_, 4_000_000)
    before = world.feed().sources
    world.change(
        ReplaceMember(key=ORACLES[2].public_key, by=NEWCOMER.public_key, label="the same operator")
    )
    assert world.feed().sources == (before[0], before[1], NEW_SOURCE, before[3])
    round_ = world.wait_for_round()
    assert world.sees(ORACLES[2], round_, 4_000_000) == ["refused"]
    for oracle in (ORACLES[0], ORACLES[1], NEWCOMER, ORACLES[3]):
        assert world.sees(oracle, round_, 4_000_000) == ["ok"]
    assert world.closed() is not None


def test_decisions_do_not_use_up_the_numbers_of_observations(world: Oracles) -> None:
    """A person decides with numbers from the clock; the oracle's own are rounds, and small."""
    world.change(join())
    round_ = world.wait_for_round()
    for oracle in (*ORACLES, NEWCOMER):
        assert world.sees(oracle, round_, 4_000_000) == ["ok"]


def test_decisions_are_members_and_cost_quota(world: Oracles) -> None:
    stranger = ProposeChange(change=RemoveMember(key=ORACLES[0].public_key), proof=None)
    with pytest.raises(InvalidTransaction, match="not-an-oracle"):
        world.ledger.admit(
            world.state, sign_transaction(NEWCOMER, CHAIN, 1, [stranger]), world.now_ms
        )
