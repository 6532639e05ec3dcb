"""One fleet in a process of its own, to be killed: ``python devices_process.py HOME PORT``."""

import sys
from pathlib import Path

import msgspec

from gridtokenx.devices.fleet.fleet import FleetSettings, run_fleet
from gridtokenx.host.process import serve


def settings_of(home: Path, port: int) -> FleetSettings:
    """The settings that the test wrote, with the broker's present port."""
    facts = msgspec.json.decode((home / "facts.json").read_bytes())
    return FleetSettings(
        broker=f"mqtt://127.0.0.1:{port}",
        broker_protocol="3.1.1",
        roster=home / "roster.json",
        profiles=home / "profiles.bin",
        keys=home / "keys",
        data=home / "data",
        **facts,
    )


if __name__ == "__main__":
    settings = settings_of(Path(sys.argv[1]), int(sys.argv[2]))
    sys.exit(serve(lambda: run_fleet(settings)))
