"""Reports as one self-contained HTML file: no script, no font, no picture from elsewhere.

Law of the file: **a page says how to make it again**: commit, manifest and seed of everything shown.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import msgspec

from gridtokenx.lab.report.charts import distribution, verdicts
from gridtokenx.lab.report.pieces import document, footer, header, table, tiles
from gridtokenx.lab.report.summaries import network_tables
from gridtokenx.lab.report.timeline import FAMILIES, Timeline
from gridtokenx.lab.sim.history import History
from gridtokenx.lab.sim.manifest import Manifest, dump
from gridtokenx.lab.sim.outcome import Outcome, percentile
from gridtokenx.lab.sim.sweep import Head, summary

MOST_ROWS: Final = 50
_LEGEND: Final = {
    "down": "a node is down",
    "network": "network",
    "clock": "clock",
    "disk": "disk",
    "byzantine": "counts against f",
}


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One run with its history, to be drawn."""

    manifest: Manifest
    """Resolved."""
    outcome: Outcome
    history: History


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """One record."""

    name: str
    head: Head
    outcomes: tuple[Outcome, ...]
    """By seed."""


def run_page(told: Told) -> str:
    """One run."""
    outcome = told.outcome
    parts = [
        header(f"{outcome.name}, seed {outcome.seed}", told.manifest.about),
        tiles(_run_tiles(outcome)),
        *_findings(outcome),
        *_run_body(told),
        footer(f"commit {outcome.commit}, trace {outcome.trace}"),
    ]
    return document(f"{outcome.name}, seed {outcome.seed}", parts)


def sweep_page(records: Sequence[Swept], told: Told | None, why: str) -> str:
    """One or more records.

    Args:
        records: what was swept.
        told: one of their runs, told again; None for none.
        why: that one.
    """
    outcomes = [outcome for record in records for outcome in record.outcomes]
    names = " against ".join(record.name for record in records)
    parts = [
        header(names, _about(records)),
        tiles(_sweep_tiles(outcomes)),
        "<h2>What was promised, and what happened</h2>",
        f'<div class="pair"><div class="card">{verdicts(outcomes)}</div>',
        f'<div class="card">{table(*_record_rows(records))}</div></div>',
        *_failures(outcomes),
        "<h2>Distributions</h2>",
        f'<div class="pair">{"".join(_distributions(records))}</div>',
    ]
    if told is not None:
        where = f"{told.outcome.name}, seed {told.outcome.seed}"
        parts += [f"<h2>{escape(why)}: {escape(where)}</h2>", *_findings(told.outcome)]
        parts += _run_body(told)
    commits = ", ".join(dict.fromkeys(record.head.commit for record in records))
    parts.append(footer(f"commit {commits}"))
    return document(names, parts)


# -- one run ---------------------------------------------------------------------------------------


def timeline(drawing: Timeline) -> list[str]:
    """One run over its time, with a key to the colours of its faults."""
    keys = "".join(
        f'<span><i style="background: var(--{family})"></i>{escape(_LEGEND[family])}</span>'
        for family, kinds in FAMILIES.items()
        if drawing.kinds & set(kinds)
    )
    card = f'<div class="card"><p class="legend">{keys}</p>{drawing.draw()}</div>'
    return ["<h2>Timeline</h2>", card]


def _run_body(told: Told) -> list[str]:
    finding = told.outcome.finding
    broken = None if finding is None else (finding.at_ms, finding.checker)
    return [
        *timeline(Timeline(told.history, told.outcome.name, broken)),
        *_noticed(told.outcome),
        *network_tables(told.outcome),
        "<h2>Everything that was drawn</h2>",
        (
            '<div class="card"><details><summary>The resolved manifest: <code>gtx sim replay</code>'
            f" tells it again</summary><pre>{escape(dump(told.manifest))}</pre></details></div>"
        ),
    ]


def _noticed(outcome: Outcome) -> list[str]:
    """What honest nodes refused of others, and whom they accused."""
    if not outcome.noticed:
        return []
    rows = [[reason, f"{count:,}"] for reason, count in outcome.noticed.items()]
    return [
        "<h2>What the honest refused</h2>",
        f'<div class="card">{table(["reason", "times"], rows)}</div>',
    ]


def _run_tiles(outcome: Outcome) -> list[tuple[str, str, str]]:
    what = "packet" if outcome.summary is not None else "commit"
    return [
        (_verdict_class(outcome), outcome.verdict, "verdict"),
        ("", str(outcome.blocks), "blocks"),
        ("", str(outcome.transactions), "transactions committed"),
        ("", _ms(outcome.latency_p50_ms), f"{what} latency, median"),
        ("", _ms(outcome.latency_p95_ms), f"{what} latency, 95 %"),
        ("", _ms(outcome.recovery_ms), "recovery after healing"),
        ("", str(outcome.views), "highest view"),
        ("", f"{len(outcome.byzantine)} of {outcome.replicas}", "Byzantine nodes"),
    ]


def _findings(outcome: Outcome) -> list[str]:
    parts = []
    if outcome.finding is not None:
        found = outcome.finding
        kind = "note" if outcome.failed else "note voided"
        parts.append(
            f'<p class="{kind}"><b>{escape(found.checker)}</b> at {found.at_ms / 1000:.3f} s:'
            f" <code>{escape(found.detail)}</code></p>"
        )
    parts += [f'<p class="note voided">Not promised: {escape(each)}</p>' for each in outcome.voided]
    parts += [f'<p class="note voided">Refused: {escape(each)}</p>' for each in outcome.refused]
    return parts


# -- many runs -------------------------------------------------------------------------------------


def _sweep_tiles(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    numbers = summary(outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    voided = sum(outcome.verdict == "voided" for outcome in outcomes)
    recoveries = [outcome.recovery_ms for outcome in outcomes if outcome.recovery_ms >= 0]
    return [
        ("", f"{len(outcomes):,}", "runs"),
        ("bad" if failed else "good", f"{failed:,}", "violations"),
        ("warn" if voided else "", f"{voided:,}", "beyond the assumptions"),
        ("", f"{numbers['blocks']:,}", "blocks"),
        ("", f"{sum(len(outcome.byzantine) for outcome in outcomes):,}", "traitors"),
        ("", f"{sum(outcome.faults for outcome in outcomes):,}", "faults"),
        ("", f"{numbers['virtual_s']:,} s", "virtual time"),
        ("", _ms(percentile(recoveries, 95)), "recovery, 95 %"),
    ]


def _record_rows(records: Sequence[Swept]) -> tuple[list[str], list[list[str]]]:
    head = ["record", "runs", "ok", "violations", "recovery 50 %", "95 %", "longest"]
    rows = []
    for record in records:
        times = [outcome.recovery_ms for outcome in record.outcomes if outcome.recovery_ms >= 0]
        rows.append(
            [
                record.name,
                str(len(record.outcomes)),
                str(sum(outcome.verdict == "ok" for outcome in record.outcomes)),
                str(sum(outcome.failed for outcome in record.outcomes)),
                _ms(percentile(times, 50)),
                _ms(percentile(times, 95)),
                _ms(max(times, default=-1)),
            ]
        )
    return head, rows


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    failed = [outcome for outcome in outcomes if outcome.failed][:MOST_ROWS]
    if not failed:
        return []
    rows = []
    for outcome in failed:
        assert outcome.finding is not None, "a failed run has a finding"
        found = outcome.finding
        rows.append([str(outcome.seed), found.checker, f"{found.at_ms / 1000:.3f} s", found.detail])
    listed = table(["seed", "promise", "at", "what happened"], rows)
    return ["<h2>Violations</h2>", f'<div class="card">{listed}</div>']


def _distributions(records: Sequence[Swept]) -> Iterable[str]:
    networks = any(outcome.summary for record in records for outcome in record.outcomes)
    what = "packet" if networks else "commit"
    for measure, title in (
        ("recovery_ms", "recovery after healing"),
        ("latency_p50_ms", f"median {what} latency"),
        ("latency_p95_ms", f"95th percentile of {what} latency"),
        ("blocks", "blocks"),
    ):
        named = [
            (record.name, sorted(v for o in record.outcomes if (v := getattr(o, measure)) >= 0))
            for record in records
        ]
        unit = "ms" if measure.endswith("_ms") else "blocks"
        yield f'<div class="card">{distribution(title, named, unit)}</div>'


def _about(records: Sequence[Swept]) -> str:
    said = [record.head.about for record in records if record.head.about]
    return " ".join(dict.fromkeys(said))


# -- pieces ----------------------------------------------------------------------------------------


def _ms(value: int) -> str:
    if value < 0:
        return "none"
    return f"{value} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _verdict_class(outcome: Outcome) -> str:
    return {"ok": "good", "violation": "bad"}.get(outcome.verdict, "warn")
