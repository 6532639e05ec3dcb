"""`gtx members`: what operators say and read, against a real ledger without a network."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.client import Inclusion
from gridtokenx.host.keyfile import KeyRing
from gridtokenx.lab.commands import members, wallets
from gridtokenx.ledger.admission import NoFee, StrictNonce
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import Executed, Ledger, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.pbft.membership import Membership, validators_of

CHAIN_ID = sha256(b"members command")
SIGNERS = {f"m{i}": Ed25519Signer(sha256(b"m", bytes((i,)))) for i in range(5)}


class Access:
    """One chain that makes a block for each transaction."""

    def __init__(self, seats: int) -> None:
        keys = tuple(SIGNERS[f"m{i}"].public_key for i in range(seats))
        self.membership = Membership(ValidatorSet(0, keys))
        self.admission = StrictNonce(NoFee(lambda _state, _sender, _calls: None))
        self.ledger = Ledger(CHAIN_ID, [self.membership], self.admission, self.membership.reference)
        self.head = self.ledger.genesis(1_000)
        self.facts = SimpleNamespace(name="oracle", chain_id=CHAIN_ID)
        self.follower = self

    async def wait_beyond(self, _height: int) -> SimpleNamespace:
        return SimpleNamespace(header=self.head.header)

    async def read(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | None]:
        return {key: self.head.state.get(key) for key in keys}

    def account(self, signer: Ed25519Signer) -> SimpleNamespace:
        async def call(calls: Sequence[Wire], _valid_for_ms: int) -> Inclusion:
            nonce = self.admission.next_nonce(State(self.head.state), signer.public_key)
            transaction = sign_transaction(signer, CHAIN_ID, nonce, calls)
            executed = self.block(transaction)
            events = [
                decode(decode(r, EventRecord).data, self.ledger.event_union) for r in executed
            ]
            (done,) = [event for event in events if isinstance(event, Executed)]
            return Inclusion(transaction.id, self.head.height, done.results)

        return SimpleNamespace(call=call)

    def block(self, *transactions) -> tuple[bytes, ...]:
        proposal = Proposal(0, self.head.header.timestamp_ms + 1_000)
        self.head, refused = self.ledger.build(self.head, proposal, transactions)
        assert not refused
        return self.head.events


@dataclass
class Scene:
    """Commands, run as an operator would."""

    access: Access
    tmp_path: Path

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(members.command, words, standalone_mode=False)

    def ok(self, *words: str) -> str:
        result = self.run(*words)
        if result.exception is not None:
            raise result.exception
        assert result.return_value in (0, None), result.output
        return result.output

    def refused(self, *words: str) -> str:
        with pytest.raises(LocalFault) as fault:
            self.ok(*words)
        return str(fault.value)

    def say(self, *words: str, by: str) -> str:
        return self.ok(*words, "--chain", "oracle", "--from", by)

    @property
    def seat_file(self) -> str:
        return str(self.tmp_path / "node" / "oracle-seat.json")

    def prove(self, *more: str, set_id: int = 0) -> str:
        node = str(self.tmp_path / "node")
        words = ("prove", "--chain", "oracle", "--home", node, "--set", str(set_id))
        return self.ok(*words, "--label", "Ann's node", *more)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    access = Access(4)

    class FakeWallet:
        def __init__(self, *_where: object) -> None: ...

        @asynccontextmanager
        async def following(self, chain: str) -> AsyncIterator[dict[str, Access]]:
            yield {chain: access}

        def signer(self, name: str) -> Ed25519Signer:
            return SIGNERS[name]

        def key_of(self, name: str) -> bytes:
            raise LocalFault(f"{name!r} is no address")

    monkeypatch.setattr(wallets, "Wallet", FakeWallet)
    monkeypatch.setattr(members, "read_chain", lambda *_: access.facts)
    keys = tmp_path / "node" / "keys"
    monkeypatch.setenv("GTX_PASSWORD", "correct horse")
    KeyRing.create(keys, "correct horse", scrypt_n=1 << 10).put(
        "identity", sha256(b"m", bytes((4,)))
    )
    return Scene(access, tmp_path)


def test_an_operator_joins(scene: Scene) -> None:
    said = scene.prove()
    assert f"gtx members propose add {scene.seat_file}" in said
    assert "1 of 3 approvals (seats 2)" in scene.say("propose", "add", scene.seat_file, by="m2")
    assert "proposal 1: add" in scene.ok("show", "--chain", "oracle")
    assert "2 of 3 approvals (seats 2, 0)" in scene.say("approve", "1", by="m0")
    assert "agreed: set 1 has 5 members, quorum 4" in scene.say("approve", "1", by="m3")
    assert "set 1 begins with the next block" in scene.ok("show", "--chain", "oracle")
    scene.access.block()
    shown = scene.ok("show", "--chain", "oracle")
    assert "set 1 of the oracle chain: 5 members, quorum 4, tolerates 1 faulty" in shown
    assert "Ann's node" in shown
    assert validators_of(scene.access.head.state).members[4] == SIGNERS["m4"].public_key


def test_a_key_is_rotated_and_a_seat_is_taken(scene: Scene) -> None:
    old = SIGNERS["m1"].public_key
    scene.prove("--replaces", old.hex())
    scene.say("propose", "replace", scene.seat_file, by="m0")
    assert "took" not in scene.say("withdraw", "1", by="m0")
    assert "nothing is proposed" in scene.ok("show", "--chain", "oracle")
    scene.say("propose", "replace", scene.seat_file, by="m0")
    scene.say("approve", "2", by="m2")
    assert "agreed" in scene.say("approve", "2", by="m3")
    scene.access.block()
    assert "at least 4" in scene.refused(
        "propose", "remove", "0", "--chain", "oracle", "--from", "m0"
    )


def test_every_refusal_says_what_to_do(scene: Scene) -> None:
    by_m0 = ("--chain", "oracle", "--from", "m0")
    scene.prove()
    assert "gtx members propose add" in scene.refused("propose", "replace", scene.seat_file, *by_m0)
    assert "say --chain oracle" in scene.refused(
        "propose", "add", scene.seat_file, "--chain", "consortium", "--from", "m0"
    )
    assert "has no seat in set 0" in scene.refused(
        "propose", "add", scene.seat_file, "--chain", "oracle", "--from", "m4"
    )
    scene.say("propose", "add", scene.seat_file, by="m0")
    assert "gtx members approve 1" in scene.refused("propose", "add", scene.seat_file, *by_m0)
    assert "proposal 7 is not open" in scene.refused("approve", "7", *by_m0)
    assert "seat 9" in scene.refused("propose", "remove", "9", *by_m0)
    assert "no address" in scene.refused("propose", "remove", "bob", *by_m0)
    scene.prove(set_id=3)
    assert "made with: gtx members prove --set 0" in scene.refused(
        "propose", "add", scene.seat_file, *by_m0
    )
    assert "printable" in scene.refused(
        "prove", "--chain", "oracle", "--home", str(scene.tmp_path / "node"), "--set", "0",
        "--label", "\n",
    )  # fmt: skip
    assert "64 hex digits" in scene.refused(
        "prove", "--chain", "oracle", "--home", str(scene.tmp_path / "node"), "--set", "0",
        "--label", "x", "--replaces", "nobody",
    )  # fmt: skip


def test_a_changed_file_is_noticed(scene: Scene) -> None:
    scene.prove()
    path = Path(scene.seat_file)
    made = json.loads(path.read_text())
    for field, value, why in (
        ("label", "Eve's node", "does not verify"),
        ("chain_id", "00" * 32, "another oracle chain"),
        ("key", "zz", "is no file of"),
    ):
        path.write_text(json.dumps({**made, field: value}))
        by_m0 = ("--chain", "oracle", "--from", "m0")
        assert why in scene.refused("propose", "add", scene.seat_file, *by_m0)


def test_the_password_file_of_the_home_opens_its_keys(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GTX_PASSWORD")
    node = scene.tmp_path / "node"
    (node / "secret").write_text("correct horse\n")
    (node / "config.toml").write_text('keys_password_file = "secret"\n')
    assert "wrote" in scene.prove()


def test_a_member_signs_with_keys_and_a_password_of_its_own(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []
    wallet = wallets.Wallet

    def record(*arguments: object) -> object:
        given.append(arguments)
        return wallet(*arguments)

    monkeypatch.setattr(wallets, "Wallet", record)
    own = ("--keys", "mine", "--keys-password-file", "mine.txt")
    scene.prove()
    scene.ok("propose", "add", scene.seat_file, "--chain", "oracle", "--from", "m1", *own)
    assert given == [(Path(".testnet"), Path("mine"), Path("mine.txt"))]
