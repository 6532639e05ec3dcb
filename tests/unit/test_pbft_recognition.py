"""A transaction that waits here is checked once; one that only looks like it is checked again."""

import pytest
from msgspec.structs import replace
from tests.simulation.pbft_cluster import transfer
from tests.simulation.pbft_script import Members

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.machine import SignatureCheck
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.pbft.messages import PrePrepare
from gridtokenx.pbft.requests import Requests
from gridtokenx.pbft.terms import Term
from gridtokenx.pbft.verification import Verification

FOUR = Members(4)
KNOWN, STRANGE = transfer(0, 0), transfer(1, 0)
BLOCK = FOUR.block(transactions=[KNOWN, STRANGE])


@pytest.fixture
def requests() -> Requests:
    found = Requests(FOUR.ledger, Pool())
    assert found.add(FOUR.genesis, KNOWN, 0)
    return found


def named(requests: Requests, block: Block) -> set[SignatureCheck]:
    """What is to be checked of a proposal beside its primary's signature."""
    term = Term(validators=FOUR.validators, root=FOUR.genesis.header)
    verification = Verification(FOUR.ledger.chain_id, {0: term}, 0, requests.knows)
    checks = verification.checks(PrePrepare(0, block, bytes(64)))
    assert isinstance(checks, tuple)
    return {check for check in checks if check.public_key not in FOUR.validators.members}


def copied(block: Block) -> Block:
    """The same block, as it comes from a peer."""
    return decode(encode(block), Block)


def test_what_waits_here_is_not_named_again(requests: Requests) -> None:
    checks = named(requests, copied(BLOCK.block))
    assert checks == {STRANGE.signature_check()}


@pytest.mark.parametrize("part", ["signature", "fee", "nonce"])
def test_what_differs_in_anything_is_named(requests: Requests, part: str) -> None:
    if part == "signature":
        other = Transaction(body=KNOWN.body, signature=bytes(64))
    else:
        body = replace(KNOWN.body, **{part: 99})
        other = Transaction(body=body, signature=KNOWN.signature)
    forged = Block(BLOCK.header, (other, STRANGE))
    assert other.signature_check() in named(requests, forged)
    assert requests.recognised(forged).transactions[0] is other


def test_copies_are_replaced_by_what_waits_here(requests: Requests) -> None:
    copy = copied(BLOCK.block)
    found = requests.recognised(copy)
    assert found == copy
    assert found.transactions[0] is KNOWN
    assert found.transactions[1] is copy.transactions[1]


def test_what_was_committed_is_forgotten(requests: Requests) -> None:
    requests.committed(FOUR.block(transactions=[KNOWN]), bytes(32), 1)
    assert not requests.knows(KNOWN)


def test_what_the_pool_let_go_is_forgotten_in_time(requests: Requests) -> None:
    requests.pool.discard([KNOWN])
    requests.restart_waits(1)
    assert not requests.knows(KNOWN)
