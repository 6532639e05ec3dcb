"""Homes of containers: made once, kept, carried in bundles, waited for; and the clock beside them."""

import re
import tomllib
from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.deploy import bundle
from gridtokenx.lab.deploy.clock import is_current, open_heartbeat, set_clock
from gridtokenx.lab.deploy.entry import Process, wait_for_home
from gridtokenx.lab.deploy.prepare import prepare
from gridtokenx.lab.manifest import Devices, Manifest, Ports
from gridtokenx.lab.testnet.heartbeat import write_beat
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.placement import CONTAINERS
from gridtokenx.ledger.blocks import PROTOCOL_VERSION

SMALL = Manifest(devices=Devices(households=2, profile_days=1))


def quiet(_line: str) -> None: ...


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("volumes")
    for name in ("public-0", "genesis", "clock"):
        (home / name).mkdir()  # as mount points are
    prepare(home, SMALL, quiet)
    return home


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("operator") / "bundles"
    bundle.make_bundles(SMALL, directory, quiet)
    return directory


def config(home: Path, name: str):
    return tomllib.loads((home / name / "config.toml").read_text(encoding="utf-8"))


# -- init ------------------------------------------------------------------------------------------


def test_init_makes_every_home(made: Path):
    Layout(made, SMALL, CONTAINERS).check_files()
    node = config(made, "oracle-1")
    assert node["listen"] == "0.0.0.0:26600"
    assert node["peers"] == ["oracle-0:26600", "oracle-2:26600", "oracle-3:26600"]
    assert node["broker"] == "mqtts://broker:8883"
    assert node["clock_file"] == "../clock/offset"
    assert (made / "oracle-1" / "broker-certificate.pem").is_file()
    assert (made / "genesis" / "targets.json").is_file()


def test_init_keeps_what_is_there(made: Path):
    before = {path: path.read_bytes() for path in made.rglob("*.key")}
    said: list[str] = []
    prepare(made, SMALL, said.append)
    assert {path: path.read_bytes() for path in made.rglob("*.key")} == before
    assert "kept the network" in said[-1]


def test_init_refuses_another_manifest(made: Path):
    other = Manifest(devices=SMALL.devices, ports=Ports(gateway=18_081))
    with pytest.raises(LocalFault, match=r"another manifest \(ports differ\).*down --volumes"):
        prepare(made, other, quiet)


def test_a_network_of_another_protocol_is_refused(tmp_path: Path):
    """Its nodes went on with it, or gave up one by one."""
    prepare(tmp_path, SMALL, quiet)
    facts = tmp_path / "genesis" / "network.json"
    said = facts.read_text(encoding="utf-8")
    assert f'"protocol": {PROTOCOL_VERSION}' in said
    facts.write_text(said.replace(f'"protocol": {PROTOCOL_VERSION}', '"protocol": 1'), "utf-8")
    with pytest.raises(LocalFault, match=r"protocol version 1, .*--fresh.*down --volumes"):
        prepare(tmp_path, SMALL, quiet)


def test_init_starts_over_after_an_unfinished_run(tmp_path: Path):
    (tmp_path / "public-0" / "keys").mkdir(parents=True)
    (tmp_path / "genesis").mkdir()
    prepare(tmp_path, SMALL, quiet)
    Layout(tmp_path, SMALL, CONTAINERS).check_files()


def test_init_never_clears_away_a_chain(tmp_path: Path):
    (tmp_path / "public-0" / "data").mkdir(parents=True)
    with pytest.raises(LocalFault, match="public-0 hold chains"):
        prepare(tmp_path, SMALL, quiet)
    assert (tmp_path / "public-0" / "data").is_dir()


# -- clock -----------------------------------------------------------------------------------------


def test_the_clock_goes_on_from_the_last_beat(tmp_path: Path):
    write_beat(tmp_path / "heartbeat", 1_000_000)
    assert not is_current(tmp_path, b"boot-1")
    assert set_clock(tmp_path, now_ms=1_000_000, boot=b"boot-1") == 0
    assert is_current(tmp_path, b"boot-1")
    # up again while it runs: the offset that processes have stays
    write_beat(tmp_path / "heartbeat", 1_500_000)
    assert set_clock(tmp_path, now_ms=1_501_000, boot=b"boot-1") == 0
    # after a night
    assert set_clock(tmp_path, now_ms=31_500_000, boot=b"boot-1") == -30_000_000
    # a reboot is a stop, however short
    assert set_clock(tmp_path, now_ms=31_501_000, boot=b"boot-2") == -30_001_000


def test_the_heartbeat_sets_the_clock_after_a_reboot(made: Path):
    (made / "clock" / "boot").write_bytes(b"another life")
    process = Process(made, "public-0", clock=made / "clock")
    assert "clock" in (process.missing() or "")
    beating = open_heartbeat(made / "clock")
    beating.beat()
    assert process.missing() is None


def test_a_network_without_a_heartbeat_is_refused(tmp_path: Path):
    with pytest.raises(LocalFault, match="not a heartbeat"):
        set_clock(tmp_path)


# -- bundles ---------------------------------------------------------------------------------------


def test_a_bundle_is_one_process_and_nothing_of_another(bundles: Path, tmp_path: Path):
    assert bundle.unpack(bundles / "parts", "consortium-2", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"genesis", "consortium-2"}
    assert (tmp_path / "consortium-2" / "keys" / "identity.key").stat().st_mode & 0o777 == 0o600
    node = config(tmp_path, "consortium-2")
    assert "clock_file" not in node  # several machines keep wall time
    public = {path.name for path in (tmp_path / "genesis").iterdir()}
    assert not [name for name in public if "key" in name]


def test_a_bundle_never_replaces_a_home(bundles: Path, tmp_path: Path):
    assert bundle.unpack(bundles / "parts", "gateway", tmp_path)
    (tmp_path / "gateway" / "config.toml").write_text("mine", encoding="utf-8")
    assert not bundle.unpack(bundles / "parts", "gateway", tmp_path)
    assert (tmp_path / "gateway" / "config.toml").read_text(encoding="utf-8") == "mine"


def test_the_operator_keeps_what_no_process_reads(bundles: Path):
    kept = {path.name for path in (bundles / "operator").iterdir()}
    assert kept == {"genesis", "authority", "wallet"}
    parts = bundle.count_parts(bundles, SMALL)
    assert set(parts) == {member.name for member in Layout(Path(), SMALL).members}
    with pytest.raises(LocalFault, match="another manifest"):
        bundle.count_parts(bundles, Manifest())


def test_bundles_never_replace_bundles(bundles: Path):
    with pytest.raises(LocalFault, match="not empty"):
        bundle.make_bundles(SMALL, bundles, quiet)


def test_parts_are_put_together_again(bundles: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bundle, "PART_BYTES", 1_000)
    home = tmp_path / "home"
    assert bundle.unpack(bundles / "parts", "agents", home)
    parts = bundle.pack(home, "agents")
    assert len(parts) > 5
    for index, part in enumerate(parts):
        bundle.part_path(tmp_path, "agents", index).parent.mkdir(exist_ok=True)
        bundle.part_path(tmp_path, "agents", index).write_bytes(part)
    again = tmp_path / "again"
    assert bundle.unpack(tmp_path / "parts", "agents", again)
    assert (again / "agents" / "roster.json").read_bytes() == (
        home / "agents" / "roster.json"
    ).read_bytes()


@pytest.mark.parametrize("harm", ["cut", "flip", "other"])
def test_a_damaged_or_foreign_bundle_is_refused(bundles: Path, tmp_path: Path, harm: str):
    whole = (bundles / "parts" / "relayer-0.000").read_bytes()
    harmed = {
        "cut": whole[:-100],
        "flip": whole[:100] + bytes((whole[100] ^ 1,)) + whole[101:],
        "other": (bundles / "parts" / "relayer-1.000").read_bytes(),
    }[harm]
    (tmp_path / "relayer-0.000").write_bytes(harmed)
    with pytest.raises(LocalFault, match="relayer-0"):
        bundle.unpack(tmp_path, "relayer-0", tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "genesis/../../x", "other/x"])
def test_a_bundle_writes_only_where_it_may(tmp_path: Path, path: str):
    import gzip

    import msgspec

    raw = msgspec.json.encode(
        {"process": "public-0", "files": {path: {"mode": 0o644, "data": "eA=="}}}
    )
    (tmp_path / "public-0.000").write_bytes(gzip.compress(raw))
    with pytest.raises(LocalFault, match=re.escape(repr(path))):
        bundle.unpack(tmp_path, "public-0", tmp_path / "home")
    assert not (tmp_path / "home").exists()


# -- the container's entry -------------------------------------------------------------------------


def test_the_entry_waits_for_a_home_and_says_so(made: Path, tmp_path: Path):
    process = Process.of({"GTX_PROCESS": "public-0"}, tmp_path)
    assert process is not None
    said: list[str] = []
    steps = iter(("genesis", "public-0"))

    def sleep(_s: float) -> None:
        name = next(steps)
        (tmp_path / name).symlink_to(made / name)

    wait_for_home(process, said.append, sleep)
    assert ["network.json" in said[0], "public-0" in said[1], len(said)] == [True, True, 2]


def test_the_entry_unpacks_a_bundle_once(bundles: Path, tmp_path: Path):
    environment = {"GTX_PROCESS": "broker", "GTX_BUNDLE": str(bundles / "parts")}
    process = Process.of(environment, tmp_path)
    assert process is not None
    said: list[str] = []
    wait_for_home(process, said.append)
    wait_for_home(process, said.append)
    assert said == ["unpacked the home of broker"]
    assert (tmp_path / "broker" / "mosquitto.conf").is_file()


def test_the_entry_refuses_a_volume_that_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    process = Process.of({"GTX_PROCESS": "public-0"}, tmp_path)
    assert process is not None

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(LocalFault, match="Permission denied"):
        wait_for_home(process, lambda _line: None)


def test_a_container_of_no_network_waits_for_nothing():
    assert Process.of({}) is None
