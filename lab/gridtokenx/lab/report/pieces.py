"""What pages are made of."""

from collections.abc import Iterable, Sequence
from html import escape

from gridtokenx.lab.report.style import STYLE


def header(title: str, about: str) -> str:
    """What a page is about."""
    return f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"


def tiles(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Numbers that come first: kind (good, bad, warn), value, name."""
    inside = "".join(
        f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for kind, value, name in numbers
    )
    return f'<section class="tiles">{inside}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{escape(each)}</{tag}>" for each in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def footer(text: str, tool: str = "gtx sim") -> str:
    """What made the page, and of what."""
    return f"<footer>{escape(tool)}, {escape(text)}</footer>"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    inside = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{inside}\n</main>\n</body>\n</html>\n"
    )
