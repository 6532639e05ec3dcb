"""Traitors: what Byzantine replicas do, as wrappers between the machine and the network.

Law of the file: **a behaviour changes what a traitor hears and says, and nothing else**
(`sim/treason.py` says what it may).

======================  ========================================================================
behaviour               what it does
======================  ========================================================================
silent                  says nothing
selective-silence       says nothing to its victims (a drawn half, if none are named)
delay                   says everything later
equivocate              leading, proposes two blocks; all equivocators vote for each block to one half
conflicting-votes       votes for another block to its victims than to the rest
forge-signature         adds votes with bad signatures, in its own name and in others'
wrong-digest            proposes bodies that are not the header's; votes for hashes of nothing
wrong-state-root        leading, proposes blocks whose state root is wrong
time-liar               leading, stamps its blocks as far ahead as the clock bound lets it
censor                  takes and passes on no transactions
replay                  says again what anybody said earlier
hasty-view-change       suspects for no reason, and leaves views alone
stale-view-change       leaves a view as if it had committed and prepared nothing
malformed-view-change   leaves a view with heights, views, indices or certificates that cannot be
bogus-new-view          opens a view with other proposals, or another quorum, than it should
block-liar              answers questions for blocks with garbage; claims heights that it lacks
snapshot-liar           answers questions for states with garbage; claims heights that it lacks
withhold                shows how far it is, and hands out nothing: never answers, or denies having it
amnesia                 forgets its locks: denies what it prepared, votes again (`amnesia.py`)
flood                   proposes for views that are far away, thousands of signatures at a time
twin                    runs twice with one key (two nodes of the world: `run.py`)
======================  ========================================================================
"""

# ruff: noqa: D102, ARG002 - hooks are described once, in `AnyTrick`

import itertools
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import (
    Instant,
)
from gridtokenx.core.state_tree import NO_PART
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.lab.faults import Behave, Fault, RoundMutation
from gridtokenx.lab.sim.pbft.amnesia import Amnesiac
from gridtokenx.lab.sim.pbft.messages import round_of
from gridtokenx.lab.sim.pbft.traitors import Conspiracy, PbftTrick, Puppet, Trick
from gridtokenx.lab.sim.treason import (
    AnyTraitors,
    Censor,
    Late,
    Replay,
    Saying,
    SelectiveSilence,
    Silent,
)
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.pbft.messages import (
    Ballot,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    Checkpoint,
    Commit,
    NewView,
    NewViewBody,
    Part,
    Prepare,
    PrePrepare,
    Reproposal,
    Snapshot,
    Status,
    Suspect,
    ViewChange,
    ViewChangeBody,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.view_change import Choice, ballots, choose

_V = TypeVar("_V", Ballot, CommitVote)
_RIVALS: Final = 32
_FLOOD: Final = 4_000
"""Transactions of a proposal: more than a block can hold."""
_FLOOD_MS: Final = 250
_DENIES: Final = 0.5
"""So many of those who withhold deny; the others never answer."""


class Equivocate(Trick):
    """equivocate."""

    def __init__(self, fault: Behave, conspiracy: Conspiracy) -> None:
        super().__init__(fault, conspiracy)
        self._done: set[tuple[int, int]] = set()

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case PrePrepare(view, block) if block.header.round == view:
                return self._propose(puppet, saying, view, block)
            case Prepare(ballot=vote) | Commit(vote=vote):
                secret = (vote.view, vote.height) in self.conspiracy.rivals
                return () if secret else [saying]
            case _:
                return [saying]

    def _propose(self, puppet: Puppet, saying: Saying, view: int, block: Block) -> Iterable[Saying]:
        conspiracy, key = self.conspiracy, (view, block.height)
        if key not in conspiracy.rivals:
            rival = conspiracy.rebuild(block, view, 1, empty=self.draw.random() < 0.5)
            if rival is None or rival.hash == block.hash:
                return [saying]
            half = frozenset(self.fault.victims) or conspiracy.half()
            conspiracy.rivals[key] = (block, rival, half)
            if len(conspiracy.rivals) > _RIVALS:
                del conspiracy.rivals[next(iter(conspiracy.rivals))]
        first, second, half = conspiracy.rivals[key]
        return [
            Saying(
                tuple(i for i in saying.to if i not in half),
                conspiracy.pre_prepare(puppet.index, view, first),
            ),
            Saying(
                tuple(i for i in saying.to if i in half),
                conspiracy.pre_prepare(puppet.index, view, second),
            ),
        ]

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        """Vote for each of two rivals, to those who are to believe it."""
        for key, (first, second, half) in list(self.conspiracy.rivals.items()):
            if key in self._done:
                continue
            self._done.add(key)
            for block, audience in (
                (first, tuple(i for i in puppet.others if i not in half)),
                (second, tuple(i for i in puppet.others if i in half)),
            ):
                yield from self._vote(puppet.index, key[0], block, audience)

    def _vote(
        self, index: int, view: int, block: Block, audience: tuple[int, ...]
    ) -> Iterator[Saying]:
        set_id, height, hash_ = block.header.set_id, block.height, block.hash
        if self.conspiracy.seat(index, set_id) is None:
            return
        if not self.conspiracy.leads(index, set_id, view):
            ballot = Ballot(set_id=set_id, view=view, height=height, block_hash=hash_)
            yield Saying(audience, self.conspiracy.prepare(index, ballot))
        vote = CommitVote(set_id=set_id, view=view, height=height, block_hash=hash_)
        yield Saying(audience, self.conspiracy.commit(index, vote))


class ConflictingVotes(Trick):
    """conflicting-votes."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        conspiracy, index = self.conspiracy, puppet.index
        other = self._other_hash()
        match saying.message:
            case Prepare(ballot):
                changed = msgspec.structs.replace(ballot, block_hash=other)
                return self.split(saying, conspiracy.prepare(index, changed))
            case Commit(vote):
                changed_vote = msgspec.structs.replace(vote, block_hash=other)
                return self.split(saying, conspiracy.commit(index, changed_vote))
            case _:
                return [saying]

    def _other_hash(self) -> bytes:
        hashes = self.conspiracy.hashes
        return self.draw.choice(hashes) if hashes and self.draw.random() < 0.7 else bytes(32)


class ForgeSignature(Trick):
    """forge-signature."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        message = saying.message
        if isinstance(message, Prepare | Commit):
            author = self.draw.randrange(puppet.inner.validators.size)
            message = msgspec.structs.replace(
                message, replica=author, signature=self.draw.randbytes(64)
            )
        elif isinstance(message, PrePrepare | ViewChange | NewView):
            message = msgspec.structs.replace(message, signature=self.draw.randbytes(64))
        else:
            return [saying]
        return [Saying(saying.to, message), saying]


class WrongDigest(Trick):
    """wrong-digest."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        conspiracy, index = self.conspiracy, puppet.index
        match saying.message:
            case PrePrepare(view, block, signature):
                body = Block(block.header, block.transactions[1:] or block.transactions * 2)
                return self.split(saying, PrePrepare(view, body, signature))
            case Prepare(ballot):
                wrong = msgspec.structs.replace(ballot, block_hash=conspiracy.any_hash())
                return [Saying(saying.to, conspiracy.prepare(index, wrong))]
            case Commit(vote):
                wrong_vote = msgspec.structs.replace(vote, block_hash=conspiracy.any_hash())
                return [Saying(saying.to, conspiracy.commit(index, wrong_vote))]
            case _:
                return [saying]


class WrongStateRoot(Trick):
    """wrong-state-root."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        message = saying.message
        if not isinstance(message, PrePrepare) or message.block.header.round != message.view:
            return [saying]
        header: Header = msgspec.structs.replace(
            message.block.header, state_root=self.conspiracy.any_hash()
        )
        block = Block(header, message.block.transactions)
        return [Saying(saying.to, self.conspiracy.pre_prepare(puppet.index, message.view, block))]


class TimeLiar(Trick):
    """time-liar."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        message = saying.message
        if not isinstance(message, PrePrepare) or message.block.header.round != message.view:
            return [saying]
        shift_ms = self.conspiracy.clock_bound_ms * 9 // 10
        block = self.conspiracy.rebuild(message.block, message.view, shift_ms, empty=False)
        if block is None:
            return [saying]
        return [Saying(saying.to, self.conspiracy.pre_prepare(puppet.index, message.view, block))]


class HastyViewChange(Trick):
    """hasty-view-change."""

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        seat = puppet.seat
        if seat is None or not self.sometimes():
            return
        view, set_id = puppet.inner.view, puppet.inner.validators.set_id
        yield Saying(puppet.others, Suspect(set_id=set_id, view=view))
        if self.draw.random() < 0.5:
            body = _empty_change(set_id, seat, view + self.draw.choice((1, 1, 2, 100)))
            yield Saying(puppet.others, self.conspiracy.view_change(body))


class StaleViewChange(Trick):
    """stale-view-change."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case ViewChange(body) if body.replica == puppet.seat:
                stale = _empty_change(body.set_id, body.replica, body.view)
                return [Saying(saying.to, self.conspiracy.view_change(stale))]
            case _:
                return [saying]


class MalformedViewChange(Trick):
    """malformed-view-change."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case ViewChange(body) if body.replica == puppet.seat:
                lies = (_twice, _unproved, _future, _headless, self._invented)
                wrong = self.draw.choice(lies)(body)
                return [Saying(saying.to, self.conspiracy.view_change(wrong))]
            case _:
                return [saying]

    def _invented(self, body: ViewChangeBody) -> ViewChangeBody:
        """Another block than the prepared one was prepared, it says, later: nobody signed for it."""
        if not body.prepared:
            return body
        real = body.prepared[0]
        timestamp_ms = real.header.timestamp_ms + 1
        header = msgspec.structs.replace(real.header, timestamp_ms=timestamp_ms)
        invented = msgspec.structs.replace(real, header=header, view=body.view - 1)
        return msgspec.structs.replace(body, prepared=(invented,))


class BogusNewView(Trick):
    """bogus-new-view."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case NewView(body) if self.conspiracy.leads(puppet.index, body.set_id, body.view):
                ways = (self._forgets, self._forgets, self._biased, self._own)
                bogus = self.draw.choice(ways)(puppet, body)
                opened = Saying(saying.to, self.conspiracy.new_view(puppet.index, bogus))
                forgotten = body.proposals[:1] if not bogus.proposals else ()
                rivals = [self._rival(puppet.index, each.ballot) for each in forgotten]
                return [opened, *(Saying(saying.to, said) for pair in rivals for said in pair)]
            case _:
                return [saying]

    def _rival(self, index: int, ballot: Ballot) -> tuple[Wire, ...]:
        """In the place of a block that should be proposed again, one of its own, and a vote for it."""
        conspiracy = self.conspiracy
        block = conspiracy.proposed(ballot.block_hash)
        rival = block and conspiracy.rebuild(block, ballot.view, 1, empty=self.draw.random() < 0.5)
        if not rival:
            return ()
        vote = CommitVote(
            set_id=ballot.set_id, view=ballot.view, height=rival.height, block_hash=rival.hash
        )
        proposal = conspiracy.pre_prepare(index, ballot.view, rival)
        return proposal, conspiracy.commit(index, vote)

    def _forgets(self, _puppet: Puppet, body: NewViewBody) -> NewViewBody:
        """What should be proposed again is not."""
        return msgspec.structs.replace(body, proposals=())

    def _biased(self, puppet: Puppet, body: NewViewBody) -> NewViewBody:
        """Accomplices say that they prepared nothing; the choice follows from what they all say."""
        changes = tuple(
            self.conspiracy.view_change(_empty_change(body.set_id, change.body.replica, body.view))
            if self.conspiracy.node(change.body.replica, body.set_id) in self.conspiracy.signers
            else change
            for change in body.view_changes
        )
        root = puppet.inner._term.root  # noqa: SLF001 - a traitor knows its own machine
        choice = choose([change.body for change in changes], root)
        return msgspec.structs.replace(
            body, view_changes=changes, proposals=self._sign(puppet.index, choice, body.view)
        )

    def _own(self, puppet: Puppet, body: NewViewBody) -> NewViewBody:
        """Another block stands where the proved one should."""
        wrong = tuple(
            msgspec.structs.replace(proposal.ballot, block_hash=self.conspiracy.any_hash())
            for proposal in body.proposals
        )
        signed = tuple(self._reproposal(puppet.index, ballot) for ballot in wrong)
        return msgspec.structs.replace(body, proposals=signed)

    def _sign(self, index: int, choice: Choice, view: int) -> tuple[Reproposal, ...]:
        return tuple(self._reproposal(index, b) for b in ballots(choice, view))

    def _reproposal(self, index: int, ballot: Ballot) -> Reproposal:
        signature = self.conspiracy.sign_ballot(index, Domain.PBFT_PRE_PREPARE, ballot)
        return Reproposal(ballot=ballot, signature=signature)


class Amnesia(Trick):
    """amnesia; the replica inside is an `Amnesiac`, which asks whether this is active."""


class BlockLiar(Trick):
    """block-liar."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case CertifiedBlocks(first, blocks):
                return [Saying(saying.to, CertifiedBlocks(first, self._garbage(blocks)))]
            case Body(block):
                other = Block(block.header, block.transactions[1:])
                return [Saying(saying.to, Body(other))]
            case Status():
                claim = saying.message.height + self.draw.choice((0, 5, 1_000))
                lie = msgspec.structs.replace(saying.message, height=claim)
                return [Saying(saying.to, lie)]
            case _:
                return [saying]

    def _garbage(self, blocks: tuple[CertifiedBlock, ...]) -> tuple[CertifiedBlock, ...]:
        choice = self.draw.randrange(4)
        if choice == 0 or not blocks:
            return ()
        if choice == 1:
            return blocks[:1]
        if choice == 2:
            return tuple(reversed(blocks))
        first = blocks[0]
        cut = Block(first.block.header, first.block.transactions[1:])
        return (msgspec.structs.replace(first, block=cut), *blocks[1:])


class SnapshotLiar(Trick):
    """snapshot-liar."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case Snapshot(_, checkpoint) if checkpoint is not None:
                lies = (self._other_state, self._other_body, self._cut, self._proofless)
                return [Saying(saying.to, self.draw.choice(lies)(saying.message, checkpoint))]
            case Part():
                return [Saying(saying.to, self._part(saying.message))]
            case Status():
                claim = saying.message.height + self.draw.choice((0, 100, 10_000))
                lie = msgspec.structs.replace(saying.message, height=claim)
                return [Saying(saying.to, lie)]
            case _:
                return [saying]

    def _other_state(self, message: Snapshot, checkpoint: Checkpoint) -> Snapshot:
        """The certificate is real, the header is not."""
        block = checkpoint.block
        header = msgspec.structs.replace(block.header, state_root=self.conspiracy.any_hash())
        return _with(message, checkpoint, block=Block(header, block.transactions))

    def _other_body(self, message: Snapshot, checkpoint: Checkpoint) -> Snapshot:
        block = checkpoint.block
        other = Block(block.header, block.transactions[1:] or block.transactions * 2)
        return _with(message, checkpoint, block=other, events=checkpoint.events[1:])

    def _cut(self, message: Snapshot, checkpoint: Checkpoint) -> Snapshot:
        """A handover is left out: nobody can tell who certified the checkpoint."""
        return msgspec.structs.replace(message, handovers=message.handovers[:-1])

    def _proofless(self, message: Snapshot, checkpoint: Checkpoint) -> Snapshot:
        certificate = checkpoint.certificate
        few = msgspec.structs.replace(certificate, signatures=certificate.signatures[:1])
        return _with(message, checkpoint, certificate=few)

    def _part(self, message: Part) -> Part:
        """Nothing, less than there is, something else in its place, or that of another height."""
        part, leaves = message.part, message.part.leaves
        match self.draw.randrange(4):
            case 0:
                return msgspec.structs.replace(message, part=NO_PART)
            case 1:
                part = msgspec.structs.replace(part, leaves=leaves[:-1])
            case 2 if part.hashes:
                part = msgspec.structs.replace(part, hashes=self.draw.randbytes(len(part.hashes)))
            case _:
                return msgspec.structs.replace(message, height=message.height + 1)
        return msgspec.structs.replace(message, part=part)


class Withhold(Trick):
    """withhold."""

    def __init__(self, fault: Behave, conspiracy: Conspiracy) -> None:
        super().__init__(fault, conspiracy)
        self._denies = self.draw.random() < _DENIES

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case CertifiedBlocks(first):
                denial: Wire = CertifiedBlocks(first, ())
            case Snapshot():
                denial = Snapshot(handovers=(), checkpoint=None)
            case Part():
                denial = msgspec.structs.replace(saying.message, part=NO_PART)
            case Body():
                return ()
            case _:
                return [saying]
        return [Saying(saying.to, denial)] if self._denies else ()


class Flood(Trick):
    """flood."""

    def __init__(self, fault: Behave, conspiracy: Conspiracy) -> None:
        super().__init__(fault, conspiracy)
        self._next_ms: Instant = 0
        self._view = 0
        self._nonces = itertools.count()

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        seat, replica = puppet.seat, puppet.inner
        if seat is None or now < self._next_ms:
            return
        self._next_ms = now + _FLOOD_MS
        size, head = replica.validators.size, replica.head.header
        rounds = max(self._view, replica.view) // size + 1
        self._view = rounds * size + seat
        header = msgspec.structs.replace(
            head, height=head.height + 1, parent=head.hash, round=self._view, timestamp_ms=now
        )
        block = Block(header, tuple(self._transactions(puppet.index)))
        proposal = self.conspiracy.pre_prepare(puppet.index, self._view, block)
        yield Saying(puppet.others, proposal)

    def _transactions(self, index: int) -> Iterator[Transaction]:
        """Never the same, so no signature is known."""
        own = self.conspiracy.signers[index]
        calls = (Transfer(denom="WATT", to=own.public_key, amount=1),)
        for nonce in itertools.islice(self._nonces, _FLOOD):
            yield sign_transaction(own, self.conspiracy.chain_id, nonce, calls)


class Mutate(Trick):
    """A `round-mutation`: changes the messages of one round."""

    def __init__(self, fault: RoundMutation, conspiracy: Conspiracy) -> None:
        super().__init__(
            Behave(node=fault.node, behaviour="silent", victims=fault.victims), conspiracy
        )
        self._round = fault.round
        self._mutation = fault.mutation
        self._everybody = not fault.victims

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        if round_of(saying.message) != self._round:
            return [saying]
        changed = self._changed(puppet.index, saying.message)
        if self._everybody:
            return [] if changed is None else [Saying(saying.to, changed)]
        wronged = tuple(i for i in saying.to if i in self.victims)
        rest = tuple(i for i in saying.to if i not in self.victims)
        kept = [Saying(rest, saying.message)]
        return kept if changed is None else [*kept, Saying(wronged, changed)]

    def _changed(self, index: int, message: Wire) -> Wire | None:
        if self._mutation == "drop":
            return None
        if self._mutation == "earlier-message":
            same = [m for m in self.conspiracy.heard if type(m) is type(message)]
            return self.draw.choice(same) if same else None
        match message:
            case PrePrepare(view, block):
                return self.conspiracy.pre_prepare(index, self._view(view), block)
            case Prepare(ballot):
                return self.conspiracy.prepare(index, self._vote(ballot))
            case Commit(vote):
                return self.conspiracy.commit(index, self._vote(vote))
            case ViewChange(body):
                changed = msgspec.structs.replace(body, view=self._view(body.view))
                return self.conspiracy.view_change(changed)
            case NewView(body):
                opened = msgspec.structs.replace(body, view=self._view(body.view))
                return self.conspiracy.new_view(index, opened)
            case _:
                return message

    def _view(self, view: int) -> int:
        match self._mutation:
            case "view-up":
                return view + 1
            case "view-down":
                return max(0, view - 1)
            case "any-view":
                return self.draw.randrange(1_000)
            case _:
                return view

    def _vote(self, vote: _V) -> _V:
        height, hash_ = vote.height, vote.block_hash
        if self._mutation in ("height-up", "height-down"):
            height = max(1, height + (1 if self._mutation == "height-up" else -1))
        elif self._mutation == "any-digest":
            hash_ = self.conspiracy.any_hash()
        elif self._mutation == "earlier-digest" and self.conspiracy.hashes:
            hash_ = self.draw.choice(self.conspiracy.hashes)
        view = self._view(vote.view)
        return msgspec.structs.replace(vote, view=view, height=height, block_hash=hash_)


TRICKS: Final[dict[str, type[PbftTrick]]] = {
    "silent": Silent,
    "selective-silence": SelectiveSilence,
    "delay": Late,
    "equivocate": Equivocate,
    "conflicting-votes": ConflictingVotes,
    "forge-signature": ForgeSignature,
    "wrong-digest": WrongDigest,
    "wrong-state-root": WrongStateRoot,
    "time-liar": TimeLiar,
    "censor": Censor,
    "replay": Replay,
    "hasty-view-change": HastyViewChange,
    "stale-view-change": StaleViewChange,
    "malformed-view-change": MalformedViewChange,
    "bogus-new-view": BogusNewView,
    "block-liar": BlockLiar,
    "snapshot-liar": SnapshotLiar,
    "withhold": Withhold,
    "amnesia": Amnesia,
    "flood": Flood,
}


def _empty_change(set_id: int, seat: int, view: int) -> ViewChangeBody:
    return ViewChangeBody(set_id=set_id, view=view, replica=seat, head=None, prepared=())


def _with(message: Snapshot, checkpoint: Checkpoint, **changed: object) -> Snapshot:
    """A snapshot with something else in its checkpoint."""
    return msgspec.structs.replace(
        message, checkpoint=msgspec.structs.replace(checkpoint, **changed)
    )


def _twice(body: ViewChangeBody) -> ViewChangeBody:
    return msgspec.structs.replace(body, prepared=(body.prepared * 2)[:16])


def _unproved(body: ViewChangeBody) -> ViewChangeBody:
    cut = tuple(msgspec.structs.replace(c, prepares=c.prepares[:1]) for c in body.prepared)
    return msgspec.structs.replace(body, prepared=cut)


def _future(body: ViewChangeBody) -> ViewChangeBody:
    later = tuple(msgspec.structs.replace(c, view=body.view + 1) for c in body.prepared)
    return msgspec.structs.replace(body, prepared=later)


def _headless(body: ViewChangeBody) -> ViewChangeBody:
    return msgspec.structs.replace(body, head=None)


class Traitors(AnyTraitors[PbftTrick]):
    """The traitors of one PBFT chain, whatever else it is part of.

    Args:
        faults: of the run; those that make a traitor of a replica name it by its index.
        conspiracy: their keys and memory.
    """

    def __init__(self, faults: Iterable[Fault], conspiracy: Conspiracy) -> None:
        super().__init__(_tricks(faults, conspiracy))
        self.ring: Final = conspiracy

    def replica_type(self, index: int) -> type[Replica]:
        """What the machine of a traitor is inside."""
        amnesia = any(isinstance(trick, Amnesia) for trick in self.tricks_of(index))
        return Amnesiac if amnesia else Replica

    def play(self, replica: Replica, index: int, *, twin: bool = False) -> Replica | Puppet:
        """A traitor's machine: the real one, with what it does around it.

        Args:
            replica: of `replica_type`.
            index: of its node.
            twin: it is the second with this key, which adds nothing to that.
        """
        tricks = self.tricks_of(index)
        if isinstance(replica, Amnesiac):
            amnesia = [trick for trick in tricks if isinstance(trick, Amnesia)]
            replica.forgets = lambda: any(trick.active for trick in amnesia)
        if twin or not tricks:
            return replica
        return Puppet(replica, index, self.ring, tricks)


def _tricks(
    faults: Iterable[Fault], conspiracy: Conspiracy
) -> Iterator[tuple[Behave | RoundMutation, PbftTrick]]:
    for fault in faults:
        if isinstance(fault, RoundMutation):
            yield fault, Mutate(fault, conspiracy)
        elif isinstance(fault, Behave) and fault.behaviour in TRICKS:
            yield fault, TRICKS[fault.behaviour](fault, conspiracy)
