"""Certificates that are taken back, run out or are renewed while links are up."""

import datetime as dt
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.host_network import LOOPBACK, Node, addresses, seed, signer, until

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.host import credentials as followed
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.certificates import (
    Authority,
    Reason,
    RevocationList,
    Role,
    load_certificate,
    mutual_context,
    pem,
    pem_list,
    show_serial,
)
from gridtokenx.host.credentials import CredentialFiles, Credentials
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.security import LinkSecurity, mutual_security
from gridtokenx.lab.ports import free_ports

AUTHORITY = Authority.create("chain", seed(100))


class Files:
    """The files of a network: an authority, a list, a certificate a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "authority.pem"
        self.list = directory / "revocations.pem"
        self.authority.write_bytes(pem(AUTHORITY.certificate))
        self.revoke([], number=1)

    def certificate(self, number: int) -> Path:
        return self.directory / f"node-{number}.pem"

    def issue(self, number: int, role: Role = Role.PEER, days: int = 100) -> int:
        issued = AUTHORITY.issue(signer(number).public_key, f"node-{number}", role, days=days)
        self.certificate(number).write_bytes(pem(issued))
        return issued.serial_number

    def revoke(
        self, serials: Sequence[int], *, number: int, by: Authority = AUTHORITY, days: int = 30
    ) -> None:
        made = by.revoke(dict.fromkeys(serials, Reason.KEY_COMPROMISE), number, days=days)
        self.list.write_bytes(pem_list(made))

    def security(self, number: int, role: Role = Role.PEER) -> LinkSecurity:
        self.issue(number, role)
        return mutual_security(
            seed(number), self.certificate(number), self.authority, revocations_file=self.list
        )

    def credentials(self, number: int = 0) -> Credentials:
        files = CredentialFiles(self.certificate(number), self.authority, self.list)
        return Credentials(seed(number), files)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(followed, "LOOK_S", 0.0)
    return Files(tmp_path)


class Heard:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, event: str, **fields: object) -> None:
        self.lines.append(f"{event} {fields}")

    debug = info = warning = error = note


def serial_of(files: Files, number: int) -> int:
    return load_certificate(files.certificate(number)).serial_number


@asynccontextmanager
async def mesh(files: Files, count: int) -> AsyncIterator[list[Node]]:
    ports = free_ports(count)
    known = addresses(range(count), ports)
    nodes = [Node(n, known, security=files.security(n)) for n in range(count)]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    try:
        await until(lambda: all(len(node.network.peers) == count - 1 for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            await node.network.close()


async def test_a_revoked_node_loses_its_links_and_the_others_keep_theirs(files: Files) -> None:
    async with mesh(files, 3) as nodes:
        revoked = nodes[2]
        kept = [nodes[0].network._links[nodes[1].key], nodes[1].network._links[nodes[0].key]]
        files.revoke([serial_of(files, 2)], number=2)
        await until(lambda: not revoked.network.peers)
        for node in nodes[:2]:
            await until(lambda node=node: node.network.peers == (nodes[1 - nodes.index(node)].key,))
        # It comes back again and again, and is told why each time.
        await until(lambda: revoked.dial_failures.get("revoked"))
        await until(lambda: nodes[0].faults.get("revoked"))
        await until(revoked.parts.security.troubles)
        assert kept == [
            nodes[0].network._links[nodes[1].key],
            nodes[1].network._links[nodes[0].key],
        ]
        (trouble,) = revoked.parts.security.troubles()
        assert f"{show_serial(serial_of(files, 2))} was revoked: key-compromise" in trouble
        assert nodes[0].parts.security.troubles() == ()


async def test_a_new_certificate_brings_a_revoked_node_back_without_restart(files: Files) -> None:
    async with mesh(files, 2) as nodes:
        files.revoke([serial_of(files, 1)], number=2)
        await until(lambda: not nodes[1].network.peers)
        await until(nodes[1].parts.security.troubles)
        files.issue(1)
        await until(lambda: nodes[1].network.peers and nodes[0].network.peers, 20)
        assert nodes[1].parts.security.troubles() == ()


async def test_a_renewed_certificate_is_shown_on_new_links(files: Files) -> None:
    async with mesh(files, 2) as nodes:
        for node in nodes:
            files.issue(nodes.index(node), days=50)
        await until(lambda: all(node.parts.security.generation for node in nodes))
        nodes[0].network._links[nodes[1].key].abort("test")
        await until(lambda: not nodes[1].network.peers or nodes[0].network.peers)
        await until(lambda: nodes[0].network.peers and nodes[1].network.peers)
        for node, other in ((nodes[0], 1), (nodes[1], 0)):
            await until(
                lambda node=node, other=other: _shown(node, other) == serial_of(files, other)
            )


def _shown(node: Node, other: int) -> int:
    from cryptography import x509

    link = node.network._links.get(signer(other).public_key)
    if link is None or link.certificate is None:
        return 0
    return x509.load_der_x509_certificate(link.certificate).serial_number


async def test_a_revoked_client_is_refused_and_dropped(files: Files) -> None:
    from tests.unit.test_host_transport import connect

    host = Node(0, security=files.security(0))
    host.network.start(LOOPBACK)
    client = Node(1, role="client", security=files.security(1, Role.CLIENT))
    link = await connect(host, client)
    try:
        await until(lambda: host.network.clients == 1)
        files.revoke([serial_of(files, 1)], number=2)
        await until(lambda: link.closed)
        assert "revoked" in link.close_reason
        with pytest.raises(RemoteFault, match=r"revoked: certificate .* was revoked: key-comp"):
            await connect(host, client)
    finally:
        await host.network.close()


async def test_a_link_does_not_outlive_its_certificate(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "RECHECK_S", 0.0)
    async with mesh(files, 2) as nodes:
        credentials = nodes[0].parts.security.credentials
        assert credentials is not None
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=101)
        monkeypatch.setattr(credentials, "_wall", lambda: later)
        await until(lambda: nodes[0].faults.get("expired"))
        (trouble,) = nodes[0].parts.security.troubles()
        assert "the certificate was valid until" in trouble
        assert "no restart is needed" in trouble


async def test_an_expired_certificate_gets_no_link(files: Files) -> None:
    """Its holder would refuse to start; TLS at the other end does not believe it either."""
    host = Node(0, addresses([1], free_ports(1)), security=files.security(0))
    host.network.start(LOOPBACK)
    security = files.security(1)
    expired = AUTHORITY.issue(signer(1).public_key, "node-1", Role.PEER, days=0)
    security.client = mutual_context(
        server=False, certificate=expired, seed=seed(1), authority=AUTHORITY.certificate
    )
    stranger = Node(1, [host.address], security=security)
    stranger.network.start(None)
    try:
        await until(lambda: host.faults)
        assert set(host.faults) == {"wrong-certificate"}
        await until(lambda: stranger.dial_failures)
        assert not host.network.peers
    finally:
        await stranger.network.close()
        await host.network.close()


# -- files -----------------------------------------------------------------------------------------


def test_a_list_says_who_is_revoked_and_why(files: Files) -> None:
    files.revoke([5, 7], number=9)
    listed = RevocationList.load(files.list, AUTHORITY.certificate)
    assert listed.number == 9
    assert listed.revoked == {5: Reason.KEY_COMPROMISE, 7: Reason.KEY_COMPROMISE}
    made = AUTHORITY.revoke({1: Reason.UNSPECIFIED, 2: Reason.SUPERSEDED}, 10)
    files.list.write_bytes(pem_list(made))
    again = RevocationList.load(files.list, AUTHORITY.certificate)
    assert again.revoked == {1: Reason.UNSPECIFIED, 2: Reason.SUPERSEDED}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "is no revocation list in PEM form"),
        (pem(AUTHORITY.certificate), "is no revocation list in PEM form"),
        (pem_list(Authority.create("chain", seed(7)).revoke({}, 2)), "was not signed by the auth"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_unusable_list_stops_a_start(files: Files, data: bytes | None, words: str) -> None:
    files.issue(0)
    files.list.unlink() if data is None else files.list.write_bytes(data)
    with pytest.raises(LocalFault, match=words) as caught:
        files.credentials()
    assert str(files.list) in str(caught.value)


def test_a_bad_or_older_list_changes_nothing_and_is_complained_of(files: Files) -> None:
    bad = files.issue(1)
    files.issue(0)
    files.revoke([bad], number=5)
    credentials, heard = files.credentials(), Heard()
    credentials.report_to(heard, Metrics(), "consortium")
    before = credentials.revocations
    for harm, words in (
        (lambda: files.list.write_bytes(b"half a li"), "is no revocation list"),
        (lambda: files.revoke([], number=4), "is list 4, older than 5, which is in force"),
        (lambda: files.revoke([], number=6, by=Authority.create("x", seed(3))), "not signed by"),
        (files.list.unlink, "cannot be read"),
    ):
        harm()
        credentials.refresh()
        credentials.refresh()
        (trouble,) = credentials.troubles()
        assert words in trouble
        assert "stays in force" in trouble
        assert credentials.revocations == before
        assert sum(words in line for line in heard.lines) == 1  # said once
    files.revoke([bad, 3], number=6)
    credentials.refresh()
    assert credentials.troubles() == ()
    assert credentials.revocations is not None
    assert credentials.revocations.number == 6
    assert "revocation list" in heard.lines[-1]


def test_a_bad_certificate_file_changes_nothing(files: Files) -> None:
    first = files.issue(0)
    credentials = files.credentials()
    foreign = pem(AUTHORITY.issue(signer(1).public_key, "n", Role.PEER))
    for data, words in (
        (b"junk", "is no PEM certificate"),
        (foreign, "is for key"),
        (pem(AUTHORITY.issue(signer(0).public_key, "n", Role.PEER, days=0)), "not now"),
    ):
        files.certificate(0).write_bytes(data)
        assert not credentials.refresh()
        assert words in credentials.troubles()[0]
        assert credentials.own.serial == first
    second = files.issue(0)
    assert credentials.refresh()
    assert credentials.own.serial == second
    assert credentials.troubles() == ()


def test_a_replaced_file_is_seen_even_when_its_time_is_old(files: Files) -> None:
    """`cp -p` and `mv` keep the time of what they bring."""
    files.issue(0)
    credentials = files.credentials()
    stamp = files.list.stat()
    files.revoke([1], number=2)
    os.utime(files.list, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    credentials.refresh()
    assert credentials.revocations is not None
    assert credentials.revocations.number == 2


def test_what_will_end_is_warned_of_once_a_day_and_shown(files: Files) -> None:
    files.issue(0, days=10)
    files.revoke([], number=1, days=0)
    credentials, heard, metrics = files.credentials(), Heard(), Metrics()
    credentials.report_to(heard, metrics, "consortium")
    warned = [line for line in heard.lines if "gtx ca renew" in line or "gtx ca crl" in line]
    assert len(warned) == 2
    credentials._warn(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    assert len(heard.lines) == 2
    credentials._warn(dt.datetime.now(dt.UTC) + dt.timedelta(days=2))
    assert len(heard.lines) == 4
    text = metrics.render().decode()
    assert 'gtx_certificate_expiry_seconds{chain="consortium"} 86' in text
    assert 'gtx_revocation_list_number{chain="consortium"} 1.0' in text
    assert credentials.troubles() == ()
