"""YAML as a person would write it: keys in our order, shared parts by anchor, long texts as blocks."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

MERGE: Final = "<<"
"""Key that takes over all of another mapping."""


_BLOCK: Final = re.compile(r"^(?=\S+:|  \S+:\n    <<:)", re.MULTILINE)
"""Before a top-level key, and before a mapping right below one that takes over another."""


class Shared(dict[str, Any]):
    """A mapping that the document defines once, by name, and refers to elsewhere."""

    def __init__(self, anchor: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.anchor: Final = anchor


class Line(list[Any]):
    """A list that is written in one line."""


class _Merge(str):
    """The merge key, which YAML would otherwise quote."""

    __slots__ = ()


class _SharedNode(yaml.MappingNode):
    """A mapping that was given a name of its own as anchor."""

    name: str


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, Shared)

    def anchor_node(self, node: Any) -> None:
        super().anchor_node(node)
        if isinstance(node, _SharedNode):
            self.anchors[node] = node.name

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002 - PyYAML's
        super().increase_indent(flow, indentless=False)


def _shared(writer: _Writer, data: Shared) -> yaml.Node:
    plain = writer.represent_dict(dict(data).items())
    node = _SharedNode(plain.tag, plain.value, flow_style=plain.flow_style)
    node.name = data.anchor
    writer.represented_objects[id(data)] = node
    return node


def _line(writer: _Writer, data: Line) -> yaml.Node:
    return writer.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _text(writer: _Writer, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    return writer.represent_scalar("tag:yaml.org,2002:str", data, style=style)


def _merge(writer: _Writer, data: _Merge) -> yaml.Node:
    return writer.represent_scalar("tag:yaml.org,2002:merge", data)


_Writer.add_representer(Shared, _shared)
_Writer.add_representer(_Merge, _merge)
_Writer.add_representer(Line, _line)
_Writer.add_representer(str, _text)


def merged(shared: Shared, own: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping that takes over a shared one and adds, or replaces, its own."""
    return {_Merge(MERGE): shared, **own}


def to_yaml(documents: Iterable[Mapping[str, Any]], head: str) -> str:
    """The documents as one text that begins with a comment.

    Args:
        documents: mappings of plain values, `Shared` ones among them.
        head: lines of the comment.
    """
    documents = [dict(document) for document in documents]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.strip().splitlines())
    body = yaml.dump_all(
        documents,
        Dumper=_Writer,
        explicit_start=len(documents) > 1,
        sort_keys=False,
        width=100,
        default_flow_style=False,
        allow_unicode=True,
    )
    return comment + (body if len(documents) > 1 else _BLOCK.sub("\n", body))
