"""The members' operators: they change the replica set as the manifest says.

Law of the file: **an operator has the account of its own node, and only sees committed state.** One
change is carried out after another; each is proposed by a member and approved by the others through
whichever node they reach, and said again until its set is announced. A change that the set does not
allow (any more) is passed over, and that is said.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import Signer
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.manifest import Change
from gridtokenx.ledger.runtime import Admission, CallFailed, ExecutedBlock
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.pbft import membership
from gridtokenx.pbft.membership import (
    NEXT,
    OPEN,
    AddMember,
    ApproveChange,
    OpenProposal,
    ProposeChange,
    RemoveMember,
    ReplaceMember,
    changed,
    current_set,
    new_key,
    possession_bytes,
)


class Operators:
    """All operators of one chain.

    Args:
        changes: what they are to do, in this order.
        chain_id: of the chain.
        signer: of a node, by its index.
        admission: knows the nonces of accounts.
        draw: chooses who proposes.
        note: hears which changes the set did not allow.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        chain_id: bytes,
        signer: Callable[[int], Signer],
        admission: Admission,
        draw: random.Random,
        note: Callable[[str], None],
    ) -> None:
        self._changes: Final = changes
        self._chain_id: Final = chain_id
        self._signer: Final = signer
        self._admission: Final = admission
        self._draw: Final = draw
        self._note: Final = note
        self.refused: Final[list[str]] = []
        """Each change that was passed over, with the reason."""
        self._next = 0
        self._begun = -1
        self._numbers: dict[tuple[int, bytes], int] = {}

    def under_way(self, head: ExecutedBlock) -> bool:
        """Whether the change that comes next was begun and its set is not there yet."""
        self._skip(current_set(State(head.state)))
        return self._begun == self._next

    def say(
        self, head: ExecutedBlock, up: Sequence[int], since_start_ms: int
    ) -> Iterator[Transaction]:
        """What there is to say as of a committed block.

        Args:
            head: the newest block.
            up: honest nodes whose operators may act.
            since_start_ms: the time of the run.
        """
        state = State(head.state)
        members = current_set(state)
        self._skip(members)
        if self._next >= len(self._changes) or NEXT.has(state):
            return
        wanted = self._changes[self._next]
        if since_start_ms < wanted.at_ms or head.height < wanted.at_height:
            return
        self._begun = self._next
        seated = [i for i in up if members.index_of(self._signer(i).public_key) is not None]
        if not seated:
            return
        change = self._change(wanted)
        found = next((each for each in OPEN.get(state) if each.change == change), None)
        if found is None:
            yield self._sign(state, self._draw.choice(seated), self._proposal(members, change))
            return
        for node in seated:
            if not self._stands(found, node):
                yield self._sign(state, node, ApproveChange(proposal=found.proposal))

    def _skip(self, members: ValidatorSet) -> None:
        """Go on to the first change that the set allows."""
        while self._next < len(self._changes):
            try:
                changed(members, self._change(self._changes[self._next]))
            except CallFailed as refusal:
                if self._begun != self._next:  # else it is done
                    self._refuse(self._changes[self._next], refusal)
                self._next += 1
            else:
                return

    def _refuse(self, wanted: Change, refusal: CallFailed) -> None:
        line = f"change {self._next + 1} ({wanted.about}): {refusal}"
        self.refused.append(line)
        self._note(f"refused: {line}")

    def _change(self, wanted: Change) -> membership.Change:
        def key(node: int) -> bytes:
            return self._signer(node).public_key

        if wanted.add is not None:
            return AddMember(key=key(wanted.add), label=f"operator {wanted.add}")
        if wanted.remove is not None:
            return RemoveMember(key=key(wanted.remove))
        assert wanted.replace is not None, "the manifest was checked"
        assert wanted.by is not None, "the manifest was checked"
        return ReplaceMember(
            key=key(wanted.replace), by=key(wanted.by), label=f"operator {wanted.by}"
        )

    def _proposal(self, members: ValidatorSet, change: membership.Change) -> ProposeChange:
        proof = None
        if new_key(change) is not None:
            wanted = self._changes[self._next]
            newcomer = wanted.add if wanted.add is not None else wanted.by
            assert newcomer is not None, "the manifest was checked"
            what = possession_bytes(self._chain_id, members.set_id, change)
            proof = self._signer(newcomer).sign(what)
        return ProposeChange(change=change, proof=proof)

    def _stands(self, proposal: OpenProposal, node: int) -> bool:
        key = self._signer(node).public_key
        return any(voice.member == key for voice in proposal.ballot.voices)

    def _sign(self, state: State, node: int, call: Wire) -> Transaction:
        signer = self._signer(node)
        nonce = self._admission.standing(state, signer.public_key).next_nonce
        if nonce is None:  # any number will do that was not used: the same for the same words
            nonce = self._numbers.setdefault((node, encode(call)), len(self._numbers) + 1)
        return sign_transaction(signer, self._chain_id, nonce, [call])
