"""Distributions of sweeps as one SVG: a figure that can go into a paper as it is.

One step line per record: which share of its runs had at most so much. The SVG names commit, manifest
and number of runs of each record, so that whoever reads the figure can make it again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.report.svg import ticks
from gridtokenx.lab.sim.outcome import percentile
from gridtokenx.lab.sim.sweep import Head, read_record

WIDTH: Final = 720
HEIGHT: Final = 400
_LEFT: Final = 60
_RIGHT: Final = 20
_TOP: Final = 20
_BOTTOM: Final = 50
_LEGEND: Final = 18
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which the colour-blind can tell apart."""
MEASURES: Final = {
    "recovery_ms": "recovery after healing (ms)",
    "latency_p50_ms": "median commit latency (ms)",
    "latency_p95_ms": "95th percentile of commit latency (ms)",
    "views": "view changes",
    "blocks": "blocks",
    "transactions": "transactions committed",
}


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One record's values of one measure, ascending."""

    name: str
    head: Head
    values: tuple[int, ...]
    runs: int


def read_series(path: Path, measure: str) -> Series:
    """A record's values; runs that have none (-1) count as runs only.

    Raises:
        LocalFault: it is no record of a sweep.
    """
    head, outcomes = read_record(path)
    values = sorted(v for outcome in outcomes if (v := getattr(outcome, measure)) >= 0)
    if not values:
        raise LocalFault(f"{path}: no run has a value of {measure}")
    return Series(name=path.stem, head=head, values=tuple(values), runs=len(outcomes))


def table(series: Sequence[Series]) -> list[str]:
    """The figure in numbers: one line per record."""
    lines = [f"{'record':24} {'runs':>6} {'p50':>8} {'p95':>8} {'max':>8}"]
    for one in series:
        values = list(one.values)
        numbers = [percentile(values, 50), percentile(values, 95), values[-1]]
        lines.append(f"{one.name:24} {one.runs:6d} " + " ".join(f"{n:8d}" for n in numbers))
    return lines


def draw(series: Sequence[Series], measure: str) -> str:
    """The SVG."""
    most = max(1, *(one.values[-1] for one in series))
    height = HEIGHT + _LEGEND * len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_axes(most, MEASURES[measure]),
    ]
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _steps(one, most))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(_text(_LEFT, HEIGHT + _LEGEND * number + 8, _caption(one), colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _caption(one: Series) -> str:
    return f"{one.name}: {one.runs} runs, commit {one.head.commit}, manifest {one.head.manifest}"


def _x(value: float, most: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / most


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share


def _steps(one: Series, most: int) -> list[tuple[float, float]]:
    points = [(_x(0, most), _y(0))]
    for count, value in enumerate(one.values, 1):
        points.append((_x(value, most), points[-1][1]))
        points.append((_x(value, most), _y(count / one.runs)))
    return [*points, (_x(most, most), points[-1][1])]


def _axes(most: int, label: str) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>']
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tenth * 10} %", anchor="end"))
    for value in ticks(most):
        x = _x(value, most)
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="black"/>')
        parts.append(_text(x, bottom + 18, f"{value:.0f}", anchor="middle"))
    parts.append(
        _text((_LEFT + right) / 2, bottom + 38, f"{label}, share of runs", anchor="middle")
    )
    return parts


def _text(x: float, y: float, text: str, colour: str = "black", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
