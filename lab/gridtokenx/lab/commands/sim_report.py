"""`gtx sim report`: what sweeps showed, as a page for people and as files for programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.files import check_outputs, save
from gridtokenx.lab.report.files import as_json, as_junit, check_table, write_table
from gridtokenx.lab.report.page import Swept, Told, run_page, sweep_page
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.execute import commit, tell
from gridtokenx.lab.sim.manifest import parse
from gridtokenx.lab.sim.outcome import Outcome
from gridtokenx.lab.sim.sweep import read_record

FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command("report")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True)
@click.option("--json", "json_path", type=FILE, help="Everything, for programs.")
@click.option("--junit", "junit_path", type=FILE, help="JUnit XML: one suite per record.")
@click.option("--table", "table_path", type=FILE, help="One row per run: .parquet or .jsonl.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the first record: the run to draw.")
@click.option("--no-run", is_flag=True, help="Draw no single run.")
def report(
    records: tuple[Path, ...],
    out: Path,
    json_path: Path | None,
    junit_path: Path | None,
    table_path: Path | None,
    seed: int | None,
    *,
    no_run: bool,
) -> None:
    """Make a page of the records of one or more sweeps (`gtx sim sweep --record`).

    The page needs nothing else, not even a network: numbers, distributions, violations, and the
    timeline of one run, which is told again from its record: the first violation, or the slowest
    recovery if there is none (or --seed).
    """
    check_outputs(out, json_path, junit_path, table_path, inputs=records)
    if table_path is not None:
        check_table(table_path)
    swept = [_read(path) for path in records]
    told, why = (None, "") if no_run else _tell_one(swept[0], seed)
    save(out, lambda path: path.write_text(sweep_page(swept, told, why), encoding="utf-8"))
    if json_path is not None:
        save(json_path, lambda path: path.write_bytes(as_json(swept)))
    if junit_path is not None:
        save(junit_path, lambda path: path.write_bytes(as_junit(swept)))
    if table_path is not None:
        save(table_path, lambda path: write_table(path, swept))


def save_run(path: Path, told: Told) -> None:
    """Write the page of one run."""
    save(path, lambda where: where.write_text(run_page(told), encoding="utf-8"))


def _read(path: Path) -> Swept:
    head, outcomes = read_record(path)
    if not outcomes:
        raise LocalFault(f"{path}: there is no run in this record yet")
    return Swept(name=path.stem, head=head, outcomes=outcomes)


def _tell_one(swept: Swept, seed: int | None) -> tuple[Told | None, str]:
    """The run that says most, told again; None where this program cannot."""
    chosen, why = _choose(swept.outcomes, seed)
    manifest = resolve(parse(swept.head.text, f"in record {swept.name}"), chosen.seed)
    if chosen.name != manifest.name:
        click.echo(
            f"no timeline: {chosen.name} is a run of an exploration, which has many of a seed"
        )
        return None, ""
    outcome, history = tell(manifest, chosen.seed, program=chosen.commit)
    if outcome.trace != chosen.trace and chosen.commit != commit():
        click.echo(
            f"no timeline: the record is of commit {chosen.commit}, and at {commit()} seed"
            f" {chosen.seed} goes otherwise"
        )
        return None, ""
    if outcome.trace != chosen.trace:
        raise LocalFault(f"seed {chosen.seed} went otherwise than the record says: is it damaged?")
    return Told(manifest=manifest, outcome=outcome, history=history), why


def _choose(outcomes: Sequence[Outcome], seed: int | None) -> tuple[Outcome, str]:
    if seed is not None:
        found = next((outcome for outcome in outcomes if outcome.seed == seed), None)
        if found is None:
            raise LocalFault(f"seed {seed} is not in the record")
        return found, "The chosen run"
    failed = next((outcome for outcome in outcomes if outcome.failed), None)
    if failed is not None:
        return failed, "The first violation"
    return max(outcomes, key=lambda outcome: outcome.recovery_ms), "The slowest recovery"
