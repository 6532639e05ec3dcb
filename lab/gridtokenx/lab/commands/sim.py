"""`gtx sim`: run chains in virtual time, break them in every way, and tell a run again exactly."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.commands.sim_report import report, save_run
from gridtokenx.lab.files import check_outputs, save, write
from gridtokenx.lab.report.page import Told
from gridtokenx.lab.sim.draw import resolve
from gridtokenx.lab.sim.execute import commit, execute, tell
from gridtokenx.lab.sim.explore import SCOPE, count, number_of, scenarios, scope
from gridtokenx.lab.sim.figure import MEASURES, draw, read_series, table
from gridtokenx.lab.sim.manifest import LONGEST_NAME, Manifest, dump, load, parse
from gridtokenx.lab.sim.outcome import Outcome, percentile, shown_ms
from gridtokenx.lab.sim.pbft.variants import VARIANTS
from gridtokenx.lab.sim.shrink import Shrinker
from gridtokenx.lab.sim.sweep import (
    DEFAULT_JOBS,
    GREATEST_SEED,
    Record,
    parse_seeds,
    run_all,
    summary,
    sweep,
)
from gridtokenx.lab.sim.testnet.naming import VARIANTS as OF_NETWORKS

Handler = Callable[[int, FrameType | None], Any] | int | None
"""Of a signal, as the standard library knows it."""

KEPT: Final = ("run.toml", "outcome.json", "timeline.jsonl")
FIRST_FAILURES: Final = 5
STOPPED_EXIT: Final = 130
_BAR: Final = 20
"""With what stands beside it, within eighty columns: a line that wraps cannot be drawn over."""
REGRESSIONS: Final = Path("compose/regressions")
SEED: Final = click.option(
    "--seed",
    type=click.IntRange(0, GREATEST_SEED),
    help="What everything is drawn from; 0 if not given, or the one that the manifest holds.",
)
JOBS: Final = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=DEFAULT_JOBS,
    show_default=True,
    help="Processes that run seeds.",
)
MANIFEST = click.argument("manifest_path", metavar="MANIFEST", type=click.Path(path_type=Path))


@click.group()
@click.pass_context
def command(context: click.Context) -> None:
    """Run chains in virtual time: seeded, exactly repeatable, with faults and traitors.

    The same seed on the same commit is the same run, to the last bit of its trace hash.

    \b
    one run, and a picture of it  gtx sim run MANIFEST --seed 7 --report run.html
    many, resumable               gtx sim sweep MANIFEST --seeds 0..999 --record runs.jsonl
    what they showed              gtx sim report runs.jsonl --out report.html
    and as a figure               gtx sim figure runs.jsonl --of latency_p95_ms
    one that was kept, again      gtx sim replay results/run.toml
    one that failed, made small   gtx sim shrink MANIFEST --seed 123
    a small scope, all of it      gtx sim explore

    Exit code 1: a promise was broken; 2: a slip in the command or manifest; 130: stopped by Ctrl-C or
    SIGTERM. Manifests to begin with: compose/manifests/sim-*.toml; how to write one, and every command at
    work: docs/researcher-guide.md.
    """  # noqa: D301 - click looks for the character
    if threading.current_thread() is threading.main_thread():
        stop = _Stop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as in the background of a script
                before = signal.signal(signum, stop)
                context.call_on_close(partial(stop.yield_to, signum, before))


class _Stop:
    """Ctrl-C or SIGTERM: the first ends a command in good order, the next ends it at once.

    An exception would do for the first alone: a second one, raised while the first is dealt with, left
    workers in the midst of runs of minutes, and this process waiting for them. Once asked it stays until
    the process has ended: the second may come while the interpreter shuts down.
    """

    def __init__(self) -> None:
        self._asked = False

    def yield_to(self, signum: int, before: Handler) -> None:
        """A command has ended: leave the signal to who had it, unless one asked to stop."""
        if not self._asked:
            signal.signal(signum, before)

    def __call__(self, _signum: int, _frame: object) -> None:
        if self._asked:
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(STOPPED_EXIT)
        self._asked = True
        raise KeyboardInterrupt


command.add_command(report)


@command.command()
@MANIFEST
@SEED
@click.option(
    "--seconds", type=click.IntRange(1, 86_400), help="Virtual time before everything is healed."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Keep the run here.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw its timeline: one HTML file.",
)
@click.option("--quiet", is_flag=True, help="No timeline.")
def run(
    manifest_path: Path,
    seed: int | None,
    seconds: int | None,
    out: Path | None,
    report_path: Path | None,
    *,
    quiet: bool,
) -> int:
    """Run one seed of a manifest: of a chain, or of a whole network (a manifest of `gtx testnet`).

    Prints seed, commit and everything that was drawn before it starts, then the timeline, then the
    verdict. With --out it keeps run.toml (to replay), outcome.json and timeline.jsonl.
    """
    manifest = load(manifest_path)
    if seconds is not None:
        phase = msgspec.structs.replace(manifest.safety, duration_ms=1_000 * seconds)
        manifest = msgspec.structs.replace(manifest, safety=phase)
    kept = [out / name for name in KEPT] if out is not None else []
    check_outputs(report_path, *kept, inputs=[manifest_path])
    seed = _seed(manifest_path, manifest, seed)
    resolved = resolve(manifest, seed)
    _head(resolved)
    timeline: list[tuple[int, str]] = []

    def note(at_ms: int, line: str) -> None:
        timeline.append((at_ms, line))
        if not quiet:
            click.echo(f"{at_ms / 1000:10.3f} s  {line}")

    started = time.perf_counter()
    outcome, history = tell(resolved, seed, note)
    _verdict(outcome, time.perf_counter() - started)
    if report_path is not None:
        save_run(report_path, Told(manifest=resolved, outcome=outcome, history=history))
    if out is not None:
        _keep(out, resolved, outcome, timeline)
    return 1 if outcome.failed else 0


@command.command()
@MANIFEST
@click.option("--quiet", is_flag=True, help="No timeline.")
def replay(manifest_path: Path, *, quiet: bool) -> int:
    """Tell a recorded run again (run.toml of `gtx sim run --out`, or a regression).

    Exit code 1 if it ends otherwise than recorded: another trace hash, or another verdict.
    """
    recorded = load(manifest_path)
    if recorded.seed is None:
        raise LocalFault(f"{manifest_path}: no recorded run: it has no seed; use `gtx sim run`")
    _head(recorded)
    echo = None if quiet else lambda at_ms, line: click.echo(f"{at_ms / 1000:10.3f} s  {line}")
    started = time.perf_counter()
    outcome = execute(recorded, recorded.seed, echo)
    _verdict(outcome, time.perf_counter() - started)
    return 0 if _as_recorded(recorded, outcome) else 1


@command.command("sweep")
@MANIFEST
@click.option("--seeds", default="0..99", show_default=True, help="One, or a range: 0..999.")
@JOBS
@click.option(
    "--record",
    "record_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with one line per run; a sweep that was stopped goes on from there.",
)
@click.option("--stop-after", type=click.IntRange(min=1), help="End after so many violations.")
def sweep_command(
    manifest_path: Path, seeds: str, jobs: int, record_path: Path | None, stop_after: int | None
) -> int:
    """Run many seeds of a manifest; exit code 1 if any breaks a promise."""
    manifest = load(manifest_path)
    if manifest.seed is not None:
        raise LocalFault(f"{manifest_path}: a recorded run has one seed; use `gtx sim replay`")
    wanted, record = parse_seeds(seeds), Record(record_path, manifest)
    before = sum(seed in record.outcomes for seed in wanted)
    click.echo(f"{manifest.name} at commit {commit()}: seeds {seeds}, {jobs} jobs")
    if before:
        click.echo(f"{before} of {len(wanted)} runs are on record")
    started, bar = time.perf_counter(), _Bar(len(wanted), before)
    failed, stopped = 0, False
    try:
        for outcome in sweep(manifest, wanted, jobs, record):
            failed += outcome.failed
            bar.step(failed)
            if stop_after is not None and failed >= stop_after:
                break
    except KeyboardInterrupt:
        stopped = True
    bar.end()
    outcomes = [record.outcomes[seed] for seed in wanted if seed in record.outcomes]
    _summary(manifest_path, outcomes, time.perf_counter() - started)
    if stopped:
        kept = "the same command goes on from there" if record_path else "nothing is on record"
        click.echo(f"stopped after {len(outcomes)} of {len(wanted)} runs; {kept}")
        return STOPPED_EXIT
    return 1 if any(outcome.failed for outcome in outcomes) else 0


@command.command()
@MANIFEST
@SEED
@click.option("--name", help="Of the regression; made of checker and seed if not given.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=REGRESSIONS,
    show_default=True,
    help="Where the smallest run that fails is kept; one that is kept already stays where it is.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="End after so many, with the smallest so far.",
)
@click.option(
    "--minutes",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Or after so long.",
)
@click.option(
    "--other-seeds",
    type=click.IntRange(0, 100),
    default=4,
    show_default=True,
    help="Try every smaller schedule with so many more seeds.",
)
def shrink(
    manifest_path: Path,
    seed: int | None,
    name: str | None,
    into: Path,
    runs: int,
    minutes: int,
    other_seeds: int,
) -> int:
    """Find the smallest schedule that still breaks the same promise, and keep it as a regression.

    Every step is written down at once: an interrupted search goes on with `gtx sim shrink` of that file,
    which becomes smaller where it is. No other file is ever replaced.
    """
    if name is not None:
        parse(f"name = {msgspec.json.encode(name).decode()}", "of --name")
    manifest = load(manifest_path)
    seed = _seed(manifest_path, manifest, seed)
    resolved = resolve(manifest, seed)
    outcome = execute(resolved, seed)
    if not outcome.failed or outcome.finding is None:
        raise LocalFault(
            f"seed {outcome.seed} ends {outcome.verdict}: there is nothing to make smaller"
        )
    click.echo(f"{_finding(outcome)}; {len(resolved.fault)} faults")
    path = manifest_path
    if name is not None or into != REGRESSIONS or not _is_kept(manifest_path, manifest):
        path = into / f"{name or _regression_name(resolved, outcome.finding.checker)}.toml"
    if path.exists() and not path.is_dir() and not path.samefile(manifest_path):
        raise LocalFault(
            f"{path} is there already: make that one smaller (gtx sim shrink {path}), or give --name"
        )
    check_outputs(path)
    shrinker = Shrinker(resolved, outcome, runs, other_seeds=other_seeds, most_s=60 * minutes)
    bar = _Bar(runs, 0)

    def keep(done: int, best: Manifest) -> None:
        bar.clear()
        click.echo(f"{done:5d} runs: {len(best.fault)} faults, {len(best.change)} changes")
        _write_regression(path, shrinker)

    shrinker.tell = keep
    shrinker.heard = bar.at
    stopped = False
    try:
        shrinker.run()
    except KeyboardInterrupt:
        stopped = True
    bar.end()
    _write_regression(path, shrinker)
    left = len(shrinker.best.fault)
    click.echo(f"{left} of {len(resolved.fault)} faults are left: {path}")
    if stopped:
        click.echo(f"stopped; go on: gtx sim shrink {path}")
        return STOPPED_EXIT
    click.echo(f"tell it again: gtx sim replay {path}")
    return 0


def _seed(path: Path, manifest: Manifest, asked: int | None) -> int:
    """The seed to run; that of a recorded run is its own.

    Raises:
        LocalFault: another one was asked for.
    """
    if manifest.seed is None or asked in (None, manifest.seed):
        return manifest.seed or 0 if asked is None else asked
    raise LocalFault(
        f"{path}: a recorded run of seed {manifest.seed}: leave out --seed {asked}, or the seed in the"
        " manifest"
    )


def _is_kept(path: Path, manifest: Manifest) -> bool:
    """Whether a run that fails was written down here, by `shrink` or `explore`."""
    return manifest.expect == "violation" and manifest.name == path.stem


def _regression_name(manifest: Manifest, checker: str) -> str:
    """By checker and seed; what was named so goes on by its name. As long as a name may be."""
    if manifest.name.startswith(f"{checker}-") and manifest.expect:
        return manifest.name
    seed = f"-{manifest.seed}"
    return f"{checker}-{manifest.name}"[: LONGEST_NAME - len(seed)] + seed


def _write_regression(path: Path, shrinker: Shrinker) -> None:
    """The smallest so far, as a manifest of its own."""
    found = shrinker.outcome.finding
    assert found is not None, "a shrinker keeps only runs that fail"
    kept = msgspec.structs.replace(
        shrinker.best,
        name=path.stem,
        about=found.detail,
        expect="violation",
        trace="",
        commit="",
    )
    write(path, dump(kept))


@command.command()
@click.argument(
    "manifest_path", metavar="[MANIFEST]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "--views",
    type=click.IntRange(1, 3),
    default=2,
    show_default=True,
    help="How many first views are cut.",
)
@click.option(
    "--sides",
    type=click.IntRange(2, 5),
    default=2,
    show_default=True,
    help="Into how many sides at most.",
)
@JOBS
@click.option(
    "--record",
    "record_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with one line per run; an exploration that was stopped goes on from there.",
)
@click.option("--stop-after", type=click.IntRange(min=1), help="End after so many violations.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=REGRESSIONS,
    show_default=True,
    help="Where the first run that fails is kept.",
)
def explore(
    manifest_path: Path | None,
    views: int,
    sides: int,
    jobs: int,
    record_path: Path | None,
    stop_after: int | None,
    into: Path,
) -> int:
    """Run everything of a small scope: a twin of each replica, every partition of the first views.

    Without MANIFEST four real replicas. About 2,900 runs of four replicas, two views and two sides.
    """
    base = SCOPE if manifest_path is None else scope(load(manifest_path))
    check_outputs(into / "kept.toml")
    total = count(base, views, sides)
    click.echo(
        f"{base.name} at commit {commit()}: {total} runs of {base.chain.replicas} replicas, one a"
        f" twin, {views} views, {sides} sides"
    )
    about = f"every partition of {views} views into {sides} sides, with a twin of each replica"
    record = Record(record_path, base, about=about, number_of=number_of)
    before = len(record.outcomes)
    if before:
        click.echo(f"{before} of {total} runs are on record")
    started, bar, failed, stopped = time.perf_counter(), _Bar(total, before), 0, False
    todo = (m for m in scenarios(base, views, sides) if number_of(m) not in record.outcomes)
    try:
        for outcome in run_all(((manifest, manifest.seed or 0) for manifest in todo), jobs):
            record.add(outcome)
            failed += outcome.failed
            bar.step(failed)
            if stop_after is not None and failed >= stop_after:
                break
    except KeyboardInterrupt:
        stopped = True
    bar.end()
    wall_s, done = time.perf_counter() - started, len(record.outcomes)
    failures = [outcome for outcome in record.outcomes.values() if outcome.failed]
    seen = f" ({done} with those on record)" if before else ""
    click.echo(f"{done - before} runs in {wall_s:.0f} s{seen}: {len(failures)} violations")
    for outcome in failures[:FIRST_FAILURES]:
        click.echo(f"{outcome.name}: {_finding(outcome)}")
    if failures:
        _keep_scenario(base, views, sides, failures[0], into)
    if stopped:
        kept = "the same command goes on from there" if record_path else "nothing is on record"
        click.echo(f"stopped after {done} of {total} runs; {kept}")
        return STOPPED_EXIT
    return 1 if failures else 0


def _keep_scenario(base: Manifest, views: int, sides: int, outcome: Outcome, into: Path) -> None:
    """Write a failing run of an exploration down."""
    found = next(m for m in scenarios(base, views, sides) if m.name == outcome.name)
    about = outcome.finding.detail if outcome.finding is not None else ""
    kept = msgspec.structs.replace(found, about=about, expect="violation")
    path = into / f"{kept.name}.toml"
    if not path.exists():  # it may have been made smaller since
        write(path, dump(kept))
    click.echo(f"kept: {path}; make it smaller: gtx sim shrink {path}")


@command.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--of",
    "measure",
    type=click.Choice(list(MEASURES)),
    default="recovery_ms",
    show_default=True,
    help="What is measured.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("figure.svg"),
    show_default=True,
    help="Where the figure is drawn.",
)
def figure(records: tuple[Path, ...], measure: str, out: Path) -> None:
    """Draw the distribution of a measure in one or more sweeps' records, as an SVG."""
    check_outputs(out, inputs=records)
    series = [read_series(path, measure) for path in records]
    for line in table(series):
        click.echo(line)
    save(out, lambda path: path.write_text(draw(series, measure), encoding="utf-8"))


@command.command()
def variants() -> None:
    """List what may be broken on purpose in a run of one chain, or of a network (chain.variant)."""
    width = max(map(len, OF_NETWORKS))
    for name, about in OF_NETWORKS.items():
        if name:
            where = "" if name in VARIANTS else " (networks only)"
            click.echo(f"{name:{width}}  {about}{where}")


# -- saying ----------------------------------------------------------------------------------------


def _head(manifest: Manifest) -> None:
    click.echo(f"seed {manifest.seed}, commit {commit()}")
    click.echo(dump(manifest).rstrip())
    click.echo("")


def _verdict(outcome: Outcome, wall_s: float) -> None:
    speed = outcome.virtual_ms / 1000 / wall_s if wall_s else 0
    if outcome.summary is not None:
        click.echo(msgspec.json.format(msgspec.json.encode(outcome.summary), indent=2).decode())
    click.echo(
        f"{outcome.blocks} blocks, {outcome.transactions} transactions (latency p50"
        f" {shown_ms(outcome.latency_p50_ms)}, p95 {shown_ms(outcome.latency_p95_ms)}), view {outcome.views};"
        f" {outcome.virtual_ms / 1000:.1f} virtual s in {wall_s:.1f} s ({speed:.0f} times real time)"
    )
    if outcome.recovery_ms >= 0:
        click.echo(f"recovered {outcome.recovery_ms} ms after healing")
    for line in outcome.refused:
        click.echo(f"refused: {line}")
    for line in outcome.voided:
        click.echo(f"not promised: {line}")
    if outcome.finding is not None:
        click.echo(_finding(outcome))
    click.echo(f"trace {outcome.trace}")
    click.echo(f"verdict: {outcome.verdict}")


def _finding(outcome: Outcome) -> str:
    finding = outcome.finding
    if finding is None:
        return f"seed {outcome.seed}: {outcome.verdict}"
    return (
        f"seed {outcome.seed}: {finding.checker} at {finding.at_ms / 1000:.3f} s: {finding.detail}"
    )


def _summary(path: Path, outcomes: Sequence[Outcome], wall_s: float) -> None:
    numbers = summary(outcomes)
    recoveries = [outcome.recovery_ms for outcome in outcomes if outcome.recovery_ms >= 0]
    click.echo(
        f"{numbers['runs']} runs: {numbers['ok']} ok, {numbers['violations']} violations,"
        f" {numbers['voided']} voided; {numbers['blocks']} blocks, {numbers['views']} view changes,"
        f" {numbers['virtual_s']} virtual s; this took {wall_s:.0f} s"
    )
    click.echo(
        f"recovery after healing: p50 {shown_ms(percentile(recoveries, 50))}, p95"
        f" {shown_ms(percentile(recoveries, 95))}, longest {shown_ms(max(recoveries, default=-1))}"
    )
    failures = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failures[:FIRST_FAILURES]:
        click.echo(_finding(outcome))
    if failures:
        click.echo(f"make the first one smaller: gtx sim shrink {path} --seed {failures[0].seed}")


def _keep(
    directory: Path, manifest: Manifest, outcome: Outcome, timeline: list[tuple[int, str]]
) -> None:
    recorded = msgspec.structs.replace(manifest, commit=outcome.commit, trace=outcome.trace)
    told = msgspec.json.format(msgspec.json.encode(outcome), indent=2)
    lines = [msgspec.json.encode({"at_ms": at_ms, "what": what}) for at_ms, what in timeline]
    as_lines = "".join(line.decode() + "\n" for line in lines)
    texts = (dump(recorded), told.decode() + "\n", as_lines)
    for name, text in zip(KEPT, texts, strict=True):
        write(directory / name, text)
    click.echo(f"kept in {directory}: {', '.join(KEPT)}")


def _as_recorded(recorded: Manifest, outcome: Outcome) -> bool:
    """Whether a replay ended as its record says; tells what differs."""
    expected = {"ok": "ok", "violation": "violation"}.get(recorded.expect)
    if expected is not None and outcome.verdict != expected:
        click.echo(f"differs: the record expects {expected}")
        return False
    if recorded.trace and recorded.trace != outcome.trace:
        why = "the manifest was changed since"
        if recorded.commit != commit():
            why = f"it is of commit {recorded.commit or 'unknown'}, this is {commit()}"
        click.echo(f"differs: the record's trace is {recorded.trace}: {why}")
        return False
    return bool(recorded.expect or recorded.trace) or not outcome.failed


class _Bar:
    """A progress bar on standard error; only where somebody looks."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._shown = sys.stderr.isatty()
        self._started = time.perf_counter()
        self._first = done

    def step(self, failed: int) -> None:
        """One more is done."""
        self.at(self._done + 1, f"  {failed} violations")

    def at(self, done: int, note: str = "") -> None:
        """So many are done."""
        self._done = done
        if not self._shown:
            return
        filled = _BAR * self._done // max(1, self._total)
        rate = (self._done - self._first) / max(0.001, time.perf_counter() - self._started)
        left_s = (self._total - self._done) / max(0.001, rate)
        click.echo(
            f"\r[{'#' * filled}{'.' * (_BAR - filled)}] {self._done}/{self._total}"
            f"  {rate:.2f} runs/s  {left_s:.0f} s left{note}\x1b[K",
            nl=False,
            err=True,
        )

    def clear(self) -> None:
        """Make room for a line."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            click.echo("", err=True)
