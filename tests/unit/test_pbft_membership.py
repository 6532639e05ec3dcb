"""The replica set as state: each rule of proposing, agreeing, and handing over."""

from collections.abc import Sequence

import pytest
from msgspec import structs
from tests.simulation.members_cluster import Chain, add, key, remove, replace, signer_of
from tests.simulation.pbft_cluster import CHAIN_ID, CLIENTS, signer

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.keys import KeyedHashSigner, sha256
from gridtokenx.core.quorum import quorum
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import Executed, ExecutedBlock, InvalidTransaction, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.pbft import membership
from gridtokenx.pbft.membership import (
    LABELS,
    MAX_MEMBERS,
    NEXT,
    OPEN,
    PROPOSAL_LIFE_MS,
    ApproveChange,
    Change,
    ChangeClosed,
    ProposeChange,
    SetAnnounced,
    SetEntered,
    WithdrawChange,
    changed,
    current_set,
    new_key,
    possession_bytes,
    validators_of,
)


class Members:
    """A chain without consensus: every call is a block."""

    def __init__(self, n: int = 4) -> None:
        self.chain = Chain(n)
        self.head: ExecutedBlock = self.chain.genesis

    @property
    def state(self) -> State:
        return State(self.head.state)

    @property
    def current(self) -> ValidatorSet:
        """Who finalises the next block."""
        return validators_of(self.head.state)

    def block(self, *said: tuple[KeyedHashSigner, Wire], after_ms: int = 1_000) -> list[str]:
        """The next block; the code of each call, or "kept out"."""
        before, chain = self.head, self.chain
        candidates = []
        nonces: dict[bytes, int] = {}
        for by, call in said:
            known = chain.admission.next_nonce(self.state, by.public_key)
            nonce = nonces.get(by.public_key, known)
            nonces[by.public_key] = nonce + 1
            candidates.append(sign_transaction(by, CHAIN_ID, nonce, [call]))
        proposal = Proposal(0, before.header.timestamp_ms + after_ms)
        self.head, refused = chain.ledger.build(before, proposal, candidates)
        assert chain.ledger.execute(before, self.head.block).hash == self.head.hash
        assert chain.ledger.check_invariants(self.head.state) == []
        codes = [result.code for event in self.events(Executed) for result in event.results]
        return codes + ["kept out"] * len(refused)

    def events(self, kind: type[Wire]) -> list[Wire]:
        union = self.chain.ledger.event_union
        found = [decode(decode(raw, EventRecord).data, union) for raw in self.head.events]
        return [event for event in found if isinstance(event, kind)]

    def proposal(self, change: Change, *, proof: bytes | None = None) -> ProposeChange:
        newcomer = new_key(change)
        if newcomer is not None and proof is None:
            what = possession_bytes(CHAIN_ID, self.current.set_id, change)
            proof = signer_of(newcomer).sign(what)
        return ProposeChange(change=change, proof=proof)

    def propose(self, by: int, change: Change) -> list[str]:
        return self.block((signer(by), self.proposal(change)))

    def approve(self, *by: int, proposal: int) -> list[str]:
        return self.block(*((signer(i), ApproveChange(proposal=proposal)) for i in by))

    def enact(self, change: Change) -> None:
        """Propose, agree, hand over."""
        seats = [next(i for i in range(64) if key(i) == member) for member in self.current.members]
        assert self.propose(seats[0], change) == ["ok"]
        number = self.open_numbers()[-1]
        needed = seats[1 : quorum(len(seats))]
        assert self.approve(*needed, proposal=number) == ["ok"] * len(needed)

    def open_numbers(self) -> list[int]:
        return [each.proposal for each in OPEN.get(self.state)]


def test_a_quorum_announces_the_set_and_the_next_block_is_its_own() -> None:
    members = Members()
    before = members.current
    assert members.propose(0, add(4)) == ["ok"]
    assert members.approve(1, proposal=1) == ["ok"]
    assert members.head.header.next_set_hash == before.hash, "two of four are no quorum"
    assert members.approve(2, proposal=1) == ["ok"]
    (announced,) = members.events(SetAnnounced)
    after = ValidatorSet(1, (*before.members, key(4)))
    assert announced.next_set == after
    header = members.head.header
    assert (header.set_id, header.next_set_hash) == (0, after.hash), "the old set certifies it"
    assert current_set(members.state) == before
    members.block()
    header = members.head.header
    assert (header.set_id, header.next_set_hash) == (1, after.hash)
    assert members.events(SetEntered) == [SetEntered(set_id=1, members=5)]
    assert current_set(members.state) == after
    assert not NEXT.has(members.state)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 21])
def test_a_quorum_of_the_present_set_is_needed(n: int) -> None:
    members = Members(n)
    change = replace(0, by=n)
    assert members.propose(0, change) == ["ok"]
    votes = range(1, quorum(n) - 1)
    assert members.approve(*votes, proposal=1) == ["ok"] * len(votes)
    assert not NEXT.has(members.state)
    assert members.approve(n - 1, proposal=1) == ["ok"]
    assert NEXT.has(members.state)


def test_where_keys_come_to_sit() -> None:
    one = ValidatorSet(7, tuple(key(i) for i in range(5)))
    assert changed(one, add(9)).members == (*one.members, key(9))
    assert changed(one, remove(1)).members == (key(0), key(2), key(3), key(4))
    assert changed(one, replace(1, by=9)).members == (key(0), key(9), key(2), key(3), key(4))
    assert {changed(one, change).set_id for change in (add(9), remove(1))} == {8}


@pytest.mark.parametrize(
    ("n", "change", "code"),
    [
        (4, add(2), "member-already"),
        (4, replace(1, by=2), "member-already"),
        (4, replace(1, by=1), "member-already"),
        (4, replace(9, by=8), "no-member"),
        (5, remove(9), "no-member"),
        (4, remove(0), "set-too-small"),
        (MAX_MEMBERS, add(30), "set-full"),
    ],
)
def test_changes_that_no_set_allows(n: int, change: Change, code: str) -> None:
    members = Members(n)
    assert members.propose(0, change) == [code]
    assert not OPEN.get(members.state)


def test_a_small_chain_may_grow() -> None:
    members = Members(1)
    assert members.propose(0, add(1)) == ["ok"], "its one member is its quorum"
    assert members.current.size == 2


def test_the_new_key_must_agree_to_this_very_change() -> None:
    members = Members()
    change = add(4)
    mine = members.proposal(change).proof
    assert mine is not None
    other_set = signer(4).sign(possession_bytes(CHAIN_ID, 1, change))
    other_chain = signer(4).sign(possession_bytes(sha256(b"other"), 0, change))
    other_key = signer(3).sign(possession_bytes(CHAIN_ID, 0, change))
    for proof in (other_set, other_chain, other_key, bytes(64)):
        assert members.block((signer(0), ProposeChange(change=change, proof=proof))) == [
            "bad-proof"
        ]
    relabelled = structs.replace(change, label="somebody else")
    for wrong in (relabelled, replace(0, by=4)):
        assert members.block((signer(0), ProposeChange(change=wrong, proof=mine))) == ["bad-proof"]
    assert members.block((signer(0), ProposeChange(change=change, proof=None))) == ["no-proof"]
    assert members.block((signer(0), ProposeChange(change=change, proof=mine))) == ["ok"]


def test_whoever_leaves_proves_nothing() -> None:
    members = Members(5)
    extra = ProposeChange(change=remove(4), proof=bytes(64))
    assert members.block((signer(0), extra)) == ["unneeded-proof"]
    members.enact(remove(4))


def test_only_members_have_a_say() -> None:
    members = Members()
    propose = members.proposal(add(4))
    for stranger in (CLIENTS[0], signer(4)):
        assert members.block((stranger, propose)) == ["kept out"]
    assert members.propose(0, add(4)) == ["ok"]
    assert members.block((signer(4), ApproveChange(proposal=1))) == ["kept out"]
    members.approve(1, 2, proposal=1)
    members.enact(remove(0))
    assert members.block((signer(0), members.proposal(add(0)))) == ["kept out"], "it has left"
    assert members.propose(4, add(0)) == ["ok"], "and this one has come"


def test_one_open_proposal_each_and_none_twice() -> None:
    members = Members()
    assert members.propose(0, add(4)) == ["ok"]
    assert members.propose(0, add(5)) == ["one-at-a-time"]
    assert members.propose(1, add(4)) == ["proposed-already"]
    assert members.propose(1, add(5)) == ["ok"]
    assert members.open_numbers() == [1, 2]


def test_approving_twice_counts_once() -> None:
    members = Members()
    members.propose(0, add(4))
    assert members.approve(0, proposal=1) == ["kept out"]
    assert members.approve(1, proposal=1) == ["ok"]
    assert members.approve(1, proposal=1) == ["kept out"]
    assert not NEXT.has(members.state)
    assert members.approve(1, proposal=9) == ["kept out"]


def test_an_approval_can_be_taken_back() -> None:
    members = Members()
    members.propose(0, add(4))
    members.approve(1, proposal=1)
    assert members.block((signer(1), WithdrawChange(proposal=1))) == ["ok"]
    assert members.block((signer(1), WithdrawChange(proposal=1))) == ["not-approved"]
    members.approve(2, proposal=1)
    assert not NEXT.has(members.state)
    members.approve(3, proposal=1)
    assert NEXT.has(members.state)


def test_the_proposer_takes_the_whole_proposal_back() -> None:
    members = Members()
    members.propose(0, add(4))
    members.approve(1, proposal=1)
    assert members.block((signer(0), WithdrawChange(proposal=1))) == ["ok"]
    assert members.events(ChangeClosed) == [ChangeClosed(proposal=1, reason="withdrawn")]
    assert members.approve(2, proposal=1) == ["kept out"]
    assert members.propose(0, add(4)) == ["ok"]
    assert members.open_numbers() == [2], "numbers are never used again"


def test_a_proposal_expires() -> None:
    members = Members()
    members.propose(0, add(4))
    members.approve(1, proposal=1)
    members.block(after_ms=PROPOSAL_LIFE_MS - 1_001)
    assert members.open_numbers() == [1]
    assert members.block((signer(2), ApproveChange(proposal=1)), after_ms=2_000) == ["kept out"]
    assert members.events(ChangeClosed) == [ChangeClosed(proposal=1, reason="expired")]


def test_one_change_a_handover_and_all_else_is_void() -> None:
    members = Members(5)
    members.propose(0, remove(4))
    members.propose(1, replace(2, by=6))
    members.approve(2, 3, proposal=2)
    approvals = [(signer(i), ApproveChange(proposal=1)) for i in (1, 2, 3)]
    late = (signer(3), members.proposal(add(7)))
    codes = members.block(*approvals, late, (signer(4), ApproveChange(proposal=2)))
    assert codes == ["ok", "ok", "ok", "handing-over", "handing-over"]
    members.block()
    assert members.events(ChangeClosed) == [ChangeClosed(proposal=2, reason="void")]
    assert members.approve(0, proposal=2) == ["kept out"]
    stale = signer(7).sign(possession_bytes(CHAIN_ID, 0, add(7)))
    assert members.block((signer(3), members.proposal(add(7), proof=stale))) == ["bad-proof"]
    assert members.propose(3, add(7)) == ["ok"]


def test_labels_come_and_go_with_their_keys() -> None:
    members = Members(5)
    members.enact(add(5))
    members.block()
    assert LABELS.get(members.state, key(5)) == "operator 5"
    members.enact(replace(5, by=6))
    members.block()
    assert LABELS.get(members.state, key(5)) is None
    assert LABELS.get(members.state, key(6)) == "operator 6"


def test_the_pool_is_told_why() -> None:
    members = Members()
    said = sign_transaction(signer(9), CHAIN_ID, 0, [ApproveChange(proposal=1)])
    with pytest.raises(InvalidTransaction, match="not-a-member"):
        members.chain.ledger.admit(members.state, said, members.head.header.timestamp_ms)


def test_broken_laws_are_told() -> None:
    members = Members(5)
    members.propose(0, add(5))

    def told(*writes: Sequence[object]) -> str:
        state = State(members.head.state)
        for store, value in writes:
            store.put(state, value)
        return " ".join(members.chain.membership.check_invariants(state))

    assert told() == ""
    set_ = members.current
    assert "3 members" in told((membership.CURRENT, ValidatorSet(0, set_.members[:3])))
    assert "repeats" in told((membership.CURRENT, ValidatorSet(0, (*set_.members, key(0)))))
    assert "announced after 0" in told((NEXT, ValidatorSet(2, (*set_.members, key(9)))))
    two = ValidatorSet(1, (*set_.members, key(8), key(9)))
    assert "more or less than one change" in told((NEXT, two))
    assert "more or less than one change" in told((NEXT, ValidatorSet(1, set_.members)))
    (open_,) = OPEN.get(members.state)
    twice = (open_, structs.replace(open_, proposal=0))
    assert "not numbered" in told((OPEN, twice))
    assert "two open proposals" in told((OPEN, twice))
