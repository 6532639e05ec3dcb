"""A PBFT chain in the simulated world, and what must hold of it. Used by all PBFT tests."""

from collections.abc import Callable, Sequence

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.keys import Domain, KeyedHashSigner, KeyedHashVerifier, sha256
from gridtokenx.core.machine import (
    Broadcast,
    Committed,
    Effect,
    Event,
    Instant,
    Machine,
    NodeId,
    Reader,
    Received,
    Send,
    SignatureCheck,
    Submitted,
    Unknown,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, verify_certificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile, Verdict
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import load_block, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal, SetReference
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.pbft.messages import (
    Ballot,
    Body,
    CertifiedBlocks,
    Commit,
    NewView,
    Prepare,
    PrePrepare,
    Transactions,
    ViewChange,
)
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.timing import Timing

CHAIN_ID = sha256(b"pbft test chain")
VERIFIER = KeyedHashVerifier()
CLIENTS = tuple(KeyedHashSigner(sha256(b"client", bytes((i,)))) for i in range(4))
TREASURY = sha256(b"treasury")


def signer(index: int) -> KeyedHashSigner:
    return KeyedHashSigner(sha256(b"replica", index.to_bytes(2, "big")))


def validator_set(n: int) -> ValidatorSet:
    return ValidatorSet(0, tuple(signer(i).public_key for i in range(n)))


def ledger(validators: ValidatorSet) -> Ledger:
    tokens = Tokens([Allocation("WATT", client.public_key, 10**9) for client in CLIENTS])
    admission = StrictNonce(TokenFee(tokens, "WATT", 0, TREASURY))
    reference = SetReference(validators.set_id, validators.hash)
    return Ledger(CHAIN_ID, [tokens], admission, lambda _state: reference)


def transfer(client: int, nonce: int, amount: int = 1) -> Transaction:
    call = Transfer("WATT", TREASURY, amount)
    return sign_transaction(CLIENTS[client], CHAIN_ID, nonce, [call])


class Cluster:
    """n replicas of one chain; nobody is started yet."""

    def __init__(
        self,
        n: int = 4,
        seed: int = 1,
        *,
        timing: Timing | None = None,
        profile: LinkProfile | None = None,
        wrap: "dict[int, type[Wrapper]] | None" = None,
        replica: type[Replica] = Replica,
        validators: ValidatorSet | None = None,
        rotation_blocks: int = 0,
        trace: bool = False,
    ) -> None:
        self.n = n
        self.replica_type = replica
        self.rotation_blocks = rotation_blocks
        self.validators = validators or validator_set(n)
        self.ids = self.validators.members
        self.timing = timing or Timing()
        self.ledger = ledger(self.validators)
        self.genesis = self.ledger.genesis(START_MS)
        self.world = World(seed, VERIFIER, profile=profile, trace=trace)
        self.wrap = wrap or {}
        self.faulty: set[int] = set(self.wrap)
        self.chain: dict[int, bytes] = {}
        self.votes: dict[tuple[str, int, int, int], bytes] = {}
        self.world.on_committed = self._on_committed
        self.world.network.rules.append(self._watch)
        for index in range(n):
            self.world.add(self.ids[index], self._builder(index))

    def _builder(self, index: int) -> Callable[[Reader], Machine]:
        def build(reader: Reader) -> Machine:
            replica = self.replica_from(reader, index)
            wrap = self.wrap.get(index)
            return replica if wrap is None else wrap(replica, index, self)

        return build

    def replica_from(self, reader: Reader, index: int) -> Replica:
        return self.replica_type.restore(
            reader,
            self.ledger,
            self.validators,
            signer(index),
            self.genesis,
            self.timing,
            rotation_blocks=self.rotation_blocks,
        )

    # -- checks --------------------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        """Agreement, certificate validity and durability, at the moment of every commit."""
        index = self.ids.index(node.id)
        if index in self.faulty:
            return
        executed = effect.value
        assert isinstance(executed, ExecutedBlock)
        known = self.chain.setdefault(effect.height, executed.hash)
        assert known == executed.hash, f"two blocks at height {effect.height}"
        raw = load_finality(node.store, effect.height)
        assert raw is not None, "committed without its proof on disk"
        proof = decode_own(raw, CommitCertificate)
        verify_certificate(proof, executed.header, self.validators, VERIFIER)

    def _watch(self, envelope: Envelope) -> None:
        """No honest replica ever contradicts a vote of its own, across all its lives."""
        index = self.ids.index(envelope.sender)
        found = vote_in(envelope.message, self.validators)
        if found is None or found[1] != index or index in self.faulty:
            return
        kind, author, view, height, hash_ = found
        known = self.votes.setdefault((kind, author, view, height), hash_)
        assert known == hash_, f"replica {author} sent two {kind}s in view {view} at {height}"

    def check_chains(self) -> None:
        """Every honest disk holds one gap-free prefix of the one chain."""
        for index in self.honest():
            store = self.world.nodes[self.ids[index]].store
            parent = self.genesis.hash
            for height in range(1, self.height(index) + 1):
                block = load_block(store, height)
                assert block is not None
                assert block.header.parent == parent
                assert self.chain.setdefault(height, block.hash) == block.hash
                parent = block.hash

    # -- looking -------------------------------------------------------------------------------

    def honest(self) -> list[int]:
        return [index for index in range(self.n) if index not in self.faulty]

    def replica(self, index: int) -> Replica:
        machine = self.world.nodes[self.ids[index]].machine
        while isinstance(machine, Wrapper):
            machine = machine.inner
        assert isinstance(machine, Replica)
        return machine

    def up(self) -> list[int]:
        return [i for i in self.honest() if self.world.nodes[self.ids[i]].alive]

    def height(self, index: int) -> int:
        node = self.world.nodes[self.ids[index]]
        key = node.store.get("meta", b"head")
        return 0 if key is None else int.from_bytes(key, "big")

    def all_reached(self, height: int, among: Sequence[int] | None = None) -> bool:
        return all(self.height(i) >= height for i in (self.up() if among is None else among))

    # -- doing ---------------------------------------------------------------------------------

    def start(self) -> None:
        self.world.start()

    def crash(self, index: int, keep: int | None = None) -> None:
        self.world.crash(self.ids[index], keep)

    def restart(self, index: int) -> None:
        self.world.start(self.ids[index])

    def submit(self, index: int, *transactions: Transaction) -> None:
        self.world.submit(self.ids[index], transactions)

    def run_to(self, height: int, limit_ms: int, among: Sequence[int] | None = None) -> bool:
        return self.world.run_until(lambda: self.all_reached(height, among), limit_ms)

    def rejections(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for node in self.world.nodes.values():
            for reason, count in node.rejections.items():
                total[reason] = total.get(reason, 0) + count
        return total


def vote_in(message: Wire, validators: ValidatorSet) -> tuple[str, int, int, int, bytes] | None:
    """(kind, author, view, height, block hash) of a vote; view-changes have height 0."""
    match message:
        case PrePrepare(view, block):
            return "pre-prepare", primary_of(view, validators), view, block.height, block.hash
        case Prepare(ballot, replica):
            return "prepare", replica, ballot.view, ballot.height, ballot.block_hash
        case Commit(vote, replica):
            return "commit", replica, vote.view, vote.height, vote.block_hash
        case ViewChange(body):
            return "view-change", body.replica, body.view, 0, encode(body)
        case NewView(body):
            return "new-view", primary_of(body.view, validators), body.view, 0, encode(body)
        case _:
            return None


class DropKinds:
    """A rule that loses every message of some kinds, and counts them."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.kinds = kinds
        self.dropped = 0

    def __call__(self, envelope: Envelope) -> Verdict | None:
        if isinstance(envelope.message, self.kinds):
            self.dropped += 1
            return Drop()
        return None


def dropping(*kinds: type) -> DropKinds:
    return DropKinds(kinds)


class Wrapper:
    """Base of Byzantine behaviours: a machine around an honest one that changes what it emits."""

    def __init__(self, inner: Machine, index: int, cluster: Cluster) -> None:
        self.inner = inner
        self.index = index
        self.cluster = cluster

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        return self.inner.verification(message)

    def step(self, now: Instant, event: Event) -> list[Effect]:
        return [out for effect in self.inner.step(now, event) for out in self.change(effect)]

    def change(self, effect: Effect) -> list[Effect]:
        return [effect]

    def others(self) -> list[NodeId]:
        return [id_ for i, id_ in enumerate(self.cluster.ids) if i != self.index]


class Silent(Wrapper):
    """Says nothing at all."""

    def change(self, effect: Effect) -> list[Effect]:
        return [] if isinstance(effect, Send | Broadcast) else [effect]


class Hoarder(Wrapper):
    """Gathers everybody's commits and gives none, nor any block: it alone can prove what is decided."""

    def change(self, effect: Effect) -> list[Effect]:
        message = getattr(effect, "message", None)
        return [] if isinstance(message, Commit | Body | CertifiedBlocks) else [effect]


class Censor(Wrapper):
    """Leads, but never includes what clients submit, and passes nothing on."""

    def step(self, now: Instant, event: Event) -> list[Effect]:
        if isinstance(event, Submitted):
            return []
        if isinstance(event, Received) and isinstance(event.verified.message, Transactions):
            return []
        return super().step(now, event)


class Filler(Censor):
    """Censors behind full blocks: of what it is handed itself, which it shows to nobody before."""

    def step(self, now: Instant, event: Event) -> list[Effect]:
        if isinstance(event, Submitted):
            return Wrapper.step(self, now, event)
        return super().step(now, event)

    def change(self, effect: Effect) -> list[Effect]:
        gossip = isinstance(effect, Send | Broadcast) and isinstance(effect.message, Transactions)
        return [] if gossip else [effect]


class Equivocator(Wrapper):
    """As primary, proposes two blocks for one height, and commits to both; each to half the others."""

    def change(self, effect: Effect) -> list[Effect]:
        match effect:
            case Broadcast(PrePrepare(view, block) as message):
                self.rival = self._rival(view, block)
                return self._split(message, self._proposal(view, self.rival))
            case Broadcast(Commit(vote) as message) if self.leads(vote.view):
                rival = getattr(self, "rival", None)
                if rival is None or rival.height != vote.height:
                    return [effect]
                other = CommitVote(vote.set_id, vote.view, vote.height, rival.hash)
                signature = signer(self.index).sign(other.signed_bytes(CHAIN_ID))
                return self._split(message, Commit(other, self.index, signature))
            case _:
                return [effect]

    def leads(self, view: int) -> bool:
        return primary_of(view, self.cluster.validators) == self.index

    def _rival(self, view: int, block: Block) -> Block:
        head = self.inner.head
        stamp = block.header.timestamp_ms + 1
        return self.cluster.ledger.build(head, Proposal(view, stamp), ())[0].block

    def _proposal(self, view: int, block: Block) -> PrePrepare:
        ballot = Ballot(0, view, block.height, block.hash)
        what = ballot.signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
        return PrePrepare(view, block, signer(self.index).sign(what))

    def _split(self, one: Wire, other: Wire) -> list[Effect]:
        halves = enumerate(self.others())
        return [Send(to, one if position % 2 else other) for position, to in halves]


class Shouter(Equivocator):
    """Sends both of its contradicting votes to everybody: it proves its own fault."""

    def _split(self, one: Wire, other: Wire) -> list[Effect]:
        return [Broadcast(one), Broadcast(other)]
