"""`gtx backup`: a copy is whole or refused, says what it is, and comes back as it was."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
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
from gridtokenx.lab.backup.scratch import PREFIX, clear_left_over, scratch_in
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


@pytest.mark.parametrize("place", ["", "data", "keys", "archives", "../keys-elsewhere"])
def test_a_home_does_not_swallow_its_own_backups(
    place: str, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = node / place
    directory.mkdir(exist_ok=True)
    if place.startswith(".."):
        config = node / "config.toml"
        config.write_text(config.read_text().replace('keys = "keys"', f'keys = "{place}"'))
    before = sorted(node.rglob("*"))
    target = directory / "x.backup"
    assert gtx("backup", "create", "--home", node, "--to", target, "--final") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {target}: is inside {node}")
    assert error.endswith("which is backed up; choose a place outside\n")
    assert sorted(node.rglob("*")) == before
    store = Store.open(node / "data")
    refuse_retired(store)  # nor was it retired
    store.close()


# -- disks that do not take it ---------------------------------------------------------------------


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"mount is not allowed here: {done.stderr.decode().strip()}")


@contextlib.contextmanager
def small_disk(at: Path, kibibytes: int) -> Iterator[Path]:
    at.mkdir()
    mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", at)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@contextlib.contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """The kernel refuses longer files, as a full disk does; no rights are needed for that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kibibytes", [4, 16, 48, 900, 1_080, 1_900])
def test_a_full_disk_is_not_blamed_on_the_store(
    kibibytes: int, node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets full in the store's copy, before its check, in a file's copy, and in the archive."""
    (node / "annex").write_bytes(bytes(1024 * 1024))
    with small_disk(tmp_path / "tiny", kibibytes) as tiny:
        target = tiny / "x.backup"
        assert gtx("backup", "create", "--home", node, "--to", target) == 2
        said = capsys.readouterr().err
        assert said == f"error: {target}: cannot be written: No space left on device\n"
        assert list(tiny.iterdir()) == []
    assert verify(node) == 0


def test_a_gateway_is_not_blamed_for_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "gateway"
    home.mkdir()
    gateway_home(home)
    with small_disk(tmp_path / "tiny", 16) as tiny:
        target = tiny / "x.backup"
        assert gtx("backup", "create", "--home", home, "--to", target) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {target}: cannot be written: ")
        assert "full" in said
        assert list(tiny.iterdir()) == []


def test_a_disk_that_refuses_a_write_is_blamed_alone(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.backup"
    with small_files(8_192):
        assert gtx("backup", "create", "--home", node, "--to", target) == 2
    assert capsys.readouterr().err == f"error: {target}: cannot be written: File too large\n"
    assert {each.name for each in tmp_path.iterdir()} == {"node"}
    archive, again = backed_up(node), tmp_path / "again"
    capsys.readouterr()
    with small_files(8_192):
        assert gtx("backup", "restore", archive, "--home", again) == 2
    assert capsys.readouterr().err == f"error: {again}: cannot be made: File too large\n"
    assert {each.name for each in tmp_path.iterdir()} == {"node", archive.name}


def test_a_read_only_disk_is_blamed(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = backed_up(node)
    with small_disk(tmp_path / "tiny", 4_000) as tiny:
        mount("-o", "remount,ro", tiny)
        capsys.readouterr()
        assert gtx("backup", "create", "--home", node, "--to", tiny / "x.backup") == 2
        assert gtx("backup", "restore", archive, "--home", tiny / "again") == 2
        assert capsys.readouterr().err.splitlines() == [
            f"error: {tiny}/x.backup: cannot be written: Read-only file system",
            f"error: {tiny}/again: cannot be made: Read-only file system",
        ]


def test_what_cannot_be_read_is_not_blamed_on_the_target(
    node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (node / "diary").symlink_to("/proc/self/mem")  # opens, but its first page cannot be read
    assert gtx("backup", "create", "--home", node, "--to", tmp_path / "x.backup") == 2
    assert capsys.readouterr().err == f"error: {node}/diary: cannot be read: Input/output error\n"
    assert gtx("backup", "check", "/proc/self/mem") == 2
    said = "error: /proc/self/mem: cannot be read: Input/output error\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("kibibytes", [4, 16, 48, 900, 1_070])
def test_a_full_disk_is_not_blamed_on_the_archive(
    kibibytes: int, node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = backed_up(node)
    capsys.readouterr()
    with small_disk(tmp_path / "tiny", kibibytes) as tiny:
        home = tiny / "again"
        assert gtx("backup", "restore", archive, "--home", home) == 2
        said = capsys.readouterr().err
        assert said == f"error: {home}: cannot be made: No space left on device\n"
        assert list(tiny.iterdir()) == []


# -- killed amid it --------------------------------------------------------------------------------


def killed_amid(module: str, function: str, *arguments: str | Path) -> None:
    """Run a command that is killed when it comes to a function of a module."""
    program = (
        "import os, sys\n"
        "from gridtokenx.lab.cli import main\n"
        f"import gridtokenx.lab.backup.{module} as module\n"
        f"module.{function} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


def scratches(directory: Path) -> list[Path]:
    return list(directory.glob(f"{PREFIX}*"))


@pytest.mark.slow
def test_what_a_killed_command_leaves_is_cleared_by_the_next(node: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.backup"
    killed_amid("create", "write_archive", "backup", "create", "--home", node, "--to", target)
    assert len(scratches(tmp_path)) == 1
    assert not target.exists()
    archive = backed_up(node)
    assert scratches(tmp_path) == []
    again = tmp_path / "again"
    killed_amid("restore", "_check_store", "backup", "restore", archive, "--home", again)
    assert len(scratches(tmp_path)) == 1
    assert gtx("backup", "restore", archive, "--home", again) == 0
    assert scratches(tmp_path) == []


def test_what_a_running_command_uses_is_left_alone(node: Path, tmp_path: Path) -> None:
    with scratch_in(tmp_path) as in_use:
        (in_use / "copy").write_bytes(b"precious")
        backed_up(node)
        assert scratches(tmp_path) == [in_use.parent]
        assert (in_use / "copy").read_bytes() == b"precious"
    assert scratches(tmp_path) == []


def test_only_own_directories_are_cleared(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    (tmp_path / f"{PREFIX}file").write_bytes(b"")
    (tmp_path / f"{PREFIX}trap").mkdir()
    (tmp_path / f"{PREFIX}trap" / "lock").symlink_to(precious / "made")
    before = sorted(tmp_path.rglob("*"))
    clear_left_over(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_scratch_directories_are_made_and_cleared_at_once(tmp_path: Path) -> None:
    """Processes that make, clear and abandon them do not take each other's."""
    program = (
        "import os, sys, pathlib\n"
        "from gridtokenx.lab.backup.scratch import scratch_in\n"
        "for number in range(50):\n"
        "    if os.fork() == 0:\n"
        "        with scratch_in(pathlib.Path(sys.argv[1])) as made:\n"
        "            (made / 'a').write_bytes(b'1')\n"
        "            if number % 3 == 0: os._exit(0)\n"
        "            assert (made / 'a').read_bytes() == b'1'\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen(words) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    clear_left_over(tmp_path)
    assert scratches(tmp_path) == []
