"""Votes counted as they come agree with votes counted anew."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.keys import sha256
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.pbft.log import Slot, VoteLog
from gridtokenx.pbft.messages import Ballot, Commit, Prepare
from gridtokenx.pbft.rotation import primary_of

_CHAIN = bytes(32)
_HASHES = (sha256(b"one"), sha256(b"other"))
_votes = st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 3), st.sampled_from(_HASHES))


@given(st.integers(1, 21), st.lists(_votes, max_size=80))
def test_tallies_say_what_counting_all_kept_votes_says(
    size: int, votes: list[tuple[bool, int, int, bytes]]
) -> None:
    first: list[CommitVote] = []
    validators = ValidatorSet(0, tuple(sha256(b"member %d" % i) for i in range(size)))
    log = VoteLog(_CHAIN, validators)
    slot = log.slot(1)
    for is_commit, voter, view, hash_ in votes:
        signature = bytes(64)
        if is_commit:
            log.add_commit(Commit(CommitVote(0, view, 1, hash_), voter % size, signature))
        else:
            log.add_prepare(Prepare(Ballot(0, view, 1, hash_), voter % size, signature))
        commits = Counter(commit.vote for commit in slot.commits.values())
        first += [vote for vote, count in commits.items() if count >= validators.quorum]
        proof = log.commit_certificate(slot)
        assert ([] if proof is None else [proof.vote]) == first[:1], "once proved it stays proved"
        assert proof is None or len(proof.signatures) == validators.quorum
        _check(slot, validators)


def _check(slot: Slot, validators: ValidatorSet) -> None:
    prepares = Counter(
        prepare.ballot
        for prepare in slot.prepares.values()
        if prepare.replica != primary_of(prepare.ballot.view, validators)
    )
    for view in range(4):
        for hash_ in _HASHES:
            ballot = Ballot(0, view, 1, hash_)
            assert slot.prepare_tally.count(ballot) == prepares[ballot]
