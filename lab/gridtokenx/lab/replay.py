"""Re-execute a node's chain from genesis, believing nothing that its disk says of the outcome.

Every block is executed again on its parent's re-executed state; headers, events, proofs of finality
and the stored state must agree with what follows. Whatever does not is a `Divergence`, which says
where.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gridtokenx.core.codec import Wire, decode, decode_own
from gridtokenx.core.errors import GridTokenXError, RemoteFault
from gridtokenx.core.keys import Ed25519Verifier, Verifier
from gridtokenx.core.machine import Reader
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.units import ceil_div
from gridtokenx.finality.proofs import FinalityProof, verify_finality
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.storage import Store
from gridtokenx.ledger.blocks import Block, EventRecord
from gridtokenx.ledger.records import (
    STATE,
    final_height,
    load_block,
    load_events,
    load_finality,
)
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger

ED25519: Final = Ed25519Verifier()
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
    validators: ValidatorSet
    """Who finalised it."""
    kept: bool = True
    """Whether the block is on disk; if not, only its header and proof are."""


def open_chain_store(directory: Path) -> Store:
    """A stopped node's store, for reading.

    Raises:
        LocalFault: no store there, or a process still uses it.
    """
    return Store.open(directory, read_only=True)


def replay(
    chain: ChainFacts,
    reader: Reader,
    head: int | None = None,
    verifier: Verifier = ED25519,
    full_checks: int = MAX_FULL_CHECKS,
) -> Iterator[Replayed]:
    """Re-execute a stored chain, block by block, genesis first.

    Args:
        chain: put together from its genesis.
        reader: the stopped node's store.
        head: where to end, if not where the store says.
        verifier: checks signatures; only simulated chains have another.
        full_checks: at about so many heights invariants are looked at, at most.

    Raises:
        Divergence: at the first block that does not follow from its parent, or at the end, if the
            stored state is not the re-executed one or no proof of finality covers the head.
    """
    head = final_height(reader) if head is None else head
    parent, validators = chain.genesis_block, chain.validators
    yield Replayed(parent, proved=True, broken=_broken(chain.ledger, parent), validators=validators)
    if head is None:
        return
    step = max(1, ceil_div(head, full_checks))
    read_set = validators_of(chain)
    proved = True
    for height in range(1, head + 1):
        validators = _set_after(parent, validators, read_set)
        parent = _execute(chain, reader, parent, height, verifier)
        proved = _check_finality(reader, parent, validators, verifier)
        checked = height % step == 0 or height == head
        broken = _broken(chain.ledger, parent) if checked else ()
        yield Replayed(parent, proved, broken, validators)
    if not proved:
        raise Divergence(f"no proof of finality covers the last block, {head}")
    if dict(parent.state.items()) != dict(reader.scan(STATE)):
        raise Divergence(f"the stored state is not the one that re-execution reaches at {head}")


def validators_of(chain: ChainFacts) -> Callable[[StateTree], ValidatorSet]:
    """Reads, from the state after a block, the set that finalises the next one."""
    for module in chain.ledger.modules:
        read: Callable[[StateTree], ValidatorSet] | None = getattr(module, "validators_of", None)
        if read is not None:
            return read
    return lambda _state: chain.validators


def decoded_events(ledger: Ledger, executed: ExecutedBlock) -> Iterator[Wire]:
    """The events of a block, typed."""
    for raw in executed.events:
        yield decode(decode_own(raw, EventRecord).data, ledger.event_union)


def _execute(
    chain: ChainFacts, reader: Reader, parent: ExecutedBlock, height: int, verifier: Verifier
) -> ExecutedBlock:
    block = _stored_block(reader, height)
    for transaction in block.transactions:
        check = transaction.signature_check()
        if not verifier.verify(check.public_key, check.message, check.signature):
            raise Divergence(f"block {height}: transaction {transaction.id.hex()[:16]} is forged")
    try:
        executed = chain.ledger.execute(parent, block)
    except RemoteFault as fault:
        raise Divergence(f"block {height}: {fault}") from None
    if _stored_events(reader, height) != executed.events:
        raise Divergence(f"block {height}: the stored events are not those of re-execution")
    return executed


def _stored_block(reader: Reader, height: int) -> Block:
    try:
        block = load_block(reader, height)
    except msgspec.DecodeError as error:
        raise Divergence(f"block {height} is no block: {error}") from None
    if block is None:
        raise Divergence(f"block {height} is missing")
    return block


def _stored_events(reader: Reader, height: int) -> tuple[bytes, ...]:
    try:
        return load_events(reader, height)
    except msgspec.DecodeError:
        raise Divergence(f"block {height}: the stored events are none") from None


def _set_after(
    parent: ExecutedBlock, current: ValidatorSet, read: Callable[[StateTree], ValidatorSet]
) -> ValidatorSet:
    """Who finalises the child of a block."""
    if parent.header.next_set_hash == current.hash:
        return current
    following = read(parent.state)
    if following.hash != parent.header.next_set_hash:
        raise Divergence(f"block {parent.height} hands over to a set that its state does not name")
    return following


def _check_finality(
    reader: Reader, executed: ExecutedBlock, validators: ValidatorSet, verifier: Verifier
) -> bool:
    raw = load_finality(reader, executed.height)
    if raw is None:
        return False
    try:
        proof: FinalityProof = decode(raw, FinalityProof)  # type: ignore[arg-type]  # a union
        verify_finality(executed.header, proof, validators, verifier)
    except RemoteFault as fault:
        raise Divergence(f"block {executed.height}: its proof of finality: {fault}") from None
    return True


def _broken(ledger: Ledger, executed: ExecutedBlock) -> tuple[str, ...]:
    found = ledger.check_invariants(executed.state)
    return tuple(f"block {executed.height}: {what}" for what in found)
