"""Counters, gauges and histograms of one process, kept as plain numbers.

Every process counts; only one that serves HTTP pays for the Prometheus library, which turns the
numbers into the text format on request. Names get the prefix ``gtx_``, counters the suffix
``_total``, as Prometheus expects.
"""

import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client import Metric

Labels = tuple[tuple[str, str], ...]
MAX_SERIES: Final = 512
"""Label sets of one name; what comes after is counted together, so that nobody can fill memory."""
_OVERFLOW: Final[Labels] = (("series", "other"),)
BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total: float = 0.0


class Metrics:
    """All numbers of one process."""

    def __init__(self, **common: str) -> None:
        self._common = tuple(sorted(common.items()))
        self._counters: dict[str, dict[Labels, int]] = {}
        self._gauges: dict[str, dict[Labels, Callable[[], float]]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}
        self._help: dict[str, str] = {}

    def describe(self, name: str, help_: str) -> None:
        """The sentence that `/metrics` shows beside a name."""
        self._help[name] = help_

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        series = self._counters.setdefault(name, {})
        key = _key(series, labels)
        series[key] = series.get(key, 0) + amount

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Show what `read` returns whenever somebody asks."""
        self._gauges.setdefault(name, {})[tuple(sorted(labels.items()))] = read

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        series = self._histograms.setdefault(name, {})
        histogram = series.setdefault(_key(series, labels), _Histogram())
        histogram.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        histogram.total += seconds

    def value(self, name: str, **labels: str) -> int:
        """A counter's value; summed over all label sets that include `labels`."""
        wanted = set(labels.items())
        series = self._counters.get(name, {})
        return sum(number for key, number in series.items() if wanted <= set(key))

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """A counter's values by one of its labels: ``{"malformed": 3}``."""
        found: dict[str, int] = {}
        for key, number in self._counters.get(name, {}).items():
            word = dict(key).get(label, "other")
            found[word] = found.get(word, 0) + number
        return found

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - costly

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self))
        return generate_latest(registry)

    def families(self) -> "Iterator[Metric]":
        """Everything as Prometheus metric families."""
        from prometheus_client import core  # noqa: PLC0415 - costly; only processes with HTTP pay

        for name, counters in sorted(self._counters.items()):
            counter = core.CounterMetricFamily(
                f"gtx_{name}", self._text(name), labels=self._names(counters)
            )
            for key, number in counters.items():
                counter.add_metric(self._values(counters, key), number)
            yield counter
        for name, gauges in sorted(self._gauges.items()):
            gauge = core.GaugeMetricFamily(
                f"gtx_{name}", self._text(name), labels=self._names(gauges)
            )
            for key, read in gauges.items():
                gauge.add_metric(self._values(gauges, key), read())
            yield gauge
        for name, histograms in sorted(self._histograms.items()):
            family = core.HistogramMetricFamily(
                f"gtx_{name}_seconds", self._text(name), labels=self._names(histograms)
            )
            for key, histogram in histograms.items():
                buckets = list(_cumulative(histogram))
                family.add_metric(self._values(histograms, key), buckets, histogram.total)
            yield family

    def _text(self, name: str) -> str:
        return self._help.get(name, name.replace("_", " "))

    def _names(self, series: Iterable[Labels]) -> list[str]:
        own = {name for key in series for name, _ in key}
        return [name for name, _ in self._common] + sorted(own)

    def _values(self, series: Iterable[Labels], key: Labels) -> list[str]:
        values = {**dict(self._common), **dict(key)}
        return [values.get(name, "") for name in self._names(series)]


class _Collector:
    """What a Prometheus registry asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> "Iterator[Metric]":
        return self._metrics.families()


def _key(series: Collection[Labels], labels: dict[str, str]) -> Labels:
    key = tuple(sorted(labels.items()))
    return key if key in series or len(series) < MAX_SERIES else _OVERFLOW


def _cumulative(histogram: _Histogram) -> Iterator[tuple[str, float]]:
    running = 0
    for bound, number in zip((*BUCKETS_S, float("inf")), histogram.counts, strict=True):
        running += number
        yield ("+Inf" if bound == float("inf") else repr(bound)), running
