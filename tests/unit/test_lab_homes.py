"""`gtx ... init`: a home from one command, and what the command refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from tests.unit.gtx_command import Gtx, gtx

from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.host.certificates import Authority, Role, pem, pem_list
from gridtokenx.host.chains import read_chain
from gridtokenx.host.config import fields, load
from gridtokenx.host.enrolment import read_request
from gridtokenx.host.keyfile import KeyRing, find_password, public_key_of
from gridtokenx.lab import homes
from gridtokenx.lab.authority import AuthorityHome
from gridtokenx.lab.manifest import load_manifest
from gridtokenx.lab.testnet.initialise import initialise
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.node.consortium import ConsortiumNodeSettings
from gridtokenx.node.public import PublicNodeSettings
from gridtokenx.oracle.role import OracleSettings

__all__ = ["gtx"]
PASSWORD = "correct horse"
LISTEN = ("--listen", "127.0.0.1:30100")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public files of a network."""
    home = tmp_path_factory.mktemp("net")
    manifest = home / "small.toml"
    manifest.write_text("[devices]\nhouseholds = 2\nprofile_days = 1\n")
    (home / "net").mkdir()
    initialise(Layout(home / "net", load_manifest(manifest)), lambda _line: None)
    return home / "net" / "genesis"


def node(chain: str, net: Path, *more: str | Path) -> tuple[str | Path, ...]:
    genesis = net / f"{chain}.json"
    return ("node", chain, "init", "home", "--genesis", genesis, *LISTEN, "--development", *more)


def client(command: str, net: Path, *more: str | Path) -> tuple[str | Path, ...]:
    flags: list[str | Path] = []
    for chain in ("public", "consortium", "oracle"):
        flags += [f"--{chain}-genesis", net / f"{chain}.json", f"--{chain}-nodes", "127.0.0.1:1"]
    return (command, "init", "home", *flags, "--development", *more)


# -- what is made ----------------------------------------------------------------------------------


def test_a_replica_is_prepared(gtx: Gtx, net: Path) -> None:
    said = gtx(
        *node("consortium", net, "--peers", "127.0.0.1:1,127.0.0.1:2", "--http", "127.0.0.1:0")
    ).done()
    home = Path("home").absolute()
    settings = load(ConsortiumNodeSettings, file=home / "config.toml")
    assert settings.peers == ("127.0.0.1:1", "127.0.0.1:2")
    assert (settings.listen, settings.http) == ("127.0.0.1:30100", "127.0.0.1:0")
    assert settings.genesis.read_bytes() == (net / "consortium.json").read_bytes()
    assert settings.certificate == home / "consortium-certificate.pem"
    assert (settings.keys, settings.key) == (home / "keys", "identity")
    assert settings.data.is_dir()
    request = read_request(home / "consortium-request.pem")
    key = public_key_of(home / "keys" / "identity.key")
    assert (request.public_key, request.name, request.role) == (key, "home", Role.PEER)
    assert request.chain == "consortium"
    chain_id = read_chain("consortium", net / "consortium.json").chain_id
    for words in (
        chain_id.hex(),
        key.hex(),
        f"send {home / 'consortium-request.pem'}",
        "gtx ca issue consortium-request.pem --authority DIR --chain consortium",
        f"the certificate       {home / 'consortium-certificate.pem'}",
        f"gtx node consortium --config {home / 'config.toml'}",
        "gtx members --help",
    ):
        assert words in said


def test_the_configuration_explains_every_setting(gtx: Gtx, net: Path) -> None:
    gtx(*node("oracle", net, "--broker", "mqtt://127.0.0.1:1", "--source-name", "x")).done()
    text = Path("home/config.toml").read_text()
    joined = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for field in fields(OracleSettings):
        assert " ".join(field.setting.help.split()) in joined
    assert "[source]" in text
    assert 'name = "x"' in text
    assert load(OracleSettings, file=Path("home/config.toml")).source.name == "x"
    assert Path("home/config.toml").stat().st_mode & 0o077 == 0


def test_a_validator_needs_no_authority(gtx: Gtx, net: Path) -> None:
    said = gtx(*node("public", net)).done()
    assert "gtx ca" not in said
    assert "gtx stake --help" in said
    assert sorted(path.name for path in Path("home").iterdir()) == [
        "config.toml",
        "data",
        "genesis",
        "keys",
    ]
    load(PublicNodeSettings, file=Path("home/config.toml"))


@pytest.mark.parametrize("command", ["bridge", "gateway"])
def test_a_client_asks_both_authorities(gtx: Gtx, net: Path, command: str) -> None:
    said = gtx(*client(command, net, "--name", "operator 7")).done()
    for chain in ("consortium", "oracle"):
        request = read_request(Path(f"home/{chain}-request.pem"))
        assert (request.role, request.name) == (Role.CLIENT, "operator 7")
        assert request.chain == chain
        assert f"--chain {chain}" in said
    assert not Path("home/public-request.pem").exists()
    if command == "gateway":
        settings = load(GatewaySettings, file=Path("home/config.toml"))
        assert settings.consortium.certificate == Path("home/consortium-certificate.pem")
        assert settings.public.certificate is None


def test_what_the_authority_gave_is_checked_and_copied(gtx: Gtx, net: Path) -> None:
    gtx("ca", "init", "--chain", "consortium", "--development").done()
    public = Path("authority/consortium")
    given = (
        "--authority",
        public / "authority.pem",
        "--revocations",
        public / "revocations.pem",
    )
    said = gtx(*node("consortium", net, *given)).done()
    assert "authority.pem  " not in said
    settings = load(ConsortiumNodeSettings, file=Path("home/config.toml"))
    assert settings.authority.read_bytes() == (public / "authority.pem").read_bytes()
    assert settings.revocations is not None
    assert settings.revocations.read_bytes() == (public / "revocations.pem").read_bytes()
    # The whole way: request, certificate, start.
    gtx("ca", "issue", "home/consortium-request.pem").done()
    assert Path("home/consortium-certificate.pem").is_file()


def test_keys_that_exist_are_used(gtx: Gtx, net: Path) -> None:
    gtx("keys", "new", "mine", "--keys", "ring", GTX_PASSWORD=PASSWORD).done()
    keys = ("--keys", "ring", "--key", "mine")
    words = [each for each in node("consortium", net, *keys) if each != "--development"]
    gtx(*words).refused("no password of the keys")
    assert not Path("home").exists()
    gtx(*words, GTX_PASSWORD=PASSWORD).done()
    settings = load(ConsortiumNodeSettings, file=Path("home/config.toml"))
    assert settings.keys == Path("ring").absolute()
    assert settings.key == "mine"
    assert not Path("home/keys").exists()
    request = read_request(Path("home/consortium-request.pem"))
    assert request.public_key == public_key_of(Path("ring/mine.key"))


def test_the_password_comes_from_where_it_should(gtx: Gtx, net: Path) -> None:
    words = [each for each in node("public", net) if each != "--development"]
    gtx(*words).refused("no password of the keys", "terminal")
    said = gtx(*words, answers=[PASSWORD, PASSWORD]).done()
    assert "comes from GTX_PASSWORD or --keys-password-file" in said
    KeyRing.open(Path("home/keys"), PASSWORD)
    Path("password").write_text(PASSWORD)
    words[3] = "other"
    gtx(*words, "--keys-password-file", "password").done()
    settings = load(PublicNodeSettings, file=Path("other/config.toml"))
    assert settings.keys_password_file == Path("password").absolute()


def test_the_environment_gives_settings_too(gtx: Gtx, net: Path) -> None:
    words = ("node", "public", "init", "home", "--genesis", net / "public.json", "--development")
    gtx(*words, GTX_LISTEN="127.0.0.1:5").done()
    assert load(PublicNodeSettings, file=Path("home/config.toml")).listen == "127.0.0.1:5"


def test_an_empty_directory_may_be_there_already(gtx: Gtx, net: Path) -> None:
    Path("home").mkdir()
    gtx(*node("public", net)).done()


# -- what is refused -------------------------------------------------------------------------------


def test_nothing_is_overwritten(gtx: Gtx, net: Path) -> None:
    gtx(*node("public", net)).done()
    gtx(*node("public", net)).refused("home: holds a home already")
    Path("other").mkdir()
    Path("other/file").write_text("")
    words = list(node("public", net))
    words[3] = "other"
    gtx(*words).refused("other: is not empty")
    words[3] = "other/file"
    gtx(*words).refused("other/file")
    words[3] = "/proc/x/y"
    gtx(*words).refused("/proc/x/y")


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "address": ("public", ["--listen", "nowhere"], "address 'nowhere' is not allowed"),
    "peer": ("public", ["--peers", "nowhere"], "address 'nowhere' is not allowed"),
    "number": ("consortium", ["--block-time-ms", "-1"], "--block-time-ms"),
    "name": ("consortium", ["--name", "a/b"], "name 'a/b' is not allowed"),
    "no genesis": ("public", ["--genesis", "nowhere.json"], "nowhere.json: cannot be read"),
    "no genesis either": ("public", ["--genesis", "junk"], "junk"),
    "another chain's": ("public", ["--genesis", "oracle.json"], "oracle.json"),
    "no authority": ("consortium", ["--authority", "junk"], "junk: is no PEM certificate"),
    "list alone": ("consortium", ["--revocations", "junk"], "give both"),
    "unknown flag": ("public", ["--lisen", "x"], "Did you mean '--listen'?"),
    "required": ("oracle", [], "broker is missing: give --broker"),
    "password twice": ("public", ["--keys-password-file", "junk"], "give one of the two"),
    "no keys": ("public", ["--keys", "nowhere"], "nowhere/identity.key: cannot be read"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_init_refuses_and_leaves_nothing(gtx: Gtx, net: Path, name: str) -> None:
    chain, flags, words = REFUSED[name]
    Path("junk").write_text("hello there")
    Path("oracle.json").write_bytes((net / "oracle.json").read_bytes())
    gtx(*node(chain, net, *flags)).refused(words)
    assert not Path("home").exists()


def test_a_certificate_that_is_no_authority_is_refused(gtx: Gtx, net: Path) -> None:
    own = net.parent / "consortium-0" / "consortium-certificate.pem"
    gtx(*node("consortium", net, "--authority", own)).refused("is no authority's certificate")


def test_chains_of_two_networks_are_refused(
    gtx: Gtx, net: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "m.toml").write_text("seed = 9\n[devices]\nhouseholds = 2\nprofile_days = 1\n")
    (other / "net").mkdir()
    initialise(Layout(other / "net", load_manifest(other / "m.toml")), lambda _line: None)
    foreign = other / "net" / "genesis" / "oracle.json"
    gtx(*client("bridge", net, "--oracle-genesis", foreign)).refused("of one network")


def test_a_crash_while_writing_leaves_nothing(
    gtx: Gtx, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(homes, "write_file", full)
    gtx(*node("consortium", net)).refused("home: cannot be made: No space left")
    assert not Path("home").exists()
    Path("home").mkdir()
    gtx(*node("consortium", net)).refused("home: cannot be made: No space left")
    assert not any(Path("home").iterdir())


def test_a_home_without_its_certificate_says_what_is_awaited(gtx: Gtx, net: Path) -> None:
    gtx(*node("consortium", net)).done()
    said = gtx("node", "consortium", "--config", "home/config.toml", "--log-level", "error")
    said.refused("home/consortium-certificate.pem: no certificate is there yet", "gtx ca issue")


def test_flags_go_behind_init_and_help_teaches_both(gtx: Gtx) -> None:
    gtx("node", "public", "--listen", "127.0.0.1:0", "init", "home").refused("come after 'init'")
    for words in (("node", "public"), ("node", "consortium"), ("node", "oracle"), ("bridge",)):
        said = gtx(*words, "--help").done()
        assert "--print-config" in said
        assert "init  Prepare a home" in said
        assert "Nothing that exists is overwritten" in gtx(*words, "init", "--help").done()


def test_settings_in_force_are_printed_from_a_made_home(gtx: Gtx, net: Path) -> None:
    gtx(*node("oracle", net, "--broker", "mqtts://me:hush@broker:1")).done()
    assert "hush" in Path("home/config.toml").read_text()  # the process needs it
    said = gtx("node", "oracle", "--config", "home/config.toml", "--print-config").done()
    assert "hush" not in said
    assert 'listen = "127.0.0.1:30100"  # home/config.toml: listen' in said
    assert "broker_protocol" in said


# -- starting with files that do not belong together -----------------------------------------------


@pytest.fixture
def enrolled(gtx: Gtx, net: Path, tmp_path: Path) -> None:
    """A whole home of an observer, in `home`; a name belongs to one key, so each has its own."""
    authority = net.parent / "authority"
    given = ("--authority", net / "consortium-authority.pem")
    given += ("--revocations", net / "consortium-revocations.pem")
    gtx(*node("consortium", net, *given, "--name", tmp_path.name)).done()
    issue = ("ca", "issue", "home/consortium-request.pem", "--authority", authority)
    gtx(*issue, "--chain", "consortium").done()


def _foreign() -> Authority:
    return Authority.create("consortium", bytes(32))


def _own_key() -> bytes:
    return public_key_of(Path("home/keys/identity.key"))


def _real(net: Path) -> Authority:
    directory = net.parent / "authority"
    ring = KeyRing.open(directory / "keys", find_password(directory / "keys", None, {}))
    return AuthorityHome(directory, "consortium").unlock(ring)


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "expired": (
        lambda net: _put(_real(net).issue(_own_key(), "observer", Role.PEER, days=0)),
        "not now; have it issued again",
    ),
    "another's": (
        lambda net: _put(_real(net).issue(bytes(31) + b"\x01", "observer", Role.PEER)),
        "but this node's identity is",
    ),
    "another authority's": (
        lambda net: _put(_foreign().issue(_own_key(), "observer", Role.PEER)),
        "was not issued by the authority",
    ),
    "damaged list": (
        lambda _net: LIST.write_text("-----BEGIN"),
        "is no revocation list in PEM form",
    ),
    "another authority's list": (
        lambda net: LIST.write_bytes(pem_list(_foreign().revoke({}, 9))),
        "was not signed by the authority",
    ),
    "no list": (lambda _net: LIST.unlink(), "consortium-revocations.pem: cannot be read"),
}
LIST = Path("home/genesis/consortium-revocations.pem")


def _put(certificate: x509.Certificate) -> None:
    Path("home/consortium-certificate.pem").write_bytes(pem(certificate))


@pytest.mark.parametrize("name", list(HARM))
@pytest.mark.usefixtures("enrolled")
def test_a_node_refuses_certificates_and_lists_that_nobody_would_believe(
    gtx: Gtx, net: Path, name: str
) -> None:
    harm, words = HARM[name]
    harm(net)
    start = ("node", "consortium", "--config", "home/config.toml", "--log-level", "error")
    gtx(*start).refused(words)


ROLES = (
    ("node", "public"),
    ("node", "consortium"),
    ("node", "oracle"),
    ("bridge",),
    ("gateway",),
    ("devices",),
    ("agents",),
    ("broker",),
    ("market-data",),
)


@pytest.mark.parametrize("words", ROLES, ids=" ".join)
def test_every_role_has_one_schema_for_flags_environment_and_file(
    gtx: Gtx, words: tuple[str, ...]
) -> None:
    said = gtx(*words, "--help").done()
    for flag in ("--config", "--print-config", "--log-format", "GTX_LOG_FORMAT"):
        assert flag in said
    gtx(*words, "--log-formt", "json").refused("Did you mean", "'--log-format'")
    gtx(*words, "--log-format", "xml").refused("--log-format = 'xml'", "one of text, json")
    gtx(*words, GTX_LOG_FORMT="json").refused("GTX_LOG_FORMT", "did you mean GTX_LOG_FORMAT?")
    Path("c.toml").write_text("log_formt = 'json'\n")
    gtx(*words, "--config", "c.toml").refused("c.toml: log_formt", "did you mean log_format?")
    gtx(*words, "--config", "nowhere.toml").refused("nowhere.toml: cannot be read")


# -- from a network's public facts -----------------------------------------------------------------


def test_a_networks_facts_fill_in_all_that_its_founder_makes_public(gtx: Gtx, net: Path) -> None:
    facts = net.parent / "network.json"
    gtx(
        "node", "consortium", "init", "home", "--network-file", facts, *LISTEN, "--development"
    ).done()
    settings = load(ConsortiumNodeSettings, file=Path("home/config.toml"))
    assert settings.genesis.read_bytes() == (net / "consortium.json").read_bytes()
    assert settings.authority.read_bytes() == (net / "consortium-authority.pem").read_bytes()
    assert len(settings.peers) == 4
    gtx("gateway", "init", "entry", "--network-file", facts, "--development").done()
    entry = load(GatewaySettings, file=Path("entry/config.toml"))
    assert len(entry.public.nodes) == len(entry.oracle.nodes) == 4


def test_what_is_given_wins_over_a_networks_facts(gtx: Gtx, net: Path) -> None:
    facts = ("--network-file", net.parent / "network.json")
    public = ("node", "public", "init", "home", *facts, *LISTEN, "--development")
    gtx(*public, "--peers", "127.0.0.1:9").done()
    assert load(PublicNodeSettings, file=Path("home/config.toml")).peers == ("127.0.0.1:9",)


@pytest.mark.parametrize("text", ["", "{", '{"name": "x", "chains": {}, "gateway": ""}'])
def test_other_files_are_no_networks_facts(gtx: Gtx, net: Path, text: str) -> None:
    Path("facts.json").write_text(text)
    gtx("node", "public", "init", "home", "--network-file", "facts.json", *LISTEN).refused(
        "facts.json"
    )
    assert not Path("home").exists()
