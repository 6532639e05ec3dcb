"""`gtx node consortium`."""

from gridtokenx.lab.commands.roles import SEAT, SOURCES, role_command
from gridtokenx.node.consortium import ConsortiumNodeSettings, run_consortium

command = role_command(
    "consortium",
    ConsortiumNodeSettings,
    run_consortium,
    "Run a replica of the consortium chain, or an observer where the key has no seat." + SOURCES,
    words="node consortium",
    chain="consortium",
    afterwards=(SEAT,),
)
