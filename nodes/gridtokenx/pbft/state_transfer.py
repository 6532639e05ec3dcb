"""State transfer: a replica that is far behind takes over a certified state, then goes on by blocks.

Law of the file: **a state is this replica's own only in one step, after all of it proved itself.** Until
then what arrives lies apart (`snapshot.py`, table ``snapshot``), and the old head stands. The step's one
batch holds the new state, its block with the certificate, the handovers on the way and the end of all
votes below, so a crash leaves the replica before it or after it.

Theory: Castro & Liskov (OSDI 1999) section 4.3, end; (TOCS 2002) section 5.3.

===================  =================================================  ============================
event                if                                                 then
===================  =================================================  ============================
Status, vote         a peer claims `snapshot_distance` blocks more, or  FetchSnapshot to one of them
                     nobody keeps the block that comes next
FetchSnapshot        at most once per peer and half retransmission      handovers from the asked set
                                                                        on, the newest checkpoint
Snapshot             its certificates hold, and it is far enough ahead  FetchPart from the root on
FetchPart            the checkpoint is kept                             Part: keys or 16 hashes
Part                 it has the hash of its place                       keep it, ask for what is below
Part                 it has not                                         blame; never ask that peer again
fetch timer          a part did not come                                ask another peer
fetch timer          the tree has the certified root                    adopt: new head, blocks follow
===================  =================================================  ============================

The way to believe the newest set begins with the newest set that is known here, at first genesis'. A
header of a set that has ended is believed up to the block that ended it: what its former members sign
now is worth nothing.

Marks are not touched: whatever this replica signed at any height stays refused. Nothing above the new
head can have been decided with a vote that it forgets here, for only votes at or below it go.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Committed, Instant, NodeId, Write
from gridtokenx.core.merkle import merkle_root
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.ledger.records import (
    BASE,
    FINALITY,
    HEAD,
    META,
    block_writes,
    final_height,
    height_key,
    load_block,
    load_events,
    load_finality,
    load_head,
    load_state,
)
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.base import BLOCK, NEW_VIEW, SILENCE
from gridtokenx.pbft.catch_up import CatchUp, check_transactions
from gridtokenx.pbft.messages import (
    SNAPSHOT_HANDOVERS,
    Checkpoint,
    FetchPart,
    FetchSnapshot,
    Part,
    ProvenHandover,
    Snapshot,
)
from gridtokenx.pbft.snapshot import Answer, Transfer
from gridtokenx.pbft.terms import Term, term_write
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import MessageFault

_NEVER_FAR: Final = 1 << 62


class StateTransfer(CatchUp):
    """Hands out states, and takes one over where blocks would take too long."""

    # -- handing out -------------------------------------------------------------------------------

    def _on_fetch_snapshot(self, turn: Turn, sender: NodeId, message: FetchSnapshot) -> None:
        if not self._may_help(turn, f"snapshot {message.set_id}", sender):
            return
        checkpoint = self._checkpoints.newest()
        handovers = tuple(self._handovers_from(message.set_id))
        last = handovers[-1].next_set.set_id if handovers else message.set_id
        if checkpoint is not None:
            header = checkpoint.block.header
            if header.height <= message.above or header.set_id != last:
                checkpoint = None
            else:
                self._checkpoints.hold(header.height, turn.now)
        turn.send(sender, Snapshot(handovers=handovers, checkpoint=checkpoint))

    def _handovers_from(self, set_id: int) -> Iterator[ProvenHandover]:
        """How sets ended, up to that of the newest checkpoint or as many as fit an answer."""
        checkpoint = self._checkpoints.newest()
        end = set_id if checkpoint is None else checkpoint.block.header.set_id
        for ended in range(set_id, min(end, set_id + SNAPSHOT_HANDOVERS)):
            term = self._terms.get(ended + 1)
            raw = None if term is None else load_finality(self._reader, term.root.height)
            if term is None or raw is None:
                return
            yield ProvenHandover(term.root, decode_own(raw, CommitCertificate), term.validators)

    def _on_fetch_part(self, turn: Turn, sender: NodeId, message: FetchPart) -> None:
        part = self._checkpoints.part(message, self._timing.part_bytes, turn.now)
        turn.send(sender, Part(height=message.height, prefix=message.prefix, part=part))

    # -- asking ------------------------------------------------------------------------------------

    def _questions(self, turn: Turn) -> Iterable[tuple[NodeId, Wire]]:
        transfer = self._transfer
        if transfer is not None and transfer.stalled(turn.now):
            turn.log("warning", "snapshot-given-up", height=transfer.height, parts=transfer.parts)
            transfer = self._transfer = None
        yield from self._ask_for_snapshot(turn)
        if transfer is not None:
            yield from transfer.questions(self._servers(transfer.height), turn.now)
        elif not self._offers.worth_waiting():
            yield from super()._questions(turn)

    def _ask_for_snapshot(self, turn: Turn) -> Iterator[tuple[NodeId, Wire]]:
        above = self._worth_above(turn.now)
        peer = self._offers.ask(self._servers(above), turn.now)
        if peer is not None:
            yield peer, FetchSnapshot(set_id=max(self._terms), above=self._head.height)

    def _worth_above(self, now: Instant) -> int:
        """Which height a peer must claim to be asked for a snapshot."""
        if self._transfer is not None:
            return self._transfer.height + 1 if self._renew else _NEVER_FAR
        following = self._head.height + 1
        if self._sync.nobody_has(following, self._validators.faulty, now):
            return following
        distance = self._timing.snapshot_distance
        return self._head.height + distance if distance else _NEVER_FAR

    def _servers(self, height: int) -> list[NodeId]:
        return [peer for peer in self._sync.claimants(height) if peer not in self._barred]

    def _fetch_deadline_ms(self) -> Instant | None:
        """Of what is looked at now: a question whose end nobody looks at would end for ever."""
        waits = [self._offers.deadline_ms()]
        if self._transfer is not None:
            waits.append(self._transfer.deadline_ms())
        elif not self._offers.worth_waiting():
            waits.append(super()._fetch_deadline_ms())
        return min((each for each in waits if each is not None), default=None)

    # -- taking over -------------------------------------------------------------------------------

    def _on_snapshot(self, turn: Turn, sender: NodeId, message: Snapshot) -> None:
        if not self._offers.answered(sender):
            return
        known = max(self._terms)
        try:
            self._check_sets(message)
            for handover in message.handovers:
                self._cross(turn, handover)
            if message.checkpoint is not None:
                self._check(message.checkpoint)
        except MessageFault:
            self._barred.add(sender)
            raise
        if max(self._terms) > known and message.checkpoint is None:
            self._offers.go_on()
        elif message.checkpoint is not None and self._is_better(message.checkpoint, turn.now):
            self._begin(turn, message.checkpoint)
        self._fetch(turn)

    def _check_sets(self, message: Snapshot) -> None:
        """Whether the way goes through the sets that are known here, as far as they are.

        A set that has ended may sign another end today: then another set follows in the answer.
        """
        for handover in message.handovers:
            following = handover.next_set
            known = self._terms.get(following.set_id)
            if known is not None and known.validators != following:
                raise MessageFault(
                    "wrong-next-set", f"set {following.set_id} is known here, and another"
                )

    def _cross(self, turn: Turn, handover: ProvenHandover) -> None:
        """Know the next set: its keys can be named from now on."""
        header, following = handover.header, handover.next_set
        if header.set_id != max(self._terms):
            return
        if header.height <= self._terms[header.set_id].root.height:
            raise MessageFault("wrong-handover", f"set {header.set_id} began at {header.height}")
        self._terms[following.set_id] = Term(validators=following, root=header)
        turn.write(*self._staging.crossed(handover))

    def _check(self, checkpoint: Checkpoint) -> None:
        """Whether the set spoke while it was in office, and the body is the header's."""
        header = checkpoint.block.header
        following = self._terms.get(header.set_id + 1)
        ended = following is not None and header.height > following.root.height
        if ended or header.height <= self._terms[header.set_id].root.height:
            raise MessageFault(
                "wrong-set", f"block {header.height} is not one of set {header.set_id}"
            )
        check_transactions(checkpoint.block)
        if merkle_root(checkpoint.events) != header.event_root:
            raise MessageFault("wrong-events", f"events of block {header.height} were exchanged")

    def _is_better(self, checkpoint: Checkpoint, now: Instant) -> bool:
        """Whether to go for this one: it is far ahead, or the present one is hard to get."""
        height, transfer = checkpoint.block.height, self._transfer
        distance = self._timing.snapshot_distance
        if transfer is None:
            far = distance and height >= self._head.height + max(1, distance // 2)
            following, faulty = self._head.height + 1, self._validators.faulty
            stuck = self._sync.nobody_has(following, faulty, now)
            return bool(far) or (stuck and height >= following)
        self._renew = False
        few = len(transfer.servers(self._servers(transfer.height))) <= self._validators.faulty
        return height > transfer.height and (few or height >= transfer.height + distance)

    def _begin(self, turn: Turn, checkpoint: Checkpoint) -> None:
        transfer, height = self._transfer, checkpoint.block.height
        tree = self._staging.onto(self._head.state) if transfer is None else transfer.tree
        self._transfer = Transfer(checkpoint, tree, self._timing.fetch_timeout_ms, turn.now)
        self._renew = False
        turn.write(*self._staging.begin(checkpoint))
        turn.log("info", "snapshot-begun", height=height, head=self._head.height)

    def _on_part(self, turn: Turn, sender: NodeId, message: Part) -> None:
        transfer = self._transfer
        if transfer is None:
            return
        match transfer.answer(sender, message, turn.now):
            case Answer.UNASKED:
                return
            case Answer.LACKING:
                self._renew = True
            case Answer.WRONG:
                self._barred.add(sender)
                what = f"part {message.prefix.hex()} of the state after block {message.height}"
                turn.reject(sender, "wrong-part", f"{what} is not what its hash says")
            case Answer.TAKEN:
                for prefix, part in transfer.arrived():
                    turn.write(*self._staging.arrived(prefix, part))
        self._fetch(turn)

    # -- the new head ------------------------------------------------------------------------------

    def _take_fetched(self, turn: Turn) -> None:
        """Adopt what is complete: one step later, so that all of it is on disk before."""
        if self._transfer is not None and self._transfer.complete:
            self._adopt(turn, self._transfer)
        super()._take_fetched(turn)

    def _adopt(self, turn: Turn, transfer: Transfer) -> None:
        """Stand on the state that was taken over; the votes of what lies below go, the marks stay."""
        checkpoint = transfer.checkpoint
        header, proof = checkpoint.block.header, checkpoint.certificate
        changes = transfer.tree.changes_since(self._head.state)
        executed = ExecutedBlock(checkpoint.block, transfer.tree, changes, checkpoint.events)
        if transfer.tree.root != header.state_root:
            raise LocalFault(f"the parts of block {header.height}'s state do not make its root")
        turn.write(*self._handed_over(header.set_id))
        writes = block_writes(executed, encode(proof))
        turn.write(*(write for write in writes if (write.table, write.key) != (META, HEAD)))
        turn.write(Write(META, BASE, height_key(header.height)))
        turn.write(Write(META, HEAD, height_key(header.height)))
        turn.write(*self._staging.clear())
        self._transfer = None
        executed = ExecutedBlock(executed.block, executed.state, {}, executed.events)
        turn.add(Committed(header.height, executed))
        turn.log("info", "snapshot-taken", height=header.height, parts=transfer.parts)
        if header.set_id != self._validators.set_id:
            self._enter_set(turn, header.set_id)
        self._requests.jumped(executed, turn.now)
        self._stand_on(turn, executed, proof)
        self._checkpoints.keep(executed, proof, turn.now)
        turn.broadcast(self._status())

    def _handed_over(self, set_id: int) -> Iterator[Write]:
        """What is kept for ever of the sets on the way: light clients and laggards ask for it."""
        for handover in self._staging.handovers.values():
            following = handover.next_set
            if self._validators.set_id < following.set_id <= set_id:
                yield term_write(self._terms[following.set_id])
                key = height_key(handover.header.height)
                yield Write(FINALITY, key, encode(handover.certificate))

    def _enter_set(self, turn: Turn, set_id: int) -> None:
        """Go on in a later set's term, without having seen those between."""
        self._journal.clear(turn)
        self._work_in(self._terms[set_id])
        for name in (SILENCE, BLOCK, NEW_VIEW):
            self._cancel_timer(turn, name)
        turn.log("info", "entered-set", set_id=set_id, members=self._validators.size)

    # -- lives -------------------------------------------------------------------------------------

    def _load_head(self) -> ExecutedBlock | None:
        """The head on disk. A torn adoption left parts of two states: the step begins by finishing it.

        Raises:
            LocalFault: the state is not the head's, and no adoption explains it.
        """
        try:
            return load_head(self._reader)
        except LocalFault:
            height, target = final_height(self._reader), self._staging.target()
            block = None if height is None else load_block(self._reader, height)
            if block is None or target is None:
                raise
            mixed = load_state(self._reader)
            if self._staging.onto(mixed).root != target.block.header.state_root:
                raise
            self._torn = True
            return ExecutedBlock(block, mixed, {}, load_events(self._reader, block.height))

    def _resume_transfer(self, turn: Turn) -> None:
        """Go on where an earlier life was, with the parts that it had."""
        if self._head_proof is not None and not self._torn:
            self._checkpoints.keep(self._head, self._head_proof, turn.now)
        for handover in tuple(self._staging.handovers.values()):
            self._cross(turn, handover)
        target = self._staging.target()
        if target is None or target.block.height <= self._head.height:
            self._forget_staged(turn)
            return
        tree, timeout_ms = self._staging.onto(self._head.state), self._timing.fetch_timeout_ms
        self._transfer = Transfer(target, tree, timeout_ms, turn.now)
        if self._transfer.complete:
            self._adopt(turn, self._transfer)

    def _stand_on(self, turn: Turn, executed: ExecutedBlock, proof: CommitCertificate) -> None:
        super()._stand_on(turn, executed, proof)
        self._forget_staged(turn)

    def _forget_staged(self, turn: Turn) -> None:
        """Blocks were faster than the snapshot."""
        if 0 < self._staging.height <= self._head.height:
            self._transfer = None
            turn.write(*self._staging.clear())
