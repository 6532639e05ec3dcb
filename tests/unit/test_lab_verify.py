"""`gtx verify`: an honest disk agrees, and every way to lie on a disk is found, placed and answered."""

import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.chain_disks import Disk, disks_of, genesis_of, make_home
from tests.gateway_world import Story, key, make_facts, signer
from tests.stages import spread

from gridtokenx.core.codec import decode_own, encode
from gridtokenx.core.keys import Domain, sha256
from gridtokenx.core.machine import Write
from gridtokenx.finality.certificates import CommitCertificate, CommitVote
from gridtokenx.gateway.index import Index
from gridtokenx.host.restored import RESTORED, mark_writes
from gridtokenx.host.storage import Store, snapshot
from gridtokenx.lab.cli import main
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.identity import render_genesis
from gridtokenx.ledger.records import (
    BLOCKS,
    EVENTS,
    FINALITY,
    HASHES,
    HEAD,
    META,
    SETS,
    STATE,
    height_key,
)
from gridtokenx.pbft.journal import LOG
from gridtokenx.pbft.marks import Mark
from gridtokenx.pbft.messages import Commit, Prepare
from gridtokenx.public.grandpa.messages import SignedVote

LIED = 2
Lie = Callable[[Disk], list[Write]]


def verify(*homes: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *(part for home in homes for part in ("--home", str(home)))])
    return int(ended.value.code or 0)


def disk_of(name: str) -> Disk:
    return disks_of(name)[key(f"{name}-1")]


def head_of(disk: Disk) -> int:
    return int.from_bytes(disk[META, HEAD], "big")


@pytest.mark.parametrize("name", ["public", "consortium", "oracle"])
def test_an_honest_disk_agrees(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(make_home(tmp_path, name)) == 0
    said = capsys.readouterr().out
    blocks = head_of(disk_of(name)) + 1
    assert f"{name} chain" in said
    assert f"{blocks} blocks" in said
    assert said.count("\n") == 1
    assert said.endswith(": everything agrees\n")


def test_the_disks_hold_what_is_judged() -> None:
    """Otherwise the tests below would prove nothing."""
    public, consortium = (
        {table for table, _ in disk_of(name)} for name in ("public", "consortium")
    )
    assert public >= {"seals", "unfinal", "grandpa", "blocks", "state"}
    assert consortium >= {"log", "blocks", "state"}
    assert (META, b"mark/" + Domain.PBFT_COMMIT.value) in disk_of("consortium")
    assert (META, b"slot") in disk_of("public")


# -- lies ------------------------------------------------------------------------------------------


def at(table: str, value: bytes | None, height: int = LIED) -> list[Write]:
    return [Write(table, height_key(height), value)]


def block_of(disk: Disk, height: int = LIED) -> Block:
    return decode_own(disk[BLOCKS, height_key(height)], Block)


def with_transactions(disk: Disk) -> int:
    return next(h for h in range(1, head_of(disk)) if block_of(disk, h).transactions)


def forged_transaction(disk: Disk) -> list[Write]:
    height = with_transactions(disk)
    block = block_of(disk, height)
    forged = replace(block.transactions[0], signature=bytes(64))
    return at(BLOCKS, encode(Block(block.header, (forged, *block.transactions[1:]))), height)


def dropped_transaction(disk: Disk) -> list[Write]:
    height = with_transactions(disk)
    return at(BLOCKS, encode(Block(block_of(disk, height).header, ())), height)


def other_outcome(disk: Disk) -> list[Write]:
    block = block_of(disk)
    header = replace(block.header, state_root=bytes(31) + b"\x01")
    return at(BLOCKS, encode(Block(header, block.transactions)))


def foreign_proof(disk: Disk) -> list[Write]:
    return at(FINALITY, disk[FINALITY, height_key(1)])


def other_state(disk: Disk) -> list[Write]:
    state_key = next(k for table, k in disk if table == STATE)
    return [Write(STATE, state_key, b"\x01")]


def rewound_head(disk: Disk) -> list[Write]:
    return [Write(META, HEAD, height_key(head_of(disk) - 1))]


def grown_head(disk: Disk) -> list[Write]:
    return [Write(META, HEAD, height_key(head_of(disk) + 7))]


def mark_key(kind: Domain) -> bytes:
    return b"mark/" + kind.value


def lower_mark(kind: Domain) -> Lie:
    def lie(disk: Disk) -> list[Write]:
        mark = decode_own(disk[META, mark_key(kind)], Mark)
        return [Write(META, mark_key(kind), encode(replace(mark, height=1)))]

    return lie


def other_statement(disk: Disk) -> list[Write]:
    """The log's own prepare, and a mark at its position that is of something else."""
    record = next(k for table, k in disk if table == LOG and k[8:] == b"/prepare")
    vote = decode_own(disk[LOG, record], Prepare)
    mark = Mark(vote.ballot.set_id, vote.ballot.view, vote.ballot.height, sha256(b"other"))
    return [Write(META, mark_key(Domain.PBFT_PREPARE), encode(mark))]


def foreign_vote(disk: Disk) -> list[Write]:
    height = head_of(disk) + 1
    vote = CommitVote(0, 0, height, bytes(32))
    other = signer("consortium-0").sign(vote.signed_bytes(genesis_of("consortium").chain_id))
    return [Write(LOG, height_key(height) + b"/commit", encode(Commit(vote, 1, other)))]


CONSORTIUM: dict[str, tuple[Lie, str]] = {
    "forged transaction": (forged_transaction, "is forged"),
    "another outcome": (other_outcome, "block 2: invalid-block"),
    "dropped transaction": (dropped_transaction, ": invalid-block"),
    "missing block": (lambda _: at(BLOCKS, None), "block 2 is missing"),
    "a block that is noise": (lambda _: at(BLOCKS, b"noise"), "block 2 is no block"),
    "other events": (
        lambda d: at(EVENTS, encode(()), with_transactions(d)),
        ": the stored events are not those of re-execution",
    ),
    "events that are noise": (lambda _: at(EVENTS, b"\xc1"), "block 2: the stored events"),
    "proof of another block": (foreign_proof, "block 2: its proof of finality"),
    "proof that is noise": (lambda _: at(FINALITY, b"noise"), "block 2: its proof"),
    "no certificate": (lambda _: at(FINALITY, None), "block 2: has no certificate"),
    "a head without proof": (
        lambda d: at(FINALITY, None, head_of(d)),
        "no proof of finality covers the last block",
    ),
    "another balance": (other_state, "the stored state is not the one"),
    "no head": (lambda _: [Write(META, HEAD, None)], "'meta', record head: is missing, but there"),
    "a head that is no height": (lambda _: [Write(META, HEAD, b"x")], "record head: is no height"),
    "a head set back": (rewound_head, "lies beyond the head"),
    "a head set forward": (grown_head, "record head: names block"),
    "a block beyond": (lambda d: at(BLOCKS, b"x", head_of(d) + 1), "lies beyond the head"),
    "a hash without block": (
        lambda _: [Write(HASHES, sha256(b"nothing"), height_key(1))],
        "table 'hashes': 1 hashes more than blocks",
    ),
    "a block without hash": (
        lambda d: [Write(HASHES, block_of(d).header.hash, None)],
        "table 'hashes', block 2: is not found by its hash",
    ),
    "a hash of another block": (
        lambda d: [Write(HASHES, block_of(d).header.hash, height_key(1))],
        "table 'hashes', block 2: is not found by its hash",
    ),
    "no mark": (
        lambda _: [Write(META, mark_key(Domain.PBFT_COMMIT), None)],
        "high-water mark of PBFT_COMMIT: is missing, but the chain holds a vote",
    ),
    "no mark of a vote in the log": (
        lambda _: [Write(META, mark_key(Domain.PBFT_PREPARE), None)],
        "high-water mark of PBFT_PREPARE: is missing, but the log holds a vote",
    ),
    "a lower mark": (
        lower_mark(Domain.PBFT_COMMIT),
        "high-water mark of PBFT_COMMIT: is (0, 0, 1), but the chain holds a later vote",
    ),
    "a mark of something else": (other_statement, "is of another statement"),
    "a mark that is noise": (
        lambda _: [Write(META, mark_key(Domain.PBFT_COMMIT), b"noise")],
        "is no high-water mark",
    ),
    "a mark of no kind": (lambda _: [Write(META, b"mark/x", b"")], "is no high-water mark"),
    "another's vote": (foreign_vote, "/commit: is not signed by this node"),
    "a vote that is noise": (
        lambda d: [Write(LOG, height_key(head_of(d) + 1) + b"/prepare", b"noise")],
        "/prepare: is no prepare for this height",
    ),
    "a view that is noise": (lambda _: [Write(LOG, b"view", b"noise")], "view: is no view"),
    "a log entry of no kind": (
        lambda _: [Write(LOG, b"diary", b"")],
        "record diary: is nothing that a replica keeps",
    ),
    "meta of no kind": (lambda _: [Write(META, b"slot", b"")], "is nothing that a replica keeps"),
    "a set that never was": (
        lambda _: [Write(SETS, height_key(4), b"noise")],
        "table 'sets', set 4: is not the set",
    ),
    "evidence that is noise": (
        lambda _: [Write("evidence", height_key(0), b"noise")],
        "table 'evidence', record 0: is no proof",
    ),
    "another chain's store": (
        lambda _: [Write("store", b"chain", bytes(32))],
        "table 'store', record chain: says 0000",
    ),
    "another node's store": (
        lambda _: [Write("store", b"identity", None)],
        "record identity: says nothing",
    ),
    "a table of no kind": (
        lambda _: [Write("diary", b"x", b"y")],
        "table 'diary': 1 records of no table known here",
    ),
}


def vote_key(disk: Disk) -> bytes:
    return next(k for table, k in disk if table == "grandpa" and k.startswith(b"vote:"))


def anothers_ballot(disk: Disk) -> list[Write]:
    vote = decode_own(disk["grandpa", vote_key(disk)], SignedVote)
    return [Write("grandpa", vote_key(disk), encode(replace(vote, signature=bytes(64))))]


PUBLIC: dict[str, tuple[Lie, str]] = {
    "no seal": (lambda _: at("seals", None), "block 2: has no seal"),
    "another seal": (lambda _: at("seals", bytes(64)), "block 2: is not sealed by its author"),
    "a seal beyond": (
        lambda d: at("seals", bytes(64), head_of(d) + 3),
        "is of no block up to the head",
    ),
    "no randomness": (lambda _: [Write(META, b"epoch", None)], "record epoch: is missing"),
    "other randomness": (lambda _: [Write(META, b"epoch", b"x")], "record epoch: is not what"),
    "no slot": (lambda _: [Write(META, b"slot", None)], "record slot: is missing, but this node"),
    "an old slot": (lambda _: [Write(META, b"slot", height_key(1))], "record slot: is 1, but"),
    "an unfinal block that is noise": (
        lambda _: [Write("unfinal", height_key(900) + bytes(32), b"noise")],
        "table 'unfinal', block 900: is not the block",
    ),
    "a vote that is noise": (
        lambda d: [Write("grandpa", vote_key(d), b"noise")],
        "table 'grandpa', record vote of round",
    ),
    "a vote of nobody": (anothers_ballot, "is not signed by this node"),
    "a round that is noise": (
        lambda _: [Write("grandpa", b"completed", b"noise")],
        "record completed: is no completed round",
    ),
    "meta of no kind": (
        lambda _: [Write(META, b"mark/x", b"")],
        "is nothing that a public node keeps",
    ),
}
LIES = [("consortium", lie) for lie in CONSORTIUM] + [("public", lie) for lie in PUBLIC]


@pytest.mark.parametrize(("name", "lie"), LIES, ids=[f"{n}: {lie}" for n, lie in LIES])
def test_a_disk_that_lies_is_found_out(
    name: str, lie: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = (CONSORTIUM if name == "consortium" else PUBLIC)[lie]
    home = make_home(tmp_path, name, make(disk_of(name)))
    assert verify(home) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(sentence in line for line in lines[:-1]), lines
    for line in lines[:-1]:
        assert line.startswith(f"{home}: "), line
        assert "; " in line, "every finding says what to do"
    assert "finding" in lines[-1]


# -- damage below the records ----------------------------------------------------------------------


def flip(home: Path, what: bytes) -> None:
    path = home / "data" / "data.mdb"
    data = bytearray(path.read_bytes())
    place = data.rindex(what)
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_placed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path, "consortium")
    flip(home, block_of(disk_of("consortium")).header.state_root)
    assert verify(home) == 1
    said = capsys.readouterr().out
    assert "table 'blocks', record" in said
    assert "fails its checksum; restore a backup" in said


@pytest.mark.parametrize("name", ["public", "consortium"])
def test_a_flipped_byte_of_any_record_is_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its key, its checksum and its value, of every record of a real node's disk."""
    home = make_home(tmp_path, name)
    snapshot(home / "data", tmp_path / "copy")  # free pages, with older copies, are left out
    path, whole = home / "data" / "data.mdb", (tmp_path / "copy" / "data.mdb").read_bytes()
    path.write_bytes(whole)
    assert verify(home) == 0
    store = Store.open(home / "data", read_only=True)
    records = list(store.records())
    store.close()
    missed = []
    for number, record in spread(list(enumerate(records)), 40):
        assert record.value is not None
        table = record.table.encode()
        full = bytes((len(table),)) + table + record.key
        lies = zlib.crc32(record.value, zlib.crc32(full)).to_bytes(4, "big") + record.value
        assert whole.count(full + lies) == 1
        start = whole.index(full + lies)
        for place in {number % len(full), len(full) + number % 4, len(full + lies) - 1}:
            data = bytearray(whole)
            data[start + place] ^= 1 << number % 8
            path.write_bytes(data)
            if verify(home) != 1:
                missed.append((record.table, record.key, place))
    assert missed == []
    said = capsys.readouterr()
    assert said.err == ""
    assert len(records) > 50


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.6])
def test_a_truncated_store_is_found_out(
    keep: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path, "consortium")
    path = home / "data" / "data.mdb"
    os.truncate(path, int(path.stat().st_size * keep) // 4096 * 4096)
    assert verify(home) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "restore a backup" in said.out


def test_a_store_that_follows_first_agrees_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("public", "consortium"):
        home = make_home(_made(tmp_path / name), name)
        store = Store.open(home / "data", read_only=True)
        writes = list(mark_writes(store, name, "test", 1))
        store.close()
        other = make_home(_made(tmp_path / f"{name}-marked"), name, writes)
        assert any(write.table == RESTORED for write in writes)
        assert verify(other) == 0
        assert "follows and does not sign yet" in capsys.readouterr().out


def test_a_long_replay_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.lab.commands.verify.PROGRESS_S", 0.0)
    assert verify(make_home(tmp_path, "oracle")) == 0
    assert f"block 1 of {head_of(disk_of('oracle'))} (" in capsys.readouterr().err


# -- other homes -----------------------------------------------------------------------------------


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def gateway_home(directory: Path) -> Path:
    facts = make_facts()
    (directory / "data").mkdir()
    index = Index(directory / "data" / "index.sqlite", facts)
    for name in ("public", "consortium", "oracle"):
        story = Story(facts, name)
        for _ in range(5):
            index.apply(name, story.block())
        (directory / f"{name}.json").write_bytes(render_genesis(facts.chains[name].facts.genesis))
    index.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.close()
    tables = "".join(
        f'[{name}]\ngenesis = "{name}.json"\nnodes = []\n'
        for name in ("public", "consortium", "oracle")
    )
    (directory / "config.toml").write_text(f'data = "data"\n{tables}')
    return directory


def test_an_honest_index_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(gateway_home(tmp_path)) == 0
    assert "index of 15 headers: everything agrees" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("DELETE FROM headers WHERE chain = 'public' AND height = 3", "public header 4: does not"),
        ("DELETE FROM headers WHERE chain = 'oracle' AND height = 5", "cursor of the oracle chain"),
        (
            "UPDATE cursors SET height = 4 WHERE chain = 'oracle'",
            "oracle chain: fails its checksum",
        ),
        ("DELETE FROM cursors WHERE chain = 'oracle'", "oracle chain: is missing, but there"),
        ("UPDATE headers SET header = x'00' WHERE height = 2", "header 2: is not the header"),
        ("UPDATE network SET chain_id = x'00'", "is of another network"),
        ("PRAGMA user_version = 9", "has schema 9"),
    ],
)
def test_an_index_that_lies_is_found_out(
    change: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = gateway_home(tmp_path)
    connection = sqlite3.connect(home / "data" / "index.sqlite")
    connection.execute(change)
    connection.commit()
    connection.close()
    assert verify(home) == 1
    said = capsys.readouterr().out
    assert sentence in said
    assert "delete the file" in said


def test_an_index_that_is_no_database_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = gateway_home(tmp_path)
    path = home / "data" / "index.sqlite"
    path.write_bytes(b"noise" * 1_000)
    assert verify(home) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_one_bad_home_among_good_ones_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_home(_made(tmp_path / "good"), "oracle")
    bad = make_home(_made(tmp_path / "bad"), "oracle", [Write(META, HEAD, None)])
    assert verify(good, bad) == 1
    assert "everything agrees" in capsys.readouterr().out


def test_a_home_that_keeps_nothing_is_said_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('keys = "keys"\n')
    assert verify(tmp_path) == 0
    assert "nothing to verify" in capsys.readouterr().out


# -- what is no home -------------------------------------------------------------------------------


def test_what_is_no_home_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path) == 2
    (tmp_path / "config.toml").write_text("x = 1\n")
    assert verify(tmp_path) == 2
    lines: Sequence[str] = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_a_running_node_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path, "oracle")
    store = Store.open(home / "data")
    assert verify(home) == 2
    store.close()
    assert "in use by another process" in capsys.readouterr().err


def test_an_edited_genesis_is_told_from_a_foreign_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path, "oracle")
    genesis = home / "genesis.json"
    genesis.write_bytes(genesis.read_bytes().replace(b"energy-price", b"energy-prize"))
    assert verify(home) == 2
    assert "was changed after it was made" in capsys.readouterr().err
    genesis.write_text("{}")
    assert verify(home) == 2
    assert "is of none of the chains" in capsys.readouterr().err


def test_a_certificate_is_what_the_marks_are_held_against() -> None:
    """The disk's own votes are in its certificates: a lost mark cannot hide behind an idle log."""
    disk = disk_of("consortium")
    proof = decode_own(disk[FINALITY, height_key(1)], CommitCertificate)
    assert 1 in {signed.index for signed in proof.signatures}
