"""Whole chains in memory, for tests of what passes between them.

A `TestChain` is a real ledger whose blocks are certified by test keys: a PBFT certificate or a
GRANDPA justification, as its kind says. There is no network: a test carries what it likes from
one chain to another, as a relayer could, and may alter it on the way.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.keys import (
    Ed25519Signer,
    Ed25519Verifier,
    KeyedHashSigner,
    KeyedHashVerifier,
    Signer,
    Verifier,
    sha256,
)
from gridtokenx.core.state_tree import StateProof
from gridtokenx.core.types import Blob, Millis
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.justifications import (
    Justification,
    SignedPrecommit,
    Stage,
    statement_bytes,
)
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.apps import transfer
from gridtokenx.interchain.clients import CertifiedHeader, ClientGenesis, ClientKind
from gridtokenx.interchain.council import Council
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, ClientId, Packet
from gridtokenx.ledger.admission import NoFee, StrictNonce
from gridtokenx.ledger.blocks import EventRecord, Header
from gridtokenx.ledger.runtime import (
    CallFailed,
    Context,
    Executed,
    ExecutedBlock,
    Ledger,
    Module,
    Proposal,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import Cell, Map, State
from gridtokenx.ledger.tokens import Allocation, Tokens
from gridtokenx.ledger.transactions import Transaction, sign_transaction

GENESIS_MS = 1_000_000
BLOCK_MS = 1_000
HOUR_MS = 3_600_000
GRID = "grid"
MAX_KEYS = 7


def seed_signers(name: str, count: int = 4, *, real: bool = False) -> list[Signer]:
    make = Ed25519Signer if real else KeyedHashSigner
    return [make(sha256(name.encode(), bytes((i,)))) for i in range(count)]


def account(name: str) -> KeyedHashSigner:
    return KeyedHashSigner(sha256(b"account", name.encode()))


RELAYER = account("relayer")


class Poke(Wire, frozen=True, tag="probe.poke"):
    """Send bytes by the probe port."""

    client_id: ClientId
    payload: Blob
    timeout_ms: Millis


class HandOver(Wire, frozen=True, tag="sets.hand_over"):
    """Let another set finalise the blocks after this one."""

    following: ValidatorSet


class Noted(Wire, frozen=True, tag="probe.noted"):
    text: Blob


class Probe(Module):
    """An app that notes what it hears and refuses payloads that say so."""

    name = "probe"
    port = "probe"
    events = (Noted,)
    notes = Map("probe.note", Blob)

    def __init__(self, interchain: Interchain) -> None:
        self._interchain = interchain
        interchain.register(self)

    @handles(Poke)
    def poke(self, ctx: Context, call: Poke) -> None:
        self._interchain.send(ctx, call.client_id, "probe", call.payload, call.timeout_ms)

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        assert ctx.sender == bytes(32)
        self._note(ctx, b"received", packet)
        ctx.emit(Noted(text=packet.payload))
        if packet.payload == b"refuse":
            raise CallFailed("asked-to", "the payload says so")
        if packet.payload == b"overlong":
            return bytes(10_000)
        return b"heard " + packet.payload[:16]

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        self._note(ctx, type(ack).__name__.lower().encode(), packet)

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        self._note(ctx, b"timed out", packet)

    def _note(self, ctx: Context, what: bytes, packet: Packet) -> None:
        client = packet.destination_client if what == b"received" else packet.source_client
        name = (client, int(what == b"received"), packet.sequence)
        assert not self.notes.has(ctx.state, *name), "an app heard twice of a packet"
        self.notes.put(ctx.state, what, *name)


class Sets(Module):
    """The chain's own validator sets."""

    name = "sets"

    def __init__(self, first: ValidatorSet) -> None:
        self.current = Cell("sets.current", ValidatorSet, first)
        self.following = Cell("sets.following", ValidatorSet, first)

    def begin_block(self, ctx: Context) -> None:
        self.current.put(ctx.state, self.following.get(ctx.state))

    @handles(HandOver)
    def hand_over(self, ctx: Context, call: HandOver) -> None:
        self.following.put(ctx.state, call.following)

    def reference(self, state: State) -> SetReference:
        return SetReference(
            set_id=self.current.get(state).set_id,
            next_set_hash=self.following.get(state).hash,
        )


@dataclass(frozen=True)
class Peer:
    """How one chain knows another in its genesis."""

    client_id: str
    counterparty: str
    chain: "Identity"
    trusting_period_ms: int = 24 * HOUR_MS


@dataclass(frozen=True)
class Identity:
    name: str
    kind: ClientKind
    size: int = 4
    real: bool = False

    @property
    def chain_id(self) -> bytes:
        return sha256(b"test chain", self.name.encode())

    def signers(self) -> list[Signer]:
        return seed_signers(self.name, self.size, real=self.real)


@dataclass
class TestChain:
    __test__ = False

    identity: Identity
    peers: Sequence[Peer]
    allocations: Sequence[Allocation] = ()
    limits: Sequence[transfer.TransferLimit] = ()
    verifier: Verifier = field(default_factory=KeyedHashVerifier)

    def __post_init__(self) -> None:
        self.signers = {0: self.identity.signers()}
        self.sets = {0: ValidatorSet(0, tuple(s.public_key for s in self.signers[0]))}
        self.tokens = Tokens(self.allocations)
        self.interchain = Interchain([client_genesis(peer) for peer in self.peers], self.verifier)
        self.transfer = transfer.TransferApp(self.interchain, self.tokens, self.limits)
        sets = Sets(self.sets[0])
        council = Council(lambda state: sets.current.get(state).members)
        modules = (
            sets,
            self.tokens,
            self.interchain,
            council,
            self.transfer,
            Probe(self.interchain),
        )
        self.admission = StrictNonce(NoFee(lambda _state, _sender, _calls: None))
        self.ledger = Ledger(self.chain_id, modules, self.admission, sets.reference)
        self.blocks = [self.ledger.genesis(GENESIS_MS)]

    # -- making blocks -----------------------------------------------------------------------------

    @property
    def chain_id(self) -> bytes:
        return self.identity.chain_id

    @property
    def facing(self) -> dict[str, tuple[str, str]]:
        """By client: the name of the chain that it faces, and that chain's client of us."""
        return {peer.client_id: (peer.chain.name, peer.counterparty) for peer in self.peers}

    def next_nonce(self, sender: bytes) -> int:
        return self.admission.next_nonce(self.state, sender)

    def fee(self, batch: Sequence[Wire]) -> int:
        return 0

    @property
    def head(self) -> ExecutedBlock:
        return self.blocks[-1]

    @property
    def now_ms(self) -> int:
        return self.head.header.timestamp_ms

    @property
    def state(self) -> State:
        return State(self.head.state)

    def block(
        self, *batch: Wire, by: Signer = RELAYER, after_ms: int = BLOCK_MS, check: bool = True
    ) -> list[str]:
        """One block with one transaction of `batch`; the code of each call, or "kept out"."""
        return self.block_of((by, batch), after_ms=after_ms, check=check)

    def block_of(
        self,
        *transactions: tuple[Signer, Sequence[Wire]],
        after_ms: int = BLOCK_MS,
        check: bool = True,
    ) -> list[str]:
        """One block with a transaction for each (sender, calls)."""
        candidates = [
            sign_transaction(
                sender,
                self.chain_id,
                self.next_nonce(sender.public_key),
                batch,
            )
            for sender, batch in transactions
            if batch
        ]
        refused = self.append(candidates, after_ms=after_ms, check=check)
        return ["kept out"] * len(refused) + [
            result.code for event in self.events(Executed) for result in event.results
        ]

    def append(
        self, candidates: Sequence[Transaction], *, after_ms: int = BLOCK_MS, check: bool = True
    ) -> tuple[Transaction, ...]:
        """The next block, of those transactions that may be included; returns the others."""
        proposal = Proposal(round=0, timestamp_ms=self.now_ms + after_ms)
        executed, refused = self.ledger.build(self.head, proposal, candidates)
        if check:
            assert self.ledger.execute(self.head, executed.block).hash == executed.hash
        self.blocks.append(executed)
        if check:
            assert self.ledger.check_invariants(executed.state) == []
        return refused

    def events(self, type_: type[Wire], height: int = -1) -> list[Wire]:
        records = [decode(raw, EventRecord) for raw in self.blocks[height].events]
        found = [decode(record.data, self.ledger.event_union) for record in records]
        return [event for event in found if isinstance(event, type_)]

    def hand_over(self, following: list[Signer]) -> list[str]:
        number = max(self.sets) + 1
        self.signers[number] = following
        self.sets[number] = ValidatorSet(number, tuple(s.public_key for s in following))
        return self.block(HandOver(self.sets[number]))

    def fork(self, height: int, *, salt: int = 1) -> ExecutedBlock:
        """Another block at `height`, such as only lying validators would certify."""
        parent = self.blocks[height - 1]
        proposal = Proposal(round=salt, timestamp_ms=self.blocks[height].header.timestamp_ms)
        return self.ledger.build(parent, proposal, ())[0]

    # -- what a relayer can get --------------------------------------------------------------------

    def certified(self, height: int = -1) -> CertifiedHeader:
        return self.certify(self.blocks[height].header)

    def certify(self, header: Header, signers: Sequence[Signer] | None = None) -> CertifiedHeader:
        chosen = list(self.signers[header.set_id]) if signers is None else list(signers)
        members = self.sets[header.set_id]
        make = certificate if self.identity.kind is ClientKind.PBFT else justification
        return CertifiedHeader(header, make(header, members, chosen))

    def prove(self, key: bytes, height: int = -1) -> StateProof:
        return self.blocks[height].state.prove(key)

    def packets(self, client: str) -> list[Packet]:
        """The open packets by a client, from state."""
        books = stores.channel(self.state, client)
        found = (
            stores.OUTBOX.get(self.state, client, sequence)
            for sequence in range(1, books.next_sequence)
        )
        return [packet for packet in found if packet is not None]

    def balance(self, who: Signer, denom: str = GRID) -> int:
        return self.tokens.balance(self.state, denom, who.public_key)

    def note(self, client: str, sequence: int, *, received: bool = False) -> bytes | None:
        return Probe.notes.get(self.state, client, int(received), sequence)


def client_genesis(peer: Peer) -> ClientGenesis:
    return ClientGenesis(
        client_id=peer.client_id,
        counterparty=peer.counterparty,
        chain_id=peer.chain.chain_id,
        kind=peer.chain.kind,
        set_id=0,
        validators=tuple(signer.public_key for signer in peer.chain.signers()),
        trusting_period_ms=peer.trusting_period_ms,
        clock_drift_ms=30_000,
    )


# -- finality by test keys -------------------------------------------------------------------------


def certificate(
    header: Header, members: ValidatorSet, signers: Sequence[Signer], **changes: object
) -> FinalityProof:
    fields = {
        "set_id": members.set_id,
        "view": 0,
        "height": header.height,
        "block_hash": header.hash,
    }
    vote = CommitVote(**{**fields, **changes})  # type: ignore[arg-type]
    message = vote.signed_bytes(header.chain_id)
    quorum = signers[: members.quorum]
    signatures = tuple(
        IndexedSignature(_index(members, signer), signer.sign(message)) for signer in quorum
    )
    return CommitCertificate(header.chain_id, vote, signatures)


def justification(
    header: Header, members: ValidatorSet, signers: Sequence[Signer]
) -> FinalityProof:
    message = statement_bytes(
        header.chain_id, Stage.PRECOMMIT, 1, members.set_id, header.hash, header.height
    )
    precommits = tuple(
        SignedPrecommit(_index(members, signer), header.hash, header.height, signer.sign(message))
        for signer in signers[: members.supermajority]
    )
    return Justification(1, members.set_id, header.hash, header.height, precommits, ())


def _index(members: ValidatorSet, signer: Signer) -> int:
    found = members.index_of(signer.public_key)
    return MAX_KEYS if found is None else found


# -- an honest relayer's hands ---------------------------------------------------------------------


@dataclass
class Link:
    """Two chains and what each calls the other."""

    left: TestChain
    right: TestChain
    left_client: str
    right_client: str

    def clients(self, at: TestChain) -> tuple[TestChain, str, str]:
        """The other chain, our client of it there, and its client of us."""
        if at is self.left:
            return self.right, self.left_client, self.right_client
        return self.left, self.right_client, self.left_client

    def update(self, at: TestChain, height: int = -1) -> calls.UpdateClient:
        other, client, _ = self.clients(at)
        header = other.blocks[height].header
        hands_over = header.next_set_hash != other.sets[header.set_id].hash
        return calls.UpdateClient(
            client,
            other.certified(height),
            other.sets[header.set_id + 1] if hands_over else None,
        )

    def known(self, at: TestChain) -> int:
        """The latest height of the other chain that `at` knows."""
        client = stores.CLIENTS.get(at.state, self.clients(at)[1])
        assert client is not None
        return client.latest_height

    def receive(
        self, at: TestChain, packet: Packet, height: int | None = None
    ) -> calls.ReceivePacket:
        other, _, _ = self.clients(at)
        height = self.known(at) if height is None else height
        key = stores.COMMITMENTS.key(packet.source_client, packet.sequence)
        return calls.ReceivePacket(packet, height, other.prove(key, height))

    def acknowledge(
        self, at: TestChain, packet: Packet, height: int | None = None
    ) -> calls.AcknowledgePacket:
        other, _, theirs = self.clients(at)
        height = self.known(at) if height is None else height
        ack = stores.ACKNOWLEDGEMENTS.get(other.state, theirs, packet.sequence)
        assert ack is not None
        key = stores.ACKNOWLEDGEMENTS.key(theirs, packet.sequence)
        return calls.AcknowledgePacket(packet, ack, height, other.prove(key, height))

    def timeout(
        self, at: TestChain, packet: Packet, height: int | None = None
    ) -> calls.TimeoutPacket:
        other, _, theirs = self.clients(at)
        height = self.known(at) if height is None else height
        key = stores.RECEIPTS.key(theirs, packet.sequence)
        return calls.TimeoutPacket(packet, height, other.prove(key, height))


PUBLIC = Identity("public", ClientKind.GRANDPA)
CONSORTIUM = Identity("consortium", ClientKind.PBFT)
ORACLE = Identity("oracle", ClientKind.PBFT)
ALICE, BOB = account("alice"), account("bob")


def public_and_consortium(
    limits: Sequence[transfer.TransferLimit] = (),
    *,
    real_keys: bool = False,
    trusting_period_ms: int = 24 * HOUR_MS,
) -> Link:
    """The route on which tokens travel; Alice holds 1000 GRID on the public chain."""
    verifier = Ed25519Verifier() if real_keys else KeyedHashVerifier()
    left, right = (dataclasses.replace(each, real=real_keys) for each in (PUBLIC, CONSORTIUM))
    public = TestChain(
        left,
        [
            Peer("consortium", "public", right, trusting_period_ms),
            Peer("oracle", "public", ORACLE),
        ],
        [Allocation(GRID, ALICE.public_key, 1_000)],
        limits,
        verifier,
    )
    consortium = TestChain(
        right,
        [
            Peer("public", "consortium", left, trusting_period_ms),
            Peer("oracle", "consortium", ORACLE),
        ],
        [Allocation("watt", BOB.public_key, 1_000)],
        limits,
        verifier,
    )
    return Link(public, consortium, "consortium", "public")


def oracle_and_consortium() -> Link:
    oracle = TestChain(ORACLE, [Peer("consortium", "oracle", CONSORTIUM)])
    consortium = TestChain(
        CONSORTIUM, [Peer("oracle", "consortium", ORACLE), Peer("public", "consortium", PUBLIC)]
    )
    return Link(oracle, consortium, "consortium", "oracle")


def three_chains() -> dict[str, TestChain]:
    """All three, each with a client of both others, named as the chains are."""
    names = (ORACLE, CONSORTIUM, PUBLIC)
    return {
        own.name: TestChain(
            own,
            [Peer(other.name, own.name, other) for other in names if other is not own],
            [Allocation(GRID, ALICE.public_key, 1_000)] if own is PUBLIC else [],
        )
        for own in names
    }
