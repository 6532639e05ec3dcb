"""One member may send anything that it can sign: nothing raises, memory stays bounded, work goes on.

The traitor is replica 3 of four. It signs whatever it likes with its own key, relays what the honest
ones said, and uses every unsigned message with extreme values. Afterwards the honest three must
still decide a block together with the replica under test, without any view change in between that
the traitor alone could have caused.
"""

import random

import pytest
from tests.simulation.pbft_cluster import CHAIN_ID, VERIFIER, transfer
from tests.simulation.pbft_script import Bench
from tests.stages import spread

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import Received, Unknown, Verified
from gridtokenx.core.state_tree import StateLeaf, StatePart
from gridtokenx.core.types import UINT63_MAX
from gridtokenx.finality.certificates import CommitCertificate, CommitVote, IndexedSignature
from gridtokenx.ledger.blocks import Block, Header
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.messages import (
    Ballot,
    Body,
    CertifiedBlock,
    CertifiedBlocks,
    CertifiedHeader,
    Checkpoint,
    Commit,
    FetchBlocks,
    FetchBody,
    FetchPart,
    FetchSnapshot,
    Part,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    ProvenHandover,
    Snapshot,
    Status,
    Suspect,
    Transactions,
)

TRAITOR = 3


class Traitor:
    """Makes messages that replica 3 can sign, or that nobody signs."""

    def __init__(self, bench: Bench, draw: random.Random) -> None:
        self.bench, self.draw = bench, draw
        self.key = bench.signer(TRAITOR)
        self.honest = [bench.block(after_ms=1_000 + i) for i in range(2)]

    def number(self) -> int:
        return self.draw.choice([0, 1, 2, 3, 4, 7, 15, 16, 17, 1_000, UINT63_MAX - 1, UINT63_MAX])

    def view(self) -> int:
        return self.draw.choice([0, 1, 2, 3, 7, 3, 7, 11, UINT63_MAX // 4 * 4 - 1])

    def hash(self) -> bytes:
        known = [block.hash for block in self.honest]
        return self.draw.choice([*known, self.bench.genesis.hash, self.draw.randbytes(32)])

    def header(self) -> Header:
        base = self.draw.choice(self.honest).header
        fields = {name: getattr(base, name) for name in base.__struct_fields__}
        for name in self.draw.sample(["height", "round", "timestamp_ms", "version"], 2):
            fields[name] = self.number() if name != "version" else self.draw.randrange(3)
        if self.draw.random() < 0.5:
            fields["parent"] = self.hash()
        return Header(**fields)

    def block(self) -> Block:
        if self.draw.random() < 0.3:
            return self.draw.choice(self.honest).block
        transactions = tuple(transfer(i, 0) for i in range(self.draw.randrange(3)))
        return Block(self.header(), transactions)

    def sign_ballot(self, domain: Domain, ballot: Ballot) -> bytes:
        return self.key.sign(ballot.signed_bytes(domain, CHAIN_ID))

    def certificate(self) -> CommitCertificate:
        vote = CommitVote(0, self.view(), self.number(), self.hash())
        own = IndexedSignature(TRAITOR, self.key.sign(vote.signed_bytes(CHAIN_ID)))
        return CommitCertificate(CHAIN_ID, vote, (own,) * self.draw.randrange(4))

    def prepared(self) -> PreparedCertificate:
        header = self.header()
        return PreparedCertificate(self.view(), header, bytes(64), ())

    def honest_prepared(self) -> PreparedCertificate:
        """A real one: what a quorum signed in view 0."""
        return self.bench.prepared(self.honest[0], backups=(1, 2))

    def message(self) -> Wire:
        draw, bench = self.draw, self.bench
        ballot = Ballot(0, self.view(), self.number(), self.hash())
        block = self.block()
        head = CertifiedHeader(self.header(), self.certificate())
        own = Ballot(0, self.view(), block.height, block.hash)
        prepared = [draw.choice([self.prepared, self.honest_prepared])()]
        vote = CommitVote(0, ballot.view, ballot.height, ballot.block_hash)
        changes = [
            bench.view_change(i, 3, prepared=draw.choice([[], [self.honest_prepared()]]))
            for i in draw.sample(range(4), draw.randrange(4))
        ]
        makers = [
            lambda: PrePrepare(own.view, block, self.sign_ballot(Domain.PBFT_PRE_PREPARE, own)),
            lambda: Prepare(ballot, TRAITOR, self.sign_ballot(Domain.PBFT_PREPARE, ballot)),
            lambda: Commit(vote, TRAITOR, self.key.sign(vote.signed_bytes(CHAIN_ID))),
            lambda: Suspect(draw.choice([0, 1]), self.view()),
            lambda: bench.view_change(TRAITOR, max(1, self.view()), prepared=prepared),
            lambda: bench.view_change(TRAITOR, max(1, self.view()), head=head),
            lambda: bench.new_view(3, [bench.view_change(TRAITOR, 3)] * draw.randrange(4), []),
            lambda: bench.new_view(3, changes[:1], [ballot]),
            lambda: Status(draw.choice([0, 5]), self.view(), draw.random() < 0.5, self.number()),
            lambda: FetchBlocks(self.number(), draw.randint(1, 16)),
            lambda: FetchBody(self.number(), self.hash()),
            lambda: CertifiedBlocks(self.number(), (CertifiedBlock(block, self.certificate()),)),
            lambda: CertifiedBlocks(self.number(), ()),
            lambda: Body(block),
            lambda: FetchSnapshot(draw.choice([0, 5]), self.number()),
            lambda: Snapshot(
                (ProvenHandover(self.header(), self.certificate(), bench.validators),)[
                    : draw.randrange(2)
                ],
                draw.choice([None, Checkpoint(block, self.certificate(), ())]),
            ),
            lambda: FetchPart(self.number(), bytes(draw.randrange(256) for _ in range(3))),
            lambda: Part(self.number(), b"", StatePart(0, b"", (StateLeaf(b"a", self.hash()),))),
            lambda: Transactions((transfer(0, self.number()), transfer(1, 0, amount=0))),
        ]
        return draw.choice(makers)()


def hear_if_verified(bench: Bench, message: Wire) -> bool:
    try:
        checks = bench.replica.verification(message)
    except RemoteFault:
        return False
    if isinstance(checks, Unknown):
        return False
    if not all(VERIFIER.verify(c.public_key, c.message, c.signature) for c in checks):
        return False
    bench.step(Received(Verified(bench.validators.members[TRAITOR], message)))
    return True


def decide(bench: Bench, block: ExecutedBlock) -> None:
    bench.now = block.header.timestamp_ms
    bench.hear(bench.pre_prepare(block), bench.prepare(2, block))
    bench.hear(bench.commit(0, block), bench.commit(2, block))
    assert bench.replica.head.hash == block.hash


@pytest.mark.parametrize("seed", spread(range(60), 20))
def test_whatever_a_traitor_signs(seed: int) -> None:
    bench = Bench(1)
    traitor = Traitor(bench, random.Random(seed))
    heard = sum(hear_if_verified(bench, traitor.message()) for _ in range(150))
    assert heard > 50, "the fuzz gets past verification"
    assert bench.replica.head.height == 0
    assert (bench.replica.view, bench.replica.active) == (0, True), "it moves nobody alone"
    replica = bench.replica
    slots = list(replica._log.above(0))
    assert len(slots) <= 3
    assert all(len(slot.prepares) <= 4 and len(slot.bodies) <= 2 for slot in slots)
    assert len(replica._early) <= 4 * 3
    decide(bench, bench.block())
