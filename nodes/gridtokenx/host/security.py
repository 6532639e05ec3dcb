"""What a link's TLS session uses, for the two kinds of chain.

Permissioned chains: both ends show a certificate that the chain's authority issued and did not take
back. Public chain: the listener shows a certificate made at start, and the handshake inside the
channel (`handshake`) proves who is who. Everything above sees one `LinkSecurity`.

Certificates end and are renewed while links are up. `LinkSecurity.refresh` takes up what has changed
on disk (see `credentials`); new links use new contexts, and whoever holds links asks `objection` of
each of them whenever `generation` has changed.
"""

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import SEED_BYTES
from gridtokenx.host.certificates import (
    Role,
    anonymous_client_context,
    anonymous_server_context,
    der,
    mutual_context,
    peer_subject,
    self_signed,
)
from gridtokenx.host.credentials import CredentialFiles, Credentials, link_fault
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics


@dataclass(slots=True)
class LinkSecurity:
    """TLS contexts of one node or client, and what its peers' certificates mean.

    Contexts are replaced, never changed: who begins a handshake takes `server` and
    `certificate_der` in one step, and both ends sign the certificate that the session showed.
    """

    client: ssl.SSLContext
    server: ssl.SSLContext | None
    """None for one who only dials."""
    certificate_der: bytes
    """What our listener shows."""
    mutual: bool
    """Whether certificates bind identities."""
    credentials: Credentials | None = None
    """Files behind a mutual one, if they are to be followed."""
    seed: bytes = b""
    """The identity key, which is also the TLS key of a mutual one."""

    def check_certificate(self, shown: bytes | None, identity: bytes, role: str) -> None:
        """Hold the identity of a finished handshake against the certificate of its session.

        Raises:
            RemoteFault: the certificate is for another key, was revoked, or does not allow the role.
        """
        if not self.mutual:
            return
        if shown is None:
            raise RemoteFault("no-certificate", "this chain asks for a certificate")
        self.refresh()
        subject = self.credentials.check(shown) if self.credentials else peer_subject(shown)
        if subject.public_key != identity:
            raise RemoteFault("wrong-certificate", "it is for another key than the handshake's")
        if subject.role not in (Role.PEER, Role.CLIENT):
            raise RemoteFault("wrong-certificate", f"a {subject.role.value} has no link here")
        if role == "peer" and subject.role is not Role.PEER:
            raise RemoteFault("wrong-certificate", "its certificate is a client's")

    @property
    def generation(self) -> int:
        """Changes whenever links that are up have to be looked at again (`objection`)."""
        return self.credentials.generation if self.credentials is not None else 0

    def refresh(self) -> None:
        """Take up a renewed certificate and a newer revocation list; cheap enough for every second."""
        credentials = self.credentials
        if credentials is None or not credentials.refresh():
            return
        listens = self.server is not None
        self.client = _mutual(credentials, self.seed, server=False)
        self.server = _mutual(credentials, self.seed, server=True) if listens else None
        self.certificate_der = der(credentials.certificate)

    def objection(self, shown: bytes | None) -> RemoteFault | None:
        """Why a link that is up may not go on, if so.

        Args:
            shown: the certificate with which it was made.
        """
        return link_fault(self.credentials, shown) if self.credentials is not None else None

    def troubles(self) -> tuple[str, ...]:
        """Why this process is not welcome on the chain, or cannot say who else is: a line each."""
        return self.credentials.troubles() if self.credentials is not None else ()

    def report_to(self, log: Logger, metrics: Metrics, chain: str) -> None:
        """Say in a log what changes, and show in numbers what will end when."""
        if self.credentials is not None:
            self.credentials.report_to(log, metrics, chain)


def open_security(*, listens: bool = True) -> LinkSecurity:
    """For the public chain: nothing to configure."""
    if not listens:
        return LinkSecurity(anonymous_client_context(), None, b"", mutual=False)
    seed = secrets.token_bytes(SEED_BYTES)
    certificate = self_signed(seed)
    server = anonymous_server_context(certificate, seed)
    return LinkSecurity(anonymous_client_context(), server, der(certificate), mutual=False)


def mutual_security(
    seed: bytes,
    certificate_file: Path,
    authority_file: Path,
    *,
    listens: bool = True,
    revocations_file: Path | None = None,
) -> LinkSecurity:
    """For a permissioned chain.

    Args:
        seed: the identity key that the certificate binds; it is also the TLS key.
        certificate_file: PEM, issued by the authority; followed: it may be renewed.
        authority_file: PEM of the chain's authority.
        listens: whether a server context is needed.
        revocations_file: PEM list of what the authority took back; followed.

    Raises:
        LocalFault: a file is unusable, or they do not belong together.
    """
    files = CredentialFiles(certificate_file, authority_file, revocations_file)
    credentials = Credentials(seed, files)
    return LinkSecurity(
        client=_mutual(credentials, seed, server=False),
        server=_mutual(credentials, seed, server=True) if listens else None,
        certificate_der=der(credentials.certificate),
        mutual=True,
        credentials=credentials,
        seed=seed,
    )


def _mutual(credentials: Credentials, seed: bytes, *, server: bool) -> ssl.SSLContext:
    return mutual_context(
        server=server,
        certificate=credentials.certificate,
        seed=seed,
        authority=credentials.authority,
    )
