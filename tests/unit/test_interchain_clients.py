"""What a light client believes: every rule of `interchain/clients.py`, and its refusal by name."""

from collections.abc import Callable

import pytest
from msgspec import structs
from tests.interchain_chains import (
    BLOCK_MS,
    CONSORTIUM,
    HOUR_MS,
    ORACLE,
    Link,
    Peer,
    Poke,
    TestChain,
    certificate,
    client_genesis,
    justification,
    oracle_and_consortium,
    public_and_consortium,
    seed_signers,
)

from gridtokenx.core.state_tree import EMPTY_ROOT, StateProof
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, clients, stores
from gridtokenx.interchain.clients import CertifiedHeader, ClientFault, Misbehaviour
from gridtokenx.interchain.module import is_redundant

ZERO = bytes(32)


@pytest.fixture(params=["pbft", "grandpa"])
def watched(request: pytest.FixtureRequest) -> tuple[Link, TestChain, TestChain]:
    """A link, the chain whose client is tested, and the chain that it watches."""
    link = public_and_consortium()
    return (
        (link, link.left, link.right) if request.param == "pbft" else (link, link.right, link.left)
    )


def client_of(link: Link, at: TestChain) -> clients.ClientState:
    found = stores.CLIENTS.get(at.state, link.clients(at)[1])
    assert found is not None
    return found


def forged(other: TestChain, **changes: object) -> CertifiedHeader:
    """A header that the validators themselves certified, although it breaks a rule."""
    header = structs.replace(other.head.header, **changes)
    return other.certify(header, other.signers[0])


def test_a_client_starts_without_header_and_root(watched) -> None:
    link, at, other = watched
    client = client_of(link, at)
    assert (client.latest_height, client.latest_hash, client.updates) == (0, None, 0)
    other.block(Poke(link.clients(other)[1], b"x", other.now_ms + HOUR_MS))
    (event,) = other.events(calls.PacketSent)
    nothing = StateProof((), None)
    for height in (0, 1):
        receive = calls.ReceivePacket(event.packet, height, nothing)
        assert at.block(receive) == ["unknown-header"]


def test_an_update_is_recorded_once(watched) -> None:
    link, at, other = watched
    other.block()
    update = link.update(at)
    assert at.block(update) == ["ok"]
    (event,) = at.events(calls.ClientUpdated)
    assert (event.height, event.header_hash) == (1, other.head.hash)
    assert client_of(link, at).latest_timestamp_ms == other.now_ms
    assert at.block(update) == ["kept out"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chain_id": bytes([1]) * 32}, "wrong-chain"),
        ({"height": 0}, "genesis-header"),
        ({"state_root": ZERO}, "zero-hash"),
        ({"transaction_root": ZERO}, "zero-hash"),
        ({"event_root": ZERO}, "zero-hash"),
        ({"parent": ZERO}, "zero-hash"),
        ({"next_set_hash": ZERO}, "zero-hash"),
        ({"state_root": EMPTY_ROOT}, "empty-state"),
        ({"height": 1}, "stale-header"),
        ({"timestamp_ms": 1}, "time-not-monotone"),
        ({"next_set_hash": bytes([1]) * 32}, "missing-set"),
    ],
)
def test_even_a_certified_header_must_keep_the_rules(watched, change, code: str) -> None:
    link, at, other = watched
    other.block()
    other.block()
    assert at.block(link.update(at)) == ["ok"]
    other.block()
    client_id = link.clients(at)[1]
    bad = calls.UpdateClient(client_id, forged(other, **change), None)
    allowed = {code, "kept out"} if code in ("stale-header", "genesis-header") else {code}
    assert at.block(bad)[0] in allowed
    assert client_of(link, at).latest_height == 2


def test_a_header_from_the_future_or_from_long_ago_is_refused() -> None:
    link = public_and_consortium(trusting_period_ms=HOUR_MS)
    at, other = link.left, link.right
    other.block(after_ms=2 * HOUR_MS)
    assert at.block(link.update(at)) == ["header-from-future"]
    at.block(after_ms=HOUR_MS // 2)
    assert at.block(link.update(at)) == ["header-from-future"]
    old = public_and_consortium(trusting_period_ms=HOUR_MS)
    old.right.block()
    old.left.block(after_ms=HOUR_MS - BLOCK_MS)
    assert old.left.block(old.update(old.left), after_ms=2 * BLOCK_MS) == ["client-expired"]


def test_a_client_that_was_not_updated_within_the_trusting_period_expires() -> None:
    link = public_and_consortium(trusting_period_ms=HOUR_MS)
    at, other = link.left, link.right
    for _ in range(3):
        for chain in (at, other):
            chain.block(after_ms=HOUR_MS * 3 // 4)
        assert at.block(link.update(at)) == ["ok"]
    for chain in (at, other):
        chain.block(after_ms=HOUR_MS + 2 * BLOCK_MS)
    assert at.block(link.update(at)) == ["client-expired"]


def test_the_wrong_kind_of_proof_is_refused(watched) -> None:
    link, at, other = watched
    other.block()
    header, members, signers = other.head.header, other.sets[0], other.signers[0]
    right = other.certified().proof
    make = justification if isinstance(right, CommitCertificate) else certificate
    wrong = CertifiedHeader(header, make(header, members, signers))
    assert at.block(calls.UpdateClient(link.clients(at)[1], wrong, None)) == ["wrong-proof-kind"]


def test_votes_of_too_few_strangers_or_one_repeated_are_refused(watched) -> None:
    link, at, other = watched
    other.block()
    name = link.clients(at)[1]
    signers = other.signers[0]
    strangers = seed_signers("strangers")
    for chosen in ([], signers[:2], [signers[0]] * 3, strangers, [*signers[:2], strangers[0]]):
        bad = calls.UpdateClient(name, other.certify(other.head.header, chosen), None)
        (code,) = at.block(bad)
        assert code not in ("ok", "kept out")
    assert client_of(link, at).latest_hash is None


def test_a_certificate_of_another_set_height_or_block_is_refused() -> None:
    link = oracle_and_consortium()
    other, at = link.left, link.right
    other.block()
    header, members, signers = other.head.header, other.sets[0], other.signers[0]
    changes = {"set_id": 1}, {"height": 7}, {"block_hash": ZERO}, {"view": 9}
    proofs = [certificate(header, members, signers, **change) for change in changes]
    codes = [
        at.block(calls.UpdateClient("oracle", CertifiedHeader(header, proof), None))[0]
        for proof in proofs
    ]
    # Another view is no forgery: the replicas signed it, and the view of decision is theirs to say.
    assert codes == ["wrong-set", "wrong-block", "wrong-block", "ok"]


def test_a_set_changes_only_by_a_header_that_the_old_set_certified(watched) -> None:
    link, at, other = watched
    name = link.clients(at)[1]
    newcomers = seed_signers("newcomers", 5)
    assert other.hand_over(newcomers) == ["ok"]
    handover = link.update(at)
    assert handover.next_set == other.sets[1]
    other.block()
    beyond = link.update(at)
    assert at.block(beyond) == ["wrong-set-id"]  # the handover may not be skipped
    stranger = ValidatorSet(1, tuple(s.public_key for s in seed_signers("strangers")))
    for wrong in (None, stranger, structs.replace(other.sets[1], set_id=2)):
        assert at.block(structs.replace(handover, next_set=wrong))[0] in (
            "missing-set",
            "wrong-set",
        )
    assert at.block(handover, beyond) == ["ok", "ok"]
    assert client_of(link, at).set_id == 1
    other.block()
    unneeded = structs.replace(link.update(at), next_set=other.sets[1])
    assert at.block(unneeded) == ["unneeded-set"]
    old_set = other.certify(structs.replace(other.head.header, set_id=0), other.signers[0])
    assert at.block(calls.UpdateClient(name, old_set, None)) == ["wrong-set-id"]
    assert at.block(link.update(at)) == ["ok"]


@pytest.mark.parametrize("way", ["update", "evidence", "evidence with ancestry", "time"])
def test_contradicting_certified_headers_freeze_the_client(watched, way: str) -> None:
    link, at, other = watched
    name = link.clients(at)[1]
    for _ in range(3):
        other.block()
    assert at.block(link.update(at, 2)) == ["ok"]
    fork = other.fork(2)
    first, second = other.certify(fork.header), other.certified(2)
    evidence = Misbehaviour(first, second, ())
    if way == "evidence with ancestry":
        evidence = Misbehaviour(first, other.certified(3), (other.blocks[2].header,))
    if way == "time":
        early = structs.replace(other.blocks[3].header, timestamp_ms=second.header.timestamp_ms)
        evidence = Misbehaviour(second, other.certify(early), ())
    call = (
        calls.UpdateClient(name, first, None)
        if way == "update"
        else calls.SubmitMisbehaviour(name, evidence)
    )
    assert at.block(call) == ["ok"]
    assert len(at.events(calls.ClientFrozen)) == 1
    assert client_of(link, at).frozen
    assert at.block(call) == ["kept out"]
    assert at.block(link.update(at)) == ["client-frozen"]
    assert at.block(Poke(name, b"x", at.now_ms + HOUR_MS)) == ["client-frozen"]
    assert client_of(link, at).latest_height == 2


def test_a_frozen_client_carries_no_packets(watched) -> None:
    link, at, other = watched
    name, theirs = link.clients(at)[1:]
    other.block(Poke(theirs, b"x", other.now_ms + HOUR_MS))
    (sent,) = other.events(calls.PacketSent)
    at.block(Poke(name, b"y", at.now_ms + 10 * BLOCK_MS))
    (ours,) = at.events(calls.PacketSent)
    other.block(after_ms=20 * BLOCK_MS)
    at.block(link.update(at))
    fork = other.certify(other.fork(2).header)
    receive, timeout = link.receive(at, sent.packet), link.timeout(at, ours.packet)
    assert at.block(calls.UpdateClient(name, fork, None)) == ["ok"]
    assert at.block(receive, timeout) == ["client-frozen", "client-frozen"]


Bend = Callable[[TestChain, Misbehaviour], Misbehaviour]


def _same(_other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    return structs.replace(evidence, first=evidence.second)


def _uncertified(other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    weak = other.certify(evidence.first.header, other.signers[0][:2])
    return structs.replace(evidence, first=weak)


def _unrelated(other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    return structs.replace(evidence, second=other.certified(3))


def _true_ancestry(other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    honest = other.certified(2)
    return Misbehaviour(honest, other.certified(3), (other.blocks[2].header,))


def _broken_ancestry(other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    return Misbehaviour(evidence.second, other.certified(3), (evidence.first.header,))


def _order(other: TestChain, evidence: Misbehaviour) -> Misbehaviour:
    return Misbehaviour(other.certified(3), evidence.second, ())


@pytest.mark.parametrize(
    "bend", [_same, _uncertified, _unrelated, _true_ancestry, _broken_ancestry, _order]
)
def test_no_honest_chain_is_frozen(watched, bend: Bend) -> None:
    link, at, other = watched
    for _ in range(3):
        other.block()
    at.block(link.update(at, 2))
    evidence = Misbehaviour(other.certify(other.fork(2).header), other.certified(2), ())
    call = calls.SubmitMisbehaviour(link.clients(at)[1], bend(other, evidence))
    (code,) = at.block(call)
    assert code not in ("ok", "kept out")
    assert not client_of(link, at).frozen


def test_old_headers_and_their_sets_are_forgotten() -> None:
    link = oracle_and_consortium()
    other, at = link.left, link.right
    other.block()
    at.block(link.update(at))
    other.hand_over(seed_signers("second", 4))
    at.block(link.update(at))
    for _ in range(clients.MAX_CONSENSUS_STATES - 1):
        other.block(check=False)
        assert at.block(link.update(at), check=False) == ["ok"]
    assert not stores.CONSENSUS.has(at.state, "oracle", 1)
    assert stores.SETS.has(at.state, "oracle", 0)  # header 2 was certified by it
    other.block()
    assert at.block(link.update(at)) == ["ok"]
    assert not stores.SETS.has(at.state, "oracle", 0)
    assert sum(1 for _ in stores.CONSENSUS.scan(at.state)) == clients.MAX_CONSENSUS_STATES


def test_an_update_below_the_latest_is_redundant_unless_it_contradicts(watched) -> None:
    link, at, other = watched
    for _ in range(3):
        other.block()
    at.block(link.update(at))
    assert is_redundant(at.state, link.update(at, 2))
    contradiction = other.certify(other.fork(3).header)
    assert not is_redundant(at.state, calls.UpdateClient(link.clients(at)[1], contradiction, None))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"client_id": "Oracle/1"}, "names"),
        ({"counterparty": ""}, "names"),
        ({"chain_id": ZERO}, "chain id"),
        ({"chain_id": CONSORTIUM.chain_id}, "chain id"),
        ({"validators": ()}, "keys"),
        ({"validators": (ZERO, ZERO)}, "keys"),
        ({"trusting_period_ms": 0}, "trusting"),
    ],
)
def test_an_unsafe_client_is_refused_at_genesis(change: dict[str, object], problem: str) -> None:
    section = structs.replace(client_genesis(Peer("oracle", "consortium", ORACLE)), **change)
    with pytest.raises(ClientFault, match=problem):
        clients.initial_state(section, CONSORTIUM.chain_id, 1)


def test_header_times_of_the_first_update_are_not_bound_to_our_genesis() -> None:
    link = public_and_consortium()
    link.left.block(after_ms=1)
    link.right.block(after_ms=10 * BLOCK_MS)
    assert link.right.block(link.update(link.right)) == ["ok"]
