"""What the disks say after a run: every promise of PBFT, judged from the stores and what was heard.

Law of the file: **nothing that a replica computed is believed.** The chain is executed again once, from
genesis; every honest store must hold that chain (from its base on, if it took a state over), with a
quorum's certificate of its own beside each block, and marks that are not below a vote that can be seen.

==============  =========================================================================
checker         promise
==============  =========================================================================
agreement       no two honest stores hold different blocks at one height
validity        blocks follow by the ledger's rules, executed again; the state is theirs
certificate     beside every block of every honest store is a quorum's certificate
durability      what a replica reported, and what a client was told, is there
marks           no mark of an honest replica is below a vote of its that can be seen
contradiction   no honest replica was heard saying two things about one
innocence       nobody honest is accused with proof
survival        an honest replica's process ends only if it is killed
invariants      the ledger's own laws
recovery        each fault was recovered from within its bound (`observe.py`)
==============  =========================================================================
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.finality.certificates import CommitCertificate, verify_certificate
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.driver import EVIDENCE
from gridtokenx.host.storage import Store
from gridtokenx.lab.chaos.layout import Laid
from gridtokenx.lab.chaos.load import Acknowledged
from gridtokenx.lab.chaos.outcome import Finding
from gridtokenx.lab.chaos.witness import contradictions
from gridtokenx.lab.replay import Divergence, Replayed, open_chain_store, replay
from gridtokenx.lab.verify.pbft import Walk
from gridtokenx.ledger.records import (
    STATE,
    base_height,
    final_height,
    load_block,
    load_finality,
)

_VERIFIER: Final = CachingVerifier(Ed25519Verifier())
"""Stores hold different quorums of the same votes."""
MOST_FINDINGS: Final = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Claims:
    """What was said while the run lasted, to be held against the disks."""

    byzantine: frozenset[int]
    heights: Sequence[int]
    """The highest block that each replica reported as durable."""
    acknowledged: Sequence[Acknowledged]
    ended: Mapping[int, Sequence[int]]
    """How processes ended that nobody had asked to end."""


class Audit:
    """Judges one run.

    Args:
        laid: the chain, its replicas stopped.
        claims: what they said.
    """

    def __init__(self, laid: Laid, claims: Claims) -> None:
        self._laid: Final = laid
        self._claims: Final = claims
        self._chain: Final[ChainFacts] = laid.facts()
        self._honest: Final = [
            index for index in range(len(laid.identities)) if index not in claims.byzantine
        ]
        self.height = 0
        """Of the longest honest chain."""

    def findings(self) -> list[Finding]:
        """Everything that is broken; of much of a kind the first."""
        found: list[Finding] = []
        for checker, detail in self._all():
            if sum(each.checker == checker for each in found) < MOST_FINDINGS:
                found.append(Finding(checker=checker, detail=detail))
        return found

    def _all(self) -> Iterator[tuple[str, str]]:
        with ExitStack() as stack:
            stores: dict[int, Store] = {}
            for index in self._honest:
                try:
                    stores[index] = open_chain_store(self._laid.data(index))
                except LocalFault as fault:
                    yield "durability", f"replica {index}: {fault}"
                else:
                    stack.callback(stores[index].close)
            if stores:
                yield from self._judge(stores)
        for index, statuses in self._claims.ended.items():
            for status in statuses if index in self._honest else ():
                yield "survival", f"replica {index} ended by itself with code {status}"
        names = [self._laid.heard(index) for index in range(len(self._laid.identities))]
        for seat, sentence in contradictions(names, len(names)):
            if seat in self._honest:
                yield "contradiction", sentence

    # -- the chain ---------------------------------------------------------------------------------

    def _judge(self, stores: Mapping[int, Store]) -> Iterator[tuple[str, str]]:
        heads = {index: final_height(store) or 0 for index, store in stores.items()}
        whole = [index for index, store in stores.items() if not base_height(store)] or list(stores)
        longest = max(whole, key=lambda index: heads[index])
        self.height = max(heads.values())
        for index, head in heads.items():
            promised = self._claims.heights[index]
            if head < promised:
                yield "durability", f"replica {index} reported {promised}, its disk ends at {head}"
        walks = {
            index: Walk(self._chain, store, self._laid.identities[index])
            for index, store in stores.items()
        }
        told: dict[int, set[bytes]] = {}
        for done in self._claims.acknowledged:
            told.setdefault(done.height, set()).add(done.transaction_id)
        try:
            for replayed in replay(self._chain, stores[longest]):
                yield from self._take(replayed, stores, heads, walks)
                yield from _missing(replayed, told.pop(replayed.executed.height, set()))
        except Divergence as divergence:
            yield "validity", f"replica {longest}: {divergence}"
            return
        for height, transactions in told.items():
            yield "durability", f"{len(transactions)} acknowledged transactions of height {height}"
        for index, walk in walks.items():
            for finding in walk.findings():
                yield "marks", f"replica {index}: {finding}"
            yield from self._accusations(index, stores[index])

    def _take(
        self,
        replayed: Replayed,
        stores: Mapping[int, Store],
        heads: Mapping[int, int],
        walks: Mapping[int, Walk],
    ) -> Iterator[tuple[str, str]]:
        """One re-executed block, held against every store that has its height."""
        executed = replayed.executed
        for sentence in replayed.broken:
            yield "invariants", sentence
        for index, store in stores.items():
            if heads[index] < executed.height:
                continue
            if (
                0 < executed.height < base_height(store)
            ):  # taken over by snapshot: proved by what follows
                walks[index].take(dataclasses.replace(replayed, proved=True))
                continue
            block = load_block(store, executed.height)
            if block is None or block.hash != executed.hash:
                yield "agreement", f"replica {index} holds another block {executed.height}"
                continue
            problem = "" if executed.height == 0 else _uncertified(replayed, store)
            if problem:
                yield "certificate", f"replica {index}, block {executed.height}: {problem}"
            walks[index].take(dataclasses.replace(replayed, proved=not problem))
            if executed.height == heads[index] and dict(executed.state.items()) != dict(
                store.scan(STATE)
            ):
                yield "validity", f"replica {index}: its state is not that of {executed.height}"

    def _accusations(self, index: int, store: Store) -> Iterator[tuple[str, str]]:
        for _, raw in store.scan(EVIDENCE):
            kind, offender, _ = decode(raw, tuple[str, bytes, bytes], limit=len(raw))
            seat = next(
                (seat for seat, key in enumerate(self._laid.identities) if key == offender), -1
            )
            if seat in self._honest:
                yield "innocence", f"replica {index} accuses replica {seat} of {kind}"


def _uncertified(replayed: Replayed, store: Store) -> str:
    """Why the certificate that a store holds of a block does not prove it."""
    raw = load_finality(store, replayed.executed.height)
    if raw is None:
        return "has no certificate"
    try:
        proof = decode(raw, CommitCertificate, limit=len(raw))
        verify_certificate(proof, replayed.executed.header, replayed.validators, _VERIFIER)
    except RemoteFault as fault:
        return str(fault)
    return ""


def _missing(replayed: Replayed, told: set[bytes]) -> Iterator[tuple[str, str]]:
    """Transactions that clients were told of and that are not in their block."""
    held = {transaction.id for transaction in replayed.executed.block.transactions}
    for transaction_id in told - held:
        name = transaction_id.hex()[:16]
        yield "durability", f"transaction {name} is not in block {replayed.executed.height}"
