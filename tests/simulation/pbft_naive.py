"""The versions that failed: each is our replica with one rule as somebody's implementation had it.

`test_pbft_regressions.py` shows each fail in the run that ours survives. Some are known to the simulator,
too (`gtx sim variants`), where sweeps find them.
"""

from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block
from gridtokenx.pbft.base import SILENCE
from gridtokenx.pbft.log import Slot
from gridtokenx.pbft.messages import Ballot, CertifiedHeader, ViewChange
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.terms import Term
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.view_change import ballots, choose, select_quorum
from gridtokenx.pbft.views import Views


class FewVotes(ValidatorSet, frozen=True, dict=True):
    """A set of which 2f + 1 votes are believed, whatever its size (IBFT 1.0, sawtooth-pbft)."""

    @property
    def quorum(self) -> int:
        return 2 * self.faulty + 1


class OneCheckpointViews(Views):
    """Counts only those view-changes that name the highest checkpoint."""

    def openable(self, height: int) -> tuple[ViewChange, ...] | None:
        if super().openable(height) is None:
            return None
        heights = {i: _checkpoint(change) for i, change in self.changes.items()}
        agreeing = [c for i, c in self.changes.items() if heights[i] == max(heights.values())]
        return select_quorum(agreeing, self.view, self._validators)


def _checkpoint(change: ViewChange) -> int:
    return 0 if change.body.head is None else change.body.head.header.height


class CountsOneCheckpoint(Replica):
    """Fabric #1111."""

    def _work_in(self, term: Term) -> None:
        super()._work_in(term)
        self._views = OneCheckpointViews(self._validators, self._me)


class UncountedViews(Views):
    """The new-view timer runs whoever moved."""

    def quorum_moved(self) -> bool:
        return not self.active


class LeavesAlone(Replica):
    """Sawtooth before #133, and BFT-SMaRt: a timer moves its replica, and the next one runs at once."""

    def _work_in(self, term: Term) -> None:
        super()._work_in(term)
        self._views = UncountedViews(self._validators, self._me)

    def _suspect(self, turn: Turn, reason: str) -> None:
        if self._views.active and self.seated:
            self._leave(turn, self._views.view + 1)


class TimesOnlyPreparing(Replica):
    """Sawtooth #68: once a block is prepared, nothing watches whether it is committed."""

    def _commit_vote(self, turn: Turn, slot: Slot, ballot: Ballot, block: Block) -> bool:
        voted = super()._commit_vote(turn, slot, ballot, block)
        if voted:
            self._cancel_timer(turn, SILENCE)
        return voted


class NeverUnlocks(Replica):
    """IBFT 1.0, and EIP-650 as revised: what was prepared once is all that is ever prepared there."""

    def _prepare(self, turn: Turn, slot: Slot, ballot: Ballot) -> bool:
        return not self._locked_on_another(slot, ballot) and super()._prepare(turn, slot, ballot)

    def _open(self, turn: Turn, quorum: tuple[ViewChange, ...]) -> None:
        choice = choose([change.body for change in quorum], self._term.root)
        for ballot in ballots(choice, self._views.view):
            if self._locked_on_another(self._log.slot(ballot.height), ballot):
                return
        super()._open(turn, quorum)

    def _locked_on_another(self, slot: Slot, ballot: Ballot) -> bool:
        return slot.prepared is not None and slot.prepared.header.hash != ballot.block_hash


class TrustingViews(Views):
    """Opens with whatever quorum is there first."""

    def openable(self, height: int) -> tuple[ViewChange, ...] | None:
        return super().openable(2**62)


class AsksWhoProves(Replica):
    """Ours, until it was found out: a proof is only a reason to ask its bearer for the block."""

    def _work_in(self, term: Term) -> None:
        super()._work_in(term)
        self._views = TrustingViews(self._validators, self._me)

    def _learn(self, head: CertifiedHeader) -> None:
        """Forgets it."""


class Hurried(Replica):
    """Gives every answer the same time, however often that was too short, and asks nobody beside."""

    def _fetch(self, turn: Turn) -> None:
        self._sync._late.clear()
        self._sync._failures.clear()
        super()._fetch(turn)


class HearsOnlyVotes(Replica):
    """A replica that the leader leaves out learns of nothing: it waits for a checkpoint."""

    def _fetch(self, turn: Turn) -> None:
        """Asks nobody."""
