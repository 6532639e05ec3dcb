"""`gtx devices`: a fleet of simulated devices."""

import click

from gridtokenx.devices.fleet.fleet import FleetSettings, run_fleet
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(FleetSettings)
def command(settings: FleetSettings) -> int:
    """Run a fleet of meters, panels and batteries, each with its own key and connection."""
    return serve(lambda: run_fleet(settings))
