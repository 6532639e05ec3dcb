"""A run of real processes as one self-contained page: its faults, what they cost, and the verdict."""

from html import escape

from gridtokenx.lab.chaos.manifest import Manifest, dump
from gridtokenx.lab.chaos.outcome import FaultOutcome, Outcome
from gridtokenx.lab.report.page import timeline
from gridtokenx.lab.report.pieces import document, footer, header, table, tiles
from gridtokenx.lab.report.timeline import Timeline
from gridtokenx.lab.sim.history import History

_HEAD = (
    "fault", "what", "from", "for", "went on after", "bound", "level after its end", "bound", "views",
)  # fmt: skip


def page(manifest: Manifest, outcome: Outcome, history: History) -> str:
    """One run."""
    name = f"{outcome.name}, seed {outcome.seed}"
    rows = [_row(fault) for fault in outcome.faults]
    parts = [
        header(name, manifest.about or "A chain of real replicas under faults."),
        tiles(_tiles(outcome)),
        *(
            f'<p class="note"><b>{escape(found.checker)}</b> <code>{escape(found.detail)}</code></p>'
            for found in outcome.findings
        ),
        *(f'<p class="note voided">Not promised: {escape(each)}</p>' for each in outcome.voided),
        *timeline(Timeline(history, name, None, "seconds")),
        "<h2>Each fault</h2>",
        f'<div class="card">{table(_HEAD, rows)}</div>',
        "<h2>Everything that was drawn</h2>",
        (
            '<div class="card"><details><summary>The resolved manifest: <code>gtx fault run</code>'
            f" repeats it</summary><pre>{escape(dump(manifest))}</pre></details></div>"
        ),
        footer(f"commit {outcome.commit}", "gtx fault"),
    ]
    return document(name, parts)


def _tiles(outcome: Outcome) -> list[tuple[str, str, str]]:
    kind = {"ok": "good", "violation": "bad"}.get(outcome.verdict, "warn")
    level = [fault.level_ms for fault in outcome.faults if fault.level_ms is not None]
    return [
        (kind, outcome.verdict, "verdict"),
        ("", str(outcome.replicas), "real replicas"),
        ("", str(outcome.blocks), "blocks"),
        ("", str(outcome.transactions), "transactions acknowledged"),
        ("", _seconds(outcome.latency_p50_ms), "latency, median"),
        ("", _seconds(outcome.latency_p95_ms), "latency, 95 %"),
        ("", _seconds(max(level, default=None)), "longest recovery"),
        ("", _seconds(outcome.longest_pause_ms), "longest pause between blocks"),
    ]


def _row(fault: FaultOutcome) -> list[str]:
    return [
        str(fault.number),
        fault.what,
        _seconds(fault.began_ms),
        _seconds(fault.ended_ms - fault.began_ms),
        _seconds(fault.went_on_ms),
        "not promised" if fault.went_on_bound_ms is None else _seconds(fault.went_on_bound_ms),
        _seconds(fault.level_ms),
        _seconds(fault.level_bound_ms),
        str(fault.views),
    ]


def _seconds(value_ms: int | None) -> str:
    return "never" if value_ms is None or value_ms < 0 else f"{value_ms / 1_000:.1f} s"
