"""`gtx ca`: who is admitted, renewed, taken back, and what a crash leaves of it."""

import datetime as dt
import re
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.gtx_command import Gtx, gtx

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.host.certificates import (
    Reason,
    RevocationList,
    Role,
    load_certificate,
    pem,
    show_serial,
    subject_name,
    subject_of,
)
from gridtokenx.host.enrolment import make_request, read_request, request_pem
from gridtokenx.host.keyfile import KeyRing, find_password
from gridtokenx.lab.authority import AuthorityHome, Register

__all__ = ["gtx"]
SEED = sha256(b"authority test")
KEY = Ed25519Signer(SEED).public_key


def request(
    name: str = "consortium-4",
    role: Role = Role.PEER,
    chain: str = "consortium",
    seed: bytes = SEED,
    file: str = "node-request.pem",
) -> Path:
    path = Path(file)
    path.write_bytes(request_pem(make_request(seed, name, role, chain)))
    return path


@pytest.fixture
def ca(gtx: Gtx) -> Gtx:
    """`gtx` beside the authority of the consortium chain, in the directory `authority`."""
    gtx("ca", "init", "--chain", "consortium", "--development").done()
    return gtx


def revocations() -> RevocationList:
    authority = load_certificate(Path("authority/consortium/authority.pem"))
    return RevocationList.load(Path("authority/consortium/revocations.pem"), authority)


def certificate(path: str = "node-certificate.pem") -> x509.Certificate:
    return load_certificate(Path(path))


def serial(path: str = "node-certificate.pem") -> str:
    return show_serial(certificate(path).serial_number)


def state(gtx: Gtx) -> dict[str, str]:
    rows = msgspec.json.decode(gtx("ca", "list", "--json").done())
    return {row["serial"]: row["state"] for row in rows}


# -- init ------------------------------------------------------------------------------------------


def test_an_authority_is_made_with_a_list_on_which_nobody_is(gtx: Gtx) -> None:
    said = gtx("ca", "init", "--chain", "consortium", "--name", "Siam", "--development").done()
    assert "authority/consortium/revocations.pem" in said
    assert revocations().number == 1
    assert revocations().revoked == {}
    made = load_certificate(Path("authority/consortium/authority.pem"))
    assert subject_of(made).role is Role.AUTHORITY
    assert subject_of(made).name == "Siam"
    # A second chain's authority lives beside it, under the same password.
    gtx("ca", "init", "--chain", "oracle").done()
    gtx("ca", "list").refused("several authorities", "consortium|oracle")
    gtx("ca", "list", "--chain", "oracle").done()


def test_init_refuses(gtx: Gtx) -> None:
    gtx("ca", "init").refused("--chain")
    gtx("ca", "init", "--chain", "consortium").refused("no password of the keys")
    gtx("ca", "init", "--chain", "a/b", "--development").refused("'a/b' is not allowed")
    init = ("ca", "init", "--chain", "consortium", "--development")
    gtx(*init, "--days", "0").refused("--days")
    gtx(*init, "--authority", "/proc/x").refused("/proc/x")
    gtx(*init).done()
    gtx(*init).refused("authority/consortium: exists")


# -- issue -----------------------------------------------------------------------------------------


def test_a_request_is_shown_and_answered(ca: Gtx) -> None:
    said = ca("ca", "issue", request(), "--days", "30").done()
    for words in ("consortium-4", "peer", KEY.hex(), serial(), "sha256", "valid"):
        assert words in said
    subject = subject_of(certificate())
    assert (subject.public_key, subject.name, subject.role) == (KEY, "consortium-4", Role.PEER)
    assert 29 <= (subject.until - dt.datetime.now(dt.UTC)).days <= 30
    listed = ca("ca", "list").done()
    assert re.search(
        rf"{serial()[:16]}  consortium-4 +peer +until \d{{4}}-\d\d-\d\d  valid", listed
    )
    shown = ca("ca", "show", serial()[:8], "--out", "again.pem").done()
    assert serial() in shown
    assert certificate("again.pem") == certificate()


def test_the_authority_decides_the_role_and_the_file(ca: Gtx) -> None:
    ca("ca", "issue", request(), "--role", "client", "--out", "out.pem").done()
    assert subject_of(certificate("out.pem")).role is Role.CLIENT
    assert not Path("node-certificate.pem").exists()


def test_a_person_is_asked_and_may_say_no(ca: Gtx) -> None:
    said = ca("ca", "issue", request(), answers=["n"])
    assert said.code == 130
    assert not Path("node-certificate.pem").exists()
    assert state(ca) == {}
    ca("ca", "issue", request(), answers=["y"]).done()
    ca("ca", "issue", request(file="b-request.pem"), "--yes", answers=[]).done()


def test_a_broker_gets_its_host_names(ca: Gtx) -> None:
    made = make_request(SEED, "broker", Role.BROKER, "consortium", ["broker", "mqtt.example"])
    Path("broker-request.pem").write_bytes(request_pem(made))
    ca("ca", "issue", "broker-request.pem").done()
    ca("ca", "renew", "broker-certificate.pem").done()
    names = certificate("broker-certificate.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["broker", "mqtt.example"]


def test_a_request_of_another_tool_is_taken_with_a_role(ca: Gtx) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "meter-1")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    Path("r.pem").write_bytes(request_pem(made.sign(key, None)))
    ca("ca", "issue", "r.pem").refused("asks for no role", "--role")
    ca("ca", "issue", "r.pem", "--role", "device").done()
    assert subject_of(certificate("r-certificate.pem")).role is Role.DEVICE


def test_issue_refuses(ca: Gtx) -> None:
    ca("ca", "issue", "nowhere.pem").refused("nowhere.pem: cannot be read")
    Path("junk.pem").write_text("hello")
    ca("ca", "issue", "junk.pem").refused("junk.pem: is no enrolment request")
    good = request()
    ca("ca", "issue", good, "--role", "authority").refused("--role")
    ca("ca", "issue", good, "--days", "3650").refused("the authority's own certificate ends on")
    ca("ca", "issue", good, "--authority", "none").refused("none: holds no authority", "ca init")
    ca("ca", "issue", good, "--chain", "oracle").refused("no authority of the chain 'oracle'")
    other = request(chain="oracle", file="other-request.pem")
    ca("ca", "issue", other).refused("for the chain 'oracle'", "of 'consortium'")
    Path("wrong.txt").write_text("not it")
    ca("ca", "issue", good, "--keys-password-file", "wrong.txt").refused("wrong password")
    assert state(ca) == {}
    ca("ca", "issue", good).done()
    ca("ca", "issue", good).refused("node-certificate.pem: exists", "--out")
    thief = request(seed=bytes(32), file="thief-request.pem")
    ca("ca", "issue", thief).refused("'consortium-4' belongs to another key", "revoke")


def test_a_request_that_its_key_did_not_sign_is_refused(ca: Gtx) -> None:
    """The last bytes of the encoding are the signature."""
    der = bytearray(x509.load_pem_x509_csr(request().read_bytes()).public_bytes(
        serialization.Encoding.DER
    ))  # fmt: skip
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der))
    Path("forged.pem").write_bytes(request_pem(forged))
    ca("ca", "issue", "forged.pem").refused("was not signed by the key that it is about")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name("x", Role.PEER))
    Path("ec.pem").write_bytes(request_pem(builder.sign(key, hashes.SHA256())))
    ca("ca", "issue", "ec.pem").refused("only Ed25519 keys are enrolled")


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "x" * 65, " x", "a/b"])
def test_a_name_that_could_deceive_is_not_made(name: str) -> None:
    with pytest.raises(LocalFault, match="is not allowed"):
        make_request(SEED, name, Role.PEER, "consortium")


def test_a_deceiving_name_of_another_tool_is_not_shown(ca: Gtx) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "\x1b[2Jtrusted")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    Path("r.pem").write_bytes(
        request_pem(made.sign(Ed25519PrivateKey.from_private_bytes(SEED), None))
    )
    said = ca("ca", "issue", "r.pem", "--role", "peer")
    said.refused("is not allowed")
    assert "\x1b" not in said.out + said.err


# -- renew -----------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_in_its_place(ca: Gtx) -> None:
    ca("ca", "issue", request(), "--days", "5").done()
    before = certificate()
    ca("ca", "renew", "node-certificate.pem", "--days", "90").done()
    after = certificate()
    assert after.serial_number != before.serial_number
    assert subject_of(after).public_key == KEY
    assert after.not_valid_after_utc > before.not_valid_after_utc
    ca("ca", "renew", serial()).done()
    assert subject_of(certificate("consortium-4-certificate.pem")).public_key == KEY
    assert set(state(ca).values()) == {"valid"}
    assert len(state(ca)) == 3


def test_renew_refuses(ca: Gtx) -> None:
    ca("ca", "renew", "nowhere.pem").refused("nowhere.pem: no file, and no serial number")
    ca("ca", "renew", "authority/consortium/authority.pem").refused("no serial number in")
    ca("ca", "issue", request()).done()
    ca("ca", "revoke", serial(), "--reason", "superseded").done()
    ca("ca", "renew", "node-certificate.pem").refused("was revoked (superseded)", "send a request")


# -- revoke ----------------------------------------------------------------------------------------


def test_a_certificate_is_taken_back_by_its_serial_number(ca: Gtx) -> None:
    ca("ca", "issue", request()).done()
    ca("ca", "renew", "node-certificate.pem", "--out", "second.pem").done()
    said = ca("ca", "revoke", serial()[:10], "--reason", "superseded", "--out", "list.pem")
    assert f"revoked      {serial()}  consortium-4 (superseded)" in said.done()
    assert f"the same key holds {serial('second.pem')}" in said.err
    assert revocations().number == 2
    assert revocations().revoked == {int(serial(), 16): Reason.SUPERSEDED}
    assert (
        Path("list.pem").read_bytes() == Path("authority/consortium/revocations.pem").read_bytes()
    )
    assert state(ca) == {serial(): "revoked (superseded)", serial("second.pem"): "valid"}


def test_a_compromised_key_loses_all_its_certificates(ca: Gtx) -> None:
    ca("ca", "issue", request()).done()
    ca("ca", "renew", "node-certificate.pem", "--out", "second.pem").done()
    ca("ca", "issue", request("other", seed=bytes(32), file="o-request.pem")).done()
    ca("ca", "revoke", "second.pem", "--reason", "key-compromise").done()
    assert sorted(state(ca).values()) == ["revoked (key-compromise)"] * 2 + ["valid"]
    ca("ca", "issue", request(), "--out", "back.pem").refused(
        "revoked as compromised", "another key"
    )
    # The name is free again, for another key.
    ca("ca", "issue", request(seed=b"\x01" * 32, file="new-request.pem")).done()


def test_revoke_refuses(ca: Gtx) -> None:
    ca("ca", "issue", request()).done()
    ca("ca", "revoke", serial()).refused("--reason")
    ca("ca", "revoke", serial(), "--reason", "dislike").refused("--reason", "dislike")
    reason = ("--reason", "unspecified")
    ca("ca", "revoke", serial()[:4], *reason).refused("no serial number in")
    ca("ca", "revoke", "f" * 40, *reason).refused("no serial number in")
    ca("ca", "revoke", "request.pem", *reason).refused("no file")
    ca("ca", "revoke", "node-request.pem", *reason).refused("is no PEM certificate")
    ca("ca", "revoke", serial(), *reason).done()
    ca("ca", "revoke", serial(), *reason).refused("was revoked on", "gtx ca crl")


def test_the_list_is_signed_anew(ca: Gtx) -> None:
    said = ca("ca", "crl", "--days", "7", "--out", "out/list.pem").done()
    assert "out/list.pem" in said
    assert revocations().number == 2
    assert 6 <= (revocations().due - dt.datetime.now(dt.UTC)).days <= 7


# -- the register ----------------------------------------------------------------------------------


def test_a_line_that_a_crash_cut_short_is_dropped(ca: Gtx) -> None:
    ca("ca", "issue", request()).done()
    register = Path("authority/consortium/register.jsonl")
    whole = register.read_bytes()
    for cut in range(1, 60):
        register.write_bytes(whole + b'{"event":"issued","at":"2026-01-01T00:00:00+00:00","x'[:cut])
        assert len(Register.read(register).entries()) == 1
    ca("ca", "renew", "node-certificate.pem").done()
    assert register.read_bytes().startswith(whole + b'{"event":"issued"')
    assert len(state(ca)) == 2


def test_a_damaged_register_is_not_added_to(ca: Gtx) -> None:
    ca("ca", "issue", request()).done()
    register = Path("authority/consortium/register.jsonl")
    register.write_bytes(b"{}\n" + register.read_bytes())
    ca("ca", "list").refused("register.jsonl: line 1 is damaged", "backup")
    ca("ca", "renew", "node-certificate.pem").refused("line 1 is damaged")


def test_two_commands_do_not_write_at_once(ca: Gtx) -> None:
    with Register.changing(Path("authority/consortium/register.jsonl")):
        ca("ca", "issue", request()).refused("another gtx ca is at work")


def test_a_list_that_was_not_written_is_noticed(ca: Gtx) -> None:
    """Killed between the register and the list."""
    ca("ca", "issue", request()).done()
    file = Path("authority/consortium/revocations.pem")
    before = file.read_bytes()
    ca("ca", "revoke", serial(), "--reason", "unspecified").done()
    file.write_bytes(before)
    assert "is list 1 of 2; write it again with: gtx ca crl" in ca("ca", "list").err
    ca("ca", "crl").done()
    assert revocations().number == 3
    assert len(revocations().revoked) == 1
    file.unlink()
    assert "gtx ca crl" in ca("ca", "list").err


def test_a_request_says_for_which_chain_it_is(gtx: Gtx) -> None:
    found = read_request(request(name="relayer 0", role=Role.CLIENT, chain="oracle"))
    assert (found.name, found.role, found.chain) == ("relayer 0", Role.CLIENT, "oracle")
    assert found.public_key == KEY


def test_what_a_program_issued_can_be_taken_back(ca: Gtx) -> None:
    """`gtx testnet init` issues a certificate to every device."""
    keys = Path("authority/keys")
    home = AuthorityHome(Path("authority"), "consortium")
    authority = home.unlock(KeyRing.open(keys, find_password(keys, None, {})))
    issued = [
        authority.issue(Ed25519Signer(sha256(bytes((n,)))).public_key, f"meter-{n}", Role.DEVICE)
        for n in range(3)
    ]
    home.note(issued)
    Path("meter.pem").write_bytes(pem(issued[1]))
    ca("ca", "revoke", "meter.pem", "--reason", "key-compromise", "--days", "3000").done()
    assert revocations().revoked == {issued[1].serial_number: Reason.KEY_COMPROMISE}
    assert (revocations().due - dt.datetime.now(dt.UTC)).days > 2_000
    assert sorted(state(ca).values()) == ["revoked (key-compromise)", "valid", "valid"]
