"""`gtx broker`: the broker of a one-command testnet, and whom it lets in."""

from pathlib import Path

import click

from gridtokenx.devices.fleet.broker import BrokerSettings, run_broker
from gridtokenx.devices.fleet.clients import KINDS, Kind, admit
from gridtokenx.host.config import settings_options
from gridtokenx.host.process import serve


@click.group(invoke_without_command=True)
@settings_options(BrokerSettings)
def command(settings: BrokerSettings) -> int:
    """Run the embedded MQTT broker, for networks that bring no broker of their own."""
    return serve(lambda: run_broker(settings))


@command.command("admit")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("key")
@click.option(
    "--clients",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".testnet/broker/clients.json"),
    show_default=True,
    help="The clients file of the broker.",
)
def admit_client(kind: Kind, key: str, clients: Path) -> None:
    """Let the client with the public KEY (64 hex digits) in; a running broker takes note.

    An oracle reads everything and publishes watermarks; a concentrator carries batches; a device has
    its own topics.
    """
    if admit(clients, key, kind):
        click.echo(f"{clients}: {kind} {key[:16]}... may log in now")
    else:
        click.echo(f"{clients}: {kind} {key[:16]}... could log in already")
