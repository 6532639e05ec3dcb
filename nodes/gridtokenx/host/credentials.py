"""The certificate files of one identity on one permissioned chain, followed while the process runs.

Law of the file: **what is in force is the last good state of each file.** A certificate that was
renewed and a newer revocation list are taken up without a restart; a file that is damaged, of another
authority, or older than what is in force changes nothing, and is complained of until it is mended.

Files are looked at when somebody asks (`Credentials.refresh`), at most once a second: an operator's
`cp` needs no event of the file system, and works on every kind of volume.
"""

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.host.certificates import (
    RevocationList,
    Subject,
    check_issued,
    load_certificate,
    peer_subject,
    show_serial,
    show_time,
    subject_of,
)
from gridtokenx.host.logs import Logger, NullLogger
from gridtokenx.host.metrics import Metrics

LOOK_S: Final = 1.0
"""Files are looked at this often, at most."""
RECHECK_S: Final = 10.0
"""Links are held against the clock this often: certificates expire under links that are up."""
WARN_BEFORE: Final = dt.timedelta(days=14)
WARN_AGAIN: Final = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Where they are; all PEM."""

    certificate: Path
    """Of our identity key."""
    authority: Path
    revocations: Path | None = None
    """The authority's list of what it took back; none: nothing is revoked."""


class Credentials:
    """What the files say now.

    Args:
        seed: of the identity key.
        files: where they are.
        wall: the time, by which certificates are valid.

    Raises:
        LocalFault: a file is unusable, or they do not belong together.
    """

    def __init__(
        self,
        seed: bytes,
        files: CredentialFiles,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.files: Final = files
        self.generation = 0
        """Changes whenever links that are up have to be looked at again."""
        self._public_key: Final = Ed25519Signer(seed).public_key
        self._wall: Final = wall
        self._log: Logger = NullLogger()
        self._troubles: dict[Path, str] = {}
        self._seen: dict[Path, object] = {}
        self.certificate: x509.Certificate = self._load_certificate()
        self.authority: Final = load_certificate(files.authority)
        self.revocations: RevocationList | None = self._load_revocations()
        self._looked_s = self._rechecked_s = time.monotonic()
        self._warned_at: dt.datetime | None = None

    @property
    def own(self) -> Subject:
        """Our own certificate's content."""
        return subject_of(self.certificate)

    def report_to(self, log: Logger, metrics: Metrics, chain: str) -> None:
        """Say from now on in a log what changes, and show in numbers what will end when."""
        self._log = log
        metrics.describe("certificate_expiry_seconds", "Until our certificate expires.")
        metrics.gauge("certificate_expiry_seconds", self._expires_in_s, chain=chain)
        metrics.describe("revoked_certificates", "On the revocation list in force.")
        metrics.gauge("revoked_certificates", self._revoked_count, chain=chain)
        metrics.describe("revocation_list_number", "Of the list in force; it only grows.")
        metrics.gauge("revocation_list_number", self._list_number, chain=chain)
        self._warn(self._wall())
        for trouble in self.troubles():
            log.warning("credentials", trouble=trouble)

    def refresh(self) -> bool:
        """Take up what has changed on disk; returns whether our own certificate was replaced."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = now_s
        if now_s - self._rechecked_s >= RECHECK_S:
            self._rechecked_s = now_s
            self.generation += 1
            self._warn(self._wall())
        self._take_up(self.files.revocations, self._renew_revocations)
        before = self.certificate
        self._take_up(self.files.certificate, self._renew_certificate)
        return self.certificate is not before

    def check(self, shown: bytes) -> Subject:
        """Hold a peer's certificate against the list in force and the clock.

        Raises:
            RemoteFault: it is not ours in form, was revoked, or has expired.
        """
        subject = peer_subject(shown)
        fault = subject.fault(self.revocations, self._wall())
        if fault is not None:
            raise fault
        return subject

    def troubles(self) -> tuple[str, ...]:
        """Why this process cannot do its work on the chain, a line each."""
        found = list(self._troubles.values())
        fault = self.own.fault(self.revocations, self._wall())
        if fault is not None:
            found.insert(
                0,
                f"{self.files.certificate}: {fault.detail}; have the authority issue another, and put"
                " it there: no restart is needed",
            )
        return tuple(found)

    # -- files -------------------------------------------------------------------------------------

    def _take_up(self, path: Path | None, load: Callable[[], None]) -> None:
        """Load a file again if it was touched, or if what it held was no good."""
        if path is None or (self._seen.get(path) == _state(path) and path not in self._troubles):
            return
        try:
            load()
        except LocalFault as fault:
            line = f"{fault}; what was there before stays in force"
            if self._troubles.get(path) != line:
                self._log.warning("credentials", trouble=line)
            self._troubles[path] = line
        else:
            self._troubles.pop(path, None)

    def _load_certificate(self) -> x509.Certificate:
        path = self.files.certificate
        self._seen[path] = _state(path)  # before reading: what changes meanwhile is seen later
        check_issued(path, self.files.authority, self._public_key)
        return load_certificate(path)

    def _renew_certificate(self) -> None:
        certificate = self._load_certificate()
        if certificate != self.certificate:
            self.certificate = certificate
            self.generation += 1
            self._warned_at = None
            until = show_time(certificate.not_valid_after_utc)
            self._log.info(
                "certificate renewed", serial=show_serial(certificate.serial_number), until=until
            )

    def _load_revocations(self) -> RevocationList | None:
        path = self.files.revocations
        if path is None:
            return None
        self._seen[path] = _state(path)
        return RevocationList.load(path, self.authority)

    def _renew_revocations(self) -> None:
        newer, known = self._load_revocations(), self.revocations
        assert newer is not None, "only called where there is a file"
        if known is not None and newer.number < known.number:
            raise LocalFault(
                f"{self.files.revocations}: is list {newer.number}, older than {known.number}, which"
                " is in force"
            )
        if newer != known:
            self.revocations = newer
            self.generation += 1
            self._log.info(
                "revocation list", number=newer.number, revoked=len(newer.revoked), due=newer.due
            )

    # -- the clock ---------------------------------------------------------------------------------

    def _warn(self, now: dt.datetime) -> None:
        """Once a day, of what will soon be out of date."""
        if self._warned_at is not None and now - self._warned_at < WARN_AGAIN:
            return
        if self.own.until - now < WARN_BEFORE:
            self._warned_at = now
            self._log.warning(
                "certificate expires soon; have the authority renew it (gtx ca renew)",
                file=str(self.files.certificate),
                until=show_time(self.own.until),
            )
        if self.revocations is not None and self.revocations.due < now:
            self._warned_at = now
            self._log.warning(
                "a newer revocation list was due; ask the authority for it (gtx ca crl)",
                file=str(self.files.revocations),
                due=show_time(self.revocations.due),
            )

    def _expires_in_s(self) -> float:
        return (self.own.until - self._wall()).total_seconds()

    def _revoked_count(self) -> float:
        return 0 if self.revocations is None else len(self.revocations.revoked)

    def _list_number(self) -> float:
        return 0 if self.revocations is None else self.revocations.number


def link_fault(credentials: Credentials, shown: bytes | None) -> RemoteFault | None:
    """Why a link whose other end showed this certificate may not go on, if so."""
    if shown is None:
        return RemoteFault("no-certificate", "this chain asks for a certificate")
    try:
        credentials.check(shown)
    except RemoteFault as fault:
        return fault
    return None


def _state(path: Path) -> object:
    """What changes when a file is written or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino
