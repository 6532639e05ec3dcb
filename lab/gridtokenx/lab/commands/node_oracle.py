"""`gtx node oracle`."""

from gridtokenx.lab.commands.roles import SEAT, SOURCES, role_command
from gridtokenx.oracle.role import OracleSettings, run_oracle

command = role_command(
    "oracle",
    OracleSettings,
    run_oracle,
    "Run a node of the oracle chain: it takes readings in and observes a price." + SOURCES,
    words="node oracle",
    chain="oracle",
    afterwards=(SEAT,),
)
