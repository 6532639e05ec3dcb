"""How a report looks, by day and by night; nothing is fetched from anywhere."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2430; --soft: #667085; --edge: #e6e3da;
  --accent: #0072b2; --good: #2f855a; --bad: #c53030; --warn: #b7791f;
  --down: #6b7280; --network: #56b4e9; --clock: #cc79a7; --disk: #e69f00; --byzantine: #d55e00; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12161d; --card: #1a202a; --ink: #e8eaf0; --soft: #98a2b3; --edge: #2c3441;
  --accent: #56b4e9; --good: #68d391; --bad: #fc8181; --warn: #f6c768;
  --down: #9aa3b2; --network: #4a9fd0; --clock: #cc79a7; --disk: #e69f00; --byzantine: #e2682a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
header h1 { margin: 0; font-size: 30px; letter-spacing: -0.02em; }
header p { margin: 6px 0 0; color: var(--soft); max-width: 70ch; }
h2 { margin: 40px 0 12px; font-size: 18px; letter-spacing: -0.01em; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 18px 20px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 24px; }
@media (max-width: 760px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 24px; letter-spacing: -0.02em; font-variant-numeric: tabular-nums;
  line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
.good b, .verdict-ok { color: var(--good); } .bad b, .verdict-violation { color: var(--bad); }
.warn b, .verdict-voided { color: var(--warn); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 12px; }
.pair > * { min-width: 0; } h1, .tile, .note { overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--bad); padding: 2px 0 2px 12px; margin: 16px 0 0; }
.note.voided { border-color: var(--warn); } .note code { overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; color: var(--soft); font-size: 13px;
  margin: 0 0 10px; }
.legend i { display: inline-block; width: 12px; height: 8px; border-radius: 2px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; padding: 4px 14px 6px 0;
  border-bottom: 1px solid var(--edge); white-space: nowrap; }
td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--edge); vertical-align: top; }
td.number, th.number { text-align: right; } tr:last-child td { border-bottom: 0; }
code, pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); } details[open] summary { margin-bottom: 10px; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg .label { font-size: 12.5px; fill: var(--ink); font-weight: 500; }
svg .small { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--edge); stroke-width: 1; fill: none; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .mark { fill: var(--accent); fill-opacity: 0.65; } svg .mark.late { fill: var(--warn); }
 svg .bar { fill: var(--accent); fill-opacity: 0.75; }
svg .band { fill-opacity: 0.85; } svg .shade { fill-opacity: 0.09; } svg .view { fill: var(--accent); }
svg .even { fill-opacity: 0.14; } svg .odd { fill-opacity: 0.3; }
svg .down { fill: var(--down); } svg .network { fill: var(--network); } svg .clock { fill: var(--clock); }
svg .disk { fill: var(--disk); } svg .byzantine { fill: var(--byzantine); }
svg .moment { stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
svg .moment.healed { stroke: var(--good); } svg .moment.broken { stroke: var(--bad); }
svg .label.healed { fill: var(--good); } svg .label.broken { fill: var(--bad); }
svg .verdict.ok { fill: var(--good); } svg .verdict.voided { fill: var(--warn); }
svg .verdict.violation { fill: var(--bad); } svg .verdict { fill-opacity: 0.85; }
svg .series1 { stroke: #d55e00; } svg .series2 { stroke: #009e73; } svg .series3 { stroke: #cc79a7; }
svg .series4 { stroke: #e69f00; } svg .series5 { stroke: #6b7280; }
svg .fill { stroke: none; fill: var(--accent); } svg .series1.fill { fill: #d55e00; }
svg .series2.fill { fill: #009e73; } svg .series3.fill { fill: #cc79a7; }
svg .series4.fill { fill: #e69f00; } svg .series5.fill { fill: #6b7280; }
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""
