"""Re-execute a node's chain from genesis, believing nothing that its disk says of the outcome.

Every block is executed again on its parent's re-executed state; headers, events, proofs of finality
and the stored state must agree with what follows. Whatever does not is a `Divergence`, which says
where.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gridtokenx.core.codec import Wire, decode, decode_own
from gridtokenx.core.errors import GridTokenXError, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.core.machine import Reader
from gridtokenx.finality.proofs import FinalityProof, verify_finality
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.storage import Store
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.records import (
    STATE,
    final_height,
    load_block,
    load_events,
    load_finality,
)
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger

MAX_FULL_CHECKS: Final = 300
"""Invariants walk the whole state, so a long chain is checked at about this many heights."""


class Divergence(GridTokenXError):
    """A stored chain is not what its own rules make of it."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One re-executed block."""

    executed: ExecutedBlock
    proved: bool
    """A proof of finality is stored for exactly this block, and it verifies."""
    broken: tuple[str, ...]
    """Invariants that do not hold after it; looked at on a sample of heights."""


def open_chain_store(directory: Path) -> Store:
    """A stopped node's store, for reading.

    Raises:
        LocalFault: no store there, or a process still uses it.
    """
    return Store.open(directory, read_only=True)


def replay(chain: ChainFacts, reader: Reader) -> Iterator[Replayed]:
    """Re-execute a stored chain, block by block, genesis first.

    Raises:
        Divergence: at the first block that does not follow from its parent, or at the end, if the
            stored state is not the re-executed one or no proof of finality covers the head.
    """
    head = final_height(reader)
    parent = chain.genesis_block
    yield Replayed(parent, proved=True, broken=tuple(_broken(chain.ledger, parent)))
    if head is None:
        return
    step = max(1, head // MAX_FULL_CHECKS)
    proved = True
    for height in range(1, head + 1):
        parent = _execute(chain, reader, parent, height)
        proved = _check_finality(chain, reader, parent)
        checked = height % step == 0 or height == head
        broken = _broken(chain.ledger, parent) if checked else []
        yield Replayed(parent, proved, tuple(broken))
    if not proved:
        raise Divergence(f"no proof of finality covers the last block, {head}")
    if dict(parent.state.items()) != dict(reader.scan(STATE)):
        raise Divergence(f"the stored state is not the one that re-execution reaches at {head}")


def decoded_events(ledger: Ledger, executed: ExecutedBlock) -> Iterator[Wire]:
    """The events of a block, typed."""
    for raw in executed.events:
        yield decode(decode_own(raw, EventRecord).data, ledger.event_union)


def _execute(
    chain: ChainFacts, reader: Reader, parent: ExecutedBlock, height: int
) -> ExecutedBlock:
    block = load_block(reader, height)
    if block is None:
        raise Divergence(f"block {height} is missing")
    for transaction in block.transactions:
        check = transaction.signature_check()
        if not _VERIFIER.verify(check.public_key, check.message, check.signature):
            raise Divergence(f"block {height}: transaction {transaction.id.hex()[:16]} is forged")
    try:
        executed = chain.ledger.execute(parent, block)
    except RemoteFault as fault:
        raise Divergence(f"block {height}: {fault}") from None
    if load_events(reader, height) != executed.events:
        raise Divergence(f"block {height}: the stored events are not those of re-execution")
    return executed


def _check_finality(chain: ChainFacts, reader: Reader, executed: ExecutedBlock) -> bool:
    raw = load_finality(reader, executed.height)
    if raw is None:
        return False
    try:
        proof: FinalityProof = decode(raw, FinalityProof)  # type: ignore[arg-type]  # a union
        verify_finality(executed.header, proof, chain.validators, _VERIFIER)
    except RemoteFault as fault:
        raise Divergence(f"block {executed.height}: its proof of finality: {fault}") from None
    return True


def _broken(ledger: Ledger, executed: ExecutedBlock) -> list[str]:
    return [f"block {executed.height}: {what}" for what in ledger.check_invariants(executed.state)]


_VERIFIER: Final = Ed25519Verifier()
