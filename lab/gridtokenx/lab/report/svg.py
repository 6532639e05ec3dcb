"""The few shapes that charts are made of, as SVG; colours are the page's classes (`style.py`)."""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]
_STEPS = (1, 2, 5, 10)


def text(x: float, y: float, what: str, kind: str = "label", anchor: str = "start") -> str:
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(what)}</text>'
    )


def box(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """A rectangle; `title` shows under the pointer."""
    shape = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
        f' class={quoteattr(kind)} rx="{min(2.0, height / 2):.1f}"'
    )
    return f"{shape}/>" if not title else f"{shape}><title>{escape(title)}</title></rect>"


def dot(x: float, y: float, kind: str, title: str = "", radius: float = 2.8) -> str:
    """A point of a scatter."""
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class={quoteattr(kind)}'
    return f"{shape}/>" if not title else f"{shape}><title>{escape(title)}</title></circle>"


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight line."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{kind}"/>'


def path(points: Sequence[Point], kind: str) -> str:
    """A line through points."""
    where = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{where}" class={quoteattr(kind)}/>' if points else ""


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """A whole picture, as wide as its place allows."""
    inside = "\n".join(part for part in parts if part)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(label)}>\n'
        f"{inside}\n</svg>"
    )


def ticks(most: float, about: int = 6) -> list[float]:
    """Round numbers from 0 to `most`, about so many."""
    if most <= 0:
        return [0]
    power = 1.0
    while power * _STEPS[-1] * about < most:
        power *= 10
    while power * about > most:
        power /= 10
    step = next(power * each for each in _STEPS if power * each * about >= most)
    return [step * number for number in range(int(most / step + 1e-9) + 1)]


def seconds(ms: float) -> str:
    """Milliseconds as seconds, as short as can be."""
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + " s"
