"""`gtx node`: prepare and run one node of one chain."""

from typing import Final

import click

from gridtokenx.lab.commands.lazy import LazyGroup

_CHAINS: Final = {
    "public": (
        "gridtokenx.lab.commands.node_public",
        "Run a public validator, or a full node where the key has no seat.",
    ),
    "consortium": (
        "gridtokenx.lab.commands.node_consortium",
        "Run a replica of the consortium chain, or an observer where the key has no seat.",
    ),
    "oracle": (
        "gridtokenx.lab.commands.node_oracle",
        "Run a node of the oracle chain: it takes readings in and observes a price.",
    ),
}


@click.group(cls=LazyGroup, loaded=_CHAINS)
def command() -> None:
    """Prepare (`init`) and run a node of one of the three chains.

    Settings come from flags, then the environment (GTX_...), then --config, then defaults.
    """
