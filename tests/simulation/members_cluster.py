"""A PBFT chain whose replica set changes while it runs, and what must hold of it at every moment."""

from collections.abc import Callable, Iterable, Sequence

from tests.simulation.pbft_cluster import CHAIN_ID, CLIENTS, TREASURY, VERIFIER, Wrapper, signer

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.keys import Domain, KeyedHashSigner
from gridtokenx.core.machine import Broadcast, Committed, Effect, Machine, Reader, Send
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, verify_certificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.network import Envelope, LinkProfile
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import load_block, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Allocation, Tokens
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.pbft.membership import (
    OPEN,
    AddMember,
    ApproveChange,
    Change,
    Membership,
    OpenProposal,
    ProposeChange,
    RemoveMember,
    ReplaceMember,
    new_key,
    possession_bytes,
    validators_of,
)
from gridtokenx.pbft.messages import Ballot, Commit, NewView, Prepare, PrePrepare, ViewChange
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.timing import Timing


def key(index: int) -> bytes:
    """The public key of a replica, seated or not."""
    return signer(index).public_key


def add(index: int) -> AddMember:
    return AddMember(key=key(index), label=f"operator {index}")


def remove(index: int) -> RemoveMember:
    return RemoveMember(key=key(index))


def replace(index: int, by: int) -> ReplaceMember:
    return ReplaceMember(key=key(index), by=key(by), label=f"operator {by}")


class Chain:
    """The ledger of a chain that can change its set, and what members say on it."""

    def __init__(self, n: int, rotation_blocks: int = 0) -> None:
        self.rotation_blocks = rotation_blocks
        self.first = ValidatorSet(0, tuple(key(i) for i in range(n)))
        self.membership = Membership(self.first, VERIFIER)
        tokens = Tokens([Allocation("WATT", client.public_key, 10**9) for client in CLIENTS])
        self.admission = StrictNonce(TokenFee(tokens, "WATT", 0, TREASURY))
        self.ledger = Ledger(
            CHAIN_ID, [self.membership, tokens], self.admission, self.membership.reference
        )
        self.genesis = self.ledger.genesis(START_MS)

    def replica(self, reader: Reader, index: int, timing: Timing) -> Replica:
        return Replica.restore(
            reader,
            self.ledger,
            self.first,
            signer(index),
            self.genesis,
            timing,
            validators_of=validators_of,
            rotation_blocks=self.rotation_blocks,
        )

    def proposal(self, head: ExecutedBlock, change: Change, by: int) -> Transaction:
        """A member proposes; whoever joins agreed to it."""
        members = validators_of(head.state)
        what = possession_bytes(CHAIN_ID, members.set_id, change)
        newcomer = new_key(change)
        proof = None if newcomer is None else signer_of(newcomer).sign(what)
        return self.say(head, by, ProposeChange(change=change, proof=proof))

    def approval(self, head: ExecutedBlock, change: Change, by: int) -> Transaction | None:
        """A member stands for a change that was proposed."""
        found = self.open(head, change)
        if found is None or any(voice.member == key(by) for voice in found.ballot.voices):
            return None
        return self.say(head, by, ApproveChange(proposal=found.proposal))

    def say(self, head: ExecutedBlock, by: int, call: Wire) -> Transaction:
        nonce = self.admission.standing(State(head.state), key(by)).next_nonce or 0
        return sign_transaction(signer(by), CHAIN_ID, nonce, [call])

    def open(self, head: ExecutedBlock, change: Change) -> OpenProposal | None:
        open_ = OPEN.get(State(head.state))
        return next((each for each in open_ if each.change == change), None)


def signer_of(public_key: bytes) -> KeyedHashSigner:
    return next(signer(i) for i in range(64) if key(i) == public_key)


Wrap = Callable[[Machine, int, "MembersCluster"], Machine]


class MembersCluster:
    """Replicas 0 to n - 1 have seats at first; the others up to `everybody` observe."""

    def __init__(
        self,
        n: int = 4,
        everybody: int = 8,
        seed: int = 1,
        *,
        timing: Timing | None = None,
        profile: LinkProfile | None = None,
        wrap: dict[int, Wrap] | None = None,
        rotation_blocks: int = 0,
        trace: bool = False,
    ) -> None:
        self.everybody = everybody
        self.timing = timing or Timing()
        self.chain = Chain(n, rotation_blocks)
        self.ids = tuple(key(i) for i in range(everybody))
        self.world = World(seed, VERIFIER, profile=profile, trace=trace)
        self.wrap = wrap or {}
        self.faulty = set(self.wrap)
        self.blocks: dict[int, bytes] = {}
        self.sets: dict[int, ValidatorSet] = {0: self.chain.first}
        self.votes: dict[tuple[str, int, int, int, int], bytes] = {}
        self.voted: dict[int, set[int]] = {}
        """By set id, the indices that were heard to vote in it."""
        self.newest = self.chain.genesis
        self.world.on_committed = self._on_committed
        self.world.network.rules.append(self._watch)
        for index in range(everybody):
            self.world.add(self.ids[index], self._builder(index))

    def _builder(self, index: int) -> Callable[[Reader], Machine]:
        def build(reader: Reader) -> Machine:
            replica = self.chain.replica(reader, index, self.timing)
            wrap = self.wrap.get(index)
            return replica if wrap is None else wrap(replica, index, self)

        return build

    # -- checks ------------------------------------------------------------------------------------

    def _on_committed(self, node: SimulatedNode, effect: Committed) -> None:
        """Agreement, the right set's certificate, and durability, at the moment of every commit."""
        if self.ids.index(node.id) in self.faulty:
            return
        executed = effect.value
        assert isinstance(executed, ExecutedBlock)
        header = executed.header
        known = self.blocks.setdefault(effect.height, executed.hash)
        assert known == executed.hash, f"two blocks at height {effect.height}"
        following = validators_of(executed.state)
        assert following.hash == header.next_set_hash
        assert self.sets.setdefault(following.set_id, following) == following
        raw = load_finality(node.store, effect.height)
        assert raw is not None, "committed without its proof on disk"
        proof = decode_own(raw, CommitCertificate)
        verify_certificate(proof, header, self.sets[header.set_id], VERIFIER)
        if executed.height > self.newest.height:
            self.newest = executed
            assert self.chain.ledger.check_invariants(executed.state) == []

    def _watch(self, envelope: Envelope) -> None:
        """Only members vote, and no honest one contradicts a vote of its own across all its lives."""
        index = self.ids.index(envelope.sender)
        found = None if index in self.faulty else self._vote_in(envelope.message)
        if found is None or found[1] != envelope.sender:
            return
        kind, author, set_id, view, height, what = found
        assert author in self.sets[set_id].members, f"{kind} of an observer"
        self.voted.setdefault(set_id, set()).add(index)
        known = self.votes.setdefault((kind, index, set_id, view, height), what)
        assert known == what, f"replica {index} sent two {kind}s in set {set_id}, view {view}"

    def _vote_in(self, message: Wire) -> tuple[str, bytes, int, int, int, bytes] | None:
        """(kind, author, set, view, height, what is said) of a vote."""
        match message:
            case PrePrepare(view, block):
                set_id = block.header.set_id
                author = primary_of(view, self.sets[set_id])
                kind, height, what = "pre-prepare", block.height, block.hash
            case Prepare(ballot, author):
                set_id, view = ballot.set_id, ballot.view
                kind, height, what = "prepare", ballot.height, ballot.block_hash
            case Commit(vote, author):
                set_id, view = vote.set_id, vote.view
                kind, height, what = "commit", vote.height, vote.block_hash
            case ViewChange(body):
                set_id, view, author = body.set_id, body.view, body.replica
                kind, height, what = "view-change", 0, encode(body)
            case NewView(body):
                set_id, view = body.set_id, body.view
                author = primary_of(view, self.sets[set_id])
                kind, height, what = "new-view", 0, encode(body)
            case _:
                return None
        return kind, self.sets[set_id].members[author], set_id, view, height, what

    def check_chains(self) -> None:
        """Every honest disk holds one gap-free prefix of the one chain."""
        for index in self.honest():
            store = self.world.nodes[self.ids[index]].store
            parent = self.chain.genesis.hash
            for height in range(1, self.height(index) + 1):
                block = load_block(store, height)
                assert block is not None
                assert block.header.parent == parent
                assert self.blocks.setdefault(height, block.hash) == block.hash
                parent = block.hash

    # -- looking -----------------------------------------------------------------------------------

    @property
    def members(self) -> ValidatorSet:
        """The set that finalises what follows the highest block that anybody has committed."""
        return self.sets[max(self.sets)]

    def seats(self) -> list[int]:
        """The indices of its members."""
        return [self.ids.index(member) for member in self.members.members]

    def honest(self) -> list[int]:
        return [index for index in range(self.everybody) if index not in self.faulty]

    def alive(self, index: int) -> bool:
        return self.world.nodes[self.ids[index]].alive

    def replica(self, index: int) -> Replica:
        machine = self.world.nodes[self.ids[index]].machine
        while isinstance(machine, Wrapper):
            machine = machine.inner
        assert isinstance(machine, Replica)
        return machine

    def height(self, index: int) -> int:
        raw = self.world.nodes[self.ids[index]].store.get("meta", b"head")
        return 0 if raw is None else int.from_bytes(raw, "big")

    def all_reached(self, height: int, among: Iterable[int] | None = None) -> bool:
        chosen = [i for i in self.honest() if self.alive(i)] if among is None else among
        return all(self.height(i) >= height for i in chosen)

    # -- doing -------------------------------------------------------------------------------------

    def start(self, *indices: int) -> None:
        self.world.start(*(self.ids[i] for i in indices))

    def crash(self, index: int, keep: int | None = None) -> None:
        self.world.crash(self.ids[index], keep)

    def restart(self, index: int) -> None:
        self.start(index)

    def submit(self, index: int, *transactions: Transaction) -> None:
        self.world.submit(self.ids[index], transactions)

    def run_to(self, height: int, limit_ms: int, among: Iterable[int] | None = None) -> bool:
        return self.world.run_until(lambda: self.all_reached(height, among), limit_ms)

    def push(self, change: Change, through: Sequence[int] | None = None) -> None:
        """Members that are up do what is left to be done for a change, as of the newest block."""
        up = [i for i in self.seats() if self.alive(i) and i not in self.faulty]
        through = through or up
        if not up or not through:
            return
        draw = self.world.draw
        if self.chain.open(self.newest, change) is None:
            said = self.chain.proposal(self.newest, change, draw.choice(up))
            self.submit(draw.choice(through), said)
            return
        for member in up:
            approval = self.chain.approval(self.newest, change, member)
            if approval is not None:
                self.submit(draw.choice(through), approval)

    def hand_over(self, change: Change, limit_ms: int = 30_000) -> bool:
        """Push a change until its set is announced by a committed block."""
        wanted, end = self.members.set_id + 1, self.world.now + limit_ms
        while self.world.now < end:
            self.push(change)
            if self.world.run_until(lambda: self.members.set_id >= wanted, 1_500):
                return True
        return False

    def settle(self, blocks: int = 3, limit_ms: int = 30_000) -> bool:
        """Let everybody honest that is up grow by so many blocks beyond the newest."""
        return self.run_to(self.newest.height + blocks, limit_ms)


class Turncoat(Wrapper):
    """As primary of whatever set, proposes two blocks for one height and commits to both."""

    rival: Block | None = None

    def change(self, effect: Effect) -> list[Effect]:
        replica = self.inner
        assert isinstance(replica, Replica)
        match effect:
            case Broadcast(PrePrepare(view, block) as message):
                self.rival = self._rival(replica, view, block)
                return self._split(message, self._proposal(view, self.rival))
            case Broadcast(Commit(vote, author) as message):
                rival = self.rival
                if rival is None or rival.height != vote.height:
                    return [effect]
                other = CommitVote(vote.set_id, vote.view, vote.height, rival.hash)
                signature = signer(self.index).sign(other.signed_bytes(CHAIN_ID))
                return self._split(message, Commit(other, author, signature))
            case _:
                return [effect]

    def _rival(self, replica: Replica, view: int, block: Block) -> Block:
        stamp = block.header.timestamp_ms + 1
        return self.cluster.chain.ledger.build(replica.head, Proposal(view, stamp), ())[0].block

    def _proposal(self, view: int, block: Block) -> PrePrepare:
        ballot = Ballot(block.header.set_id, view, block.height, block.hash)
        what = ballot.signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
        return PrePrepare(view, block, signer(self.index).sign(what))

    def _split(self, one: Wire, other: Wire) -> list[Effect]:
        others = [id_ for i, id_ in enumerate(self.cluster.ids) if i != self.index]
        return [Send(to, one if place % 2 else other) for place, to in enumerate(others)]
