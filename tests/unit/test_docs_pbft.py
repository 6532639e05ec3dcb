"""The table of rules in `docs/pbft.md` names code and tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pbft.md"
ROW = re.compile(r"^\| (?P<rule>[^|]+) \| (?P<code>[^|]+) \| `(?P<test>test_[^`|]+)` \|$")
PLACE = re.compile(r"`([\w/]+\.py)` `(\w+)`")


def rows() -> list[re.Match[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [found for line in lines if (found := ROW.match(line)) is not None]


def test_every_rule_names_code_that_exists() -> None:
    nodes = ROOT / "nodes" / "gridtokenx"
    for row in rows():
        for file, name in PLACE.findall(row["code"]):
            path = nodes / file if "/" in file else nodes / "pbft" / file
            assert f"def {name}(" in path.read_text(encoding="utf-8"), row.group()


def test_every_rule_names_a_test_that_exists() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    found = set(re.findall(r"^def (test_\w+)\(", "\n".join(texts), re.MULTILINE))
    assert len(rows()) > 20
    assert {row["test"] for row in rows()} <= found
