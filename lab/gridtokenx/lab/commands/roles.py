"""A role as a command: it runs, and its sub-command `init` prepares its home.

Both take the same flags, made from the role's one schema.
"""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final, TypeVar

import click

from gridtokenx.host.config import Settings, fields, given_flags, setting_option, settings_options
from gridtokenx.host.process import serve

S = TypeVar("S", bound=Settings)
SOURCES: Final = (
    "\n\nSettings come from flags, then the environment (GTX_...), then --config, then defaults."
    " `init` prepares a home with all of them explained."
)
"""Closes the help of every role."""
SEAT: Final = (
    "it follows the chain as an observer until the members give its key a seat:\ngtx members --help"
)
_HELP: Final = """Prepare a home for this role in the directory HOME.

    With --network-file, all that the network's founder makes public is taken from there. Makes an identity key, a config.toml that explains every setting (what you give here is filled
    in), and a request to the authority of each permissioned chain; copies genesis files in, after
    checking them; and says what to do next. Nothing that exists is overwritten.

    The password of the new keys comes from --keys-password-file, GTX_PASSWORD, or your terminal;
    with --keys, keys that exist are used.
    """


def role_command(
    name: str,
    schema: type[S],
    run: Callable[[S], Coroutine[object, object, None]],
    help_: str,
    *,
    words: str,
    chain: str = "",
    afterwards: tuple[str, ...] = (),
) -> click.Group:
    """The command of a role.

    Args:
        name: of the command.
        schema: its settings.
        run: the role, until cancelled.
        help_: for ``--help``.
        words: the words of `gtx` that run it.
        chain: of a node; empty for a client.
        afterwards: see `homes.HomeKind`.
    """

    def start(settings: S) -> int:
        return serve(lambda: run(settings))

    group = click.group(name, invoke_without_command=True, help=help_)(
        settings_options(schema)(start)
    )
    group.add_command(_init(schema, words, chain, afterwards))
    return group


def _init(
    schema: type[Settings], words: str, chain: str, afterwards: tuple[str, ...]
) -> click.Command:
    def init(
        home: Path,
        *,
        network_file: Path | None,
        name: str | None,
        development: bool,
        **given: object,
    ) -> None:
        from gridtokenx.lab.homes import Given, HomeKind, make_home  # noqa: PLC0415 - not to run

        kind = HomeKind(words, schema, chain, afterwards)
        flags = kind.from_network(network_file) | given_flags(schema, given)
        said = Given(flags, os.environ, name or home.name, development)
        click.echo(make_home(kind, home, said).told())

    command: Callable[..., object] = init
    for field in reversed(fields(schema)):
        command = setting_option(field)(command)
    command = click.option(
        "--network-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Public facts of a network (its network.json): genesis files, addresses, authorities.",
    )(command)
    command = click.option(
        "--development",
        is_flag=True,
        help="Generate a password and leave it beside the keys. For play, never for value.",
    )(command)
    command = click.option(
        "--name", help="Name of the holder in certificates.  [default: the directory's]"
    )(command)
    command = click.argument("home", type=click.Path(path_type=Path, file_okay=False))(command)
    return click.command("init", help=_HELP)(command)
