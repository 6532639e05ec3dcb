"""Enrolment, connection approvals and their way to the oracle chain, relayers, genesis."""

import msgspec
import pytest
from msgspec.structs import replace
from tests.consortium_world import (
    CHAIN_ID,
    FIRST,
    WATT,
    ConsortiumWorld,
    device,
    genesis_of,
    key,
    order,
    signer,
)

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.consortium.market.auction import Side
from gridtokenx.consortium.participants import (
    MAX_RATING_W,
    ApproveDevice,
    Connection,
    DeviceNoted,
    DeviceRefused,
    Enrol,
    ParticipantChanged,
    RegistrationRefused,
    Reinstate,
    WithdrawDevice,
)
from gridtokenx.consortium.relayers import SetRelayer
from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps.registry import (
    DeviceKind,
    DeviceRegistration,
    decode_registrations,
)
from gridtokenx.interchain.calls import PacketSent, TimeoutPacket
from gridtokenx.interchain.packets import Delivered, Packet, Refused
from gridtokenx.ledger.runtime import CallFailed, Context, InvalidTransaction, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction


@pytest.fixture
def world() -> ConsortiumWorld:
    world = ConsortiumWorld()
    world.block()
    return world


def code(world: ConsortiumWorld, name: str, call: Wire) -> str:
    (result,) = world.do(name, call)
    return result.code


def sent(world: ConsortiumWorld) -> list[Packet]:
    return [event.packet for event in world.all(PacketSent)]


def decided(packet: Packet) -> tuple[DeviceRegistration, ...]:
    return decode_registrations(packet.payload).registrations


def approval(name: str, owner: str, rating_w: int) -> ApproveDevice:
    return ApproveDevice(
        device=key(name),
        public_key=key(name),
        owner=key(owner),
        zone=0,
        kind=DeviceKind.METER,
        rating_w=rating_w,
    )


# -- devices and the oracle chain ------------------------------------------------------------------


def test_registrations_of_genesis_leave_with_the_first_block(world: ConsortiumWorld) -> None:
    (packet,) = sent(world)
    assert (packet.source_client, packet.port) == ("oracle", "registry")
    assert {each.device for each in decided(packet)} == {
        each.public_key for each in world.genesis.devices
    }
    assert all(each.revision == 1 and each.active for each in decided(packet))
    world.block()
    assert len(sent(world)) == 1


def test_a_large_genesis_leaves_over_several_blocks() -> None:
    world = ConsortiumWorld(genesis_of(buyers=1_100, sellers=0))
    world.check_every_block = False
    world.block()
    assert len(sent(world)) == 8
    world.block()
    assert [len(decided(packet)) for packet in sent(world)] == [128] * 8 + [76]
    assert world.ledger.check_invariants(world.head.state) == []


def test_an_approval_changes_capacity_and_leaves(world: ConsortiumWorld) -> None:
    assert code(world, "operator", approval("new", "b0", 3_000)) == "ok"
    connection = world.chain.participants.connection(world.state, key("b0"), 0)
    assert connection == Connection(meter_w=13_000, source_w=0)
    assert decided(sent(world)[-1])[0].rating_w == 3_000
    moved = replace(approval("new", "b1", 4_000), public_key=key("new key"))
    assert code(world, "operator", moved) == "ok"
    assert world.chain.participants.connection(world.state, key("b0"), 0).meter_w == 10_000
    assert world.chain.participants.connection(world.state, key("b1"), 0).meter_w == 14_000
    assert decided(sent(world)[-1])[0].revision == 2
    assert code(world, "operator", WithdrawDevice(device=key("new"))) == "ok"
    assert world.chain.participants.connection(world.state, key("b1"), 0).meter_w == 10_000
    assert not decided(sent(world)[-1])[0].active
    assert code(world, "operator", WithdrawDevice(device=key("new"))) == "unknown-device"


@pytest.mark.parametrize(
    ("name", "call", "refusal"),
    [
        ("b0", approval("new", "b0", 1), "not-operator"),
        ("operator", approval("new", "stranger", 1), "not-enrolled"),
        ("operator", replace(approval("new", "b0", 1), zone=9), "unknown-zone"),
        ("operator", replace(approval("new", "b0", 1), public_key=key("b0-meter")), "device-id"),
        (
            "operator",
            replace(approval("b0-meter", "b0", 1), public_key=key("b1-meter")),
            "key-in-use",
        ),
        ("b0", Enrol(account=key("b0"), kyc_tier=9), "not-operator"),
        ("operator", Reinstate(account=key("stranger")), "not-enrolled"),
        ("b0", SetRelayer(account=key("b0"), free_per_window=9), "not-operator"),
    ],
)
def test_what_the_operator_alone_decides(
    world: ConsortiumWorld, name: str, call: Wire, refusal: str
) -> None:
    assert code(world, name, call) == refusal


def context(world: ConsortiumWorld) -> Context:
    return Context(CHAIN_ID, world.head.height + 1, 0, world.now_ms + 1, State(world.head.state))


def test_the_oracle_chains_answer_is_noted(world: ConsortiumWorld) -> None:
    ctx, (packet,) = context(world), sent(world)
    participants = world.chain.participants
    participants.on_acknowledge(ctx, packet, Delivered(result=b""))
    assert all(isinstance(event, DeviceNoted) for event in ctx.events)
    assert participants.noted.read(ctx.state, 0, key("b0-meter")) == 1
    count = len(ctx.events)
    participants.on_acknowledge(ctx, packet, Delivered(result=b""))
    assert len(ctx.events) == count
    participants.on_acknowledge(ctx, packet, Refused(code="no", message=""))
    assert isinstance(ctx.events[-1], RegistrationRefused)
    with pytest.raises(CallFailed, match="one-way"):
        participants.on_receive(ctx, packet)


def test_a_batch_that_timed_out_is_sent_again_as_things_stand(world: ConsortiumWorld) -> None:
    (packet,) = sent(world)
    ctx = context(world)
    world.chain.participants.on_timeout(ctx, packet)
    world.chain.participants.end_block(ctx)
    again = [event.packet for event in ctx.events if isinstance(event, PacketSent)]
    assert [decided(each) for each in again] == [decided(packet)]
    assert again[0].timeout_ms > packet.timeout_ms


def test_a_device_keeps_its_kind(world: ConsortiumWorld) -> None:
    """The oracle chain refuses another kind, and with it a whole packet of decisions."""
    changed = replace(approval("b0-meter", "b0", 1), kind=DeviceKind.BATTERY)
    assert code(world, "operator", changed) == "kind-changed"
    assert code(world, "operator", approval("b0-meter", "b0", 1)) == "ok"


def test_of_a_refused_batch_only_the_offending_decision_stays_out(world: ConsortiumWorld) -> None:
    ctx, (packet,) = context(world), sent(world)
    participants = world.chain.participants
    participants.on_acknowledge(ctx, packet, Refused(code="kind-changed", message=""))
    participants.end_block(ctx)
    singles = [event.packet for event in ctx.events if isinstance(event, PacketSent)]
    assert [decided(each) for each in singles] == [(each,) for each in decided(packet)]
    for single in singles[1:]:
        participants.on_acknowledge(ctx, single, Delivered(result=b""))
    ctx.events.clear()
    participants.on_acknowledge(ctx, singles[0], Refused(code="kind-changed", message=""))
    offending = decided(packet)[0].device
    assert ctx.events[-1] == DeviceRefused(offending, 1, "kind-changed")
    ctx.events.clear()
    participants.end_block(ctx)
    assert ctx.events == [], "nothing is sent for ever"
    assert participants.noted.read(ctx.state, 0, offending) == 0
    assert participants.noted.read(ctx.state, 0, decided(packet)[1].device) == 1


def test_a_decision_that_travels_alone_does_not_hold_up_batches(world: ConsortiumWorld) -> None:
    ctx = context(world)
    participants = world.chain.participants
    names = ("b0-meter", "b1-meter", "s0-meter", "s1-meter")
    participants.alone.put(ctx.state, 1, key("s0-meter"))
    for name in names:
        participants.outbox.append(ctx.state, key(name))
    participants.end_block(ctx)
    again = [event.packet for event in ctx.events if isinstance(event, PacketSent)]
    assert [len(decided(each)) for each in again] == [2, 1, 1]


def test_a_typing_error_in_a_rating_fails_its_call(world: ConsortiumWorld) -> None:
    """Two of these made a sum that the next read of the account could not decode."""
    for name, rating_w in (("new", 2**63 - 1), ("newer", 2**62), ("newest", MAX_RATING_W + 1)):
        assert code(world, "operator", approval(name, "b0", rating_w)) == "rating-too-high"
    assert code(world, "operator", approval("new", "b0", MAX_RATING_W)) == "ok"
    connection = world.chain.participants.connection(world.state, key("b0"), 0)
    assert connection.meter_w == 10_000 + MAX_RATING_W


def test_decisions_wait_while_the_way_is_closed(world: ConsortiumWorld) -> None:
    ctx = context(world)
    stores.PAUSED.put(ctx.state, True)
    participants = world.chain.participants
    participants.outbox.append(ctx.state, key("b0-meter"))
    participants.end_block(ctx)
    assert ctx.events == []
    stores.PAUSED.put(ctx.state, False)
    participants.end_block(ctx)
    assert len(ctx.events) == 1


def test_enrolling_again_keeps_a_suspension(world: ConsortiumWorld) -> None:
    ctx = context(world)
    participants = world.chain.participants
    participants.suspend_for(ctx, key("b0"), "default")
    participants.suspend_for(ctx, key("b0"), "default")
    assert len(ctx.events) == 1
    ctx.sender = key("operator")
    participants.enrol(ctx, Enrol(account=key("b0"), kyc_tier=2))
    changed = ctx.events[-1]
    assert isinstance(changed, ParticipantChanged)
    assert (changed.kyc_tier, changed.suspended) == (2, True)


# -- relayers --------------------------------------------------------------------------------------


def relayed(world: ConsortiumWorld, name: str, nonce: int, fee: int = 0) -> Transaction:
    """A relayer's call, by default without fee; what it proves does not matter here."""
    (packet,) = sent(world)
    proof = world.head.state.prove(b"any")
    call = TimeoutPacket(packet=packet, proof_height=1, proof=proof)
    return sign_transaction(signer(name), CHAIN_ID, nonce, (call,), fee=fee)


def test_enrolled_relayers_are_free_within_their_quota(world: ConsortiumWorld) -> None:
    for nonce in range(3):
        transaction = relayed(world, "relayer", nonce)
        world.ledger.admit(world.state, transaction, world.now_ms)
        world.include(transaction)
    with pytest.raises(InvalidTransaction, match="fee-too-low"):
        world.ledger.admit(world.state, relayed(world, "relayer", 3), world.now_ms)
    world.block(60_000)
    world.ledger.admit(world.state, relayed(world, "relayer", 3), world.now_ms)


def test_a_fee_below_the_minimum_does_not_evade_the_quota(world: ConsortiumWorld) -> None:
    """Offering one micro-WATT was neither enough nor counted."""
    world.do("b0", Transfer(denom="WATT", to=key("relayer"), amount=WATT))
    for fee, refused in ((1, True), (1_499, True), (1_500, False), (0, False)):
        transaction = relayed(world, "relayer", 0, fee)
        if refused:
            with pytest.raises(InvalidTransaction, match="fee-too-low"):
                world.ledger.admit(world.state, transaction, world.now_ms)
            _, dropped = world.ledger.build(
                world.head, Proposal(0, world.now_ms + 1), [transaction]
            )
            assert dropped == (transaction,)
        else:
            world.ledger.admit(world.state, transaction, world.now_ms)


def test_only_relaying_is_free(world: ConsortiumWorld) -> None:
    bid = order(1, FIRST + 1, Side.BUY, 4_000, 500)
    with pytest.raises(InvalidTransaction, match="fee-too-low"):
        world.ledger.admit(
            world.state, sign_transaction(signer("relayer"), CHAIN_ID, 0, (bid,)), world.now_ms
        )
    with pytest.raises(InvalidTransaction, match="fee-too-low"):
        world.ledger.admit(world.state, relayed(world, "b0", 0), world.now_ms)


def test_the_operator_enrols_and_ends_relayers(world: ConsortiumWorld) -> None:
    code(world, "operator", SetRelayer(account=key("b0"), free_per_window=1))
    world.ledger.admit(world.state, relayed(world, "b0", 0), world.now_ms)
    code(world, "operator", SetRelayer(account=key("b0"), free_per_window=0))
    with pytest.raises(InvalidTransaction, match="fee-too-low"):
        world.ledger.admit(world.state, relayed(world, "b0", 0), world.now_ms)


# -- genesis ---------------------------------------------------------------------------------------


def test_a_genesis_survives_its_file() -> None:
    genesis = genesis_of()
    raw = msgspec.json.format(msgspec.json.encode(genesis), indent=2)
    assert msgspec.json.decode(raw, type=ConsortiumGenesis) == genesis
    block = consortium_ledger(genesis).genesis(1)
    assert consortium_ledger(genesis).genesis(1).hash == block.hash


def broken(**changes: object) -> ConsortiumGenesis:
    return msgspec.structs.replace(genesis_of(), **changes)


@pytest.mark.parametrize(
    ("genesis", "sentence"),
    [
        (broken(validators=(key("a"), key("a"))), "validators repeats a key"),
        (broken(clients=()), "clients has no 'oracle'"),
        (broken(utility=key("b0")), "accounts names the utility"),
        (broken(utility_uwatt=3_000_000 * WATT), "exceed the attested reserve"),
        (broken(default_fund_uwatt=2_000_000 * WATT), "default_fund_uwatt exceeds"),
        (broken(zones=(0, 0)), "zones repeats"),
    ],
)
def test_a_genesis_that_cannot_work_is_refused(genesis: ConsortiumGenesis, sentence: str) -> None:
    with pytest.raises(LocalFault, match=sentence):
        consortium_ledger(genesis)


def test_a_device_without_owner_is_refused_at_genesis() -> None:
    genesis = broken(devices=(device("x", "nobody", DeviceKind.METER, 1),))
    with pytest.raises(LocalFault, match="owner is no participant"):
        consortium_ledger(genesis).genesis(1)


def test_an_empty_band_is_a_warning() -> None:
    (warning,) = genesis_of().warnings()
    assert "off-peak" in warning
