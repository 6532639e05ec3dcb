"""Terms: who finalises from which block on, and how that is remembered.

Law of the file: **a term begins upon a block that the set before it certified and executed here.** So
the block that a term stands on, its *root*, needs no proof inside the term: everybody who works in it
has committed that block. Genesis is the root of the first term.

A term's record is in the batch of its root, as is everything that the step forgets of the term before:
a replica is in one term or in the next, on disk as in memory.

==========  =====================  ===============================================================
table       key                    value
==========  =====================  ===============================================================
``terms``   set id (8 bytes)       `Term`, of every set but the first
==========  =====================  ===============================================================
"""

from collections.abc import Callable
from typing import Final

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Reader, Write
from gridtokenx.core.state_tree import StateTree
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.records import damaged
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.messages import MAX_REPLICAS

TERMS: Final = "terms"

ValidatorsOf = Callable[[StateTree], ValidatorSet]
"""Reads, from the state after a block, the set that finalises the next one."""


class Term(Wire, frozen=True):
    """The time of one validator set."""

    validators: ValidatorSet
    """Who finalises."""
    root: Header
    """The last block of the set before; genesis for the first."""

    @property
    def set_id(self) -> int:
        """The set's number."""
        return self.validators.set_id


def hands_over(header: Header, validators: ValidatorSet) -> bool:
    """Whether a block of this set is its last."""
    return header.next_set_hash != validators.hash


def following_term(executed: ExecutedBlock, validators_of: ValidatorsOf) -> Term:
    """The term that begins upon a committed block.

    Raises:
        LocalFault: the block's state names no such set, or one that is too large for this program.
    """
    header, following = executed.header, validators_of(executed.state)
    if following.hash != header.next_set_hash or following.set_id != header.set_id + 1:
        raise LocalFault(
            f"block {header.height} hands over to set {header.next_set_hash.hex()[:16]}, but its state"
            f" says {following.hash.hex()[:16]} (set {following.set_id}): run `gtx verify` on this home"
        )
    return checked_term(Term(validators=following, root=header))


def checked_term(term: Term) -> Term:
    """The term, if this program can work in it.

    Raises:
        LocalFault: its set is larger than messages allow.
    """
    if term.validators.size > MAX_REPLICAS:
        raise LocalFault(
            f"{term.validators.size} replicas; PBFT here is made for at most {MAX_REPLICAS}"
        )
    return term


def term_write(term: Term) -> Write:
    """The record of a term."""
    return Write(TERMS, term.set_id.to_bytes(8, "big"), encode(term))


def load_terms(reader: Reader, first: Term) -> dict[int, Term]:
    """Every term that was ever entered here, by set id."""
    later = (decode_own(value, Term) for _, value in reader.scan(TERMS))
    return {first.set_id: first, **{term.set_id: term for term in later}}


def current_term(terms: dict[int, Term], head: ExecutedBlock, validators_of: ValidatorsOf) -> Term:
    """The term of the block that follows `head`.

    Raises:
        LocalFault: what is stored of it is not what the state says.
    """
    validators = validators_of(head.state)
    term = terms.get(validators.set_id)
    if term is None or term.validators != validators:
        raise damaged(
            f"the store's last block {head.height} is followed by set {validators.set_id}, of which"
            " nothing (or something else) is stored"
        )
    return term


def term_above(terms: dict[int, Term], header: Header) -> Term:
    """The term of the block that follows a header, where no state can tell.

    Raises:
        LocalFault: nothing is stored of it.
    """
    for term in terms.values():
        if term.validators.hash == header.next_set_hash:
            return term
    raise damaged(f"the set that follows block {header.height} is not stored")
