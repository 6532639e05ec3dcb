"""`gtx gateway`: the HTTP gateway and its live page."""

import click

from gridtokenx.gateway.process import run_gateway
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(GatewaySettings)
def command(settings: GatewaySettings) -> int:
    """Run the HTTP gateway and its live page.

    It follows the three chains as a light client and shows only what it verified. Settings come
    from flags, then the environment (GTX_...), then --config, then defaults.
    """
    return serve(lambda: run_gateway(settings))
