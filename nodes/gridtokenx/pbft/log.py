"""The message log: what was proposed and voted, per height above the last committed one.

Law of the file: **bounded by the set, not by what is sent.** Per height and replica one prepare and
one commit are kept, those of the highest view: an honest replica never needs an older one counted
again, and a faulty one that votes in high views only loses its own votes. Two votes of one replica
for one (view, height) that name different blocks are evidence.

Theory: Castro & Liskov (OSDI 1999) section 4.2:

* ``prepared(block, v, n)``: the pre-prepare of v's primary and prepares of q - 1 *other* replicas match.
* ``committed-local``: commits of q replicas match. They prove the block by themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from gridtokenx.core.keys import Domain
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.messages import (
    Ballot,
    Commit,
    Equivocation,
    Prepare,
    PreparedCertificate,
    SignedVote,
)
from gridtokenx.pbft.rotation import primary_of

MAX_BODIES: Final = 64
"""Most bodies of one height; there is at most one per view that opened without a commit."""

T = TypeVar("T", Ballot, CommitVote)


class Tally(Generic[T]):
    """How many of the votes that are kept say the same; counted as they come, not when asked."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[T, int] = {}

    def count(self, what: T) -> int:
        """How many say this."""
        return self._counts.get(what, 0)

    def add(self, what: T) -> int:
        """One more says this; returns how many do now."""
        count = self._counts[what] = self._counts.get(what, 0) + 1
        return count

    def remove(self, what: T) -> int:
        """One of them says something else now; returns how many are left."""
        count = self._counts.pop(what) - 1
        if count:
            self._counts[what] = count
        return count


@dataclass(slots=True)
class Slot:
    """All that is known about one height."""

    height: int
    ballot: Ballot | None = None
    """The one proposal accepted in the current view; None before, and after leaving the view."""
    proposal: bytes = b""
    """The primary's signature over `ballot`."""
    proposals: dict[int, tuple[Ballot, bytes]] = field(default_factory=dict)
    """What the primary of each view was seen to propose: a second one is evidence."""
    prepares: dict[int, Prepare] = field(default_factory=dict)
    """The latest of each replica."""
    commits: dict[int, Commit] = field(default_factory=dict)
    """The latest of each replica."""
    bodies: dict[bytes, Block] = field(default_factory=dict)
    """Blocks by hash: those voted for in any view, and those that a certificate names."""
    executed: dict[bytes, ExecutedBlock] = field(default_factory=dict)
    """Those bodies that were executed on their parent."""
    prepared: PreparedCertificate | None = None
    """The prepared certificate of the highest view."""
    own_prepare: Prepare | None = None
    """What this replica voted last, to be sent again."""
    own_commit: Commit | None = None
    """What this replica voted last, to be sent again."""
    settled: set[tuple[int, bytes]] = field(default_factory=set)
    """(view, hash) of what this replica voted to commit: further prepares for it prove nothing new."""
    prepare_tally: Tally[Ballot] = field(default_factory=Tally)
    """Of `prepares`, without those of the primaries of their views."""
    commit_tally: Tally[CommitVote] = field(default_factory=Tally)
    """Of `commits`."""
    proof: CommitCertificate | None = None
    """A quorum of commits for one block, counted or shown: proof, whatever its voters say later."""

    def accept(self, ballot: Ballot, signature: bytes) -> None:
        """This is the one proposal for the height in its view."""
        self.ballot, self.proposal = ballot, signature
        self.proposals[ballot.view] = (ballot, signature)
        if len(self.proposals) > MAX_BODIES:
            del self.proposals[next(iter(self.proposals))]

    def keep(self, block: Block) -> None:
        """Keep a body until the height is committed: a certificate that names it may appear late.

        A body is only kept when this replica is about to vote for it, or a certificate named it: at
        most one per view. That of what is prepared here stays: perhaps nobody else has it any more.
        """
        self.bodies[block.hash] = block
        if len(self.bodies) > MAX_BODIES:
            needed = None if self.prepared is None else self.prepared.header.hash
            del self.bodies[next(hash_ for hash_ in self.bodies if hash_ != needed)]

    def prepared_in(self, view: int) -> bool:
        """Whether this replica knows that the proposal accepted in `view` is prepared."""
        return self.own_commit is not None and self.own_commit.vote.view == view

    def settle(self, commit: Commit) -> None:
        """This replica votes to commit: it has the proof that the block is prepared in that view."""
        self.own_commit = commit
        if len(self.settled) < MAX_BODIES:
            self.settled.add((commit.vote.view, commit.vote.block_hash))

    def end_view(self) -> None:
        """The view of the accepted proposal ended: its overlay goes, what is prepared stays."""
        self.ballot, self.proposal = None, b""
        self.executed.clear()


class VoteLog:
    """The slots of one validator set.

    Args:
        chain_id: of the chain.
        validators: who votes.
    """

    def __init__(self, chain_id: bytes, validators: ValidatorSet) -> None:
        self._chain_id: Final = chain_id
        self._validators: Final = validators
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, height: int) -> Slot:
        """The slot of a height, made if there is none; callers bound the height."""
        found = self._slots.get(height)
        if found is None:
            found = self._slots[height] = Slot(height)
        return found

    def find(self, height: int) -> Slot | None:
        """The slot of a height, if anything is known about it."""
        return self._slots.get(height)

    def run_above(self, height: int, most: int) -> list[Slot]:
        """The slots next above a height, ascending, up to the first gap and at most so many."""
        run: list[Slot] = []
        for each in range(height + 1, height + most + 1):
            slot = self._slots.get(each)
            if slot is None:
                break
            run.append(slot)
        return run

    def above(self, height: int) -> Iterator[Slot]:
        """All slots above a height, ascending."""
        return (self._slots[h] for h in sorted(self._slots) if h > height)

    def forget(self, height: int) -> None:
        """Drop everything at or below a committed height."""
        for old in [h for h in self._slots if h <= height]:
            del self._slots[old]

    # -- votes -------------------------------------------------------------------------------------

    def is_settled(self, ballot: Ballot) -> bool:
        """Whether prepares for this ballot can change nothing here any more; once so, it stays so."""
        slot = self._slots.get(ballot.height)
        return slot is not None and (ballot.view, ballot.block_hash) in slot.settled

    def add_prepare(self, prepare: Prepare) -> Equivocation | None:
        """Keep a verified prepare; returns the proof if its author contradicts itself."""
        slot = self.slot(prepare.ballot.height)
        known = slot.prepares.get(prepare.replica)
        if known is None or known.ballot.view < prepare.ballot.view:
            slot.prepares[prepare.replica] = prepare
            self._count_prepare(slot, known, prepare)
        elif known.ballot.view == prepare.ballot.view and known.ballot != prepare.ballot:
            return Equivocation(
                offender=prepare.replica,
                first=self._evidence(known.ballot, Domain.PBFT_PREPARE, known.signature),
                second=self._evidence(prepare.ballot, Domain.PBFT_PREPARE, prepare.signature),
            )
        return None

    def add_commit(self, commit: Commit) -> Equivocation | None:
        """Keep a verified commit; returns the proof if its author contradicts itself."""
        slot = self.slot(commit.vote.height)
        known = slot.commits.get(commit.replica)
        if known is None or known.vote.view < commit.vote.view:
            slot.commits[commit.replica] = commit
            self._count_commit(slot, known, commit)
        elif known.vote.view == commit.vote.view and known.vote != commit.vote:
            return Equivocation(
                offender=commit.replica,
                first=SignedVote(known.vote.signed_bytes(self._chain_id), known.signature),
                second=SignedVote(commit.vote.signed_bytes(self._chain_id), commit.signature),
            )
        return None

    def contradicts(self, slot: Slot, ballot: Ballot, signature: bytes) -> Equivocation | None:
        """The proof if the primary of the ballot's view proposed another block here."""
        known = slot.proposals.get(ballot.view)
        if known is None or known[0] == ballot:
            return None
        return Equivocation(
            offender=primary_of(ballot.view, self._validators),
            first=self._evidence(known[0], Domain.PBFT_PRE_PREPARE, known[1]),
            second=self._evidence(ballot, Domain.PBFT_PRE_PREPARE, signature),
        )

    def prepared_certificate(self, slot: Slot, block: Block) -> PreparedCertificate | None:
        """The proof that the accepted proposal is prepared, if it is."""
        ballot = slot.ballot
        if ballot is None:
            return None
        needed = self._validators.quorum - 1
        if slot.prepare_tally.count(ballot) < needed:
            return None
        primary = primary_of(ballot.view, self._validators)
        prepares = [
            IndexedSignature(index=replica, signature=prepare.signature)
            for replica, prepare in sorted(slot.prepares.items())
            if prepare.ballot == ballot and replica != primary
        ]
        return PreparedCertificate(
            ballot.view, block.header, slot.proposal, tuple(prepares[:needed])
        )

    def commit_certificate(self, slot: Slot) -> CommitCertificate | None:
        """The proof that some block is committed here, if a quorum of commits matches."""
        return slot.proof

    def _count_prepare(self, slot: Slot, replaced: Prepare | None, prepare: Prepare) -> None:
        if replaced is not None and not self._is_primarys(replaced):
            slot.prepare_tally.remove(replaced.ballot)
        if not self._is_primarys(prepare):
            slot.prepare_tally.add(prepare.ballot)

    def _is_primarys(self, prepare: Prepare) -> bool:
        return prepare.replica == primary_of(prepare.ballot.view, self._validators)

    def _count_commit(self, slot: Slot, replaced: Commit | None, commit: Commit) -> None:
        if replaced is not None:
            slot.commit_tally.remove(replaced.vote)
        if slot.commit_tally.add(commit.vote) >= self._validators.quorum and slot.proof is None:
            slot.proof = self._certificate(slot, commit.vote)

    def _certificate(self, slot: Slot, vote: CommitVote) -> CommitCertificate:
        signatures = [
            IndexedSignature(index=replica, signature=commit.signature)
            for replica, commit in sorted(slot.commits.items())
            if commit.vote == vote
        ]
        return CommitCertificate(self._chain_id, vote, tuple(signatures[: self._validators.quorum]))

    def _evidence(self, ballot: Ballot, domain: Domain, signature: bytes) -> SignedVote:
        return SignedVote(ballot.signed_bytes(domain, self._chain_id), signature)
