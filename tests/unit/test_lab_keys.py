"""`gtx keys`: what it makes, shows, moves and refuses; passwords never on a command line."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.gtx_command import Gtx, gtx

from gridtokenx.host.certificates import Role
from gridtokenx.host.enrolment import read_request
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.lab import passwords

__all__ = ["gtx"]
PASSWORD = "correct horse"
EXPORT = "for the export"


def password_file(text: str = PASSWORD, name: str = "password") -> Path:
    path = Path(name)
    path.write_text(text + "\n")
    return path


def ring(gtx: Gtx) -> Path:
    gtx("keys", "new", "alice", "--keys", "ring", GTX_PASSWORD=PASSWORD).done()
    return Path("ring")


# -- new and show ----------------------------------------------------------------------------------


def test_a_key_is_made_and_shown(gtx: Gtx) -> None:
    file = password_file()
    made = gtx("keys", "new", "alice", "--keys", "ring", "--keys-password-file", file).done()
    assert made.split()[0] == "alice"
    assert made.split()[1].startswith("grid1")
    assert gtx("keys", "show", "--keys", "ring").done() == made
    assert gtx("keys", "show", "alice", GTX_KEYS="ring").done() == made
    gtx("keys", "new", "bob", "--keys", "ring", GTX_PASSWORD=PASSWORD).done()
    assert len(gtx("keys", "show", "--keys", "ring").done().splitlines()) == 2


def test_a_person_is_asked_twice_for_a_new_password_and_once_for_a_known_one(gtx: Gtx) -> None:
    gtx("keys", "new", "alice", "--keys", "ring", answers=[PASSWORD, PASSWORD]).done()
    gtx("keys", "new", "bob", "--keys", "ring", answers=[PASSWORD]).done()
    assert gtx.asked == [
        "Password of the keys: ",
        "Repeat for confirmation: ",
        "Password of the keys: ",
    ]


def test_a_development_ring_needs_no_password(gtx: Gtx) -> None:
    gtx("keys", "new", "alice", "--keys", "ring", "--development").done()
    gtx("keys", "new", "bob", "--keys", "ring").done()


def test_new_refuses(gtx: Gtx) -> None:
    new = ("keys", "new", "alice", "--keys", "ring")
    gtx(*new).refused("no password of the keys", "--keys-password-file", "GTX_PASSWORD", "terminal")
    assert not Path("ring").exists()
    gtx(*new, GTX_PASSWORD="short").refused("fewer than 8 characters")
    gtx(*new, "--keys-password-file", "nowhere").refused("nowhere: the password cannot be read")
    two = password_file("a\nb")
    gtx(*new, "--keys-password-file", two).refused("must hold the password in one line")
    gtx(*new, "--development", "--keys-password-file", two).refused("give one of the two")
    gtx("keys", "new", "no/name", "--keys", "ring", "--development").refused("'no/name'")
    gtx("keys", "new", "alice", "--keys", "/proc/x", "--development").refused("/proc/x")
    gtx("keys", "new", "alice", "--keys", "ring2", GTX_PASSWORD=PASSWORD).done()
    gtx("keys", "new", "alice", "--keys", "ring2", GTX_PASSWORD=PASSWORD).refused("exists")
    gtx("keys", "new", "bob", "--keys", "ring2", GTX_PASSWORD="another one").refused("wrong pass")
    gtx("keys", "new", "bob", "--keys", "ring2").refused("no password of the keys")
    gtx("keys", "new", "bob", "--password", "x").refused("--password")


def test_show_refuses(gtx: Gtx) -> None:
    gtx("keys", "show", "--keys", "nowhere").refused("nowhere: holds no keys", "gtx keys new")
    ring(gtx)
    gtx("keys", "show", "carol", "--keys", "ring").refused("carol.key: cannot be read")


# -- export and import -----------------------------------------------------------------------------


def test_a_public_key_is_exported_without_a_password(gtx: Gtx) -> None:
    directory = ring(gtx)
    pem = gtx("keys", "export", "alice", "--keys", "ring").done()
    key = serialization.load_pem_public_key(pem.encode())
    assert key.public_bytes_raw() == public_key_of(directory / "alice.key")  # type: ignore[union-attr]  # Ed25519
    said = gtx("keys", "export", "alice", "--keys", "ring", "--out", "alice.pem")
    assert said.out == ""
    assert Path("alice.pem").read_text() == pem


def test_a_secret_key_moves_encrypted(gtx: Gtx) -> None:
    ring(gtx)
    export = ("keys", "export", "alice", "--keys", "ring", "--secret", "--out", "alice.pem")
    gtx(*export, GTX_PASSWORD=PASSWORD, GTX_EXPORT_PASSWORD=EXPORT).done()
    text = Path("alice.pem").read_text()
    assert text.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert Path("alice.pem").stat().st_mode & 0o077 == 0
    import_ = ("keys", "import", "again", "alice.pem", "--keys", "other", "--development")
    gtx(*import_, GTX_IMPORT_PASSWORD="not it").refused("alice.pem", "another password")
    gtx(*import_).refused("no password of the imported key", "GTX_IMPORT_PASSWORD")
    file = password_file(EXPORT, "import-password")
    gtx(*import_, "--import-password-file", file).done()
    assert public_key_of(Path("other/again.key")) == public_key_of(Path("ring/alice.key"))
    piped = ("keys", "import", "piped", "-", "--keys", "other")
    gtx(*piped, "--import-password-file", file, stdin=text.encode()).done()
    assert public_key_of(Path("other/piped.key")) == public_key_of(Path("ring/alice.key"))
    gtx(*piped, stdin=text.encode()).refused("no password of the imported key")


def test_a_secret_key_in_clear_comes_with_a_warning(gtx: Gtx) -> None:
    ring(gtx)
    export = ("keys", "export", "alice", "--keys", "ring", "--secret", "--clear", "--out", "-")
    said = gtx(*export, GTX_PASSWORD=PASSWORD)
    assert said.err.startswith("warning: this is the secret key itself")
    pem = said.done()
    assert pem.startswith("-----BEGIN PRIVATE KEY-----")
    gtx("keys", "import", "b", "-", "--keys", "o", "--development", stdin=pem.encode()).done()
    assert public_key_of(Path("o/b.key")) == public_key_of(Path("ring/alice.key"))


def test_export_refuses(gtx: Gtx) -> None:
    ring(gtx)
    export = ("keys", "export", "alice", "--keys", "ring")
    gtx(*export, "--secret", GTX_PASSWORD=PASSWORD).refused("where to?", "--out FILE")
    gtx(*export, "--clear").refused("are for --secret")
    gtx("keys", "export", "carol", "--keys", "ring").refused("carol.key: cannot be read")
    there = password_file("x" * 8, "there")
    gtx(*export, "--out", there).refused("there: exists")
    out = (*export, "--secret", "--out")
    gtx(*out, there, GTX_PASSWORD=PASSWORD).refused("there: exists")
    gtx(*out, "new", "--clear", "--export-password-file", there).refused("give one of the two")
    gtx(*out, "new", GTX_PASSWORD=PASSWORD).refused("no password of the exported key")
    gtx(*out, "new", GTX_PASSWORD=PASSWORD, GTX_EXPORT_PASSWORD="short").refused("fewer than 8")
    gtx(*out, "new", GTX_PASSWORD="wrong", GTX_EXPORT_PASSWORD=EXPORT).refused("wrong password")
    gtx(*out, "no/where/new", GTX_PASSWORD=PASSWORD, GTX_EXPORT_PASSWORD=EXPORT).done()
    assert not Path("new").exists()


def test_import_refuses(gtx: Gtx) -> None:
    ring(gtx)
    import_ = ("keys", "import", "b", "file", "--keys", "ring")
    gtx(*import_, GTX_PASSWORD=PASSWORD).refused("file: cannot be read")
    password_file("hello there", "file")
    gtx(*import_, GTX_PASSWORD=PASSWORD).refused("file: is no secret key in PEM form")
    foreign = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    Path("file").write_bytes(foreign)
    gtx(*import_, GTX_PASSWORD=PASSWORD).refused("file: is no Ed25519 key")


# -- request ---------------------------------------------------------------------------------------


def test_a_key_asks_for_a_certificate(gtx: Gtx) -> None:
    ring(gtx)
    ask = ("keys", "request", "alice", "--keys", "ring", "--chain", "oracle", "--role", "broker")
    hosts = ("--holder", "broker 1", "--host", "broker", "--host", "10.0.0.1")
    gtx(*ask, *hosts, GTX_PASSWORD=PASSWORD).done()
    found = read_request(Path("oracle-request.pem"))
    assert found.public_key == public_key_of(Path("ring/alice.key"))
    assert (found.name, found.role, found.chain) == ("broker 1", Role.BROKER, "oracle")
    assert found.hosts == ("broker", "10.0.0.1")
    gtx(*ask, GTX_PASSWORD=PASSWORD).refused("oracle-request.pem: exists")
    gtx(*ask, "--out", "r.pem", GTX_PASSWORD="wrong").refused("wrong password")
    gtx(*ask, "--out", "r.pem", "--holder", "a/b", GTX_PASSWORD=PASSWORD).refused("'a/b'")
    gtx(*ask, "--out", "r.pem", "--host", "ü", GTX_PASSWORD=PASSWORD).refused("host 'ü'")
    gtx("keys", "request", "alice", "--keys", "ring", "--chain", "x").refused("--role")


# -- password --------------------------------------------------------------------------------------


def test_the_password_is_changed(gtx: Gtx) -> None:
    ring(gtx)
    change = ("keys", "password", "--keys", "ring")
    said = gtx(*change, GTX_PASSWORD=PASSWORD, GTX_NEW_PASSWORD="battery staple").done()
    assert "1 keys are under the new password" in said
    new = ("keys", "new", "bob", "--keys", "ring")
    gtx(*new, GTX_PASSWORD=PASSWORD).refused("wrong password")
    gtx(*new, GTX_PASSWORD="battery staple").done()
    gtx(*change, answers=["battery staple", PASSWORD, PASSWORD]).done()
    gtx("keys", "new", "carol", "--keys", "ring", GTX_PASSWORD=PASSWORD).done()


def test_a_password_change_refuses(gtx: Gtx) -> None:
    change = ("keys", "password", "--keys", "ring")
    gtx(*change).refused("ring: holds no keys")
    ring(gtx)
    gtx(*change, GTX_PASSWORD="wrong", GTX_NEW_PASSWORD="battery staple").refused("wrong password")
    gtx(*change, GTX_PASSWORD=PASSWORD).refused("no new password", "--new-password-file")
    gtx(*change, GTX_PASSWORD=PASSWORD, GTX_NEW_PASSWORD="short").refused("fewer than 8")
    gtx("keys", "new", "bob", "--keys", "ring", GTX_PASSWORD=PASSWORD).done()


def test_a_terminal_is_what_standard_input_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert passwords.on_terminal()
