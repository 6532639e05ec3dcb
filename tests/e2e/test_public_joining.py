"""An operator joins a running public chain with the commands of the guide, and wins a seat."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.e2e.test_public_processes import RUN, Processes, genesis_now, seed_of

from gridtokenx.core.addresses import address
from gridtokenx.core.keys import Ed25519Signer, sha256
from gridtokenx.core.units import GRID
from gridtokenx.host.keyfile import KeyRing, create_development_password
from gridtokenx.ledger.identity import derive_chain_id
from gridtokenx.public.chain import Balance

pytestmark = pytest.mark.e2e

SEATS = 4
JOINER = 4
ERA_SLOTS = 12
FAY = sha256(b"e2e fay")


class Network(Processes):
    """Four validators, one node more, and a wallet."""

    def make_wallet(self) -> None:
        keys = self.path / "wallet" / "keys"
        ring = KeyRing.create(keys, create_development_password(keys), scrypt_n=1024)
        ring.put("identity", sha256(b"e2e wallet"))
        ring.put("fay", FAY)
        chain = {
            "chain_id": self.genesis.chain_id.hex(),
            "genesis": "genesis.json",
            "nodes": [f"127.0.0.1:{port}" for port in self.ports[:SEATS]],
        }
        network = {"name": "joining", "chains": {"public": chain}, "gateway": ""}
        (self.path / "network.json").write_text(json.dumps(network))

    def gtx(self, *words: str, fails: int = 0) -> str:
        """What a command prints; its exit code is part of the test."""
        (self.path / "heartbeat").write_text(str(time.time_ns() // 1_000_000))
        command = [sys.executable, "-c", RUN, *words]
        environment = os.environ | {"GTX_HOME": str(self.path)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        assert done.returncode == fails, done.stdout + done.stderr
        return done.stdout if not fails else done.stdout + done.stderr

    def wait_for(self, what: str, within_s: float) -> str:
        """`gtx stake show` until it says so."""
        end = time.monotonic() + within_s
        while what not in (shown := self.gtx("stake", "show")):
            assert time.monotonic() < end, shown
            time.sleep(1)
        return shown

    def wait_for_era(self, era: int, within_s: float) -> None:
        """Until it is that era, or a later one."""
        end = time.monotonic() + within_s
        while (shown := re.search(r"era (\d+), set", self.gtx("stake", "show"))) is not None:
            if int(shown[1]) >= era:
                return
            assert time.monotonic() < end, shown[0]
            time.sleep(1)
        raise AssertionError("`gtx stake show` tells no era")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    base = genesis_now()
    fay = Balance(account=Ed25519Signer(FAY).public_key, amount_ngrid=1_000 * GRID)
    made = replace(
        base,
        chain_id=bytes(32),
        balances=(*base.balances, fay),
        era_slots=ERA_SLOTS,
        unbonding_eras=1,
    )
    network = Network(tmp_path, replace(made, chain_id=derive_chain_id(made)), SEATS + 1)
    network.make_wallet()
    for index in range(SEATS):
        network.start(index)
    yield network
    for process in network.running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_a_full_node_with_stake_becomes_a_validator(network: Network) -> None:
    await network.all_reach(3, within_s=60)
    checkpoint = network.gtx("stake", "checkpoint").strip()
    network.start(JOINER, checkpoint=checkpoint)
    await network.all_reach(int(checkpoint.partition(":")[0]) + 2, within_s=60)

    account = address(Ed25519Signer(FAY).public_key)
    assert "final in block" in network.gtx("stake", "bond", "--from", "fay", "--amount", "800")
    refused = network.gtx("stake", "chill", "--from", "fay", fails=1)
    assert "neither stands nor nominates" in refused
    keys = ("--session-keys", str(network.path / f"keys-{JOINER}"))
    proof = network.gtx(
        *("stake", "prove", "--account", account, *keys),
        *("--genesis", str(network.path / "genesis.json")),
    ).strip()
    assert "final" in network.gtx("stake", "stand", "--from", "fay", "--proof", proof)

    session_key = Ed25519Signer(seed_of(JOINER)).public_key.hex()[:16]
    shown = network.wait_for(session_key, within_s=4 * ERA_SLOTS)
    assert "set 1" in shown
    assert "800 GRID" in network.gtx("stake", "show", "fay")
    final = max(network.finals().values())
    await network.all_reach(final + 4, within_s=60)

    network.gtx("stake", "chill", "--from", "fay")
    network.gtx("stake", "unbond", "--from", "fay", "--amount", "800")
    told = re.search(r"free from era (\d+) on", network.gtx("stake", "show", "fay"))
    assert told is not None
    assert "set 2" in network.wait_for("set 2", within_s=6 * ERA_SLOTS)
    network.wait_for_era(int(told[1]), within_s=4 * ERA_SLOTS)
    assert "final" in network.gtx("stake", "withdraw", "--from", "fay")
    await network.all_reach(max(network.finals().values()) + 3, within_s=60)
    network.stop()
    network.check_disks()


@pytest.mark.slow
async def test_another_chain_than_the_checkpoints_is_refused(network: Network) -> None:
    await network.all_reach(3, within_s=60)
    other = bytes(32).hex()
    network.start(JOINER, checkpoint=f"2:{other}")
    assert network.running.pop(JOINER).wait(timeout=60) == 2
    log = (network.path / f"log-{JOINER}").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("error:")]
    assert other in line
    assert "checkpoint" in line
    assert "Traceback" not in log
