"""`gtx backup`: a copy is whole or refused, says what it is, and comes back as it was."""

import asyncio
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.chain_disks import disks_of, make_home
from tests.gateway_world import key
from tests.unit.test_lab_verify import gateway_home, verify

from gridtokenx.core.codec import decode_own
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Domain
from gridtokenx.core.machine import Write
from gridtokenx.core.types import UINT63_MAX
from gridtokenx.host.restored import marked, refuse_retired
from gridtokenx.host.storage import Store
from gridtokenx.lab.cli import main
from gridtokenx.ledger.records import HEAD, META
from gridtokenx.pbft.marks import Mark


def gtx(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return int(ended.value.code or 0)


def files_of(home: Path) -> dict[str, bytes]:
    """Everything of a home but its store and what a process makes anew."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and "data" not in path.parts
    }


@pytest.fixture
def node(tmp_path: Path) -> Path:
    home = tmp_path / "node"
    home.mkdir()
    return make_home(home, "consortium")


def backed_up(home: Path, *flags: str) -> Path:
    archive = home.parent / f"{home.name}{''.join(flags)}.backup"
    assert gtx("backup", "create", "--home", home, "--to", archive, *flags) == 0
    return archive


def records(home: Path) -> dict[tuple[str, bytes], bytes | None]:
    store = Store.open(home / "data", read_only=True)
    try:
        return {(each.table, each.key): each.value for each in store.records()}
    finally:
        store.close()


# -- there and back --------------------------------------------------------------------------------


def test_a_node_comes_back_as_it_was_and_follows_first(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, again = backed_up(node), tmp_path / "again"
    assert archive.stat().st_mode & 0o777 == 0o600
    assert gtx("backup", "restore", archive, "--home", again) == 0
    assert "follows first" in capsys.readouterr().out
    assert files_of(again) == files_of(node)
    before, after = records(node), records(again)
    kept = {k: v for k, v in before.items() if k[0] != "log" and not k[1].startswith(b"mark/")}
    assert kept.items() <= after.items()
    assert not any(table == "log" for table, _ in after)
    assert verify(again) == 0
    assert (again / "keys" / "identity.key").stat().st_mode & 0o077 == 0


def test_the_marks_of_a_restored_replica_refuse_everything(node: Path, tmp_path: Path) -> None:
    gtx("backup", "restore", backed_up(node), "--home", tmp_path / "again")
    store = Store.open(tmp_path / "again" / "data", read_only=True)
    for kind in (Domain.PBFT_PREPARE, Domain.PBFT_COMMIT, Domain.PBFT_VIEW_CHANGE):
        raw = store.get(META, b"mark/" + kind.value)
        assert raw is not None
        assert decode_own(raw, Mark).position == (UINT63_MAX,) * 3
    restored = marked(store)
    store.close()
    assert restored is not None
    assert {mark.kind for mark in restored.marks} >= {Domain.PBFT_COMMIT.value}


def test_a_backup_of_a_restored_node_still_follows_first(node: Path, tmp_path: Path) -> None:
    gtx("backup", "restore", backed_up(node), "--home", tmp_path / "again")
    archive = backed_up(tmp_path / "again")
    assert gtx("backup", "restore", archive, "--home", tmp_path / "third") == 0
    store = Store.open(tmp_path / "third" / "data", read_only=True)
    restored = marked(store)
    store.close()
    assert restored is not None
    assert all(mark.set_id != UINT63_MAX for mark in restored.marks)
    assert restored.marks


def test_a_running_node_is_copied_at_one_moment(node: Path, tmp_path: Path) -> None:
    """While it writes: every batch changes two records together, and the copy never tears them."""

    async def live() -> int:
        store = Store.open(node / "data")
        archives = 0
        for number in range(200):
            value = number.to_bytes(8, "big")
            await store.write([Write("evidence", b"a", value), Write("evidence", b"b", value)])
            if number % 100 == 50:
                target = tmp_path / f"{number}.backup"
                code = await asyncio.to_thread(create, target)
                archives += code == 0
        store.close()
        return archives

    def create(target: Path) -> int:
        """In a process of its own, as LMDB wants it."""
        words = ("backup", "create", "--home", node, "--to", target)
        return subprocess.run(
            [sys.executable, "-m", "gridtokenx.lab.cli", *words], check=False
        ).returncode

    assert asyncio.run(live()) == 2
    for archive in sorted(tmp_path.glob("*.backup")):
        home = tmp_path / archive.stem
        assert gtx("backup", "restore", archive, "--home", home) == 0
        found = records(home)
        assert found["evidence", b"a"] == found["evidence", b"b"]


def test_a_gateway_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "gateway"
    home.mkdir()
    archive = backed_up(gateway_home(home))
    assert gtx("backup", "restore", archive, "--home", tmp_path / "again") == 0
    assert verify(tmp_path / "again") == 0


def test_a_public_node_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "public"
    home.mkdir()
    archive = backed_up(make_home(home, "public"))
    assert gtx("backup", "restore", archive, "--home", tmp_path / "again") == 0
    assert verify(tmp_path / "again") == 0


def test_what_the_configuration_names_elsewhere_comes_along(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "genesis"
    shared.mkdir()
    (node / "genesis.json").rename(shared / "consortium.json")
    config = node / "config.toml"
    config.write_text(config.read_text().replace('"genesis.json"', '"../genesis/consortium.json"'))
    archive = backed_up(node)
    beside, far = tmp_path / "beside", tmp_path / "elsewhere" / "far"
    assert gtx("backup", "restore", archive, "--home", beside) == 0
    assert (beside / "config.toml").read_text() == config.read_text()
    assert gtx("backup", "restore", archive, "--home", far) == 0
    assert "genesis is now 'outside/genesis-consortium.json'" in capsys.readouterr().out
    assert verify(beside, far) == 0


# -- moving ----------------------------------------------------------------------------------------


def test_a_final_backup_retires_the_home_and_signs_at_once(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = backed_up(node, "--final")
    assert "retired" in capsys.readouterr().err
    store = Store.open(node / "data")
    with pytest.raises(LocalFault, match="moved away"):
        refuse_retired(store)
    store.close()
    assert gtx("backup", "restore", archive, "--home", tmp_path / "again") == 0
    assert "this once only" in capsys.readouterr().out
    store = Store.open(tmp_path / "again" / "data")
    refuse_retired(store)
    assert marked(store) is None
    disk = disks_of("consortium")[key("consortium-1")]
    assert all(store.get(table, record) == value for (table, record), value in disk.items())
    store.close()


def test_signing_at_once_is_said_to_be_dangerous(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, again = backed_up(node), tmp_path / "again"
    assert gtx("backup", "restore", archive, "--home", again, "--sign-at-once") == 0
    assert "it lies" in capsys.readouterr().out
    store = Store.open(again / "data")
    assert marked(store) is None
    store.close()


def test_a_running_node_cannot_be_moved(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(node / "data")
    target = tmp_path / "x.backup"
    assert gtx("backup", "create", "--home", node, "--to", target, "--final") == 2
    store.close()
    assert "in use by another process" in capsys.readouterr().err
    assert not target.exists()


def test_a_reset_store_follows_first_and_remembers_its_marks(node: Path) -> None:
    assert gtx("backup", "reset", "--home", node) == 0
    store = Store.open(node / "data", read_only=True)
    restored = marked(store)
    assert store.get(META, HEAD) is None
    store.close()
    assert restored is not None
    assert restored.marks
    assert len(list(node.glob("data.put-away-*"))) == 1
    assert verify(node) == 0


def test_a_damaged_store_can_be_reset(node: Path) -> None:
    path = node / "data" / "data.mdb"
    path.write_bytes(os.urandom(path.stat().st_size))
    assert gtx("backup", "reset", "--home", node) == 0
    assert verify(node) == 0


# -- refusals --------------------------------------------------------------------------------------


def test_a_restore_overwrites_nothing(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = backed_up(node)
    assert gtx("backup", "restore", archive, "--home", node) == 2
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert gtx("backup", "restore", archive, "--home", tmp_path / "empty") == 0
    assert gtx("backup", "create", "--home", node, "--to", archive) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "noise", "seal"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    damage: str, node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = backed_up(node)
    capsys.readouterr()
    data = bytearray(archive.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "seal":
        data[data.index(b'"height"') + 10] ^= 1
    archive.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "noise": os.urandom(9_999)}.get(damage, data)
    )
    assert gtx("backup", "check", archive) == 1
    assert gtx("backup", "restore", archive, "--home", tmp_path / "again") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"node", archive.name}


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Of a small archive: each byte of its headers, manifest, contents and seal matters, or is padding."""
    home = tmp_path / "small"
    home.mkdir()
    (home / "config.toml").write_text('keys = "keys"\n')
    archive = backed_up(home)
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        places = [(each.offset_data, each.size) for each in tar.getmembers()]
    for start, size in places:
        for place in range(start, start + size, max(1, size // 40)):
            data = bytearray(whole)
            data[place] ^= 0x20
            archive.write_bytes(data)
            assert gtx("backup", "check", archive) == 1, place


def test_an_archive_cannot_lead_out_of_the_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "small"
    home.mkdir()
    (home / "config.toml").write_text('keys = "keys"\n')
    archive = backed_up(home)
    archive.write_bytes(archive.read_bytes().replace(b'"config.toml"', b'"../fig.toml"'))
    assert gtx("backup", "restore", archive, "--home", tmp_path / "x") == 2
    assert "leads out of the home" in capsys.readouterr().err


def test_a_check_says_what_an_archive_is_of(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = backed_up(node)
    capsys.readouterr()
    assert gtx("backup", "check", archive) == 0
    said = capsys.readouterr().out
    assert "consortium node at block" in said
    assert key("consortium-1").hex()[:16] in said
    assert said.endswith(": whole\n")


def test_a_damaged_store_is_not_backed_up(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = node / "data" / "data.mdb"
    data = bytearray(path.read_bytes())
    place = data.rindex(disks_of("consortium")[key("consortium-1")]["blocks", bytes(7) + b"\2"])
    data[place + 50] ^= 1
    path.write_bytes(data)
    assert gtx("backup", "create", "--home", node, "--to", tmp_path / "x.backup") == 2
    assert "fails its checksum" in capsys.readouterr().err
    assert {each.name for each in tmp_path.iterdir()} == {"node"}


def test_what_is_no_home_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    for arguments in (
        ("create", "--home", tmp_path / "home", "--to", tmp_path / "x"),
        ("restore", tmp_path / "absent", "--home", tmp_path / "y"),
        ("reset", "--home", tmp_path / "home"),
    ):
        assert gtx("backup", *arguments) == 2
    assert capsys.readouterr().err.count("\n") == 3
