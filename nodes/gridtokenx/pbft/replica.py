"""The PBFT replica: one machine for the consortium chain and the oracle chain.

Law of the file: **a replica votes at most once for each (view, height) and purpose, and only for a
block that it has executed itself upon its own prepared or committed parent.** What it promises is in
the step's batch before it leaves (`turn.py`), and every signature passes the high-water marks
(`marks.py`).

Theory: Castro & Liskov, "Practical Byzantine Fault Tolerance" (OSDI 1999), the signed variant; the
quorum is that of `core/quorum.py`, 2f + 1 only where n = 3f + 1.

==================  ======================================  ============================  ========
event               if                                      then                          section
==================  ======================================  ============================  ========
block timer         primary, parent prepared or committed   build, pre-prepare            4.2
PrePrepare          of my view, first here, executes        accept, prepare               4.2
Prepare             with the pre-prepare q - 1 match        prepared: commit              4.2
Commit              q match, block here                     committed: next height        4.2
silence timer       no block in time                        suspect                       4.4
request timer       a submission waited its bound           suspect                       4.4
Suspect             f + 1                                   view-change                   4.4, 4.5.2
ViewChange          f + 1 beyond my view                    view-change, smallest         4.5.2
ViewChange          a quorum, I am the new primary          new-view                      4.4
ViewChange          a quorum                                start new-view timer          4.5.2
NewView             recomputed choice matches               enter, prepare its proposals  4.4
Status              the sender is behind                    help: status, new-view        4.6
retransmit timer    nothing moved                           own votes and status again    4.1
==================  ======================================  ============================  ========

Ours differs:

* One block per sequence number, chained: n + 1 is prepared only upon a prepared or committed n.
* A commit certificate is believed in any view, even while changing views: it is proof by itself.
* Every certified block is a stable checkpoint, for its header proves the state; the low watermark
  is the last committed height. Who lags fetches certified blocks (`sync.py`).
* A height that is committed here is not voted on again in a new view; who asks gets the proof.
* Leaving a view takes f + 1 suspicions (`views.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Domain, Signer
from gridtokenx.core.machine import (
    CancelTimer,
    Committed,
    Effect,
    Event,
    Instant,
    Misbehaviour,
    NodeId,
    PeerConnected,
    Reader,
    Received,
    SetTimer,
    SignatureCheck,
    Start,
    Submitted,
    TimerFired,
    Unknown,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block, transaction_root
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.records import (
    block_writes,
    load_block,
    load_finality,
    load_head,
)
from gridtokenx.ledger.runtime import ExecutedBlock, InvalidBlock, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.journal import Journal
from gridtokenx.pbft.log import Slot, VoteLog
from gridtokenx.pbft.marks import MarkedSigner, SigningRefused
from gridtokenx.pbft.messages import (
    FETCH_BYTES,
    MAX_REPLICAS,
    MAX_WINDOW,
    Ballot,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    CertifiedHeader,
    Commit,
    Equivocation,
    FetchBlocks,
    FetchBody,
    NewView,
    NewViewBody,
    Prepare,
    PreparedCertificate,
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
from gridtokenx.pbft.requests import Application, Requests, batches
from gridtokenx.pbft.sync import Sync
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import MessageFault, Verification
from gridtokenx.pbft.view_change import Choice, ballots, check_new_view, choose, primary_of
from gridtokenx.pbft.views import Views

BLOCK: Final = "block"
SILENCE: Final = "silence"
REQUEST: Final = "request"
NEW_VIEW: Final = "new-view"
RETRANSMIT: Final = "retransmit"
GOSSIP: Final = "gossip"
FETCH: Final = "fetch"

EARLY_HEIGHTS: Final = 2
"""How far above the window votes are kept: others commit a moment before this replica does."""

_OMISSION: Final = "omission"
_HELPED_PEERS: Final = 1_024


class Replica:
    """One member of a PBFT chain; see the head of the file. Built by `restore`.

    Args:
        application: executes blocks; `ledger.runtime.Ledger`.
        validators: the set that finalises, this replica's key among them.
        signer: this replica's key; nothing else may sign with it.
        genesis: block 0.
        reader: what earlier lives of this replica persisted.
        timing: how long to wait for what.
        pool: where submissions wait.
    """

    def __init__(
        self,
        application: Application,
        validators: ValidatorSet,
        signer: Signer,
        genesis: ExecutedBlock,
        reader: Reader,
        timing: Timing,
        pool: Pool,
    ) -> None:
        self._application: Final = application
        self._chain_id: Final = application.chain_id
        self._validators: Final = validators
        self._me: Final = _own_index(validators, signer)
        self._genesis: Final = genesis
        self._reader: Final = reader
        self._timing: Final = timing
        self._verification: Final = Verification(self._chain_id, {validators.set_id: validators})
        self._signer: Final = MarkedSigner(signer, reader)
        self._journal: Final = Journal(reader)
        self._log: Final = VoteLog(self._chain_id, validators)
        self._views: Final = Views(validators, self._me)
        self._sync: Final = Sync(timing.fetch_timeout_ms)
        self._requests: Final = Requests(application, pool)
        self._head = genesis
        self._head_proof: CommitCertificate | None = None
        self._early: dict[tuple[int, int], PrePrepare] = {}
        self._wanted: dict[tuple[int, bytes], tuple[int, ...]] = {}
        self._helped: dict[tuple[str, NodeId], Instant] = {}
        self._timers: set[str] = set()
        self._moved_ms: Instant = 0
        self._asked = 0
        self._idle = False
        self._muted_view = -1

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
    ) -> "Replica":
        """A replica as its earlier lives left it, or a new one on an empty disk.

        Raises:
            LocalFault: the key is not of the set, or the stored state is damaged or of another chain.
        """
        replica = cls(
            application,
            validators,
            signer,
            genesis,
            reader,
            timing,
            Pool() if pool is None else pool,
        )
        replica._restore_head()
        replica._restore_votes()
        return replica

    # -- for hosts ---------------------------------------------------------------------------------

    @property
    def head(self) -> ExecutedBlock:
        """The last committed block."""
        return self._head

    @property
    def view(self) -> int:
        """The view, or the one that it moves to."""
        return self._views.view

    @property
    def active(self) -> bool:
        """Whether it takes part in `view`; False while it waits for the new-view."""
        return self._views.active

    @property
    def primary(self) -> NodeId:
        """The key of the view's primary."""
        return self._validators.members[self._views.primary]

    @property
    def pending(self) -> int:
        """Submissions that wait for a block."""
        return len(self._requests.pool)

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        return self._verification.checks(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """Take one event; see `Machine.step`."""
        turn = Turn(now)
        match event:
            case Received(verified):
                self._receive(turn, verified.sender, verified.message)
            case TimerFired(name):
                self._timers.discard(str(name))
                self._on_timer(turn, str(name))
            case Submitted(transactions):
                self._on_submitted(turn, transactions)
            case PeerConnected(peer):
                turn.send(peer, self._status())
            case Start():
                self._on_start(turn)
        self._advance(turn)
        return turn.effects()

    def _receive(self, turn: Turn, sender: NodeId, message: Wire) -> None:
        try:
            self._dispatch(turn, sender, message)
        except RemoteFault as fault:
            turn.reject(sender, fault.reason, fault.detail)

    def _dispatch(  # noqa: C901 - one line per message
        self, turn: Turn, sender: NodeId, message: Wire
    ) -> None:
        match message:
            case PrePrepare():
                self._on_pre_prepare(turn, sender, message)
            case Prepare():
                self._on_prepare(turn, sender, message)
            case Commit():
                self._on_commit(turn, sender, message)
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
            case Transactions():
                self._on_transactions(turn, sender, message)
            case _:
                raise MessageFault("unexpected-message", type(message).__name__)

    def _on_timer(self, turn: Turn, name: str) -> None:
        match name:
            case "silence":
                self._suspect(turn, "silence")
            case "request":
                self._on_request_timer(turn)
            case "new-view":
                self._leave(turn, self._views.view + 1)
            case "retransmit":
                self._on_retransmit(turn)
            case "gossip":
                for batch in self._requests.gossip():
                    turn.broadcast(Transactions(batch))
            case "fetch":
                self._fetch(turn)
            case _:
                """The block timer: `_advance` proposes what is due."""

    # -- a life begins -----------------------------------------------------------------------------

    def _restore_head(self) -> None:
        head = load_head(self._reader)
        if head is None:
            return
        stored = load_block(self._reader, 0)
        if stored is None or stored.hash != self._genesis.hash:
            raise LocalFault(
                "the data directory belongs to a chain with another genesis; "
                "use the genesis file that it was made with, or an empty directory"
            )
        self._head = head
        raw = load_finality(self._reader, head.height)
        self._head_proof = None if raw is None else decode_own(raw, CommitCertificate)

    def _restore_votes(self) -> None:
        memory = self._journal.views()
        views = self._views
        views.view, views.active = memory.record.view, memory.record.active
        if memory.view_change is not None and not views.active:
            views.changes[self._me] = memory.view_change
        if memory.new_view is not None and views.active:
            views.new_view = memory.new_view
            bodies = [change.body for change in memory.new_view.body.view_changes]
            views.choice = choose(bodies, self._genesis.header)
        self._journal.restore(self._log, self._head.height)

    def _on_start(self, turn: Turn) -> None:
        if load_block(self._reader, 0) is None:
            turn.write(*block_writes(self._genesis, None))
        self._moved_ms = turn.now
        self._set_timer(turn, RETRANSMIT, self._timing.retransmit_ms)
        if self._views.active:
            self._set_silence(turn)
        self._resend(turn)

    # -- normal case: section 4.2 ------------------------------------------------------------------

    def _on_pre_prepare(self, turn: Turn, sender: NodeId, message: PrePrepare) -> None:
        block, ballot, views = message.block, message.ballot, self._views
        if not self._in_range(turn, sender, ballot) or self._is_past(ballot.view):
            return
        if ballot.view > views.view or not views.active:
            self._keep_early(message)
            self._ask(turn, sender)
            return
        slot = self._log.slot(ballot.height)
        proof = self._log.contradicts(slot, ballot, message.signature)
        if proof is not None:
            self._report(turn, proof)
            return
        _check_transactions(block)
        if slot.ballot == ballot:
            self._take_body(turn, block)
            return
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
        if abs(header.timestamp_ms - turn.now) > self._timing.clock_bound_ms:
            raise MessageFault(
                "bad-timestamp", f"{header.timestamp_ms - turn.now} ms from my clock"
            )
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
        slot.ballot, slot.proposal = ballot, signature
        slot.keep(executed.block)
        slot.executed[executed.hash] = executed
        self._journal.accepted(turn, slot)
        self._journal.body(turn, executed.block)

    def _on_prepare(self, turn: Turn, sender: NodeId, message: Prepare) -> None:
        ballot = message.ballot
        if not self._in_range(turn, sender, ballot):
            return
        if message.replica == primary_of(ballot.view, self._validators):
            raise MessageFault("primary-prepared", "the primary's pre-prepare is its only vote")
        self._report(turn, self._log.add_prepare(message))
        if ballot.view > self._views.view:
            self._ask(turn, sender)

    def _on_commit(self, turn: Turn, sender: NodeId, message: Commit) -> None:
        if not self._in_range(turn, sender, message.vote):
            return
        self._report(turn, self._log.add_commit(message))
        if message.vote.view > self._views.view:
            self._ask(turn, sender)

    def _advance(self, turn: Turn) -> None:
        """Do whatever the log now allows, until nothing more is."""
        while (
            self._commit_next(turn)
            or self._vote_next(turn)
            or self._adopt_early(turn)
            or self._propose_next(turn)
        ):
            pass

    def _vote_next(self, turn: Turn) -> bool:
        """Prepare, or commit, the lowest height in flight that waits for this replica's vote."""
        views = self._views
        if not views.active:
            return False
        for slot in self._in_flight():
            ballot = slot.ballot
            if ballot is None:
                return False
            executed = self._executed(turn, slot, ballot.block_hash)
            if executed is None:
                return False
            if not views.leads and (slot.own_prepare is None or slot.own_prepare.ballot != ballot):
                return self._prepare(turn, slot, ballot)
            if not slot.prepared_in(views.view):
                return self._commit_vote(turn, slot, ballot, executed.block)
        return False

    def _prepare(self, turn: Turn, slot: Slot, ballot: Ballot) -> bool:
        signature = self._sign_ballot(turn, Domain.PBFT_PREPARE, ballot)
        if signature is None:
            return False
        vote = Prepare(ballot=ballot, replica=self._me, signature=signature)
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
        commit = Commit(vote=vote, replica=self._me, signature=signature)
        slot.prepared, slot.own_commit = certificate, commit
        self._log.add_commit(commit)
        self._journal.prepared(turn, certificate)
        self._journal.voted(turn, commit)
        turn.broadcast(commit)
        return True

    def _commit_next(self, turn: Turn) -> bool:
        """Commit the next height if a quorum of commits is here, and the block."""
        slot = self._log.find(self._head.height + 1)
        certificate = None if slot is None else self._log.commit_certificate(slot)
        if slot is None or certificate is None:
            return False
        hash_ = certificate.vote.block_hash
        holders = tuple(signed.index for signed in certificate.signatures)
        executed = self._executed(turn, slot, hash_, holders)
        if executed is None:
            return False
        self._commit(turn, executed, certificate)
        return True

    def _commit(self, turn: Turn, executed: ExecutedBlock, proof: CommitCertificate) -> None:
        turn.write(*block_writes(executed, encode(proof)))
        turn.add(Committed(executed.height, executed))
        self._head, self._head_proof = executed, proof
        self._journal.forget(turn, executed.height)
        self._log.forget(executed.height)
        self._requests.committed(executed)
        self._early = {k: m for k, m in self._early.items() if k[1] > executed.height}
        self._wanted = {k: h for k, h in self._wanted.items() if k[0] > executed.height}
        self._idle = False
        self._moved_ms = turn.now
        self._views.attempts = 0
        self._views.reasons &= {_OMISSION}
        if self._views.active:
            self._set_silence(turn)

    def _executed(
        self, turn: Turn, slot: Slot, hash_: bytes, holders: tuple[int, ...] = ()
    ) -> ExecutedBlock | None:
        """A block of this slot, executed on its parent; asks for it if it is not here."""
        found = slot.executed.get(hash_)
        if found is not None:
            return found
        block = slot.bodies.get(hash_)
        if block is None:
            self._want(turn, slot.height, hash_, holders)
            return None
        parent = self._parent_of(turn, block)
        if parent is None:
            return None
        try:
            executed = self._application.execute(parent, block)
        except InvalidBlock as fault:
            raise LocalFault(
                f"a quorum voted for block {block.height} ({block.hash.hex()[:16]}), which this"
                f" program refuses: {fault.detail}; it runs another version, or its state differs:"
                " run `gtx verify` on this home"
            ) from fault
        slot.executed[hash_] = executed
        return executed

    def _parent_of(self, turn: Turn, block: Block) -> ExecutedBlock | None:
        if block.height == self._head.height + 1:
            return self._head
        slot = self._log.find(block.height - 1)
        return None if slot is None else self._executed(turn, slot, block.header.parent)

    # -- proposing ---------------------------------------------------------------------------------

    def _propose_next(self, turn: Turn) -> bool:
        """Propose the next height if this replica leads, the parent stands, and it is time."""
        leads = self._views.leads and self._muted_view != self._views.view
        frontier = self._frontier() if leads else None
        if frontier is None or frontier[0] < self._views.choice.fresh_from:
            return False
        height, parent = frontier
        due_ms = self._due_ms(turn, parent)
        if turn.now < due_ms:
            if BLOCK not in self._timers:
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
        candidates = self._requests.pool.candidates()
        executed, refused = self._application.build(parent, proposal, candidates)
        self._requests.refused(self._head, refused, turn.now)
        return executed

    def _due_ms(self, turn: Turn, parent: ExecutedBlock) -> Instant:
        """When the child of `parent` is due."""
        made_ms = parent.header.timestamp_ms
        if self._timing.block_time_ms:
            return made_ms + self._timing.block_time_ms
        return turn.now if self._has_work() else made_ms + self._timing.heartbeat_ms

    def _has_work(self) -> bool:
        return len(self._requests.pool) > 0 and not self._idle

    def _in_flight(self) -> Iterator[Slot]:
        """The slots of the window, ascending, as far as there are any without gap."""
        first = self._head.height + 1
        for height in range(first, first + self._timing.window):
            slot = self._log.find(height)
            if slot is None:
                return
            yield slot

    def _frontier(self) -> tuple[int, ExecutedBlock] | None:
        """The next height that may be proposed in this view, and its parent; None if none may be."""
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

    # -- view change: section 4.4 ------------------------------------------------------------------

    def _suspect(self, turn: Turn, reason: str) -> None:
        """This replica's own patience is over: ask the others to leave the view."""
        views = self._views
        if not views.active:
            return
        if reason not in views.reasons:
            turn.log("warning", "suspect", view=views.view, reason=reason, height=self._head.height)
        views.reasons.add(reason)
        turn.broadcast(self._suspicion())
        self._consider_views(turn)

    def _on_suspect(self, turn: Turn, sender: NodeId, message: Suspect) -> None:
        replica = self._validators.index_of(sender)
        if replica is None:
            raise MessageFault("not-a-member", "only members of the set may suspect")
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
            self._sync.shows(author, body.head.header.height)
            self._fetch(turn)
        if self._views.note_change(message):
            self._consider_views(turn)
        elif self._is_past(body.view) or (body.view == self._views.view and self._views.active):
            self._help_with_view(turn, author)

    def _consider_views(self, turn: Turn) -> None:
        """Leave, start the new-view timer, or open the view, as `views.py` says."""
        views = self._views
        while (destination := views.destination(turn.now)) is not None:
            if not self._leave(turn, destination):
                return
        if views.quorum_moved() and NEW_VIEW not in self._timers:
            self._set_timer(turn, NEW_VIEW, self._timing.patience_ms(max(0, views.attempts - 1)))
        quorum = views.openable()
        if quorum is not None:
            self._open(turn, quorum)

    def _leave(self, turn: Turn, view: int) -> bool:
        """Take no further part in the view: sign what may have been committed in it (4.4)."""
        body = ViewChangeBody(
            set_id=self._validators.set_id,
            view=view,
            replica=self._me,
            head=self._certified_head(),
            prepared=self._prepared_above_head(),
        )
        what = view_change_bytes(body, self._chain_id)
        signature = self._sign(turn, Domain.PBFT_VIEW_CHANGE, view, 0, what)
        if signature is None:
            return False
        turn.log("warning", "left-view", view=self._views.view, to=view, height=self._head.height)
        change = ViewChange(body, signature)
        self._views.leave(change)
        self._journal.left_view(turn, change)
        self._end_view(turn)
        for name in (SILENCE, BLOCK, NEW_VIEW):
            self._cancel_timer(turn, name)
        turn.broadcast(change)
        self._consider_views(turn)
        return True

    def _certified_head(self) -> CertifiedHeader | None:
        if self._head_proof is None:
            return None
        return CertifiedHeader(header=self._head.header, certificate=self._head_proof)

    def _prepared_above_head(self) -> tuple[PreparedCertificate, ...]:
        found = [slot.prepared for slot in self._log.above(self._head.height)]
        return tuple(certificate for certificate in found if certificate is not None)[:MAX_WINDOW]

    def _end_view(self, turn: Turn) -> None:
        """Drop the overlays of the view; their transactions are still in the pool."""
        for slot in self._log.above(self._head.height):
            slot.end_view()
            self._journal.ended_view(turn, slot)
        self._wanted.clear()

    def _open(self, turn: Turn, quorum: tuple[ViewChange, ...]) -> None:
        """As the new primary: prove the view, and propose again what its proof demands (4.4)."""
        view, set_id = self._views.view, self._validators.set_id
        choice = choose([change.body for change in quorum], self._genesis.header)
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
        choice = check_new_view(body, self._validators, self._genesis.header)
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
                slot.ballot, slot.proposal = proposal.ballot, proposal.signature
                self._journal.accepted(turn, slot)
        self._cancel_timer(turn, NEW_VIEW)
        self._cancel_timer(turn, BLOCK)
        self._moved_ms = turn.now
        self._set_silence(turn)
        self._requests.restart_waits(turn.now)
        for change in body.view_changes:
            if change.body.head is not None:
                author = self._validators.members[change.body.replica]
                self._sync.shows(author, change.body.head.header.height)
        self._fetch(turn)

    # -- catching up -------------------------------------------------------------------------------

    def _on_status(self, turn: Turn, sender: NodeId, message: Status) -> None:
        self._sync.claim(sender, message.height)
        if message.height > self._head.height:
            self._fetch(turn)
        elif message.height < self._head.height and self._may_help(turn, "height", sender):
            turn.send(sender, self._status())
        views = self._views
        waits = message.view == views.view and views.active and not message.active
        if message.view < views.view or waits:
            self._help_with_view(turn, sender)

    def _help_with_view(self, turn: Turn, peer: NodeId) -> None:
        """Send a peer what lets it follow into this view."""
        views = self._views
        proof = views.new_view if views.active else views.changes.get(self._me)
        if proof is not None and self._may_help(turn, "view", peer):
            turn.send(peer, proof)

    def _ask(self, turn: Turn, peer: NodeId) -> None:
        """A peer is ahead in views: show it where this replica is, and it helps."""
        if self._may_help(turn, "ask", peer):
            turn.send(peer, self._status())

    def _may_help(self, turn: Turn, kind: str, peer: NodeId) -> bool:
        """At most one answer of a kind per peer and half retransmission period."""
        key = (kind, peer)
        last_ms = self._helped.get(key)
        if last_ms is not None and turn.now < last_ms + self._timing.retransmit_ms // 2:
            return False
        if len(self._helped) >= _HELPED_PEERS:
            self._helped.clear()
        self._helped[key] = turn.now
        return True

    def _fetch(self, turn: Turn) -> None:
        """Ask for the blocks that peers claim to have beyond this replica's head."""
        for peer, question in self._sync.questions(self._head.height, turn.now):
            turn.send(peer, question)
        deadline_ms = self._sync.deadline_ms()
        if deadline_ms is None:
            self._cancel_timer(turn, FETCH)
        else:
            self._set_timer(turn, FETCH, max(1, deadline_ms - turn.now))

    def _on_fetch_blocks(self, turn: Turn, sender: NodeId, message: FetchBlocks) -> None:
        blocks: list[CertifiedBlock] = []
        size = 0
        for height in range(message.first, message.first + message.count):
            block, proof = load_block(self._reader, height), load_finality(self._reader, height)
            if block is None or proof is None or size > FETCH_BYTES:
                break
            blocks.append(CertifiedBlock(block, decode_own(proof, CommitCertificate)))
            size += sum(len(transaction.encoded) for transaction in block.transactions)
        turn.send(sender, CertifiedBlocks(first=message.first, blocks=tuple(blocks)))

    def _on_certified_blocks(self, turn: Turn, sender: NodeId, message: CertifiedBlocks) -> None:
        if not self._sync.answer(sender, message):
            return
        while (found := self._sync.take(self._head.height + 1)) is not None:
            peer, certified = found
            try:
                _check_transactions(certified.block)
            except MessageFault as fault:
                self._sync.distrust(peer)
                turn.reject(peer, fault.reason, fault.detail)
                break
            slot = self._log.slot(certified.block.height)
            slot.keep(certified.block)
            executed = self._executed(turn, slot, certified.block.hash)
            if executed is None:
                break
            self._commit(turn, executed, certified.certificate)
        self._fetch(turn)

    def _want(self, turn: Turn, height: int, hash_: bytes, holders: tuple[int, ...]) -> None:
        """Ask f + 1 of those that voted for a block to send it: one of them is honest."""
        key = (height, hash_)
        if key in self._wanted:
            return
        self._wanted[key] = holders or self._voters_of(hash_)
        self._ask_for_body(turn, key)

    def _voters_of(self, hash_: bytes) -> tuple[int, ...]:
        """Who is known to have the block: the signers of its prepared certificates in V."""
        new_view = self._views.new_view
        certificates = [
            certificate
            for change in (() if new_view is None else new_view.body.view_changes)
            for certificate in change.body.prepared
            if certificate.header.hash == hash_
        ]
        voters = {signed.index for c in certificates for signed in c.prepares}
        return tuple(sorted(voters)) or tuple(range(self._validators.size))

    def _ask_for_body(self, turn: Turn, key: tuple[int, bytes]) -> None:
        holders = [index for index in self._wanted[key] if index != self._me]
        question = FetchBody(height=key[0], block_hash=key[1])
        for offset in range(min(self._validators.faulty + 1, len(holders))):
            index = holders[(self._asked + offset) % len(holders)]
            turn.send(self._validators.members[index], question)
        self._asked += 1

    def _on_fetch_body(self, turn: Turn, sender: NodeId, message: FetchBody) -> None:
        slot = self._log.find(message.height)
        block = None if slot is None else slot.bodies.get(message.block_hash)
        if block is None and message.height <= self._head.height:
            block = load_block(self._reader, message.height)
        if block is not None and block.hash == message.block_hash:
            turn.send(sender, Body(block))

    def _on_body(self, turn: Turn, message: Body) -> None:
        if (message.block.height, message.block.hash) in self._wanted:
            _check_transactions(message.block)
            self._take_body(turn, message.block)

    def _take_body(self, turn: Turn, block: Block) -> None:
        """Keep a block that the accepted ballot or a certificate names."""
        slot = self._log.slot(block.height)
        self._wanted.pop((block.height, block.hash), None)
        if block.hash not in slot.bodies:
            slot.keep(block)
            self._journal.body(turn, block)

    # -- submissions -------------------------------------------------------------------------------

    def _on_submitted(self, turn: Turn, transactions: Iterable[Wire]) -> None:
        for transaction in transactions:
            if not isinstance(transaction, Transaction):
                raise TypeError(f"{type(transaction).__name__} is no transaction")
            try:
                if self._requests.add(self._head, transaction, turn.now):
                    self._requests.pass_on(transaction)
            except RemoteFault as fault:
                turn.log("debug", "submission-refused", reason=fault.reason, detail=fault.detail)
        self._note_work(turn)
        if GOSSIP not in self._timers:
            self._set_timer(turn, GOSSIP, self._timing.gossip_ms)

    def _on_transactions(self, turn: Turn, sender: NodeId, message: Transactions) -> None:
        if self._validators.index_of(sender) is None:
            raise MessageFault("not-a-member", "clients submit, only members gossip")
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
        bound_ms = self._timing.request_timeout_ms
        waiting, omitted = self._requests.overdue(self._head, turn.now, bound_ms)
        views = self._views
        if views.active and not views.leads:
            for batch in batches(waiting):
                turn.send(self.primary, Transactions(batch))
        if omitted and views.active and not views.leads:
            self._suspect(turn, _OMISSION)
        else:
            views.reasons.discard(_OMISSION)
        if len(self._requests.pool):
            self._set_timer(turn, REQUEST, bound_ms // 2)

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
        own_change = self._views.changes.get(self._me)
        if not self._views.active and own_change is not None:
            turn.broadcast(own_change)
        for slot in self._in_flight():
            self._resend_votes(turn, slot)
        for key in self._wanted:
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

    # -- helpers -----------------------------------------------------------------------------------

    def _in_range(self, turn: Turn, sender: NodeId, vote: Ballot | CommitVote) -> bool:
        """Whether a vote is between the watermarks; one far above shows that this replica lags."""
        window = self._timing.window
        if vote.height > self._head.height + window + EARLY_HEIGHTS:
            self._sync.shows(sender, vote.height - window)
            self._fetch(turn)
            return False
        return vote.height > self._head.height

    def _is_past(self, view: int) -> bool:
        return view < self._views.view

    def _report(self, turn: Turn, proof: Equivocation | None) -> None:
        if proof is not None:
            offender = self._validators.members[proof.offender]
            turn.add(Misbehaviour(offender, "equivocation", proof))

    def _status(self) -> Status:
        return Status(
            set_id=self._validators.set_id,
            view=self._views.view,
            active=self._views.active,
            height=self._head.height,
        )

    def _suspicion(self) -> Suspect:
        return Suspect(set_id=self._validators.set_id, view=self._views.view)

    def _sign_ballot(self, turn: Turn, domain: Domain, ballot: Ballot) -> bytes | None:
        what = ballot.signed_bytes(domain, self._chain_id)
        return self._sign(turn, domain, ballot.view, ballot.height, what)

    def _sign(
        self, turn: Turn, domain: Domain, view: int, height: int, what: bytes
    ) -> bytes | None:
        """A signature, or None where the high-water mark refuses: better silent than twice."""
        try:
            return self._signer.sign(turn, domain, (self._validators.set_id, view, height), what)
        except SigningRefused as refusal:
            turn.log("error", "signing-refused", detail=str(refusal))
            return None

    def _set_timer(self, turn: Turn, name: str, delay_ms: int) -> None:
        self._timers.add(name)
        turn.add(SetTimer(name, turn.now + delay_ms))

    def _cancel_timer(self, turn: Turn, name: str) -> None:
        if name in self._timers:
            self._timers.discard(name)
            turn.add(CancelTimer(name))

    def _set_silence(self, turn: Turn) -> None:
        """A block is due within the interval; patience doubles with every failed view (4.5.2)."""
        patience_ms = self._timing.patience_ms(max(0, self._views.attempts - 1))
        self._set_timer(turn, SILENCE, self._timing.interval_ms + patience_ms)


def _ballot(block: Block, view: int) -> Ballot:
    header = block.header
    return Ballot(set_id=header.set_id, view=view, height=header.height, block_hash=header.hash)


def _check_transactions(block: Block) -> None:
    """Whether the body is the one that the header (and every vote for it) speaks of."""
    if transaction_root(block.transactions) != block.header.transaction_root:
        raise MessageFault("wrong-body", f"transactions of block {block.height} were exchanged")


def _own_index(validators: ValidatorSet, signer: Signer) -> int:
    index = validators.index_of(signer.public_key)
    if index is None:
        raise LocalFault(
            f"key {signer.public_key.hex()[:16]} is not among the {validators.size} replicas of this"
            " chain; use the key that the genesis file names"
        )
    if validators.size > MAX_REPLICAS:
        raise LocalFault(
            f"{validators.size} replicas; PBFT here is made for at most {MAX_REPLICAS}"
        )
    return index
