"""A network of real processes in a temporary directory, for benchmarks that need one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridtokenx.host.config import Settings, render
from gridtokenx.lab.manifest import Manifest, Ports, Workload, dump_manifest
from gridtokenx.lab.testnet.initialise import initialise
from gridtokenx.lab.testnet.layout import Layout

PORTS = Ports(gateway=19_080, base=29_600)


@contextmanager
def quiet_network() -> Iterator[Layout]:
    """The default network, laid out, in which nobody trades."""
    manifest = Manifest(
        name="bench", workload=Workload(bid=False, retire=False, transfers=False), ports=PORTS
    )
    with tempfile.TemporaryDirectory(prefix="gtx-bench-") as directory:
        layout = Layout(Path(directory), manifest)
        initialise(layout, lambda _line: None)
        layout.manifest_path.write_text(dump_manifest(manifest), encoding="utf-8")
        yield layout


def write_config(path: Path, settings: Settings) -> None:
    """Write a process's settings for that process alone to read."""
    path.write_text(render(settings, show_secrets=True), encoding="utf-8")
    path.chmod(0o600)


def row(name: str, measured: float, reference: float, unit: str, reference_name: str) -> str:
    """One line of a result: a figure beside what it is held against."""
    return (
        f"{name:<44} {measured:10.2f} {unit:<6} {reference_name} {reference:.2f} {unit}"
        f"  ratio {measured / reference:.2f}"
    )
