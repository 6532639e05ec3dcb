"""Makes blocks of the public test chain anywhere in a tree, by whoever may author them."""

from collections.abc import Iterator, Sequence

import msgspec
from tests.simulation.public_network import RULES, PublicNetwork

from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.public.importer import Importer
from gridtokenx.public.slots import (
    PRIMARY,
    Epoch,
    KeyedHashVrfVerifier,
    SealedBlock,
    SlotClaim,
    claim_slot,
    encoded_claim,
    seal,
)
from gridtokenx.public.tree import BlockTree, TreeNode

FIRST_SLOT = RULES.slot_at(RULES.genesis_ms)


class NoReader:
    """An empty disk."""

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(())


class Forge:
    """A tree with an importer, and blocks for it. Slots are counted from genesis."""

    def __init__(self, n: int = 4) -> None:
        self.net = PublicNetwork(n)
        self.keys = self.net.keys
        self.validators = self.net.validators
        self.root = TreeNode(self.net.genesis, Epoch.genesis(RULES), self.validators)
        self.tree = BlockTree(self.root, NoReader())
        self.importer = Importer(
            self.tree, self.net.ledger, RULES, KeyedHashVrfVerifier(), lambda _: self.validators
        )

    def claims(self, parent: TreeNode, slot: int) -> list[tuple[int, SlotClaim]]:
        """Everybody's right to a slot: primaries first."""
        slot += FIRST_SLOT
        epoch = parent.epoch.at(slot, RULES)
        found = [
            (index, claim)
            for index, keys in enumerate(self.keys)
            if (claim := claim_slot(RULES, epoch, slot, index, len(self.keys), keys.vrf))
        ]
        return sorted(found, key=lambda pair: pair[1].kind)

    def slot_with(self, parent: TreeNode, kind: int, after: int = 0) -> int:
        """The first slot above `after` that has an author of this kind (the best right)."""
        slot = after + 1
        while not (found := self.claims(parent, slot)) or found[0][1].kind != kind:
            slot += 1
        return slot

    def make(
        self,
        parent: TreeNode,
        slot: int,
        *,
        transactions: Sequence[Transaction] = (),
        offset_ms: int = 1,
        secondary: bool = False,
    ) -> SealedBlock:
        """A good block: by the slot's primary author if it has one."""
        index, claim = self.claims(parent, slot)[-1 if secondary else 0]
        time_ms = RULES.start_of(slot + FIRST_SLOT) + offset_ms
        proposal = Proposal(slot + FIRST_SLOT, time_ms, encoded_claim(claim))
        executed, _ = self.net.ledger.build(parent.executed, proposal, transactions)
        return seal(executed.block, self.keys[index].signer)

    def grow(self, parent: TreeNode, slot: int, **options: object) -> TreeNode:
        """Puts a block into the tree."""
        sealed = self.make(parent, slot, **options)  # type: ignore[arg-type]
        return self.importer.adopt(
            self.net.ledger.execute(parent.executed, sealed.block),
            sealed,
            msgspec.msgpack.decode(sealed.header.digest, type=SlotClaim),
        )

    def line(self, parent: TreeNode, count: int, kind: int | None = None) -> list[TreeNode]:
        """A line of blocks of one kind (or of whatever comes), one on the other."""
        nodes = []
        for _ in range(count):
            after = max(0, parent.header.round - FIRST_SLOT)
            slot = after + 1 if kind is None else self.slot_with(parent, kind, after)
            parent = self.grow(parent, slot, secondary=kind != PRIMARY)
            nodes.append(parent)
        return nodes


def reseal(forge: Forge, sealed: SealedBlock, **changes: object) -> SealedBlock:
    """The block with header fields changed, sealed anew by its own author."""
    header: Header = msgspec.structs.replace(sealed.header, **changes)
    block = msgspec.structs.replace(sealed.block, header=header)
    claim = msgspec.msgpack.decode(sealed.header.digest, type=SlotClaim)
    return seal(block, forge.keys[claim.authority].signer)
