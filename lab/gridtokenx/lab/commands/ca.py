"""`gtx ca`: the authority of a permissioned chain admits keys, and takes admissions back."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec
from cryptography import x509

from gridtokenx.core.addresses import address
from gridtokenx.core.errors import LocalFault
from gridtokenx.host.certificates import (
    LIST_DAYS,
    VALID_DAYS,
    Authority,
    Reason,
    RevocationList,
    Role,
    fingerprint,
    load_certificate,
    pem,
    show_serial,
    show_time,
)
from gridtokenx.host.enrolment import EnrolmentRequest, check_name, read_request
from gridtokenx.host.files import read_file, write_file
from gridtokenx.lab import passwords
from gridtokenx.lab.authority import AuthorityHome, Entry, chains_in, serial_in
from gridtokenx.lab.commands.keys import development_option, password_option
from gridtokenx.lab.passwords import create_ring, open_ring

ISSUE_DAYS: Final = 365
_REQUEST: Final = "-request.pem"
F = TypeVar("F", bound=Callable[..., object])

authority_option = click.option(
    "--authority",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("authority"),
    show_default=True,
    help="Directory of the authority.",
)
chain_option = click.option(
    "--chain", help="Which chain's authority; may be left out where there is one only."
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; where it goes otherwise is said.",
)


def _days_option(default: int, maximum: int, what: str) -> Callable[[F], F]:
    return click.option(
        "--days", type=click.IntRange(1, maximum), default=default, show_default=True, help=what
    )


list_days_option = _days_option(
    LIST_DAYS,
    VALID_DAYS,
    "When a newer list is promised. Late, nodes complain, and MQTT brokers admit nobody.",
)


@click.group()
def command() -> None:
    """Run the certificate authority of a permissioned chain (consortium, oracle, a broker's clients).

    A node's operator sends a request (`gtx node consortium init` makes it); `gtx ca issue` answers
    with a certificate, which admits the node to the chain's links. `gtx ca revoke` takes it back.
    Every node needs the authority's own certificate and its newest revocation list.
    """


@command.command()
@authority_option
@click.option("--chain", required=True, help="Name of the chain: consortium, oracle, ...")
@click.option("--name", help="Name of the authority in its certificate.  [default: the chain's]")
@_days_option(VALID_DAYS, 36_500, "How long the authority's own certificate is valid.")
@password_option
@development_option
def init(
    directory: Path,
    chain: str,
    name: str | None,
    days: int,
    password_file: Path | None,
    *,
    development: bool,
) -> None:
    """Make an authority: its key, its certificate, an empty register and an empty list."""
    check_name(name or chain)
    if (directory / chain).exists():
        raise LocalFault(f"{directory / chain}: exists; an authority is never overwritten")
    if (directory / "keys" / "keyring.json").exists():
        ring = open_ring(directory / "keys", password_file)
    else:
        ring = create_ring(directory / "keys", password_file, development=development)
    home = AuthorityHome.create(directory, chain, ring, name or chain, days)
    click.echo(f"authority of the chain {chain!r}")
    _tell_certificate(load_certificate(home.certificate_path))
    click.echo(f"every node needs  {home.certificate_path}\n             and  {home.list_path}")


@command.command()
@click.argument("request_file", metavar="REQUEST", type=click.Path(path_type=Path))
@authority_option
@chain_option
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role if role is not Role.AUTHORITY]),
    help="What the holder may do.  [default: what the request asks for]",
)
@_days_option(ISSUE_DAYS, VALID_DAYS, "How long the certificate is valid.")
@out_option
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
@password_option
def issue(
    request_file: Path,
    directory: Path,
    chain: str | None,
    role: str | None,
    days: int,
    out: Path | None,
    password_file: Path | None,
    *,
    yes: bool,
) -> None:
    """Show what REQUEST asks for, and issue the certificate.

    The certificate goes beside the request (X-request.pem is answered by X-certificate.pem).
    """
    home = _home(directory, chain)
    request = read_request(request_file)
    granted = Role(role) if role is not None else request.role
    _tell_request(request_file, request)
    if granted is None or granted is Role.AUTHORITY:
        raise LocalFault(
            f"{request_file}: asks for no role that can be granted; say it with --role"
        )
    target = out or _answer_to(request_file)
    if target.exists():
        raise LocalFault(f"{target}: exists; move it away, or name another file with --out")
    if not yes and passwords.on_terminal():
        click.confirm(f"issue a certificate for a {granted.value}?", abort=True, err=True)
    certificate = home.issue(_unlock(home, password_file), request, granted, days)
    write_file(target, pem(certificate))
    click.echo(f"issued       {target}  ({granted.value})")
    _tell_certificate(certificate)


@command.command()
@click.argument("certificate", metavar="CERT|SERIAL")
@authority_option
@chain_option
@_days_option(ISSUE_DAYS, VALID_DAYS, "How long the new certificate is valid.")
@out_option
@password_option
def renew(
    certificate: str,
    directory: Path,
    chain: str | None,
    days: int,
    out: Path | None,
    password_file: Path | None,
) -> None:
    """Issue another certificate for the same key, name and role.

    It replaces the file CERT, or goes to NAME-certificate.pem if a serial number was given. The one
    before stays valid until it expires; a running node takes the new one up without a restart.
    """
    home = _home(directory, chain)
    known = home.register().find(serial_in(certificate))
    file = Path(certificate)
    target = out or (file if file.is_file() else Path(f"{known.issued.name}-certificate.pem"))
    renewed = home.renew(_unlock(home, password_file), known.issued.serial, days)
    write_file(target, pem(renewed))
    click.echo(f"renewed      {target}  ({known.issued.name}, {known.issued.role})")
    _tell_certificate(renewed)


@command.command()
@click.argument("certificate", metavar="SERIAL|CERT")
@authority_option
@chain_option
@click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    required=True,
    help="Written into the list. key-compromise revokes all certificates of the key.",
)
@list_days_option
@out_option
@password_option
def revoke(
    certificate: str,
    directory: Path,
    chain: str | None,
    reason: str,
    days: int,
    out: Path | None,
    password_file: Path | None,
) -> None:
    """Take a certificate back, and write the list that says so.

    Nodes act on it as soon as they have it: hand the list to every node (its setting `revocations`).
    A revoked replica has no links, but keeps its seat: see `gtx members` for taking that away.
    """
    home = _home(directory, chain)
    taken = home.revoke(_unlock(home, password_file), serial_in(certificate), Reason(reason), days)
    for entry in taken:
        click.echo(f"revoked      {entry.issued.serial}  {entry.issued.name} ({reason})")
    if reason != Reason.KEY_COMPROMISE.value:
        _tell_others(home, taken[0])
    _hand_out_list(home, out)


@command.command()
@authority_option
@chain_option
@list_days_option
@out_option
@password_option
def crl(
    directory: Path, chain: str | None, days: int, out: Path | None, password_file: Path | None
) -> None:
    """Sign the revocation list anew, before the last one is due."""
    home = _home(directory, chain)
    home.publish(_unlock(home, password_file), days)
    _hand_out_list(home, out)


@command.command("list")
@authority_option
@chain_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
def list_(directory: Path, chain: str | None, *, as_json: bool) -> None:
    """List every certificate: serial number, name, role, validity, state. Needs no password."""
    home = _home(directory, chain)
    register, now = home.register(), dt.datetime.now(dt.UTC)
    entries = register.entries()
    if as_json:
        rows = [{**_as_dict(entry), "state": entry.state(now)} for entry in entries]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    for entry in entries:
        issued = entry.issued
        click.echo(
            f"{issued.serial[:16]}  {issued.name:<24}  {issued.role:<6}  until {issued.until[:10]}"
            f"  {entry.state(now)}"
        )
    click.echo(f"{len(entries)} certificates; revocation list {register.number}", err=True)
    _check_list_file(home, register.number)


@command.command()
@click.argument("certificate", metavar="SERIAL|CERT")
@authority_option
@chain_option
@out_option
def show(certificate: str, directory: Path, chain: str | None, out: Path | None) -> None:
    """Show a certificate of the register, and write it again with --out. Needs no password."""
    home = _home(directory, chain)
    entry = home.register().find(serial_in(certificate))
    issued = entry.issued
    click.echo(f"name         {issued.name}\nrole         {issued.role}")
    click.echo(f"key          {issued.public_key}")
    _tell_certificate(x509.load_pem_x509_certificate(issued.certificate.encode()))
    click.echo(f"state        {entry.state(dt.datetime.now(dt.UTC))}")
    if out is not None:
        write_file(out, issued.certificate.encode())
        click.echo(f"wrote {out}", err=True)


# -- internals -------------------------------------------------------------------------------------


def _home(directory: Path, chain: str | None) -> AuthorityHome:
    if chain is not None:
        return AuthorityHome(directory, chain)
    chains = chains_in(directory)
    if len(chains) == 1:
        return AuthorityHome(directory, chains[0])
    if chains:
        raise LocalFault(f"{directory}: holds several authorities: give --chain {'|'.join(chains)}")
    raise LocalFault(
        f"{directory}: holds no authority; make one with: gtx ca init --authority {directory}"
        " --chain NAME"
    )


def _unlock(home: AuthorityHome, password_file: Path | None) -> Authority:
    return home.unlock(open_ring(home.keys, password_file))


def _answer_to(request: Path) -> Path:
    if request.name.endswith(_REQUEST):
        return request.with_name(request.name.removesuffix(_REQUEST) + "-certificate.pem")
    return request.with_name(f"{request.stem}-certificate.pem")


def _tell_request(file: Path, request: EnrolmentRequest) -> None:
    role = request.role.value if request.role is not None else "none that we know"
    click.echo(f"request      {file}")
    click.echo(f"  name       {check_name(request.name)}")
    click.echo(f"  role       {role}")
    click.echo(f"  chain      {check_name(request.chain) if request.chain else 'not said'}")
    click.echo(f"  key        {request.public_key.hex()}")
    click.echo(f"  address    {address(request.public_key)}")
    for host in request.hosts:
        click.echo(f"  host       {check_name(host)}")


def _tell_certificate(certificate: x509.Certificate) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    click.echo(f"  serial     {show_serial(certificate.serial_number)}")
    click.echo(f"  sha256     {fingerprint(certificate)}")
    click.echo(f"  valid      {show_time(start)} to {show_time(end)}")


def _tell_others(home: AuthorityHome, entry: Entry) -> None:
    now = dt.datetime.now(dt.UTC)
    for other in home.register().entries():
        if other.issued.public_key == entry.issued.public_key and other.is_valid(now):
            click.echo(
                f"note: the same key holds {other.issued.serial}, valid until"
                f" {other.issued.until[:10]}",
                err=True,
            )


def _hand_out_list(home: AuthorityHome, out: Path | None) -> None:
    if out is not None:
        write_file(out, read_file(home.list_path))
    listed = RevocationList.load(home.list_path, load_certificate(home.certificate_path))
    click.echo(
        f"list         {out or home.list_path}\n"
        f"  number     {listed.number}, {len(listed.revoked)} revoked\n"
        f"  next       due by {show_time(listed.due)}\n"
        "hand it to every node: the file of its setting `revocations` is read again as it changes"
    )


def _check_list_file(home: AuthorityHome, number: int) -> None:
    """A command that was killed may have left the file behind the register."""
    try:
        listed = RevocationList.load(home.list_path, load_certificate(home.certificate_path))
    except LocalFault as fault:
        click.echo(f"warning: {fault}; write it again with: gtx ca crl", err=True)
        return
    if listed.number != number:
        click.echo(
            f"warning: {home.list_path} is list {listed.number} of {number}; write it again with:"
            " gtx ca crl",
            err=True,
        )


def _as_dict(entry: Entry) -> dict[str, object]:
    issued = msgspec.structs.asdict(entry.issued)
    revoked = entry.revoked
    return {**issued, "revoked_at": revoked.at if revoked else None}
