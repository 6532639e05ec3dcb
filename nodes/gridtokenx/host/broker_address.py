"""Where an MQTT broker is, how it proves itself, and how we prove ourselves: settings and TLS.

==================  ================================================================================
way to log in       settings
==================  ================================================================================
certificate         ``mqtts://host``, `broker_certificate`; the key is our identity key (the device's
                    own), or the PEM file `broker_certificate_key`
name and password   ``mqtt[s]://user@host``, and the password in `broker_password_file` or
                    ``GTX_BROKER_PASSWORD`` (or in the address, where others may see it)
signature           nothing: the embedded broker knows our public key (`ledger/broker_access.py`)
==================  ================================================================================

A broker's certificate is always checked, its host name too. What is wrong with a file is said at
start; what is wrong with the other side, by `explain`, each time that the state of a connection
changes.
"""

import datetime as dt
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol
from urllib.parse import unquote, urlsplit

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.host.certificates import load_certificate, load_chain, public_key_in
from gridtokenx.host.config import Setting
from gridtokenx.host.files import read_file

if TYPE_CHECKING:
    import aiomqtt

PASSWORD_VARIABLE: Final = "GTX_BROKER_PASSWORD"  # noqa: S105 - its name, not a password
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

Version = Literal["5", "3.1.1"]
Opener = Callable[[str, int, "aiomqtt.Will | None"], "aiomqtt.Client"]
BrokerUrl = Annotated[str, Setting("MQTT broker: mqtt[s]://[user[:password]@]host[:port].")]
BrokerProtocol = Annotated[
    Version, Setting("MQTT version to speak; the embedded broker knows 3.1.1 only.")
]
BrokerAuthority = Annotated[
    Path | None,
    Setting("PEM certificate of the authority of an mqtts broker; else the system's authorities."),
]
BrokerCertificate = Annotated[
    Path | None, Setting("PEM certificate by which this process logs in at an mqtts broker.")
]
BrokerCertificateKey = Annotated[
    Path | None, Setting("PEM key of the broker certificate; else it is the identity key.")
]
BrokerPasswordFile = Annotated[
    Path | None,
    Setting(f"File that holds the password of the address's user; else {PASSWORD_VARIABLE}."),
]


class BrokerSettings(Protocol):
    """What every schema of a process with a broker has."""

    @property
    def broker(self) -> str:
        """Its address."""
        ...

    @property
    def broker_protocol(self) -> Version:
        """MQTT version."""
        ...

    @property
    def broker_authority(self) -> Path | None:
        """Who certified it."""
        ...

    @property
    def broker_password_file(self) -> Path | None:
        """Our password."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, and how to log in."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None
    version: Version = "3.1.1"
    authority: Path | None = None
    certified: bool = False
    """Whether the TLS session shows a certificate of ours, so that no password is needed."""
    opener: Opener | None = None
    """Makes connections that have no socket below, from the client's name, the bound of its incoming
    messages and its last will: for a broker that is not on a network."""

    def with_certificate(self, certificate: Path, key: bytes | Path) -> "BrokerAddress":
        """The same broker, for a client that logs in by certificate.

        Args:
            certificate: PEM file.
            key: the Ed25519 seed that it is for, or a PEM file with its key.

        Raises:
            LocalFault: no mqtts broker, an unusable file, an expired certificate, another's key.
        """
        if self.tls is None:
            raise LocalFault(
                f"{certificate}: a certificate needs a broker at mqtts://, not mqtt://"
            )
        context = _trust(self.authority)
        _load(context, certificate, key)
        return BrokerAddress(
            self.host, self.port, context, self.username, self.password, self.version,
            self.authority, certified=True,
        )  # fmt: skip


def open_broker(settings: BrokerSettings) -> BrokerAddress:
    """The broker that the settings name.

    Raises:
        LocalFault: no such address, or a file that cannot be used.
    """
    address = parse_broker(settings.broker, settings.broker_authority, settings.broker_protocol)
    password = address.password
    if settings.broker_password_file is not None:
        password = _password_in(settings.broker_password_file)
    elif password is None and address.username is not None:
        password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None and address.username is None:
        raise LocalFault(
            f"broker {settings.broker!r} names no user for its password: mqtt[s]://user@host"
        )
    return BrokerAddress(
        address.host, address.port, address.tls, address.username, password, address.version,
        address.authority,
    )  # fmt: skip


def parse_broker(
    url: str, authority: Path | None = None, version: Version = "3.1.1"
) -> BrokerAddress:
    """A broker's address from ``mqtt[s]://[user[:password]@]host[:port]``.

    Raises:
        LocalFault: it is no such address, or the authority's file cannot be used.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise _no_broker(url) from None
    if not parts.hostname:
        raise _no_broker(url)
    return BrokerAddress(
        parts.hostname,
        port,
        _trust(authority) if parts.scheme == "mqtts" else None,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        version,
        authority,
    )


def _no_broker(url: str) -> LocalFault:
    return LocalFault(f"broker {url!r} is not mqtt[s]://[user[:password]@]host[:port]")


def _password_in(path: Path) -> str:
    try:
        password = read_file(path).decode().strip()
    except UnicodeDecodeError:
        password = ""
    if not password or "\n" in password:
        raise LocalFault(f"{path}: must hold the broker's password in one line")
    return password


# -- TLS -------------------------------------------------------------------------------------------


def _trust(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise LocalFault(f"{authority}: cannot be used as broker_authority: {error}") from None


def _load(context: ssl.SSLContext, path: Path, key: bytes | Path) -> None:
    certificate = load_certificate(path)
    now = dt.datetime.now(dt.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise LocalFault(
            f"{path}: valid from {certificate.not_valid_before_utc:%Y-%m-%d} to"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}, not now; have it issued again"
        )
    if isinstance(key, Path):
        try:
            context.load_cert_chain(path, key)
        except (OSError, ssl.SSLError) as error:
            raise LocalFault(f"{key}: is no PEM key of {path}: {error}") from None
        return
    identity = Ed25519Signer(key).public_key
    if public_key_in(certificate) != identity:
        raise LocalFault(
            f"{path}: is for key {public_key_in(certificate).hex()}, but ours is {identity.hex()}"
        )
    load_chain(context, certificate, key)


_ALERT: Final = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")
_OURS: Final = "it refuses our certificate"
_ALERTS: Final = {
    "CERTIFICATE_REVOKED": f"{_OURS}, which is revoked; have a new one issued",
    "CERTIFICATE_EXPIRED": f"{_OURS}, which has expired; have a new one issued",
    "UNKNOWN_CA": f"{_OURS}, which another authority issued than its own",
    "DECRYPT_ERROR": f"{_OURS}, which another authority issued than its own",
    "BAD_CERTIFICATE": f"{_OURS}",
    "CERTIFICATE_UNKNOWN": f"{_OURS}",
    "CERTIFICATE_REQUIRED": "it asks for a certificate: set broker_certificate",
    "PROTOCOL_VERSION": "it speaks another version of TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS at this port: mqtt:// instead of mqtts://?",
}
_EXPIRED, _WRONG_NAMES, _UNKNOWN_ISSUERS = 10, (62, 64), (2, 18, 19, 20, 21)


def explain(error: BaseException | str, address: BrokerAddress) -> str:
    """Why a broker could not be reached, for a person: what is wrong, and where."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, address)
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {address.host}:{address.port}"
    if isinstance(error, TimeoutError):
        return f"no answer from {address.host}:{address.port}"
    text = str(error)
    found = _ALERT.search(text)
    if found is not None:
        name = found.group(1)
        for alert, meaning in _ALERTS.items():
            if name.endswith(alert):
                return meaning
    return text or type(error).__name__


def _unverified(error: ssl.SSLCertVerificationError, address: BrokerAddress) -> str:
    if error.verify_code == _EXPIRED:
        return "its certificate has expired; its operator must renew it"
    if error.verify_code in _WRONG_NAMES:
        return f"its certificate is not for {address.host}: is the address right?"
    if error.verify_code in _UNKNOWN_ISSUERS:
        source = address.authority or "the system's list"
        return f"its certificate was not issued by the authority in {source} (broker_authority)"
    return f"its certificate is not accepted: {error.verify_message}"
