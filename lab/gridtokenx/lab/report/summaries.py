"""The summary of a whole network (`docs/summary.md`) as tables, and as columns of a run's row."""

from collections.abc import Iterator, Mapping
from typing import Any

from gridtokenx.lab.report.pieces import table
from gridtokenx.lab.sim.outcome import Outcome


def network_tables(outcome: Outcome) -> list[str]:
    """Chains, packets, everything counted, invariants; nothing for a run of one chain."""
    summary = outcome.summary
    if summary is None:
        return []
    chains = [
        [name, *map(_shown, (chain["height"], chain["interval_p50_ms"]))]
        for name, chain in summary["chains"].items()
    ]
    packets = [
        [route, *(str(count[each]) for each in ("sent", "delivered", "refused", "timed_out"))]
        for route, count in summary["packets"].items()
    ]
    counted = [[name, _shown(value)] for name, value in flat_summary(summary, skip=_ELSEWHERE)]
    held = [[name, "held" if ok else "broken"] for name, ok in summary["invariants"].items()]
    cards = (
        table(["chain", "height", "block every, median (ms)"], chains),
        table(["packets", "sent", "delivered", "refused", "timed out"], packets),
        table(["counted", ""], counted),
        table(["invariant", ""], held),
    )
    inside = "".join(f'<div class="card">{card}</div>' for card in cards)
    return ["<h2>The network at the end</h2>", f'<div class="pair">{inside}</div>']


_ELSEWHERE = ("chains", "packets", "invariants", "network")


def flat_summary(
    summary: Mapping[str, Any], skip: tuple[str, ...] = ("network",)
) -> Iterator[tuple[str, Any]]:
    """Its numbers by dotted names, in its order."""
    for name, value in summary.items():
        if name in skip:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in flat_summary(value, ()))
        else:
            yield name, value


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
