"""What a chain's members may decide: to bring a dead client back, and to stop all packets."""

import pytest
from msgspec import structs
from tests.interchain_chains import (
    ALICE,
    BLOCK_MS,
    BOB,
    GRID,
    HOUR_MS,
    Link,
    Poke,
    TestChain,
    account,
    public_and_consortium,
    seed_signers,
)

from gridtokenx.core.codec import encode
from gridtokenx.core.keys import Signer
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.apps.transfer import SendTransfer
from gridtokenx.interchain.clients import ClientState
from gridtokenx.interchain.council import (
    BALLOTS,
    DELAYS_PER_PERIOD,
    ApprovePause,
    ApproveRecovery,
    ClientRecovered,
    Council,
    PauseChanged,
    RecoverClient,
    RecoveryApproved,
)
from gridtokenx.interchain.packets import Delivered, Packet
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import NOBODY

PERIOD_MS = 24 * HOUR_MS
DELAY_MS = PERIOD_MS // DELAYS_PER_PERIOD
CLIENT = "consortium"


def client_of(link: Link) -> ClientState:
    found = stores.CLIENTS.get(link.left.state, CLIENT)
    assert found is not None
    return found


def freeze(link: Link) -> None:
    """The consortium certifies two blocks of one height, and the public chain sees both."""
    public, consortium = link.left, link.right
    consortium.block()
    assert public.block(link.update(public)) == ["ok"]
    other = consortium.fork(consortium.head.height)
    bad = calls.UpdateClient(CLIENT, consortium.certify(other.header), None)
    assert public.block(bad) == ["ok"]
    assert client_of(link).frozen


def expire(link: Link) -> None:
    link.right.block()
    assert link.left.block(link.update(link.left)) == ["ok"]
    for chain in (link.right, link.left):
        chain.block(after_ms=PERIOD_MS + 2 * BLOCK_MS)
    assert link.left.block(link.update(link.left)) == ["client-expired"]


@pytest.fixture(params=[freeze, expire])
def link(request: pytest.FixtureRequest) -> Link:
    """The public chain with a dead client of the consortium, and GRID in flight between them."""
    made = public_and_consortium(trusting_period_ms=PERIOD_MS)
    send = SendTransfer(CLIENT, GRID, 300, BOB.public_key, made.left.now_ms + 100 * HOUR_MS)
    assert made.left.block(send, by=ALICE) == ["ok"]
    request.param(made)
    made.right.block()
    return made


def members(chain: TestChain) -> list[Signer]:
    return chain.signers[0]


def approve(link: Link, header: Header, *voters: Signer, after_ms: int = BLOCK_MS) -> list[str]:
    call = ApproveRecovery(CLIENT, header.hash)
    return link.left.block_of(*((voter, [call]) for voter in voters), after_ms=after_ms)


def recovery(link: Link) -> RecoverClient:
    header = link.right.head.header
    return RecoverClient(CLIENT, header, link.right.sets[header.set_id])


def test_a_quorum_of_members_recovers_a_client_after_the_delay(link: Link) -> None:
    public, call = link.left, recovery(link)
    one, two, three, _ = members(public)
    assert approve(link, call.header, one, two) == ["ok", "ok"]
    assert [event.due_ms for event in public.events(RecoveryApproved)] == [None, None]
    assert public.block(call) == ["kept out"]
    assert approve(link, call.header, three) == ["ok"]
    (event,) = public.events(RecoveryApproved)
    assert (event.approvals, event.due_ms) == (3, public.now_ms + DELAY_MS)
    assert public.block(call) == ["not-due"]
    assert public.block(call, after_ms=DELAY_MS) == ["ok"]
    (recovered,) = public.events(ClientRecovered)
    assert (recovered.height, recovered.header_hash) == (call.header.height, call.header.hash)
    client = client_of(link)
    assert (client.frozen, client.latest_height) == (False, call.header.height)
    assert BALLOTS.get(public.state, "client", CLIENT) is None


def test_packets_flow_again_and_what_was_in_flight_ends(link: Link) -> None:
    public, consortium, call = link.left, link.right, recovery(link)
    (packet,) = public.packets(CLIENT)
    approve(link, call.header, *members(public)[:3])
    assert public.block(call, after_ms=DELAY_MS) == ["ok"]
    if client_of(link).latest_timestamp_ms < public.now_ms:
        consortium.block(after_ms=public.now_ms - consortium.now_ms)
    receive(link, packet)
    consortium.block()
    known = consortium.head.height
    done = link.acknowledge(public, packet, known)
    assert public.block(link.update(public), done) == ["ok", "ok"]
    assert isinstance(public.events(calls.PacketAcknowledged)[0].acknowledgement, Delivered)
    assert public.packets(CLIENT) == []


def receive(link: Link, packet: Packet) -> None:
    """The consortium's own client of the public chain may have expired meanwhile: recover it."""
    public, consortium = link.left, link.right
    if consortium.block(link.update(consortium)) != ["ok"]:
        header = public.head.header
        voices = [(each, [ApproveRecovery("public", header.hash)]) for each in members(consortium)]
        assert consortium.block_of(*voices) == ["ok"] * 4
        call = RecoverClient("public", header, public.sets[0])
        assert consortium.block(call, after_ms=DELAY_MS) == ["ok"]
        public.block(after_ms=DELAY_MS)
    assert consortium.block(link.receive(consortium, packet)) == ["ok"]


def test_no_lesser_group_and_no_stranger_recovers_a_client(link: Link) -> None:
    public, call = link.left, recovery(link)
    strangers = [ALICE, account("relayer"), *members(link.right), *seed_signers("strangers")]
    assert set(approve(link, call.header, *strangers)) == {"kept out"}
    one, two, *_ = members(public)
    approve(link, call.header, one, two)
    for _ in range(3):
        assert approve(link, call.header, one, two) == ["kept out"] * 2
    assert public.block(call, after_ms=DELAY_MS) == ["kept out"]
    assert client_of(link).updates == 1


def test_a_changed_mind_breaks_the_quorum_and_starts_the_delay_again(link: Link) -> None:
    public, call = link.left, recovery(link)
    one, two, three, four = members(public)
    approve(link, call.header, one, two, three)
    elsewhere = structs.replace(call.header, round=9)
    assert approve(link, elsewhere, three, after_ms=DELAY_MS) == ["ok"]
    assert public.block(call) == ["kept out"]
    assert approve(link, call.header, four) == ["ok"]
    assert public.block(call) == ["not-due"]
    assert public.block(call, after_ms=DELAY_MS) == ["ok"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chain_id": bytes([1]) * 32}, "wrong-chain"),
        ({"height": 1}, "stale-header"),
        ({"timestamp_ms": 1}, "time-not-monotone"),
        ({"timestamp_ms": 10**15}, "header-from-future"),
        ({"state_root": bytes(32)}, "zero-hash"),
        ({"next_set_hash": bytes([1]) * 32}, "wrong-set"),
    ],
)
def test_even_all_members_cannot_approve_nonsense(change, code: str) -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    freeze(link)
    link.right.block()
    call = structs.replace(recovery(link), header=structs.replace(link.right.head.header, **change))
    assert approve(link, call.header, *members(link.left)) == ["ok"] * 4
    assert link.left.block(call, after_ms=DELAY_MS) == [code]
    assert client_of(link).frozen


def test_a_healthy_client_is_out_of_the_members_reach() -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    link.right.block()
    assert link.left.block(link.update(link.left)) == ["ok"]
    link.right.block()
    call = recovery(link)
    assert approve(link, call.header, *members(link.left)) == ["client-healthy"] * 4
    assert link.left.block(call) == ["kept out"]


def test_voices_about_an_expired_client_are_void_once_it_is_frozen() -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    expire(link)
    public, call = link.left, recovery(link)
    approve(link, call.header, *members(public))
    lie = link.right.certify(link.right.fork(1).header)
    assert public.block(calls.UpdateClient(CLIENT, lie, None)) == ["ok"]
    assert client_of(link).frozen
    assert public.block(call, after_ms=DELAY_MS) == ["kept out"]
    assert approve(link, call.header, members(public)[0]) == ["ok"]
    assert public.events(RecoveryApproved)[0].approvals == 1


def test_an_expired_client_ends_packets_by_what_it_had_recorded() -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    public, consortium = link.left, link.right
    send = SendTransfer(CLIENT, GRID, 300, BOB.public_key, public.now_ms + 5 * BLOCK_MS)
    assert public.block(send, by=ALICE) == ["ok"]
    (packet,) = public.packets(CLIENT)
    consortium.block(after_ms=20 * BLOCK_MS)
    assert public.block(link.update(public)) == ["ok"]
    public.block(after_ms=2 * PERIOD_MS)
    assert public.block(link.timeout(public, packet)) == ["ok"]
    assert public.balance(ALICE) == 1_000


def test_an_old_header_brings_no_client_back() -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    freeze(link)
    link.right.block()
    call = recovery(link)
    approve(link, call.header, *members(link.left))
    assert link.left.block(call, after_ms=2 * PERIOD_MS) == ["header-too-old"]


def test_a_packet_cannot_vote() -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    public, consortium = link.left, link.right
    voice = ApproveRecovery(CLIENT, bytes([1]) * 32)
    poke = Poke("public", encode(voice), consortium.now_ms + 4 * PERIOD_MS)
    assert consortium.block(poke) == ["ok"]
    (packet,) = consortium.packets("public")
    assert public.block(link.update(public)) == ["ok"]
    public.block(after_ms=2 * PERIOD_MS)
    assert public.block(link.receive(public, packet)) == ["ok"]
    assert public.note(CLIENT, 1, received=True) == b"received"
    assert BALLOTS.get(public.state, "client", CLIENT) is None
    council = next(module for module in public.ledger.modules if isinstance(module, Council))
    assert not council.is_member(public.state, NOBODY)


def test_a_quorum_stops_all_packets_and_lets_them_go_on() -> None:
    link = public_and_consortium()
    public = link.left
    one, two, three, four = members(public)
    stop, go_on = ApprovePause(paused=True), ApprovePause(paused=False)
    poke = Poke(CLIENT, b"x", public.now_ms + HOUR_MS)
    assert public.block(stop, by=ALICE) == ["kept out"]
    assert public.block_of((one, [stop]), (two, [stop])) == ["ok", "ok"]
    assert public.block(stop, by=one) == ["kept out"]
    assert public.block(go_on, by=two) == ["ok"], "a member may change its mind"
    assert public.block(stop, by=three) == ["ok"]
    assert public.block(poke) == ["ok"]
    assert public.block(stop, by=four) == ["ok"]
    assert [event.paused for event in public.events(PauseChanged)] == [True]
    assert public.block(poke) == ["interchain-paused"]
    assert public.block_of((one, [go_on]), (two, [go_on]), (four, [go_on])) == ["ok"] * 3
    assert [event.paused for event in public.events(PauseChanged)] == [False]
    assert public.block(poke) == ["ok"]
