"""Key files and certificates: what opens, what is refused, and with which words."""

import ssl
from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.host import keyfile
from gridtokenx.host.certificates import (
    Authority,
    Role,
    check_issued,
    load_certificate,
    mutual_context,
    peer_identity,
    pem,
    public_key_in,
    self_signed,
)
from gridtokenx.host.files import write_file
from gridtokenx.host.keyfile import (
    KeyRing,
    create_development_password,
    find_password,
    public_key_of,
    unlock,
)

CHEAP = 1 << 10
SEED = bytes(range(32))


def ring(directory: Path, password: str = "correct horse") -> KeyRing:
    return KeyRing.create(directory, password, scrypt_n=CHEAP)


def test_keys_survive_closing_and_opening(tmp_path: Path) -> None:
    public_key = ring(tmp_path).put("identity", SEED)
    opened = KeyRing.open(tmp_path, "correct horse")
    assert opened.seed("identity") == SEED
    assert (
        opened.signer("identity").public_key
        == public_key
        == public_key_of(tmp_path / "identity.key")
    )
    assert opened.names() == ["identity"]
    assert opened.generate("other") != public_key
    assert opened.sub_key("a") != opened.sub_key("b")


def test_no_secret_is_on_the_disk_and_files_are_private(tmp_path: Path) -> None:
    ring(tmp_path).put("identity", SEED)
    for path in tmp_path.iterdir():
        assert SEED not in path.read_bytes()
        assert SEED.hex().encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_a_wrong_password_is_told_from_damage(tmp_path: Path) -> None:
    ring(tmp_path).put("identity", SEED)
    with pytest.raises(LocalFault, match="wrong password"):
        KeyRing.open(tmp_path, "wrong")
    (tmp_path / "keyring.json").write_text("{}")
    with pytest.raises(LocalFault, match=r"keyring.json: is damaged"):
        KeyRing.open(tmp_path, "correct horse")
    (tmp_path / "keyring.json").unlink()
    with pytest.raises(LocalFault, match=r"keyring.json: cannot be read: No such file"):
        KeyRing.open(tmp_path, "correct horse")


def test_a_hostile_cost_is_refused_before_it_is_paid(tmp_path: Path) -> None:
    ring(tmp_path)
    path = tmp_path / "keyring.json"
    path.write_bytes(path.read_bytes().replace(b'"scrypt_n":1024', b'"scrypt_n":1073741824'))
    with pytest.raises(LocalFault, match="is damaged"):
        KeyRing.open(tmp_path, "correct horse")


def test_files_cannot_be_swapped_altered_or_overwritten(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    keys.put("a", SEED)
    keys.generate("b")
    with pytest.raises(LocalFault, match="never overwritten"):
        keys.put("a", SEED)
    with pytest.raises(LocalFault, match="holds keys already"):
        ring(tmp_path)
    (tmp_path / "a.key").rename(tmp_path / "c.key")
    with pytest.raises(LocalFault, match=r"c.key: does not open"):
        keys.seed("c")
    text = (tmp_path / "b.key").read_text().replace('"public_key":"', '"public_key":"00', 1)
    (tmp_path / "b.key").write_text(text)
    with pytest.raises(LocalFault, match=r"b.key: does not open"):
        keys.seed("b")
    with pytest.raises(LocalFault, match="no such key; keys here: b, c"):
        keys.seed("zzz")
    with pytest.raises(LocalFault, match=r"key name '\.\./x' is not allowed"):
        keys.seed("../x")


def test_where_the_password_comes_from(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="set GTX_PASSWORD"):
        find_password(tmp_path, None, {})
    generated = create_development_password(tmp_path)
    assert find_password(tmp_path, None, {}) == generated
    assert find_password(tmp_path, None, {"GTX_PASSWORD": "env"}) == "env"
    file = tmp_path / "password"
    file.write_text("# note\nfrom file\n")
    assert find_password(tmp_path, file, {"GTX_PASSWORD": "env"}) == "from file"
    file.write_text("two\nlines\n")
    with pytest.raises(LocalFault, match="must hold the password in one line"):
        find_password(tmp_path, file, {})
    with pytest.raises(LocalFault, match="cannot be read"):
        find_password(tmp_path, tmp_path / "absent", {})
    note = (tmp_path / "development-password.txt").read_text()
    assert note.startswith("# For development only")


def test_a_certificate_binds_key_and_role(tmp_path: Path) -> None:
    authority = Authority.create("consortium", SEED)
    node = Ed25519Signer(bytes(32))
    certificate = authority.issue(node.public_key, "replica-0", Role.PEER)
    der = ssl.PEM_cert_to_DER_cert(pem(certificate).decode())
    assert peer_identity(der) == (node.public_key, Role.PEER)
    assert public_key_in(certificate) == node.public_key

    (tmp_path / "ca.pem").write_bytes(pem(authority.certificate))
    (tmp_path / "node.pem").write_bytes(pem(certificate))
    check_issued(tmp_path / "node.pem", tmp_path / "ca.pem", node.public_key)
    again = Authority.load(tmp_path / "ca.pem", SEED)
    assert again.certificate == authority.certificate
    mutual_context(server=True, certificate=certificate, seed=bytes(32), authority=certificate)


def test_unusable_certificates_are_refused_at_start(tmp_path: Path) -> None:
    authority, other = Authority.create("a", SEED), Authority.create("a", bytes(32))
    node = Ed25519Signer(bytes(32)).public_key
    ca, file = tmp_path / "ca.pem", tmp_path / "node.pem"
    ca.write_bytes(pem(authority.certificate))
    file.write_bytes(pem(other.issue(node, "n", Role.PEER)))
    with pytest.raises(LocalFault, match=r"node.pem: was not issued by the authority in .*ca.pem"):
        check_issued(file, ca, node)
    file.write_bytes(pem(authority.issue(node, "n", Role.PEER)))
    with pytest.raises(LocalFault, match=r"is for key .* but this node's identity is"):
        check_issued(file, ca, SEED)
    file.write_bytes(pem(authority.issue(node, "n", Role.PEER, days=0)))
    with pytest.raises(LocalFault, match="not now; have it issued again"):
        check_issued(file, ca, node)
    file.write_text("hello")
    with pytest.raises(LocalFault, match="is no PEM certificate"):
        load_certificate(file)
    with pytest.raises(LocalFault, match="belongs to another key"):
        Authority.load(ca, bytes(32))


def test_strange_certificates_of_peers_are_their_fault() -> None:
    with pytest.raises(RemoteFault, match="wrong-certificate"):
        peer_identity(b"junk")
    der = ssl.PEM_cert_to_DER_cert(pem(self_signed(SEED)).decode())
    assert peer_identity(der)[1] is Role.PEER


def test_the_password_of_a_whole_ring_is_changed(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    keys.put("a", SEED)
    other = keys.generate("b")
    stale = KeyRing.open(tmp_path, "correct horse")
    keys.change_password("battery staple", scrypt_n=CHEAP)
    assert keys.seed("a") == SEED  # an open ring goes on
    opened = KeyRing.open(tmp_path, "battery staple")
    assert opened.seed("a") == SEED
    assert opened.signer("b").public_key == other
    with pytest.raises(LocalFault, match="wrong password"):
        KeyRing.open(tmp_path, "correct horse")
    with pytest.raises(LocalFault, match="password was changed meanwhile"):
        stale.generate("c")
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_development_password_goes_with_the_password_that_it_was(tmp_path: Path) -> None:
    keys = ring(tmp_path, create_development_password(tmp_path))
    keys.change_password("battery staple", scrypt_n=CHEAP)
    assert not (tmp_path / "development-password.txt").exists()


class Crash(BaseException):
    """The process has ended here."""


@pytest.mark.parametrize("writes", range(5))
def test_a_crash_leaves_the_old_ring_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """`write_file` is atomic, so a crash is one before some write."""
    keys = ring(tmp_path)
    keys.put("a", SEED)
    keys.put("b", bytes(32))
    left = writes

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1
        write_file(path, data, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr(keyfile, "write_file", write)
        if writes < 4:  # the journal, two keys, the ring
            with pytest.raises(Crash):
                keys.change_password("battery staple", scrypt_n=CHEAP)
        else:
            keys.change_password("battery staple", scrypt_n=CHEAP)
    good, bad = ("correct horse", "battery staple")[:: 1 if writes == 0 else -1]
    with pytest.raises(LocalFault, match="wrong password"):
        KeyRing.open(tmp_path, bad)
    opened = KeyRing.open(tmp_path, good)
    assert (opened.seed("a"), opened.seed("b")) == (SEED, bytes(32))
    assert opened.names() == ["a", "b"]
    assert not (tmp_path / "keyring.next.json").exists()


def test_a_variable_for_other_keys_gives_way_to_a_development_file(tmp_path: Path) -> None:
    password = create_development_password(tmp_path)
    ring(tmp_path, password).put("identity", SEED)
    assert unlock(tmp_path, None, {"GTX_PASSWORD": "of other keys"}).seed("identity") == SEED
    other = tmp_path / "password"
    other.write_text("of other keys\n")
    with pytest.raises(LocalFault, match="wrong password"):  # named: it is meant for these
        unlock(tmp_path, other, {})


def test_a_variable_wins_over_an_outdated_development_file(tmp_path: Path) -> None:
    create_development_password(tmp_path)
    ring(tmp_path).put("identity", SEED)
    assert unlock(tmp_path, None, {"GTX_PASSWORD": "correct horse"}).seed("identity") == SEED
    with pytest.raises(LocalFault, match="wrong password"):
        unlock(tmp_path, None, {"GTX_PASSWORD": "neither"})
