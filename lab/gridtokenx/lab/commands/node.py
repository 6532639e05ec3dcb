"""`gtx node`: prepare and run one node of one chain."""

from typing import Final

import click

from gridtokenx.lab.commands.roles import role_command
from gridtokenx.node.consortium import ConsortiumNodeSettings, run_consortium
from gridtokenx.node.public import PublicNodeSettings, run_public
from gridtokenx.oracle.role import OracleSettings, run_oracle

_SOURCES: Final = (
    "\n\nSettings come from flags, then the environment (GTX_...), then --config, then defaults."
    " `init` prepares a home with all of them explained."
)
_SEAT: Final = (
    "it follows the chain as an observer until the members give its key a seat:\ngtx members --help"
)


@click.group()
def command() -> None:
    """Prepare (`init`) and run a node of one of the three chains.

    Settings come from flags, then the environment (GTX_...), then --config, then defaults.
    """


command.add_command(
    role_command(
        "public",
        PublicNodeSettings,
        run_public,
        "Run a public validator, or a full node where the key has no seat." + _SOURCES,
        words="node public",
        chain="public",
        afterwards=(
            "it is a full node until its key is elected; to stand for election:\ngtx stake --help",
        ),
    )
)
command.add_command(
    role_command(
        "consortium",
        ConsortiumNodeSettings,
        run_consortium,
        "Run a replica of the consortium chain, or an observer where the key has no seat."
        + _SOURCES,
        words="node consortium",
        chain="consortium",
        afterwards=(_SEAT,),
    )
)
command.add_command(
    role_command(
        "oracle",
        OracleSettings,
        run_oracle,
        "Run a node of the oracle chain: it takes readings in and observes a price." + _SOURCES,
        words="node oracle",
        chain="oracle",
        afterwards=(_SEAT,),
    )
)
