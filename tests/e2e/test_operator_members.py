"""An operator joins a running chain, and another rotates its key: nothing but what `gtx` commands say."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.e2e.test_operator_revocation import REPLICAS, Replicas
from tests.e2e.testnet import gtx

from gridtokenx.lab.ports import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

CHAIN = ("--chain", "consortium")


class Operators(Replicas):
    """The replicas of a consortium chain, and people who say `gtx members`."""

    def members(self, *words: str | Path, by: Path | None = None) -> str:
        (self.home / "heartbeat").write_text(str(time.time_ns() // 1_000_000))  # nothing was down
        signing = () if by is None else ("--keys", by / "keys", "--from", "identity")
        home = () if "--home" in words else ("--home", self.home)
        said = gtx("members", *words, *CHAIN, *signing, *home)
        assert said.code == 0, said
        return said.out

    def enrol(self, home: Path) -> str:
        """Prepare a node's home and let the authority certify it; where it answers over HTTP."""
        genesis = self.home / "genesis"
        listen, http = (f"127.0.0.1:{port}" for port in free_ports(2))
        said = gtx(
            "node",
            "consortium",
            "init",
            home,
            *("--genesis", genesis / "consortium.json", "--listen", listen, "--http", http),
            *("--peers", ",".join(self.network.layout.addresses("consortium"))),
            *("--authority", genesis / "consortium-authority.pem", "--development"),
        )
        assert said.code == 0, said
        assert gtx("ca", "issue", home / "consortium-request.pem", *self.chain).code == 0
        return http

    def take_part(self, http: str, seat: int | str, set_id: int) -> None:
        """Wait until a node has this seat in this set, and grows with the others."""
        self.wait(f"seat {seat}", lambda: health(http) [:2] == (seat, set_id))  # fmt: skip
        height = health(http)[2]
        self.wait("to grow", lambda: health(http)[2] > height + 1)


def health(http: str) -> tuple[int | str, int, int]:
    try:
        with urlopen(f"http://{http}/health", timeout=5) as answer:
            said = json.load(answer)
    except OSError:
        return "not there yet", -1, -1
    return said["seat"], said["set_id"], said["height"]


@contextmanager
def operators(tmp_path: Path, *newcomers: str) -> Iterator[tuple[Operators, list[Path], list[str]]]:
    made = Operators(tmp_path)
    homes = [tmp_path / name for name in newcomers]
    https = [made.enrol(home) for home in homes]
    seats = [made.home / name for name in REPLICAS]
    with made.running(*seats, *homes):
        yield made, seats, https


def test_one_joins_and_one_rotates_its_key(tmp_path: Path) -> None:
    with operators(tmp_path, "joiner", "rotated") as (made, seats, (joiner, rotated)):
        for http in (joiner, rotated):
            made.take_part(http, "observer", 0)
        home = tmp_path / "joiner"
        made.members("prove", "--home", home, "--set", "0", "--label", "Another operator")
        made.members("propose", "add", home / "consortium-seat.json", by=seats[0])
        for seat in seats[1:3]:
            said = made.members("approve", "1", by=seat)
        assert "agreed: set 1 has 5 members, quorum 4" in said
        made.take_part(joiner, 4, 1)

        home = tmp_path / "rotated"
        old = gtx("keys", "show", "identity", "--keys", seats[1] / "keys").out.split()[-1]
        words = ("--home", home, "--set", "1", "--label", "Its next key", "--replaces", old)
        made.members("prove", *words)
        made.members("propose", "replace", home / "consortium-seat.json", by=tmp_path / "joiner")
        for seat in seats[:3]:
            said = made.members("approve", "2", by=seat)
        assert "agreed: set 2 has 5 members" in said
        made.take_part(rotated, 1, 2)
        made.take_part(joiner, 4, 2)
        shown = made.members("show")
        assert old not in shown
        assert "Its next key" in shown
        assert made.gauge(REPLICAS[1], "seated") == 0
    homes = (made.home / REPLICAS[1], tmp_path / "joiner", tmp_path / "rotated")
    assert gtx("verify", *(word for home in homes for word in ("--home", home))).code == 0
