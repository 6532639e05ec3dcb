"""The options of every command that signs for an account: which network, which keys, whose voice."""

import functools
from collections.abc import Callable
from pathlib import Path

import click

from gridtokenx.lab.commands.keys import password_option
from gridtokenx.lab.commands.testnet import home_option
from gridtokenx.lab.wallet import Wallet

from_option = click.option(
    "--from",
    "sender",
    required=True,
    help="Name of a key in the wallet, such as alice (of --keys, if that is given).",
)
keys_option = click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the signing key, if it is not the wallet's.",
)


def wallet_options(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command its `wallet`, from --home, --keys and --keys-password-file."""

    @home_option
    @keys_option
    @password_option
    @functools.wraps(command)
    def with_wallet(
        *, home: Path, keys: Path | None, password_file: Path | None, **rest: object
    ) -> int:
        return command(wallet=Wallet(home, keys, password_file), **rest)

    return with_wallet
