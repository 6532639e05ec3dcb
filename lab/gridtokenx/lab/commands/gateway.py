"""`gtx gateway`: prepare and run the HTTP gateway and its live page."""

from gridtokenx.gateway.process import run_gateway
from gridtokenx.gateway.settings import GatewaySettings
from gridtokenx.lab.commands.roles import role_command

command = role_command(
    "gateway",
    GatewaySettings,
    run_gateway,
    "Run the HTTP gateway and its live page."
    "\n\nIt follows the three chains as a light client and shows only what it verified. Settings"
    " come from flags, then the environment (GTX_...), then --config, then defaults. `init`"
    " prepares a home with all of them explained.",
    words="gateway",
)
