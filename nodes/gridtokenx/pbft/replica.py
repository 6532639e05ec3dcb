"""The PBFT replica: one machine for the consortium chain and the oracle chain.

Law of the file: **a replica votes at most once for each (view, height) and purpose, and only for a
block that it has executed itself upon its own prepared or committed parent.** What it promises is in
the step's batch before it leaves (`turn.py`), and every signature passes the high-water marks
(`marks.py`).

Theory: Castro & Liskov, "Practical Byzantine Fault Tolerance" (OSDI 1999), the signed variant; the
quorum is that of `core/quorum.py`, 2f + 1 only where n = 3f + 1. "thesis" is Castro's (MIT, 2001).

This file is the normal case and the dispatch; it stands on `view_changing.py`, which stands on
`state_transfer.py` (snapshots) and `catch_up.py` (committing, helping), which stand on `base.py`
(state, timers, signatures).

==================  ======================================  ============================  ==========
event               if                                      then                          section
==================  ======================================  ============================  ==========
block timer         primary, parent prepared or committed   build, pre-prepare            4.2
PrePrepare          of my view, first here, executes        accept, prepare               4.2, 4.6
Prepare             with the pre-prepare q - 1 match        prepared: commit              4.2
Commit              q match, block here                     committed: next height        4.2
silence timer       no block in time                        suspect                       4.4
request timer       a submission waited its bound           suspect                       4.4
Suspect             f + 1                                   view-change                   4.4, 4.5.2
ViewChange          f + 1 beyond my view                    view-change, smallest         4.5.2
ViewChange          a quorum, I am the new primary          new-view                      4.4
ViewChange          a quorum                                start new-view timer          4.5.2
NewView             recomputed choice matches               enter, prepare its proposals  4.4
Status              the sender is behind                    help: status, new-view        4.4 end
retransmit timer    nothing moved                           own votes and status again    thesis 5.2
==================  ======================================  ============================  ==========

Ours differs:

* One block per sequence number, chained: n + 1 is prepared only upon a prepared or committed n.
* A commit certificate is believed in any view, even while changing views: it is proof by itself.
* Every certified block is a stable checkpoint, for its header proves the state; the low watermark
  is the last committed height. Who lags fetches certified blocks (`sync.py`).
* A height that is committed here is not voted on again in a new view; who asks gets the proof.
* Leaving a view takes f + 1 suspicions (`views.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Domain, Signer
from gridtokenx.core.machine import (
    Effect,
    Event,
    Instant,
    NodeId,
    PeerConnected,
    Reader,
    Received,
    SignatureCheck,
    Start,
    Submitted,
    TimerFired,
    Unknown,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.records import (
    block_writes,
    damaged,
    load_block,
    load_finality,
)
from gridtokenx.ledger.runtime import ExecutedBlock, InvalidBlock, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.base import (
    BLOCK,
    CHECK_MS,
    GOSSIP,
    OMISSION,
    REQUEST,
    RETRANSMIT,
)
from gridtokenx.pbft.catch_up import check_transactions
from gridtokenx.pbft.journal import ViewMemory
from gridtokenx.pbft.log import Slot
from gridtokenx.pbft.messages import (
    Ballot,
    Body,
    CertifiedBlocks,
    Commit,
    FetchBlocks,
    FetchBody,
    FetchPart,
    FetchSnapshot,
    NewView,
    Part,
    Prepare,
    PrePrepare,
    Snapshot,
    Status,
    Suspect,
    Transactions,
    ViewChange,
    set_of,
)
from gridtokenx.pbft.requests import Application, batches
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.terms import ValidatorsOf, current_term, hands_over, term_above
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import MessageFault
from gridtokenx.pbft.view_change import choose
from gridtokenx.pbft.view_changing import ViewChanging


class Replica(ViewChanging):
    """One member of a PBFT chain; see the head of the file. Built by `restore`."""

    @classmethod
    def restore(
        cls,
        reader: Reader,
        application: Application,
        validators: ValidatorSet,
        signer: Signer,
        genesis: ExecutedBlock,
        timing: Timing,
        pool: Pool | None = None,
        validators_of: ValidatorsOf | None = None,
        rotation_blocks: int = 0,
    ) -> Self:
        """A replica as its earlier lives left it, or a new one on an empty disk.

        Args:
            reader: what earlier lives persisted.
            application: executes blocks.
            validators: the chain's first set.
            signer: the replica's key; one without a seat observes until it gets one.
            genesis: block 0.
            timing: how long to wait for what.
            pool: where submissions wait; a new one if None.
            validators_of: reads from the state after a block who finalises the next one. Without it
                the first set stays for ever.
            rotation_blocks: see `ReplicaBase`.

        Raises:
            LocalFault: the stored state is damaged or of another chain.
        """
        replica = cls(
            application,
            validators,
            validators_of or (lambda _state: validators),
            signer,
            genesis,
            reader,
            timing,
            Pool() if pool is None else pool,
            rotation_blocks,
        )
        replica._restore_head()
        replica._restore_votes()
        return replica

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        if isinstance(message, Prepare | Commit) and self._is_needless(message):
            return ()
        if isinstance(message, PrePrepare | NewView) and self._is_over(message):
            return ()
        return self._verification.checks(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """Take one event; see `Machine.step`."""
        turn = Turn(now)
        match event:
            case Received(verified):
                self._receive(turn, verified.sender, verified.message)
            case TimerFired(name):
                self._timers.pop(str(name), None)
                self._on_timer(turn, str(name))
            case Submitted(transactions, everywhere):
                self._on_submitted(turn, transactions, everywhere=everywhere)
            case PeerConnected(peer):
                turn.send(peer, self._status())
            case Start():
                self._on_start(turn)
        self._advance(turn)
        return turn.effects()

    def _receive(self, turn: Turn, sender: NodeId, message: Wire) -> None:
        try:
            set_id = set_of(message)
            if set_id is not None and set_id != self._validators.set_id:
                self._on_another_set(turn, sender, message)
            else:
                self._dispatch(turn, sender, message)
        except RemoteFault as fault:
            turn.reject(sender, fault.reason, fault.detail)

    def _dispatch(  # noqa: C901 - one line per message
        self, turn: Turn, sender: NodeId, message: Wire
    ) -> None:
        """To the message's handler; looked for in this order, so the most frequent come first."""
        match message:
            case Prepare():
                self._on_prepare(turn, sender, message)
            case Commit():
                self._on_commit(turn, sender, message)
            case Transactions():
                self._on_transactions(turn, message)
            case PrePrepare():
                self._on_pre_prepare(turn, sender, message)
            case Suspect():
                self._on_suspect(turn, sender, message)
            case ViewChange():
                self._on_view_change(turn, message)
            case NewView():
                self._on_new_view(turn, message)
            case Status():
                self._on_status(turn, sender, message)
            case FetchBlocks():
                self._on_fetch_blocks(turn, sender, message)
            case CertifiedBlocks():
                self._on_certified_blocks(turn, sender, message)
            case FetchBody():
                self._on_fetch_body(turn, sender, message)
            case Body():
                self._on_body(turn, message)
            case FetchSnapshot():
                self._on_fetch_snapshot(turn, sender, message)
            case Snapshot():
                self._on_snapshot(turn, sender, message)
            case FetchPart():
                self._on_fetch_part(turn, sender, message)
            case Part():
                self._on_part(turn, sender, message)
            case _:
                raise MessageFault("unexpected-message", type(message).__name__)

    def _on_timer(self, turn: Turn, name: str) -> None:
        match name:
            case "silence":
                self._suspect(turn, "silence")
            case "request":
                self._on_request_timer(turn)
            case "new-view" if not self._views.active:
                self._leave(turn, self._views.view + 1)
            case "retransmit":
                self._on_retransmit(turn)
            case "gossip":
                self._gossip(turn)
            case "fetch":
                self._take_fetched(turn)
            case _:
                """The block timer: `_advance` proposes what is due."""

    def check_transaction(self, now: Instant, transaction: Transaction) -> None:
        """Whether a client's transaction could wait here, as things stand.

        Raises:
            RemoteFault: with the reason that the client is told.
        """
        self._application.admit(State(self._head.state), transaction, now)

    # -- a life begins -----------------------------------------------------------------------------

    def _restore_head(self) -> None:
        head = self._load_head()
        if head is None:
            return
        stored = load_block(self._reader, 0)
        if stored is None or stored.hash != self._genesis.hash:
            raise LocalFault(
                "the data directory belongs to a chain with another genesis; "
                "use the genesis file that it was made with, or another home"
            )
        self._head = head
        raw = load_finality(self._reader, head.height)
        if raw is None and head.height > 0:
            raise damaged(f"the store holds block {head.height} without its certificate")
        self._head_proof = None if raw is None else decode_own(raw, CommitCertificate)
        if self._torn:
            self._work_in(term_above(self._terms, head.header))
        else:
            self._work_in(current_term(self._terms, head, self._validators_of))

    def _restore_votes(self) -> None:
        memory = self._journal.views()
        views = self._views
        views.view, views.active = memory.record.view, memory.record.active
        first = self._periods.first_view(self._head.height + 1)
        if views.view < first:
            # The log of an emptied or restored store knows less than its blocks.
            views.begin_period(first)
            memory = replace(memory, view_change=None, new_view=None)
        self._check_memory(memory, first)
        if memory.view_change is not None and not views.active:
            views.changes[memory.view_change.body.replica] = memory.view_change
        if memory.new_view is not None and views.active:
            views.new_view = memory.new_view
            bodies = [change.body for change in memory.new_view.body.view_changes]
            views.choice = choose(bodies, self._term.root)
        self._journal.restore(self._log, self._head.height)
        for slot in self._log.above(self._head.height):
            if slot.ballot is not None and slot.ballot.view != views.view:
                raise damaged(f"the log has a proposal of view {slot.ballot.view} in {views.view}")

    def _check_memory(self, memory: ViewMemory, first: int) -> None:
        """A batch is whole or not there: what belongs together in the log of votes is together.

        Raises:
            LocalFault: it is not; guessing the rest could contradict what was said.
        """
        views = self._views
        if not self._periods.covers(views.view, self._head.height + 1):
            raise damaged(f"the log is in view {views.view}, the head at {self._head.height}")
        if not views.active and memory.view_change is None:
            raise damaged(f"the log left for view {views.view} without a view-change")
        if views.active and views.view > first and memory.new_view is None:
            raise damaged(f"the log is in view {views.view}, and nothing opened it")

    def _on_start(self, turn: Turn) -> None:
        if load_block(self._reader, 0) is None:
            turn.write(*block_writes(self._genesis, None))
        self._moved_ms = turn.now
        self._set_timer(turn, RETRANSMIT, self._timing.retransmit_ms)
        self._stand_aside(turn)
        if self._views.active:
            self._set_silence(turn)
        self._resume_transfer(turn)
        self._resend(turn)

    def _stand_aside(self, turn: Turn) -> None:
        """Take no part in views that a view-change of this key may have ended for it.

        The log says so itself, unless this store forgot (`host/restored.py`): then only the mark does.
        A new-view may be built on what was said then, and that lacks the votes of this life.
        """
        furthest = self._signer.furthest(Domain.PBFT_VIEW_CHANGE)
        if furthest is None or furthest[0] != self._validators.set_id:
            return
        if furthest[1] > self._views.view:
            self._views.stand_aside(furthest[1])
            self._end_view(turn)
            turn.log("warning", "stands-aside", view=furthest[1], height=self._head.height)

    # -- normal case: section 4.2 ------------------------------------------------------------------

    def _on_pre_prepare(self, turn: Turn, sender: NodeId, message: PrePrepare) -> None:
        block, ballot, views = message.block, message.ballot, self._views
        if not self._in_range(turn, sender, ballot) or self._is_past(ballot.view):
            return
        if ballot.view > views.view or not views.active:
            self._keep_early(message)
            if self._is_ahead(ballot.view) or not views.active:
                self._ask(turn, sender)
            return
        slot = self._log.slot(ballot.height)
        proof = self._log.contradicts(slot, ballot, message.signature)
        if proof is not None:
            self._report(turn, proof)
            return
        block = self._requests.recognised(block)
        check_transactions(block)
        if slot.ballot == ballot:
            self._take_body(turn, block)
            return
        message = PrePrepare(message.view, block, message.signature)
        frontier = self._frontier()
        if frontier is None or ballot.height > frontier[0]:
            self._keep_early(message)
        else:
            self._accept_fresh(turn, slot, message, frontier[1])

    def _accept_fresh(
        self, turn: Turn, slot: Slot, message: PrePrepare, parent: ExecutedBlock
    ) -> None:
        """Accept a first proposal for the next height, if every rule holds."""
        block, header = message.block, message.block.header
        if header.height < self._views.choice.fresh_from:
            raise MessageFault("below-floor", f"height {header.height} belongs to an earlier view")
        if header.round != message.view:
            raise MessageFault("bad-view", f"first proposed in {header.round}, not {message.view}")
        ahead_ms = header.timestamp_ms - turn.now
        if ahead_ms > self._timing.clock_bound_ms:
            raise MessageFault("bad-timestamp", f"{ahead_ms} ms ahead of my clock")
        if ahead_ms < -self._timing.clock_bound_ms:
            # Not counted against the sender: an honest one's proposal was merely late on its way.
            turn.log("info", "proposal-too-late", height=header.height, late_ms=-ahead_ms)
            return
        try:
            executed = self._application.execute(parent, block)
        except InvalidBlock:
            self._suspect(turn, "invalid-proposal")
            raise
        self._accept(turn, slot, message.ballot, message.signature, executed)

    def _accept(
        self, turn: Turn, slot: Slot, ballot: Ballot, signature: bytes, executed: ExecutedBlock
    ) -> None:
        """This is the one proposal for (view, height); remember it before voting for it."""
        slot.accept(ballot, signature)
        slot.keep(executed.block)
        slot.executed[executed.hash] = executed
        self._journal.accepted(turn, slot)
        self._journal.body(turn, executed.block)

    def _on_prepare(self, turn: Turn, sender: NodeId, message: Prepare) -> None:
        ballot = message.ballot
        if not self._in_range(turn, sender, ballot) or self._log.is_settled(ballot):
            return
        if message.replica == primary_of(ballot.view, self._validators):
            raise MessageFault("primary-prepared", "the primary's pre-prepare is its only vote")
        self._report(turn, self._log.add_prepare(message))
        if self._is_ahead(ballot.view):
            self._ask(turn, sender)

    def _is_needless(self, message: Prepare | Commit) -> bool:
        """Whether a vote will be thrown away unread: at n = 21 that is a third of them.

        Its signature is not even checked, so this must stay true until its turn, whatever is taken
        before it: heads only grow, what was settled stays settled, and a vote of a set that has ended
        is of no use to anybody.
        """
        vote = message.ballot if isinstance(message, Prepare) else message.vote
        if vote.set_id != self._validators.set_id:
            return False
        if vote.height <= self._head.height:
            return True
        return isinstance(message, Prepare) and self._log.is_settled(message.ballot)

    def _is_over(self, message: PrePrepare | NewView) -> bool:
        """Whether a proposal or new-view will be thrown away unread: what it is about is decided.

        Anyone may repeat it, and it may carry thousands of signatures. As above this must stay true
        until its turn: sets, views and heads only grow.
        """
        known, set_id = self._validators.set_id, set_of(message)
        if set_id is None or set_id != known:
            return set_id is not None and set_id < known
        if isinstance(message, PrePrepare):
            return message.block.height <= self._head.height or self._is_past(message.view)
        return self._is_past(message.body.view)

    def _on_commit(self, turn: Turn, sender: NodeId, message: Commit) -> None:
        if not self._in_range(turn, sender, message.vote):
            return
        self._report(turn, self._log.add_commit(message))
        if self._is_ahead(message.vote.view):
            self._ask(turn, sender)

    def _advance(self, turn: Turn) -> None:
        """Do whatever the log now allows, until nothing more is.

        After every event, so each question is one of a few comparisons: votes are counted as they
        come (`log.py`), and nothing is asked where nothing is in flight.
        """
        while (
            (self._log and (self._commit_next(turn) or self._vote_next(turn)))
            or (self._early and self._adopt_early(turn))
            or (self._views.leads and self._propose_next(turn))
        ):
            pass

    def _vote_next(self, turn: Turn) -> bool:
        """Prepare, or commit, the lowest height in flight that waits for this replica's vote."""
        views = self._views
        if not views.active or self._me is None:
            return False
        for slot in self._in_flight():
            ballot = slot.ballot
            if ballot is None:
                return False
            executed = self._executed(turn, slot, ballot.block_hash)
            if executed is None:
                return False
            if slot.prepared_in(views.view):
                continue
            if not views.leads and (slot.own_prepare is None or slot.own_prepare.ballot != ballot):
                return self._prepare(turn, slot, ballot)
            return self._commit_vote(turn, slot, ballot, executed.block)
        return False

    def _prepare(self, turn: Turn, slot: Slot, ballot: Ballot) -> bool:
        signature = self._sign_ballot(turn, Domain.PBFT_PREPARE, ballot)
        if signature is None:
            return False
        vote = Prepare(ballot=ballot, replica=self._seat, signature=signature)
        slot.own_prepare = vote
        self._log.add_prepare(vote)
        self._journal.voted(turn, vote)
        turn.broadcast(vote)
        return True

    def _commit_vote(self, turn: Turn, slot: Slot, ballot: Ballot, block: Block) -> bool:
        """Vote commit if the accepted proposal is prepared; the certificate is kept (4.4: P)."""
        certificate = self._log.prepared_certificate(slot, block)
        if certificate is None:
            return False
        vote = CommitVote(
            set_id=ballot.set_id,
            view=ballot.view,
            height=ballot.height,
            block_hash=ballot.block_hash,
        )
        signature = self._sign(
            turn, Domain.PBFT_COMMIT, ballot.view, ballot.height, vote.signed_bytes(self._chain_id)
        )
        if signature is None:
            return False
        commit = Commit(vote=vote, replica=self._seat, signature=signature)
        slot.prepared = certificate
        slot.settle(commit)
        self._log.add_commit(commit)
        self._journal.prepared(turn, certificate)
        self._journal.voted(turn, commit)
        turn.broadcast(commit)
        return True

    # -- proposing ---------------------------------------------------------------------------------

    def _propose_next(self, turn: Turn) -> bool:
        """As the leader, propose the next height if its parent stands and it is time."""
        frontier = None if self._muted_view == self._views.view else self._frontier()
        if frontier is None or frontier[0] < self._views.choice.fresh_from:
            return False
        height, parent = frontier
        due_ms = self._due_ms(turn, parent)
        if turn.now < due_ms:
            if self._timers.get(BLOCK) != due_ms:
                self._set_timer(turn, BLOCK, due_ms - turn.now)
            return False
        executed = self._build(turn, parent)
        if not executed.block.transactions and self._has_work() and not self._timing.block_time_ms:
            self._idle = True
            if turn.now < self._due_ms(turn, parent):
                return True
        self._pre_prepare(turn, self._log.slot(height), executed)
        return True

    def _pre_prepare(self, turn: Turn, slot: Slot, executed: ExecutedBlock) -> None:
        ballot = _ballot(executed.block, self._views.view)
        signature = self._sign_ballot(turn, Domain.PBFT_PRE_PREPARE, ballot)
        if signature is None:
            self._muted_view = self._views.view
            return
        self._accept(turn, slot, ballot, signature, executed)
        turn.broadcast(PrePrepare(self._views.view, executed.block, signature))

    def _build(self, turn: Turn, parent: ExecutedBlock) -> ExecutedBlock:
        timestamp_ms = max(turn.now, parent.header.timestamp_ms + 1)
        proposal = Proposal(self._views.view, timestamp_ms)
        candidates = self._requests.candidates()
        executed, refused = self._application.build(parent, proposal, candidates)
        self._requests.refused(self._head, refused, turn.now)
        return executed

    def _due_ms(self, turn: Turn, parent: ExecutedBlock) -> Instant:
        """When the child of `parent` is due.

        A faulty primary may have stamped the head ahead of time (within the clock bound); waiting for
        its stamp to pass would cost the next primary its view, so waiting ends with the interval.
        """
        made_ms = parent.header.timestamp_ms
        if parent is self._head:
            made_ms = min(made_ms, self._moved_ms)
        if self._timing.block_time_ms:
            return made_ms + self._timing.block_time_ms
        return turn.now if self._has_work() else made_ms + self._timing.heartbeat_ms

    def _has_work(self) -> bool:
        return len(self._requests.pool) > 0 and not self._idle

    def _frontier(self) -> tuple[int, ExecutedBlock] | None:
        """The next height that may be proposed in this view, and its parent; None if none may be.

        Nothing is proposed above a block that hands over before it is committed: what follows it is
        the next set's; nor above the last block of a period, for it is the next leader's.
        """
        parent = self._head
        for slot in self._in_flight():
            if slot.ballot is None:
                break
            executed = slot.executed.get(slot.ballot.block_hash)
            if executed is None or not slot.prepared_in(self._views.view):
                return None
            parent = executed
        if parent.height >= self._head.height + self._timing.window:
            return None
        if parent is not self._head and hands_over(parent.header, self._validators):
            return None
        if not self._periods.covers(self._views.view, parent.height + 1):
            return None
        return parent.height + 1, parent

    def _adopt_early(self, turn: Turn) -> bool:
        """Take up a proposal that came before its view or its parent."""
        frontier = self._frontier() if self._views.active else None
        if frontier is None:
            return False
        primary = self._views.primary
        message = self._early.get((primary, frontier[0]))
        if message is None or message.view != self._views.view:
            return False
        del self._early[primary, frontier[0]]
        self._receive(turn, self._validators.members[primary], message)
        return True

    def _keep_early(self, message: PrePrepare) -> None:
        """Keep one proposal per primary and height, of the highest view."""
        key = (primary_of(message.view, self._validators), message.block.height)
        known = self._early.get(key)
        if known is None or known.view < message.view:
            self._early[key] = message

    # -- submissions -------------------------------------------------------------------------------

    def _on_submitted(
        self, turn: Turn, transactions: Iterable[Wire], *, everywhere: bool = False
    ) -> None:
        for transaction in transactions:
            if not isinstance(transaction, Transaction):
                raise TypeError(f"{type(transaction).__name__} is no transaction")
            try:
                if self._requests.add(self._head, transaction, turn.now):
                    self._requests.pass_on(transaction, if_it_waits=everywhere)
            except RemoteFault as fault:
                turn.log("debug", "submission-refused", reason=fault.reason, detail=fault.detail)
        self._note_work(turn)
        if GOSSIP not in self._timers:
            self._gossip(turn)

    def _gossip(self, turn: Turn) -> None:
        """Pass on what came from clients: the first at once, what follows gathered for a while."""
        gathered = tuple(self._requests.gossip())
        for batch in gathered:
            turn.broadcast(Transactions(batch))
        if gathered:
            self._set_timer(turn, GOSSIP, self._timing.gossip_ms)

    def _on_transactions(self, turn: Turn, message: Transactions) -> None:
        refusals: set[str] = set()
        for transaction in message.transactions:
            try:
                self._requests.add(self._head, transaction, turn.now)
            except RemoteFault as fault:
                refusals.add(fault.reason)
        if refusals:
            turn.log("debug", "gossip-refused", reasons=sorted(refusals))
        self._note_work(turn)

    def _note_work(self, turn: Turn) -> None:
        self._idle = False
        if REQUEST not in self._timers and len(self._requests.pool):
            self._set_timer(turn, REQUEST, self._timing.request_timeout_ms // 2)

    def _on_request_timer(self, turn: Turn) -> None:
        """Remind the primary of what waits; suspect it when something waited its bound (4.4)."""
        bound_ms = self._timing.request_patience_ms(self._omissions)
        proposed = self._proposed()
        grace_ms = self._timing.interval_ms + self._timing.patience_ms(self._omissions)
        waiting, omitted = self._requests.overdue(
            self._head, turn.now, bound_ms, proposed, grace_ms
        )
        unsettled = bool(waiting) or self._requests.any_late(proposed, turn.now, bound_ms)
        views = self._views
        self._late = bool(waiting)
        if views.active and not views.leads and turn.now >= self._reminded_ms + bound_ms // 2:
            self._reminded_ms = turn.now
            for batch in batches(waiting):
                turn.send(self.primary, Transactions(batch))
        for batch in batches(self._requests.kept_back(waiting)):
            turn.broadcast(Transactions(batch))
        omitted = omitted and turn.now >= self._leads_from_ms + bound_ms
        if omitted and views.active and not views.leads:
            self._suspect(turn, OMISSION)
        else:
            views.reasons.discard(OMISSION)
            if not unsettled and self._requests.might_be_overdue(turn.now, bound_ms):
                self._omissions = 0
        if len(self._requests.pool):
            self._set_timer(
                turn, REQUEST, min(bound_ms // 2, CHECK_MS) if proposed else bound_ms // 2
            )

    def _proposed(self) -> set[bytes]:
        """What the primary has proposed and is not committed: whether it will be, the silence timer watches.

        A block takes long under load, and what waits for it is not left out.
        """
        if self._deceived_at == self.position:
            return set()
        ballots = ((slot, slot.ballot) for slot in self._in_flight())
        blocks = (slot.bodies.get(ballot.block_hash) for slot, ballot in ballots if ballot)
        return {each.id for block in blocks if block is not None for each in block.transactions}

    # -- sending again -----------------------------------------------------------------------------

    def _on_retransmit(self, turn: Turn) -> None:
        self._set_timer(turn, RETRANSMIT, self._timing.retransmit_ms)
        if self._views.reasons:
            turn.broadcast(self._suspicion())
            self._consider_views(turn)
        due_ms = self._moved_ms + self._timing.interval_ms + self._timing.retransmit_ms // 2
        if (
            not self._views.active
            or turn.now >= due_ms
            or self._sync.behind(self._head.height)
            or self._in_flight_since(turn)
        ):
            self._resend(turn)

    def _in_flight_since(self, turn: Turn) -> bool:
        """Whether something proposed has waited for votes longer than it should."""
        waits = any(slot.ballot is not None for slot in self._in_flight())
        return waits and turn.now >= self._moved_ms + 2 * self._timing.retransmit_ms

    def _resend(self, turn: Turn) -> None:
        """Say again where this replica is and how it voted: any of it may have been lost."""
        turn.broadcast(self._status())
        own_change = self._views.own_change
        if not self._views.active and own_change is not None:
            turn.broadcast(own_change)
        for slot in self._in_flight():
            self._resend_votes(turn, slot)
        for key in self._wanted:
            self._wanted[key] = tuple(range(self._validators.size))
            self._ask_for_body(turn, key)

    def _resend_votes(self, turn: Turn, slot: Slot) -> None:
        ballot = slot.ballot
        if ballot is None:
            return
        block = slot.bodies.get(ballot.block_hash)
        if self._views.leads and block is not None:
            turn.broadcast(PrePrepare(ballot.view, block, slot.proposal))
        for vote in (slot.own_prepare, slot.own_commit):
            if vote is not None:
                turn.broadcast(vote)


def _ballot(block: Block, view: int) -> Ballot:
    header = block.header
    return Ballot(set_id=header.set_id, view=view, height=header.height, block_hash=header.hash)
