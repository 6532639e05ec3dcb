"""Passwords for commands: from a file, the environment or a terminal, never from a command line.

A command line is seen by everybody on the machine, and stays in the shell's history.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.keyfile import (
    DEVELOPMENT_PASSWORD_FILE,
    PASSWORD_VARIABLE,
    KeyRing,
    create_development_password,
    read_password,
    unlock,
)

MINIMUM_LENGTH: Final = 8


@dataclass(frozen=True, slots=True)
class PasswordSource:
    """Where one password may come from; the first that is there gives it."""

    what: str
    """For the prompt and the error: ``password of the keys``."""
    flag: str
    file: Path | None
    variable: str

    def get(self, *, new: bool = False) -> str:
        """The password.

        Args:
            new: it is being chosen now: asked for twice, and of some length.

        Raises:
            LocalFault: nothing gives one, or it is too short.
        """
        if self.file is not None:
            password = read_password(self.file)
        elif os.environ.get(self.variable):
            password = os.environ[self.variable]
        elif on_terminal():
            password = click.prompt(
                self.what.capitalize(), hide_input=True, confirmation_prompt=new, err=True
            )
        else:
            raise LocalFault(
                f"no {self.what}: name a file with {self.flag}, set {self.variable}, or run this on"
                " a terminal"
            )
        if new and len(password) < MINIMUM_LENGTH:
            raise LocalFault(f"the {self.what} has fewer than {MINIMUM_LENGTH} characters")
        return password


def keys_password(file: Path | None) -> PasswordSource:
    """Where the password of a key ring comes from."""
    return PasswordSource("password of the keys", "--keys-password-file", file, PASSWORD_VARIABLE)


def open_ring(directory: Path, password_file: Path | None) -> KeyRing:
    """Open the keys of a directory.

    Raises:
        LocalFault: no keys there, no password, or the wrong one.
    """
    if not directory.is_dir():
        raise LocalFault(f"{directory}: holds no keys; make one with: gtx keys new NAME --keys DIR")
    given = password_file is not None or os.environ.get(PASSWORD_VARIABLE)
    if given or (directory / DEVELOPMENT_PASSWORD_FILE).is_file():
        return unlock(directory, password_file, os.environ)
    return KeyRing.open(directory, keys_password(password_file).get())


def create_ring(directory: Path, password_file: Path | None, *, development: bool) -> KeyRing:
    """Make a directory of keys, empty yet.

    Args:
        directory: made if absent, for its owner alone.
        password_file: see `keys_password`.
        development: generate a password and leave it beside the keys.

    Raises:
        LocalFault: keys are there, no password, or the directory cannot be made.
    """
    if development and password_file is not None:
        raise LocalFault("--development and --keys-password-file: give one of the two")
    password = "" if development else keys_password(password_file).get(new=True)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LocalFault(f"{directory}: cannot be made: {error.strerror}") from None
    return KeyRing.create(
        directory, create_development_password(directory) if development else password
    )


def on_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()
