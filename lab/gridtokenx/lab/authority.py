"""The home of a certificate authority: its keys, its register, its newest revocation list.

::

    DIR/keys/                     one key ring; the key of a chain's authority bears the chain's name
    DIR/CHAIN/authority.pem       the authority's own certificate, which every node has
    DIR/CHAIN/register.jsonl      everything that was issued and taken back, one record a line
    DIR/CHAIN/revocations.pem     the newest list, which every node has

Law of the file: **nothing leaves the authority that its register does not know.** A record is durable
before the certificate or the list that it tells of is written. The register only grows; a line that a
crash cut short is the one whose certificate was never handed out, and is dropped.
"""

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec
from cryptography import x509

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.certificates import (
    LIST_DAYS,
    Authority,
    Reason,
    Role,
    load_certificate,
    pem,
    pem_list,
    show_serial,
    show_time,
    subject_of,
)
from gridtokenx.host.enrolment import EnrolmentRequest, check_name
from gridtokenx.host.files import read_file, write_file
from gridtokenx.host.keyfile import KeyRing

SHORTEST_SERIAL: Final = 8
"""So many digits of a serial number may stand for it, if they are unique."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event"):
    at: str
    """When, ISO 8601."""


class Issued(_Record, frozen=True, tag="issued"):
    """A certificate."""

    serial: str
    name: str
    role: str
    public_key: str
    until: str
    certificate: str
    """PEM: what was lost on the way can be handed out again."""


class Revoked(_Record, frozen=True, tag="revoked"):
    """A certificate was taken back."""

    serial: str
    reason: str


class Listed(_Record, frozen=True, tag="listed"):
    """A revocation list was signed."""

    number: int
    due: str


Record = Issued | Revoked | Listed


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate as it stands now."""

    issued: Issued
    revoked: Revoked | None

    @property
    def until(self) -> dt.datetime:
        """The end of its validity."""
        return dt.datetime.fromisoformat(self.issued.until)

    def state(self, now: dt.datetime) -> str:
        """One word, and the reason of a revocation."""
        if self.revoked is not None:
            return f"revoked ({self.revoked.reason})"
        return "expired" if now > self.until else "valid"

    def is_valid(self, now: dt.datetime) -> bool:
        """Whether its holder gets links with it."""
        return self.state(now) == "valid"


class Register:
    """Everything that one authority did. `changing` locks it against other commands."""

    def __init__(self, path: Path, records: Sequence[Record], file: IO[bytes] | None) -> None:
        self._path = path
        self._file = file
        self.number = 0
        """Of the newest revocation list."""
        self.due = ""
        self._issued: dict[str, Issued] = {}
        self._revoked: dict[str, Revoked] = {}
        for record in records:
            self._take(record)

    @classmethod
    def read(cls, path: Path) -> "Register":
        """The register as it stands.

        Raises:
            LocalFault: unreadable, or a line other than the last is damaged.
        """
        return cls(path, _parse(path, read_file(path))[0], None)

    @classmethod
    @contextlib.contextmanager
    def changing(cls, path: Path) -> Iterator["Register"]:
        """The register, for whoever will add to it.

        Raises:
            LocalFault: as `read`, or another command is adding to it.
        """
        try:
            file = path.open("r+b")
        except OSError as error:
            raise LocalFault(f"{path}: cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalFault(f"{path}: another gtx ca is at work; try again") from None
            records, whole = _parse(path, file.read())
            file.truncate(whole)
            file.seek(whole)
            yield cls(path, records, file)

    def entries(self) -> list[Entry]:
        """All certificates, in order of issue."""
        return [Entry(each, self._revoked.get(each.serial)) for each in self._issued.values()]

    def find(self, serial: str) -> Entry:
        """A certificate by its serial number, or by the unique beginning of it.

        Raises:
            LocalFault: none, or several.
        """
        digits = serial.lower().replace(":", "")
        found = [each for each in self._issued if each.startswith(digits)]
        if digits.zfill(40) in self._issued:
            found = [digits.zfill(40)]
        if len(digits) < SHORTEST_SERIAL or not found:
            raise LocalFault(
                f"{serial}: no file, and no serial number in {self._path}; see: gtx ca list"
            )
        if len(found) > 1:
            raise LocalFault(f"{serial}: begins {len(found)} serial numbers; give more digits")
        return Entry(self._issued[found[0]], self._revoked.get(found[0]))

    def revoked(self) -> dict[int, Reason]:
        """What a revocation list says."""
        return {int(each.serial, 16): Reason(each.reason) for each in self._revoked.values()}

    def append(self, *records: Record) -> None:
        """Add records, durably.

        Raises:
            LocalFault: it cannot be written.
        """
        assert self._file is not None, "only inside `changing`"
        try:
            self._file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise LocalFault(f"{self._path}: cannot be written: {error.strerror}") from None
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        match record:
            case Issued():
                self._issued[record.serial] = record
            case Revoked():
                self._revoked.setdefault(record.serial, record)
            case Listed():
                self.number, self.due = max(self.number, record.number), record.due


class AuthorityHome:
    """One chain's authority in its directory.

    Raises:
        LocalFault: no authority of that chain is there.
    """

    def __init__(self, directory: Path, chain: str) -> None:
        self.chain: Final = chain
        self.keys: Final = directory / "keys"
        self.certificate_path: Final = directory / chain / "authority.pem"
        self.register_path: Final = directory / chain / "register.jsonl"
        self.list_path: Final = directory / chain / "revocations.pem"
        if not self.register_path.is_file():
            raise LocalFault(
                f"{directory}: holds no authority of the chain {chain!r}; make one with:"
                f" gtx ca init --authority {directory} --chain {chain}"
            )

    @classmethod
    def create(
        cls, directory: Path, chain: str, ring: KeyRing, name: str, days: int
    ) -> "AuthorityHome":
        """Make the key, the certificate, an empty register and the first list, which is empty.

        Raises:
            LocalFault: there is one already, or a file cannot be written.
        """
        home = directory / chain
        if home.exists():
            raise LocalFault(f"{home}: exists; an authority is never overwritten")
        if chain not in ring.names():
            ring.generate(chain)
        authority = Authority.create(name, ring.seed(chain), days=days)
        write_file(home / "authority.pem", pem(authority.certificate))
        write_file(home / "register.jsonl", b"", mode=0o600)
        made = cls(directory, chain)
        made.publish(authority)
        return made

    def register(self) -> Register:
        """What was issued and revoked."""
        return Register.read(self.register_path)

    def unlock(self, ring: KeyRing) -> Authority:
        """The authority with its secret.

        Raises:
            LocalFault: key and certificate do not belong together.
        """
        return Authority.load(self.certificate_path, ring.seed(self.chain))

    def issue(
        self, authority: Authority, request: EnrolmentRequest, role: Role, days: int
    ) -> x509.Certificate:
        """Enrol a key under the name and the hosts of its request.

        Raises:
            LocalFault: the request is for another chain, its key is known to be compromised, its
                name is another key's, or the certificate would outlive the authority's.
        """
        if request.chain and request.chain != self.chain:
            raise LocalFault(
                f"the request is for the chain {request.chain!r}, this is the authority of"
                f" {self.chain!r}"
            )
        now = dt.datetime.now(dt.UTC)
        _check_days(authority, now, days)
        with Register.changing(self.register_path) as register:
            _check_key_is_secret(register, request.public_key)
            _check_name_is_free(register, check_name(request.name), request.public_key, now)
            certificate = authority.issue(
                request.public_key,
                request.name,
                role,
                days=days,
                hosts=request.hosts if role is Role.BROKER else (),
            )
            register.append(_issued(certificate, request.name, role, request.public_key, now))
        return certificate

    def note(self, certificates: Sequence[x509.Certificate]) -> None:
        """Take up what a program issued with this authority's key, all at once."""
        now = dt.datetime.now(dt.UTC)
        records = []
        for certificate in certificates:
            holder = subject_of(certificate)
            records.append(_issued(certificate, holder.name, holder.role, holder.public_key, now))
        with Register.changing(self.register_path) as register:
            register.append(*records)

    def renew(self, authority: Authority, serial: str, days: int) -> x509.Certificate:
        """Another certificate for the same key, name and role.

        Raises:
            LocalFault: unknown or revoked.
        """
        now = dt.datetime.now(dt.UTC)
        _check_days(authority, now, days)
        with Register.changing(self.register_path) as register:
            entry = register.find(serial)
            if entry.revoked is not None:
                raise LocalFault(
                    f"{entry.issued.serial} was revoked ({entry.revoked.reason}) and is not renewed;"
                    " its holder has to send a request"
                )
            known = entry.issued
            key = bytes.fromhex(known.public_key)
            _check_name_is_free(register, known.name, key, now)
            certificate = authority.issue(
                key, known.name, Role(known.role), days=days, hosts=_hosts(known.certificate)
            )
            register.append(_issued(certificate, known.name, Role(known.role), key, now))
        return certificate

    def revoke(
        self, authority: Authority, serial: str, reason: Reason, days: int = LIST_DAYS
    ) -> list[Entry]:
        """Take a certificate back, and write a list that says so.

        A key that is no secret any more loses all of its certificates.

        Returns:
            What was taken back.

        Raises:
            LocalFault: unknown, or revoked before.
        """
        now = dt.datetime.now(dt.UTC)
        with Register.changing(self.register_path) as register:
            entry = register.find(serial)
            if entry.revoked is not None:
                raise LocalFault(
                    f"{entry.issued.serial} was revoked on {entry.revoked.at[:10]}"
                    f" ({entry.revoked.reason}); write the list again with: gtx ca crl"
                )
            taken = [entry]
            if reason is Reason.KEY_COMPROMISE:
                taken = [
                    each
                    for each in register.entries()
                    if each.issued.public_key == entry.issued.public_key and each.revoked is None
                ]
            register.append(
                *(Revoked(_stamp(now), each.issued.serial, reason.value) for each in taken)
            )
        self.publish(authority, days)
        return taken

    def publish(self, authority: Authority, days: int = LIST_DAYS) -> tuple[int, dt.datetime]:
        """Sign the list of all that is revoked; returns its number and when the next one is due."""
        now = dt.datetime.now(dt.UTC)
        due = now + dt.timedelta(days=days)
        with Register.changing(self.register_path) as register:
            number = register.number + 1
            register.append(Listed(_stamp(now), number, _stamp(due)))
            listed = authority.revoke(register.revoked(), number, days=days)
            write_file(self.list_path, pem_list(listed))
        return number, due


def chains_in(directory: Path) -> list[str]:
    """The chains whose authorities live in a directory."""
    return sorted(path.parent.name for path in directory.glob("*/register.jsonl"))


def serial_in(text: str) -> str:
    """The serial number that an argument means: the one in a certificate file, or itself."""
    path = Path(text)
    if path.is_file():
        return show_serial(load_certificate(path).serial_number)
    return text


# -- internals -------------------------------------------------------------------------------------


def _parse(path: Path, data: bytes) -> tuple[list[Record], int]:
    """The records of a register, and how many bytes of it are whole lines."""
    whole = data.rfind(b"\n") + 1
    records: list[Record] = []
    decoder = msgspec.json.Decoder(Record)
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            records.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise LocalFault(
                f"{path}: line {number} is damaged: {error}; restore it from a backup"
            ) from None
    return records, whole


def _issued(
    certificate: x509.Certificate, name: str, role: Role, public_key: bytes, now: dt.datetime
) -> Issued:
    return Issued(
        _stamp(now),
        show_serial(certificate.serial_number),
        name,
        role.value,
        public_key.hex(),
        _stamp(certificate.not_valid_after_utc),
        pem(certificate).decode(),
    )


def _check_name_is_free(register: Register, name: str, key: bytes, now: dt.datetime) -> None:
    """One name, one key: brokers and people know their peers by name."""
    for entry in register.entries():
        if entry.issued.name == name and entry.is_valid(now):
            if entry.issued.public_key != key.hex():
                raise LocalFault(
                    f"the name {name!r} belongs to another key (certificate"
                    f" {entry.issued.serial[:16]}); revoke that one first, or choose another name"
                )
            return


def _check_key_is_secret(register: Register, key: bytes) -> None:
    for entry in register.entries():
        revoked = entry.revoked
        if (
            entry.issued.public_key == key.hex()
            and revoked is not None
            and revoked.reason == Reason.KEY_COMPROMISE.value
        ):
            raise LocalFault(
                f"the key of this request was revoked as compromised on {revoked.at[:10]}; its holder"
                " has to make another key"
            )


def _check_days(authority: Authority, now: dt.datetime, days: int) -> None:
    end = authority.certificate.not_valid_after_utc
    if now + dt.timedelta(days=days) > end:
        left = max(0, (end - now).days)
        raise LocalFault(
            f"--days {days} is not allowed: the authority's own certificate ends on"
            f" {show_time(end)}; at most {left}"
        )


def _hosts(certificate_pem: str) -> tuple[str, ...]:
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _stamp(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="seconds")
