"""`gtx broker`: the broker of a one-command testnet."""

import click

from gridtokenx.devices.fleet.broker import BrokerSettings, run_broker
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(BrokerSettings)
def command(settings: BrokerSettings) -> int:
    """Run the embedded MQTT broker, for networks that bring no broker of their own."""
    return serve(lambda: run_broker(settings))
