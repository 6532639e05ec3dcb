"""Committing, and catching up with those that have committed more.

Law of the file: **a block is committed for its certificate and its execution here, never for who sent
it.** A quorum of commits proves a block in any view, whether this replica counted them itself or a
peer delivers the proof, so both ways end in `_commit`.

Theory: Castro & Liskov (OSDI 1999) section 4.2 (committed-local), 4.3 (checkpoints: here every
certified block), the end of 4.4 (obtaining what is missing); Castro's thesis (MIT, 2001) section 5.2:
replicas show each other where they are, and whoever is ahead helps, here at most once per peer and
half retransmission period.

A set's last block hands over to the next set: it is committed like any other, and with it, in the same
batch, the term of the next set begins (`terms.py`). A block of another set than the present one is
never taken, however well it is certified.

A header is what a certificate proves; a body is checked against it before it is kept, so a peer
that exchanges transactions is refused. If this replica's execution of a certified block differs, it
is this replica that is wrong, and it stops (`LocalFault`).
"""

from collections.abc import Iterable

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import (
    Committed,
    Instant,
    NodeId,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import (
    block_writes,
    load_block,
    load_finality,
)
from gridtokenx.ledger.runtime import ExecutedBlock, InvalidBlock
from gridtokenx.pbft.base import (
    BLOCK,
    EARLY_HEIGHTS,
    FETCH,
    NEW_VIEW,
    OMISSION,
    SILENCE,
    ReplicaBase,
)
from gridtokenx.pbft.log import Slot
from gridtokenx.pbft.messages import (
    FETCH_BLOCKS,
    FETCH_BYTES,
    Ballot,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    FetchBlocks,
    FetchBody,
    NewView,
    Status,
    Suspect,
    ViewChange,
)
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.terms import following_term, hands_over, term_write
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import MessageFault


class CatchUp(ReplicaBase):
    """Commits, helps and is helped."""

    # -- committing --------------------------------------------------------------------------------

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
        proposer = primary_of(executed.header.round, self._validators)
        self._requests.committed(executed, self._validators.members[proposer], turn.now)
        self._stand_on(turn, executed, proof)

    def _stand_on(self, turn: Turn, executed: ExecutedBlock, proof: CommitCertificate) -> None:
        """Go on above a block of the present set that is committed here."""
        self._look_for_deceit(executed, proof)
        self._head, self._head_proof = executed, proof
        self._checkpoints.committed(executed, proof, turn.now)
        self._journal.forget(turn, executed.height)
        self._idle = False
        self._moved_ms = turn.now
        if hands_over(executed.header, self._validators):
            self._hand_over(turn, executed)
            return
        self._log.forget(executed.height)
        self._early = {k: m for k, m in self._early.items() if k[1] > executed.height}
        self._wanted = {k: h for k, h in self._wanted.items() if k[0] > executed.height}
        self._views.reasons &= {OMISSION}
        self._begin_period(turn)
        if self._views.active:
            self._views.attempts = 0
            self._set_silence(turn)

    def _look_for_deceit(self, executed: ExecutedBlock, proof: CommitCertificate) -> None:
        """Whether the view's primary has proposed something else here than what the others decided.

        It may do so whenever this replica looks, so in this view what it proposes excuses it no more.
        """
        slot = self._log.find(executed.height)
        ballot = None if slot is None else slot.ballot
        if ballot is None or ballot.block_hash == executed.hash:
            return
        if ballot.view == proof.vote.view == self._views.view:
            self._deceived_at = self.position

    def _begin_period(self, turn: Turn) -> None:
        """Pass the leadership on if the head is the last block of its period (`rotation.py`)."""
        view = self._periods.first_view(self._head.height + 1)
        if view <= self._views.view:
            return
        self._views.begin_period(view)
        self._journal.began_period(turn, view)
        self._leads_from_ms = turn.now
        for name in (BLOCK, NEW_VIEW):
            self._cancel_timer(turn, name)
        turn.log("debug", "entered-period", view=view, above=self._head.height)

    # -- handing over ------------------------------------------------------------------------------

    def _hand_over(self, turn: Turn, last: ExecutedBlock) -> None:
        """The set's last block is committed: go on in the next one's term, from its view 0.

        The term's record and the end of the old one's are in the batch of the block itself, before
        anything is signed for the new set. The status is for those who wait for this block: other
        members that lack it, and whoever just got a seat.
        """
        term = following_term(last, self._validators_of)
        was_seated = self.seated
        turn.write(term_write(term))
        self._journal.clear(turn)
        self._work_in(term)
        for name in (SILENCE, BLOCK, NEW_VIEW):
            self._cancel_timer(turn, name)
        self._set_silence(turn)
        self._requests.restart_waits(turn.now)
        turn.broadcast(self._status())
        turn.log(
            "info",
            "entered-set",
            set_id=term.set_id,
            members=term.validators.size,
            above=last.height,
            seated=self.seated,
        )
        if was_seated and not self.seated:
            turn.log("warning", "seat-lost", set_id=term.set_id)

    def _on_another_set(self, turn: Turn, sender: NodeId, message: Wire) -> None:
        """Something that only members of another set can use: the sender is behind, or ahead.

        Votes are late as a rule, and sent again only together with a status; who wants to leave a
        view of a set that has ended waits for what will never come.
        """
        wants_to_leave = isinstance(message, Suspect | ViewChange | NewView)
        if wants_to_leave and self._may_help(turn, "set", sender):
            turn.send(sender, self._status())

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

    # -- where everybody is ------------------------------------------------------------------------

    def _on_status(self, turn: Turn, sender: NodeId, message: Status) -> None:
        self._sync.claim(sender, message.height)
        if message.height > self._head.height:
            self._fetch(turn)
        elif message.height < self._head.height and self._may_help(turn, "height", sender):
            turn.send(sender, self._status())
        if message.set_id != self._validators.set_id:
            return
        views = self._views
        waits = message.view == views.view and views.active and not message.active
        if message.view < views.view or waits:
            self._help_with_view(turn, sender)

    def _help_with_view(self, turn: Turn, peer: NodeId) -> None:
        """Send a peer what lets it follow into this view."""
        views = self._views
        proof = views.new_view if views.active else views.own_change
        if proof is not None and self._may_help(turn, "view", peer):
            turn.send(peer, proof)
        elif proof is None and self._rotation_blocks and self._may_help(turn, "height", peer):
            turn.send(peer, self._status())

    def _ask(self, turn: Turn, peer: NodeId) -> None:
        """A peer is ahead in views: show it where this replica is, and it helps."""
        if self._may_help(turn, "ask", peer):
            turn.send(peer, self._status())

    def _in_range(self, turn: Turn, sender: NodeId, vote: Ballot | CommitVote) -> bool:
        """Whether a vote is between the watermarks; one far above shows that this replica lags."""
        window = self._timing.window
        if vote.height > self._head.height + window + EARLY_HEIGHTS:
            self._sync.shows(sender, vote.height - window)
            self._fetch(turn)
            return False
        return vote.height > self._head.height

    # -- committed blocks --------------------------------------------------------------------------

    def _fetch(self, turn: Turn) -> None:
        """Ask for what peers claim to have beyond this replica's head."""
        for peer, question in self._questions(turn):
            turn.send(peer, question)
        deadline_ms = self._fetch_deadline_ms()
        if self._sync.has(self._head.height + 1):
            deadline_ms = turn.now
        if deadline_ms is None:
            self._cancel_timer(turn, FETCH)
        elif self._timers.get(FETCH) != deadline_ms:
            self._set_timer(turn, FETCH, deadline_ms - turn.now)

    def _questions(self, turn: Turn) -> Iterable[tuple[NodeId, Wire]]:
        """What to ask now, of whom; here for blocks."""
        return self._sync.questions(self._head.height, turn.now)

    def _fetch_deadline_ms(self) -> Instant | None:
        """When the first open question has waited too long."""
        return self._sync.deadline_ms()

    def _on_fetch_blocks(self, turn: Turn, sender: NodeId, message: FetchBlocks) -> None:
        if not self._may_serve(turn, sender):
            return
        blocks: list[CertifiedBlock] = []
        size = 0
        for height in range(message.first, message.first + message.count):
            block, proof = load_block(self._reader, height), load_finality(self._reader, height)
            if block is None or proof is None or size > FETCH_BYTES:
                break
            if blocks and block.header.set_id != blocks[0].block.header.set_id:
                break
            blocks.append(CertifiedBlock(block, decode_own(proof, CommitCertificate)))
            size += sum(len(transaction.encoded) for transaction in block.transactions)
        self._served[sender] += size
        turn.send(sender, CertifiedBlocks(first=message.first, blocks=tuple(blocks)))

    def _on_certified_blocks(self, turn: Turn, sender: NodeId, message: CertifiedBlocks) -> None:
        if self._sync.answer(sender, message):
            self._take_fetched(turn)

    def _take_fetched(self, turn: Turn) -> None:
        """Commit the blocks that have arrived, a bounded number per step, and ask for more."""
        for _ in range(FETCH_BLOCKS):
            found = self._sync.take(self._head.height + 1)
            if found is None or not self._commit_fetched(turn, *found):
                break
        self._fetch(turn)

    def _commit_fetched(self, turn: Turn, peer: NodeId, certified: CertifiedBlock) -> bool:
        block = certified.block
        try:
            self._check_set(block)
            check_transactions(block)
        except MessageFault as fault:
            self._sync.distrust(peer)
            turn.reject(peer, fault.reason, fault.detail)
            return False
        slot = self._log.slot(block.height)
        slot.keep(block)
        executed = self._executed(turn, slot, block.hash)
        if executed is None:
            return False
        self._commit(turn, executed, certified.certificate)
        return True

    def _check_set(self, block: Block) -> None:
        """Whether the block is of the present set: former members may sign anything by now."""
        if block.header.set_id != self._validators.set_id:
            raise MessageFault(
                "wrong-set",
                f"block {block.height} of set {block.header.set_id}, ours is {self._validators.set_id}",
            )

    # -- proposed blocks ---------------------------------------------------------------------------

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
            if not self._may_serve(turn, sender):
                return
            block = load_block(self._reader, message.height)
            size = 0 if block is None else sum(len(each.encoded) for each in block.transactions)
            self._served[sender] += size
        if block is not None and block.hash == message.block_hash:
            turn.send(sender, Body(block))

    def _on_body(self, turn: Turn, message: Body) -> None:
        if (message.block.height, message.block.hash) in self._wanted:
            check_transactions(message.block)
            self._take_body(turn, message.block)

    def _take_body(self, turn: Turn, block: Block) -> None:
        """Keep a block that the accepted ballot or a certificate names."""
        slot = self._log.slot(block.height)
        self._wanted.pop((block.height, block.hash), None)
        if block.hash not in slot.bodies:
            slot.keep(block)
            self._journal.body(turn, block)


def check_transactions(block: Block) -> None:
    """Whether the body is the one that the header (and every vote for it) speaks of."""
    if block.transaction_root != block.header.transaction_root:
        raise MessageFault("wrong-body", f"transactions of block {block.height} were exchanged")
