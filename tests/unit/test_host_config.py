"""Settings: precedence of the four sources, messages, printing, the click decorator."""

import enum
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner

from gridtokenx.host.config import (
    ConfigError,
    Setting,
    Settings,
    explain,
    load,
    load_with_origin,
    render,
    settings_options,
)


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


class Peers(Settings):
    max_peers: Annotated[int, Setting("Most links at once.", minimum=1, maximum=1000)] = 64
    addresses: Annotated[tuple[str, ...], Setting("Peers to dial.")] = ()


class Node(Settings):
    home: Annotated[Path, Setting("Directory of this node.")]
    log: Annotated[Literal["text", "json"], Setting("Form of the log.")] = "text"
    mode: Annotated[Mode, Setting("How.")] = Mode.SAFE
    verbose: Annotated[bool, Setting("Say more.")] = False
    ratio: Annotated[float, Setting("A share.", minimum=0, maximum=1)] = 0.5
    listen: Annotated[str | None, Setting("Address.")] = None
    password: Annotated[str | None, Setting("Secret.", secret=True)] = None
    block_time_ms: Annotated[int, Setting("Time between blocks.", unit="ms", minimum=0)] = 1000
    p2p: Peers = Peers()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        'home = "data"\nblock_time_ms = 1\nratio = 1\n[p2p]\nmax_peers = 1\naddresses = ["a"]',
    )
    settings, origin = load_with_origin(
        Node,
        flags={"block_time_ms": "3"},
        environment={"GTX_BLOCK_TIME_MS": "2", "GTX_P2P_MAX_PEERS": "2", "GTX_OTHER": "x"},
        file=file,
    )
    assert settings.block_time_ms == 3
    assert settings.p2p == Peers(max_peers=2, addresses=("a",))
    assert settings.home == tmp_path / "data"  # relative to the file that says so
    assert settings.ratio == 1.0
    assert settings.mode is Mode.SAFE
    assert origin["block_time_ms"] == "--block-time-ms"
    assert origin["p2p.max_peers"] == "GTX_P2P_MAX_PEERS"
    assert origin["p2p.addresses"] == f"{file}: p2p.addresses"
    assert origin["log"] == "default"


def test_texts_are_parsed() -> None:
    settings = load(
        Node,
        flags={
            "home": "x",
            "verbose": "True",
            "p2p_addresses": "a, b",
            "mode": "fast",
            "listen": "",
            "block_time_ms": "1_500",
        },
    )
    assert settings.verbose
    assert settings.p2p.addresses == ("a", "b")
    assert settings.mode is Mode.FAST
    assert settings.listen is None
    assert settings.home == Path("x")
    assert settings.block_time_ms == 1500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"block_time_ms": "soon"}, ("--block-time-ms = 'soon' is not allowed: a whole number of "
         "at least 0, in ms")),
        ({"p2p_max_peers": "0"}, ("--p2p-max-peers = '0' is not allowed: a whole number from 1 to "
         "1000")),
        ({"ratio": "nan"}, "--ratio = 'nan' is not allowed: a number from 0 to 1"),
        ({"log": "xml"}, "--log = 'xml' is not allowed: one of text, json"),
        ({"verbose": "maybe"}, "--verbose = 'maybe' is not allowed: true or false"),
        ({"mode": "slow"}, "--mode = 'slow' is not allowed: one of fast, safe"),
    ],
)  # fmt: skip
def test_bad_values_name_source_key_value_and_what_is_allowed(
    flags: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Node, flags={"home": "x", **flags})
    assert str(caught.value) == message


def test_a_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"^home is missing: give --home, GTX_HOME or `home` in"):
        load(Node)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "home = 'x'\nblock_time = 3",
            r"c.toml: block_time is no setting here; did you mean block",
        ),
        ("home = 'x'\n[p2p]\nqqq = 3", r"c.toml: p2p.qqq is no setting here"),
        ("home = 'x'\n[zzzz]\na = 1", r"c.toml: zzzz.a is no setting here; known: block_time_ms,"),
        ("home = 'x'\nblock_time_ms = '3'", r"c.toml: block_time_ms = '3' is not allowed: a whole"),
        ("home = 'x'\nblock_time_ms = true", r"block_time_ms = True is not allowed"),
        ("home = 'x'\np2p = 3", r"c.toml: p2p is no setting here"),
        ("home = 'x'\n[p2p]\naddresses = [1]", r"p2p.addresses = \[1\] is not allowed: a list"),
        ("home = \n", r"c.toml: is not valid TOML: .*line 1"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(Node, file=write(tmp_path / "c.toml", text))
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        load(Node, file=tmp_path / "none.toml")


def test_what_is_printed_can_be_loaded(tmp_path: Path) -> None:
    flags = {"home": str(tmp_path / 'a"b\\c'), "p2p_addresses": "x,y", "password": "hush"}
    settings, origin = load_with_origin(Node, flags=flags)
    text = render(settings, origin)
    assert "hush" not in text
    again = load(Node, flags={"password": "hush"}, file=write(tmp_path / "c.toml", text))
    assert again == settings


def command() -> click.Command:
    @click.command()
    @settings_options(Node)
    def run(settings: Node) -> None:
        click.echo(f"ran with {settings.block_time_ms} {settings.verbose}")

    return run


def test_the_command_line(tmp_path: Path) -> None:
    runner = CliRunner(env={"GTX_HOME": "h"})
    assert runner.invoke(command(), []).output == "ran with 1000 False\n"
    given = ["--block-time-ms", "7", "--verbose"]
    assert runner.invoke(command(), given).output == "ran with 7 True\n"
    printed = runner.invoke(command(), ["--print-config", "--no-verbose"]).output
    assert 'home = "h"  # GTX_HOME\n' in printed
    assert "verbose = false  # --verbose\n" in printed
    assert "[p2p]\nmax_peers = 64  # default\n" in printed
    file = write(tmp_path / "c.toml", "block_time_ms = 9")
    assert runner.invoke(command(), ["--config", str(file)]).output == "ran with 9 False\n"
    failed = runner.invoke(command(), ["--log", "xml"])
    assert isinstance(failed.exception, ConfigError)


def test_help_tells_unit_bounds_default_and_variable() -> None:
    text = CliRunner().invoke(command(), ["--help"], terminal_width=300).output
    text = " ".join(text.split())
    assert "--block-time-ms N Time between blocks. [env: GTX_BLOCK_TIME_MS; a whole number" in text
    assert "of at least 0, in ms; default: 1000]" in text
    assert "--home PATH Directory of this node. [env: GTX_HOME; required]" in text
    assert "--log text|json" in text


@pytest.mark.parametrize("variable", ["GTX_LISTN", "GTX_BLOCK_TIME", "GTX_P2P_MAXPEERS"])
def test_a_variable_that_looks_like_a_slip_is_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{variable} in the environment .* did you mean GTX_"):
        load(Node, flags={"home": "x"}, environment={variable: "1"})


@pytest.mark.parametrize("variable", ["GTX_HOMES", "GTX_PASSWORD", "GTX_GATEWAY_SERVICE_HOST"])
def test_variables_of_others_are_let_be(variable: str) -> None:
    class One(Settings):
        block_time_ms: Annotated[int, Setting("Time.")] = 1

    assert load(One, environment={variable: "1"}) == One()


def test_a_variable_of_another_role_is_no_slip() -> None:
    class Other(Settings):
        keys: Annotated[str, Setting("Where.")] = "x"

    from gridtokenx.host.settings import KeyedSettings

    assert "key" in KeyedSettings.__struct_fields__
    assert load(Other, environment={"GTX_KEY": "y"}) == Other()


def test_passwords_inside_addresses_are_not_shown() -> None:
    class One(Settings):
        broker: Annotated[str, Setting("Where.")]
        peers: Annotated[tuple[str, ...], Setting("Who.")] = ()
        count: Annotated[int, Setting("How many.")] = 0

    url = "mqtts://me:hush@broker:8883"
    settings, origin = load_with_origin(One, flags={"broker": url, "peers": f"a:1,{url}"})
    text = render(settings, origin)
    assert "hush" not in text
    assert '# broker = "mqtts://me:...@broker:8883"' in text
    assert "hush" in render(settings, show_secrets=True)
    assert 'broker = "http://host:80/a@b"' in render(One(broker="http://host:80/a@b"))
    with pytest.raises(ConfigError) as caught:
        load(One, flags={"broker": "x", "count": url})
    assert "hush" not in str(caught.value)


def test_a_file_that_teaches_can_be_loaded_and_explains_every_setting(tmp_path: Path) -> None:
    text = explain(Node, {"home": "data", "p2p.addresses": ("a:1", "b:2")})
    assert load(Node, file=write(tmp_path / "c.toml", text)) == Node(
        home=tmp_path / "data", p2p=Peers(addresses=("a:1", "b:2"))
    )
    assert "# Time between blocks. (a whole number of at least 0, in ms; default: 1000)" in text
    assert "#block_time_ms = 1000\n" in text
    assert "#password =\n" in text
    assert "[p2p]\n\n# Most links at once. (a whole number from 1 to 1000; default: 64)" in text
    # Every commented line can be taken as it stands.
    live = text.replace("#password =", "").replace("#listen =", "").replace("\n#", "\n##")
    live = "\n".join(
        line.removeprefix("##") if line[:3] != "## " else line for line in live.split("\n")
    )
    assert load(Node, file=write(tmp_path / "d.toml", live)).block_time_ms == 1000


def test_flags_before_a_sub_command_are_refused() -> None:
    @click.group(invoke_without_command=True)
    @settings_options(Node)
    def role(settings: Node) -> None:
        click.echo(f"ran {settings.home}")

    @role.command()
    @click.option("--home")
    def init(home: str | None) -> None:
        click.echo(f"init {home}")

    runner = CliRunner()
    assert runner.invoke(role, ["--home", "x"]).output == "ran x\n"
    assert runner.invoke(role, ["init", "--home", "y"]).output == "init y\n"
    refused = runner.invoke(role, ["--home", "x", "init"])
    assert refused.exit_code == 2
    assert "flags come after 'init'" in refused.output
