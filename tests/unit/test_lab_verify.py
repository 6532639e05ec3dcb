"""`gtx verify`: an honest disk agrees, and every way to lie on a disk is found and placed."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.gateway_world import RealChain, key, real_chains, signer

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.machine import Write
from gridtokenx.host.storage import Store
from gridtokenx.lab.cli import main
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.identity import render_genesis
from gridtokenx.ledger.records import BLOCKS, EVENTS, FINALITY, STATE, block_writes, height_key
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

HEIGHT = 3
TAMPERED = 2


def send(chain: RealChain, nonce: int) -> Transaction:
    denom, fee = ("GRID", 10**6) if chain.chain == "public" else ("WATT", 10_000)
    call = Transfer(denom=denom, to=key("bob"), amount=7)
    return sign_transaction(signer("alice"), chain.ledger.chain_id, nonce, [call], fee=fee)


def grown(name: str) -> RealChain:
    chain = real_chains()[name]
    for height in range(HEIGHT):
        chain.block(*(() if name == "oracle" else (send(chain, height),)))
    return chain


def writes_of(chain: RealChain, executed: ExecutedBlock) -> list[Write]:
    proof = None if executed.height == 0 else encode(chain.proof(executed.header))
    return list(block_writes(executed, proof))


def make_home(directory: Path, chain: RealChain, lies: Sequence[Write] = ()) -> Path:
    """A stopped node's home: its chain, then what somebody altered."""

    async def fill() -> None:
        store = Store.open(directory / "data")
        for executed in chain.blocks:
            await store.write(writes_of(chain, executed))
        if lies:
            await store.write(lies)
        store.close()

    asyncio.run(fill())
    (directory / "genesis.json").write_bytes(render_genesis(chain.genesis))
    (directory / "config.toml").write_text('genesis = "genesis.json"\ndata = "data"\n')
    return directory


def verify(home: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--home", str(home)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["public", "consortium", "oracle"])
def test_an_honest_disk_agrees(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(make_home(tmp_path, grown(name))) == 0
    assert f"{name} chain, {HEIGHT + 1} blocks" in capsys.readouterr().out


def block_of(chain: RealChain) -> Block:
    return chain.blocks[TAMPERED].block


def at(table: str, value: bytes | None) -> list[Write]:
    return [Write(table, height_key(TAMPERED), value)]


def forged_transaction(chain: RealChain) -> list[Write]:
    block = block_of(chain)
    forged = replace(block.transactions[0], signature=bytes(64))
    return at(BLOCKS, encode(Block(block.header, (forged,))))


def other_outcome(chain: RealChain) -> list[Write]:
    block = block_of(chain)
    header = replace(block.header, state_root=bytes(31) + b"\x01")
    return at(BLOCKS, encode(Block(header, block.transactions)))


def dropped_transaction(chain: RealChain) -> list[Write]:
    return at(BLOCKS, encode(Block(block_of(chain).header, ())))


def foreign_proof(chain: RealChain) -> list[Write]:
    return at(FINALITY, encode(chain.proof(chain.blocks[1].header)))


def richer_alice(chain: RealChain) -> list[Write]:
    tokens = next(m for m in chain.ledger.modules if m.name == "tokens")
    state_key = tokens.balances.key("WATT", key("alice"))
    held = chain.head.state.get(state_key)
    assert held is not None
    return [Write(STATE, state_key, encode(decode_own(held, int) + 1))]


def unproved_head(chain: RealChain) -> list[Write]:
    return [Write(FINALITY, height_key(HEIGHT), None)]


LIES: dict[str, tuple[Callable[[RealChain], list[Write]], str]] = {
    "forged transaction": (forged_transaction, "block 2: transaction"),
    "another outcome": (other_outcome, "block 2: invalid-block"),
    "dropped transaction": (dropped_transaction, "block 2: invalid-block"),
    "missing block": (lambda _chain: at(BLOCKS, None), "block 2 is missing"),
    "other events": (lambda _chain: at(EVENTS, encode(())), "block 2: the stored events"),
    "proof of another block": (foreign_proof, "block 2: its proof of finality"),
    "proof that is noise": (lambda _chain: at(FINALITY, b"noise"), "block 2: its proof"),
    "a head without proof": (unproved_head, "no proof of finality covers the last block"),
    "another balance": (richer_alice, "the stored state is not the one"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_disk_that_lies_is_found_out(
    lie: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = grown("consortium")
    make, sentence = LIES[lie]
    assert verify(make_home(tmp_path, chain, make(chain))) == 1
    assert f"DIVERGES: {sentence}" in capsys.readouterr().out


def test_what_is_no_home_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path) == 2
    (tmp_path / "config.toml").write_text('data = "data"\n')
    assert verify(tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_an_edited_genesis_is_told_from_a_foreign_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path, grown("oracle"))
    genesis = home / "genesis.json"
    genesis.write_bytes(genesis.read_bytes().replace(b"energy-price", b"energy-prize"))
    assert verify(home) == 2
    assert "was changed after it was made" in capsys.readouterr().err
    genesis.write_text("{}")
    assert verify(home) == 2
    assert "is of none of the chains" in capsys.readouterr().err
