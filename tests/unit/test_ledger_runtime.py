"""Execution: what a block does, and what a failing call leaves behind."""

from collections.abc import Iterator

import pytest

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.core.types import UInt63
from gridtokenx.ledger.admission import NoFee, StrictNonce, TokenFee, WindowNonce
from gridtokenx.ledger.blocks import Block, EventRecord
from gridtokenx.ledger.runtime import (
    MAX_TRANSACTION_WEIGHT,
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
from gridtokenx.ledger.state import Cell, State
from gridtokenx.ledger.tokens import Allocation, Tokens, Transfer, module_account
from gridtokenx.ledger.transactions import Transaction, sign_transaction

CHAIN = b"\x07" * 32
ALICE, BOB = Ed25519Signer(b"a" * 32), Ed25519Signer(b"b" * 32)
TREASURY = module_account("treasury")


class Bump(Wire, frozen=True, tag="counter.bump"):
    by: UInt63


class Bumped(Wire, frozen=True, tag="counter.bumped"):
    total: UInt63


class Counter(Module):
    name = "counter"
    events = (Bumped,)
    total = Cell("counter.total", UInt63, 0)
    blocks = Cell("counter.blocks", UInt63, 0)

    def end_block(self, ctx: Context) -> None:
        self.blocks.put(ctx.state, self.blocks.get(ctx.state) + 1)

    @handles(Bump)
    def bump(self, ctx: Context, call: Bump) -> None:
        total = self.total.get(ctx.state) + call.by
        self.total.put(ctx.state, total)
        ctx.emit(Bumped(total=total))
        if call.by == 13:
            raise CallFailed("unlucky", "thirteen is refused after it was written")
        if call.by == 500:
            raise ZeroDivisionError

    def check_invariants(self, state: State) -> Iterator[str]:
        if self.total.get(state) > 1_000:
            yield "the total is above 1000"


def make_ledger(fee: int = 1) -> Ledger:
    tokens = Tokens([Allocation(denom="GRID", account=ALICE.public_key, amount=1_000)])
    return Ledger(
        CHAIN,
        [tokens, Counter()],
        StrictNonce(TokenFee(tokens, "GRID", fee, TREASURY)),
        lambda _state: SetReference(0, bytes(32)),
    )


def run(ledger: Ledger, parent: ExecutedBlock, *transactions: Transaction) -> ExecutedBlock:
    proposal = Proposal(0, parent.header.timestamp_ms + 1000)
    executed, refused = ledger.build(parent, proposal, transactions)
    assert not refused
    assert ledger.execute(parent, executed.block).header == executed.header
    return executed


def events(ledger: Ledger, executed: ExecutedBlock) -> list[Wire]:
    return [decode(decode(e, EventRecord).data, ledger.event_union) for e in executed.events]


def test_a_failing_call_leaves_only_nonce_and_fee() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(1_000)
    calls = [Bump(by=5), Bump(by=13), Bump(by=7)]
    block = run(ledger, genesis, sign_transaction(ALICE, CHAIN, 0, calls, fee=80))
    state = State(block.state)
    assert Counter.total.get(state) == 12
    assert Counter.blocks.get(state) == 1
    receipt = events(ledger, block)[-1]
    assert isinstance(receipt, Executed)
    assert [result.code for result in receipt.results] == ["ok", "unlucky", "ok"]
    assert [e for e in events(ledger, block) if isinstance(e, Bumped)] == [
        Bumped(total=5),
        Bumped(total=12),
    ]
    assert ledger.modules[0].balance(state, "GRID", ALICE.public_key) == 920
    assert ledger.modules[0].balance(state, "GRID", TREASURY) == 80
    assert ledger.check_invariants(block.state) == []


def test_a_bug_in_a_handler_is_no_result() -> None:
    ledger = make_ledger()
    with pytest.raises(ZeroDivisionError):
        run(ledger, ledger.genesis(0), sign_transaction(ALICE, CHAIN, 0, [Bump(by=500)], fee=60))


def test_invariants_name_the_module() -> None:
    ledger = make_ledger()
    block = run(
        ledger, ledger.genesis(0), sign_transaction(ALICE, CHAIN, 0, [Bump(by=2_000)], fee=60)
    )
    assert ledger.check_invariants(block.state) == ["counter: the total is above 1000"]


def test_build_drops_what_cannot_be_included() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(0)
    good = sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=60)
    bad = [
        sign_transaction(BOB, CHAIN, 0, [Bump(by=1)], fee=60),  # no funds
        sign_transaction(ALICE, CHAIN, 5, [Bump(by=1)], fee=60),  # gap
        sign_transaction(ALICE, bytes(32), 1, [Bump(by=1)], fee=60),  # another chain
        sign_transaction(ALICE, CHAIN, 1, [Bumped(total=1)], fee=60),  # no such call
        sign_transaction(ALICE, CHAIN, 1, [Bump(by=1)], fee=59),  # too cheap
        sign_transaction(ALICE, CHAIN, 1, [Bump(by=1)], fee=60, valid_until_ms=5),  # expired
    ]
    executed, refused = ledger.build(genesis, Proposal(0, 10), [good, *bad])
    assert executed.block.transactions == (good,)
    assert list(refused) == bad


def test_execute_refuses_every_altered_header_field() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(0)
    block = run(ledger, genesis, sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=60)).block
    fields = {name: getattr(block.header, name) for name in block.header.__struct_fields__}
    for name, value in fields.items():
        if name in ("round", "digest", "timestamp_ms"):
            continue  # consensus chooses these; execution merely takes them
        altered = (value + 1) if isinstance(value, int) else bytes(31) + b"\x01"
        header = type(block.header)(**(fields | {name: altered}))
        with pytest.raises(InvalidBlock):
            ledger.execute(genesis, Block(header, block.transactions))


def test_execute_refuses_a_block_with_a_transaction_that_may_not_be_there() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(0)
    block = run(ledger, genesis).block
    stray = sign_transaction(BOB, CHAIN, 0, [Bump(by=1)], fee=60)
    with pytest.raises(InvalidBlock, match="transaction 0: fee-unpaid"):
        ledger.execute(genesis, Block(block.header, (stray,)))


class Heavy(Wire, frozen=True, tag="heavy.lift"):
    pass


class Lifter(Module):
    name = "lifter"

    @handles(Heavy, weight=(MAX_TRANSACTION_WEIGHT - TRANSACTION_WEIGHT) // 2)
    def lift(self, ctx: Context, call: Heavy) -> None:
        pass


def test_a_transaction_that_fits_no_block_never_waits_for_one() -> None:
    free = StrictNonce(NoFee(lambda _state, _sender, _calls: None))
    ledger = Ledger(CHAIN, [Lifter()], free, lambda _s: SetReference(0, bytes(32)))
    genesis = ledger.genesis(0)
    fits = sign_transaction(ALICE, CHAIN, 0, [Heavy()] * 2)
    heavy = sign_transaction(BOB, CHAIN, 0, [Heavy()] * 3)
    ledger.admit(State(genesis.state), fits, now_ms=0)
    with pytest.raises(InvalidTransaction, match="too-heavy"):
        ledger.admit(State(genesis.state), heavy, now_ms=0)
    block, refused = ledger.build(genesis, Proposal(0, 1), [heavy, fits])
    assert (block.block.transactions, refused) == ((fits,), (heavy,))
    forced = Block(block.header, (heavy, fits))
    with pytest.raises(InvalidBlock, match="too-heavy"):
        ledger.execute(genesis, forced)


def test_timestamps_grow() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(1_000)
    executed, _ = ledger.build(genesis, Proposal(0, 1_000), ())
    with pytest.raises(InvalidBlock, match="timestamp"):
        ledger.execute(genesis, executed.block)


@pytest.mark.parametrize(
    ("transaction", "reason"),
    [
        (sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=1), "fee-too-low"),
        (sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=2_000), "fee-unpaid"),
        (sign_transaction(ALICE, CHAIN, 999, [Bump(by=1)], fee=60), "nonce-too-far"),
        (sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=60, valid_until_ms=1), "expired"),
        (sign_transaction(ALICE, bytes(32), 0, [Bump(by=1)], fee=60), "wrong-chain"),
        (sign_transaction(ALICE, CHAIN, 0, [Bumped(total=1)], fee=60), "malformed"),
    ],
)
def test_admission_says_why(transaction: Transaction, reason: str) -> None:
    ledger = make_ledger()
    with pytest.raises(RemoteFault) as refusal:
        ledger.admit(State(ledger.genesis(0).state), transaction, now_ms=50)
    assert refusal.value.reason == reason


def test_transfers_move_and_never_create() -> None:
    ledger = make_ledger()
    transfer = Transfer(denom="GRID", to=BOB.public_key, amount=100)
    too_much = Transfer(denom="GRID", to=BOB.public_key, amount=10_000)
    nothing = Transfer(denom="GRID", to=BOB.public_key, amount=0)
    transaction = sign_transaction(ALICE, CHAIN, 0, [transfer, too_much, nothing], fee=80)
    block = run(ledger, ledger.genesis(0), transaction)
    tokens = ledger.modules[0]
    assert tokens.balance(State(block.state), "GRID", BOB.public_key) == 100
    assert ledger.check_invariants(block.state) == []
    assert [r.code for r in events(ledger, block)[-1].results] == [
        "ok",
        "insufficient-funds",
        "amount-zero",
    ]


def test_window_nonces_come_in_any_order_but_once() -> None:
    window = WindowNonce(NoFee(lambda _state, _sender, _calls: None))
    ledger = Ledger(CHAIN, [Counter()], window, lambda _s: SetReference(0, bytes(32)))
    genesis = ledger.genesis(0)
    numbers = [5, 3, 9, 4, 300]
    block = run(
        ledger, genesis, *[sign_transaction(ALICE, CHAIN, n, [Bump(by=1)]) for n in numbers]
    )
    state = State(block.state)
    assert Counter.total.get(state) == 5
    for used in [*numbers, 44]:  # 44 fell out of the window of 256 below 300
        with pytest.raises(InvalidTransaction, match="nonce-used"):
            ledger.admit(state, sign_transaction(ALICE, CHAIN, used, [Bump(by=1)]), now_ms=1)
    for free in (45, 299, 301, 10_000):
        ledger.admit(state, sign_transaction(ALICE, CHAIN, free, [Bump(by=1)]), now_ms=1)


def test_no_fee_chains_take_none() -> None:
    window = WindowNonce(NoFee(lambda _state, _sender, _calls: None))
    ledger = Ledger(CHAIN, [Counter()], window, lambda _s: SetReference(0, bytes(32)))
    with pytest.raises(InvalidTransaction, match="fee-not-accepted"):
        ledger.admit(
            State(ledger.genesis(0).state),
            sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=1),
            now_ms=0,
        )


def test_signing_again_makes_no_other_transaction() -> None:
    one = sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)])
    other = Transaction(body=one.body, signature=bytes(64))
    assert one.id == other.id
    assert one.encoded != other.encoded
    assert encode(one) == one.encoded


def test_a_transaction_is_admitted_once_upon_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took it from a client asks, and the pool asks again: the answer is the same."""
    ledger, asked = make_ledger(), list[int]()
    check = ledger.admission.check

    def counted(*args: object) -> None:
        asked.append(1)
        check(*args)

    monkeypatch.setattr(ledger.admission, "check", counted)
    genesis = ledger.genesis(1_000)
    first = sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=60, valid_until_ms=5_000)
    second = sign_transaction(ALICE, CHAIN, 1, [Bump(by=1)], fee=60, valid_until_ms=5_000)
    for _ in range(2):
        ledger.admit(State(genesis.state), second, 2_000)
        ledger.admit(State(genesis.state, genesis.changes), second, 2_000)
    assert len(asked) == 1
    with pytest.raises(InvalidTransaction, match="expired"):
        ledger.admit(State(genesis.state), second, 5_001)
    parent = run(ledger, genesis, first, second)
    with pytest.raises(InvalidTransaction, match="nonce-used"):
        ledger.admit(State(parent.state), second, 2_000)


def test_what_was_written_upon_a_state_is_asked_again() -> None:
    ledger = make_ledger()
    genesis = ledger.genesis(1_000)
    mine = sign_transaction(ALICE, CHAIN, 0, [Bump(by=1)], fee=60)
    ledger.admit(State(genesis.state), mine, 2_000)
    written = State(genesis.state)
    assert isinstance(ledger.admission, StrictNonce)
    ledger.admission.nonces.put(written, 1, ALICE.public_key)
    with pytest.raises(InvalidTransaction, match="nonce-used"):
        ledger.admit(written, mine, 2_000)
