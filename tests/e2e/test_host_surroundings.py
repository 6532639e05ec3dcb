"""Real faults of disks and files: each ends with one clear line, nothing is lost, and a restart goes on.

They need root (to mount small disks and to give up the right to read everything), so they run in the
slow stage only, and skip elsewhere with the reason.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.testnet import GTX, Commands, Network, Said, gtx

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount disks and drop capabilities"),
]

SMALL = "[devices]\nhouseholds = 2\nprofile_days = 1\n"
START_S = 60.0
READ_ANYTHING = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
PR_CAPBSET_DROP = 24


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A testnet on disk that never ran as a whole."""
    made = Network(tmp_path_factory.mktemp("testnet"), SMALL)
    said = gtx("testnet", "init", "--home", made.home, "--manifest", made.manifest_path)
    assert said.code == 0, said
    return made


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs commands."""
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


def command(network: Network, name: str) -> list[str | Path]:
    """How a process of the network is started, as arguments of `gtx`."""
    return [
        *network.layout.member(name).command,
        "--config",
        network.layout.directory(name) / "config.toml",
    ]


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"mount is not allowed here: {done.stderr.decode().strip()}")


@contextlib.contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A disk of its own."""
    at.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", at)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """A directory that nobody can write to, root neither."""
    mount("--bind", directory, directory)
    try:
        mount("-o", "remount,ro,bind", directory)
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> Path:
    """Leave no room at all."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def give_up_reading_anything() -> None:
    """In a child: files' modes count again, although it is root."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in READ_ANYTHING:
        assert libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


def start(network: Network, name: str, *flags: str | Path, harmless: bool = False) -> Said:
    """Run a process that is expected to end by itself."""
    done = subprocess.run(
        [*GTX, *map(str, command(network, name)), *map(str, flags)],
        check=False,
        capture_output=True,
        text=True,
        timeout=START_S,
        preexec_fn=give_up_reading_anything if harmless else None,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["consortium-0", "public-0", "oracle-0", "gateway", "devices"])
def test_a_full_disk_is_refused_at_start(
    network: Network, commands: Commands, tmp_path: Path, name: str
) -> None:
    with small_disk(tmp_path / "disk", "200k") as disk:
        fill(disk)
        commands.run(*command(network, name), "--data", disk / "data").refused(str(disk))


@pytest.mark.parametrize("name", ["consortium-0", "public-0", "oracle-0", "gateway", "devices"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_that_cannot_be_written_is_refused(
    network: Network, commands: Commands, tmp_path: Path, name: str, *, exists: bool
) -> None:
    parent = tmp_path / "parent"
    (parent / "data").mkdir(parents=True) if exists else parent.mkdir()
    with read_only(parent):
        run = commands.run(*command(network, name), "--data", parent / "data")
        run.refused(str(parent))


@pytest.mark.parametrize(
    "path",
    [
        "consortium-0/keys",
        "consortium-0/keys/identity.key",
        "consortium-0/consortium-certificate.pem",
        "consortium-0/config.toml",
        "genesis/consortium.json",
        "genesis/consortium-authority.pem",
        "genesis/consortium-revocations.pem",
    ],
)
def test_a_file_that_cannot_be_read_is_named(network: Network, tmp_path: Path, path: str) -> None:
    target = network.home / path
    mode = target.stat().st_mode
    target.chmod(0)
    try:
        said = start(network, "consortium-0", "--data", tmp_path / "data", harmless=True)
    finally:
        target.chmod(mode)
    said.refused(target.name)


# -- while running ---------------------------------------------------------------------------------


def readiness(network: Network, name: str) -> dict[str, object]:
    url = f"http://127.0.0.1:{network.layout.member(name).http_port}/ready"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.loads(error.read()))
    except OSError:
        return {"ready": False, "reasons": ["no answer"], "height": -1}


def wait_until(condition: Callable[[], object], seconds: float = START_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


@contextlib.contextmanager
def running(
    network: Network, name: str, log: Path, *flags: str | Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*GTX, *map(str, command(network, name)), *map(str, flags)], stderr=file
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


@contextlib.contextmanager
def three_others(network: Network, directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for index in (1, 2, 3):
            name = f"consortium-{index}"
            data = directory / name
            stack.enter_context(running(network, name, directory / f"{name}.log", "--data", data))
        yield


def test_a_disk_that_fills_while_a_node_runs_costs_nothing(
    network: Network, tmp_path: Path
) -> None:
    name, log = "consortium-0", tmp_path / "node.log"
    with three_others(network, tmp_path), small_disk(tmp_path / "disk", "80m") as disk:
        data = disk / "data"
        with running(network, name, log, "--data", data) as process:
            wait_until(lambda: readiness(network, name)["ready"])
            filler = fill(disk)
            assert process.wait(START_S) == 74
        (line,) = [each for each in log.read_text().splitlines() if each.startswith("fatal:")]
        assert "the disk is full; nothing acknowledged is lost" in line
        height = last_height(log)
        start(network, name, "--data", data).refused("the disk is full")
        filler.unlink()
        with running(network, name, log, "--data", data) as process:
            wait_until(lambda: readiness(network, name)["ready"])
            assert last_height(log) >= height
        assert process.returncode == 0


def last_height(log: Path) -> int:
    """What the node had when it last started or stopped."""
    heights = [
        int(word.removeprefix("height="))
        for line in log.read_text().splitlines()
        for word in line.split()
        if word.startswith("height=") and ("node started" in line or "node stopped" in line)
    ]
    return heights[-1]


def test_a_log_on_a_full_disk_stops_nobody_and_a_twin_stops_itself(
    network: Network, tmp_path: Path
) -> None:
    name = "consortium-0"
    with three_others(network, tmp_path), small_disk(tmp_path / "disk", "200k") as disk:
        fill(disk)
        with running(network, name, disk / "log", "--data", tmp_path / "data") as process:
            wait_until(lambda: readiness(network, name)["ready"])
            said = start(
                network, name,
                "--data", tmp_path / "twin",
                "--listen", "127.0.0.1:0",
                "--http", "127.0.0.1:0",
            )  # fmt: skip
            said.refused("another process runs with the key", "nothing was signed here")
            same = start(network, name, "--data", tmp_path / "data")
            same.refused("in use by another process")
            height = readiness(network, name)["height"]
            wait_until(lambda: readiness(network, name)["height"] != height)
            assert readiness(network, name)["ready"], readiness(network, name)
        assert process.returncode == 0


def test_a_clock_that_is_off_is_said(network: Network, tmp_path: Path) -> None:
    name, log = "consortium-0", tmp_path / "node.log"
    flags = ("--data", tmp_path / "data", "--clock-offset-ms", "184000")
    with three_others(network, tmp_path), running(network, name, log, *flags):
        wait_until(lambda: "clock is 184 s ahead" in str(readiness(network, name)["reasons"]))
        wait_until(lambda: "clock is wrong" in log.read_text())
