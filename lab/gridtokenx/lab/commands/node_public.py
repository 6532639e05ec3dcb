"""`gtx node public`."""

from gridtokenx.lab.commands.roles import SOURCES, role_command
from gridtokenx.node.public import PublicNodeSettings, run_public

command = role_command(
    "public",
    PublicNodeSettings,
    run_public,
    "Run a public validator, or a full node where the key has no seat." + SOURCES,
    words="node public",
    chain="public",
    afterwards=(
        "it is a full node until its key is elected; to stand for election:\ngtx stake --help",
    ),
)
