"""`gtx testnet ...` for networks of containers: files for engines, and what runs inside them."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Final

import click
import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.manifest import Manifest, load_manifest, parse_manifest

BEAT_S: Final = 1.0

manifest_option = click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="TOML file that describes the network; the default is the one of compose/manifests/local.toml.",
)


@click.command()
@manifest_option
@click.option(
    "--source",
    default="..",
    show_default=True,
    help="The checkout as seen from the file: what images are built from.",
)
def compose(manifest: Path | None, source: str) -> None:
    """Write a compose file with one container for each process."""
    from gridtokenx.lab.deploy.compose import Where, compose_file  # noqa: PLC0415 - needs PyYAML
    from gridtokenx.lab.deploy.plan import plan_network  # noqa: PLC0415 - only here

    plan = plan_network(Manifest() if manifest is None else load_manifest(manifest))
    click.echo(compose_file(plan, Where(source=source)), nl=False)


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Where the volumes are mounted, one directory each.",
)
@click.option(
    "--manifest-text",
    envvar="GTX_MANIFEST",
    required=True,
    help="The manifest itself, in TOML.  [env: GTX_MANIFEST]",
)
def prepare(home: Path, manifest_text: str) -> None:
    """Make the homes of a network of containers once; later, keep them and set the clock."""
    from gridtokenx.lab.deploy.prepare import prepare as work  # noqa: PLC0415 - only here

    work(home, parse_manifest(manifest_text, "GTX_MANIFEST"), click.echo)


@click.command()
@click.option(
    "--clock",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the network clock.",
)
def heartbeat(clock: Path) -> None:
    """Write the network time every second, so that a stopped network goes on from there."""
    from gridtokenx.lab.deploy.clock import open_heartbeat  # noqa: PLC0415 - only here

    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    beating = open_heartbeat(clock)
    click.echo(f"network time is {beating.offset_ms / 1000:+.1f} s from wall time")
    try:
        while not stopped.is_set():
            beating.beat()
            stopped.wait(BEAT_S)
        beating.beat()
    except OSError as error:
        raise LocalFault(f"{clock}: cannot be written: {error.strerror}") from None


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Where the volumes of the stopped nodes are mounted, one directory each.",
)
def audit(home: Path) -> int:
    """Re-execute the chains of a stopped network of containers, and print a summary as JSON.

    The exit code is 0 when every invariant held, else 1.
    """
    from gridtokenx.lab.testnet.audit import audit as judge  # noqa: PLC0415 - only here
    from gridtokenx.lab.testnet.layout import Layout  # noqa: PLC0415 - only here
    from gridtokenx.lab.testnet.placement import CONTAINERS  # noqa: PLC0415 - only here
    from gridtokenx.lab.testnet.summary import summarise_chains  # noqa: PLC0415 - only here

    layout = Layout(home, Manifest(), CONTAINERS)
    layout = Layout(home, load_manifest(layout.manifest_path), CONTAINERS)
    summary = {"network": layout.manifest.name, **summarise_chains(judge(layout))}
    click.echo(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode())
    return 1 if summary["broken"] else 0


COMMANDS: Final = (compose, prepare, heartbeat, audit)
