"""What a replica keeps is bounded by its set and its window, whatever is sent; and goes when it may.

Castro & Liskov section 4.3: the log is cut at a stable checkpoint. Here every certified block is one,
so what is left after a commit is what lies above it.
"""

import random
from collections.abc import Iterator

from tests.simulation.pbft_cluster import CHAIN_ID, CLIENTS, TREASURY, signer
from tests.simulation.pbft_script import Bench

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Domain, sha256
from gridtokenx.finality.certificates import CommitVote
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.pbft.base import EARLY_HEIGHTS, SERVED_BYTES
from gridtokenx.pbft.log import MAX_BODIES
from gridtokenx.pbft.messages import (
    GOSSIP_TRANSACTIONS,
    Ballot,
    Body,
    CertifiedBlocks,
    Commit,
    FetchBlocks,
    FetchBody,
    Prepare,
    PrePrepare,
    Status,
    Suspect,
)
from gridtokenx.pbft.timing import Timing

N, WINDOW = 7, 4
LIARS = (5, 6)


def flood(bench: Bench, draw: random.Random, count: int) -> Iterator[tuple[int, Wire]]:
    """Anything that f members may sign: any view, any height, any block."""
    blocks = [bench.block(after_ms=1_000 + i) for i in range(40)]
    children = [bench.block(blocks[i], after_ms=1_000 + i) for i in range(40)]
    for _ in range(count):
        liar = draw.choice(LIARS)
        view = draw.choice([0, 1, draw.randrange(50), draw.randrange(2**40)])
        height = draw.choice([1, 2, 5, 7, draw.randrange(2**40)])
        block = draw.choice(blocks + children)
        ballot = Ballot(0, view, height, sha256(b"any", bytes((draw.randrange(256),))))
        own_view = draw.randrange(2**30) * N + liar
        match draw.randrange(8):
            case 0 | 1:
                what = ballot.signed_bytes(Domain.PBFT_PREPARE, CHAIN_ID)
                yield liar, Prepare(ballot, liar, signer(liar).sign(what))
            case 2 | 3:
                vote = CommitVote(0, view, height, ballot.block_hash)
                yield liar, Commit(vote, liar, signer(liar).sign(vote.signed_bytes(CHAIN_ID)))
            case 4:
                own = proposal(bench, block, own_view, liar)
                yield liar, own
            case 5:
                prepared = [bench.prepared(block)] if view > 0 and block in blocks else []
                yield liar, bench.view_change(liar, max(1, view), prepared=prepared)
            case 6:
                yield liar, draw.choice([Suspect(0, view), Status(0, view, True, height)])
            case _:
                yield liar, FetchBody(height, ballot.block_hash)


def proposal(bench: Bench, block: ExecutedBlock, view: int, liar: int) -> PrePrepare:
    what = bench.ballot(block, view).signed_bytes(Domain.PBFT_PRE_PREPARE, CHAIN_ID)
    return PrePrepare(view, block.block, signer(liar).sign(what))


def sizes(bench: Bench) -> dict[str, int]:
    replica = bench.replica
    slots = list(replica._log.above(0))
    return {
        "slots": len(slots),
        "prepares": max((len(slot.prepares) for slot in slots), default=0),
        "commits": max((len(slot.commits) for slot in slots), default=0),
        "tallies": max(
            (len(slot.prepare_tally._counts) + len(slot.commit_tally._counts) for slot in slots),
            default=0,
        ),
        "bodies": max((len(slot.bodies) for slot in slots), default=0),
        "proposals": max((len(slot.proposals) for slot in slots), default=0),
        "early": len(replica._early),
        "changes": len(replica._views.changes),
        "suspects": len(replica._views._suspects),
        "wanted": len(replica._wanted),
        "reported": len(replica._reported),
        "helped": len(replica._helped),
        "served": len(replica._served),
        "asked": len(replica._sync._open),
        "claims": len(replica._sync._claims),
        "log records": len(list(bench.store.scan("log"))),
    }


def bounds() -> dict[str, int]:
    heights = WINDOW + EARLY_HEIGHTS
    return {
        "slots": heights,
        "prepares": N,
        "commits": N,
        "tallies": 2 * N,
        "bodies": 1,
        "proposals": 1,
        "early": N * heights,
        "changes": N,
        "suspects": N,
        "wanted": heights,
        "reported": N,
        "helped": 5 * N,
        "served": N,
        "asked": 4,
        "claims": N,
        "log records": 3 + 5 * heights,
    }


def test_f_liars_cannot_make_a_replica_keep_more_than_its_share() -> None:
    bench = Bench(1, N, timing=Timing(window=WINDOW))
    draw = random.Random(4)
    for liar, message in flood(bench, draw, 3_000):
        try:
            bench.hear(message, sender=liar)
        except RemoteFault:
            continue
        found = sizes(bench)
        over = {name: size for name, size in found.items() if size > bounds()[name]}
        assert not over
    assert (bench.replica.view, bench.replica.active) == (0, True), "nor move it"
    assert bench.committed == []


def test_a_commit_cuts_the_log_below_it_and_a_few_blocks_more_cut_all_of_it() -> None:
    bench = Bench(1, N, timing=Timing(window=WINDOW))
    for liar, message in flood(bench, random.Random(5), 1_000):
        try:
            bench.hear(message, sender=liar)
        except RemoteFault:
            continue
    parent = bench.genesis
    for height in range(1, 12):
        parent = bench.block(parent)
        bench.now = max(bench.now, parent.header.timestamp_ms)
        bench.hear(bench.pre_prepare(parent), *(bench.commit(i, parent) for i in range(5)))
        assert bench.committed[-1] == height
        assert min((slot.height for slot in bench.replica._log.above(0)), default=99) > height
        assert all(key[1] > height for key in bench.replica._early)
    left = sizes(bench)
    for name in ("slots", "early", "wanted", "log records"):
        assert left[name] == 0, name


def test_many_views_without_a_commit_keep_one_body_each_and_not_for_ever() -> None:
    """Each view's fresh proposal was voted for, so it may be asked for; none after the commit."""
    bench = Bench(1, 4)
    last = MAX_BODIES + 8
    for view in range(1, last):
        changes = [bench.view_change(i, view) for i in (0, 2, 3)]
        bench.hear(*changes[:2])
        bench.hear(changes[2])
        if bench.primary(view) != 1:
            bench.hear(bench.new_view(view, changes))
            block = bench.block(view=view, after_ms=1_000 + view)
            bench.now = max(bench.now, block.header.timestamp_ms)
            bench.hear(bench.pre_prepare(block, view))
    slot = bench.replica._log.find(1)
    assert slot is not None
    assert len(slot.bodies) <= MAX_BODIES
    assert len(slot.proposals) <= MAX_BODIES
    bench.hear(*(bench.commit(i, block, view) for i in (0, 2, 3)))
    assert bench.committed == [1]
    assert {key for key, _ in bench.store.scan("log")} == {b"view", b"new-view"}


def test_what_is_prepared_is_not_forgotten_for_later_proposals() -> None:
    """The views in between did not hear of it; the one that does may find nobody else who has it."""
    bench = Bench(1, 4)
    prepared = bench.block()
    bench.now = prepared.header.timestamp_ms
    bench.hear(bench.pre_prepare(prepared), bench.prepare(2, prepared))
    assert bench.take(Commit)
    last = 2 * MAX_BODIES
    for view in (each for each in range(2, last) if bench.primary(each) != 1):
        bench.hear(bench.new_view(view, [bench.view_change(i, view) for i in (0, 2, 3)]))
        block = bench.block(view=view, after_ms=1_000 + view)
        bench.now = max(bench.now, block.header.timestamp_ms)
        bench.hear(bench.pre_prepare(block, view))
        assert len(bench.take(Prepare)) == 1
    view = next(view for view in range(last, last + 2) if bench.primary(view) != 1)
    certificate = [bench.prepared(prepared)]
    changes = [bench.view_change(i, view, prepared=certificate) for i in (0, 2, 3)]
    bench.hear(bench.new_view(view, changes))
    slot = bench.replica._log.find(1)
    assert slot is not None
    assert len(slot.bodies) <= MAX_BODIES
    assert [vote.ballot.block_hash for vote in bench.take(Prepare)] == [prepared.hash]


def test_questions_for_blocks_are_answered_within_a_bound_for_each_peer() -> None:
    """One of 21 bytes costs up to 2 MiB to read, decode and encode; honest peers ask far less often."""
    bench = Bench(1, 4)
    block = bench.block()
    bench.decide(block)
    most = SERVED_BYTES // (16 * 1024)
    for question, answer in (
        (FetchBlocks(1, 16), CertifiedBlocks),
        (FetchBody(1, block.hash), Body),
    ):
        bench.now += bench.timing.retransmit_ms
        bench.take(answer)
        bench.hear(*[question] * (most + 9), sender=3)
        assert len(bench.take(answer)) == most
        bench.hear(question, sender=2)
        assert len(bench.take(answer)) == 1, "others do not wait"
    bench.now += bench.timing.retransmit_ms
    bench.hear(FetchBlocks(1, 16), sender=3)
    assert bench.take(CertifiedBlocks), "it may ask again in time"


def test_accounts_that_replace_their_submissions_are_not_remembered_each_time() -> None:
    bench = Bench(1, 4)
    requests = bench.replica._requests
    call, sent = Transfer("WATT", TREASURY, 1), 0
    for client in CLIENTS:
        fee = 8
        while fee < 10**8:
            bench.submit(sign_transaction(client, CHAIN_ID, 0, [call], fee=fee))
            fee, sent = fee + fee // 8, sent + 1
    bound = 2 * len(CLIENTS) + GOSSIP_TRANSACTIONS + 1
    assert len(requests.pool) == len(CLIENTS)
    assert len(requests._waiting) <= bound < sent
    assert requests._waiting.keys() >= {t.id for t in requests.pool.candidates()}
