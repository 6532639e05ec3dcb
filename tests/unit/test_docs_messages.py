"""`docs/messages.md` names every message: one row for each struct that carries a tag."""

import ast
import functools
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gridtokenx.core.codec import Wire

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "messages.md"
FOLDERS = ("nodes", "bridge", "oracle", "devices")
PACKAGES = (
    "core",
    "ledger",
    "finality",
    "interchain",
    "pbft",
    "public",
    "consortium",
    "host",
    "bridge.relayer",
    "oracle.chain",
    "devices.models",
)
"""What can be imported everywhere; the rest of the tree is read as text only."""
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \|.*\| `([^`]+)` \|$")


class Message(NamedTuple):
    """A tagged struct, or the row that names it."""

    tag: str
    struct: str
    file: str
    """Below the folder's `gridtokenx/`, as in an import."""

    @property
    def row(self) -> str:
        """What its row looks like."""
        return f"| `{self.tag}` | `{self.struct}` | from | to | sub-protocol | `{self.file}` |"


@functools.cache
def written_in_code() -> list[Message]:
    """Every class of the four folders that is declared with ``tag=``."""
    return [
        Message(tag, struct, str(path.relative_to(ROOT / folder / "gridtokenx")))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "tag=" in (source := path.read_text(encoding="utf-8"))
        for tag, struct in tagged_classes(ast.parse(source))
    ]


def tagged_classes(module: ast.Module) -> Iterator[tuple[str, str]]:
    """(tag, class name) of each class that is declared with a tag."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            for keyword in node.keywords:
                if keyword.arg == "tag" and isinstance(keyword.value, ast.Constant):
                    yield str(keyword.value.value), node.name


def written_on_page() -> list[Message]:
    """Every row of the page's tables."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [Message(*match.groups()) for line in lines if (match := ROW.match(line))]


def test_each_message_has_a_row() -> None:
    missing = set(written_in_code()) - set(written_on_page())
    rows = "\n".join(message.row for message in sorted(missing))
    assert not missing, f"add to the fitting table of docs/messages.md:\n{rows}"


def test_each_row_has_a_message() -> None:
    stale = set(written_on_page()) - set(written_in_code())
    rows = "\n".join(message.row for message in sorted(stale))
    assert not stale, f"correct or remove in docs/messages.md, no such struct:\n{rows}"


def test_tags_are_unique() -> None:
    counts = Counter(message.tag for message in written_in_code())
    assert not [tag for tag, count in counts.items() if count > 1]


def test_no_tag_escapes_the_reading_of_the_source() -> None:
    import_all()
    structs = {struct for struct in subclasses(Wire) if struct.__struct_config__.tag is not None}
    loaded = {(str(s.__struct_config__.tag), s.__name__) for s in structs if is_ours(s)}
    assert loaded <= {(message.tag, message.struct) for message in written_in_code()}


def import_all() -> None:
    """Import every module of `PACKAGES`."""
    for name in PACKAGES:
        package = importlib.import_module(f"gridtokenx.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"gridtokenx.{name}."):
            importlib.import_module(module.name)


def is_ours(struct: type[Wire]) -> bool:
    """Whether a struct is the network's own, and not a simulator's or a test's."""
    package = struct.__module__
    return package.startswith("gridtokenx.") and not package.startswith("gridtokenx.lab.")


def subclasses(base: type[Wire]) -> Iterator[type[Wire]]:
    """All subclasses, at any depth."""
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)
