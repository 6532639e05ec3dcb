"""What a client may not do to a chain: names that are no keys, transactions that fit no block."""

from collections.abc import Iterator

import pytest

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.core.types import Blob, ShortText, UInt63
from gridtokenx.interchain.apps.transfer import FungibleTransfer, SendTransfer
from gridtokenx.ledger import runtime
from gridtokenx.ledger.admission import StrictNonce, TokenFee
from gridtokenx.ledger.blocks import Block, EventRecord
from gridtokenx.ledger.runtime import (
    MAX_BLOCK_WEIGHT,
    MAX_MISFITS,
    TRANSACTION_WEIGHT,
    CallFailed,
    Context,
    Executed,
    ExecutedBlock,
    InvalidBlock,
    InvalidTransaction,
    Ledger,
    Module,
    Proposal,
    SetReference,
    handles,
)
from gridtokenx.ledger.state import BadKey, Map, State, store_key
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer
from gridtokenx.ledger.transactions import MAX_TRANSACTION_BYTES, Transaction, sign_transaction

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
        [Allocation(denom="GRID", account=each.public_key, amount=10**9) for each in (ALICE, BOB)]
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
    return sign_transaction(signer, CHAIN, nonce, calls, fee=TRANSACTION_WEIGHT + 10 * len(calls))


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


# -- sizes -----------------------------------------------------------------------------------------


class Stuff(Wire, frozen=True, tag="stuffing.stuff"):
    data: Blob


class Stuffing(Module):
    """Takes any bytes and does nothing."""

    name = "stuffing"

    @handles(Stuff, weight=1)
    def take(self, ctx: Context, call: Stuff) -> None:
        pass


class Heave(Wire, frozen=True, tag="heavy.heave"):
    number: UInt63


class Heavy(Module):
    name = "heavy"

    @handles(Heave, weight=MAX_BLOCK_WEIGHT * 2 // 5)
    def take(self, ctx: Context, call: Heave) -> None:
        pass


def stuffed(signer: Ed25519Signer, nonce: int, kib: int) -> Transaction:
    calls = [Stuff(data=bytes(32 * 1024)) for _ in range(kib // 32)]
    return sign_transaction(signer, CHAIN, nonce, calls, fee=MAX_BLOCK_WEIGHT)


def test_a_transaction_larger_than_allowed_is_refused_everywhere() -> None:
    ledger = make_ledger(Stuffing())
    genesis = ledger.genesis(0)
    huge, small = stuffed(ALICE, 0, 288), stuffed(BOB, 0, 32)
    assert len(huge.encoded) > MAX_TRANSACTION_BYTES
    with pytest.raises(InvalidTransaction, match="too-large"):
        ledger.admit(State(genesis.state), huge, 10)
    executed, refused = ledger.build(genesis, Proposal(0, 10), [huge, small])
    assert refused == (huge,)
    assert executed.block.transactions == (small,)
    with pytest.raises(InvalidBlock, match="too-large"):
        ledger.execute(genesis, Block(executed.header, (huge,)))


def test_one_that_does_not_fit_the_rest_of_a_block_does_not_stop_the_smaller_ones() -> None:
    ledger = make_ledger(Stuffing())
    genesis = ledger.genesis(0)
    large = [stuffed(ALICE, nonce, 224) for nonce in range(20)]
    small = stuffed(BOB, 0, 32)
    executed, refused = ledger.build(genesis, Proposal(0, 10), [*large, small])
    assert refused == ()
    assert executed.block.transactions == (*large[:18], small)
    assert ledger.execute(genesis, executed.block).header == executed.header
    following, refused = ledger.build(executed, Proposal(0, 20), large[18:])
    assert (following.block.transactions, refused) == (tuple(large[18:]), ())


def test_a_transaction_weighs_something_whatever_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of many light calls took longer than a view: their signatures weighed nothing."""
    monkeypatch.setattr(runtime, "MAX_BLOCK_WEIGHT", 4 * TRANSACTION_WEIGHT + 10)
    ledger = make_ledger(Stuffing())
    genesis = ledger.genesis(0)
    one = [
        sign_transaction(ALICE, CHAIN, nonce, [Stuff(data=b"")], fee=TRANSACTION_WEIGHT + 1)
        for nonce in range(5)
    ]
    executed, _ = ledger.build(genesis, Proposal(0, 10), one)
    assert executed.block.transactions == tuple(one[:4])
    calls = [Stuff(data=b"")] * 20
    batches = [
        sign_transaction(ALICE, CHAIN, nonce, calls, fee=TRANSACTION_WEIGHT + 20)
        for nonce in range(5)
    ]
    executed, _ = ledger.build(genesis, Proposal(0, 10), batches)
    assert executed.block.transactions == tuple(batches[:3]), "sixty calls, where four fitted"


def test_the_same_holds_for_weight() -> None:
    ledger = make_ledger(Stuffing(), Heavy())
    genesis = ledger.genesis(0)
    fee = MAX_BLOCK_WEIGHT
    heavy = [
        sign_transaction(ALICE, CHAIN, nonce, [Heave(number=nonce)], fee=fee) for nonce in range(3)
    ]
    small = stuffed(BOB, 0, 32)
    executed, refused = ledger.build(genesis, Proposal(0, 10), [*heavy, small])
    assert refused == ()
    assert executed.block.transactions == (*heavy[:2], small)


def test_a_proposer_does_not_walk_the_whole_pool_for_the_last_gap() -> None:
    ledger = make_ledger(Stuffing())
    asked = 0

    def candidates() -> Iterator[Transaction]:
        nonlocal asked
        for nonce in range(18):
            yield stuffed(ALICE, nonce, 224)
        for number in range(1_000):
            asked += 1
            yield stuffed(Ed25519Signer(number.to_bytes(32, "big")), 0, 224)

    ledger.build(ledger.genesis(0), Proposal(0, 10), candidates())
    assert asked <= 2 * MAX_MISFITS


# -- events ----------------------------------------------------------------------------------------


class Shout(Wire, frozen=True, tag="shouting.shout"):
    times: UInt63


class Shouted(Wire, frozen=True, tag="shouting.shouted"):
    words: tuple[ShortText, ...]


class Shouting(Module):
    name = "shouting"
    events = (Shouted,)
    in_hook = 0

    @handles(Shout)
    def shout(self, ctx: Context, call: Shout) -> None:
        ctx.emit(Shouted(words=("a" * 64,) * call.times))
        if call.times == 2:
            raise CallFailed("hoarse", WIDE * 8)

    def end_block(self, ctx: Context) -> None:
        if self.in_hook:
            ctx.emit(Shouted(words=("a" * 64,) * self.in_hook))


def test_an_event_larger_than_its_record_fails_the_call() -> None:
    ledger = make_ledger(Shouting())
    genesis = ledger.genesis(0)
    transaction = send(ALICE, 0, Shout(times=2_000), Shout(times=100))
    executed, refused = ledger.build(genesis, Proposal(0, 10), [transaction])
    assert refused == ()
    assert results(ledger, executed) == ["event-too-large", "ok"]


def test_an_event_too_large_in_a_hook_stops_the_node_and_says_why() -> None:
    shouting = Shouting()
    ledger = make_ledger(shouting)
    genesis = ledger.genesis(0)
    shouting.in_hook = 2_000
    with pytest.raises(AssertionError, match=r"Shouting.end_block refuses.*Shouted"):
        ledger.build(genesis, Proposal(0, 10), [])


def test_the_receipt_of_many_long_refusals_fits_its_record() -> None:
    ledger = make_ledger(Shouting())
    transaction = send(ALICE, 0, *[Shout(times=2)] * 64)
    executed, _ = ledger.build(ledger.genesis(0), Proposal(0, 10), [transaction])
    assert results(ledger, executed) == ["hoarse"] * 64


# -- the pool's rule -------------------------------------------------------------------------------


class Once(Module):
    """A call whose work is done is redundant, as with relayers."""

    name = "once"
    done = Map("once.done", int)

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:
        if isinstance(call, Name) and self.done.has(state, call.name):
            raise InvalidTransaction("redundant", call.name)

    @handles(Name)
    def take(self, ctx: Context, call: Name) -> None:
        self.done.put(ctx.state, 1, call.name)


def test_a_transaction_is_refused_only_if_all_its_calls_are_redundant() -> None:
    ledger = make_ledger(Once())
    genesis = ledger.genesis(0)
    first, _ = ledger.build(genesis, Proposal(0, 10), [send(ALICE, 0, Name(name="a"))])
    partly = send(BOB, 0, Name(name="a"), Name(name="b"))
    ledger.admit(State(first.state), partly, 20)
    second, refused = ledger.build(first, Proposal(0, 20), [partly])
    assert (second.block.transactions, refused) == ((partly,), ())
    again = send(ALICE, 1, Name(name="a"), Name(name="b"))
    with pytest.raises(InvalidTransaction, match="redundant: a"):
        ledger.admit(State(second.state), again, 30)
    assert ledger.build(second, Proposal(0, 30), [again])[1] == (again,)
