"""A public chain in the simulated world, and what must hold of it. Used by all public-chain tests."""

from collections.abc import Callable, Sequence

import msgspec

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, Signer, Verifier, sha256
from gridtokenx.core.machine import (
    Broadcast,
    Committed,
    Effect,
    Event,
    Instant,
    Machine,
    NodeId,
    Reader,
    Send,
    SignatureCheck,
    Unknown,
)
from gridtokenx.finality.justifications import Justification, Stage, verify_justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import final_height, load_block, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, SetReference
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.public.grandpa.messages import Votes, signed_vote
from gridtokenx.public.grandpa.round import CastVote
from gridtokenx.public.grandpa.vote_graph import BlockRef
from gridtokenx.public.machine import NodeKeys, PublicConfig, PublicNode
from gridtokenx.public.messages import NewBlock
from gridtokenx.public.slots import KeyedHashVrf, KeyedHashVrfVerifier, SlotRules, seal

CHAIN_ID = sha256(b"public test chain")
SLOT_MS = 2_000
GOSSIP_MS = 200
CLIENTS = tuple(KeyedHashSigner(sha256(b"client", bytes((i,)))) for i in range(4))
TREASURY = sha256(b"treasury")
TOKENS = Tokens([Allocation("GRID", client.public_key, 10**9) for client in CLIENTS])
RULES = SlotRules(CHAIN_ID, START_MS, slot_ms=SLOT_MS, epoch_slots=10)


def signer(index: int) -> KeyedHashSigner:
    return KeyedHashSigner(sha256(b"validator", index.to_bytes(2, "big")))


def keyed_hash_keys(index: int) -> NodeKeys:
    own = signer(index)
    return NodeKeys(own, KeyedHashVrf(own.public_key), KeyedHashVrfVerifier())


def transfer(client: int, nonce: int, amount: int = 1) -> Transaction:
    call = Transfer("GRID", TREASURY, amount)
    return sign_transaction(CLIENTS[client], CHAIN_ID, nonce, [call])


Wrap = Callable[[Machine, "PublicNetwork", int], Machine]


class PublicNetwork:
    """n validators of one chain; nobody is started yet."""

    def __init__(
        self,
        n: int = 4,
        seed: int = 1,
        *,
        profile: LinkProfile | None = None,
        wrap: dict[int, Wrap] | None = None,
        keys: Callable[[int], NodeKeys] = keyed_hash_keys,
        verifier: Verifier | None = None,
        trace: bool = False,
    ) -> None:
        self.n = n
        self.keys = [keys(index) for index in range(n)]
        self.validators = ValidatorSet(0, tuple(k.signer.public_key for k in self.keys))
        self.ids = self.validators.members
        reference = SetReference(0, self.validators.hash)
        admission = StrictNonce(TokenFee(TOKENS, "GRID", 0, TREASURY))
        self.ledger = Ledger(CHAIN_ID, [TOKENS], admission, lambda _state: reference)
        self.genesis = self.ledger.genesis(START_MS)
        self.verifier = verifier or KeyedHashVerifier()
        self.world = World(seed, self.verifier, profile=profile, trace=trace)
        self.wrap = wrap or {}
        self.chain: dict[int, bytes] = {}
        self.said: dict[tuple[int, int, Stage], bytes] = {}
        self.authored: dict[tuple[int, int], bytes] = {}
        self.world.on_committed = self._on_committed
        self.world.network.rules.append(self._overhear)
        for index in range(n):
            self.world.add(self.ids[index], self._builder(index))

    def _builder(self, index: int) -> Callable[[Reader], Machine]:
        def build(reader: Reader) -> Machine:
            node = self.node_from(reader, index)
            wrap = self.wrap.get(index)
            return node if wrap is None else wrap(node, self, index)

        return build

    def node_from(self, reader: Reader, index: int) -> PublicNode:
        config = PublicConfig(RULES, GOSSIP_MS)
        return PublicNode(
            self.ledger, self.genesis, self.validators, self.keys[index], config, reader
        )

    # -- checks --------------------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        """Agreement and durability, at the moment of every commit."""
        if self.ids.index(node.id) in self.wrap:
            return
        executed = effect.value
        assert isinstance(executed, ExecutedBlock)
        known = self.chain.setdefault(effect.height, executed.hash)
        assert known == executed.hash, f"two final blocks at height {effect.height}"
        stored = load_block(node.store, effect.height)
        assert stored is not None
        assert stored.hash == executed.hash

    def _overhear(self, envelope: Envelope) -> Verdict | None:
        """No honest validator ever contradicts itself, in any of its lives."""
        index = self.ids.index(envelope.sender)
        if index in self.wrap:
            return None
        match envelope.message:
            case Votes(votes):
                for vote in votes:
                    if vote.authority == index:
                        key = (index, vote.round, Stage(vote.stage))
                        known = self.said.setdefault(key, vote.target_hash)
                        assert known == vote.target_hash, f"validator {key} contradicts itself"
            case NewBlock(block):
                slot = (index, block.header.round)
                known = self.authored.setdefault(slot, block.header.hash)
                assert known == block.header.hash, f"validator {slot} authored twice"
        return None

    def check_disks(self) -> None:
        """Every honest disk holds one linked chain, and its head's justification convinces."""
        for index in self.honest():
            store = self.world.nodes[self.ids[index]].store
            parent = self.genesis.hash
            for height in range(1, self.final(index) + 1):
                block = load_block(store, height)
                assert block is not None
                assert block.header.parent == parent
                assert self.chain.setdefault(height, block.hash) == block.hash
                parent = block.hash
                proof = load_finality(store, height)
                if proof is not None:
                    justification = decode_own(proof, Justification)
                    verify_justification(
                        justification, block.header, self.validators, self.verifier
                    )
            assert self.final(index) == 0 or load_finality(store, self.final(index)) is not None

    # -- looking -------------------------------------------------------------------------------

    def honest(self) -> list[int]:
        return [index for index in range(self.n) if index not in self.wrap]

    def up(self) -> list[int]:
        return [i for i in self.honest() if self.world.nodes[self.ids[i]].alive]

    def node(self, index: int) -> PublicNode:
        machine = self.world.nodes[self.ids[index]].machine
        while isinstance(machine, Wrapper):
            machine = machine.inner
        assert isinstance(machine, PublicNode)
        return machine

    def final(self, index: int) -> int:
        return final_height(self.world.nodes[self.ids[index]].store) or 0

    def all_reached(self, height: int, among: Sequence[int] | None = None) -> bool:
        return all(self.final(i) >= height for i in (self.up() if among is None else among))

    def highest(self) -> int:
        return max(self.chain, default=0)

    def rejections(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for index in self.up():
            for reason, count in self.world.nodes[self.ids[index]].rejections.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def misbehaviours(self, kind: str) -> set[NodeId]:
        return {
            found.offender
            for index in self.honest()
            for found in self.world.nodes[self.ids[index]].misbehaviours
            if found.kind == kind
        }

    # -- doing ---------------------------------------------------------------------------------

    def partition(self, *sides: Sequence[int]) -> None:
        self.world.network.partition(*([self.ids[i] for i in side] for side in sides))

    def run_to(self, height: int, slots: int, among: Sequence[int] | None = None) -> bool:
        return self.world.run_until(lambda: self.all_reached(height, among), slots * SLOT_MS)

    def run_slots(self, slots: int) -> None:
        self.world.run_for(slots * SLOT_MS)

    def settle(self, further: int = 4, slots: int = 40) -> None:
        """Whatever happened before: all that are up must go on, together."""
        self.world.network.heal()
        self.world.start()
        goal = self.highest() + further
        assert self.run_to(goal, slots), (
            f"no progress to {goal}: finals {[self.final(i) for i in self.up()]}, "
            f"best {[self.node(i).best.height for i in self.up()]}, "
            f"rounds {[self.node(i).round for i in self.up()]}"
        )
        self.check_disks()


class Wrapper:
    """Base of Byzantine behaviours: a machine around an honest one that changes what it emits."""

    def __init__(self, inner: Machine, network: PublicNetwork, index: int) -> None:
        self.inner = inner
        self.network = network
        self.index = index

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        return self.inner.verification(message)

    def step(self, now: Instant, event: Event) -> list[Effect]:
        return [out for effect in self.inner.step(now, event) for out in self.corrupt(effect)]

    def corrupt(self, effect: Effect) -> list[Effect]:
        return [effect]

    @property
    def signer(self) -> Signer:
        return self.network.keys[self.index].signer


class Silent(Wrapper):
    """Hears everything and says nothing."""

    def corrupt(self, effect: Effect) -> list[Effect]:
        return [] if isinstance(effect, (Broadcast, Send)) else [effect]


class DoubleVoter(Wrapper):
    """Tells half of the others another vote: for the parent of the block that it really chose."""

    def corrupt(self, effect: Effect) -> list[Effect]:
        if not (isinstance(effect, Broadcast) and isinstance(effect.message, Votes)):
            return [effect]
        vote = effect.message.votes[0]
        node = self.network.node(self.index)
        parent = node._tree.parent_of(vote.target_hash)
        if parent is None or vote.target_height < 1:
            return [effect]
        lower = BlockRef(parent, vote.target_height - 1)
        unsigned = signed_vote(
            Stage(vote.stage), vote.round, vote.set_id, CastVote(self.index, lower, bytes(64))
        )
        signature = self.signer.sign(unsigned.signed_bytes(CHAIN_ID))
        other = Votes((msgspec.structs.replace(unsigned, signature=signature),))
        others = [id_ for id_ in self.network.ids if id_ != self.network.ids[self.index]]
        return [Send(to, other if i % 2 else effect.message) for i, to in enumerate(others)]


class DoubleAuthor(Wrapper):
    """Seals two blocks for every slot of its own, and shows each to half of the others."""

    def corrupt(self, effect: Effect) -> list[Effect]:
        if not (isinstance(effect, Broadcast) and isinstance(effect.message, NewBlock)):
            return [effect]
        block = effect.message.block.block
        later = msgspec.structs.replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
        twin = NewBlock(seal(msgspec.structs.replace(block, header=later), self.signer))
        others = [id_ for id_ in self.network.ids if id_ != self.network.ids[self.index]]
        return [Send(to, twin if i % 2 else effect.message) for i, to in enumerate(others)]


class ManyAuthor(Wrapper):
    """Seals a flood of blocks for every slot of its own; each of the others gets different ones."""

    each = 5

    def corrupt(self, effect: Effect) -> list[Effect]:
        if not (isinstance(effect, Broadcast) and isinstance(effect.message, NewBlock)):
            return [effect]
        others = [id_ for id_ in self.network.ids if id_ != self.network.ids[self.index]]
        block, made = effect.message.block.block, range(self.each * len(others))
        return [Send(others[i // self.each], self._another(block, i)) for i in made]

    def _another(self, block: Block, number: int) -> NewBlock:
        stamp_ms = block.header.timestamp_ms + number
        header = msgspec.structs.replace(block.header, timestamp_ms=stamp_ms)
        return NewBlock(seal(msgspec.structs.replace(block, header=header), self.signer))


class Liar(Wrapper):
    """Claims impossible heights, so that the others look for blocks that do not exist."""

    def corrupt(self, effect: Effect) -> list[Effect]:
        if isinstance(effect, (Broadcast, Send)) and hasattr(effect.message, "best_height"):
            lie = msgspec.structs.replace(
                effect.message,
                final_height=10**9,
                final_hash=sha256(b"final"),
                best_height=10**9,
                best_hash=sha256(b"best"),
            )
            return [Broadcast(lie) if isinstance(effect, Broadcast) else Send(effect.to, lie)]
        return [effect]
