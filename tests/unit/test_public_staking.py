"""Staking, rule by rule: what each call does, what it refuses, and what an era makes of it."""

import pytest
from tests.public_ledger import VALIDATORS, Chain, account, key, public_genesis

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.units import GRID
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.runtime import Executed, ExecutedBlock, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.public.chain import PublicChain, public_chain
from gridtokenx.public.staking import (
    GRID_DENOM,
    Bond,
    Candidate,
    Chill,
    Nominate,
    Nomination,
    SetSessionKey,
    Staking,
    Stand,
    Unbond,
    Withdraw,
    prove_session_key,
)
from gridtokenx.public.staking.calls import (
    Displaced,
    ElectionFailed,
    EraBegan,
    Stood,
    ValidatorElected,
    ValidatorLeft,
)
from gridtokenx.public.staking.module import MAX_UNLOCKING, PURPOSE

ERA = 10


class Staked:
    """The public ledger; blocks in slots that one names."""

    def __init__(self, **changes: object) -> None:
        self.genesis = public_genesis(**({"era_slots": ERA, "unbonding_eras": 2} | changes))
        self.public: PublicChain = public_chain(self.genesis, KeyedHashVerifier())
        self.chain = Chain(
            self.public.ledger, self.public.ledger.admission, self.public.genesis_block()
        )
        self.slot = self.staking.rules.first_slot

    @property
    def staking(self) -> Staking:
        return self.public.staking

    @property
    def state(self) -> State:
        return self.chain.state

    @property
    def head(self) -> ExecutedBlock:
        return self.chain.head

    @property
    def following(self) -> ValidatorSet:
        return self.staking.validators_of(self.head.state)

    def names(self) -> set[str]:
        return {name for name in (*VALIDATORS, "alice", "bob") if self.session(name)}

    def session(self, name: str) -> bool:
        return key(f"{name} session") in self.following.members

    def call(self, by: str, *calls: Wire, slots: int = 1) -> str:
        """A block with these calls of one sender; the first refusal, or ok."""
        self.slot += slots
        nonce = self.chain.admission.next_nonce(self.state, key(by))
        made = sign_transaction(account(by), self.chain.ledger.chain_id, nonce, calls, fee=GRID)
        proposal = Proposal(
            round=self.slot, timestamp_ms=self.head.header.timestamp_ms + 6_000 * slots
        )
        executed, refused = self.chain.ledger.build(self.head, proposal, [made] if calls else [])
        assert self.chain.ledger.execute(self.head, executed.block).hash == executed.hash
        self.chain.blocks.append(executed)
        assert self.chain.ledger.check_invariants(executed.state) == []
        if refused:
            return "kept out"
        codes = [result.code for event in self.chain.events(Executed) for result in event.results]
        return next((code for code in codes if code != "ok"), "ok")

    def next_era(self) -> None:
        """The first block of the next era."""
        self.call("alice", slots=ERA - (self.slot - self.staking.rules.first_slot) % ERA)

    def stand(self, name: str, session: str | None = None) -> Stand:
        signer = account(session or f"{name} session")
        proof = prove_session_key(signer, self.chain.ledger.chain_id, key(name))
        return Stand(session_key=signer.public_key, proof=proof)

    def bonded(self, name: str) -> int:
        return self.staking.bonded.read(self.state, 0, key(name))

    def locked(self, name: str) -> int:
        return self.public.tokens.locked(self.state, GRID_DENOM, key(name), PURPOSE)

    def free(self, name: str) -> int:
        return self.public.tokens.balance(self.state, GRID_DENOM, key(name))


@pytest.fixture
def at() -> Staked:
    return Staked()


# -- stake -----------------------------------------------------------------------------------------


def test_bonding_locks_and_more_can_be_bonded(at: Staked) -> None:
    assert at.call("alice", Bond(150 * GRID)) == "ok"
    assert at.call("alice", Bond(50 * GRID)) == "ok"
    assert (at.bonded("alice"), at.locked("alice")) == (200 * GRID, 200 * GRID)
    assert at.free("alice") == (1_000 - 200 - 2) * GRID


def test_what_one_does_not_have_can_not_be_bonded(at: Staked) -> None:
    assert at.call("alice", Bond(1_001 * GRID)) == "insufficient-funds"
    assert at.locked("alice") == 0


def test_unbonded_stake_is_free_after_the_period_and_not_before(at: Staked) -> None:
    at.call("alice", Bond(200 * GRID))
    assert at.call("alice", Unbond(120 * GRID)) == "ok"
    assert (at.bonded("alice"), at.locked("alice")) == (80 * GRID, 200 * GRID)
    assert at.call("alice", Withdraw()) == "nothing-to-withdraw"
    at.next_era()
    assert at.call("alice", Withdraw()) == "nothing-to-withdraw"
    at.next_era()
    assert at.call("alice", Withdraw()) == "ok"
    assert (at.bonded("alice"), at.locked("alice")) == (80 * GRID, 80 * GRID)
    assert at.call("alice", Withdraw()) == "nothing-to-withdraw"


def test_amounts_of_different_eras_are_withdrawn_in_turn(at: Staked) -> None:
    at.call("alice", Bond(200 * GRID))
    at.call("alice", Unbond(10 * GRID), Unbond(5 * GRID))
    assert len(at.staking.unlocking.read(at.state, (), key("alice"))) == 1, "one entry per era"
    at.next_era()
    at.call("alice", Unbond(20 * GRID))
    at.next_era()
    assert at.call("alice", Withdraw()) == "ok"
    assert at.locked("alice") == 185 * GRID
    at.next_era()
    assert at.call("alice", Withdraw()) == "ok"
    assert at.locked("alice") == 165 * GRID == at.bonded("alice")


def test_too_many_waiting_amounts_are_refused() -> None:
    at = Staked(unbonding_eras=100)
    at.call("alice", Bond(900 * GRID))
    for _ in range(MAX_UNLOCKING):
        assert at.call("alice", Unbond(GRID)) == "ok"
        at.next_era()
    assert at.call("alice", Unbond(GRID)) == "too-many-unlocking"


def test_more_than_is_bonded_can_not_be_unbonded(at: Staked) -> None:
    at.call("alice", Bond(50 * GRID))
    assert at.call("alice", Unbond(51 * GRID)) == "insufficient-bond"
    assert at.call("bob", Unbond(1)) == "insufficient-bond"


def test_a_candidate_keeps_its_minimum_until_it_chills(at: Staked) -> None:
    assert at.call("eve", Unbond(1)) == "below-minimum"
    assert at.call("eve", Chill(), Unbond(100 * GRID)) == "ok"
    assert at.bonded("eve") == 0


def test_a_nominator_keeps_its_minimum_until_it_chills(at: Staked) -> None:
    assert at.call("nina", Unbond(591 * GRID)) == "below-minimum"
    assert at.call("nina", Unbond(590 * GRID)) == "ok"
    assert at.call("nina", Chill(), Unbond(10 * GRID)) == "ok"


# -- nominations -----------------------------------------------------------------------------------


def test_nominations_need_stake_and_candidates(at: Staked) -> None:
    ann = (key("ann"),)
    assert at.call("alice", Nominate(ann)) == "below-minimum"
    at.call("alice", Bond(10 * GRID))
    assert at.call("alice", Nominate((key("bob"),))) == "not-standing"
    assert at.call("alice", Nominate((*ann, *ann))) == "repeated-target"
    assert at.call("alice", Nominate(ann)) == "ok"
    assert at.call("ann", Nominate((key("ben"),))) == "not-oneself"
    assert at.call("ann", Nominate((key("ben"), key("ann")))) == "ok"


def test_a_nomination_replaces_the_one_before_and_counts_from_the_next_era(at: Staked) -> None:
    """Nina's 600 kept Cho and Dao in; behind Eve they seat Eve instead of Dao."""
    assert at.call("nina", Nominate((key("eve"),))) == "ok"
    assert at.following.set_id == 0
    at.next_era()
    assert at.following.set_id == 1
    assert at.names() == {"ann", "ben", "cho", "eve"}
    assert [event.account for event in at.chain.events(ValidatorElected)] == [key("eve")]
    assert [event.account for event in at.chain.events(ValidatorLeft)] == [key("dao")]


def test_a_full_list_gives_the_place_of_the_weakest_to_a_greater_stake() -> None:
    at = Staked()
    at.staking.voters.capacity = 6  # type: ignore[misc]  # five candidates and Nina
    at.call("alice", Bond(700 * GRID))
    at.call("bob", Bond(500 * GRID))
    assert at.call("alice", Nominate((key("ann"),))) == "roll-full", "no election has looked yet"
    at.next_era()
    assert at.call("bob", Nominate((key("ann"),))) == "roll-full", "Nina has more"
    assert at.call("alice", Nominate((key("ann"),))) == "ok"
    assert at.chain.events(Displaced) == [Displaced(account=key("nina"), by=key("alice"))]
    assert at.bonded("nina") == 600 * GRID, "her stake stays hers"


# -- candidates ------------------------------------------------------------------------------------


def test_standing_needs_stake_and_the_key_itself(at: Staked) -> None:
    assert at.call("alice", at.stand("alice")) == "below-minimum"
    at.call("alice", Bond(300 * GRID))
    stolen = at.stand("bob")
    assert at.call("alice", stolen) == "bad-proof", "made for Bob's account"
    assert at.call("alice", at.stand("alice", "ann session")) == "key-in-use"
    assert at.call("alice", at.stand("alice")) == "ok"
    assert at.chain.events(Stood) == [Stood(account=key("alice"), session_key=key("alice session"))]
    assert at.call("alice", at.stand("alice")) == "already-standing"
    assert at.staking.targets.get(at.state, key("alice")) == (key("alice"),), "it backs itself"


def test_a_proof_for_another_chain_is_refused(at: Staked) -> None:
    at.call("alice", Bond(300 * GRID))
    proof = prove_session_key(account("alice session"), bytes(32), key("alice"))
    call = Stand(session_key=key("alice session"), proof=proof)
    assert at.call("alice", call) == "bad-proof"


def test_standing_replaces_a_nomination_of_others_alone(at: Staked) -> None:
    at.call("alice", Bond(300 * GRID), Nominate((key("ann"),)))
    assert at.call("alice", at.stand("alice")) == "ok"
    assert at.staking.targets.get(at.state, key("alice")) == (key("alice"),)


def test_a_newcomer_wins_a_seat_and_the_header_announces_it(at: Staked) -> None:
    at.call("alice", Bond(900 * GRID), at.stand("alice"))
    before = at.head.header
    assert before.next_set_hash == at.genesis.validator_set.hash
    at.next_era()
    announcing = at.head.header
    assert announcing.set_id == 0, "the old set's block, in authorship and votes"
    assert announcing.next_set_hash == at.following.hash
    assert at.following.set_id == 1
    at.call("bob")
    assert at.head.header.set_id == 1
    assert at.head.header.next_set_hash == at.following.hash
    seat = at.staking.seats.get(at.state, key("alice"))
    assert seat is not None
    assert (seat.own_ngrid, seat.support_ngrid) == (900 * GRID, 900 * GRID)
    assert set(at.staking.accounts(at.state)) >= {key("alice")}


def test_a_rotated_key_takes_over_at_the_next_era(at: Staked) -> None:
    fresh = account("ann second")
    proof = prove_session_key(fresh, at.chain.ledger.chain_id, key("ann"))
    assert at.call("ann", SetSessionKey(fresh.public_key, proof)) == "ok"
    assert at.session("ann")
    at.next_era()
    assert not at.session("ann")
    assert fresh.public_key in at.following.members
    assert at.following.set_id == 1
    assert at.chain.events(ValidatorElected) == [], "the account had its seat before"
    seat = at.staking.seats.get(at.state, key("ann"))
    assert seat is not None
    assert seat.session_key == fresh.public_key


def test_a_key_that_was_given_up_is_free_for_its_holder(at: Staked) -> None:
    fresh = account("ann second")
    proof = prove_session_key(fresh, at.chain.ledger.chain_id, key("ann"))
    at.call("ann", SetSessionKey(fresh.public_key, proof))
    at.call("alice", Bond(900 * GRID))
    assert at.call("alice", at.stand("alice", "ann session")) == "ok"
    at.next_era()
    assert {fresh.public_key, key("ann session")} <= set(at.following.members)


def test_only_a_candidate_has_a_session_key(at: Staked) -> None:
    proof = prove_session_key(account("x"), at.chain.ledger.chain_id, key("alice"))
    assert at.call("alice", SetSessionKey(key("x"), proof)) == "not-standing"
    stolen = prove_session_key(account("ben session"), at.chain.ledger.chain_id, key("ben"))
    assert at.call("ann", SetSessionKey(key("ben session"), stolen)) == "key-in-use"


def test_a_chilled_validator_keeps_its_seat_until_the_next_election(at: Staked) -> None:
    assert at.call("alice", Chill()) == "not-active"
    assert at.call("ann", Chill()) == "ok"
    assert "ann" in at.names()
    at.next_era()
    assert at.names() == {"ben", "cho", "dao", "eve"}
    assert at.call("ann", at.stand("ann")) == "ok", "and may come back"
    at.next_era()
    assert at.names() == {"ann", "ben", "cho", "dao"}
    assert at.following.set_id == 2


# -- eras ------------------------------------------------------------------------------------------


def test_the_same_members_are_not_handed_over_but_supports_are_new(at: Staked) -> None:
    at.call("alice", Bond(900 * GRID), Nominate((key("dao"),)))
    at.next_era()
    assert at.following == at.genesis.validator_set, "also the order of the members"
    seat = at.staking.seats.get(at.state, key("dao"))
    assert seat is not None
    assert seat.support_ngrid >= 1_100 * GRID
    (era,) = at.chain.events(EraBegan)
    assert (era.era, era.set_id) == (1, 0)
    at.call("alice")
    assert at.chain.events(EraBegan) == [], "once per era"


def test_skipped_eras_count(at: Staked) -> None:
    at.call("alice", Bond(50 * GRID), Unbond(40 * GRID))
    at.call("alice", slots=7 * ERA)
    assert at.staking.era.get(at.state).index == 7
    assert at.call("alice", Withdraw()) == "ok"


def test_too_few_candidates_leave_everybody_in_place(at: Staked) -> None:
    at.call("ann", Chill())
    at.call("ben", Chill())
    at.next_era()
    assert at.chain.events(ElectionFailed) == [ElectionFailed(era=1, backed=3, seats=4)]
    assert at.following == at.genesis.validator_set
    assert at.staking.era.get(at.state).elected == 0
    at.call("ann", at.stand("ann"))
    at.next_era()
    assert at.names() == {"ann", "cho", "dao", "eve"}


def test_calls_of_the_era_block_itself_come_too_late_for_its_election(at: Staked) -> None:
    at.call("alice", Bond(900 * GRID), at.stand("alice"), slots=ERA)
    assert at.staking.era.get(at.state).index == 1
    assert at.following.set_id == 0
    at.next_era()
    assert "alice" in at.names()


def test_handovers_may_follow_block_on_block() -> None:
    at = Staked()
    at.call("alice", Bond(900 * GRID), at.stand("alice"))
    at.next_era()
    at.call("alice", Chill(), slots=ERA)
    assert at.head.header.set_id == 1
    at.call("bob", slots=ERA)
    assert (at.head.header.set_id, at.following.set_id) == (1, 2)


# -- genesis ---------------------------------------------------------------------------------------

POOR = tuple(
    Nomination(voter=key(name), stake_ngrid=(9 - place) * GRID, targets=(key(name),))
    for place, name in enumerate(VALIDATORS)
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nominations": POOR}, "minimum_stake_ngrid is 100000000000; stake more, or lower"),
        (
            {
                "candidates": (
                    *public_genesis().candidates,
                    Candidate(account=key("alice"), session_key=key("alice session")),
                )
            },
            "does not nominate itself",
        ),
    ],
)
def test_candidates_at_genesis_meet_the_same_rules(changes: dict[str, object], why: str) -> None:
    with pytest.raises(LocalFault, match=why):
        public_chain(public_genesis(**changes))


def test_the_minimum_is_a_parameter() -> None:
    at = Staked(nominations=POOR, minimum_stake_ngrid=5 * GRID)
    assert at.call("alice", Bond(5 * GRID), at.stand("alice")) == "ok"
