"""One replica on a bench: the test plays every other member, with their real keys.

A message enters only if its signatures verify, as with any driver; `sent` is what the replica put
out since the last look, in order. Persists are applied at once, so a new life can begin at any time.
"""

from collections.abc import Iterable
from typing import TypeVar

from tests.simulation.pbft_cluster import CHAIN_ID, VERIFIER, ledger, signer, validator_set

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import Domain, KeyedHashSigner
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Committed,
    Effect,
    Event,
    Misbehaviour,
    Persist,
    Received,
    Reject,
    Send,
    SetTimer,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Verified,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.world import START_MS
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import (
    Ballot,
    CertifiedHeader,
    Commit,
    NewView,
    NewViewBody,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    Reproposal,
    Suspect,
    ViewChange,
    ViewChangeBody,
    new_view_bytes,
    view_change_bytes,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.view_change import ballots, choose

M = TypeVar("M")


class Members:
    """The other members of the set: makes any message of theirs."""

    def __init__(self, n: int = 4) -> None:
        self.n = n
        self.validators = validator_set(n)
        self.ledger = ledger(self.validators)
        self.genesis = self.ledger.genesis(START_MS)

    def signer(self, index: int) -> KeyedHashSigner:
        return signer(index)

    def primary(self, view: int) -> int:
        return primary_of(view, self.validators)

    def block(
        self,
        parent: ExecutedBlock | None = None,
        *,
        view: int = 0,
        after_ms: int = 1_000,
        transactions: Iterable[Transaction] = (),
    ) -> ExecutedBlock:
        parent = parent or self.genesis
        proposal = Proposal(view, parent.header.timestamp_ms + after_ms)
        executed, refused = self.ledger.build(parent, proposal, transactions)
        assert not refused
        return executed

    def ballot(self, block: ExecutedBlock | Block, view: int) -> Ballot:
        return Ballot(0, view, block.height, block.hash)

    def pre_prepare(self, block: ExecutedBlock, view: int = 0) -> PrePrepare:
        return PrePrepare(view, block.block, self._proposal(block, view))

    def _proposal(self, block: ExecutedBlock, view: int) -> bytes:
        what = self.ballot(block, view).signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
        return signer(self.primary(view)).sign(what)

    def prepare(self, index: int, block: ExecutedBlock, view: int = 0) -> Prepare:
        ballot = self.ballot(block, view)
        what = ballot.signed_bytes(Domain.PBFT_PREPARE, CHAIN_ID)
        return Prepare(ballot, index, signer(index).sign(what))

    def commit(self, index: int, block: ExecutedBlock, view: int = 0) -> Commit:
        vote = CommitVote(0, view, block.height, block.hash)
        return Commit(vote, index, signer(index).sign(vote.signed_bytes(CHAIN_ID)))

    def prepared(
        self, block: ExecutedBlock, view: int = 0, backups: Iterable[int] | None = None
    ) -> PreparedCertificate:
        primary = self.primary(view)
        if backups is None:
            others = [i for i in range(self.n) if i != primary]
            backups = others[: self.validators.quorum - 1]
        signatures = tuple(
            IndexedSignature(i, self.prepare(i, block, view).signature) for i in backups
        )
        return PreparedCertificate(view, block.header, self._proposal(block, view), signatures)

    def certificate(
        self, block: ExecutedBlock, view: int = 0, signers: Iterable[int] | None = None
    ) -> CommitCertificate:
        indices = range(self.validators.quorum) if signers is None else signers
        vote = CommitVote(0, view, block.height, block.hash)
        signatures = tuple(
            IndexedSignature(i, self.commit(i, block, view).signature) for i in indices
        )
        return CommitCertificate(CHAIN_ID, vote, signatures)

    def certified(self, block: ExecutedBlock, view: int = 0) -> CertifiedHeader:
        return CertifiedHeader(block.header, self.certificate(block, view))

    def view_change(
        self,
        index: int,
        view: int,
        *,
        head: CertifiedHeader | None = None,
        prepared: Iterable[PreparedCertificate] = (),
    ) -> ViewChange:
        body = ViewChangeBody(0, view, index, head, tuple(prepared))
        return ViewChange(body, signer(index).sign(view_change_bytes(body, CHAIN_ID)))

    def new_view(
        self,
        view: int,
        changes: Iterable[ViewChange],
        proposals: Iterable[Ballot] | None = None,
        author: int | None = None,
    ) -> NewView:
        changes = tuple(changes)
        key = signer(self.primary(view) if author is None else author)
        if proposals is None:
            choice = choose([change.body for change in changes], self.genesis.header)
            proposals = ballots(choice, view)
        signed = tuple(
            Reproposal(b, key.sign(b.signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)))
            for b in proposals
        )
        body = NewViewBody(0, view, changes, signed)
        return NewView(body, key.sign(new_view_bytes(body, CHAIN_ID)))


class Bench(Members):
    """A replica under test, `index`, among members that the test plays."""

    def __init__(
        self,
        index: int,
        n: int = 4,
        timing: Timing | None = None,
        rotation_blocks: int = 0,
    ) -> None:
        super().__init__(n)
        self.rotation_blocks = rotation_blocks
        self.index = index
        self.timing = timing or Timing()
        self.store = SimulatedStore()
        self.now = START_MS
        self.timers: dict[object, int] = {}
        self.sent: list[Wire] = []
        self.sends: list[tuple[bytes, Wire]] = []
        self.committed: list[int] = []
        self.rejected: list[str] = []
        self.misbehaviours: list[Misbehaviour] = []
        self.effects: list[Effect] = []
        self.live()

    def live(self) -> None:
        """A life begins: from what is on the disk."""
        self.timers.clear()
        self.replica = Replica.restore(
            self.store,
            self.ledger,
            self.validators,
            signer(self.index),
            self.genesis,
            self.timing,
            rotation_blocks=self.rotation_blocks,
        )
        self.step(Start())

    def step(self, event: Event) -> list[Effect]:
        self.effects = list(self.replica.step(self.now, event))
        for effect in self.effects:
            self._carry_out(effect)
        return self.effects

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Persist(writes):
                self.store.write(writes)
                self.store.sync()
            case Broadcast(message):
                self.sent.append(message)
            case Send(to, message):
                self.sent.append(message)
                self.sends.append((to, message))
            case SetTimer(name, at_ms):
                self.timers[name] = at_ms
            case CancelTimer(name):
                self.timers.pop(name, None)
            case Committed(height, _):
                self.committed.append(height)
            case Reject(_, reason):
                self.rejected.append(reason)
            case Misbehaviour():
                self.misbehaviours.append(effect)

    def hear(self, *messages: Wire, sender: int | None = None) -> None:
        """Messages arrive; each is sent by its author unless said otherwise."""
        for message in messages:
            checks = self.replica.verification(message)
            assert not isinstance(checks, Unknown)
            for check in checks:
                assert VERIFIER.verify(check.public_key, check.message, check.signature)
            origin = self._author(message) if sender is None else sender
            self.step(Received(Verified(self.validators.members[origin], message)))

    def _author(self, message: Wire) -> int:
        match message:
            case PrePrepare():
                return self.primary(message.view)
            case Prepare() | Commit():
                return message.replica
            case ViewChange():
                return message.body.replica
            case NewView():
                return self.primary(message.body.view)
            case _:
                return (self.index + 1) % self.n

    def decide(self, block: ExecutedBlock, view: int = 0) -> None:
        """The others decide a block; what it said meanwhile is forgotten."""
        self.now = max(self.now, block.header.timestamp_ms)
        self.hear(self.pre_prepare(block, view))
        self.hear(*(self.commit(i, block, view) for i in range(self.n) if i != self.index))
        assert self.committed[-1] == block.height
        self.sent.clear()

    def leave(self, view: int = 1) -> ViewChange:
        """f + 1 others leave for a view, but not its primary; returns the own view-change."""
        others = [i for i in range(self.n) if i not in (self.index, self.primary(view))]
        self.hear(*(self.view_change(i, view) for i in others[: self.validators.faulty + 1]))
        assert self.replica.view == view
        return self.take(ViewChange)[0]

    def suspect(self, index: int, view: int) -> None:
        self.hear(Suspect(0, view), sender=index)

    def submit(self, *transactions: Transaction, everywhere: bool = False) -> None:
        self.step(Submitted(transactions, everywhere))

    def pass_time(self, duration_ms: int) -> None:
        """Let time pass; timers that are due fire."""
        end = self.now + duration_ms
        while due := [(at, str(name), name) for name, at in self.timers.items() if at <= end]:
            at, _, name = min(due)
            self.now = max(self.now, at)
            del self.timers[name]
            self.step(TimerFired(name))
        self.now = end

    def fire(self, name: str) -> None:
        """Time passes until this timer fires, and no other does."""
        self.now = max(self.now, self.timers.pop(name))
        self.step(TimerFired(name))

    def take(self, kind: type[M]) -> list[M]:
        """What it sent of a kind since the last look; the rest is forgotten too."""
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent.clear()
        return found

    def persisted_bytes(self) -> bytes:
        return b"".join(
            write.key + (write.value or b"")
            for effect in self.effects
            if isinstance(effect, Persist)
            for write in effect.writes
        )

    def promise_is_durable(self, vote: Wire) -> bool:
        """Whether the step's batch holds the vote and comes before everything visible."""
        return isinstance(self.effects[0], Persist) and encode(vote) in self.persisted_bytes()
