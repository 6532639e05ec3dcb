"""Enrolment requests (PKCS#10): a key that asks an authority for a certificate.

The request is signed with the key that it is about, so it proves possession of it; name and role are
what its maker would like, and the authority decides. Nothing else of a request is believed, and no
extension of it is copied into a certificate.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.x509.oid import NameOID

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.certificates import NAME_LENGTH, Role, host_name, subject_name
from gridtokenx.host.files import read_file

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9 ._:@+-]{{0,{NAME_LENGTH - 1}}}")
_HOST: Final = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}")
_CHAIN_URI: Final = "gridtokenx:"
MAX_REQUEST_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """What somebody asks for."""

    public_key: bytes
    name: str
    role: Role | None
    """None: it names no role that we know."""
    chain: str
    """The chain for which it was made; empty if it does not say."""
    hosts: tuple[str, ...] = ()
    """Host names, which a broker's certificate has."""


def make_request(
    seed: bytes, name: str, role: Role, chain: str, hosts: Sequence[str] = ()
) -> x509.CertificateSigningRequest:
    """A request for the key made from `seed`.

    Args:
        seed: the secret that signs.
        name: of the holder, for people.
        role: what the holder wants to do.
        chain: whose authority is asked.
        hosts: of a broker.

    Raises:
        LocalFault: a name that no certificate can carry.
    """
    uri = x509.UniformResourceIdentifier(_CHAIN_URI + chain)
    names: list[x509.GeneralName] = [uri, *(host_name(_check_host(each)) for each in hosts)]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject_name(check_name(name), role))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(Ed25519PrivateKey.from_private_bytes(seed), None)
    )


def request_pem(request: x509.CertificateSigningRequest) -> bytes:
    """PEM text of a request."""
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(path: Path) -> EnrolmentRequest:
    """Read a request and check that its key signed it.

    Raises:
        LocalFault: unreadable, not signed by its own key, or of a key that we do not use.
    """
    data = read_file(path)
    try:
        request = x509.load_pem_x509_csr(data[:MAX_REQUEST_BYTES])
        key = request.public_key()
        extensions = request.extensions
    except (ValueError, TypeError) as error:
        raise LocalFault(f"{path}: is no enrolment request in PEM form: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise LocalFault(f"{path}: its key is {type(key).__name__}; only Ed25519 keys are enrolled")
    if not _is_signed(request):
        raise LocalFault(f"{path}: was not signed by the key that it is about; ask for another")
    chain, hosts = _alternative_names(extensions)
    return EnrolmentRequest(
        key.public_bytes_raw(),
        _text(request, NameOID.COMMON_NAME),
        _role(_text(request, NameOID.ORGANIZATIONAL_UNIT_NAME)),
        chain,
        hosts,
    )


def check_name(name: str) -> str:
    """A name that a certificate can carry and a terminal can show.

    Raises:
        LocalFault: it is none.
    """
    if not _NAME.fullmatch(name):
        raise LocalFault(
            f"name {name!r} is not allowed: letters, digits, spaces and . _ : @ + -, a letter or digit"
            f" first, up to {NAME_LENGTH}"
        )
    return name


def _check_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise LocalFault(f"host {host!r} is not allowed: a host name or an address, without a port")
    return host


def _is_signed(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (InvalidSignature, ValueError, TypeError):
        return False


def _alternative_names(extensions: x509.Extensions) -> tuple[str, tuple[str, ...]]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "", ()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    chains = [uri.removeprefix(_CHAIN_URI) for uri in uris if uri.startswith(_CHAIN_URI)]
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (chains[0] if chains else ""), (*names.get_values_for_type(x509.DNSName), *addresses)


def _text(request: x509.CertificateSigningRequest, oid: x509.ObjectIdentifier) -> str:
    found = request.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if found else ""


def _role(text: str) -> Role | None:
    try:
        return Role(text)
    except ValueError:
        return None
