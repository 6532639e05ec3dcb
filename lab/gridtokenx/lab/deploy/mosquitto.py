"""Everything that a Mosquitto needs to carry a network's readings: settings, access list, keys.

Law of the file: **a connection is its certificate.** There is no listener without TLS, no client
without a certificate of the network's broker authority, and no name but the one in it: the subject's
common name is the client's public key in hexadecimal, Mosquitto takes it as user name *and* as client
id (so nobody can take over another's session), and the access list is made of it:

=============  ======================================  =========================================
who            may publish                             may read
=============  ======================================  =========================================
a device       its own readings and announcements      its own watermark
concentrator   its own batches                         the watermarks that answer them
an oracle      watermarks                              everything of the network
=============  ======================================  =========================================

Written for Mosquitto 2.0 and OpenSSL 3: Ed25519 certificates, TLS 1.3 only. All paths in the settings
are relative: start it in its directory (``cd broker && mosquitto -c mosquitto.conf``). A new
revocation list is taken up on SIGHUP.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gridtokenx.host.certificates import Authority, Role, pem
from gridtokenx.host.files import write_file
from gridtokenx.ledger.readings import TOPIC_ROOT, batch_topic, batch_watermark_topic

PORT: Final = 8883
MAX_PACKET_BYTES: Final = 65_536
"""Above the largest batch of a concentrator."""
QUEUED_MESSAGES: Final = 10_000
"""What waits for one client that is away; beyond it the newest are dropped, and sent again."""
QUEUED_BYTES: Final = 64 * 1024 * 1024
INFLIGHT_MESSAGES: Final = 64
SPARE_CONNECTIONS: Final = 64
"""Beside those of the clients that the plan knows: reconnects overlap with what they replace."""
_REVOCATIONS_DAYS: Final = 3_650


@dataclass(frozen=True, slots=True)
class MosquittoPlan:
    """What is known of a broker before it is written."""

    authority: Authority
    """Issued, or will issue, the certificates of all its clients; certifies the server here."""
    server_seed: bytes
    """32 secret bytes: the server's own key."""
    hosts: tuple[str, ...]
    """Names and addresses by which clients know the server."""
    oracles: tuple[bytes, ...]
    """Public keys of the oracle nodes."""
    concentrators: tuple[bytes, ...] = ()
    """Public keys of the concentrators."""
    devices: int = 0
    """How many devices have a connection of their own: with the others, the connection limit."""
    revoked: tuple[x509.Certificate, ...] = ()
    listen: str = "0.0.0.0"  # noqa: S104 - inside its container's or host's own network
    port: int = PORT
    run_as: str = "mosquitto"
    """The user that a Mosquitto started as root becomes."""


def write_mosquitto(directory: Path, plan: MosquittoPlan) -> None:
    """Write ``mosquitto.conf``, ``acl``, ``ca.pem``, ``crl.pem``, ``server.pem``, ``server.key``.

    Args:
        directory: of the broker; made if absent.
        plan: what it serves.

    Raises:
        LocalFault: a file cannot be written.
    """
    (directory / "data").mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.from_private_bytes(plan.server_seed)
    certificate = plan.authority.issue(
        key.public_key().public_bytes_raw(), "broker", Role.PEER, hosts=plan.hosts
    )
    write_file(directory / "ca.pem", pem(plan.authority.certificate))
    write_file(directory / "server.pem", pem(certificate))
    write_file(directory / "server.key", _private_pem(key), mode=0o600)
    write_file(directory / "crl.pem", revocation_list(plan.authority, plan.revoked))
    write_file(directory / "acl", access_list(plan.oracles, plan.concentrators).encode())
    write_file(directory / "mosquitto.conf", _settings(plan).encode())


def write_client_certificates(
    directory: Path, authority: Authority, keys: Mapping[str, bytes]
) -> None:
    """One certificate a client, ``NAME.pem``, whose common name is its public key.

    Args:
        directory: of the certificates, such as the device fleet's ``certificates``; made if absent.
        authority: the broker's.
        keys: public keys by the names of their key files.

    Raises:
        LocalFault: a file cannot be written.
    """
    for name, public_key in keys.items():
        certificate = client_certificate(authority, public_key)
        write_file(directory / f"{name}.pem", pem(certificate))


def client_certificate(authority: Authority, public_key: bytes) -> x509.Certificate:
    """The certificate by which a device, concentrator or oracle logs in at the broker."""
    return authority.issue(public_key, public_key.hex(), Role.DEVICE)


def revocation_list(authority: Authority, revoked: Sequence[x509.Certificate]) -> bytes:
    """A PEM revocation list, empty at first. Mosquitto wants one to be there, and not out of date."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - dt.timedelta(days=1))
        .next_update(now + dt.timedelta(days=_REVOCATIONS_DAYS))
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, None).public_bytes(serialization.Encoding.PEM)


def access_list(oracles: Sequence[bytes], concentrators: Sequence[bytes]) -> str:
    """Mosquitto's access list; what it does not grant is refused."""
    lines = [
        "# Patterns hold for every client: %u is its user name, which is its public key.",
        f"pattern write {TOPIC_ROOT}/+/%u/reading",
        f"pattern write {TOPIC_ROOT}/+/%u/announce",
        f"pattern read {TOPIC_ROOT}/watermark/%u",
    ]
    for key in oracles:
        lines += [
            "",
            f"user {key.hex()}",
            f"topic read {TOPIC_ROOT}/#",
            f"topic write {TOPIC_ROOT}/watermark/+",
            f"topic write {TOPIC_ROOT}/concentrator/+/watermarks/+",
        ]
    for key in concentrators:
        lines += [
            "",
            f"user {key.hex()}",
            f"topic write {batch_topic(key)}",
            f"topic read {batch_watermark_topic(key, None)}",
        ]
    return "\n".join(lines) + "\n"


def _settings(plan: MosquittoPlan) -> str:
    clients = plan.devices + len(plan.oracles) + len(plan.concentrators)
    lines = (
        "# Written for Mosquitto 2.0. Paths are relative: start it in this directory.",
        "per_listener_settings false",
        f"user {plan.run_as}",
        "",
        f"listener {plan.port} {plan.listen}",
        "protocol mqtt",
        f"max_connections {clients + SPARE_CONNECTIONS}",
        "tls_version tlsv1.3",
        "cafile ca.pem",
        "certfile server.pem",
        "keyfile server.key",
        "crlfile crl.pem",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "",
        "allow_anonymous false",
        "acl_file acl",
        "",
        "persistence true",
        "persistence_location data/",
        "autosave_interval 60",
        "persistent_client_expiration 1d",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_inflight_messages {INFLIGHT_MESSAGES}",
        f"max_queued_messages {QUEUED_MESSAGES}",
        f"max_queued_bytes {QUEUED_BYTES}",
        "max_keepalive 300",
        "",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
        "connection_messages true",
        "",
    )
    return "\n".join(lines)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
