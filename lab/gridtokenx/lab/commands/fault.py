"""`gtx fault`: run a chain of real replicas, do to it what a manifest says, and judge what it did."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve
from gridtokenx.lab.chaos import control
from gridtokenx.lab.chaos.manifest import KINDS, Manifest, dump, load, parse, resolve
from gridtokenx.lab.chaos.outcome import NOTHING, FaultOutcome, Outcome
from gridtokenx.lab.chaos.page import page
from gridtokenx.lab.chaos.replica import LabReplicaSettings, run_lab_replica
from gridtokenx.lab.chaos.run import CONTROL, encode, execute
from gridtokenx.lab.chaos.wire import Ask
from gridtokenx.lab.files import check_outputs, write
from gridtokenx.lab.sim.execute import commit
from gridtokenx.lab.sim.outcome import shown_ms
from gridtokenx.lab.sim.sweep import GREATEST_SEED

LISTS: Final = frozenset({"nodes", "senders", "receivers", "messages", "victims"})
KEPT: Final = ("run.toml", "outcome.json", "timeline.jsonl", "report.html")
HOME = click.argument(
    "home", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="HOME"
)


@click.group()
def command() -> None:
    """Faults in real processes: replicas over TLS and LMDB, killed, stopped, cut off and turned.

    The words are those of `gtx sim`; what is done is seeded, what comes of it is up to the machine.
    """


@command.command()
@click.argument(
    "manifest_path", metavar="[MANIFEST]", required=False, type=click.Path(path_type=Path)
)
@click.option("--seed", type=click.IntRange(0, GREATEST_SEED), default=0, show_default=True)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="An empty directory for the chain, which stays.  [default: a temporary one, which stays only if"
    " something went wrong]",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Keep what was found here."
)
@click.option("--quiet", is_flag=True, help="No timeline.")
def run(
    manifest_path: Path | None, seed: int, home: Path | None, out: Path | None, *, quiet: bool
) -> int:
    """Bring a chain up, put it under load and faults, stop it, and judge every promise.

    Prints seed, commit and everything that was drawn before it starts, then the timeline, then a line
    for each fault, then the verdict; exit code 1 if a promise was broken, or nothing was shown.
    Without MANIFEST four replicas
    run until Ctrl-C, for faults that you add by hand (`gtx fault add`). Ctrl-C ends any run early and
    judges what there is; nothing is left running. With --out it keeps run.toml, outcome.json,
    timeline.jsonl and report.html.
    """
    manifest = OPEN_END if manifest_path is None else load(manifest_path)
    resolved = resolve(manifest, seed)
    check_outputs(*(out / name for name in KEPT if out is not None))
    click.echo(f"seed {resolved.seed}, commit {commit()}")
    click.echo(dump(resolved).rstrip())
    click.echo("")
    timeline: list[tuple[int, str]] = []

    def note(at_ms: int, line: str) -> None:
        timeline.append((at_ms, line))
        if not quiet:
            click.echo(f"{at_ms / 1000:10.3f} s  {line}")

    directory = (
        home.resolve() if home is not None else Path(tempfile.mkdtemp(prefix="gtx-fault-home-"))
    )
    kept = True
    try:
        outcome, history = execute(resolved, directory, note)
        kept = outcome.failed
    finally:
        if home is None and kept:
            click.echo(f"what there is of the chain is left in {directory}")
        elif home is None:
            shutil.rmtree(directory, ignore_errors=True)
    for line in told(outcome):
        click.echo(line)
    if out is not None:
        _keep(out, resolved, outcome, timeline, page(resolved, outcome, history))
    return 1 if outcome.failed or outcome.verdict == NOTHING else 0


OPEN_END: Final[Manifest] = parse('name = "by-hand"\n[safety]\nduration_ms = 0\n')
"""Without a schedule and without an end."""


@command.command("list")
@HOME
def list_(home: Path) -> None:
    """Show what is wrong with the running chain of HOME, by number."""
    _ask(home, Ask("list"))


@command.command()
@HOME
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
def add(home: Path, kind: str, values: tuple[str, ...]) -> None:
    """Begin a fault in the running chain of HOME, now.

    Keys are those of a manifest's [[fault]]; lists are separated by commas. It lasts for_ms, or until it
    is healed.

    \b
    gtx fault add HOME crash nodes=leader for_ms=5000
    gtx fault add HOME partition shape=halves nodes=0,1
    gtx fault add HOME behave node=leader behaviour=equivocate
    """  # noqa: D301 - click looks for the character
    _ask(home, Ask("add", fault=_as_toml(kind, values)))


@command.command()
@HOME
@click.argument("number", type=click.IntRange(min=1), required=False)
def heal(home: Path, number: int | None) -> None:
    """End a fault of the running chain of HOME, by its number; all of them without one."""
    _ask(home, Ask("heal", number=number or 0))


@command.command(hidden=True)
@settings_options(LabReplicaSettings)
def replica(settings: LabReplicaSettings) -> int:
    """Run a replica of `gtx fault run`, which starts it: it ends with its runner."""
    return serve(lambda: run_lab_replica(settings))


# -- asking ----------------------------------------------------------------------------------------


def _ask(home: Path, question: Ask) -> None:
    path = home / CONTROL
    try:
        socket = Path(path.read_text(encoding="utf-8").strip())
    except OSError:
        raise LocalFault(f"{home}: no run of `gtx fault run --home {home}` is there now") from None
    for line in asyncio.run(control.ask(socket, question)).lines:
        click.echo(line)


def _as_toml(kind: str, values: tuple[str, ...]) -> str:
    lines = ["[[fault]]", f'kind = "{kind}"']
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text!r} is no KEY=VALUE")
        shown = ", ".join(map(_value, value.split(","))) if key in LISTS else _value(value)
        lines.append(f"{key} = [{shown}]" if key in LISTS else f"{key} = {shown}")
    toml = "\n".join(lines)
    parse(toml, "fault")  # what is wrong with it is told without asking
    return toml


def _value(text: str) -> str:
    try:
        float(text)
    except ValueError:
        return f'"{text}"'
    return text


# -- saying ----------------------------------------------------------------------------------------


def _why(outcome: Outcome) -> str:
    reasons = [f"{count} {reason}" for reason, count in sorted(outcome.unanswered_why.items())]
    return f" ({', '.join(reasons)})" if reasons else ""


def told(outcome: Outcome) -> list[str]:
    """An outcome for people."""
    seconds = outcome.duration_ms / 1_000
    lines = [_row(fault) for fault in outcome.faults]
    lines.append(
        f"{outcome.blocks} blocks, {outcome.transactions} transactions acknowledged (latency p50"
        f" {shown_ms(outcome.latency_p50_ms)}, p95 {shown_ms(outcome.latency_p95_ms)}), {outcome.unanswered}"
        f" unanswered{_why(outcome)}, {outcome.views} view changes in {seconds:.0f} s"
    )
    lines.append(
        f"longest pause between blocks {outcome.longest_pause_ms} ms; replicas took"
        f" {outcome.cpu_s / max(1.0, seconds):.2f} core, the largest {outcome.memory_kib / 1024:.0f}"
        f" MiB (growth without its store {outcome.memory_growth_kib / 1024:.1f} MiB); the machine's load was"
        f" {outcome.load_average}"
    )
    if outcome.byzantine:
        lines.append(f"Byzantine: {', '.join(f'replica {each}' for each in outcome.byzantine)}")
    if not outcome.complete:
        lines.append("ended early: recovery was not judged")
    lines += [f"not promised: {line}" for line in outcome.voided]
    lines += [f"{finding.checker}: {finding.detail}" for finding in outcome.findings]
    lines.append(f"verdict: {outcome.verdict}")
    return lines


def _row(fault: FaultOutcome) -> str:
    went_on = _measured(fault.went_on_ms, fault.went_on_bound_ms)
    level = _measured(fault.level_ms, fault.level_bound_ms)
    return (
        f"{fault.number:3d}  {fault.began_ms / 1000:7.1f} s for"
        f" {(fault.ended_ms - fault.began_ms) / 1000:4.1f} s  {fault.what:44}"
        f"  went on after {went_on}, level {level} after its end"
    )


def _measured(value_ms: int | None, bound_ms: int | None) -> str:
    value = "never" if value_ms is None else f"{value_ms / 1000:.1f} s"
    return value if bound_ms is None else f"{value} (bound {bound_ms / 1000:.0f} s)"


def _keep(
    directory: Path,
    manifest: Manifest,
    outcome: Outcome,
    timeline: list[tuple[int, str]],
    report: str,
) -> None:
    lines = [msgspec.json.encode({"at_ms": at_ms, "what": what}) for at_ms, what in timeline]
    as_lines = "".join(line.decode() + "\n" for line in lines)
    texts = (dump(manifest), encode(outcome).decode(), as_lines, report)
    for name, text in zip(KEPT, texts, strict=True):
        write(directory / name, text)
    click.echo(f"kept in {directory}: {', '.join(KEPT)}")
