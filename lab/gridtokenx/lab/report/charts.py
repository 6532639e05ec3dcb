"""What many runs have in common: distributions, and how they depend on the size of the chain."""

from collections.abc import Sequence
from typing import Final

from gridtokenx.lab.report.svg import box, drawing, path, rule, text, ticks
from gridtokenx.lab.sim.outcome import Outcome

WIDTH: Final = 540.0
HEIGHT: Final = 250.0
_LEFT: Final = 52.0
_RIGHT: Final = 16.0
_TOP: Final = 26.0
_BOTTOM: Final = 44.0
_SERIES: Final = 6


def distribution(title: str, named: Sequence[tuple[str, Sequence[int]]], unit: str = "ms") -> str:
    """Which share of the runs had at most so much: one line per record, ascending values."""
    most = max((values[-1] for _, values in named if values), default=1) or 1
    parts = [text(_LEFT, 16, title, "label"), *_frame(most, unit)]
    for number, (name, values) in enumerate(named):
        points = [(_x(0, most), _y(0))]
        for count, value in enumerate(values, 1):
            points.append((_x(value, most), points[-1][1]))
            points.append((_x(value, most), _y(count / len(values))))
        points.append((_x(most, most), points[-1][1]))
        parts.append(path(points, f"line series{number % _SERIES}"))
        if len(named) > 1:
            parts.append(_key(number, name))
    return drawing(WIDTH, HEIGHT, parts, title)


def _key(number: int, name: str) -> str:
    y = HEIGHT - _BOTTOM - 14 - 16 * number
    line = box(WIDTH - 170, y - 5, 14, 4, f"series{number % _SERIES} fill")
    return line + text(WIDTH - 150, y, name[:24], "small")


def verdicts(outcomes: Sequence[Outcome]) -> str:
    """How runs ended, by the size of the first set: one bar each."""
    sizes = sorted({outcome.replicas for outcome in outcomes})
    height = 34 + 26 * len(sizes)
    parts = [text(_LEFT, 16, "verdicts by number of replicas", "label")]
    most = max((sum(o.replicas == size for o in outcomes) for size in sizes), default=1)
    for row, size in enumerate(sizes):
        runs = [outcome for outcome in outcomes if outcome.replicas == size]
        y, x = 28 + 26 * row, _LEFT
        parts.append(text(_LEFT - 10, y + 13, str(size), "label", "end"))
        for verdict in ("ok", "voided", "violation"):
            count = sum(outcome.verdict == verdict for outcome in runs)
            width = (WIDTH - _LEFT - _RIGHT - 60) * count / most
            if count:
                parts.append(box(x, y, width, 18, f"verdict {verdict}", f"{count} {verdict}"))
            x += width
        parts.append(text(x + 8, y + 13, f"{len(runs)} runs", "small"))
    return drawing(WIDTH, height, parts, "verdicts by number of replicas")


def _frame(most: float, unit: str) -> list[str]:
    parts = []
    for tenth in (0, 25, 50, 75, 100):
        y = _y(tenth / 100)
        parts += [
            rule(_LEFT, y, WIDTH - _RIGHT, y),
            text(_LEFT - 8, y + 4, f"{tenth} %", "small", "end"),
        ]
    for value in ticks(most, 6):
        parts.append(text(_x(value, most), HEIGHT - _BOTTOM + 16, f"{value:g}", "small", "middle"))
    parts.append(text(WIDTH - _RIGHT, HEIGHT - 8, f"{unit}; share of runs", "small", "end"))
    return parts


def _x(value: float, most: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / most


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share
