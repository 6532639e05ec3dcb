"""Traitors: what Byzantine replicas do, as wrappers between the machine and the network.

Law of the file: **a traitor has its own key and those of its accomplices, and no other.** It says what
it wants to whom it wants; it cannot sign for an honest replica. Inside runs the real machine, which
keeps it plausible; the wrapper changes what that machine hears and says.

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
amnesia                 forgets its locks: denies what it prepared, votes again (`amnesia.py`)
twin                    runs twice with one key (two nodes of the world: `run.py`)
======================  ========================================================================
"""

# ruff: noqa: D102, ARG002 - hooks are described once, in `Trick`

import random
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import msgspec

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Domain, Signer, sha256
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Instant,
    NodeId,
    Received,
    Send,
    SetTimer,
    SignatureCheck,
    Submitted,
    TimerFired,
    Unknown,
)
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.faults import Behave, RoundMutation
from gridtokenx.lab.sim.pbft.messages import round_of
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.runtime import ExecutedBlock, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import (
    Ballot,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    Commit,
    NewView,
    NewViewBody,
    Prepare,
    PrePrepare,
    Reproposal,
    Status,
    Suspect,
    Transactions,
    ViewChange,
    ViewChangeBody,
    new_view_bytes,
    view_change_bytes,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.view_change import Choice, ballots, choose

_V = TypeVar("_V", Ballot, CommitVote)
_REMEMBERED: Final = 256
_RIVALS: Final = 32
_VOLUNTEERS: Final = 0.05
"""In so many of its steps a traitor that may speak at any time does."""


@dataclass(frozen=True, slots=True)
class Saying:
    """One message on its way out, and for whom."""

    to: tuple[int, ...]
    message: Wire


class Blocks(Protocol):
    """What traitors need of a ledger, to make up blocks."""

    @property
    def chain_id(self) -> bytes:
        """In every header and signature."""
        ...

    def find(self, hash_: bytes) -> ExecutedBlock | None:
        """A block that was executed lately."""
        ...

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """See `Ledger.build`."""
        ...


class Conspiracy:
    """What the traitors of one run share: keys, memory, and the blocks that they play against each other.

    Args:
        validators: the chain's first set.
        signers: the traitors' keys, by the index of their nodes.
        ledger: builds rival blocks.
        clock_bound_ms: how far ahead a stamp is believed.
        draw: of everything that they do at random.
        keys: of all nodes by index, observers too; those of the set if None.
    """

    def __init__(
        self,
        validators: ValidatorSet,
        signers: dict[int, Signer],
        ledger: Blocks,
        clock_bound_ms: int,
        draw: random.Random,
        keys: Sequence[NodeId] | None = None,
    ) -> None:
        self.keys: Final = tuple(keys if keys is not None else validators.members)
        self.nodes: Final = {key: index for index, key in enumerate(self.keys)}
        self.sets: Final = {validators.set_id: validators}
        """Every set that a traitor has worked in."""
        self.signers: Final = signers
        self.ledger: Final = ledger
        self.chain_id: Final = ledger.chain_id
        self.clock_bound_ms: Final = clock_bound_ms
        self.draw: Final = draw
        self.heard: Final[deque[Wire]] = deque(maxlen=_REMEMBERED)
        self.hashes: Final[deque[bytes]] = deque(maxlen=_REMEMBERED)
        self.rivals: Final[dict[tuple[int, int], tuple[Block, Block, frozenset[int]]]] = {}
        """By (view, height): two blocks, and who is to believe the second."""

    def half(self) -> frozenset[int]:
        """A drawn half of the honest replicas."""
        honest = [i for i in range(len(self.keys)) if i not in self.signers]
        self.draw.shuffle(honest)
        return frozenset(honest[: (len(honest) + self.draw.randrange(2)) // 2])

    def note(self, message: Wire) -> None:
        """Remember what was said."""
        self.heard.append(message)
        if isinstance(message, PrePrepare):
            self.hashes.append(message.block.hash)

    # -- seats -----------------------------------------------------------------------------------

    def seat(self, index: int, set_id: int) -> int | None:
        """A node's index in a set; None if it has no seat there, as far as traitors know."""
        members = self.sets.get(set_id)
        return None if members is None else members.index_of(self.keys[index])

    def node(self, seat: int, set_id: int) -> int:
        """Whose seat that is."""
        return self.nodes[self.sets[set_id].members[seat]]

    def leads(self, index: int, set_id: int, view: int) -> bool:
        """Whether a node is the primary of a view."""
        members = self.sets.get(set_id)
        return members is not None and members.members[view % members.size] == self.keys[index]

    # -- signing ---------------------------------------------------------------------------------

    def pre_prepare(self, index: int, view: int, block: Block) -> PrePrepare:
        """A proposal of a traitor."""
        ballot = Ballot(
            set_id=block.header.set_id, view=view, height=block.height, block_hash=block.hash
        )
        return PrePrepare(view, block, self.sign_ballot(index, Domain.PBFT_PRE_PREPARE, ballot))

    def prepare(self, index: int, ballot: Ballot) -> Prepare:
        """A traitor's prepare."""
        seat = self.seat(index, ballot.set_id) or 0
        return Prepare(ballot, seat, self.sign_ballot(index, Domain.PBFT_PREPARE, ballot))

    def commit(self, index: int, vote: CommitVote) -> Commit:
        """A traitor's commit."""
        seat = self.seat(index, vote.set_id) or 0
        return Commit(vote, seat, self.signers[index].sign(vote.signed_bytes(self.chain_id)))

    def view_change(self, body: ViewChangeBody) -> ViewChange:
        """A traitor's view-change."""
        signer = self.signers[self.node(body.replica, body.set_id)]
        return ViewChange(body, signer.sign(view_change_bytes(body, self.chain_id)))

    def new_view(self, index: int, body: NewViewBody) -> NewView:
        """A traitor's new-view."""
        return NewView(body, self.signers[index].sign(new_view_bytes(body, self.chain_id)))

    def sign_ballot(self, index: int, domain: Domain, ballot: Ballot) -> bytes:
        """A traitor's signature of a ballot."""
        return self.signers[index].sign(ballot.signed_bytes(domain, self.chain_id))

    def rebuild(self, block: Block, view: int, shift_ms: int, *, empty: bool) -> Block | None:
        """Another block for the same height, valid as such."""
        parent = self.ledger.find(block.header.parent)
        if parent is None:
            return None
        proposal = Proposal(view, block.header.timestamp_ms + shift_ms)
        transactions = () if empty else block.transactions
        return self.ledger.build(parent, proposal, transactions)[0].block

    def any_hash(self) -> bytes:
        """Of nothing."""
        return sha256(self.draw.randbytes(8))


class Puppet:
    """A machine around the real one of a traitor.

    Args:
        inner: the real machine.
        index: of its node.
        conspiracy: its accomplices.
        tricks: what it does while they are active, in this order.
    """

    def __init__(
        self, inner: Replica, index: int, conspiracy: Conspiracy, tricks: "Sequence[Trick]"
    ) -> None:
        self.inner: Final = inner
        self.index: Final = index
        self.conspiracy: Final = conspiracy
        self.others: Final = tuple(i for i in range(len(conspiracy.keys)) if i != index)
        self._tricks: Final = tricks
        self._held: dict[Hashable, Saying] = {}
        self._holds = 0

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        return self.inner.verification(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """See `Machine.step`: what the real machine hears and says passes through the tricks."""
        if isinstance(event, TimerFired) and event.name in self._held:
            return list(self._say(self._held.pop(event.name)))
        active = [trick for trick in self._tricks if trick.active]
        heard: Event | None = event
        if isinstance(event, Received):
            self.conspiracy.note(event.verified.message)
        for trick in active:
            heard = None if heard is None else trick.hear(heard)
        effects = [] if heard is None else self.inner.step(now, heard)
        members = self.inner.validators
        self.conspiracy.sets.setdefault(members.set_id, members)
        if not active:
            return effects
        out: list[Effect] = []
        for effect in effects:
            out.extend(self._pass(now, effect, active))
        for trick in active:
            for saying in trick.volunteer(self, now):
                out.extend(self._say(saying))
        return out

    @property
    def seat(self) -> int | None:
        """Its index in the set that it works in; None without a seat."""
        return self.inner.validators.index_of(self.conspiracy.keys[self.index])

    def hold(self, now: Instant, saying: Saying, delay_ms: int) -> Effect:
        """Say it later."""
        self._holds += 1
        name = ("held", self._holds)
        self._held[name] = saying
        return SetTimer(name, now + delay_ms)

    def _pass(self, now: Instant, effect: Effect, active: "Sequence[Trick]") -> Iterator[Effect]:
        if isinstance(effect, Broadcast):
            sayings = [Saying(self.others, effect.message)]
        elif isinstance(effect, Send):
            index = self.conspiracy.nodes.get(effect.to)
            if index is None:
                yield effect
                return
            sayings = [Saying((index,), effect.message)]
        else:
            yield effect
            return
        for trick in active:
            if isinstance(trick, Late):
                for saying in sayings:
                    if trick.concerns(saying.message):
                        yield self.hold(now, saying, trick.fault.delay_ms)
                sayings = [saying for saying in sayings if not trick.concerns(saying.message)]
            else:
                sayings = [new for old in sayings for new in trick.say_some(self, old)]
        for saying in sayings:
            yield from self._say(saying)

    def _say(self, saying: Saying) -> Iterator[Effect]:
        if saying.to == self.others:
            yield Broadcast(saying.message)
            return
        for index in saying.to:
            yield Send(self.conspiracy.keys[index], saying.message)


class Trick:
    """Base of all behaviours: does nothing.

    Args:
        fault: from the manifest.
        conspiracy: shared with the other traitors.
    """

    def __init__(self, fault: Behave, conspiracy: Conspiracy) -> None:
        self.fault: Final = fault
        self.conspiracy: Final = conspiracy
        self.draw: Final = conspiracy.draw
        self.active = False
        self.victims: Final = frozenset(fault.victims) or conspiracy.half()

    def concerns(self, message: Wire) -> bool:
        """Whether the fault is about messages of this kind."""
        kinds = self.fault.messages
        return not kinds or type(message).__name__ in kinds

    def hear(self, event: Event) -> Event | None:
        """What the real machine hears instead."""
        return event

    def say_some(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        """`say`, for the share of opportunities that it uses."""
        if not self.concerns(saying.message):
            return [saying]
        if self.fault.share < 1 and self.draw.random() >= self.fault.share:
            return [saying]
        return self.say(puppet, saying)

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        """What is said instead."""
        return [saying]

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        """What is said beside."""
        return ()

    def split(self, saying: Saying, message: Wire) -> list[Saying]:
        """The victims get `message`, the rest what was meant."""
        wronged = tuple(i for i in saying.to if i in self.victims)
        rest = tuple(i for i in saying.to if i not in self.victims)
        return [Saying(rest, saying.message), Saying(wronged, message)]

    def sometimes(self) -> bool:
        """Whether a volunteer speaks now."""
        return self.draw.random() < _VOLUNTEERS * self.fault.share


class Silent(Trick):
    """silent."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        return ()


class SelectiveSilence(Trick):
    """selective-silence."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        return [Saying(tuple(i for i in saying.to if i not in self.victims), saying.message)]


class Late(Trick):
    """delay; the puppet holds what it says."""


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


class Censor(Trick):
    """censor."""

    def hear(self, event: Event) -> Event | None:
        if isinstance(event, Submitted):
            return None
        if isinstance(event, Received) and isinstance(event.verified.message, Transactions):
            return None
        return event


class Replay(Trick):
    """replay."""

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        if self.conspiracy.heard and self.sometimes():
            yield Saying(puppet.others, self.draw.choice(self.conspiracy.heard))


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
                wrong = self.draw.choice((_twice, _unproved, _future, _headless))(body)
                return [Saying(saying.to, self.conspiracy.view_change(wrong))]
            case _:
                return [saying]


class BogusNewView(Trick):
    """bogus-new-view."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case NewView(body) if self.conspiracy.leads(puppet.index, body.set_id, body.view):
                bogus = self.draw.choice((self._forgets, self._biased, self._own))(puppet, body)
                return [Saying(saying.to, self.conspiracy.new_view(puppet.index, bogus))]
            case _:
                return [saying]

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


TRICKS: Final[dict[str, type[Trick]]] = {
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
    "amnesia": Amnesia,
}


def _empty_change(set_id: int, seat: int, view: int) -> ViewChangeBody:
    return ViewChangeBody(set_id=set_id, view=view, replica=seat, head=None, prepared=())


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
