"""What runs of whole networks are told as: a page, and files for programs."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from gridtokenx.lab.commands.sim import command

MANIFEST = """
name = "told"
about = "A lying relayer, a lying oracle, and a crash."
[safety]
duration_ms = 12000
[testnet.devices]
households = 4
profile_days = 1
[[fault]]
kind = "behave"
node = "relayer-0"
behaviour = "replay"
[[fault]]
kind = "behave"
node = "oracle-2"
behaviour = "false-reading"
[[fault]]
kind = "crash"
nodes = ["consortium-0"]
at_ms = 3000
for_ms = 5000
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a manifest, its record, and everything that is made of that."""
    home = tmp_path_factory.mktemp("reports")
    (home / "told.toml").write_text(MANIFEST)
    _gtx("run", home / "told.toml", "--seed", "1", "--quiet", "--report", home / "one.html")
    _gtx(
        "sweep", home / "told.toml", "--seeds", "1", "--jobs", "1", "--record", home / "told.jsonl"
    )
    _gtx(
        "report", home / "told.jsonl", "--out", home / "all.html", "--json", home / "all.json",
        "--junit", home / "all.xml", "--table", home / "rows.jsonl",
    )  # fmt: skip
    return home


def _gtx(*arguments: str | Path) -> None:
    done = CliRunner().invoke(command, list(map(str, arguments)))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", ["one.html", "all.html"])
def test_a_page_shows_the_network(home: Path, page: str) -> None:
    text = (home / page).read_text()
    for shown in ("false-reading by oracle-2", "crash consortium-0", "packet latency", "healed",
                  "What the honest refused", "bad-signature", "consortium_agreement",
                  "oracle-consortium", "consortium view"):  # fmt: skip
        assert shown in text, shown
    for chain in ("public", "consortium", "oracle"):
        assert f">{chain} " in text, "each has a line of its own"


def test_programs_read_the_same(home: Path) -> None:
    (run,) = json.loads((home / "all.json").read_bytes())[0]["runs"]
    assert run["verdict"] == "ok"
    assert run["summary"]["chains"]["public"]["height"] > 0
    assert run["noticed"]["bad-signature"] > 0
    suite = ET.fromstring((home / "all.xml").read_text().split("\n", 1)[1])[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


def test_a_table_has_a_column_for_each_number(home: Path) -> None:
    row = json.loads((home / "rows.jsonl").read_text())
    assert row["summary.chains.oracle.height"] > 0
    assert row["summary.invariants.packets_end_once"] is True
    assert row["noticed"] > 0
    assert all(not isinstance(value, dict | list) for value in row.values())
