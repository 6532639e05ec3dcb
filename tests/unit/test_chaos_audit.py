"""The judge of runs of real replicas: it passes what is right, and names what is not."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chain_disks import disks_of, genesis_of, transfer, write_disk

from gridtokenx.core.codec import encode
from gridtokenx.core.keys import sha256
from gridtokenx.core.machine import Write
from gridtokenx.host.driver import EVIDENCE
from gridtokenx.host.storage import META as STORE
from gridtokenx.lab.chaos.audit import Audit, Claims
from gridtokenx.lab.chaos.layout import Laid
from gridtokenx.lab.chaos.load import Acknowledged
from gridtokenx.lab.chaos.outcome import Finding
from gridtokenx.ledger.identity import render_genesis
from gridtokenx.ledger.records import BLOCKS, FINALITY, STATE, height_key

CHAIN = "consortium"
Lies = Callable[[int], Iterable[Write]]


def no_lies(_index: int) -> Iterable[Write]:
    return ()


def lay(home: Path, lies: Lies = no_lies) -> tuple[Laid, Claims]:
    """Four stopped replicas, and what is true of them."""
    genesis, disks = genesis_of(CHAIN), disks_of(CHAIN)
    members = genesis.validator_set.members
    laid = Laid(home, members, (), (), b"")
    heights, found = [], []
    sent = {transfer(CHAIN, nonce).id for nonce in range(3)}
    for index, member in enumerate(members):
        disk = {
            **disks[member],
            (STORE, b"chain"): genesis.chain_id,
            (STORE, b"identity"): member,
        }
        heights.append(max(int.from_bytes(k, "big") for table, k in disk if table == BLOCKS))
        write_disk(laid.data(index), disk, lies(index))
    laid.genesis_path.write_bytes(render_genesis(genesis))
    for transaction_id in sent:
        found.append(Acknowledged(transaction_id, 1, 0.0, 1.0))
    return laid, Claims(frozenset(), heights, found, {})


def checkers(findings: Iterable[Finding]) -> set[str]:
    return {finding.checker for finding in findings}


def test_what_is_right_passes(tmp_path: Path) -> None:
    laid, claims = lay(tmp_path)
    audit = Audit(laid, claims)
    assert audit.findings() == []
    assert audit.height == max(claims.heights) >= 5


def test_what_was_said_to_be_durable_must_be(tmp_path: Path) -> None:
    laid, claims = lay(tmp_path)
    beyond = replace(claims, heights=[claims.heights[0] + 1, *claims.heights[1:]])
    assert checkers(Audit(laid, beyond).findings()) == {"durability"}
    for height in (1, max(claims.heights) + 1):
        lost = Acknowledged(sha256(b"never sent"), height, 0.0, 1.0)
        told = replace(claims, acknowledged=[*claims.acknowledged, lost])
        (finding,) = Audit(laid, told).findings()
        assert finding.checker == "durability"
        assert str(height) in finding.detail


def test_a_replica_that_ended_by_itself_is_named_unless_it_is_a_traitor(tmp_path: Path) -> None:
    laid, claims = lay(tmp_path)
    ended = replace(claims, ended={2: [70]})
    (finding,) = Audit(laid, ended).findings()
    assert finding == Finding(checker="survival", detail="replica 2 ended by itself with code 70")
    assert Audit(laid, replace(ended, byzantine=frozenset({2}))).findings() == []


def test_two_statements_about_one_thing_are_a_contradiction_whoever_heard_which(
    tmp_path: Path,
) -> None:
    laid, claims = lay(tmp_path)
    laid.heard(0).write_text(f"0 prepare 3 7 {'aa' * 16} 6\n")  # seats 1 and 2
    laid.heard(3).write_text(f"0 prepare 3 7 {'bb' * 16} 4\n0 prepare 3 8 {'cc' * 16} f\n0 pre")
    (finding,) = Audit(laid, claims).findings()
    assert finding.checker == "contradiction"
    assert "replica 2: prepare of view 3, height 7" in finding.detail
    assert Audit(laid, replace(claims, byzantine=frozenset({2}))).findings() == []


def _forgets_a_certificate(index: int) -> Iterable[Write]:
    return [Write(FINALITY, height_key(2), None)] if index == 1 else ()


def _holds_another_block(index: int) -> Iterable[Write]:
    disk = disks_of(CHAIN)[genesis_of(CHAIN).validator_set.members[1]]
    return [Write(BLOCKS, height_key(2), disk[BLOCKS, height_key(1)])] if index == 1 else ()


def _has_another_state(index: int) -> Iterable[Write]:
    return [Write(STATE, b"a balance", b"\x01")] if index == 1 else ()


def _forgets_its_marks(index: int) -> Iterable[Write]:
    disk = disks_of(CHAIN)[genesis_of(CHAIN).validator_set.members[index]]
    marks = [key for table, key in disk if table == "meta" and key.startswith(b"mark/")]
    return [Write("meta", key, None) for key in marks] if index == 1 else ()


def _accuses_replica_0(index: int) -> Iterable[Write]:
    offender = genesis_of(CHAIN).validator_set.members[0]
    record = encode(("pbft.equivocation", offender, b""))
    return [Write(EVIDENCE, bytes(8), record)] if index == 1 else ()


@pytest.mark.parametrize(
    ("lies", "checker"),
    [
        (_forgets_a_certificate, "certificate"),
        (_holds_another_block, "agreement"),
        (_has_another_state, "validity"),
        (_forgets_its_marks, "marks"),
        (_accuses_replica_0, "innocence"),
    ],
)
def test_a_store_that_is_wrong_is_found_unless_it_is_a_traitor_s(
    tmp_path: Path, lies: Lies, checker: str
) -> None:
    laid, claims = lay(tmp_path, lies)
    found = Audit(laid, claims).findings()
    assert checker in checkers(found)
    assert all("replica 1" in finding.detail for finding in found)
    assert Audit(laid, replace(claims, byzantine=frozenset({1}))).findings() == []


def test_a_store_that_is_gone_is_a_lack_of_durability(tmp_path: Path) -> None:
    laid, claims = lay(tmp_path)
    for file in laid.data(2).iterdir():
        file.unlink()
    laid.data(2).rmdir()
    (finding,) = Audit(laid, claims).findings()
    assert finding.checker == "durability"
    assert "replica 2" in finding.detail
