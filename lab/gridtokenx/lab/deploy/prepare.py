"""`init` of a network of containers: make all homes once; on later runs keep them and set the clock.

Each home is a volume of its own; only this one-shot container mounts all of them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.files import write_file
from gridtokenx.lab.deploy import targets
from gridtokenx.lab.deploy.clock import set_clock
from gridtokenx.lab.manifest import Manifest, load_manifest
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.placement import CONTAINERS

Report = Callable[[str], None]
_LOST_FOUND: Final = "lost+found"


def prepare(home: Path, manifest: Manifest, report: Report) -> None:
    """Leave every home ready to start.

    Args:
        home: where the volumes are mounted, one directory each.
        manifest: what the network is to be.
        report: told what is being done.

    Raises:
        LocalFault: the network there was made from another manifest, or is not whole.
    """
    layout = Layout(home, manifest, CONTAINERS)
    if layout.network_path.exists():
        _check_same(layout)
        layout.check_files()
        write_file(layout.network_path.with_name(targets.NAME), targets.targets(layout))
        offset_ms = set_clock(layout.heartbeat_path.parent)
        report(f"kept the network; its clock is {offset_ms / 1000:+.1f} s from wall time")
        return
    _make_room(home)
    from gridtokenx.lab.testnet.initialise import initialise  # noqa: PLC0415 - imports pvlib

    initialise(layout, report)
    write_file(layout.network_path.with_name(targets.NAME), targets.targets(layout))
    set_clock(layout.heartbeat_path.parent)
    report(f"made {len(layout.members)} homes below {home}")


def _check_same(layout: Layout) -> None:
    kept = load_manifest(layout.manifest_path)
    if kept != layout.manifest:
        names = [
            name
            for name in kept.__struct_fields__
            if getattr(kept, name) != getattr(layout.manifest, name)
        ]
        raise LocalFault(
            f"the network in these volumes was made from another manifest ({', '.join(names)} differ); "
            "go on with that one, or start over: docker-compose down --volumes"
        )


def _make_room(home: Path) -> None:
    """Remove what an earlier run could not finish; never what a process has lived in."""
    directories = sorted(path for path in home.iterdir() if path.is_dir())
    lived_in = [path.name for path in directories if (path / "data").exists()]
    if lived_in:
        raise LocalFault(
            f"{home}: genesis/network.json is missing, but {', '.join(lived_in)} hold chains; "
            "restore the volume genesis, or start over: docker-compose down --volumes"
        )
    for directory in directories:
        _empty(directory)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and path.name != _LOST_FOUND:
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()
