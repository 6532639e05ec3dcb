"""`gtx concentrator`: the readings of a neighbourhood through one connection."""

import click

from gridtokenx.devices.fleet.collector import ConcentratorSettings, run_concentrator
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(ConcentratorSettings)
def command(settings: ConcentratorSettings) -> int:
    """Carry signed readings from the meters' own broker to the network's, in batches."""
    return serve(lambda: run_concentrator(settings))
