"""`gtx testnet ...` for networks of containers: files for engines, and what runs inside them."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.manifest import Manifest, load_manifest, parse_manifest

if TYPE_CHECKING:
    from gridtokenx.lab.deploy.plan import Plan

BEAT_S: Final = 1.0

manifest_option = click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="TOML file that describes the network; the default is the one of compose/manifests/local.toml.",
)

secrets_option = click.option(
    "--secrets",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of the bundles (`gtx testnet bundle`), as seen from here and from the file.",
)


def _names(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


machines_option = click.option(
    "--machines",
    default="",
    callback=_names,
    metavar="A,B,...",
    help="Spread the services over these hosts, or over those with labels NAME=VALUE.",
)


@click.command()
@manifest_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory of the bundles; absent or empty.",
)
def bundle(manifest: Path | None, output: Path) -> None:
    """Make a network's homes here, and a bundle of each for wherever its process will run.

    All keys are made anew and are for development only. Whoever reads a bundle has its process's
    keys: hand each to its own machine alone.
    """
    from gridtokenx.lab.deploy.bundle import make_bundles  # noqa: PLC0415 - imports pvlib

    make_bundles(_manifest(manifest), output, click.echo)


@click.command()
@manifest_option
@secrets_option
@machines_option
@click.option(
    "--source",
    default="..",
    show_default=True,
    help="The checkout as seen from the file: what images are built from.",
)
def compose(
    manifest: Path | None, secrets: Path | None, machines: tuple[str, ...], source: str
) -> None:
    """Write a compose file with one container for each process.

    Without --secrets it is for one machine: its service `init` makes the keys. With them it is for
    `docker stack deploy` too, over several machines.
    """
    from gridtokenx.lab.deploy.compose import Where, compose_file  # noqa: PLC0415 - needs PyYAML

    if machines and secrets is None:
        raise LocalFault("--machines needs --secrets: several machines share no volume")
    plan = _plan(manifest, secrets)
    where = Where(source=source, bundles=secrets, machines=machines)
    click.echo(compose_file(plan, where), nl=False)


@click.command()
@manifest_option
@secrets_option
@machines_option
@click.option("--namespace", default="gridtokenx", show_default=True, help="Kubernetes namespace.")
@click.option(
    "--image",
    default="gridtokenx-validator:local",
    show_default=True,
    help="Image of all processes but the broker.",
)
@click.option(
    "--broker-image", default="eclipse-mosquitto:2", show_default=True, help="Image of the broker."
)
@click.option("--storage-class", help="Storage class of the volumes; else the cluster's default.")
def kubernetes(
    manifest: Path | None,
    secrets: Path | None,
    machines: tuple[str, ...],
    namespace: str,
    image: str,
    broker_image: str,
    storage_class: str | None,
) -> None:
    """Write Kubernetes manifests: a StatefulSet for each process, and what surrounds it.

    With --secrets the Secrets are among them, and so are all private keys: pipe it, keep it nowhere.
    """
    from gridtokenx.lab.deploy.kubernetes import (  # noqa: PLC0415 - needs PyYAML
        Cluster,
        kubernetes_manifests,
    )

    cluster = Cluster(
        namespace=namespace,
        validator_image=image,
        broker_image=broker_image,
        storage_class=storage_class,
        bundles=secrets,
        machines=machines,
    )
    plan = _plan(manifest, secrets) if secrets is not None else _plan_unbundled(manifest)
    click.echo(kubernetes_manifests(plan, cluster), nl=False)


def _plan_unbundled(manifest: Path | None) -> "Plan":
    """As with bundles whose number of parts nobody knows yet."""
    from gridtokenx.lab.deploy.bundle import LIKELY_PARTS  # noqa: PLC0415 - only here
    from gridtokenx.lab.deploy.plan import plan_network, process_names  # noqa: PLC0415 - only here

    wanted = _manifest(manifest)
    return plan_network(wanted, dict.fromkeys(process_names(wanted), LIKELY_PARTS))


def _manifest(path: Path | None) -> Manifest:
    return Manifest() if path is None else load_manifest(path)


def _plan(manifest: Path | None, secrets: Path | None) -> "Plan":
    from gridtokenx.lab.deploy.bundle import count_parts  # noqa: PLC0415 - only here
    from gridtokenx.lab.deploy.plan import plan_network  # noqa: PLC0415 - only here

    wanted = _manifest(manifest)
    return plan_network(wanted, None if secrets is None else count_parts(secrets, wanted))


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


COMMANDS: Final = (bundle, compose, kubernetes, prepare, heartbeat, audit)
