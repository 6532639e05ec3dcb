"""`gtx keys`: make and show keys. A secret never appears on a command line or on the screen."""

import os
from pathlib import Path
from typing import Final

import click

from gridtokenx.core.addresses import address
from gridtokenx.core.errors import LocalFault
from gridtokenx.host.keyfile import (
    PASSWORD_VARIABLE,
    KeyRing,
    create_development_password,
    find_password,
    public_key_of,
)

MINIMUM_PASSWORD: Final = 8

directory_option = click.option(
    "--keys",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".testnet/wallet/keys"),
    show_default=True,
    envvar="GTX_KEYS",
    help="Directory of key files.",
)
password_option = click.option(
    "--keys-password-file",
    "password_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"File whose first line is the password; else {PASSWORD_VARIABLE}, else a development file.",
)


@click.group()
def command() -> None:
    """Make and show keys. Secrets are kept encrypted, one file a key."""


@command.command()
@click.argument("name")
@directory_option
@password_option
@click.option(
    "--development",
    is_flag=True,
    help="Generate a password and leave it beside the keys. For play, never for value.",
)
def new(name: str, directory: Path, password_file: Path | None, *, development: bool) -> None:
    """Make the key NAME, and print its address and public key."""
    ring = _ring(directory, password_file, development=development)
    public_key = ring.generate(name)
    click.echo(f"{name}  {address(public_key)}  {public_key.hex()}")


@command.command()
@click.argument("name", required=False)
@directory_option
def show(name: str | None, directory: Path) -> None:
    """Print the address and public key of NAME, or of every key. Needs no password."""
    paths = [directory / f"{name}.key"] if name is not None else sorted(directory.glob("*.key"))
    if not paths:
        raise LocalFault(f"{directory}: holds no keys; make one with: gtx keys new NAME")
    for path in paths:
        public_key = public_key_of(path)
        click.echo(f"{path.stem}  {address(public_key)}  {public_key.hex()}")


def _ring(directory: Path, password_file: Path | None, *, development: bool) -> KeyRing:
    if (directory / "keyring.json").exists():
        return KeyRing.open(directory, find_password(directory, password_file, os.environ))
    if development:
        directory.mkdir(parents=True, exist_ok=True)
        return KeyRing.create(directory, create_development_password(directory))
    password = find_password(directory, password_file, os.environ)
    if len(password) < MINIMUM_PASSWORD:
        raise LocalFault(f"the password has fewer than {MINIMUM_PASSWORD} characters")
    return KeyRing.create(directory, password)
