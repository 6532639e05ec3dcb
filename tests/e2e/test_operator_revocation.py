"""Replicas as processes: one is revoked while they run, comes back, and an observer is enrolled."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.e2e.testnet import GTX, STOP_S, Network, gtx

from gridtokenx.lab.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = "[devices]\nhouseholds = 2\nprofile_days = 1\n"
REPLICAS = tuple(f"consortium-{index}" for index in range(4))
REVOKED = REPLICAS[3]
OTHERS = REPLICAS[:3]
PATIENCE_S = 120


class Replicas:
    """The replicas of a testnet's consortium chain, each started by its operator."""

    def __init__(self, directory: Path) -> None:
        self.network = Network(directory, SMALL)
        made = ("--home", self.network.home, "--manifest", self.network.manifest_path)
        assert gtx("testnet", "init", *made).code == 0
        self.home = self.network.home
        self.chain = ("--authority", self.home / "authority", "--chain", "consortium")
        self.list = self.home / "genesis" / "consortium-revocations.pem"

    @contextmanager
    def running(self, *homes: Path) -> Iterator[None]:
        processes = [self._start(home) for home in homes]
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
            codes = [_ended(process) for process in processes]
        assert codes == [0] * len(codes)

    def _start(self, home: Path) -> subprocess.Popen[bytes]:
        with (home / "log").open("ab") as log:
            command = [*GTX, "node", "consortium", "--config", str(home / "config.toml")]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def gauge(self, name: str, gauge: str) -> float:
        code, body = self.network.get(name, "/metrics")
        found = re.search(rf"^gtx_{gauge}{{.*}} (\S+)$", body.decode(), re.MULTILINE)
        return float(found[1]) if code == 200 and found else -1

    def height(self, name: str) -> float:
        return self.gauge(name, "final_height")

    def reasons(self, name: str) -> str:
        body = self.network.get(name, "/ready")[1]
        return " ".join(json.loads(body).get("reasons", ())) if body else ""

    def certificate(self, name: str) -> Path:
        return self.home / name / "consortium-certificate.pem"

    def wait(self, what: str, condition) -> None:  # type: ignore[no-untyped-def]
        self.network.log_path.touch()  # what the network's own supervisor would have said
        self.network.wait_for(what, condition, PATIENCE_S)

    def grows(self, names: tuple[str, ...]) -> None:
        before = {name: self.height(name) for name in names}
        self.wait(
            f"{names} to grow",
            lambda: all(self.height(name) > before[name] + 1 for name in names),
        )


def test_a_replica_is_revoked_and_comes_back_while_all_run(tmp_path: Path) -> None:
    made = Replicas(tmp_path)
    with made.running(*(made.home / name for name in REPLICAS)):
        made.wait("links", lambda: all(made.gauge(name, "peers") == 3 for name in REPLICAS))
        made.grows(REPLICAS)

        own = made.certificate(REVOKED)
        said = gtx(
            "ca", "revoke", own, *made.chain, "--reason", "affiliation-changed", "--out", made.list
        )
        assert said.code == 0, said
        made.wait("the revoked one alone", lambda: made.gauge(REVOKED, "peers") == 0)
        made.wait("a reason", lambda: "was revoked: affiliation-changed" in made.reasons(REVOKED))
        made.wait("the others", lambda: all(made.gauge(name, "peers") == 2 for name in OTHERS))
        made.grows(OTHERS)  # three of four are a quorum
        log = (made.home / REVOKED / "log").read_text()
        assert "revoked" in log

        request = tmp_path / "consortium-request.pem"
        keys = ("--keys", made.home / REVOKED / "keys", "--chain", "consortium", "--role", "peer")
        asked = gtx("keys", "request", "identity", *keys, "--holder", REVOKED, "--out", request)
        assert asked.code == 0, asked
        issued = gtx("ca", "issue", request, *made.chain, "--days", "100")
        assert issued.code == 0, issued
        own.write_bytes((tmp_path / "consortium-certificate.pem").read_bytes())
        made.wait("its links", lambda: made.gauge(REVOKED, "peers") == 3)
        made.wait("no reason", lambda: "revoked" not in made.reasons(REVOKED))
        made.wait("the chain", lambda: made.height(REVOKED) >= made.height(OTHERS[0]) - 2 > 0)
        made.grows(REPLICAS)
        left_days = made.gauge(REVOKED, "certificate_expiry_seconds") / 86_400
        assert 98 < left_days <= 100


def test_an_observer_is_enrolled_from_its_own_command_line(tmp_path: Path) -> None:
    """init, issue, put the answer in place, start: nothing but what the commands say."""
    made = Replicas(tmp_path)
    genesis, home = made.home / "genesis", tmp_path / "observer"
    listen, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    peers = ",".join(made.network.layout.addresses("consortium"))
    said = gtx(
        "node",
        "consortium",
        "init",
        home,
        *("--genesis", genesis / "consortium.json", "--listen", listen, "--http", http),
        *("--peers", peers, "--authority", genesis / "consortium-authority.pem"),
        *("--revocations", genesis / "consortium-revocations.pem", "--development"),
    )
    assert said.code == 0, said
    early = gtx("node", "consortium", "--config", home / "config.toml", "--log-level", "error")
    early.refused("observer/consortium-certificate.pem: no certificate is there yet")
    assert gtx("ca", "issue", home / "consortium-request.pem", *made.chain).code == 0
    with made.running(*(made.home / name for name in REPLICAS), home):
        made.grows(REPLICAS)
        made.wait("to follow", lambda: _height(http) >= made.height(REPLICAS[0]) - 2 > 0)


def _ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(3 * STOP_S)
    finally:
        process.kill()


def _height(http: str) -> float:
    try:
        with urlopen(f"http://{http}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:  # it is still starting
        return -1
    found = re.search(r"^gtx_final_height{.*} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else -1
