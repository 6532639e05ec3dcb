"""A packet's life: sent, received, acknowledged or timed out, and each way it is refused."""

import dataclasses

import pytest
from msgspec import structs
from tests.interchain_chains import (
    ALICE,
    BLOCK_MS,
    HOUR_MS,
    Link,
    Noted,
    Poke,
    TestChain,
    account,
    oracle_and_consortium,
    public_and_consortium,
)

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.interchain import calls, module, packets, stores
from gridtokenx.interchain.module import is_redundant
from gridtokenx.interchain.packets import Delivered, Packet, Refused
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.state import State


@pytest.fixture(params=["grandpa to pbft", "pbft to grandpa", "pbft to pbft"])
def route(request: pytest.FixtureRequest) -> tuple[Link, TestChain, TestChain]:
    """A link, its sender and its receiver, over every pairing of finality proofs."""
    if request.param == "pbft to pbft":
        link = oracle_and_consortium()
        return link, link.left, link.right
    link = public_and_consortium()
    if request.param == "grandpa to pbft":
        return link, link.left, link.right
    return link, link.right, link.left


def send(link: Link, source: TestChain, payload: bytes = b"hello", for_ms: int = HOUR_MS) -> Packet:
    """A packet that times out `for_ms` after the block that sends it."""
    _, client, _ = link.clients(source)
    assert source.block(Poke(client, payload, source.now_ms + BLOCK_MS + for_ms)) == ["ok"]
    (event,) = source.events(calls.PacketSent)
    return event.packet


def deliver(link: Link, destination: TestChain, packet: Packet) -> list[str]:
    """Update the client and receive in one transaction, as a relayer does."""
    other, _, _ = link.clients(destination)
    receive = link.receive(destination, packet, other.head.height)
    return destination.block(link.update(destination), receive)


def bring_home(link: Link, source: TestChain, packet: Packet) -> list[str]:
    other, _, _ = link.clients(source)
    acknowledge = link.acknowledge(source, packet, other.head.height)
    return source.block(link.update(source), acknowledge)


def test_a_packet_arrives_and_its_acknowledgement_ends_it(route) -> None:
    link, source, destination = route
    packet = send(link, source)
    _, client, theirs = link.clients(source)
    assert deliver(link, destination, packet) == ["ok", "ok"]
    assert destination.note(theirs, 1, received=True) == b"received"
    (received,) = destination.events(calls.PacketReceived)
    assert received.acknowledgement == Delivered(b"heard hello")
    assert bring_home(link, source, packet) == ["ok", "ok"]
    assert source.note(client, 1) == b"delivered"
    (acknowledged,) = source.events(calls.PacketAcknowledged)
    assert acknowledged.packet_id == received.packet_id
    assert source.packets(client) == []
    books = stores.channel(source.state, client)
    assert (books.delivered, books.open_packets, books.oldest_open) == (1, 0, 2)


def test_a_refusal_undoes_the_app_and_travels_home(route) -> None:
    link, source, destination = route
    packet = send(link, source, b"refuse")
    _, client, theirs = link.clients(source)
    assert deliver(link, destination, packet) == ["ok", "ok"]
    assert destination.note(theirs, 1, received=True) is None
    assert destination.events(Noted) == []
    (received,) = destination.events(calls.PacketReceived)
    assert received.acknowledgement == Refused("asked-to", "the payload says so")
    assert bring_home(link, source, packet) == ["ok", "ok"]
    assert source.note(client, 1) == b"refused"
    assert stores.channel(source.state, client).refused == 1


def test_a_packet_that_nobody_carried_times_out_by_proof_of_absence(route) -> None:
    link, source, destination = route
    packet = send(link, source, for_ms=BLOCK_MS)
    _, client, _ = link.clients(source)
    destination.block(after_ms=3 * BLOCK_MS)
    assert destination.now_ms > packet.timeout_ms
    timeout = link.timeout(source, packet, destination.head.height)
    assert source.block(link.update(source), timeout) == ["ok", "ok"]
    assert source.note(client, 1) == b"timed out"
    assert [event.sequence for event in source.events(calls.PacketTimedOut)] == [1]
    assert deliver(link, destination, packet) == ["ok", "packet-expired"]


def test_at_its_timeout_a_packet_may_arrive_and_just_after_it_may_not(route) -> None:
    link, source, destination = route
    first = send(link, source, for_ms=10 * BLOCK_MS)
    late = send(link, source, for_ms=9 * BLOCK_MS)
    assert late.timeout_ms == first.timeout_ms
    destination.block(link.update(destination))
    receives = [link.receive(destination, packet) for packet in (first, late)]
    to_timeout = first.timeout_ms - destination.now_ms
    assert destination.block(receives[0], after_ms=to_timeout) == ["ok"]
    assert destination.block(receives[1], after_ms=1) == ["packet-expired"]


def test_no_timeout_is_believed_at_or_before_the_timeout(route) -> None:
    link, source, destination = route
    packet = send(link, source, for_ms=5 * BLOCK_MS)
    destination.block(after_ms=packet.timeout_ms - destination.now_ms)
    source.block(link.update(source))
    assert source.block(link.timeout(source, packet)) == ["not-expired"]


def test_a_received_packet_cannot_time_out(route) -> None:
    link, source, destination = route
    packet = send(link, source, for_ms=5 * BLOCK_MS)
    destination.block()
    before = destination.head.height
    assert deliver(link, destination, packet) == ["ok", "ok"]
    destination.block(after_ms=10 * BLOCK_MS)
    source.block(link.update(source))
    assert source.block(link.timeout(source, packet)) == ["bad-proof"]
    theirs = link.clients(source)[2]
    absent_before = destination.prove(stores.RECEIPTS.key(theirs, 1), before)
    old = calls.TimeoutPacket(packet, before, absent_before)
    assert source.block(old) == ["unknown-header"]
    assert source.block(link.acknowledge(source, packet)) == ["ok"]


def test_work_that_is_done_is_kept_out_and_harms_nobody_when_included(route) -> None:
    link, source, destination = route
    packet = send(link, source)
    assert deliver(link, destination, packet) == ["ok", "ok"]
    again = link.receive(destination, packet)
    assert is_redundant(destination.state, again)
    assert destination.block(again) == ["kept out"]
    update = link.update(destination)
    assert destination.block(update) == ["kept out"]
    other = send(link, source, b"other")
    both = [link.update(destination), link.receive(destination, other, source.head.height)]
    codes = destination.block_of((ALICE, both), (account("the other relayer"), both))
    assert codes == ["kept out", "ok", "ok"]  # a leader keeps the second out; a block may hold it
    receive = link.receive(destination, other)
    fresh = send(link, source, b"third")
    batch = [
        link.update(destination),
        link.receive(destination, fresh, source.head.height),
        link.receive(destination, fresh, source.head.height),
    ]
    assert destination.block(*batch) == ["ok", "ok", "ok"]
    assert len(destination.events(calls.PacketReceived)) == 1
    assert is_redundant(destination.state, receive)


def test_redundant_returns_are_recognised(route) -> None:
    link, source, destination = route
    packet = send(link, source)
    deliver(link, destination, packet)
    assert bring_home(link, source, packet) == ["ok", "ok"]
    acknowledge = link.acknowledge(source, packet)
    assert is_redundant(source.state, acknowledge)
    destination.block(after_ms=2 * HOUR_MS)
    timeout = calls.TimeoutPacket(packet, destination.head.height, acknowledge.proof)
    assert is_redundant(source.state, timeout)
    never = structs.replace(packet, sequence=99)
    assert not is_redundant(source.state, structs.replace(timeout, packet=never))
    assert source.block(structs.replace(timeout, packet=never)) == ["never-sent"]


@pytest.mark.parametrize(
    ("client", "payload", "for_ms", "code"),
    [
        ("nowhere", b"", HOUR_MS, "unknown-client"),
        ("oracle", bytes(packets.MAX_PAYLOAD_BYTES + 1), HOUR_MS, "payload-too-large"),
        ("oracle", b"", 0, "bad-timeout"),
        ("oracle", b"", module.MAX_TIMEOUT_MS + 10 * BLOCK_MS, "bad-timeout"),
    ],
)
def test_what_may_not_be_sent(client: str, payload: bytes, for_ms: int, code: str) -> None:
    chain = oracle_and_consortium().right
    assert chain.block(Poke(client, payload, chain.now_ms + for_ms)) == [code]
    assert stores.channel(chain.state, "oracle") == stores.EMPTY_CHANNEL


def test_open_packets_of_one_port_are_bounded_and_an_end_makes_room() -> None:
    link = oracle_and_consortium()
    source, destination = link.left, link.right
    batches = module.MAX_OPEN_PER_PORT // 64
    for _ in range(batches):
        poke = Poke("consortium", b"x", source.now_ms + HOUR_MS)
        assert set(source.block(*[poke] * 64, check=False)) == {"ok"}
    poke = Poke("consortium", b"x", source.now_ms + HOUR_MS)
    assert source.block(poke) == ["too-many-open"]
    packet = source.packets("consortium")[7]
    assert deliver(link, destination, packet) == ["ok", "ok"]
    assert bring_home(link, source, packet) == ["ok", "ok"]
    assert source.block(poke, poke) == ["ok", "too-many-open"]
    assert stores.channel(source.state, "consortium").oldest_open == 1


def test_an_emergency_stop_keeps_refunds_going() -> None:
    link = oracle_and_consortium()
    source, destination = link.left, link.right
    packet = send(link, source, for_ms=5 * BLOCK_MS)
    late = send(link, source, for_ms=HOUR_MS)
    for chain in (source, destination):
        chain.blocks[-1] = paused(chain)
    assert source.block(Poke("consortium", b"x", source.now_ms + HOUR_MS)) == ["interchain-paused"]
    assert deliver(link, destination, late)[1] == "interchain-paused"
    destination.block(after_ms=10 * BLOCK_MS)
    source.block(link.update(source))
    assert source.block(link.timeout(source, packet)) == ["ok"]


def paused(chain: TestChain) -> ExecutedBlock:
    """The head as if governance had stopped the module in it."""
    state = State(chain.head.state)
    stores.PAUSED.put(state, value=True)
    tree = chain.head.state.update(state.changes())
    header = structs.replace(chain.head.header, state_root=tree.root)
    block = structs.replace(chain.head.block, header=header)
    return dataclasses.replace(chain.head, state=tree, block=block)


def test_an_unknown_port_is_refused_with_a_refund_not_dropped() -> None:
    link = oracle_and_consortium()
    source, destination = link.left, link.right
    del destination.interchain._apps["probe"]
    packet = send(link, source)
    assert deliver(link, destination, packet) == ["ok", "ok"]
    (received,) = destination.events(calls.PacketReceived)
    assert received.acknowledgement.code == "unknown-port"
    assert bring_home(link, source, packet) == ["ok", "ok"]
    assert source.note("consortium", 1) == b"refused"


def test_an_app_that_answers_too_much_is_a_refusal_not_a_crash() -> None:
    link = oracle_and_consortium()
    packet = send(link, link.left, b"overlong")
    assert deliver(link, link.right, packet) == ["ok", "ok"]
    (received,) = link.right.events(calls.PacketReceived)
    assert received.acknowledgement.code == "result-too-large"


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "1st", "a\n", "x" * 33])
def test_names_leave_no_room_for_separators(name: str) -> None:
    packet = Packet("oracle", "consortium", 1, "probe", 5, b"")
    assert not packets.is_name(name)
    with pytest.raises(Malformed):
        decode(encode(structs.replace(packet, port=name)), Packet)


def test_hashes_bind_both_chains_and_do_not_meet() -> None:
    packet = Packet("oracle", "consortium", 1, "probe", 5, b"")
    one, two = bytes([1]) * 32, bytes([2]) * 32
    hashes = {packets.packet_hash(packet, *pair) for pair in ((one, two), (two, one), (one, one))}
    hashes |= {packets.receipt_hash(each) for each in hashes}
    assert len(hashes) == 6
