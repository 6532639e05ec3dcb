"""`gtx keys`: make, show and move keys. Neither a secret nor a password is ever an argument."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from gridtokenx.core.addresses import address
from gridtokenx.core.errors import LocalFault
from gridtokenx.host.certificates import Role
from gridtokenx.host.enrolment import check_name, make_request, request_pem
from gridtokenx.host.files import read_file, write_file
from gridtokenx.host.keyfile import PASSWORD_VARIABLE, KeyRing, public_key_of
from gridtokenx.lab.passwords import PasswordSource, create_ring, on_terminal, open_ring

STANDARD: Final = "-"
CLEAR_WARNING: Final = (
    "warning: this is the secret key itself, not encrypted: whoever reads it is its owner"
)
F = TypeVar("F", bound=Callable[..., object])

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
    help=(
        f"File that holds the password; else {PASSWORD_VARIABLE}, else a development file, else you"
        " are asked."
    ),
)
development_option = click.option(
    "--development",
    is_flag=True,
    help="Generate a password and leave it beside the keys. For play, never for value.",
)


def _file_option(flag: str, variable: str, what: str) -> Callable[[F], F]:
    return click.option(
        flag,
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"File that holds {what}; else {variable}, else you are asked.",
    )


@click.group()
def command() -> None:
    """Make, show, move and re-encrypt keys.

    Secrets are kept encrypted, one file a key, under one password a directory. Passwords come from
    a file, the environment or your terminal, never from the command line.
    """


@command.command()
@click.argument("name")
@directory_option
@password_option
@development_option
def new(name: str, directory: Path, password_file: Path | None, *, development: bool) -> None:
    """Make the key NAME, and print its address and public key.

    The first key of a directory decides its password.
    """
    ring = _open_or_create(directory, password_file, development=development)
    _tell(name, ring.generate(name))


@command.command()
@click.argument("name", required=False)
@directory_option
def show(name: str | None, directory: Path) -> None:
    """Print the address and public key of NAME, or of every key. Needs no password."""
    paths = [directory / f"{name}.key"] if name is not None else sorted(directory.glob("*.key"))
    if not paths:
        raise LocalFault(f"{directory}: holds no keys; make one with: gtx keys new NAME")
    for path in paths:
        _tell(path.stem, public_key_of(path))


@command.command()
@click.argument("name")
@directory_option
@password_option
@click.option("--secret", is_flag=True, help="Export the secret key, encrypted unless --clear.")
@click.option("--clear", is_flag=True, help="Do not encrypt what is exported. You are warned.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="File to write; it must not exist. '-' is standard output, the default for a public key.",
)
@_file_option("--export-password-file", "GTX_EXPORT_PASSWORD", "the password of what is exported")
def export(
    name: str,
    directory: Path,
    password_file: Path | None,
    out: Path | None,
    export_password_file: Path | None,
    *,
    secret: bool,
    clear: bool,
) -> None:
    """Write the key NAME in PEM form: its public key, or with --secret the secret one.

    A secret key (PKCS#8) is encrypted under a password of its own, and goes to the file of --out,
    or to standard output if you say `--out -`.
    """
    if not secret:
        if clear or export_password_file is not None:
            raise LocalFault("--clear and --export-password-file are for --secret")
        public = Ed25519PublicKey.from_public_bytes(public_key_of(directory / f"{name}.key"))
        _write(out or Path(STANDARD), _public_pem(public))
        return
    if out is None:
        raise LocalFault("where to? name a new file with --out FILE, or say --out -")
    if clear and export_password_file is not None:
        raise LocalFault("--clear and --export-password-file: give one of the two")
    _refuse_existing(out)
    key = Ed25519PrivateKey.from_private_bytes(open_ring(directory, password_file).seed(name))
    source = PasswordSource(
        "password of the exported key",
        "--export-password-file",
        export_password_file,
        "GTX_EXPORT_PASSWORD",
    )
    if clear:
        click.echo(CLEAR_WARNING, err=True)
    _write(out, _secret_pem(key, None if clear else source.get(new=True)), mode=0o600)


@command.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@directory_option
@password_option
@development_option
@_file_option("--import-password-file", "GTX_IMPORT_PASSWORD", "the password of what is imported")
def import_(
    name: str,
    file: Path,
    directory: Path,
    password_file: Path | None,
    import_password_file: Path | None,
    *,
    development: bool,
) -> None:
    """Store the Ed25519 secret key in FILE (PEM, PKCS#8) as NAME. '-' is standard input."""
    data = sys.stdin.buffer.read() if str(file) == STANDARD else read_file(file)
    source = PasswordSource(
        "password of the imported key",
        "--import-password-file",
        import_password_file,
        "GTX_IMPORT_PASSWORD",
    )
    seed = _read_secret(data, str(file), source)
    ring = _open_or_create(directory, password_file, development=development)
    _tell(name, ring.put(name, seed))


@command.command()
@click.argument("name")
@directory_option
@password_option
@click.option("--chain", required=True, help="Whose authority is asked: consortium, oracle, ...")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role if role is not Role.AUTHORITY]),
    required=True,
    help="What the holder wants to do: a node is a peer; gateways, relayers and agents are clients.",
)
@click.option("--holder", help="Name of the holder in the certificate.  [default: NAME]")
@click.option("--host", "hosts", multiple=True, help="Host name of a broker; may be repeated.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; it must not exist.  [default: CHAIN-request.pem]",
)
def request(
    name: str,
    directory: Path,
    password_file: Path | None,
    chain: str,
    role: str,
    holder: str | None,
    hosts: tuple[str, ...],
    out: Path | None,
) -> None:
    """Ask a chain's authority for a certificate of the key NAME.

    `gtx ca issue` answers the request. A node's first request is made by its `init`.
    """
    target = out or Path(f"{check_name(chain)}-request.pem")
    _refuse_existing(target)
    seed = open_ring(directory, password_file).seed(name)
    _write(target, request_pem(make_request(seed, holder or name, Role(role), chain, hosts)))


@command.command()
@directory_option
@password_option
@_file_option("--new-password-file", "GTX_NEW_PASSWORD", "the next password")
def password(directory: Path, password_file: Path | None, new_password_file: Path | None) -> None:
    """Encrypt every key of a directory under another password.

    Interrupted at any moment, the directory opens with the old password or with the new one.
    """
    ring = open_ring(directory, password_file)
    source = PasswordSource(
        "new password", "--new-password-file", new_password_file, "GTX_NEW_PASSWORD"
    )
    ring.change_password(source.get(new=True))
    click.echo(
        f"{directory}: {len(ring.names())} keys are under the new password; running processes go on,"
        " and need it at their next start"
    )


def _open_or_create(directory: Path, password_file: Path | None, *, development: bool) -> KeyRing:
    if (directory / "keyring.json").exists():
        return open_ring(directory, password_file)
    return create_ring(directory, password_file, development=development)


def _tell(name: str, public_key: bytes) -> None:
    click.echo(f"{name}  {address(public_key)}  {public_key.hex()}")


# -- PEM -------------------------------------------------------------------------------------------


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _secret_pem(key: Ed25519PrivateKey, password: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password.encode())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _read_secret(data: bytes, name: str, source: PasswordSource) -> bytes:
    """The seed in a PEM file."""
    encrypted = b"ENCRYPTED" in data
    if encrypted and name == STANDARD and source.file is None and on_terminal():
        raise LocalFault("an encrypted key from standard input: give --import-password-file")
    given = source.get().encode() if encrypted else None
    try:
        key = serialization.load_pem_private_key(data, given)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        hint = "another password, or damaged" if encrypted else "nothing of it could be read"
        raise LocalFault(f"{name}: is no secret key in PEM form: {hint}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalFault(f"{name}: is no Ed25519 key, but {type(key).__name__}")
    return key.private_bytes_raw()


def _refuse_existing(path: Path) -> None:
    if str(path) != STANDARD and path.exists():
        raise LocalFault(f"{path}: exists; nothing is written over another file")


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    if str(path) == STANDARD:
        click.echo(data.decode(), nl=False)
        return
    _refuse_existing(path)
    write_file(path, data, mode=mode)
    click.echo(f"wrote {path}", err=True)
