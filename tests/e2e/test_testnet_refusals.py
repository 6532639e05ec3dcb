"""What `gtx` refuses to start with: one line that says what, where and what to do, and code 2."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.testnet import Commands, Network, gtx

from gridtokenx.lab.manifest import load_manifest
from gridtokenx.lab.testnet.layout import Layout

pytestmark = pytest.mark.e2e

SMALL = "[devices]\nhouseholds = 2\nprofile_days = 1\n"
NODE = "consortium-0"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs commands."""
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A testnet on disk that never ran."""
    network = Network(tmp_path_factory.mktemp("testnet"), SMALL)
    said = gtx("testnet", "init", "--home", network.home, "--manifest", network.manifest_path)
    assert said.code == 0, said
    return network


@pytest.fixture
def home(made: Network, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    return Path(shutil.copytree(made.home, tmp_path / "home"))


def node(home: Path, name: str = NODE) -> list[str | Path]:
    return ["node", name.rpartition("-")[0], "--config", home / name / "config.toml"]


COMMANDS: dict[str, tuple[list[str], str]] = {
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown chain": (["node", "private"], "private"),
    "unknown flag": (["testnet", "up", "--nope"], "--nope"),
    "no duration": (["testnet", "up", "--for", "soon"], "soon"),
    "no time": (["testnet", "up", "--for", "0"], "'0'"),
    "one household": (["testnet", "init", "--households", "1"], "--households"),
    "no manifest": (["testnet", "up", "--manifest", "nowhere.toml"], "nowhere.toml"),
    "summary nowhere": (["testnet", "up", "--summary", "/nowhere/s.json"], "/nowhere/s.json"),
    "no home": (["testnet", "status", "--home", "/nowhere"], "gtx testnet init"),
    "unwritable home": (["testnet", "up", "--home", "/proc/nowhere"], "/proc/nowhere"),
    "home is a file": (["testnet", "up", "--home", "/etc/passwd"], "/etc/passwd"),
    "home of another": (["testnet", "up", "--home", "/usr"], "--home"),
    "nothing to verify": (["verify", "--home", "/nowhere"], "/nowhere"),
    "node without settings": (["node", "consortium"], "--keys"),
    "no configuration": (["node", "public", "--config", "/nowhere"], "/nowhere"),
    "transfer of nothing": (["tx", "transfer"], "--from"),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_refuses_what_it_cannot_use(commands: Commands, name: str) -> None:
    arguments, word = COMMANDS[name]
    commands.run(*arguments).refused(word)


def overwrite(path: str, text: str) -> Callable[[Path], object]:
    return lambda home: (home / path).write_text(text)


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda home: shutil.copy(home / source, home / target)


def cut(path: str, size: int) -> Callable[[Path], object]:
    return lambda home: (home / path).write_bytes((home / path).read_bytes()[:size])


def append(path: str, text: str) -> Callable[[Path], object]:
    return lambda home: (home / path).write_text((home / path).read_text() + text)


def edit(path: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        before = (home / path).read_bytes()
        assert old in before
        (home / path).write_bytes(before.replace(old, new, 1))

    return change


def remove(path: str) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        target = home / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

    return change


def damaged_store(home: Path) -> None:
    (home / NODE / "data").mkdir()
    (home / NODE / "data" / "data.mdb").write_bytes(b"\x5a" * 65_536)


GENESIS = "genesis/consortium.json"
CERTIFICATE = f"{NODE}/consortium-certificate.pem"
HARMED_NODE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing genesis": (remove(GENESIS), GENESIS),
    "cut genesis": (cut(GENESIS, 500), GENESIS),
    "edited genesis": (edit(GENESIS, b"20000", b"20001"), "changed after it was made"),
    "genesis of another chain": (copy("genesis/oracle.json", GENESIS), GENESIS),
    "certificate of another": (copy("consortium-1/consortium-certificate.pem", CERTIFICATE), "key"),
    "no certificate": (overwrite(CERTIFICATE, "hello"), CERTIFICATE),
    "other authority": (
        copy("genesis/oracle-authority.pem", "genesis/consortium-authority.pem"),
        "not issued by",
    ),
    "no keys": (remove(f"{NODE}/keys"), f"{NODE}/keys"),
    "key of another": (
        copy("public-0/keys/identity.key", f"{NODE}/keys/identity.key"),
        "identity",
    ),
    "cut key": (cut(f"{NODE}/keys/identity.key", 30), "identity.key"),
    "wrong password": (overwrite(f"{NODE}/keys/development-password.txt", "x"), "password"),
    "cut configuration": (
        edit(f"{NODE}/config.toml", b'keys = "keys"', b'keys = "ke'),
        "TOML",
    ),
    "binary configuration": (
        lambda home: (home / NODE / "config.toml").write_bytes(b"\xff\xfe"),
        "TOML",
    ),
    "unknown setting": (append(f"{NODE}/config.toml", "foo = 3\n"), "foo"),
    "configuration of another role": (
        copy("gateway/config.toml", f"{NODE}/config.toml"),
        "no setting here",
    ),
    "damaged store": (damaged_store, f"{NODE}/data"),
    "data is a file": (overwrite(f"{NODE}/data", ""), f"{NODE}/data"),
}


@pytest.mark.parametrize("name", list(HARMED_NODE))
def test_a_node_refuses_a_harmed_home(commands: Commands, home: Path, name: str) -> None:
    harm, word = HARMED_NODE[name]
    harm(home)
    commands.run(*node(home)).refused(word)


FLAGS: dict[str, tuple[list[str], str]] = {
    "bad port": (["--listen", "127.0.0.1:99999"], "99999"),
    "bad peer": (["--peers", "somewhere"], "somewhere"),
    "negative time": (["--block-time-ms", "-1"], "--block-time-ms"),
    "unwritable data": (["--data", "/proc/nowhere"], "/proc/nowhere"),
}


@pytest.mark.parametrize("name", list(FLAGS))
def test_a_node_refuses_a_bad_flag(commands: Commands, made: Network, name: str) -> None:
    flags, word = FLAGS[name]
    commands.run(*node(made.home), *flags).refused(word)


def test_a_node_refuses_a_bad_environment(commands: Commands, made: Network) -> None:
    commands.run(*node(made.home), GTX_BLOCK_TIME_MS="soon").refused("GTX_BLOCK_TIME_MS")


HARMED_TESTNET: dict[str, tuple[Callable[[Path], object], str]] = {
    "no heartbeat": (remove("heartbeat"), "heartbeat"),
    "no genesis": (remove("genesis/public.json"), "genesis/public.json"),
    "no process": (remove("devices"), "devices/config.toml"),
    "no manifest": (remove("manifest.toml"), "manifest.toml"),
    "empty manifest": (overwrite("manifest.toml", ""), "manifest.toml"),
    "manifest is no TOML": (overwrite("manifest.toml", "{}"), "manifest.toml"),
    "unknown key": (append("manifest.toml", "\n[ports2]\n"), "ports2"),
    "no facts": (overwrite("network.json", "{"), "network.json"),
}


@pytest.mark.parametrize("name", list(HARMED_TESTNET))
def test_up_refuses_a_harmed_home(commands: Commands, home: Path, name: str) -> None:
    harm, word = HARMED_TESTNET[name]
    harm(home)
    commands.run("testnet", "up", "--home", home, "--for", "1s").refused(word, str(home))


def test_up_and_a_node_refuse_a_port_in_use(commands: Commands, made: Network) -> None:
    member = made.layout.member(NODE)
    with socket.create_server(("127.0.0.1", member.peer_port)):
        refused = commands.run("testnet", "up", "--home", made.home, "--for", "1s")
        refused.refused(str(member.peer_port), NODE, "[ports]")
        commands.run(*node(made.home)).refused("cannot listen", str(member.peer_port))


def test_a_store_in_use_is_refused(commands: Commands, made: Network, tmp_path: Path) -> None:
    from gridtokenx.host.storage import Store

    store = Store.open(tmp_path / "data")
    try:
        commands.run(*node(made.home), "--data", tmp_path / "data").refused("in use")
    finally:
        store.close()


ROLES = (
    "broker", "market-data", "public-0", "consortium-0", "oracle-0", "relayer-0", "gateway",
    "devices", "agents",
)  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_every_role_refuses_a_port_in_use(commands: Commands, home: Path, name: str) -> None:
    made = Layout(home, load_manifest(home / "manifest.toml")).member(name)
    with socket.create_server(("127.0.0.1", made.http_port)):
        refused = commands.run(*made.command, "--config", home / name / "config.toml")
    refused.refused("cannot listen", str(made.http_port))


@pytest.mark.parametrize("name", ROLES)
def test_every_role_refuses_cut_settings_and_keys(
    commands: Commands, home: Path, name: str
) -> None:
    made = Layout(home, load_manifest(home / "manifest.toml")).member(name)
    settings = home / name / "config.toml"
    for path in sorted((home / name / "keys").glob("*.key")):
        whole = path.read_bytes()
        path.write_bytes(whole[:40])
        commands.run(*made.command, "--config", settings).refused(path.name, "damaged")
        path.write_bytes(whole)
        break
    text = settings.read_text()
    settings.write_text(text + "nonsense = 1\n")
    commands.run(*made.command, "--config", settings).refused("nonsense")
    settings.write_text(text[: len(text) // 2] + "\n[[[")
    commands.run(*made.command, "--config", settings).refused(str(settings), "TOML")
    if name != "broker":  # which needs none
        settings.write_text("")
        commands.run(*made.command, "--config", settings).refused("missing")
