"""Tokens between chains: escrow, vouchers, refunds, limits, and what a lying chain could take."""

from contextlib import suppress

import pytest
from tests.interchain_chains import (
    ALICE,
    BLOCK_MS,
    BOB,
    GRID,
    HOUR_MS,
    Link,
    TestChain,
    public_and_consortium,
)

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.interchain import calls
from gridtokenx.interchain.apps import transfer
from gridtokenx.interchain.apps.transfer import SendTransfer, TransferLimit
from gridtokenx.interchain.audit import conservation_gap
from gridtokenx.interchain.packets import Delivered, Packet, Refused
from gridtokenx.ledger.runtime import CallFailed, Context
from gridtokenx.ledger.tokens import Transfer

VOUCHER = "public/grid"


def send(
    link: Link,
    source: TestChain,
    amount: int,
    *,
    by=ALICE,
    to=BOB,
    denom: str = GRID,
    for_ms: int = HOUR_MS,
) -> Packet:
    client = link.clients(source)[1]
    call = SendTransfer(client, denom, amount, to.public_key, source.now_ms + for_ms)
    assert source.block(call, by=by) == ["ok"]
    return source.packets(client)[-1]


def deliver(link: Link, at: TestChain, packet: Packet) -> Delivered | Refused:
    other = link.clients(at)[0]
    receive = link.receive(at, packet, other.head.height)
    assert at.block(link.update(at), receive) == ["ok", "ok"]
    return at.events(calls.PacketReceived)[0].acknowledgement


def bring_home(link: Link, at: TestChain, packet: Packet) -> None:
    other = link.clients(at)[0]
    acknowledge = link.acknowledge(at, packet, other.head.height)
    assert at.block(link.update(at), acknowledge) == ["ok", "ok"]


def gap(link: Link) -> int:
    """Conservation at the public chain's head and the consortium's header known there."""
    away = link.right.blocks[link.known(link.left)].state
    return conservation_gap(link.left.head.state.get, away.get, "consortium", "public", GRID)


def test_a_token_goes_there_and_back() -> None:
    link = public_and_consortium()
    public, consortium = link.left, link.right
    there = send(link, public, 300)
    assert public.balance(ALICE) == 700
    assert gap(link) == 0
    assert deliver(link, consortium, there) == Delivered(b"")
    assert consortium.balance(BOB, VOUCHER) == 300
    bring_home(link, public, there)
    assert gap(link) == 0
    back = send(link, consortium, 120, by=BOB, to=ALICE, denom=VOUCHER)
    assert consortium.tokens.supply(consortium.state, VOUCHER) == 180
    assert deliver(link, public, back) == Delivered(b"")
    assert public.balance(ALICE) == 820
    assert gap(link) == 0
    escrow = public.tokens.balance(public.state, GRID, transfer.escrow_account("consortium"))
    assert escrow == 180


def test_the_consortiums_own_token_travels_the_same_way() -> None:
    link = public_and_consortium()
    packet = send(link, link.right, 40, by=BOB, to=ALICE, denom="watt")
    assert deliver(link, link.left, packet) == Delivered(b"")
    assert link.left.balance(ALICE, "consortium/watt") == 40


@pytest.mark.parametrize("direction", ["escrowed", "burned"])
def test_an_expired_transfer_is_refunded_by_proof_of_absence(direction: str) -> None:
    link = public_and_consortium()
    source, destination, by, denom = link.left, link.right, ALICE, GRID
    before = 1_000
    if direction == "burned":
        first = send(link, link.left, 500, to=BOB)
        deliver(link, link.right, first)
        bring_home(link, link.left, first)
        source, destination, by, denom, before = link.right, link.left, BOB, VOUCHER, 500
    packet = send(link, source, 200, by=by, to=ALICE, denom=denom, for_ms=2 * BLOCK_MS)
    assert source.balance(by, denom) == before - 200
    destination.block(after_ms=packet.timeout_ms + 1 - destination.now_ms)
    timeout = link.timeout(source, packet, destination.head.height)
    assert source.block(link.update(source), timeout) == ["ok", "ok"]
    (refund,) = source.events(transfer.TransferRefunded)
    assert (refund.amount, refund.reason) == (200, "timeout")
    assert source.balance(by, denom) == before
    late = link.receive(destination, packet, packet.sequence)
    assert "ok" not in destination.block(late)


def test_a_refused_transfer_is_refunded_by_its_acknowledgement() -> None:
    limit = TransferLimit(VOUCHER, HOUR_MS, 100)
    link = public_and_consortium([limit])
    packet = send(link, link.left, 101)
    ack = deliver(link, link.right, packet)
    assert isinstance(ack, Refused)
    assert ack.code == "transfer-limit"
    assert link.right.tokens.supply(link.right.state, VOUCHER) == 0
    bring_home(link, link.left, packet)
    (refund,) = link.left.events(transfer.TransferRefunded)
    assert refund.reason == "transfer-limit"
    assert link.left.balance(ALICE) == 1_000
    assert gap(link) == 0


def test_limits_count_per_window_and_direction() -> None:
    link = public_and_consortium([TransferLimit(GRID, 10 * BLOCK_MS, 100)])
    public = link.left

    def go(amount: int) -> SendTransfer:
        return SendTransfer("consortium", GRID, amount, BOB.public_key, public.now_ms + HOUR_MS)

    public.block(after_ms=10 * BLOCK_MS - public.now_ms % (10 * BLOCK_MS))
    assert public.block(go(60), go(60), go(40), by=ALICE) == ["ok", "transfer-limit", "ok"]
    assert public.block(go(1), by=ALICE, after_ms=10 * BLOCK_MS) == ["ok"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"amount": 1_001}, "insufficient-funds"),
        ({"denom": "silver"}, "insufficient-funds"),
        ({"client_id": "nowhere"}, "unknown-client"),
        ({"timeout_ms": 1}, "bad-timeout"),
        ({"denom": "consortium/watt"}, "insufficient-funds"),
    ],
)
def test_what_cannot_be_sent_leaves_the_balance(change: dict[str, object], code: str) -> None:
    public = public_and_consortium().left
    fields = {
        "client_id": "consortium",
        "denom": GRID,
        "amount": 10,
        "receiver": BOB.public_key,
        "timeout_ms": public.now_ms + HOUR_MS,
    }
    assert public.block(SendTransfer(**{**fields, **change}), by=ALICE) == [code]
    assert public.balance(ALICE) == 1_000


def test_zero_and_negative_amounts_do_not_even_decode() -> None:
    public = public_and_consortium().left
    for amount in (0, -5):
        call = SendTransfer("consortium", GRID, amount, BOB.public_key, public.now_ms + HOUR_MS)
        assert public.block(call, by=ALICE) == ["kept out"]


def test_a_gift_to_the_escrow_account_frees_nothing() -> None:
    link = public_and_consortium()
    escrow = transfer.escrow_account("consortium")
    assert link.left.block(Transfer(GRID, escrow, 50), by=ALICE) == ["ok"]
    lie = lying_packet(VOUCHER, 50)
    with pytest.raises(CallFailed, match="beyond-escrow"):
        link.left.transfer.on_receive(context(link.left), lie)


@pytest.mark.parametrize("denom", ["public/grid", "public/", "public//", "", "x" * 64])
def test_a_lying_chain_cannot_name_its_way_into_our_tokens(denom: str) -> None:
    """Any name becomes a name of its own, a release bounded by escrow, or a refusal."""
    link = public_and_consortium()
    packet = lying_packet(denom, 5)
    ctx = context(link.left)
    before = link.left.tokens.balance(ctx.state, GRID, ALICE.public_key)
    with suppress(CallFailed, RemoteFault):
        link.left.transfer.on_receive(ctx, packet)
    changed = {event.denom for event in ctx.events}
    assert all(name.startswith("consortium/") for name in changed)
    assert link.left.tokens.balance(ctx.state, GRID, ALICE.public_key) == before


def lying_packet(denom: str, amount: int) -> Packet:
    """What validators of the consortium who lie together could have proved to the public chain."""
    payload = transfer.FungibleTransfer(denom, amount, BOB.public_key, ALICE.public_key)
    return Packet("public", "consortium", 9, "transfer", 10**12, encode(payload))


def context(chain: TestChain) -> Context:
    return Context(chain.chain_id, 1, 0, chain.now_ms, chain.state)
