"""`gtx bridge`: a relayer between the chains."""

import click

from gridtokenx.bridge.process.run import RelayerSettings, run_relayer
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.command()
@settings_options(RelayerSettings)
def command(settings: RelayerSettings) -> int:
    """Run a relayer between the three chains. It is trusted for nothing; run two."""
    return serve(lambda: run_relayer(settings))
