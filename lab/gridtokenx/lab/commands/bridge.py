"""`gtx bridge`: prepare and run a relayer between the chains."""

from typing import Final

from gridtokenx.bridge.process.run import RelayerSettings, run_relayer
from gridtokenx.lab.commands.roles import SOURCES, role_command

AFTERWARDS: Final = (
    "the oracle chain takes its transactions once the oracles have enrolled its key:\n"
    "gtx relayers --help"
)

command = role_command(
    "bridge",
    RelayerSettings,
    run_relayer,
    "Run a relayer between the three chains. It is trusted for nothing; run two." + SOURCES,
    words="bridge",
    afterwards=(AFTERWARDS,),
)
