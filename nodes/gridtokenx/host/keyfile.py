"""Encrypted key files: one password and one scrypt derivation per home, one sub-key per file.

    password ──scrypt──> master ──HKDF(name)──> file key ──XChaCha20-Poly1305──> <name>.key

Law of the file: a secret key exists in clear only in memory. A directory of keys holds
``keyring.json`` (salt, cost and a check value, so that a wrong password is told from a damaged file)
and one ``<name>.key`` per key, bound to its name and public key by the authenticated data, so that
two files cannot be swapped. scrypt is RFC 7914, HKDF is RFC 5869 with SHA-256.

Another password means another master key, so every file is sealed anew. All of them are written to
one journal first; the moment that the journal is there decides. Whoever opens the ring after a crash
carries the journal out (`_carry_out`), which can be done any number of times.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import SEED_BYTES, Ed25519Signer
from gridtokenx.host.files import read_file, sync_directory, write_file

PASSWORD_VARIABLE: Final = "GTX_PASSWORD"  # noqa: S105 - the variable's name
DEVELOPMENT_PASSWORD_FILE: Final = "development-password.txt"  # noqa: S105 - a file's name
_DEVELOPMENT_NOTE: Final = (
    "# For development only: the password of the keys in this directory, written beside them.\n"
    "# On a real network give the password by another file, or by the variable GTX_PASSWORD.\n"
)
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 24
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RING_FILE: Final = "keyring.json"
_JOURNAL_FILE: Final = "keyring.next.json"
_FORMAT: Final = 1

T = TypeVar("T")
Cost = Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)]


class _RingFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    scrypt_n: Cost
    scrypt_r: Annotated[int, msgspec.Meta(ge=1, le=32)]
    scrypt_p: Annotated[int, msgspec.Meta(ge=1, le=16)]
    salt: bytes
    check: bytes


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    public_key: str
    """Hexadecimal; for people and for tools that need no secret."""
    nonce: bytes
    ciphertext: bytes


class _Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole ring under its next password."""

    format: int
    ring: _RingFile
    keys: dict[str, _KeyFile]


class KeyRing:
    """The keys of one directory, opened with its password."""

    def __init__(self, directory: Path, master: bytes) -> None:
        self._directory = directory
        self._master = master

    @classmethod
    def create(cls, directory: Path, password: str, *, scrypt_n: int = 1 << 15) -> "KeyRing":
        """Make an empty ring.

        Args:
            directory: where the files go; made if absent.
            password: protects all of them.
            scrypt_n: cost of one guess; memory is 1 KiB x this number.

        Raises:
            LocalFault: the directory has a ring already, or cannot be written.
        """
        if (directory / _RING_FILE).exists() or (directory / _JOURNAL_FILE).exists():
            raise LocalFault(f"{directory}: holds keys already; remove it first if they may go")
        ring, master = _new_ring(password, scrypt_n)
        write_file(directory / _RING_FILE, msgspec.json.encode(ring), mode=0o600)
        return cls(directory, master)

    @classmethod
    def open(cls, directory: Path, password: str) -> "KeyRing":
        """Open a ring.

        Raises:
            LocalFault: no ring there, a damaged one, or the wrong password.
        """
        if (directory / _JOURNAL_FILE).exists():
            with _locked(directory):
                _carry_out(directory)
        path = directory / _RING_FILE
        ring = _read(path, _RingFile)
        if ring.format != _FORMAT:
            raise LocalFault(f"{path}: has key format {ring.format}, this program reads {_FORMAT}")
        master = _derive(password, ring.salt, ring.scrypt_n, ring.scrypt_r, ring.scrypt_p)
        if not hmac.compare_digest(ring.check, _hkdf(master, b"check")):
            raise LocalFault(f"{directory}: wrong password for these keys")
        return cls(directory, master)

    def names(self) -> list[str]:
        """The names of all keys here."""
        return sorted(path.stem for path in self._directory.glob("*.key"))

    def generate(self, name: str) -> bytes:
        """Make a new key and return its public key."""
        return self.put(name, secrets.token_bytes(SEED_BYTES))

    def put(self, name: str, seed: bytes) -> bytes:
        """Store an Ed25519 seed under a name, and return its public key.

        Raises:
            LocalFault: the name is taken or unusable.
        """
        path = self._path(name)
        if path.exists():
            raise LocalFault(f"{path}: exists; a key is never overwritten")
        with _locked(self._directory):
            self._check_current()
            write_file(path, msgspec.json.encode(_seal(self._master, name, seed)), mode=0o600)
        return Ed25519Signer(seed).public_key

    def seed(self, name: str) -> bytes:
        """The secret seed of a key.

        Raises:
            LocalFault: no such key, or its file is damaged or belongs to another name.
        """
        path = self._path(name)
        if not path.exists():
            known = ", ".join(self.names()) or "none"
            raise LocalFault(f"{path}: no such key; keys here: {known}")
        file = _read(path, _KeyFile)
        try:
            seed: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                file.ciphertext,
                _bound(name, file.public_key),
                file.nonce,
                _file_key(self._master, name),
            )
        except (CryptoError, ValueError):
            raise LocalFault(
                f"{path}: does not open with this directory's password: it was altered, renamed,"
                " or comes from another directory; restore it from a backup"
            ) from None
        return seed

    def signer(self, name: str) -> Ed25519Signer:
        """A signer for a key; see `seed` for errors."""
        return Ed25519Signer(self.seed(name))

    def sub_key(self, purpose: str) -> bytes:
        """32 secret bytes for another purpose of this home, such as sealing a CA's key."""
        return _hkdf(self._master, b"purpose:" + purpose.encode())

    def change_password(self, password: str, *, scrypt_n: int = 1 << 15) -> None:
        """Seal every key under another password; a crash leaves the old ring or the new one whole.

        A development password that lies beside the keys goes. Copies of the files that were made
        before still open with the old password.

        Raises:
            LocalFault: a key that does not open, or a file that cannot be written.
        """
        ring, master = _new_ring(password, scrypt_n)
        with _locked(self._directory):
            self._check_current()
            keys = {name: _seal(master, name, self.seed(name)) for name in self.names()}
            journal = msgspec.json.encode(_Journal(_FORMAT, ring, keys))
            write_file(self._directory / _JOURNAL_FILE, journal, mode=0o600)
            _carry_out(self._directory)
        self._master = master

    def _check_current(self) -> None:
        """Seal nothing under a password that was changed since the ring was opened."""
        ring = _read(self._directory / _RING_FILE, _RingFile)
        if not hmac.compare_digest(ring.check, _hkdf(self._master, b"check")):
            raise LocalFault(f"{self._directory}: the password was changed meanwhile; try again")

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise LocalFault(f"key name {name!r} is not allowed: a-z, 0-9, '.', '_', '-', up to 64")
        return self._directory / f"{name}.key"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep others from changing the ring meanwhile."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise LocalFault(f"{directory}: cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _carry_out(directory: Path) -> None:
    """Finish a change of password whose journal is there; the caller has the lock."""
    path = directory / _JOURNAL_FILE
    if not path.exists():
        return
    journal = _read(path, _Journal)
    for name, file in journal.keys.items():
        write_file(directory / f"{name}.key", msgspec.json.encode(file), mode=0o600)
    write_file(directory / _RING_FILE, msgspec.json.encode(journal.ring), mode=0o600)
    (directory / DEVELOPMENT_PASSWORD_FILE).unlink(missing_ok=True)
    path.unlink()
    sync_directory(directory)


def public_key_of(path: Path) -> bytes:
    """The public key of a key file, without any password.

    Raises:
        LocalFault: the file is absent or damaged.
    """
    try:
        return bytes.fromhex(_read(path, _KeyFile).public_key)
    except ValueError:
        raise LocalFault(f"{path}: is damaged: public_key is not hexadecimal") from None


# -- passwords -------------------------------------------------------------------------------------


def create_development_password(directory: Path) -> str:
    """Generate a password and leave it, with a warning, in a file of `directory`."""
    password = secrets.token_urlsafe(24)
    path = directory / DEVELOPMENT_PASSWORD_FILE
    write_file(path, f"{_DEVELOPMENT_NOTE}{password}\n".encode(), mode=0o600)
    return password


def find_password(
    directory: Path, password_file: Path | None, environment: Mapping[str, str]
) -> str:
    """The password of a key directory: a named file, else the variable, else a development file.

    Raises:
        LocalFault: none of the three gives one.
    """
    development = directory / DEVELOPMENT_PASSWORD_FILE
    if password_file is not None:
        return read_password(password_file)
    if environment.get(PASSWORD_VARIABLE):
        return environment[PASSWORD_VARIABLE]
    if development.is_file():
        return read_password(development)
    raise LocalFault(
        f"{directory}: no password for these keys: set {PASSWORD_VARIABLE}, or name a file with"
        " --keys-password-file"
    )


def unlock(directory: Path, password_file: Path | None, environment: Mapping[str, str]) -> KeyRing:
    """Open a key directory with the password that `find_password` finds.

    A variable that is meant for other keys gives way to a development file beside these.

    Raises:
        LocalFault: no password, or the wrong one.
    """
    password = find_password(directory, password_file, environment)
    try:
        return KeyRing.open(directory, password)
    except LocalFault:
        development = directory / DEVELOPMENT_PASSWORD_FILE
        if password_file is not None or not development.is_file():
            raise
        return KeyRing.open(directory, read_password(development))


def read_password(path: Path) -> str:
    """The one line of a password file.

    Raises:
        LocalFault: it cannot be read, or holds no line or several.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise LocalFault(f"{path}: the password cannot be read: {why}") from None
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(words) != 1:
        raise LocalFault(f"{path}: must hold the password in one line ('#' begins a comment)")
    return words[0]


# -- internals -------------------------------------------------------------------------------------


def _derive(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    try:
        return hashlib.scrypt(
            password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32
        )
    except ValueError as error:
        raise LocalFault(f"scrypt parameters n={n}, r={r}, p={p} are unusable: {error}") from None


def _new_ring(password: str, scrypt_n: int) -> tuple[_RingFile, bytes]:
    """A ring without keys, and its master key."""
    salt = secrets.token_bytes(_SALT_BYTES)
    master = _derive(password, salt, scrypt_n, 8, 1)
    return _RingFile(_FORMAT, scrypt_n, 8, 1, salt, _hkdf(master, b"check")), master


def _seal(master: bytes, name: str, seed: bytes) -> _KeyFile:
    public_key = Ed25519Signer(seed).public_key.hex()
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        seed, _bound(name, public_key), nonce, _file_key(master, name)
    )
    return _KeyFile(_FORMAT, public_key, nonce, sealed)


def _file_key(master: bytes, name: str) -> bytes:
    return _hkdf(master, b"file:" + name.encode())


def _hkdf(master: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 with an empty salt, 32 bytes out (one block of the expansion)."""
    extracted = hmac.digest(bytes(32), master, "sha256")
    return hmac.digest(extracted, b"gridtokenx/" + info + b"\x01", "sha256")


def _bound(name: str, public_key: str) -> bytes:
    return f"gridtokenx key {_FORMAT} {name} {public_key}".encode()


def _read(path: Path, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(read_file(path), type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalFault(f"{path}: is damaged: {error}; restore it from a backup") from None
