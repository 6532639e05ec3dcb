"""Import: from a sealed block that somebody sent to a node of the tree, or to a refusal.

Law of the file: only blocks that passed every check enter the tree, each once, parents first.
Blocks that cannot be judged yet wait in bounded stashes: for their parent, or for their slot.

    it is                                                       then
    not the transactions that its header names                  refused: wrong-body
    known, not above the root, or of a set that is over         nothing
    known to be bad, or the child of such                       refused: bad-ancestor
    more than `future_slots` ahead of the clock                 waits for its slot
    its parent is not in the tree                               waits for it; the parent is wanted
    not by the set that its parent names                        refused: wrong-set
    without the right to its slot (`slots.check_claim`)         refused: the reason there
    its author's third or later block for its slot              waits until it is needed
    not what executing it gives (`Ledger.execute`)              refused: invalid-block
    good                                                        a node; its waiting children follow

Honest nodes may build on either of two blocks that one author made for one slot, so both are taken,
and the author is reported once. Of more blocks, one liar could make as many as it likes at the cost
of everybody's processor and memory: they are executed only if somebody else stands for them, by a
block on top (two for each slot and author may ask) or by a vote, see `Importer.needed`. That is enough to agree with nodes
that saw these first.

A refused header is remembered as bad; a wrong body is not held against the header, or whoever passes
a good block on could poison it. Seals and the signatures of transactions were checked before (`Machine.verification`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import Instant, NodeId
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.public.slots import (
    PRIMARY,
    SealedBlock,
    SealedHeader,
    SlotClaim,
    SlotEquivocation,
    SlotRules,
    VrfVerifier,
    check_claim,
    read_claim,
)
from gridtokenx.public.tree import BlockTree, TreeNode

MAX_ORPHANS: Final = 512
MAX_FUTURE: Final = 64
MAX_SURPLUS: Final = 256
MAX_NEEDED: Final = 4096
MAX_PER_SLOT: Final = 2
"""Blocks of one author for one slot that are executed, or may ask for others, unconditionally."""
MAX_BAD: Final = 1024
MAX_AUTHORSHIPS: Final = 4096

K = TypeVar("K")
V = TypeVar("V")

Authorship = tuple[int, bytes]
"""Slot and key of the author. An index would not do: two branches may have elected two sets of one
number, whose members of one index are different people."""

ValidatorsOf = Callable[[StateTree], ValidatorSet]
"""Reads, from the state after a block, the set that authors and finalises the block's children."""


class Offer(NamedTuple):
    """A block and the peer that delivered it."""

    sender: NodeId
    block: SealedBlock


class Refusal(NamedTuple):
    """A block that was refused, and whom to hold to it."""

    sender: NodeId
    fault: RemoteFault


class Importer:
    """Checks and executes blocks into a tree.

    Args:
        tree: where good blocks go.
        ledger: executes them.
        rules: of the chain's slots.
        vrf: checks the proofs in slot claims.
        validators_of: see `ValidatorsOf`.
    """

    def __init__(
        self,
        tree: BlockTree,
        ledger: Ledger,
        rules: SlotRules,
        vrf: VrfVerifier,
        validators_of: ValidatorsOf,
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._rules = rules
        self._vrf = vrf
        self._validators_of = validators_of
        self._orphans: OrderedDict[bytes, Offer] = OrderedDict()
        self._future: OrderedDict[bytes, Offer] = OrderedDict()
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._surplus: OrderedDict[bytes, Offer] = OrderedDict()
        self._needed: OrderedDict[bytes, None] = OrderedDict()
        self._authorships: OrderedDict[Authorship, list[SealedHeader]] = OrderedDict()
        self._askers: OrderedDict[tuple[int, int, int], frozenset[bytes]] = OrderedDict()
        self.refusals: list[Refusal] = []
        """What was refused since the caller last emptied this list."""
        self.evidence: list[tuple[bytes, SlotEquivocation]] = []
        """(author's key, evidence) found since the caller last emptied this list."""

    def offer(self, now: Instant, offer: Offer) -> list[TreeNode]:
        """Takes a block; returns the nodes that came of it, parents first."""
        made: list[TreeNode] = []
        waiting = [offer]
        while waiting:
            current = waiting.pop()
            if not _has_own_body(current.block):
                fault = RemoteFault("wrong-body", f"block {current.block.header.height}")
                self.refusals.append(Refusal(current.sender, fault))
                continue
            try:
                node = self._judge(now, current)
            except RemoteFault as refusal:
                _remember(self._bad, current.block.header.hash, None, MAX_BAD)
                self.refusals.append(Refusal(current.sender, refusal))
                continue
            if node is not None:
                made.append(node)
                waiting += self._children_waiting_for(node.hash)
        return made

    def restore(self, now: Instant, offer: Offer) -> list[TreeNode]:
        """Takes a block that this node had taken in an earlier life."""
        self._mark_needed([offer.block.header.hash])
        return self.offer(now, offer)

    def due(self, now: Instant) -> list[TreeNode]:
        """Takes the blocks whose slot has come."""
        limit = self._rules.slot_at(now) + self._rules.future_slots
        ready = [h for h, offer in self._future.items() if offer.block.header.round <= limit]
        return [
            node for block_hash in ready for node in self.offer(now, self._future.pop(block_hash))
        ]

    def needed(self, now: Instant, voted: Iterable[bytes]) -> list[TreeNode]:
        """Takes the surplus blocks that somebody stands for by now.

        Args:
            now: the time.
            voted: hashes of blocks that votes wait for.
        """
        if not self._surplus:
            return []
        for block_hash in voted:
            self._mark_needed([block_hash, *self._waits_for(block_hash)])
        for offer in self._orphans.values():
            below = self._waits_for(offer.block.header.hash)
            if self._may_ask(offer.block.header, self._surplus.get(below[-1])):
                self._mark_needed(below)
        ready = [block_hash for block_hash in self._surplus if block_hash in self._needed]
        return [
            node for block_hash in ready for node in self.offer(now, self._surplus.pop(block_hash))
        ]

    def wanted(self) -> Iterator[bytes]:
        """Hashes of parents that stashed blocks wait for, and that are not stashed themselves."""
        for offer in self._orphans.values():
            parent = offer.block.header.parent
            if not self.is_known(parent):
                yield parent

    def is_known(self, block_hash: bytes) -> bool:
        """Whether asking for a block would be in vain: it is here, waits here, or is bad."""
        return (
            block_hash in self._tree
            or block_hash in self._orphans
            or block_hash in self._future
            or block_hash in self._surplus
            or block_hash in self._bad
        )

    def adopt(self, executed: ExecutedBlock, sealed: SealedBlock, claim: SlotClaim) -> TreeNode:
        """Puts an executed block (one of our own, say) into the tree."""
        parent = self._tree.get(executed.header.parent)
        if parent is None:
            raise AssertionError(f"block {executed.height} was built on a block outside the tree")
        node = TreeNode(
            executed=executed,
            epoch=parent.epoch.at(executed.header.round, self._rules).mix(claim.vrf_output),
            validators=self._validators_after(executed, parent),
            sealed=sealed,
            author=parent.validators.members[claim.authority],
            primaries=parent.primaries + (claim.kind == PRIMARY),
        )
        self._tree.insert(node)
        return node

    def forget_final(self) -> None:
        """Drops what waits for a place at or below the root."""
        floor = self._tree.root.height
        for stash in (self._orphans, self._future, self._surplus):
            for block_hash in [h for h, o in stash.items() if o.block.header.height <= floor]:
                del stash[block_hash]

    def _judge(self, now: Instant, offer: Offer) -> TreeNode | None:
        """A node for a good block, None for one that is known or has to wait.

        Raises:
            RemoteFault: it is bad, and always will be.
        """
        sealed, header = offer.block, offer.block.header
        root = self._tree.root
        if header.hash in self._tree or header.height <= root.height:
            return None
        if header.set_id < root.validators.set_id:
            return None
        if header.hash in self._bad or header.parent in self._bad:
            raise RemoteFault("bad-ancestor", f"block {header.height} builds on a refused one")
        if header.round > self._rules.slot_at(now) + self._rules.future_slots:
            _remember(self._future, header.hash, offer, MAX_FUTURE)
            return None
        parent = self._tree.get(header.parent)
        if parent is None:
            _remember(self._orphans, header.hash, offer, MAX_ORPHANS)
            return None
        if header.hash in self._surplus:
            return None
        claim = self._check(sealed, parent)
        if self._is_surplus(sealed, claim, parent.validators):
            _remember(self._surplus, header.hash, offer, MAX_SURPLUS)
            return None
        executed = self._ledger.execute(parent.executed, sealed.block)
        return self.adopt(executed, sealed, claim)

    def _check(self, sealed: SealedBlock, parent: TreeNode) -> SlotClaim:
        header, validators = sealed.header, parent.validators
        if header.set_id != validators.set_id:
            raise RemoteFault("wrong-set", f"set {header.set_id} where {validators.set_id} is due")
        epoch = parent.epoch.at(header.round, self._rules)
        return check_claim(self._rules, header, parent.header, epoch, validators, self._vrf)

    def _is_surplus(self, sealed: SealedBlock, claim: SlotClaim, validators: ValidatorSet) -> bool:
        """Notes who made a block; whether it is one too many, and nobody needs it."""
        author = validators.members[claim.authority]
        key = (sealed.header.round, author)
        ours = SealedHeader(sealed.header, sealed.seal)
        made = self._authorships.get(key, [])
        if any(other.header == ours.header for other in made):
            return False
        if len(made) == MAX_PER_SLOT:
            return sealed.header.hash not in self._needed
        _remember(self._authorships, key, [*made, ours], MAX_AUTHORSHIPS)
        if made:
            self.evidence.append((author, SlotEquivocation(made[0], ours)))
        return False

    def _may_ask(self, header: Header, surplus: Offer | None) -> bool:
        """Whether a waiting block stands for a surplus block of another author.

        The seal of the waiting block was checked (of a set that is not over, that is), its right to
        its slot was not: so it is counted.
        """
        if surplus is None or header.set_id < surplus.block.header.set_id:
            return False
        if _author(header) == _author(surplus.block.header):
            return False
        asker = (header.set_id, header.round, _author(header))
        asked = self._askers.get(asker, frozenset()) | {header.hash}
        if len(asked) > MAX_PER_SLOT:
            return False
        _remember(self._askers, asker, asked, MAX_AUTHORSHIPS)
        return True

    def _mark_needed(self, block_hashes: Iterable[bytes]) -> None:
        for block_hash in block_hashes:
            _remember(self._needed, block_hash, None, MAX_NEEDED)

    def _waits_for(self, block_hash: bytes) -> list[bytes]:
        """What a waiting block builds on, down to the first that does not wait for its parent."""
        below: list[bytes] = []
        while (orphan := self._orphans.get(block_hash)) is not None:
            block_hash = orphan.block.header.parent
            below.append(block_hash)
        return below

    def _validators_after(self, executed: ExecutedBlock, parent: TreeNode) -> ValidatorSet:
        announced = executed.header.next_set_hash
        if announced == parent.validators.hash:
            return parent.validators
        validators = self._validators_of(executed.state)
        if validators.hash != announced:
            raise AssertionError("the ledger announces another set than its state holds")
        return validators

    def _children_waiting_for(self, parent: bytes) -> list[Offer]:
        waiting = [h for h, o in self._orphans.items() if o.block.header.parent == parent]
        return [self._orphans.pop(block_hash) for block_hash in waiting]


def _has_own_body(sealed: SealedBlock) -> bool:
    return sealed.block.transaction_root == sealed.header.transaction_root


def _author(header: Header) -> int:
    """The index, in its set, of the author whose seal on the header was checked."""
    return read_claim(header).authority


def _remember(stash: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Puts into a bounded stash; the oldest entry makes way."""
    stash[key] = value
    while len(stash) > limit:
        stash.popitem(last=False)
