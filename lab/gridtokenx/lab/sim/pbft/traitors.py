"""What traitors of a PBFT chain have in common: blocks that they play against each other, and votes.

What those of every engine have is in `sim/treason.py`.

Nodes are named by their index in the run, seats by their index in a set: a set may change.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Domain, Signer
from gridtokenx.core.machine import NodeId
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.treason import REMEMBERED, AnyPuppet, AnyTrick, Ring
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

_BLOCKS: Final = 64


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


class Conspiracy(Ring):
    """The traitors of one PBFT chain.

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
        super().__init__(validators, signers, ledger.chain_id, draw, keys)
        self.ledger: Final = ledger
        self.clock_bound_ms: Final = clock_bound_ms
        self.hashes: Final[deque[bytes]] = deque(maxlen=REMEMBERED)
        self._blocks: Final[dict[bytes, Block]] = {}
        self.rivals: Final[dict[tuple[int, int], tuple[Block, Block, frozenset[int]]]] = {}
        """By (view, height): two blocks, and who is to believe the second."""

    def note(self, message: Wire) -> None:
        """Remember what was said."""
        super().note(message)
        if isinstance(message, PrePrepare):
            self.hashes.append(message.block.hash)
            self._blocks[message.block.hash] = message.block
            if len(self._blocks) > _BLOCKS:
                del self._blocks[next(iter(self._blocks))]

    def proposed(self, hash_: bytes) -> Block | None:
        """A block that was proposed lately, as a traitor heard it."""
        return self._blocks.get(hash_)

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


class Puppet(AnyPuppet[Replica, Conspiracy]):
    """A machine around the replica of a traitor."""


class Trick(AnyTrick[Puppet, Conspiracy]):
    """Base of what a traitor does in PBFT's own words."""


PbftTrick: TypeAlias = AnyTrick[Puppet, Conspiracy]
"""A behaviour of a replica: one of its own words, or one that any machine can play."""
