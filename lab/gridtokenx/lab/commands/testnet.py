"""`gtx testnet`: make a network on this machine, run it, look at it, stop it."""

import asyncio
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import click
import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.commands import deploy
from gridtokenx.lab.manifest import Manifest, check_manifest, load_manifest
from gridtokenx.lab.testnet.layout import Layout

if TYPE_CHECKING:
    from gridtokenx.lab.testnet.up import Outcome

DEFAULT_HOME: Final = Path(".testnet")
DOWN_S: Final = 30.0
"""How long `down` waits for a supervisor before it kills it; ten seconds are promised."""
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600}

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=DEFAULT_HOME,
    show_default=True,
    envvar="GTX_HOME",
    help="Directory of the testnet.",
)
manifest_option = click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="TOML file that describes the network; the default is the one of compose/manifests/local.toml.",
)
households_option = click.option(
    "--households", type=click.IntRange(2, 10_000), help="Households, instead of the manifest's."
)
time_scale_option = click.option(
    "--time-scale",
    type=click.IntRange(1, 3600),
    help="Grid seconds per second, instead of the manifest's (60: a half hour lasts 30 s).",
)


class Duration(click.ParamType[float]):
    """Seconds, from text such as 90, 90s, 5m or 1.5h."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse."""
        match = _DURATION.fullmatch(str(value).strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is no duration; write for example 90s, 5m or 1h", param, ctx)
        return float(match[1]) * _UNIT_S[match[2] or "s"]


@click.group()
def command() -> None:
    """Make, run, watch and stop a local testnet of three chains."""


for made in deploy.COMMANDS:
    command.add_command(made)


@command.command()
@home_option
@manifest_option
@households_option
@time_scale_option
@click.option("--fresh", is_flag=True, help="Replace a testnet that is there already.")
def init(
    home: Path,
    manifest: Path | None,
    households: int | None,
    time_scale: int | None,
    *,
    fresh: bool,
) -> None:
    """Lay out a testnet on disk: keys, certificates, genesis files, profiles, settings.

    All keys are made anew and are for development only. `gtx testnet up` does this by itself when
    there is no testnet yet.
    """
    if (home / "network.json").exists() and not fresh:
        raise LocalFault(f"{home} holds a testnet already; use --fresh to replace it")
    _make(home, _wanted(manifest, households, time_scale))
    click.echo(f"made {home}; start it with: gtx testnet up --home {home}")


@command.command()
@home_option
@manifest_option
@households_option
@time_scale_option
@click.option("--fresh", is_flag=True, help="Start over: new keys, new chains.")
@click.option(
    "--for", "duration_s", type=Duration(), help="Stop by itself after this time, like 5m."
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what happened, with the verdict on every invariant, as JSON when it stops.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the live page in a browser.")
def up(
    home: Path,
    manifest: Path | None,
    households: int | None,
    time_scale: int | None,
    duration_s: float | None,
    summary: Path | None,
    *,
    fresh: bool,
    open_page: bool,
) -> int:
    """Start every process of the testnet and watch it; Ctrl-C stops everything.

    The first start makes the testnet: keys, genesis files, household profiles. Later ones go on from
    disk at the height it had. In another terminal, `gtx testnet status` shows the same network,
    `gtx testnet down` stops it, `gtx tx` sends transactions, and the live page tells the rest.

    A process that ends is started again. The first Ctrl-C (or SIGTERM) stops everything in order,
    within some seconds; a second one ends it at once, and nothing that was acknowledged is lost.

    \b
    ./scripts/up                                   the default network, under .testnet
    ./scripts/up --fresh --households 12           another one: new keys, new chains
    ./scripts/up --for 5m --summary run.json       by itself, with a verdict on every invariant

    The exit code is 0 when all processes could be kept alive and, with --summary, every invariant
    held; 1 if not; 2 if something that was given, or is around, cannot be used.
    """  # noqa: D301 - click's mark for a paragraph that keeps its lines
    from gridtokenx.lab.testnet import up as running  # noqa: PLC0415 - only here

    if summary is not None and not summary.absolute().parent.is_dir():
        raise LocalFault(f"--summary {summary}: its directory does not exist")
    layout, is_new = _resume_or_make(home, manifest, households, time_scale, fresh=fresh)
    with running.supervisor_lock(home):
        outcome = asyncio.run(running.run(layout, duration_s, fresh=is_new, open_page=open_page))
        verdict = _write_summary(layout, outcome, summary) if summary is not None else True
    for name in outcome.processes.failed:
        click.echo(f"error: {name} could not be kept alive; see {layout.log_path(name)}", err=True)
    return 0 if verdict and not outcome.processes.failed else 1


@command.command()
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print the gateway's answer as it is.")
def status(home: Path, *, as_json: bool) -> int:
    """Show heights, price, auctions, settlements and certificates of a running testnet."""
    layout = _existing(home)
    answer = asyncio.run(_ask_gateway(layout))
    if answer is None:
        raise LocalFault(
            f"the gateway at port {layout.manifest.ports.gateway} does not answer; "
            f"start the testnet with: gtx testnet up --home {home}"
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
        return 0
    from gridtokenx.lab.testnet.status import console, picture  # noqa: PLC0415 - only here

    console().print(picture(answer, layout.gateway_url))
    return 0


@command.command()
@home_option
def down(home: Path) -> None:
    """Stop a testnet that runs elsewhere, as Ctrl-C in its own terminal would."""
    from gridtokenx.lab.testnet.up import running_supervisor  # noqa: PLC0415 - only here

    pid = running_supervisor(home)
    if pid is None:
        click.echo(f"{home}: no testnet is running")
        return
    for signum in (signal.SIGTERM, signal.SIGCONT):  # one that was suspended has to go on to stop
        _tell(pid, signum)
    if _is_gone(home, pid, DOWN_S):
        click.echo("stopped")
        return
    _tell(pid, signal.SIGKILL)  # what it started is ended by its fork server
    if not _is_gone(home, pid, DOWN_S):
        raise LocalFault(f"{home}: process {pid} cannot be stopped")
    click.echo(f"process {pid} did not stop within {DOWN_S:.0f} s, and was killed")


def _tell(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return
    except PermissionError:
        raise LocalFault(
            f"process {pid} belongs to another user; stop the testnet as that user"
        ) from None


def _is_gone(home: Path, pid: int, within_s: float) -> bool:
    from gridtokenx.lab.testnet.up import running_supervisor  # noqa: PLC0415 - only here

    deadline_s = time.monotonic() + within_s
    while running_supervisor(home) == pid:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def _wanted(manifest: Path | None, households: int | None, time_scale: int | None) -> Manifest:
    wanted = Manifest() if manifest is None else load_manifest(manifest)
    replace = msgspec.structs.replace
    if households is not None:
        wanted = replace(wanted, devices=replace(wanted.devices, households=households))
    if time_scale is not None:
        wanted = replace(wanted, time=replace(wanted.time, scale=time_scale))
    check_manifest(
        wanted, "with these flags" if manifest is None else f"{manifest} with these flags"
    )
    return wanted


def _resume_or_make(
    home: Path,
    manifest: Path | None,
    households: int | None,
    time_scale: int | None,
    *,
    fresh: bool,
) -> tuple[Layout, bool]:
    if fresh or not (home / "network.json").exists():
        return _make(home, _wanted(manifest, households, time_scale)), True
    layout = _existing(home)
    kept = layout.manifest
    asked = kept if manifest is None else load_manifest(manifest)
    for name, given, has in (
        ("--manifest", asked, kept),
        ("--households", households or kept.devices.households, kept.devices.households),
        ("--time-scale", time_scale or kept.time.scale, kept.time.scale),
    ):
        if given != has:
            raise LocalFault(
                f"{home} was made with another {name}; go on without the flag, "
                "or start over with --fresh"
            )
    return layout, False


def _existing(home: Path) -> Layout:
    if not (home / "network.json").exists():
        raise LocalFault(f"{home} holds no testnet; make one with: gtx testnet init --home {home}")
    layout = Layout(home, load_manifest(home / "manifest.toml"))
    layout.check_files()
    return layout


def _make(home: Path, manifest: Manifest) -> Layout:
    """Make a testnet beside its place, then move it there: a half-made one is never seen."""
    from gridtokenx.lab.testnet.up import running_supervisor  # noqa: PLC0415 - only here

    if home.exists() and not home.is_dir():
        raise LocalFault(f"{home} is no directory; choose another --home")
    if home.exists() and any(home.iterdir()) and not (home / "manifest.toml").exists():
        raise LocalFault(f"{home} is not empty and holds no testnet; choose another --home")
    if running_supervisor(home) is not None:
        raise LocalFault(f"{home} is running; stop it first with: gtx testnet down --home {home}")
    place = home.resolve()  # a link to a directory stays one
    partial = place.with_name(place.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        from gridtokenx.lab.testnet.initialise import initialise  # noqa: PLC0415 - imports pvlib

        initialise(Layout(partial, manifest), click.echo)
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    except OSError as error:
        raise LocalFault(
            f"{home}: cannot be made: {error.strerror or error}; choose another --home"
        ) from None
    return Layout(home, manifest)


async def _ask_gateway(layout: Layout) -> dict[str, object] | None:
    from gridtokenx.lab.testnet.status import fetch_status  # noqa: PLC0415 - only here

    async with aiohttp.ClientSession() as session:
        return await fetch_status(session, layout.gateway_url)


def _write_summary(layout: Layout, outcome: "Outcome", path: Path) -> bool:
    from gridtokenx.lab.testnet.summary import summarise  # noqa: PLC0415 - only here

    click.echo("summing up: re-executing the chains from disk")
    summary, verdict = summarise(layout, outcome)
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    except OSError as error:
        raise LocalFault(f"--summary {path}: cannot be written: {error.strerror}") from None
    click.echo(f"summary: {path}; invariants {'all hold' if verdict else 'BROKEN'}")
    return verdict
