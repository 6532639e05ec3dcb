"""`gtx agents`: the people of a testnet."""

import click

from gridtokenx.devices.fleet.agents import AgentsSettings, run_agents
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(AgentsSettings)
def command(settings: AgentsSettings) -> int:
    """Run household agents that bid from their forecasts, retire certificates and send GRID."""
    return serve(lambda: run_agents(settings))
