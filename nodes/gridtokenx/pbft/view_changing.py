"""Leaving a view, opening the next, entering it.

Law of the file: **what a replica signs here is durable before it leaves, and what it enters it has
recomputed.** When to leave is counted in `views.py`; what a new view starts from is mathematics in
`view_change.py`; this layer signs, sends and obeys.

Theory: Castro & Liskov (OSDI 1999) section 4.4 and 4.5.2.
"""

from collections.abc import Iterable

from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import (
    NodeId,
)
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.base import (
    BLOCK,
    NEW_VIEW,
    OMISSION,
    SILENCE,
)
from gridtokenx.pbft.messages import (
    MAX_WINDOW,
    CertifiedHeader,
    NewView,
    NewViewBody,
    PreparedCertificate,
    Reproposal,
    Suspect,
    ViewChange,
    ViewChangeBody,
    new_view_bytes,
    view_change_bytes,
)
from gridtokenx.pbft.state_transfer import StateTransfer
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import MessageFault
from gridtokenx.pbft.view_change import Choice, ballots, check_new_view, choose


class ViewChanging(StateTransfer):
    """Moves from view to view."""

    # -- wanting to leave --------------------------------------------------------------------------

    def _suspect(self, turn: Turn, reason: str) -> None:
        """This replica's own patience is over: ask the others to leave the view."""
        views = self._views
        if not views.active or not self.seated:
            return
        if reason not in views.reasons:
            turn.log("warning", "suspect", view=views.view, reason=reason, height=self._head.height)
        views.reasons.add(reason)
        turn.broadcast(self._suspicion())
        self._consider_views(turn)

    def _suspicion(self) -> Suspect:
        return Suspect(set_id=self._validators.set_id, view=self._views.view)

    def _on_suspect(self, turn: Turn, sender: NodeId, message: Suspect) -> None:
        replica = self._validators.index_of(sender)
        if replica is None:
            raise MessageFault("not-a-member", "only members of the set may suspect")
        if message.set_id != self._validators.set_id:
            return
        if message.view < self._views.view:
            self._help_with_view(turn, sender)
        elif message.view == self._views.view:
            self._views.note_suspect(replica, turn.now + 3 * self._timing.retransmit_ms)
            self._consider_views(turn)
        else:
            self._ask(turn, sender)

    def _on_view_change(self, turn: Turn, message: ViewChange) -> None:
        body = message.body
        author = self._validators.members[body.replica]
        if body.head is not None and body.head.header.height > self._head.height:
            self._learn(body.head)
            self._sync.shows(author, body.head.header.height)
            self._fetch(turn)
        self._look_for_contradictions(turn, body.prepared)
        if self._is_later_period(body.view):
            return
        if self._views.note_change(message):
            self._consider_views(turn)
        elif self._is_past(body.view) or (body.view == self._views.view and self._views.active):
            self._help_with_view(turn, author)

    def _look_for_contradictions(
        self, turn: Turn, certificates: Iterable[PreparedCertificate]
    ) -> None:
        """A certificate may show that a primary proposed something else to others."""
        for certificate in certificates:
            slot = self._log.find(certificate.header.height)
            if slot is not None:
                ballot, signature = certificate.ballot, certificate.proposal
                self._report(turn, self._log.contradicts(slot, ballot, signature))

    def _learn(self, head: CertifiedHeader) -> None:
        """Somebody proves a block committed: it is, though its other voters never heard so.

        Those who voted for it have it. Without this only the one that shows the proof would be asked
        for the block, and a faulty one does not answer.
        """
        height = head.header.height
        if self._head.height < height <= self._head.height + self._timing.window:
            slot = self._log.slot(height)
            slot.proof = slot.proof or head.certificate

    def _stand_on(self, turn: Turn, executed: ExecutedBlock, proof: CommitCertificate) -> None:
        super()._stand_on(turn, executed, proof)
        if not self._views.active:
            self._consider_views(turn)

    def _consider_views(self, turn: Turn) -> None:
        """Leave, start the new-view timer, or open the view, as `views.py` says."""
        if not self.seated:
            return
        views = self._views
        while (destination := views.destination(turn.now)) is not None:
            if not self._leave(turn, destination):
                return
        if views.quorum_moved() and NEW_VIEW not in self._timers:
            self._set_timer(turn, NEW_VIEW, self._timing.patience_ms(max(0, views.attempts - 1)))
        quorum = views.openable(self._head.height)
        if quorum is not None:
            self._open(turn, quorum)

    # -- leaving -----------------------------------------------------------------------------------

    def _leave(self, turn: Turn, view: int) -> bool:
        """Take no further part in the view: sign what may have been committed in it (4.4)."""
        if self._me is None:
            return False
        body = ViewChangeBody(
            set_id=self._validators.set_id,
            view=view,
            replica=self._me,
            head=self._certified_head(),
            prepared=self.prepared_above_head(),
        )
        what = view_change_bytes(body, self._chain_id)
        signature = self._sign(turn, Domain.PBFT_VIEW_CHANGE, view, 0, what)
        if signature is None:
            return False
        turn.log("warning", "left-view", view=self._views.view, to=view, height=self._head.height)
        change = ViewChange(body, signature)
        self._omissions += OMISSION in self._views.reasons
        self._views.leave(change)
        self._journal.left_view(turn, change)
        self._end_view(turn)
        for name in (SILENCE, BLOCK, NEW_VIEW):
            self._cancel_timer(turn, name)
        turn.broadcast(change)
        self._consider_views(turn)
        return True

    def _certified_head(self) -> CertifiedHeader | None:
        if self._head_proof is None or self._head.hash == self._term.root.hash:
            return None
        return CertifiedHeader(header=self._head.header, certificate=self._head_proof)

    def prepared_above_head(self) -> tuple[PreparedCertificate, ...]:
        """What a view-change of this replica would prove, by height (4.4: P)."""
        found = [slot.prepared for slot in self._log.above(self._head.height)]
        return tuple(certificate for certificate in found if certificate is not None)[:MAX_WINDOW]

    def _end_view(self, turn: Turn) -> None:
        """Drop the overlays of the view; their transactions are still in the pool."""
        for slot in self._log.above(self._head.height):
            slot.end_view()
            self._journal.ended_view(turn, slot)
        self._wanted.clear()

    # -- opening and entering ----------------------------------------------------------------------

    def _open(self, turn: Turn, quorum: tuple[ViewChange, ...]) -> None:
        """As the new primary: prove the view, and propose again what its proof demands (4.4)."""
        view, set_id = self._views.view, self._validators.set_id
        choice = choose([change.body for change in quorum], self._term.root)
        proposals: list[Reproposal] = []
        for ballot in ballots(choice, view):
            signature = self._sign_ballot(turn, Domain.PBFT_PRE_PREPARE, ballot)
            if signature is None:
                return
            proposals.append(Reproposal(ballot=ballot, signature=signature))
        body = NewViewBody(
            set_id=set_id, view=view, view_changes=quorum, proposals=tuple(proposals)
        )
        what = new_view_bytes(body, self._chain_id)
        signature = self._sign(turn, Domain.PBFT_NEW_VIEW, view, 0, what)
        if signature is None:
            return
        new_view = NewView(body, signature)
        turn.broadcast(new_view)
        self._enter(turn, new_view, choice)

    def _on_new_view(self, turn: Turn, message: NewView) -> None:
        body = message.body
        if self._is_past(body.view) or (body.view == self._views.view and self._views.active):
            return
        choice = check_new_view(body, self._validators, self._term.root, self._rotation_blocks)
        if self._is_later_period(body.view):
            self._follow_heads(turn, body)
        else:
            self._enter(turn, message, choice)

    def _enter(self, turn: Turn, new_view: NewView, choice: Choice) -> None:
        body = new_view.body
        turn.log("info", "entered-view", view=body.view, again=len(body.proposals))
        self._views.enter(new_view, choice)
        self._journal.entered_view(turn, new_view)
        self._end_view(turn)
        for proposal in body.proposals:
            if proposal.ballot.height > self._head.height:
                slot = self._log.slot(proposal.ballot.height)
                slot.accept(proposal.ballot, proposal.signature)
                self._journal.accepted(turn, slot)
        self._cancel_timer(turn, NEW_VIEW)
        self._cancel_timer(turn, BLOCK)
        self._moved_ms = turn.now
        self._set_silence(turn)
        self._requests.restart_waits(turn.now)
        self._follow_heads(turn, body)

    def _follow_heads(self, turn: Turn, body: NewViewBody) -> None:
        """The authors of a new-view prove which blocks they have."""
        for change in body.view_changes:
            if change.body.head is not None:
                author = self._validators.members[change.body.replica]
                self._learn(change.body.head)
                self._sync.shows(author, change.body.head.header.height)
        self._fetch(turn)
