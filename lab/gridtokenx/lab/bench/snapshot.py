"""A new replica joins a chain: by taking over the state, and by replaying every block.

Three members hold a chain on whose 2,000 blocks 10,000 accounts were opened, five with each block; a
replica with an empty disk catches up with them, once in each way. Everything is what a process does:
messages are encoded and decoded, every signature of a certificate is checked by libsodium, blocks are
executed, records are written; only sockets and the disk are left out, so bytes are those of the messages
and seconds are processor time. The reference is the replay of the same chain in the same run.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.core.machine import (
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    Start,
    TimerFired,
    Unknown,
    Verified,
)
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.records import BLOCKS, block_writes
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal, SetReference
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.pbft.messages import Message, Status
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

ACCOUNTS: Final = 10_000
HEIGHT: Final = 2_000
START_MS: Final = 1_776_823_200_000
CHAIN_ID: Final = sha256(b"gtx bench: snapshot")
TREASURY: Final = sha256(b"gtx bench: treasury")
MEMBERS: Final = tuple(Ed25519Signer(sha256(b"gtx bench: member", bytes((i,)))) for i in range(4))
BANK: Final = Ed25519Signer(sha256(b"gtx bench: bank"))
VALIDATORS: Final = ValidatorSet(0, tuple(member.public_key for member in MEMBERS))
JOINER: Final = MEMBERS[3]
MEBIBYTE: Final = 1024 * 1024


@dataclass(slots=True)
class Cost:
    """What one way of joining took."""

    way: str
    messages: int = 0
    received_bytes: int = 0
    joiner_s: float = 0.0
    servers_s: float = 0.0
    kept_blocks: int = 0


def make_ledger() -> Ledger:
    """A chain with one token, all of which the bank has at first."""
    tokens = Tokens([Allocation("WATT", BANK.public_key, 10**15)])
    admission = StrictNonce(TokenFee(tokens, "WATT", 0, TREASURY))
    reference = SetReference(0, VALIDATORS.hash)
    return Ledger(CHAIN_ID, [tokens], admission, lambda _state: reference)


def grown_chain(ledger: Ledger) -> SimulatedStore:
    """The disk of a member after `HEIGHT` blocks."""
    store, head = SimulatedStore(), ledger.genesis(START_MS)
    _write(store, head, None)
    per_block = ACCOUNTS // HEIGHT
    for height in range(1, HEIGHT + 1):
        first = per_block * (height - 1)
        calls = [
            Transfer("WATT", sha256(b"account", (first + i).to_bytes(4, "big")), 1_000)
            for i in range(per_block)
        ]
        transactions = [
            sign_transaction(BANK, CHAIN_ID, first + i, [call]) for i, call in enumerate(calls)
        ]
        proposal = Proposal(0, START_MS + 1_000 * height)
        head, refused = ledger.build(head, proposal, transactions)
        assert not refused, "the bank has enough"
        _write(store, head, _certificate(head))
    return store


def _certificate(block: ExecutedBlock) -> CommitCertificate:
    vote = CommitVote(0, 0, block.height, block.hash)
    what = vote.signed_bytes(CHAIN_ID)
    signed = tuple(IndexedSignature(i, MEMBERS[i].sign(what)) for i in range(VALIDATORS.quorum))
    return CommitCertificate(CHAIN_ID, vote, signed)


def _write(store: SimulatedStore, block: ExecutedBlock, proof: CommitCertificate | None) -> None:
    store.write(block_writes(block, None if proof is None else encode(proof)))
    store.sync()


class Joining:
    """A new replica and those that it asks, in one thread.

    Args:
        ledger: of the chain.
        disk: of the members.
        cost: what is measured.
        timing: of the new replica.
    """

    def __init__(self, ledger: Ledger, disk: SimulatedStore, cost: Cost, timing: Timing) -> None:
        self._cost = cost
        self._now = START_MS + 1_000 * HEIGHT
        self._verifier = CachingVerifier(Ed25519Verifier())
        self._servers = {
            member.public_key: _replica(ledger, disk, member, Timing()) for member in MEMBERS[:3]
        }
        self._store = SimulatedStore()
        self._joiner = _replica(ledger, self._store, JOINER, timing)
        self._questions: deque[tuple[NodeId, bytes]] = deque()
        self._answers: deque[tuple[NodeId, bytes]] = deque()
        self._fetch_ms: int | None = None

    def run(self) -> None:
        """Join."""
        for server in self._servers.values():
            server.step(self._now, Start())
        self._step(Start())
        for key in self._servers:
            self._answers.append(
                (key, encode(Status(set_id=0, view=0, active=True, height=HEIGHT)))
            )
        while self._joiner.head.height < HEIGHT:
            if self._answers:
                self._hear(*self._answers.popleft())
            elif self._questions:
                self._serve(*self._questions.popleft())
            else:
                self._wait()
        self._cost.kept_blocks = sum(1 for _ in self._store.scan(BLOCKS)) - 1

    def _hear(self, sender: NodeId, raw: bytes) -> None:
        """What the new replica's process does with a frame."""
        self._cost.messages += 1
        self._cost.received_bytes += len(raw)
        began_s = time.process_time()
        message: Wire = decode(raw, Message)  # type: ignore[arg-type]  # a union
        checks = self._joiner.verification(message)
        assert not isinstance(checks, Unknown), "there is one set"
        assert all(self._verifier.verify(c.public_key, c.message, c.signature) for c in checks)
        self._cost.joiner_s += time.process_time() - began_s
        self._step(Received(Verified(sender, message)))

    def _step(self, event: Event) -> None:
        began_s = time.process_time()
        self._carry_out(self._joiner.step(self._now, event))
        self._cost.joiner_s += time.process_time() - began_s

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(writes):
                    self._store.write(writes)
                    self._store.sync()
                case Send(to, message) if to in self._servers:
                    self._questions.append((to, encode(message)))
                case SetTimer("fetch", at_ms):
                    self._fetch_ms = at_ms
                case _:
                    """Nobody hears it."""

    def _serve(self, server: NodeId, raw: bytes) -> None:
        """What a member's process does with a question."""
        began_s = time.process_time()
        message: Wire = decode(raw, Message)  # type: ignore[arg-type]  # a union
        event = Received(Verified(JOINER.public_key, message))
        for effect in self._servers[server].step(self._now, event):
            if isinstance(effect, Send):
                self._answers.append((server, encode(effect.message)))
        self._cost.servers_s += time.process_time() - began_s

    def _wait(self) -> None:
        assert self._fetch_ms is not None, "it has asked for nothing, and waits for nothing"
        self._now, self._fetch_ms = max(self._now, self._fetch_ms), None
        self._step(TimerFired("fetch"))


def _replica(ledger: Ledger, disk: SimulatedStore, key: Ed25519Signer, timing: Timing) -> Replica:
    genesis = ledger.genesis(START_MS)
    return Replica.restore(disk, ledger, VALIDATORS, key, genesis, timing)


def run() -> None:
    """Join in both ways, and print what each took."""
    ledger = make_ledger()
    disk = grown_chain(ledger)
    print(f"a new replica, {HEIGHT} blocks, {ACCOUNTS} accounts; processor seconds")
    print(
        f"{'way':<10}{'messages':>10}{'MiB':>8}{'joiner s':>10}{'others s':>10}{'blocks kept':>13}"
    )
    costs: list[Cost] = []
    for way, distance in (("replay", 0), ("snapshot", 1_024)):
        cost = Cost(way)
        Joining(ledger, disk, cost, replace(Timing(), snapshot_distance=distance)).run()
        costs.append(cost)
        print(
            f"{way:<10}{cost.messages:>10}{cost.received_bytes / MEBIBYTE:>8.2f}"
            f"{cost.joiner_s:>10.2f}{cost.servers_s:>10.2f}{cost.kept_blocks:>13}"
        )
    replayed, taken = costs
    print(
        f"replay / snapshot: {replayed.joiner_s / taken.joiner_s:.1f} x the joiner's time,"
        f" {replayed.servers_s / taken.servers_s:.1f} x the others',"
        f" {replayed.received_bytes / taken.received_bytes:.1f} x the bytes"
    )
