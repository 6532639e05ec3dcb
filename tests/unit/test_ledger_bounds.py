"""What a client may not do to a chain: names that are no keys, transactions that fit no block."""

import pytest

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.core.types import ShortText
from gridtokenx.interchain.apps.transfer import FungibleTransfer, SendTransfer
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import (
    Context,
    Executed,
    ExecutedBlock,
    Ledger,
    Module,
    Proposal,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import BadKey, Map, store_key
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

CHAIN = b"\x07" * 32
ALICE, BOB = Ed25519Signer(b"a" * 32), Ed25519Signer(b"b" * 32)
WIDE = "\U0001f50b" * 64
"""A short text by its characters; 256 bytes, which is one more than a part of a key may have."""


class Name(Wire, frozen=True, tag="names.name"):
    name: ShortText


class Names(Module):
    """Puts a client's text into a key, as feeds and certificates do."""

    name = "names"
    named = Map("names.named", int)

    @handles(Name)
    def take(self, ctx: Context, call: Name) -> None:
        self.named.put(ctx.state, 1, call.name)


def make_ledger(*modules: Module) -> Ledger:
    tokens = Tokens(
        [Allocation(denom="GRID", account=each.public_key, amount=10**6) for each in (ALICE, BOB)]
    )
    return Ledger(
        CHAIN,
        [tokens, *modules],
        StrictNonce(TokenFee(tokens, "GRID", 1, bytes(32))),
        lambda _state: SetReference(0, bytes(32)),
    )


def results(ledger: Ledger, executed: ExecutedBlock) -> list[str]:
    found: list[str] = []
    for raw in executed.events:
        event: Wire = decode(decode(raw, EventRecord).data, ledger.event_union)
        if isinstance(event, Executed):
            found += [result.code for result in event.results]
    return found


def send(signer: Ed25519Signer, nonce: int, *calls: Wire) -> Transaction:
    return sign_transaction(signer, CHAIN, nonce, calls, fee=10 * len(calls))


# -- names -----------------------------------------------------------------------------------------


def test_a_name_that_is_no_key_fails_its_call_and_nothing_else() -> None:
    ledger = make_ledger(Names())
    genesis = ledger.genesis(0)
    transaction = send(ALICE, 0, Name(name=WIDE), Name(name="meter"))
    executed, refused = ledger.build(genesis, Proposal(0, 10), [transaction])
    assert refused == ()
    assert results(ledger, executed) == ["bad-key", "ok"]
    assert ledger.execute(genesis, executed.block).header == executed.header


@pytest.mark.parametrize("part", [WIDE, bytes(256), -1, 2**64])
def test_parts_of_keys_are_bounded(part: str | bytes | int) -> None:
    with pytest.raises(BadKey):
        store_key("a", part)
    store_key("a", bytes(255), 2**64 - 1)


@pytest.mark.parametrize("denom", [WIDE, "", "GRID\n", "grün", "/grid", "a" * 65, "a b"])
def test_a_denomination_is_a_short_ascii_name(denom: str) -> None:
    key = ALICE.public_key
    for value in (
        Transfer(denom=denom, to=key, amount=1),
        SendTransfer(client_id="public", denom=denom, amount=1, receiver=key, timeout_ms=1),
        FungibleTransfer(denom=denom, amount=1, sender=key, receiver=key),
    ):
        with pytest.raises(Malformed):
            decode(encode(value), type(value))


def test_a_transfer_of_an_impossible_token_is_refused_by_the_pools_rule() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(0)
    bad = send(ALICE, 0, Transfer(denom=WIDE, to=BOB.public_key, amount=1))
    executed, refused = ledger.build(genesis, Proposal(0, 10), [bad])
    assert refused == (bad,)
    assert executed.block.transactions == ()
