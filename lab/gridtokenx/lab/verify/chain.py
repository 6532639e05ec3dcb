"""A chain's store: every record of every table, and the chain by re-execution.

Law of the file: **nothing on a disk is taken for granted but what genesis, the rules and other
people's signatures make of it.** What the store only says of itself (its head, its hash table) is
compared with what re-execution finds.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gridtokenx.core.machine import Reader
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.driver import EVIDENCE
from gridtokenx.host.restored import RESTORED
from gridtokenx.host.storage import META as STORE
from gridtokenx.host.storage import Store
from gridtokenx.lab.replay import Divergence, Replayed, replay
from gridtokenx.lab.retrace import retrace
from gridtokenx.lab.verify import pbft, public
from gridtokenx.lab.verify.findings import (
    NEVER_SIGN,
    REFETCH,
    Finding,
    Progress,
    bounded,
    name_of,
    read_as,
)
from gridtokenx.ledger.records import (
    BLOCKS,
    EVENTS,
    FINALITY,
    HASHES,
    HEAD,
    META,
    SETS,
    STATE,
    base_height,
    height_key,
)

COMMON: Final = (STORE, BLOCKS, HASHES, FINALITY, EVENTS, STATE, META, EVIDENCE, SETS, RESTORED)
BY_HEIGHT: Final = (BLOCKS, EVENTS, FINALITY)
"""Tables whose keys are heights of final blocks."""


@dataclass(slots=True)
class Judged:
    """What was found, and what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    blocks: int = 0
    transactions: int = 0
    proofs: int = 0


@dataclass(slots=True)
class _Followed:
    """What re-execution tells the checks that come after it."""

    sets: dict[int, ValidatorSet]
    blocks: list[Replayed]
    """The last one only, or none: states are large."""


def judge_chain(chain: ChainFacts, store: Store, identity: bytes, progress: Progress) -> Judged:
    """Judge a stopped node's store.

    Args:
        chain: put together from the node's genesis file.
        store: opened for reading.
        identity: the node's public key.
        progress: told how far it is.
    """
    judged = Judged()
    engine = public if chain.name == "public" else pbft
    judged.findings += _check_records(store, (*COMMON, *engine.TABLES), judged)
    if judged.findings:
        return judged  # what lies on damaged records can only be told wrong
    judged.findings += _check_owner(chain, store, identity)
    head = _find_head(store, judged)
    if head is None:
        return judged
    walk = engine.Walk(chain, store, identity)
    intact = _replay(chain, store, head, judged, walk, progress)
    judged.findings += bounded(_beyond(store, head))
    if intact:
        judged.findings += bounded(walk.findings())
        judged.findings += bounded(_check_sets(store, walk.sets))
    judged.findings += bounded(_check_evidence(store))
    return judged


# -- records ---------------------------------------------------------------------------------------


def _check_records(store: Store, tables: tuple[str, ...], judged: Judged) -> list[Finding]:
    damaged: list[Finding] = []
    unknown: Counter[str] = Counter()
    for record in store.records():
        judged.records += 1
        if record.value is None:
            where = f"table {record.table!r}, record {name_of(record.key)}"
            damaged.append(Finding(where, "fails its checksum", REFETCH))
        elif record.table not in tables:
            unknown[record.table] += 1
    found = list(bounded(damaged))
    remedy = "use the program that wrote them, or restore a backup"
    for table, count in unknown.items():
        found.append(Finding(f"table {table!r}", f"{count} records of no table known here", remedy))
    return found


def _check_owner(chain: ChainFacts, store: Store, identity: bytes) -> Iterator[Finding]:
    for name, expected, source in (
        ("chain", chain.chain_id, "the genesis file"),
        ("identity", identity, "the node's key"),
    ):
        known = store.get(STORE, name.encode())
        if known != expected:
            has = "nothing" if known is None else known.hex()[:16]
            what = f"says {has}, {source} {expected.hex()[:16]}"
            remedy = "use the home's own genesis and keys, or restore a backup"
            yield Finding(f"table {STORE!r}, record {name}", what, remedy)


def _find_head(store: Store, judged: Judged) -> int | None:
    """The head to judge up to: what the store says, or else its last block."""
    raw, last = store.get(META, HEAD), store.last(BLOCKS)
    newest = None if last is None else int.from_bytes(last[0][:8], "big")
    where = f"table {META!r}, record head"
    if raw is None and newest is None:
        return None
    if raw is None:
        what = f"is missing, but there are blocks up to {newest}"
        judged.findings.append(Finding(where, what, NEVER_SIGN))
        return newest
    if len(raw) != 8:
        judged.findings.append(Finding(where, f"is no height: {raw.hex()}", NEVER_SIGN))
        return newest
    head = int.from_bytes(raw, "big")
    if newest is None or head > newest:
        what = f"names block {head}, the last block is {'none' if newest is None else newest}"
        judged.findings.append(Finding(where, what, REFETCH))
        return newest
    return head


def _replay(
    chain: ChainFacts,
    store: Store,
    head: int,
    judged: Judged,
    walk: "pbft.Walk | public.Walk",
    progress: Progress,
) -> bool:
    """Re-execute, or retrace what was taken over; whether the whole chain follows from genesis."""
    indexed: list[Finding] = []
    way = retrace if base_height(store) else replay
    try:
        for replayed in way(chain, store, head):
            judged.blocks += replayed.kept
            judged.transactions += len(replayed.executed.block.transactions)
            judged.proofs += replayed.proved
            for sentence in replayed.broken:
                what = f"breaks an invariant: {sentence.partition(': ')[2]}"
                where = sentence.partition(": ")[0]
                judged.findings.append(Finding(where, what, "report it: the rules are at fault"))
            if replayed.kept:
                indexed += _check_index(store, replayed)
            walk.take(replayed)
            progress(replayed.executed.height, head)
    except Divergence as divergence:
        where, _, what = str(divergence).partition(": ")
        judged.findings.append(_diverged(where, what))
        return False
    finally:
        judged.findings += bounded(indexed)
    return True


def _diverged(where: str, what: str) -> Finding:
    """A divergence's sentence, in the three parts of a finding."""
    return Finding(where, what, REFETCH) if what else Finding("the chain", where, REFETCH)


def _check_index(store: Reader, replayed: Replayed) -> Iterator[Finding]:
    executed = replayed.executed
    key = height_key(executed.height)
    if store.get(HASHES, executed.hash) != key:
        where = f"table {HASHES!r}, block {executed.height}"
        yield Finding(where, "is not found by its hash", REFETCH)
    if executed.height == 0:
        stored = store.get(BLOCKS, key)
        if stored is None:
            yield Finding("block 0", "is missing", REFETCH)


def _beyond(store: Store, head: int) -> Iterator[Finding]:
    """Records of heights that the store itself says it has not reached."""
    for table in BY_HEIGHT:
        for key, _ in store.scan(table):
            if len(key) != 8 or int.from_bytes(key, "big") > head:
                where = f"table {table!r}, record {name_of(key)}"
                yield Finding(where, f"lies beyond the head, {head}", NEVER_SIGN)
    for hash_, key in store.scan(HASHES):
        if len(key) != 8 or int.from_bytes(key, "big") > head:
            where = f"table {HASHES!r}, record {hash_.hex()[:16]}"
            yield Finding(where, f"names a block beyond the head, {head}", NEVER_SIGN)
        elif len(hash_) != 32:
            where = f"table {HASHES!r}, record {name_of(hash_)}"
            yield Finding(where, "is no block's hash", REFETCH)
    extra = sum(1 for _ in store.scan(HASHES)) - (head + 1)
    if extra > 0:
        yield Finding(f"table {HASHES!r}", f"{extra} hashes more than blocks", REFETCH)


def _check_sets(store: Store, sets: dict[int, ValidatorSet]) -> Iterator[Finding]:
    for key, raw in store.scan(SETS):
        known = sets.get(int.from_bytes(key, "big"))
        if known is None or read_as(raw, ValidatorSet) != known:
            what = "is not the set that the chain handed over to"
            yield Finding(f"table {SETS!r}, set {name_of(key)}", what, REFETCH)


def _check_evidence(store: Store) -> Iterator[Finding]:
    for number, (key, raw) in enumerate(store.scan(EVIDENCE)):
        record = read_as(raw, tuple[str, bytes, bytes])
        if key != number.to_bytes(8, "big") or record is None:
            what = "is no proof of misbehaviour, or one before it is gone"
            yield Finding(f"table {EVIDENCE!r}, record {name_of(key)}", what, REFETCH)
            return
