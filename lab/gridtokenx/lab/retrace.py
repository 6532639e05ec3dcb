"""Retrace a chain whose state was taken over: by proofs, since what led to that state is not here.

Law of the file: **what cannot be executed again must be certified.** From genesis' set on each set hands
over to the next by a certified header; from the base on every block is linked to the one before it, holds
the transactions and events of its header and is certified; and the stored state has the root of the last
header. So a quorum answers for the state; that it follows from the blocks, only a node that keeps them
all can show (`replay.py`).
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from gridtokenx.core.codec import decode, decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Verifier, Verifier
from gridtokenx.core.machine import Reader
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.certificates import CommitCertificate, verify_certificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.lab.replay import Divergence, Replayed
from gridtokenx.ledger.blocks import Block, Header, transaction_root
from gridtokenx.ledger.records import (
    base_height,
    height_key,
    load_block,
    load_events,
    load_finality,
    load_state,
)
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.terms import TERMS, Term
from gridtokenx.pbft.verification import check_handover

ED25519: Final = Ed25519Verifier()


def retrace(
    chain: ChainFacts, reader: Reader, head: int, verifier: Verifier = ED25519
) -> Iterator[Replayed]:
    """Check a stored chain from the block on whose state was taken over.

    Genesis and the headers that ended a set below it come first. Of all but the last block the state is
    empty: it is not here.

    Args:
        chain: put together from its genesis.
        reader: the stopped node's store.
        head: where to end.
        verifier: checks signatures.

    Raises:
        Divergence: at the first thing that is not certified, linked or what its header says.
    """
    validators, base = chain.validators, base_height(reader)
    yield Replayed(chain.genesis_block, proved=True, broken=(), validators=validators)
    while (term := _term(reader, validators.set_id + 1)) and term.root.height < base:
        _check_certificate(reader, term.root, validators, verifier)
        yield _replayed(_bare(Block(term.root, ())), validators, kept=False)
        validators = _following(term.root, term)
    parent: Header | None = None
    for height in range(base, head + 1):
        block, events = _stored(reader, height, verifier)
        if parent is not None and block.header.parent != parent.hash:
            raise Divergence(f"block {height}: does not follow from block {height - 1}")
        parent = block.header
        _check_certificate(reader, parent, validators, verifier)
        if height == head:
            yield _last(chain, reader, block, events, validators)
        else:
            yield _replayed(_bare(block, events), validators)
        if parent.next_set_hash != validators.hash:
            validators = _following(parent, _term(reader, validators.set_id + 1))


def _last(
    chain: ChainFacts,
    reader: Reader,
    block: Block,
    events: tuple[bytes, ...],
    validators: ValidatorSet,
) -> Replayed:
    """The head, with the stored state if that is its own."""
    tree = load_state(reader)
    if tree.root != block.header.state_root:
        raise Divergence(f"the stored state is not the one that block {block.height} proves")
    broken = tuple(f"block {block.height}: {what}" for what in chain.ledger.check_invariants(tree))
    return _replayed(ExecutedBlock(block, tree, {}, events), validators, broken)


def _replayed(
    executed: ExecutedBlock,
    validators: ValidatorSet,
    broken: tuple[str, ...] = (),
    *,
    kept: bool = True,
) -> Replayed:
    return Replayed(executed, proved=True, broken=broken, validators=validators, kept=kept)


def _bare(block: Block, events: tuple[bytes, ...] = ()) -> ExecutedBlock:
    return ExecutedBlock(block, StateTree.empty(), {}, events)


def _term(reader: Reader, set_id: int) -> Term | None:
    raw = reader.get(TERMS, height_key(set_id))
    try:
        return None if raw is None else decode_own(raw, Term)
    except msgspec.DecodeError:
        raise Divergence(f"the record of set {set_id} is none") from None


def _following(header: Header, term: Term | None) -> ValidatorSet:
    if term is None:
        raise Divergence(f"block {header.height}: hands over to a set of which nothing is stored")
    try:
        check_handover(header, term.validators)
    except RemoteFault as fault:
        raise Divergence(f"block {header.height}: {fault.detail}") from None
    return term.validators


def _stored(reader: Reader, height: int, verifier: Verifier) -> tuple[Block, tuple[bytes, ...]]:
    try:
        block, events = load_block(reader, height), load_events(reader, height)
    except msgspec.DecodeError as error:
        raise Divergence(f"block {height} is no block, or its events are none: {error}") from None
    if block is None:
        raise Divergence(f"block {height} is missing")
    if (
        block.height != height
        or transaction_root(block.transactions) != block.header.transaction_root
    ):
        raise Divergence(f"block {height}: its transactions are not those of its header")
    if merkle_root(events) != block.header.event_root:
        raise Divergence(f"block {height}: its events are not those of its header")
    for transaction in block.transactions:
        check = transaction.signature_check()
        if not verifier.verify(check.public_key, check.message, check.signature):
            raise Divergence(f"block {height}: transaction {transaction.id.hex()[:16]} is forged")
    return block, events


def _check_certificate(
    reader: Reader, header: Header, validators: ValidatorSet, verifier: Verifier
) -> None:
    raw = load_finality(reader, header.height)
    if raw is None:
        raise Divergence(f"block {header.height}: has no certificate")
    try:
        verify_certificate(decode(raw, CommitCertificate), header, validators, verifier)
    except RemoteFault as fault:
        raise Divergence(f"block {header.height}: its certificate: {fault}") from None
