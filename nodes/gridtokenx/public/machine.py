"""A public-chain node: author, importer, GRANDPA voter, pool and catch-up, as one machine.

Law of the file: **one step, one batch.** Everything that a step writes is one atomic `Persist`
before everything that it sends; so no block, seal or vote leaves that a restart would not remember.

======================  ======================================  ==========================
event                   if                                      then
======================  ======================================  ==========================
slot timer              the slot is ours, we are not behind     build, seal, NewBlock
slot timer                                                      import what waited for it
tick timer              something changed, or a slot passed     Status to all
tick timer              peers have what we lack                 ask one of them (`sync.py`)
GRANDPA timers                                                  the voter (`grandpa/voter.py`)
NewBlock, Branch        it passes `importer.py`                 a node of the tree
FinalBlocks             its justification verifies              its target is final
Votes, CatchUp                                                  the voter
a vote completes it     a justification can be shown            its target is final
a request               we have it                              the answer
Submitted               admitted                                pool; Transactions to all
Transactions            admitted                                pool, not sent on
======================  ======================================  ==========================

Slots are authored at most once: the mark is in the batch that holds the block. What is final is
persisted with its justification, one per finalised head; hash links prove the blocks below it.

A block that announces another validator set ends its own: the set's votes stop there, so it becomes
final by itself, with a justification of its own, and a new voter begins for the next set. A node
without a seat does all of this but author and vote; it begins to when a set has its key.

==========  =======================  ======================================================
table       key                      value
==========  =======================  ======================================================
            (final blocks: see `ledger/records.py`)
seals       height                   the author's seal of the final block
sets        set id                   encoded set that a final block handed over to
unfinal     height, block hash       encoded `SealedBlock` above the last final one
grandpa     (see `grandpa/voter.py`)
meta        ``b"slot"``              the last slot that we authored (8 bytes)
meta        ``b"epoch"``             encoded `Epoch` of the last final block
==========  =======================  ======================================================
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Signer
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Committed,
    Effect,
    Event,
    Instant,
    Log,
    Misbehaviour,
    NodeId,
    PeerConnected,
    Persist,
    Reader,
    Received,
    Reject,
    Send,
    SetTimer,
    SignatureCheck,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Write,
)
from gridtokenx.finality.justifications import (
    Justification,
    verify_justification,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.records import (
    META,
    SETS,
    block_writes,
    final_height,
    height_key,
    load_block,
    load_head,
)
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal, Standing
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.public.checkpoint import Checkpoint
from gridtokenx.public.grandpa.messages import (
    CatchUp,
    CatchUpRequest,
    Votes,
    VotesRequest,
)
from gridtokenx.public.grandpa.voter import TIMERS, Justified, Outcome, Voter, VoterConfig
from gridtokenx.public.importer import Importer, Offer, ValidatorsOf
from gridtokenx.public.messages import (
    MAX_TRANSACTIONS,
    Branch,
    BranchRequest,
    FinalBlocks,
    FinalRequest,
    NewBlock,
    Status,
    Transactions,
)
from gridtokenx.public.naming import Checks, block_checks, both, justification_checks, vote_checks
from gridtokenx.public.slots import (
    Epoch,
    SealedBlock,
    SlotClaim,
    SlotRules,
    VrfSigner,
    VrfVerifier,
    claim_slot,
    encoded_claim,
    read_claim,
    seal,
)
from gridtokenx.public.sync import SEALS, Sync, serve_branch, serve_final
from gridtokenx.public.tree import BlockTree, TreeNode

UNFINAL: Final = "unfinal"
_SLOT: Final = b"slot"
_EPOCH: Final = b"epoch"

SLOT_TIMER: Final = "slot"
TICK_TIMER: Final = "tick"

NOBODY: Final = bytes(32)
"""The sender of blocks that come from our own disk."""

_FOREVER: Final = 2**62


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """A validator's own key in its two uses, and the check of others' VRF proofs."""

    signer: Signer
    vrf: VrfSigner
    vrf_verifier: VrfVerifier


@dataclass(frozen=True, slots=True)
class PublicConfig:
    """A public chain's parameters and a node's own timing."""

    rules: SlotRules
    gossip_ms: int | None = None
    """T: within it a message of an honest node reaches all others. None: an eighth of a slot, so
    that a block is final half a slot after it was made, but at most a second."""
    checkpoint: Checkpoint | None = None
    """The chain that is meant; below it a node neither authors nor votes, it only follows."""

    @property
    def tick_ms(self) -> int:
        """T, which is also the length of a tick."""
        if self.gossip_ms is not None:
            return self.gossip_ms
        return min(max(self.rules.slot_ms // 8, 1), 1_000)


class PublicNode:
    """One node of the public chain; see the head of the file.

    Args:
        ledger: executes blocks.
        genesis: block 0.
        validators: the set that authors and finalises block 1.
        keys: the node's; it authors and votes if its key is in the set.
        config: slots and timing.
        reader: what earlier lives of this node persisted; empty for a new one.
        validators_of: reads the set for a block's children from the state after the block; asked
            only where a header announces another set than its parent's.
        pool: where submissions wait.

    Raises:
        LocalFault: the store is damaged or of another chain.
    """

    def __init__(
        self,
        ledger: Ledger,
        genesis: ExecutedBlock,
        validators: ValidatorSet,
        keys: NodeKeys,
        config: PublicConfig,
        reader: Reader,
        validators_of: ValidatorsOf | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._ledger: Final = ledger
        self._genesis: Final = genesis
        self._keys: Final = keys
        self._config: Final = config
        self._rules: Final = config.rules
        self._reader: Final = reader
        self._pool: Final = Pool() if pool is None else pool
        self._out: list[Effect] = []
        read_set = validators_of or (lambda _state: validators)
        self._tree: Final = BlockTree(self._load_root(validators, read_set), reader)
        self._importer: Final = Importer(
            self._tree, ledger, self._rules, keys.vrf_verifier, read_set
        )
        self._sync: Final = Sync(8 * config.tick_ms, 4 * self._rules.slot_ms)
        self._check_stored()
        self._load_unfinal()
        self._last_slot = int.from_bytes(reader.get(META, _SLOT) or b"", "big")
        self._followed = self._tree.best
        self._status_sent: tuple[Status, Instant] | None = None
        self._voter = self._new_voter()

    # -- for hosts ---------------------------------------------------------------------------------

    @property
    def head(self) -> ExecutedBlock:
        """The last final block."""
        return self._tree.root.executed

    @property
    def best(self) -> ExecutedBlock:
        """The block that the next one would be built on; it may still be abandoned."""
        return self._tree.best.executed

    @property
    def leader(self) -> NodeId:
        """The author of the best block; zeros for genesis, and for the last of an ended set."""
        return self._tree.best.author or NOBODY

    @property
    def round(self) -> int:
        """The current GRANDPA round."""
        return self._voter.round_number

    @property
    def validators(self) -> ValidatorSet:
        """The set that finalises the next block."""
        return self._tree.root.validators

    @property
    def awaits(self) -> Checkpoint | None:
        """The checkpoint, while the last final block is below it."""
        checkpoint = self._config.checkpoint
        below = checkpoint is not None and self._tree.root.height < checkpoint.height
        return checkpoint if below else None

    @property
    def pending(self) -> int:
        """Submissions that wait for a block."""
        return len(self._pool)

    @property
    def unfinal(self) -> int:
        """Blocks in the tree above the last final one."""
        return len(self._tree) - 1

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        match message:
            case NewBlock(block):
                return block_checks(self._tree, self._rules.chain_id, (block,))
            case Branch(_, blocks) | FinalBlocks(blocks, None):
                return block_checks(self._tree, self._rules.chain_id, blocks)
            case FinalBlocks() as answer:
                return self._final_checks(answer)
            case Votes(votes):
                return vote_checks(votes, self._rules.chain_id, self._voter.validators)
            case CatchUp(completed):
                if not completed.is_consistent:
                    raise RemoteFault("mixed-rounds", "a catch-up with votes of other rounds")
                return vote_checks(completed.votes, self._rules.chain_id, self._voter.validators)
            case Transactions(transactions):
                return [transaction.signature_check() for transaction in transactions]
            case Status() | VotesRequest() | CatchUpRequest() | BranchRequest() | FinalRequest():
                return ()
            case _:
                raise RemoteFault("unexpected-message", type(message).__name__)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """Take one event; see `Machine.step`."""
        match event:
            case Received(verified):
                self._receive(now, verified.sender, verified.message)
            case TimerFired(name):
                self._on_timer(now, name)
            case Submitted(transactions):
                self._on_submitted(now, transactions)
            case PeerConnected(peer):
                self._out.append(Send(peer, self._status()))
            case Start():
                self._on_start(now)
        out, self._out = self._out, []
        return _one_batch(out)

    def _receive(self, now: Instant, sender: NodeId, message: Wire) -> None:
        match message:
            case NewBlock(block):
                self._import(now, sender, (block,))
            case Branch(_, blocks):
                self._sync.branch_answered(message)
                self._import(now, sender, blocks)
            case FinalBlocks():
                self._on_final_blocks(now, sender, message)
            case Votes(votes):
                self._sync.votes_answered()
                self._apply(now, self._voter.on_votes(now, votes))
            case CatchUp(completed):
                self._apply(now, self._voter.on_catch_up(now, completed))
            case Transactions(transactions):
                for transaction in transactions:
                    self._admit(now, sender, transaction)
            case Status():
                self._sync.note(now, sender, message)
            case _:
                self._serve(sender, message)

    def _serve(self, sender: NodeId, message: Wire) -> None:
        answer: Wire | None = None
        match message:
            case VotesRequest(held):
                votes = self._voter.votes_for(held)
                answer = Votes(votes) if votes else None
            case CatchUpRequest(set_id, round_):
                completed = self._voter.completed()
                if completed is not None and completed.set_id == set_id:
                    answer = CatchUp(completed) if completed.round >= round_ else None
            case BranchRequest():
                answer = serve_branch(self._tree, message)
            case FinalRequest():
                answer = serve_final(self._reader, self._tree.root.height, message)
        if answer is not None:
            self._out.append(Send(sender, answer))

    # -- a life begins -----------------------------------------------------------------------------

    def _load_root(self, validators: ValidatorSet, read_set: ValidatorsOf) -> TreeNode:
        head = load_head(self._reader)
        if head is None:
            return TreeNode(self._genesis, Epoch.genesis(self._rules), validators)
        stored = load_block(self._reader, 0)
        if stored is None or stored.hash != self._genesis.hash:
            raise LocalFault(
                "the data directory belongs to a chain with another genesis; "
                "use the genesis file that it was made with, or another home"
            )
        epoch = decode_own(self._reader.get(META, _EPOCH) or b"", Epoch)
        same = head.header.next_set_hash == validators.hash
        following = validators if same else read_set(head.state)
        return TreeNode(head, epoch, following, author=_author(head.header, following))

    def _check_stored(self) -> None:
        """A checkpoint may have been set after its block became final here."""
        checkpoint = self._config.checkpoint
        if checkpoint is None or checkpoint.height > self._tree.root.height:
            return
        stored = load_block(self._reader, checkpoint.height)
        checkpoint.check(checkpoint.height, (self._genesis if stored is None else stored).hash)

    def _load_unfinal(self) -> None:
        """Imports again what was above the root; randomness and ranks are recomputed on the way."""
        for _, raw in self._reader.scan(UNFINAL):
            sealed = decode_own(raw, SealedBlock)
            self._importer.restore(_FOREVER, Offer(NOBODY, sealed))
        self._importer.refusals.clear()
        self._importer.evidence.clear()

    def _new_voter(self) -> Voter:
        rules = self._rules
        silent_below = 0 if self._config.checkpoint is None else self._config.checkpoint.height
        config = VoterConfig(rules.chain_id, self._config.tick_ms, rules.slot_ms, silent_below)
        validators = self._tree.root.validators
        return Voter(config, validators, self._keys.signer, self._tree, self._reader)

    def _on_start(self, now: Instant) -> None:
        if final_height(self._reader) is None:
            epoch = Write(META, _EPOCH, encode(self._tree.root.epoch))
            self._out.append(Persist((*block_writes(self._genesis, None), epoch)))
        if self.awaits is not None:
            fields = {"checkpoint": str(self.awaits), "height": self._tree.root.height}
            self._out.append(Log("info", "syncing to checkpoint", fields))
        self._set_slot_timer(now)
        self._out.append(SetTimer(TICK_TIMER, now + self._config.tick_ms))
        self._out.append(Broadcast(self._status()))
        self._apply(now, self._voter.start(now))

    # -- timers ------------------------------------------------------------------------------------

    def _on_timer(self, now: Instant, name: object) -> None:
        if name == SLOT_TIMER:
            self._set_slot_timer(now)
            self._after_import(now, self._importer.due(now))
            self._author(now)
        elif name == TICK_TIMER:
            self._out.append(SetTimer(TICK_TIMER, now + self._config.tick_ms))
            needed = self._importer.needed(now, self._voter.missing_blocks())
            self._after_import(now, needed)
            self._tell_status(now)
            self._out += self._sync.plan(now, self._tree, self._importer, self._voter)
        elif name in TIMERS:
            self._apply(now, self._voter.on_timer(now, name))

    def _set_slot_timer(self, now: Instant) -> None:
        next_slot = self._rules.slot_at(now) + 1
        self._out.append(SetTimer(SLOT_TIMER, self._rules.start_of(next_slot)))

    def _status(self) -> Status:
        root, best = self._tree.root, self._tree.best
        return Status(root.height, root.hash, best.height, best.hash, self._voter.standing())

    def _tell_status(self, now: Instant) -> None:
        status = self._status()
        if self._status_sent is not None:
            last, sent_ms = self._status_sent
            if status == last and now < sent_ms + self._rules.slot_ms:
                return
        self._status_sent = (status, now)
        self._out.append(Broadcast(status))

    # -- authoring ---------------------------------------------------------------------------------

    def _author(self, now: Instant) -> None:
        parent, slot = self._tree.best, self._rules.slot_at(now)
        claim = self._claim(parent, slot)
        if claim is None or now <= parent.header.timestamp_ms:
            return
        proposal = Proposal(slot, now, encoded_claim(claim))
        executed, refused = self._ledger.build(parent.executed, proposal, self._pool.candidates())
        self._pool.discard([t for t in refused if not self._is_admissible(now, executed, t)])
        sealed = seal(executed.block, self._keys.signer)
        self._last_slot = slot
        self._out.append(Persist((Write(META, _SLOT, height_key(slot)),)))
        node = self._importer.adopt(executed, sealed, claim)
        self._out.append(Broadcast(NewBlock(sealed)))
        self._after_import(now, [node])

    def _claim(self, parent: TreeNode, slot: int) -> SlotClaim | None:
        """Our right to author `slot`, unless we have used it or are behind the others."""
        validators = parent.validators
        index = validators.index_of(self._keys.signer.public_key)
        if (
            self.awaits is not None
            or index is None
            or slot <= max(self._last_slot, parent.header.round)
        ):
            return None
        if self._sync.peers_above(parent.height) > validators.faulty:
            return None
        epoch = parent.epoch.at(slot, self._rules)
        return claim_slot(self._rules, epoch, slot, index, validators.size, self._keys.vrf)

    # -- blocks ------------------------------------------------------------------------------------

    def _import(self, now: Instant, sender: NodeId, blocks: Iterable[SealedBlock]) -> None:
        nodes: list[TreeNode] = []
        for block in blocks:
            nodes += self._importer.offer(now, Offer(sender, block))
        self._after_import(now, nodes)

    def _after_import(self, now: Instant, nodes: Sequence[TreeNode]) -> None:
        """Keeps new nodes, follows the best one, and lets the voter see them."""
        for refusal in self._importer.refusals:
            fault = refusal.fault
            self._out.append(Reject(refusal.sender, fault.reason, fault.detail))
        for offender, evidence in self._importer.evidence:
            self._out.append(Misbehaviour(offender, "slot-equivocation", evidence))
        self._importer.refusals.clear()
        self._importer.evidence.clear()
        if not nodes:
            return
        self._out.append(
            Persist(tuple(Write(UNFINAL, _unfinal_key(n), encode(n.sealed)) for n in nodes))
        )
        self._follow_best(now)
        self._apply(now, self._voter.on_chain(now))

    def _follow_best(self, now: Instant) -> None:
        """Keeps the pool in step with the best chain: included ones leave, abandoned ones return."""
        old, new = self._followed, self._tree.best
        if old is new:
            return
        self._followed = new
        known = old.hash in self._tree
        fork = self._tree.fork_point(old, new) if known else self._tree.root
        for node in _above(self._tree.path(new), fork):
            self._pool.settle(node.executed.block.transactions, self._standing, now)
        if known:
            self._readmit(now, _above(self._tree.path(old), fork))

    def _readmit(self, now: Instant, abandoned: Iterable[TreeNode]) -> None:
        for node in abandoned:
            for transaction in node.executed.block.transactions:
                if self._is_admissible(now, self._tree.best.executed, transaction):
                    self._add_to_pool(now, transaction)

    # -- finality ----------------------------------------------------------------------------------

    def _apply(self, now: Instant, outcomes: Iterable[Outcome]) -> None:
        """Takes the voter's effects, all of them before it is told what its justifications did."""
        justified: list[Justification] = []
        for outcome in outcomes:
            if isinstance(outcome, Justified):
                justified.append(outcome.justification)
            else:
                self._out.append(outcome)
        for justification in justified:
            self._finalize(now, justification)

    def _on_final_blocks(self, now: Instant, sender: NodeId, answer: FinalBlocks) -> None:
        self._import(now, sender, answer.blocks)
        if answer.justification is not None:
            self._take_justification(now, sender, answer.justification)
        self._sync.final_answered(self._tree, answer)
        if answer.blocks:
            self._out += self._sync.plan_final(now, self._tree)

    def _take_justification(
        self, now: Instant, sender: NodeId, justification: Justification
    ) -> None:
        node, validators = self._tree.get(justification.target_hash), self._tree.root.validators
        if node is None or node is self._tree.root:
            return
        if not node.header.set_id == justification.set_id == validators.set_id:
            return  # a later set's: the handover between must become final by itself
        try:
            verify_justification(justification, node.header, validators, _CheckedByDriver())
        except RemoteFault as fault:
            self._out.append(Reject(sender, fault.reason, fault.detail))
            return
        self._finalize(now, justification)

    def _finalize(self, now: Instant, justification: Justification) -> None:
        if justification.target_hash not in self._tree:
            return
        self._check_against_checkpoint(justification.target_hash)
        awaited, ended = self.awaits, self._tree.root.validators
        final, pruned = self._tree.finalize(justification.target_hash)
        if not final:
            return
        self._out.append(Persist(tuple(_final_writes(final, pruned, justification))))
        self._out += [Committed(node.height, node.executed) for node in final]
        self._importer.forget_final()
        self._follow_best(now)
        self._readmit(now, pruned)
        if awaited is not None and self.awaits is None:
            self._out.append(Log("info", "checkpoint reached", {"checkpoint": str(awaited)}))
        if self._tree.root.validators.set_id != ended.set_id:
            self._hand_over(now)
        self._apply(now, self._voter.on_chain(now))

    def _hand_over(self, now: Instant) -> None:
        """The last final block was the last of its set: the next set's rounds begin."""
        self._out += [self._voter.retire(), *(CancelTimer(name) for name in TIMERS)]
        self._voter = self._new_voter()
        self._apply(now, self._voter.start(now))

    def _check_against_checkpoint(self, target: bytes) -> None:
        """Before a block on another history becomes final here.

        Raises:
            LocalFault: see `Checkpoint.check`.
        """
        node = self._tree.get(target)
        if self._config.checkpoint is None or node is None:
            return
        for each in self._tree.path(node):
            self._config.checkpoint.check(each.height, each.hash)

    # -- transactions ------------------------------------------------------------------------------

    def _on_submitted(self, now: Instant, transactions: Sequence[Wire]) -> None:
        fresh = [
            transaction
            for transaction in transactions
            if isinstance(transaction, Transaction) and self._admit(now, None, transaction)
        ]
        for start in range(0, len(fresh), MAX_TRANSACTIONS):
            self._out.append(
                Broadcast(Transactions(tuple(fresh[start : start + MAX_TRANSACTIONS])))
            )

    def _admit(self, now: Instant, sender: NodeId | None, transaction: Transaction) -> bool:
        if transaction.id in self._pool:
            return False
        try:
            self._ledger.admit(State(self._tree.best.executed.state), transaction, now)
            return self._pool.add(transaction, now, self._standing(transaction.body.sender))
        except RemoteFault as fault:
            # A peer may have seen other blocks: what does not fit here is no fault of his.
            fields = {"reason": fault.reason, "detail": fault.detail, "client": sender is None}
            self._out.append(Log("debug", "transaction refused", fields))
            return False

    def _add_to_pool(self, now: Instant, transaction: Transaction) -> None:
        try:
            self._pool.add(transaction, now, self._standing(transaction.body.sender))
        except RemoteFault as fault:
            self._out.append(Log("debug", "transaction dropped", {"reason": fault.reason}))

    def _standing(self, sender: bytes) -> Standing:
        """How an account stands on the best chain."""
        return self._ledger.admission.standing(State(self._tree.best.executed.state), sender)

    def _is_admissible(self, now: Instant, on: ExecutedBlock, transaction: Transaction) -> bool:
        try:
            self._ledger.admit(State(on.state), transaction, now)
        except RemoteFault:
            return False
        return True

    # -- signatures --------------------------------------------------------------------------------

    def _final_checks(self, answer: FinalBlocks) -> Checks:
        blocks = block_checks(self._tree, self._rules.chain_id, answer.blocks)
        if answer.justification is None:
            return blocks
        validators = self._tree.root.validators
        return both(
            blocks, justification_checks(answer.justification, self._rules.chain_id, validators)
        )


class _CheckedByDriver:
    """A verifier for signatures that `PublicNode.verification` named, so they hold."""

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:  # noqa: ARG002
        """See `core.keys.Verifier`."""
        return True


def _author(header: Header, validators: ValidatorSet) -> bytes:
    """Who sealed a final block, if it was one of these; else nothing."""
    if header.height == 0 or header.set_id != validators.set_id:
        return b""
    return validators.members[read_claim(header).authority]


def _above(path: Iterable[TreeNode], block: TreeNode) -> list[TreeNode]:
    return [node for node in path if node.height > block.height]


def _unfinal_key(node: TreeNode) -> bytes:
    return height_key(node.height) + node.hash


def _final_writes(
    final: Sequence[TreeNode], pruned: Sequence[TreeNode], justification: Justification
) -> Iterable[Write]:
    for node in final:
        is_target = node is final[-1]
        yield from block_writes(node.executed, encode(justification) if is_target else None)
        if node.sealed is not None:
            yield Write(SEALS, height_key(node.height), node.sealed.seal)
    last = final[-1]
    if last.validators.set_id != last.header.set_id:
        key = last.validators.set_id.to_bytes(8, "big")
        yield Write(SETS, key, encode(last.validators))
    for node in (*final, *pruned):
        yield Write(UNFINAL, _unfinal_key(node), None)
    yield Write(META, _EPOCH, encode(final[-1].epoch))


def _one_batch(effects: Sequence[Effect]) -> Sequence[Effect]:
    """All writes of a step as one `Persist` before everything else; a key's last write counts."""
    writes: dict[tuple[str, bytes], Write] = {}
    rest: list[Effect] = []
    for effect in effects:
        if isinstance(effect, Persist):
            writes.update({(write.table, write.key): write for write in effect.writes})
        else:
            rest.append(effect)
    return [Persist(tuple(writes.values())), *rest] if writes else rest
