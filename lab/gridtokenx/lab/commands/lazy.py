"""Commands that are imported when they are used, so that each process loads what it runs and no more."""

import importlib
from collections.abc import Mapping

import click
from click.exceptions import NoSuchCommand


class LazyGroup(click.Group):
    """A group that knows of its commands only where they are, and one line about each.

    Args:
        loaded: by name: the module whose `command` it is, and the line for ``--help``.
    """

    def __init__(self, *, loaded: Mapping[str, tuple[str, str]], **known: object) -> None:
        super().__init__(**known)  # type: ignore[arg-type]  # click's own
        self._loaded = loaded

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order in which help shows them."""
        return list(self._loaded)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            NoSuchCommand: naming what is like it.
        """
        if cmd_name not in self._loaded:
            raise NoSuchCommand(cmd_name, possibilities=self._loaded, ctx=ctx)
        module = importlib.import_module(self._loaded[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._loaded.items()])
