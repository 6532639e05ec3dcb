"""One run over its virtual time: faults, views, blocks, latency, throughput, one below the other.

Law of the file: **one time axis for everything**, so that an effect is seen below its cause.
"""

from collections.abc import Iterator
from typing import Final

from gridtokenx.lab.report.svg import Point, box, dot, drawing, path, rule, seconds, text, ticks
from gridtokenx.lab.sim.history import Band, BlockPoint, History

WIDTH: Final = 1120.0
_LEFT: Final = 176.0
_RIGHT: Final = 18.0
_TOP: Final = 30.0
_LANE: Final = 15.0
_GAP: Final = 30.0
_CHART: Final = 120.0
_MOST_LANES: Final = 40
_BUCKETS: Final = 60
FAMILIES: Final = {
    "down": ("crash", "pause", "disk-full", "failed-sync", "bit-flip"),
    "network": (
        "partition", "delay", "loss", "duplicate", "reorder", "bandwidth", "round-partition",
        "view-partition",
    ),
    "clock": ("clock-offset", "clock-drift", "clock-jump"),
    "disk": ("slow-disk",),
    "byzantine": ("behave", "round-mutation", "wipe", "lost-sync", "torn-write"),
}  # fmt: skip
"""What a fault costs, by the table in `lab/faults.py`; each has a colour of its own."""
_FAMILY: Final = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}


class Timeline:
    """Draws one run.

    Args:
        history: what happened.
        name: of the run.
        broken: when a promise broke, and which; None: none did.
        axis: what the time is counted in.
    """

    def __init__(
        self,
        history: History,
        name: str,
        broken: tuple[int, str] | None = None,
        axis: str = "virtual seconds",
    ) -> None:
        self._history = history
        self._name = name
        self._broken = broken
        self._axis_name = axis
        self.kinds = frozenset(band.kind for band in history.bands)
        """Of the faults that are shown."""
        self._end_ms = max(1, history.ended_ms)
        self._bands = list(history.bands)[:_MOST_LANES]
        self._chains = list(dict.fromkeys(block.chain for block in history.blocks)) or [""]
        self._y = _TOP
        self._marks: list[tuple[float, float]] = []

    def draw(self) -> str:
        """The SVG."""
        lanes = [*self._faults(), *self._views()]
        charts = [
            *self._latency(),
            *self._throughput(),
            *self._heights(),
        ]
        bottom = self._y
        parts = [*self._axis(bottom), *self._shades(bottom), *lanes, *charts]
        parts += self._moments(bottom)
        return drawing(WIDTH, bottom + 34, parts, f"timeline of {self._name}")

    def _x(self, at_ms: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(at_ms, self._end_ms) / self._end_ms

    # -- lanes -------------------------------------------------------------------------------------

    def _faults(self) -> Iterator[str]:
        for band in self._bands:
            yield from self._band(band)
            self._y += _LANE
        left_out = len(self._history.bands) - len(self._bands)
        if left_out:
            yield text(_LEFT - 10, self._y + 10, f"and {left_out} more", "small", "end")
            self._y += _LANE

    def _band(self, band: Band) -> Iterator[str]:
        ends_ms = self._end_ms if band.ends_ms is None else band.ends_ms
        left, width = self._x(band.starts_ms), self._x(ends_ms) - self._x(band.starts_ms)
        family = _FAMILY.get(band.kind, "network")
        title = (
            f"fault {band.number}: {band.about}, {seconds(band.starts_ms)} to {seconds(ends_ms)}"
        )
        yield text(_LEFT - 10, self._y + 10, _short(band.about), "small", "end")
        yield box(left, self._y + 2, max(2.0, width), _LANE - 4, f"band {family}", title)

    def _shades(self, bottom: float) -> Iterator[str]:
        """What lasts less than half of the run is seen behind the charts too."""
        top = _TOP + _LANE * len(self._bands) + 8
        for band in self._bands:
            ends_ms = self._end_ms if band.ends_ms is None else band.ends_ms
            if ends_ms - band.starts_ms < self._end_ms / 2:
                left, width = self._x(band.starts_ms), self._x(ends_ms) - self._x(band.starts_ms)
                family = _FAMILY.get(band.kind, "network")
                yield box(left, top, max(1.0, width), bottom - top, f"shade {family}")

    def _views(self) -> Iterator[str]:
        """Who leads: one shade per view, one row for each change of the set too."""
        self._y += 8
        points = self._history.views
        name = "set / view" if any(point.set_id for point in points) else "view"
        if self._chains != [""]:
            name = f"consortium {name}"
        yield text(_LEFT - 10, self._y + 12, name, "label", "end")
        starts = [0, *(point.at_ms for point in points), self._end_ms]
        names = [(0, 0), *((point.set_id, point.view) for point in points)]
        for number, (set_id, view) in enumerate(names):
            left, right = self._x(starts[number]), self._x(starts[number + 1])
            about = f"view {view}" + (f" of set {set_id}" if set_id else "")
            shade = "view odd" if number % 2 else "view even"
            yield box(
                left, self._y, right - left, 16, shade, f"{about}, from {seconds(starts[number])}"
            )
            name = f"{set_id} / {view}" if any(each.set_id for each in points) else str(view)
            if right - left > 8 + 6 * len(name):
                yield text((left + right) / 2, self._y + 12, name, "small", "middle")
        self._y += 16 + _GAP

    # -- charts ------------------------------------------------------------------------------------

    def _frame(self, title: str, most: float, unit: str) -> Iterator[str]:
        """Axis and name of the chart that begins here."""
        yield text(_LEFT - 10, self._y + 10, title, "label", "end")
        for value in ticks(most, 4):
            y = self._at(value, most)
            yield rule(_LEFT, y, WIDTH - _RIGHT, y)
            yield text(_LEFT - 10, y + 4, f"{value:g} {unit}".strip(), "small", "end")

    def _at(self, value: float, most: float) -> float:
        return self._y + _CHART - (_CHART - 22) * value / max(most, 1e-9)

    def _latency(self) -> Iterator[str]:
        """Of transactions; of a network, of packets between its chains."""
        if self._history.packets:
            yield from self._packets()
            return
        full = [block for block in self._history.blocks if block.latency_ms >= 0]
        if not full and self._chains != [""]:
            return
        most = max((block.latency_ms for block in full), default=1) / 1000
        yield from self._frame("commit latency", most, "s")
        for block in full:
            title = (
                f"block {block.height} at {seconds(block.at_ms)}: {block.transactions} transactions,"
                f" median {block.latency_ms} ms"
            )
            yield dot(self._x(block.at_ms), self._at(block.latency_ms / 1000, most), "mark", title)
        self._y += _CHART + _GAP

    def _packets(self) -> Iterator[str]:
        packets = self._history.packets
        most = max(packet.latency_ms for packet in packets) / 1000
        yield from self._frame("packet latency", most, "s")
        for packet in packets:
            kind = "mark" if packet.end == "acknowledged" else "mark late"
            title = (
                f"{packet.route}, {packet.end} at {seconds(packet.at_ms)}, {packet.latency_ms} ms after it"
                " left"
            )
            yield dot(self._x(packet.at_ms), self._at(packet.latency_ms / 1000, most), kind, title)
        self._y += _CHART + _GAP

    def _throughput(self) -> Iterator[str]:
        bucket_ms = self._end_ms / _BUCKETS
        rates = [0.0] * _BUCKETS
        for block in self._history.blocks:
            place = min(_BUCKETS - 1, int(block.at_ms / bucket_ms))
            rates[place] += block.transactions * 1000 / bucket_ms
        most = max([*rates, 1.0])
        yield from self._frame("transactions", most, "/s")
        for number, rate in enumerate(rates):
            if not rate:
                continue
            left, top = self._x(number * bucket_ms), self._at(rate, most)
            width = self._x(bucket_ms) - _LEFT - 1
            title = f"{rate:.1f} per second around {seconds((number + 0.5) * bucket_ms)}"
            yield box(left, top, width, self._y + _CHART - top, "bar", title)
        self._y += _CHART + _GAP

    def _heights(self) -> Iterator[str]:
        """One line per chain."""
        blocks = self._history.blocks
        most = max((block.height for block in blocks), default=1)
        yield from self._frame("height", most, "")
        for number, chain in enumerate(self._chains):
            own = tuple(block for block in blocks if block.chain == chain)
            yield path(list(self._stairs(own, most)), f"line series{number}")
            if chain:
                left = _LEFT + 10 + 110 * number
                yield box(left, self._y + 2, 9, 9, f"fill series{number}")
                yield text(left + 14, self._y + 10, f"{chain} {own[-1].height}", "small")
        self._y += _CHART + 8

    def _stairs(self, blocks: tuple[BlockPoint, ...], most: int) -> Iterator[Point]:
        before = 0
        yield self._x(0), self._at(0, most)
        for block in blocks:
            yield self._x(block.at_ms), self._at(before, most)
            yield self._x(block.at_ms), self._at(block.height, most)
            before = block.height
        yield self._x(self._end_ms), self._at(before, most)

    # -- time --------------------------------------------------------------------------------------

    def _axis(self, bottom: float) -> Iterator[str]:
        for value in ticks(self._end_ms / 1000, 10):
            x = self._x(value * 1000)
            yield rule(x, _TOP - 6, x, bottom)
            yield text(x, bottom + 16, f"{value:g}", "small", "middle")
        yield text(WIDTH - _RIGHT, bottom + 30, self._axis_name, "small", "end")

    def _moments(self, bottom: float) -> Iterator[str]:
        """Where everything is healed, and where a promise broke."""
        if self._history.healed_ms >= 0:
            yield from self._moment(self._history.healed_ms, bottom, "healed", "healed")
        if self._broken is not None:
            at_ms, checker = self._broken
            yield from self._moment(at_ms, bottom, "broken", checker)

    def _moment(self, at_ms: int, bottom: float, kind: str, name: str) -> Iterator[str]:
        x = self._x(at_ms)
        side = "end" if x > WIDTH - 90 else "start"
        yield rule(x, _TOP - 12, x, bottom, f"moment {kind}")
        yield text(x + (-5 if side == "end" else 5), _TOP - 14, name, f"label {kind}", side)


def _short(about: str) -> str:
    return about if len(about) <= 27 else about[:26] + "…"
