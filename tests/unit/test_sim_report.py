"""`gtx sim report`: one page that needs nothing else, and files for programs."""

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab import cli
from gridtokenx.lab.report.svg import ticks
from gridtokenx.lab.sim.manifest import parse
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.sweep import Record, read_record

CRASH = """
name = "crash"
about = "A leader <falls>."
[workload]
transactions_per_s = 2
[safety]
duration_ms = 6000
[liveness]
bound_ms = 20000
blocks = 1
[[fault]]
kind = "crash"
nodes = ["leader"]
at_height = 2
for_ms = 2000
"""
VOID = {"meta", "br", "img", "link", "input", "hr"}


def gtx(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sim", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("record")
    (home / "crash.toml").write_text(CRASH)
    path = home / "crash.jsonl"
    arguments = ("--seeds", "0..2", "--jobs", "1", "--record", str(path))
    assert gtx("sweep", str(home / "crash.toml"), *arguments) == 0
    return path


class Page(HTMLParser):
    """Checks that every tag is closed, and collects what is fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opened and closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_needs_nothing_else_and_says_how_to_make_it_again(
    record: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "report.html"
    assert gtx("report", str(record), "--out", str(out)) == 0
    text = out.read_text()
    assert Page(text).fetched == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert "A leader &lt;falls&gt;." in text
    assert "minmax(min(420px, 100%), 1fr)" in text, "no card is wider than a narrow window"
    assert "The slowest recovery" in text
    assert "crash leader" in text
    assert "healed" in text
    assert read_record(record)[0].commit in text


def test_programs_read_the_same(record: Path, tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"runs.{kind}" for kind in ("json", "xml", "jsonl")}
    files = ("--json", str(paths["json"]), "--junit", str(paths["xml"]))
    table = ("--table", str(paths["jsonl"]), "--no-run", "--out", str(tmp_path / "page.html"))
    assert gtx("report", str(record), *files, *table) == 0
    (said,) = json.loads(paths["json"].read_text())
    assert (said["summary"]["runs"], len(said["runs"])) == (3, 3)
    assert parse(said["manifest"]).name == "crash"
    suite = ET.fromstring(paths["xml"].read_text())[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")
    rows = [json.loads(line) for line in paths["jsonl"].read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[0]["finding_checker"] == ""


def test_one_run_is_drawn(tmp_path: Path) -> None:
    manifest, out = tmp_path / "crash.toml", tmp_path / "one.html"
    manifest.write_text(CRASH)
    assert gtx("run", str(manifest), "--seed", "7", "--quiet", "--report", str(out)) == 0
    text = out.read_text()
    Page(text)
    assert "crash, seed 7" in text
    assert text.count("<svg") == 1


def test_slips_are_one_line(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("--seed", "99"): "seed 99 is not in the record",
        ("--table", str(tmp_path / "runs.csv")): "a table is named .parquet or .jsonl",
        ("--out", "/proc/none/report.html"): "cannot be written",
    }
    (tmp_path / "x.html").write_text("of before")
    for arguments, said in cases.items():
        assert gtx("report", str(record), "--out", str(tmp_path / "x.html"), *arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert gtx("report", str(tmp_path / "none.jsonl")) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert (tmp_path / "x.html").read_text() == "of before"


def test_parquet_is_refused_before_anything_where_nothing_writes_it(
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gridtokenx.lab.report.files.find_spec", lambda _: None)
    table, out = str(tmp_path / "runs.parquet"), tmp_path / "x.html"
    assert gtx("report", str(record), "--table", table, "--out", str(out)) == 2
    assert "Parquet needs pandas" in capsys.readouterr().err
    assert not out.exists()


def test_a_full_disk_leaves_the_record_whole(record: Path, tmp_path: Path) -> None:
    """Half of a line is there when the disk is full: it goes, and the fault says how to go on."""
    path = tmp_path / "kept.jsonl"
    kept = Record(path, parse(CRASH))
    outcomes = read_record(record)[1]
    kept.add(outcomes[0])
    before = path.read_bytes()
    with (
        no_file_beyond(len(before) + 100),
        pytest.raises(LocalFault, match="the 1 runs before are kept"),
    ):
        kept.add(outcomes[1])
    assert kept.outcomes.keys() == {0}
    assert path.read_bytes() == before


def test_a_record_that_a_full_disk_did_not_let_begin_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    with no_file_beyond(50), pytest.raises(LocalFault, match="cannot be written"):
        Record(path, parse(CRASH))
    assert not path.exists()
    head = whole = Record(path, parse(CRASH)) and path.read_bytes()
    for cut in (0, 1, len(whole) - 1):  # a process that was killed may leave these
        path.write_bytes(head[:cut])
        assert Record(path, parse(CRASH)).outcomes == {}
        assert path.read_bytes() == whole


def test_a_page_that_a_full_disk_does_not_take_leaves_the_one_before(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    out.write_text("before")
    with no_file_beyond(50):
        assert gtx("report", str(record), "--no-run", "--out", str(out)) == 2
    assert "page.html: cannot be written: File too large" in capsys.readouterr().err
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """A disk that is full: of what is written beyond so many bytes of a file, nothing is taken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_is_removed_meanwhile_is_missed(record: Path, tmp_path: Path) -> None:
    kept = Record(tmp_path / "kept.jsonl", parse(CRASH))
    outcomes = read_record(record)[1]
    kept.add(outcomes[0])
    (tmp_path / "kept.jsonl").unlink()
    with pytest.raises(LocalFault, match="it was removed, and 1 runs with it"):
        kept.add(outcomes[1])


def test_a_damaged_record_is_named(record: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jsonl"
    lines = record.read_bytes().split(b"\n")
    damaged.write_bytes(b"\n".join([lines[0], b'{"seed": 1}', *lines[2:]]))
    with pytest.raises(LocalFault, match="line 2: no outcome of a run"):
        read_record(damaged)
    for said, instead in ((b'"ok"', b'"violation"'), (b'"seed":', b'"seed":-9')):
        changed = lines[2].replace(said, instead)
        damaged.write_bytes(b"\n".join([*lines[:2], changed, *lines[3:]]))
        with pytest.raises(LocalFault, match="line 3: no run ends like that"):
            read_record(damaged)


def test_a_record_whose_first_line_was_changed_is_refused_by_everybody(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, (first, rest) = tmp_path / "changed.jsonl", record.read_text().split("\n", 1)
    head = json.loads(first)
    for key, said in (("commit", "line 2: a run at commit"), ("text", "the manifest in its first")):
        changed.write_text(json.dumps({**head, key: "0123456789ab"}) + "\n" + rest)
        for command in ("figure", "report"):
            out = str(tmp_path / "out")
            assert gtx(command, str(changed), "--out", out) == 2
            assert said in capsys.readouterr().err


def test_ticks_are_round_and_reach() -> None:
    for most in (0.07, 1, 1.6, 9, 10, 47, 1_234, 98_765):
        found = ticks(most, 5)
        assert found[0] == 0
        assert 2 <= len(found) <= 6
        assert most * 0.5 < found[-1] <= most * 1.000001


def test_an_outcome_is_what_a_record_keeps(record: Path) -> None:
    outcomes = read_record(record)[1]
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert [outcome.seed for outcome in outcomes] == [0, 1, 2]
