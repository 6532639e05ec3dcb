"""What a link's TLS session uses, for the two kinds of chain.

Permissioned chains: both ends show a certificate that the chain's authority issued. Public chain: the
listener shows a certificate made at start, and the handshake inside the channel (`handshake`) proves
who is who. Everything above sees one `LinkSecurity`.
"""

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import SEED_BYTES, Ed25519Signer
from gridtokenx.host.certificates import (
    Role,
    anonymous_client_context,
    anonymous_server_context,
    check_issued,
    der,
    load_certificate,
    mutual_context,
    peer_identity,
    self_signed,
)


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """TLS contexts of one node or client, and what its peers' certificates mean."""

    client: ssl.SSLContext
    server: ssl.SSLContext | None
    """None for one who only dials."""
    certificate_der: bytes
    """What our listener shows."""
    mutual: bool
    """Whether certificates bind identities."""

    def check_certificate(self, shown: bytes | None, identity: bytes, role: str) -> None:
        """Hold the identity of a finished handshake against the certificate of its session.

        Raises:
            RemoteFault: the certificate is for another key, or does not allow the role.
        """
        if not self.mutual:
            return
        if shown is None:
            raise RemoteFault("no-certificate", "this chain asks for a certificate")
        key, granted = peer_identity(shown)
        if key != identity:
            raise RemoteFault("wrong-certificate", "it is for another key than the handshake's")
        if granted not in (Role.PEER, Role.CLIENT):
            raise RemoteFault("wrong-certificate", f"a {granted.value} has no link here")
        if role == "peer" and granted is not Role.PEER:
            raise RemoteFault("wrong-certificate", "its certificate is a client's")


def open_security(*, listens: bool = True) -> LinkSecurity:
    """For the public chain: nothing to configure."""
    if not listens:
        return LinkSecurity(anonymous_client_context(), None, b"", mutual=False)
    seed = secrets.token_bytes(SEED_BYTES)
    certificate = self_signed(seed)
    server = anonymous_server_context(certificate, seed)
    return LinkSecurity(anonymous_client_context(), server, der(certificate), mutual=False)


def mutual_security(
    seed: bytes, certificate_file: Path, authority_file: Path, *, listens: bool = True
) -> LinkSecurity:
    """For a permissioned chain.

    Args:
        seed: the identity key that the certificate binds; it is also the TLS key.
        certificate_file: PEM, issued by the authority.
        authority_file: PEM of the chain's authority.
        listens: whether a server context is needed.

    Raises:
        LocalFault: a file is unusable, or they do not belong together.
    """
    check_issued(certificate_file, authority_file, Ed25519Signer(seed).public_key)
    certificate, authority = load_certificate(certificate_file), load_certificate(authority_file)

    def context(*, server: bool) -> ssl.SSLContext:
        return mutual_context(
            server=server, certificate=certificate, seed=seed, authority=authority
        )

    server = context(server=True) if listens else None
    return LinkSecurity(context(server=False), server, der(certificate), mutual=True)
