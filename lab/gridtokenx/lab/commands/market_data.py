"""`gtx market-data`: price sources for a testnet."""

import click

from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve
from gridtokenx.oracle.feeds.market_data import MarketDataSettings, run_market_data


@click.command()
@settings_options(MarketDataSettings)
def command(settings: MarketDataSettings) -> int:
    """Serve four different sources of one price, for the oracles of a testnet."""
    return serve(lambda: run_market_data(settings))
