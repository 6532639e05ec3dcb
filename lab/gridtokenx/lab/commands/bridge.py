"""`gtx bridge`: prepare and run a relayer between the chains."""

from typing import Final

from gridtokenx.bridge.process.run import RelayerSettings, run_relayer
from gridtokenx.lab.commands.roles import role_command

AFTERWARDS: Final = (
    "the oracle chain takes its transactions once the oracles have enrolled its key:\n"
    "gtx relayers --help"
)

command = role_command(
    "bridge",
    RelayerSettings,
    run_relayer,
    "Run a relayer between the three chains. It is trusted for nothing; run two."
    "\n\nSettings come from flags, then the environment (GTX_...), then --config, then defaults."
    " `init` prepares a home with all of them explained.",
    words="bridge",
    afterwards=(AFTERWARDS,),
)
