"""`docs/metrics.md` names every number: one row for each, with its kind and labels, and no other."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
FOLDERS = ("nodes", "bridge", "oracle", "devices", "lab")
KINDS = {"count": "counter", "gauge": "gauge", "observe": "histogram"}
SUFFIX = {"counter": "_total", "gauge": "", "histogram": "_seconds"}
PARAMETERS = {"amount", "read", "seconds", "self"}
"""Of the methods themselves; every other keyword is a label."""
ROW = re.compile(r"^\| `gtx_([a-z0-9_]+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$")
Numbers = dict[tuple[str, str], set[str]]
"""(name in Prometheus without `gtx_`, kind) -> labels."""


@functools.cache
def written_in_code() -> Numbers:
    """What the code counts, shows and observes."""
    found: Numbers = defaultdict(set)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for call in calls(ast.parse(text)) if "metrics" in text else ():
                assert isinstance(call.func, ast.Attribute)
                kind = KINDS[call.func.attr]
                labels = {each.arg for each in call.keywords if each.arg} - PARAMETERS
                for name in names(call.args[0]):
                    found[name + SUFFIX[kind], kind] |= labels
    return found


def calls(module: ast.Module) -> Iterator[ast.Call]:
    """Calls of `Metrics`' methods, whatever the object is called: `..._metrics.count(...)`."""
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr in KINDS and ast.unparse(node.func.value).endswith("metrics"):
            yield node


def names(argument: ast.expr) -> list[str]:
    """The name that is given, or both of a choice."""
    if isinstance(argument, ast.IfExp):
        return [*names(argument.body), *names(argument.orelse)]
    assert isinstance(argument, ast.Constant), f"a name must be written out: {ast.dump(argument)}"
    return [str(argument.value)]


@functools.cache
def written_on_page() -> Numbers:
    """Every row of the page's tables."""
    rows = [ROW.match(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {
        (match[1], match[2]): set(re.findall(r"`([a-z_]+)`", match[3])) for match in rows if match
    }


def test_each_number_has_a_row() -> None:
    missing = written_in_code().keys() - written_on_page().keys()
    rows = "\n".join(f"| `gtx_{name}` | {kind} | | what it means |" for name, kind in missing)
    assert not missing, f"add to the fitting table of docs/metrics.md:\n{rows}"


def test_each_row_has_a_number() -> None:
    stale = written_on_page().keys() - written_in_code().keys()
    assert not stale, f"correct or remove in docs/metrics.md, nothing shows this: {sorted(stale)}"


def test_labels_are_named() -> None:
    page = written_on_page()
    wrong = {n: labels for n, labels in written_in_code().items() if page.get(n) != labels}
    assert not wrong, f"correct the labels in docs/metrics.md: {wrong}"
