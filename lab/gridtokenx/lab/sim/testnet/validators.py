"""Traitors among the public chain's validators: what a Byzantine author and voter does.

Law of the file: as in `sim/treason.py`; a traitor signs with its own key only.

======================  ========================================================================
behaviour               what it does
======================  ========================================================================
silent                  says nothing
selective-silence       says nothing to its victims (a drawn half, if none are named)
delay                   says everything later
equivocate              authoring, seals two blocks for one slot, and shows each to one half
conflicting-votes       agrees with everybody: sends each honest voter that one's own vote
forge-signature         adds votes and blocks with bad signatures, in its own name and in others'
wrong-state-root        authoring, seals blocks whose state root is wrong
censor                  takes and passes on no transactions
replay                  says again what anybody said earlier
block-liar              claims heights that it lacks, and answers for blocks with garbage
twin                    runs twice with one key (two nodes of the world: `network.py`)
======================  ========================================================================
"""

# ruff: noqa: D102, ARG002 - hooks are described once, in `AnyTrick`

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import Event, Instant, Received
from gridtokenx.finality.justifications import Stage
from gridtokenx.lab.faults import Behave, Fault
from gridtokenx.lab.sim.treason import (
    AnyPuppet,
    AnyTraitors,
    AnyTrick,
    Censor,
    Late,
    Replay,
    Ring,
    Saying,
    SelectiveSilence,
    Silent,
)
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import Proposal
from gridtokenx.public.grandpa.messages import SignedVote, Votes
from gridtokenx.public.machine import PublicNode
from gridtokenx.public.messages import Branch, FinalBlocks, NewBlock, Status
from gridtokenx.public.slots import SealedBlock, seal

_HIGHER: Final = (1, 100, 10**6)
"""By how much a liar claims to be ahead."""


class Puppet(AnyPuppet[PublicNode, Ring]):
    """A machine around the node of a traitor."""


class Trick(AnyTrick[Puppet, Ring]):
    """Base of what a traitor does in the public chain's own words."""


ValidatorTrick: TypeAlias = AnyTrick[Puppet, Ring]


class Equivocate(Trick):
    """equivocate."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case NewBlock(sealed):
                rival = self._rival(puppet, sealed)
                return [saying] if rival is None else self.split(saying, NewBlock(rival))
            case _:
                return [saying]

    def _rival(self, puppet: Puppet, sealed: SealedBlock) -> SealedBlock | None:
        """Another block for the slot, as valid."""
        node, header = puppet.inner, sealed.header
        parent = node._tree.get(header.parent)  # noqa: SLF001 - a traitor knows its own machine
        if parent is None:
            return None
        proposal = Proposal(header.round, header.timestamp_ms + 1, header.digest)
        built, _ = node._ledger.build(  # noqa: SLF001
            parent.executed, proposal, sealed.block.transactions
        )
        return seal(built.block, self.conspiracy.signers[puppet.index])


class ConflictingVotes(Trick):
    """conflicting-votes."""

    def __init__(self, fault: Behave, conspiracy: Ring) -> None:
        super().__init__(fault, conspiracy)
        self._agreed: list[tuple[int, SignedVote]] = []

    def hear(self, event: Event) -> Event | None:
        if isinstance(event, Received) and isinstance(event.verified.message, Votes):
            voter = self.conspiracy.nodes[event.verified.sender]
            for vote in event.verified.message.votes:
                if self._is_own(voter, vote) and voter not in self.conspiracy.signers:
                    self._agreed.append((voter, vote))
        return event

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        """What it would vote itself nobody hears."""
        if isinstance(saying.message, Votes):
            others = tuple(v for v in saying.message.votes if not self._is_own(puppet.index, v))
            return [Saying(saying.to, Votes(others))] if others else ()
        return [saying]

    def volunteer(self, puppet: Puppet, now: Instant) -> Iterable[Saying]:
        agreed, self._agreed = self._agreed, []
        for voter, vote in agreed:
            seat = self.conspiracy.seat(puppet.index, vote.set_id)
            if seat is None or vote.stage == Stage.PRIMARY_PROPOSE:
                continue
            if self.fault.share < 1 and self.draw.random() >= self.fault.share:
                continue
            yield Saying((voter,), Votes((self._vote(puppet.index, seat, vote),)))

    def _vote(self, index: int, seat: int, like: SignedVote) -> SignedVote:
        unsigned = msgspec.structs.replace(like, authority=seat, signature=bytes(64))
        signed = unsigned.signed_bytes(self.conspiracy.chain_id)
        signature = self.conspiracy.signers[index].sign(signed)
        return msgspec.structs.replace(unsigned, signature=signature)

    def _is_own(self, index: int, vote: SignedVote) -> bool:
        return self.conspiracy.seat(index, vote.set_id) == vote.authority


class ForgeSignature(Trick):
    """forge-signature."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        forged = self._forged(puppet, saying.message)
        return [saying] if forged is None else [Saying(saying.to, forged), saying]

    def _forged(self, puppet: Puppet, message: Wire) -> Wire | None:
        match message:
            case Votes(votes):
                author = self.draw.randrange(puppet.inner.validators.size)
                vote = msgspec.structs.replace(
                    votes[0], authority=author, signature=self.draw.randbytes(64)
                )
                return Votes((vote,))
            case NewBlock(sealed):
                return NewBlock(SealedBlock(sealed.block, self.draw.randbytes(64)))
            case _:
                return None


class WrongStateRoot(Trick):
    """wrong-state-root."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case NewBlock(sealed):
                root = self.conspiracy.any_hash()
                header = msgspec.structs.replace(sealed.header, state_root=root)
                wrong = Block(header, sealed.block.transactions)
                signer = self.conspiracy.signers[puppet.index]
                return [Saying(saying.to, NewBlock(seal(wrong, signer)))]
            case _:
                return [saying]


class BlockLiar(Trick):
    """block-liar."""

    def say(self, puppet: Puppet, saying: Saying) -> Iterable[Saying]:
        match saying.message:
            case Status() as status:
                ahead = self.draw.choice(_HIGHER)
                lie = msgspec.structs.replace(
                    status,
                    final_height=status.final_height + ahead,
                    final_hash=self.conspiracy.any_hash(),
                    best_height=status.best_height + ahead,
                    best_hash=self.conspiracy.any_hash(),
                )
                return [Saying(saying.to, lie)]
            case Branch(head, blocks):
                return [Saying(saying.to, Branch(head, self._garbage(blocks)))]
            case FinalBlocks(blocks, justification):
                garbage = FinalBlocks(self._garbage(blocks), justification)
                return [Saying(saying.to, garbage)]
            case _:
                return [saying]

    def _garbage(self, blocks: tuple[SealedBlock, ...]) -> tuple[SealedBlock, ...]:
        """Nothing, not all, or in the wrong order."""
        return self.draw.choice(((), blocks[1:], tuple(reversed(blocks))))


TRICKS: Final[dict[str, type[ValidatorTrick]]] = {
    "silent": Silent,
    "selective-silence": SelectiveSilence,
    "delay": Late,
    "equivocate": Equivocate,
    "conflicting-votes": ConflictingVotes,
    "forge-signature": ForgeSignature,
    "wrong-state-root": WrongStateRoot,
    "censor": Censor,
    "replay": Replay,
    "block-liar": BlockLiar,
}


class Validators(AnyTraitors[ValidatorTrick]):
    """The traitors of the public chain.

    Args:
        faults: of the run, with nodes by their index on this chain.
        ring: their keys and memory.
    """

    def __init__(self, faults: Iterable[Fault], ring: Ring) -> None:
        super().__init__(_tricks(faults, ring))
        self.ring: Final = ring

    def play(self, node: PublicNode, index: int, *, twin: bool = False) -> PublicNode | Puppet:
        """A traitor's machine: the real one, with what it does around it."""
        tricks = self.tricks_of(index)
        return node if twin or not tricks else Puppet(node, index, self.ring, tricks)


def _tricks(faults: Iterable[Fault], ring: Ring) -> Iterator[tuple[Behave, ValidatorTrick]]:
    for fault in faults:
        if isinstance(fault, Behave) and fault.behaviour in TRICKS:
            yield fault, TRICKS[fault.behaviour](fault, ring)
