"""`gtx`: one command for people who run a testnet, operate a node, or study one.

Sub-commands are loaded when they are used, so that a node does not import what only the lab needs.
Every expected error is one line on standard error and exit code 2.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.lab.commands.lazy import LazyGroup

MISUSE_EXIT: Final = 2

_COMMANDS: Final = {
    "testnet": ("gridtokenx.lab.commands.testnet", "Make, run, watch and stop a local testnet."),
    "tx": ("gridtokenx.lab.commands.tx", "Sign and send transactions; wait for finality."),
    "stake": (
        "gridtokenx.lab.commands.stake",
        "Bond, nominate, stand for election; see who validates.",
    ),
    "keys": ("gridtokenx.lab.commands.keys", "Make, show, move and re-encrypt keys."),
    "ca": ("gridtokenx.lab.commands.ca", "Run the authority of a permissioned chain."),
    "backup": ("gridtokenx.lab.commands.backup", "Back up and restore a process's home."),
    "sim": ("gridtokenx.lab.commands.sim", "Run chains in virtual time, with faults and traitors."),
    "fault": (
        "gridtokenx.lab.commands.fault",
        "Run real replicas under faults; add and heal some.",
    ),
    "verify": ("gridtokenx.lab.commands.verify", "Re-execute a node's chain from its disk."),
    "node": ("gridtokenx.lab.commands.node", "Run a node of one of the three chains."),
    "members": ("gridtokenx.lab.commands.members", "Change who runs a permissioned chain."),
    "relayers": ("gridtokenx.lab.commands.relayers", "Enrol relayers, and show who relays."),
    "bridge": ("gridtokenx.lab.commands.bridge", "Run a relayer between the chains."),
    "gateway": ("gridtokenx.lab.commands.gateway", "Run the HTTP gateway and its live page."),
    "devices": ("gridtokenx.lab.commands.devices", "Run a fleet of meters, panels and batteries."),
    "concentrator": (
        "gridtokenx.lab.commands.concentrator",
        "Carry many meters' readings in batches.",
    ),
    "agents": ("gridtokenx.lab.commands.agents", "Run household agents that trade."),
    "broker": ("gridtokenx.lab.commands.broker", "Run the embedded MQTT broker."),
    "market-data": ("gridtokenx.lab.commands.market_data", "Serve price sources for a testnet."),
}


@click.group(
    cls=LazyGroup, loaded=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="gridtokenx", prog_name="gtx")
def cli() -> None:
    """GridTokenX: a three-chain energy-trading network, its nodes, and a lab to break it in."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `gtx`; expected errors become one line and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments, prog_name="gtx", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message())
        sys.exit(0)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f" (see: {where} --help)" if where else ""
        line = " ".join(error.format_message().split())
        click.echo(f"error: {line}{hint}", err=True)
        sys.exit(MISUSE_EXIT)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except (LocalFault, RemoteFault) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(MISUSE_EXIT)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _no_space(error)
        sys.exit(MISUSE_EXIT)
    sys.exit(code if isinstance(code, int) else 0)


def _no_space(error: OSError) -> None:
    """Say so; what standard output did not take would be tried, and complained of, once more at the end."""
    where = error.filename or "standard output, or a file"
    click.echo(f"error: {where}: cannot be written: {error.strerror}", err=True)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


if __name__ == "__main__":
    main()
