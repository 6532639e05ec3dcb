"""The chain that a simulated run is about: keys, genesis, ledger, clients.

The ledger is the real one with one token. All replicas of a run share what they execute: execution
is a function of parent and block, so one result serves all. The validity checker executes every
committed block again, apart from all replicas (`checkers.py`).
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, sha256
from gridtokenx.core.machine import Instant
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import (
    Admission,
    ExecutedBlock,
    Ledger,
    Proposal,
    Standing,
)
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.pbft.membership import Membership

CHAIN_ID: Final = sha256(b"gtx sim: a PBFT chain")
TREASURY: Final = sha256(b"gtx sim: treasury")
MAX_OUTSTANDING: Final = 64
"""A client with so many transactions in flight waits: a halted chain needs no more of them."""
_KEPT_BLOCKS: Final = 512
_KEPT_ANSWERS: Final = 4_096


def replica_signer(index: int) -> KeyedHashSigner:
    """The key of a replica."""
    return KeyedHashSigner(sha256(b"gtx sim: replica", index.to_bytes(2, "big")))


def client_signer(index: int) -> KeyedHashSigner:
    """The key of a client's account."""
    return KeyedHashSigner(sha256(b"gtx sim: client", index.to_bytes(2, "big")))


def validators_of(replicas: int) -> ValidatorSet:
    """The chain's first set."""
    return ValidatorSet(0, tuple(replica_signer(index).public_key for index in range(replicas)))


def make_ledger(validators: ValidatorSet, clients: int) -> Ledger:
    """The real ledger, with the real membership, and one token that every client has plenty of."""
    allocations = [
        Allocation("WATT", client_signer(i).public_key, 10**12) for i in range(clients + 1)
    ]
    tokens = Tokens(allocations)
    admission = StrictNonce(TokenFee(tokens, "WATT", 0, TREASURY))
    members = Membership(validators, KeyedHashVerifier())
    return Ledger(CHAIN_ID, [members, tokens], admission, members.reference)


class _SharedAdmission:
    """An `Admission` that remembers how senders stand; pools ask it of committed states only."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Final = admission
        self._standings: dict[tuple[bytes, bytes], Standing] = {}
        self.check = admission.check
        self.ready = admission.ready
        self.charge = admission.charge

    def standing(self, state: State, sender: bytes) -> Standing:
        """See `Admission.standing`."""
        key = (state.tree.root, sender)
        found = self._standings.get(key)
        if found is None:
            if len(self._standings) >= _KEPT_ANSWERS:
                self._standings.clear()
            found = self._standings[key] = self._admission.standing(state, sender)
        return found


class SharedLedger:
    """An `Application` that remembers what it executed, for all replicas of a run.

    Args:
        ledger: the real one.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger: Final = ledger
        self._admission: Final = _SharedAdmission(ledger.admission)
        self._admitted: dict[tuple[bytes, bytes], int] = {}
        self._known: dict[tuple[bytes, bytes], ExecutedBlock] = {}
        self._blocks: dict[bytes, ExecutedBlock] = {}

    @property
    def chain_id(self) -> bytes:
        """In every header and signature."""
        return self.ledger.chain_id

    @property
    def admission(self) -> Admission:
        """Who may send what."""
        return self._admission

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """See `Ledger.build`."""
        executed, refused = self.ledger.build(parent, proposal, candidates)
        self._keep(parent, executed)
        return executed, refused

    def execute(self, parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        """See `Ledger.execute`; the second time it is remembered."""
        known = self._known.get((parent.hash, block.hash))
        if known is not None and known.block.transactions == block.transactions:
            return known
        executed = self.ledger.execute(parent, block)
        self._keep(parent, executed)
        return executed

    def admit(self, state: State, transaction: Transaction, now_ms: int) -> None:
        """See `Ledger.admit`; what was fine upon a state is fine until it expires."""
        key = (state.tree.root, transaction.id)
        until_ms = self._admitted.get(key)
        if until_ms is None or until_ms < now_ms:
            self.ledger.admit(state, transaction, now_ms)
            if len(self._admitted) >= _KEPT_ANSWERS:
                self._admitted.clear()
            self._admitted[key] = transaction.body.valid_until_ms

    def decode_calls(self, transaction: Transaction) -> tuple[Wire, ...]:
        """See `Ledger.decode_calls`."""
        return self.ledger.decode_calls(transaction)

    def weight(self, calls: Iterable[Wire]) -> int:
        """See `Ledger.weight`."""
        return self.ledger.weight(calls)

    def find(self, hash_: bytes) -> ExecutedBlock | None:
        """A block that somebody executed lately."""
        return self._blocks.get(hash_)

    def _keep(self, parent: ExecutedBlock, executed: ExecutedBlock) -> None:
        if len(self._known) >= _KEPT_BLOCKS:
            for old in list(self._known)[: _KEPT_BLOCKS // 2]:
                self._blocks.pop(self._known.pop(old).hash, None)
        self._known[parent.hash, executed.hash] = executed
        self._blocks[parent.hash] = parent
        self._blocks[executed.hash] = executed


# -- clients ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Client:
    """One account: what it sent and nobody has committed yet, oldest first."""

    index: int
    signer: KeyedHashSigner
    nonce: int = 0
    outstanding: dict[bytes, Transaction] = field(default_factory=dict)


class Clients:
    """All clients of a run: they take turns, and repeat what is not committed.

    Args:
        count: how many.
        draw: chooses amounts.
    """

    def __init__(self, count: int, draw: random.Random) -> None:
        self._clients: Final = [Client(index, client_signer(index)) for index in range(count)]
        self._draw = draw
        self._turn = 0
        self.sent_ms: Final[dict[bytes, Instant]] = {}
        """When each transaction was first sent."""
        self.committed: Final[dict[bytes, int]] = {}
        """Height by transaction."""
        self.latencies_ms: Final[list[int]] = []
        """From first sending to the first honest commit, in the order of commits."""

    def next(self, now: Instant) -> Transaction | None:
        """A new transaction of the client whose turn it is; None if it waits for its earlier ones."""
        client = self._clients[self._turn % len(self._clients)]
        self._turn += 1
        if len(client.outstanding) >= MAX_OUTSTANDING:
            return None
        call = Transfer("WATT", TREASURY, self._draw.randint(1, 1_000))
        made = sign_transaction(client.signer, CHAIN_ID, client.nonce, [call])
        client.nonce += 1
        client.outstanding[made.id] = made
        self.sent_ms[made.id] = now
        return made

    def probe(self, now: Instant) -> Transaction:
        """One transaction more, of an account that waits for nothing: does the chain take work?"""
        signer = client_signer(len(self._clients))
        call = Transfer("WATT", TREASURY, 1)
        made = sign_transaction(signer, CHAIN_ID, 0, [call])
        self.sent_ms[made.id] = now
        return made

    def note_sent(self, transaction: Transaction, now: Instant) -> None:
        """Somebody else's transaction: an operator's."""
        self.sent_ms.setdefault(transaction.id, now)

    def overdue(self, now: Instant, retry_ms: int) -> Iterator[Transaction]:
        """What should be sent again, per client in the order of nonces."""
        for client in self._clients:
            for transaction in client.outstanding.values():
                if now - self.sent_ms[transaction.id] >= retry_ms:
                    yield transaction

    def note_committed(self, block: Block, now: Instant) -> str | None:
        """Take a block that an honest replica committed first; says which promise it breaks."""
        for transaction in block.transactions:
            if transaction.id not in self.sent_ms:
                return f"block {block.height} holds a transaction that no client sent"
            if transaction.id in self.committed:
                earlier = self.committed[transaction.id]
                return f"a transaction of block {earlier} is in block {block.height} again"
            self.committed[transaction.id] = block.height
            self.latencies_ms.append(now - self.sent_ms[transaction.id])
            for client in self._clients:
                if client.signer.public_key == transaction.body.sender:
                    client.outstanding.pop(transaction.id, None)
        return None
