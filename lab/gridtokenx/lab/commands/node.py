"""`gtx node`: run one node of one chain."""

import click

from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve
from gridtokenx.node.consortium import ConsortiumNodeSettings, run_consortium
from gridtokenx.node.public import PublicNodeSettings, run_public
from gridtokenx.oracle.role import OracleSettings, run_oracle


@click.group()
def command() -> None:
    """Run a node of one of the three chains.

    Settings come from flags, then the environment (GTX_...), then --config, then defaults.
    """


@command.command()
@settings_options(PublicNodeSettings)
def public(settings: PublicNodeSettings) -> int:
    """Run a public validator, or a full node where the key has no seat."""
    return serve(lambda: run_public(settings))


@command.command()
@settings_options(ConsortiumNodeSettings)
def consortium(settings: ConsortiumNodeSettings) -> int:
    """Run a replica of the consortium chain."""
    return serve(lambda: run_consortium(settings))


@command.command()
@settings_options(OracleSettings)
def oracle(settings: OracleSettings) -> int:
    """Run a node of the oracle chain: it takes readings in and observes a price."""
    return serve(lambda: run_oracle(settings))
