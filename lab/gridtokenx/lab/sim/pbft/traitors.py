"""What traitors have in common: a conspiracy, a puppet around the real machine, and tricks.

Law of the file: **a traitor has its own key and those of its accomplices, and no other.** It says what
it wants to whom it wants; it cannot sign for an honest replica. Inside runs the real machine, which
keeps it plausible; the puppet passes what that machine hears and says through tricks (`behaviours.py`).

Nodes are named by their index in the run, seats by their index in a set: a set may change.
"""

# ruff: noqa: ARG002 - hooks are described once, in `Trick`

import random
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

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
    TimerFired,
    Unknown,
)
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.faults import Behave
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import (
    Ballot,
    Commit,
    NewView,
    NewViewBody,
    Prepare,
    PrePrepare,
    ViewChange,
    ViewChangeBody,
    new_view_bytes,
    view_change_bytes,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import primary_of

_REMEMBERED: Final = 256
_BLOCKS: Final = 64
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
        self._blocks: Final[dict[bytes, Block]] = {}
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
            self._blocks[message.block.hash] = message.block
            if len(self._blocks) > _BLOCKS:
                del self._blocks[next(iter(self._blocks))]

    def proposed(self, hash_: bytes) -> Block | None:
        """A block that was proposed lately, as a traitor heard it."""
        return self._blocks.get(hash_)

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
        if members is None:
            return False
        return members.members[primary_of(view, members)] == self.keys[index]

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


class Late(Trick):
    """delay; the puppet holds what it says."""
