"""A relayer with arbitrary bytes and no trust: what it cannot make a chain believe.

Law: **whatever is altered on the way, the chain's state is either untouched or exactly what the
unaltered message would have made of it.** Messages are altered field by field (every leaf of
every message, every list cut, doubled, turned round), bit by bit in their encoding, and by
splicing true parts of different messages together.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.interchain_chains import (
    ALICE,
    BLOCK_MS,
    BOB,
    GRID,
    HOUR_MS,
    RELAYER,
    Link,
    Poke,
    TestChain,
    oracle_and_consortium,
    public_and_consortium,
)
from tests.stages import examples

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed, RemoteFault
from gridtokenx.core.state_tree import StateProof, StateTree
from gridtokenx.interchain import calls, stores
from gridtokenx.interchain.apps.transfer import SendTransfer
from gridtokenx.interchain.calls import RelayCall
from gridtokenx.interchain.clients import Misbehaviour
from gridtokenx.interchain.packets import Delivered, Packet, Refused
from gridtokenx.ledger.runtime import Proposal
from gridtokenx.ledger.transactions import Transaction, sign_transaction

KINDS = ["update", "update of pbft", "handover", "receive", "acknowledge", "timeout", "evidence"]


class Scene:
    """A moment at which one true relay call is about to be made."""

    def __init__(self, kind: str, *, real: bool = False) -> None:
        self.link = public_and_consortium(real_keys=real)
        self.public, self.consortium = self.link.left, self.link.right
        self.at = self.consortium
        self.call: RelayCall = getattr(self, "_" + kind.replace(" ", "_"))()

    def _update(self) -> RelayCall:
        self.public.block()
        return self.link.update(self.consortium)

    def _update_of_pbft(self) -> RelayCall:
        self.at = self.public
        self.consortium.block()
        return self.link.update(self.public)

    def _handover(self) -> RelayCall:
        self.at = self.public
        self.consortium.hand_over([*self.consortium.signers[0][1:], ALICE])
        return self.link.update(self.public)

    def _send(self, for_ms: int = HOUR_MS) -> Packet:
        until = self.public.now_ms + for_ms
        send = SendTransfer("consortium", GRID, 50, BOB.public_key, until)
        assert self.public.block(send, by=ALICE) == ["ok"]
        return self.public.packets("consortium")[-1]

    def _receive(self) -> RelayCall:
        packet = self._send()
        self._send()
        assert self.consortium.block(self.link.update(self.consortium)) == ["ok"]
        return self.link.receive(self.consortium, packet)

    def _acknowledge(self) -> RelayCall:
        assert self.consortium.block(self._receive()) == ["ok"]
        self.at = self.public
        assert self.public.block(self.link.update(self.public)) == ["ok"]
        return self.link.acknowledge(self.public, self.public.packets("consortium")[0])

    def _timeout(self) -> RelayCall:
        packet = self._send(2 * BLOCK_MS)
        self._send()
        self.consortium.block(after_ms=10 * BLOCK_MS)
        self.at = self.public
        assert self.public.block(self.link.update(self.public)) == ["ok"]
        return self.link.timeout(self.public, packet)

    def _evidence(self) -> RelayCall:
        self.at = self.public
        for _ in range(2):
            self.consortium.block()
        self.public.block(self.link.update(self.public))
        fork = self.consortium.certify(self.consortium.fork(1).header)
        later = self.consortium.certified(2)
        evidence = Misbehaviour(fork, later, (self.consortium.blocks[1].header,))
        return calls.SubmitMisbehaviour("consortium", evidence)

    def after(self, call: Wire | bytes) -> dict[bytes, bytes]:
        """The state after a block with this call, less what any transaction leaves."""
        return after(self.at, call)


def after(at: TestChain, call: Wire | bytes) -> dict[bytes, bytes]:
    raw = call if isinstance(call, bytes) else encode(call)
    nonce = at.admission.next_nonce(at.state, RELAYER.public_key)
    body = sign_transaction(RELAYER, at.chain_id, nonce, ()).body
    transaction = Transaction(structs.replace(body, calls=(raw,)), bytes(64))
    before, proposal = at.head, Proposal(0, at.now_ms + BLOCK_MS)
    try:
        executed = at.ledger.build(before, proposal, [transaction])[0]
    except RemoteFault:  # pragma: no cover - would be a fault of ours
        pytest.fail("bad input reached past the ledger")
    assert at.ledger.check_invariants(executed.state) == []
    return contents(executed.state)


def contents(tree: StateTree) -> dict[bytes, bytes]:
    return {key: value for key, value in tree.items() if not key.startswith(b"account.nonce")}


# -- altering --------------------------------------------------------------------------------------


def alterations(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: C901 - one arm per kind
    """Every value that differs from `value` in one place, with the name of the place."""
    match value:
        case msgspec.Struct():
            for name in value.__struct_fields__:
                for place, changed in alterations(getattr(value, name)):
                    yield f".{name}{place}", structs.replace(value, **{name: changed})
        case tuple():
            yield from _altered_lists(value)
            for index, item in enumerate(value):
                for place, changed in alterations(item):
                    yield f"[{index}]{place}", (*value[:index], changed, *value[index + 1 :])
        case bool():
            yield "!", not value
        case int():
            for other in {value + 1, value - 1, 0, 2**62} - {value}:
                yield f"={other}", other
        case bytes():
            yield from _altered_bytes(value)
        case str():
            for other in {"", "public", "consortium", "oracle", value + "x"} - {value}:
                yield f"={other}", other
        case None:
            yield "=filled", b"x"


def _altered_lists(items: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    if items:
        yield "=()", ()
        yield "[:-1]", items[:-1]
        yield "[1:]", items[1:]
        yield "+last", (*items, items[-1])
    if len(set(items)) > 1:
        yield "[::-1]", items[::-1]


def _altered_bytes(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw:
        yield "^first", bytes((raw[0] ^ 1,)) + raw[1:]
        yield "^last", raw[:-1] + bytes((raw[-1] ^ 128,))
        yield "[:-1]", raw[:-1]
    if any(raw):
        yield "=zeros", bytes(len(raw))
    yield "+1", raw + b"\0"


@pytest.mark.parametrize("kind", KINDS)
def test_no_altered_field_is_believed(kind: str) -> None:
    scene = Scene(kind)
    untouched, done = scene.after(b""), scene.after(scene.call)
    assert done != untouched, "the scene's own call must work, or nothing is tested"
    tried = 0
    for place, altered in alterations(scene.call):
        tried += 1
        assert scene.after(altered) in (untouched, done), f"{kind}{place} had an effect"
    assert tried > 40


def test_only_the_order_of_precommits_may_differ() -> None:
    """What is accepted although altered: votes have no order, so nothing else follows from it."""
    accepted = []
    for kind in ("update", "update of pbft"):
        scene = Scene(kind)
        done = scene.after(scene.call)
        accepted += [
            place for place, altered in alterations(scene.call) if scene.after(altered) == done
        ]
    assert accepted == [".certified.proof.precommits[::-1]"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=examples(40), deadline=None)
def test_no_altered_byte_is_believed(kind: str, data: st.DataObject) -> None:
    scene = _scene(kind)
    raw = bytearray(encode(scene.call))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert scene.after(bytes(raw)) in (scene.after(b""), scene.after(scene.call))


@given(st.binary(max_size=400))
@settings(max_examples=examples(200), deadline=None)
def test_arbitrary_bytes_are_no_call(raw: bytes) -> None:
    scene = _scene("receive")
    assert scene.after(raw) == scene.after(b"")


_SCENES: dict[str, Scene] = {}


def _scene(kind: str) -> Scene:
    """Scenes are not changed by `after`, so one serves all examples."""
    if kind not in _SCENES:
        _SCENES[kind] = Scene(kind)
    return _SCENES[kind]


# -- splicing --------------------------------------------------------------------------------------


def test_a_proof_is_worth_nothing_at_another_height() -> None:
    link = oracle_and_consortium()
    oracle, at = link.left, link.right
    for number in range(4):
        oracle.block(Poke("consortium", bytes([number]), oracle.now_ms + HOUR_MS))
        at.block(link.update(at))
    packet = oracle.packets("consortium")[1]
    for proved in (2, 3, 4):
        for claimed in (1, 2, 3, 4):
            receive = structs.replace(link.receive(at, packet, proved), proof_height=claimed)
            state = after(at, receive)
            assert (state != after(at, b"")) == (proved == claimed)


def test_a_proof_is_worth_nothing_for_another_packet_client_or_chain() -> None:
    link, twin = public_and_consortium(), oracle_and_consortium()
    consortium = link.right
    for chain, client in ((link.left, "consortium"), (twin.left, "consortium")):
        chain.block(Poke(client, b"one", chain.now_ms + HOUR_MS))
        chain.block(Poke(client, b"two", chain.now_ms + HOUR_MS))
    from_oracle = twin.left.packets("consortium")[0]
    # The consortium knows both chains; both have a first packet to their "consortium" client.
    other = Link(twin.left, consortium, "consortium", "oracle")
    codes = consortium.block(link.update(consortium), other.update(consortium))
    assert codes == ["ok", "ok"]
    first, second = link.left.packets("consortium")
    true = link.receive(consortium, first)
    nothing = after(consortium, b"")
    spliced = [
        structs.replace(true, packet=second),
        structs.replace(true, packet=from_oracle),
        structs.replace(true, packet=structs.replace(first, destination_client="oracle")),
        structs.replace(true, packet=structs.replace(first, payload=second.payload)),
        structs.replace(true, packet=structs.replace(first, timeout_ms=first.timeout_ms + 1)),
        structs.replace(true, packet=structs.replace(first, port="transfer")),
        structs.replace(other.receive(consortium, from_oracle), packet=first),
    ]
    for call in spliced:
        assert after(consortium, call) == nothing
    assert after(consortium, true) != nothing


def test_the_zero_root_and_the_empty_proof_prove_nothing() -> None:
    """Nomad: a root nobody ever proved must not count as proved."""
    link = public_and_consortium()
    packet = Packet("consortium", "public", 1, "probe", 2**40, b"from nowhere")
    for height in (0, 1, 2**40):
        for proof in (StateProof((), None), link.left.prove(b"anything")):
            receive = calls.ReceivePacket(packet, height, proof)
            assert link.right.block(receive) == ["unknown-header"]
    client = stores.CLIENTS.get(link.right.state, "public")
    assert client is not None
    assert client.latest_hash is None


def test_a_header_of_another_chain_with_the_same_validators_is_not_ours() -> None:
    """Keys shared between chains: the chain id under each signature keeps them apart."""
    link = oracle_and_consortium()
    link.left.block()
    true = link.update(link.right)
    foreign = structs.replace(true.certified.header, chain_id=bytes([7]) * 32)
    relabelled = structs.replace(true.certified, header=foreign)
    assert link.right.block(structs.replace(true, certified=relabelled)) == ["wrong-chain"]
    resigned = link.left.certify(foreign)
    theirs = structs.replace(resigned, header=true.certified.header)
    assert link.right.block(structs.replace(true, certified=theirs))[0] != "ok"


def test_a_replayed_life_of_a_packet_changes_nothing() -> None:
    scene = Scene("acknowledge")
    assert scene.public.block(scene.call) == ["ok"]
    settled = after(scene.public, b"")
    assert after(scene.public, scene.call) == settled
    receive = scene.link.receive(scene.consortium, scene.call.packet)
    assert after(scene.consortium, receive) == after(scene.consortium, b"")


def test_a_forged_acknowledgement_neither_refunds_nor_settles() -> None:
    scene = Scene("acknowledge")
    for lie in (Delivered(b"other"), Refused("no", "no")):
        call = structs.replace(scene.call, acknowledgement=lie)
        assert after(scene.public, call) == after(scene.public, b"")


def test_a_race_of_timeout_and_receive_has_one_winner() -> None:
    """At every distance of the receiving block from the timeout, exactly one side succeeds."""
    for distance in range(-2, 3):
        link = public_and_consortium()
        public, consortium = link.left, link.right
        until = public.now_ms + 6 * BLOCK_MS
        public.block(SendTransfer("consortium", GRID, 50, BOB.public_key, until), by=ALICE)
        (packet,) = public.packets("consortium")
        consortium.block(link.update(consortium))
        receive = link.receive(consortium, packet)
        consortium.block(receive, after_ms=until + distance - consortium.now_ms)
        consortium.block(after_ms=2 * BLOCK_MS)
        public.block(link.update(public))
        refunded = public.block(link.timeout(public, packet)) == ["ok"]
        minted = consortium.tokens.supply(consortium.state, "public/grid") == 50
        assert minted != refunded
        assert minted == (distance <= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_production_keys_refuse_altered_fields_too(kind: str) -> None:
    """The laws above run on the simulator's keys; here the real ones, on a sample of places."""
    scene = Scene(kind, real=True)
    untouched, done = scene.after(b""), scene.after(scene.call)
    assert done != untouched
    for _, altered in list(alterations(scene.call))[::5]:
        assert scene.after(altered) in (untouched, done)


def test_truncated_calls_are_malformed() -> None:
    raw = encode(Scene("receive").call)
    for cut in range(0, len(raw), 7):
        with pytest.raises(Malformed):
            decode(raw[:cut], calls.ReceivePacket)


def test_a_packet_for_one_chain_is_refused_by_another_of_the_same_client_names() -> None:
    """Oracle and public chain both call the consortium "consortium"; each takes only its own."""
    link = public_and_consortium()
    public, consortium = link.left, link.right
    consortium.block(Poke("oracle", b"for the oracle chain", consortium.now_ms + HOUR_MS))
    public.block(link.update(public))
    (packet,) = consortium.packets("oracle")
    assert packet.destination_client == "consortium"
    assert public.block(link.receive(public, packet)) == ["wrong-counterparty"]
