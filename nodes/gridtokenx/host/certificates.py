"""X.509 certificates: the authority of a permissioned chain, and what it issues.

A certificate binds an Ed25519 identity key to a name and a role; it is the enrolment of a replica, an
oracle, a relayer or a client. The authority signs public keys only: it never sees a node's secret.
Who a peer *is* is the key in its certificate, so host names are not checked; what it *may do* on the
link is its role (`Role`), written as the subject's organisational unit.

The same encoding gives the public chain its ephemeral server certificates, which prove nothing by
themselves: there the handshake inside the channel signs the certificate's hash.
"""

import datetime as dt
import enum
import ipaddress
import secrets
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.host.files import read_file

_DAY: Final = dt.timedelta(days=1)
VALID_DAYS: Final = 3650
LIST_DAYS: Final = 30
"""How soon a revocation list promises a newer one, unless told otherwise."""
NAME_LENGTH: Final = 64
"""The longest common name that X.509 has room for."""


class Role(enum.Enum):
    """What the holder of a certificate may do on a link."""

    AUTHORITY = "authority"
    PEER = "peer"
    """A member of the chain: replica, oracle or validator."""
    CLIENT = "client"
    """Follows and submits: gateway, relayer, agent."""
    DEVICE = "device"
    """A meter or battery, known to the MQTT broker and the registry."""
    BROKER = "broker"
    """An MQTT broker, to whom devices and oracles connect."""


class Reason(enum.Enum):
    """Why a certificate was revoked (RFC 5280 §5.3.1; those that an enrolment can have)."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessation-of-operation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of one network: its certificate, and the secret that issues."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @classmethod
    def create(cls, name: str, seed: bytes, *, days: int = VALID_DAYS) -> "Authority":
        """A self-signed authority with the key made from `seed`."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        subject = subject_name(name, Role.AUTHORITY)
        builder = _builder(subject, subject, key.public_key(), days).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        return cls(builder.sign(key, None), key)

    @classmethod
    def load(cls, certificate_file: Path, seed: bytes) -> "Authority":
        """An authority from its public certificate and its secret.

        Raises:
            LocalFault: the file is no certificate, or belongs to another key.
        """
        certificate = load_certificate(certificate_file)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        if public_key_in(certificate) != key.public_key().public_bytes_raw():
            raise LocalFault(f"{certificate_file}: belongs to another key than the authority's")
        return cls(certificate, key)

    def issue(
        self,
        public_key: bytes,
        name: str,
        role: Role,
        *,
        days: int = VALID_DAYS,
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        """A certificate for somebody's Ed25519 public key.

        Args:
            public_key: whose.
            name: the subject's common name.
            role: what the holder may do.
            days: how long it is valid.
            hosts: names and addresses of a server that strangers' software checks by name (MQTT).
        """
        subject_key = Ed25519PublicKey.from_public_bytes(public_key)
        builder = _builder(subject_name(name, role), self.certificate.subject, subject_key, days)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if hosts:
            names = x509.SubjectAlternativeName([host_name(each) for each in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, None)

    def revoke(
        self, revoked: Mapping[int, Reason], number: int, *, days: int = LIST_DAYS
    ) -> x509.CertificateRevocationList:
        """The list of all that is revoked.

        Args:
            revoked: serial numbers and reasons.
            number: of the list; each list has a greater one than all before it.
            days: until when a newer list is promised.
        """
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _DAY)  # not of the future for those whose clocks are behind
            .next_update(now + days * _DAY)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        for serial, reason in sorted(revoked.items()):
            builder = builder.add_revoked_certificate(_revoked(serial, reason, now))
        return builder.sign(self.key, None)


def subject_name(name: str, role: Role) -> x509.Name:
    """Who a certificate is for: GridTokenX, the role, the name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "GridTokenX"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:NAME_LENGTH]),
        ]
    )


def host_name(name: str) -> x509.GeneralName:
    """A host in a certificate: an address, or a name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def self_signed(seed: bytes, name: str = "ephemeral") -> x509.Certificate:
    """A short-lived certificate that only carries a key (public chain's servers)."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    subject = subject_name(name, Role.PEER)
    return _builder(subject, subject, key.public_key(), VALID_DAYS).sign(key, None)


# -- reading ---------------------------------------------------------------------------------------


def load_certificate(path: Path) -> x509.Certificate:
    """A certificate from a PEM file.

    Raises:
        LocalFault: unreadable or no certificate.
    """
    if not path.exists():
        raise LocalFault(
            f"{path}: no certificate is there yet; put there what the chain's authority sent (it"
            " answers a request with: gtx ca issue REQUEST)"
        )
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError:
        raise LocalFault(f"{path}: is no PEM certificate") from None


def public_key_in(certificate: x509.Certificate) -> bytes:
    """The Ed25519 key that a certificate binds.

    Raises:
        RemoteFault: it holds another kind of key.
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise RemoteFault("wrong-certificate", "the certificate's key is not Ed25519")
    return key.public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Subject:
    """What a certificate says of its holder."""

    public_key: bytes
    name: str
    role: Role
    serial: int
    until: dt.datetime
    """When it ceases to be valid."""

    def fault(self, revocations: "RevocationList | None", now: dt.datetime) -> RemoteFault | None:
        """Why its holder has no link any more, if so."""
        reason = revocations.revoked.get(self.serial) if revocations is not None else None
        if reason is not None:
            return RemoteFault(
                "revoked", f"certificate {show_serial(self.serial)} was revoked: {reason.value}"
            )
        if now > self.until:
            return RemoteFault(
                "expired", f"the certificate was valid until {show_time(self.until)}"
            )
        return None


def subject_of(certificate: x509.Certificate) -> Subject:
    """Read a certificate of ours.

    Raises:
        RemoteFault: it is not ours in form.
    """
    try:
        units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        role = Role(str(units[0].value)) if units else None
    except ValueError as error:
        raise RemoteFault("wrong-certificate", str(error)) from None
    if role is None:
        raise RemoteFault("wrong-certificate", "the certificate names no role")
    return Subject(
        public_key_in(certificate),
        str(names[0].value) if names else "",
        role,
        certificate.serial_number,
        certificate.not_valid_after_utc,
    )


def peer_subject(shown: bytes) -> Subject:
    """What is said in the certificate that a peer presented (TLS has verified its chain).

    Raises:
        RemoteFault: not ours in form.
    """
    try:
        certificate = x509.load_der_x509_certificate(shown)
    except ValueError as error:
        raise RemoteFault("wrong-certificate", str(error)) from None
    return subject_of(certificate)


def peer_identity(shown: bytes) -> tuple[bytes, Role]:
    """Key and role in the certificate that a peer presented; see `peer_subject`."""
    subject = peer_subject(shown)
    return subject.public_key, subject.role


def pem(certificate: x509.Certificate) -> bytes:
    """PEM text of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_list(listed: x509.CertificateRevocationList) -> bytes:
    """PEM text of a revocation list."""
    return listed.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """DER bytes of a certificate, as TLS shows it."""
    return certificate.public_bytes(serialization.Encoding.DER)


def show_serial(serial: int) -> str:
    """A serial number as people see it."""
    return f"{serial:040x}"


def show_time(moment: dt.datetime) -> str:
    """A moment as people see it: to the minute, in UTC."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the certificate, for two people to compare."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_issued(certificate_file: Path, authority_file: Path, public_key: bytes) -> None:
    """Refuse at start what would otherwise be refused by every peer.

    Raises:
        LocalFault: expired, not issued by this authority, or for another key.
    """
    certificate, authority = load_certificate(certificate_file), load_certificate(authority_file)
    now = dt.datetime.now(dt.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise LocalFault(
            f"{certificate_file}: valid from {certificate.not_valid_before_utc:%Y-%m-%d} to"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}, not now; have it issued again"
        )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise LocalFault(
            f"{certificate_file}: was not issued by the authority in {authority_file}"
        ) from None
    if public_key_in(certificate) != public_key:
        raise LocalFault(
            f"{certificate_file}: is for key {public_key_in(certificate).hex()}, but this node's"
            f" identity is {public_key.hex()}"
        )


# -- revocation ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RevocationList:
    """The certificates that an authority has taken back (a CRL of RFC 5280)."""

    number: int
    """Grows with every list, so that an old one cannot bring somebody back."""
    due: dt.datetime
    """When a newer list was promised."""
    revoked: Mapping[int, Reason]
    """Reason by serial number."""

    @classmethod
    def load(cls, path: Path, authority: x509.Certificate) -> "RevocationList":
        """Read a list, and check that the authority signed it.

        Raises:
            LocalFault: unreadable, no such list, or signed by somebody else.
        """
        data = read_file(path)
        try:
            listed = x509.load_pem_x509_crl(data)
            number = listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            unknown = [extension.oid for extension in listed.extensions if extension.critical]
            revoked = {each.serial_number: _reason(each) for each in listed}
        except (ValueError, x509.ExtensionNotFound) as error:
            raise LocalFault(f"{path}: is no revocation list in PEM form: {error}") from None
        if unknown:
            raise LocalFault(f"{path}: is a partial revocation list; a whole one is needed")
        key = authority.public_key()
        if not isinstance(key, Ed25519PublicKey) or not listed.is_signature_valid(key):
            raise LocalFault(
                f"{path}: was not signed by the authority {common_name(authority)!r} of this chain"
            )
        return cls(
            number, listed.next_update_utc or dt.datetime.max.replace(tzinfo=dt.UTC), revoked
        )


def common_name(certificate: x509.Certificate) -> str:
    """The name of a certificate's subject; empty if it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _revoked(serial: int, reason: Reason, now: dt.datetime) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
    if reason is not Reason.UNSPECIFIED:  # RFC 5280 §5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(_FLAGS[reason]), critical=False)
    return builder.build()


def _reason(entry: x509.RevokedCertificate) -> Reason:
    try:
        flag = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return Reason.UNSPECIFIED
    return next((ours for ours, theirs in _FLAGS.items() if theirs is flag), Reason.UNSPECIFIED)


_FLAGS: Final = {
    Reason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    Reason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    Reason.SUPERSEDED: x509.ReasonFlags.superseded,
    Reason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
    Reason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}


# -- TLS -------------------------------------------------------------------------------------------


def mutual_context(
    *, server: bool, certificate: x509.Certificate, seed: bytes, authority: x509.Certificate
) -> ssl.SSLContext:
    """TLS 1.3 where both ends show a certificate that `authority` issued."""
    context = _context(server=server)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=pem(authority).decode())
    load_chain(context, certificate, seed)
    return context


def anonymous_server_context(certificate: x509.Certificate, seed: bytes) -> ssl.SSLContext:
    """TLS 1.3 for a server whose certificate proves nothing (see `transport`)."""
    context = _context(server=True)
    context.verify_mode = ssl.CERT_NONE
    load_chain(context, certificate, seed)
    return context


def anonymous_client_context() -> ssl.SSLContext:
    """TLS 1.3 to such a server; the handshake inside decides whether to trust it."""
    context = _context(server=False)
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(*, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if server:
        context.num_tickets = 0  # links are long-lived; a ticket per handshake is only memory
    return context


def load_chain(context: ssl.SSLContext, certificate: x509.Certificate, seed: bytes) -> None:
    """Hand a secret to OpenSSL, which reads keys from files only.

    It passes through a private temporary file, encrypted under a password that exists nowhere else.
    """
    password = secrets.token_bytes(32).hex().encode()
    key = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.NamedTemporaryFile(prefix="gtx-", suffix=".pem") as file:
        file.write(pem(certificate) + key)
        file.flush()
        context.load_cert_chain(file.name, password=password)


# -- internals -------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
