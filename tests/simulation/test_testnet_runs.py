"""The whole network in virtual time: it does its work, survives faults, and is the same in every process."""

import os
import re
import subprocess
import sys

import pytest
from tests.stages import spread

from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import Manifest, dump, parse
from gridtokenx.lab.sim.outcome import Outcome

SMALL = """
name = "small"
[testnet.devices]
households = 4
profile_days = 1
"""
"""Three chains, two relayers, four households; a half hour lasts thirty seconds."""
PROGRAM = """
import sys
from gridtokenx.lab.sim.execute import execute
from gridtokenx.lab.sim.manifest import parse
print(execute(parse(sys.stdin.read()), 7).trace)
"""


def network(faults: str = "", seconds: int = 30) -> Manifest:
    return parse(f"{SMALL}\n[safety]\nduration_ms = {seconds}000\n{faults}")


@pytest.fixture(scope="module")
def timeline() -> list[tuple[int, str]]:
    """Of the honest network."""
    return []


@pytest.fixture(scope="module")
def honest(timeline: list[tuple[int, str]]) -> Outcome:
    return execute(network(seconds=130), 7, lambda *told: timeline.append(told))


def test_an_honest_network_does_all_of_its_work(honest: Outcome) -> None:
    assert honest.verdict == "ok", honest.finding
    summary = honest.summary
    assert summary is not None
    assert all(summary["invariants"].values())
    assert len(summary["invariants"]) == 18
    assert summary["readings"]["verified"] == summary["readings"]["published"] > 0
    assert summary["readings"]["rejected"] == 0
    assert summary["auctions"]["trades"] > 0
    assert summary["settlements"]["intervals"] >= 5
    assert summary["certificates"]["minted_wh"] > 0


def test_an_honest_networks_packets_arrive_but_for_the_late_ones(honest: Outcome) -> None:
    assert honest.summary is not None
    packets = honest.summary["packets"]
    assert set(packets) == {
        "consortium-oracle",
        "consortium-public",
        "oracle-consortium",
        "oracle-public",
        "public-consortium",
    }
    assert all(route["refused"] == 0 for route in packets.values())
    assert packets["public-consortium"]["timed_out"] >= 1, "the traveller sends one too late"
    assert packets["public-consortium"]["delivered"] >= 1


def test_a_run_says_every_ten_seconds_how_far_it_is(
    honest: Outcome, timeline: list[tuple[int, str]]
) -> None:
    stands = [(at_ms // 10_000, line) for at_ms, line in timeline if line.startswith("heights: ")]
    assert [tens for tens, _ in stands] == list(range(1, honest.virtual_ms // 10_000 + 1))
    assert re.search(
        r"public \d+, consortium \d+, oracle \d+; [1-9]\d* auctions, [1-9]", stands[-1][1]
    )


def test_an_honest_networks_chains_keep_their_pace(honest: Outcome) -> None:
    assert honest.summary is not None
    paces = {name: chain["interval_p50_ms"] for name, chain in honest.summary["chains"].items()}
    assert paces == {"public": 6_000, "consortium": 1_000, "oracle": 1_000}
    assert honest.views == 0


def test_the_same_seed_is_the_same_trace_in_another_process() -> None:
    crash = (
        '[[fault]]\nkind = "crash"\nnodes = ["consortium-0", "agents"]\nat_ms = 3000\nfor_ms = 4000'
    )
    traitors = "".join(
        f'[[fault]]\nkind = "behave"\nnode = "{node}"\nbehaviour = "{behaviour}"\n'
        for node, behaviour in (
            ("consortium-1", "forge-signature"),
            ("public-2", "equivocate"),
            ("oracle-3", "false-price"),
            ("relayer-0", "replay"),
        )
    )
    manifest = network(f"{crash}\n{traitors}", seconds=10)
    here = execute(manifest, 7).trace
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=dump(manifest),
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.strip() == here


ONE_OF_EACH = """
[[fault]]
kind = "crash"
nodes = ["consortium-0"]
at_ms = 8000
for_ms = 8000
[[fault]]
kind = "crash"
nodes = ["oracle-{seed}", "relayer-0"]
at_ms = 20000
for_ms = 8000
[[fault]]
kind = "crash"
nodes = ["public-{seed}", "devices"]
at_ms = 31000
for_ms = 8000
[[fault]]
kind = "partition"
nodes = ["public-0", "consortium-1", "oracle-2", "agents"]
at_ms = 42000
for_ms = 12000
"""


@pytest.mark.parametrize("seed", spread(range(4), 1))
def test_a_crash_in_each_chain_and_a_partition_are_survived(seed: int) -> None:
    outcome = execute(network(ONE_OF_EACH.format(seed=seed), seconds=60), seed)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.views > 0, "the consortium's first leader was killed"


WHOLE_CHAIN = """
[[fault]]
kind = "crash"
nodes = ["oracle-0", "oracle-1", "oracle-2", "oracle-3", "broker"]
at_ms = 24000
for_ms = 12000
[[fault]]
kind = "pause"
nodes = ["agents", "relayer-1"]
at_ms = 5000
for_ms = 20000
[[fault]]
kind = "loss"
share = 0.05
at_ms = 10000
for_ms = 20000
"""


@pytest.mark.slow
def test_a_chain_that_is_down_as_a_whole_catches_up() -> None:
    """Meters keep what no watermark covers, and the broker keeps nothing."""
    outcome = execute(network(WHOLE_CHAIN, seconds=45), 3)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.summary is not None
    assert outcome.summary["settlements"]["intervals"] >= 2


FORGETFUL = """
[[fault]]
kind = "wipe"
nodes = ["public-2", "consortium-1", "oracle-3"]
at_ms = 15000
for_ms = 5000
"""


@pytest.mark.slow
def test_nodes_that_lost_their_disks_fetch_everything_again() -> None:
    outcome = execute(network(FORGETFUL), 4)
    assert outcome.verdict == "ok", outcome.finding
    assert len(outcome.byzantine) == 3


@pytest.mark.parametrize("seed", spread(range(10), 1))
def test_drawn_faults_are_survived(seed: int) -> None:
    outcome = execute(network("[swarm]\nfaults = 6", seconds=45), seed)
    assert outcome.verdict == "ok", outcome.finding


MEDDLERS = """
[[fault]]
kind = "behave"
node = "relayer-0"
behaviour = "silent"
[[fault]]
kind = "behave"
node = "devices"
behaviour = "forge-signature"
share = 0.2
for_ms = 20000
[[fault]]
kind = "behave"
node = "devices"
behaviour = "replay"
for_ms = 30000
"""


@pytest.mark.slow
def test_a_silent_relayer_and_devices_that_lie_cost_a_delay() -> None:
    outcome = execute(network(MEDDLERS), 5)
    assert outcome.verdict == "ok", outcome.finding
    assert outcome.summary is not None
    assert outcome.summary["readings"]["rejected"] > 0


def test_a_network_whose_relayers_are_all_silent_promised_nothing() -> None:
    silent = '[[fault]]\nkind = "behave"\nnode = "relayer-{}"\nbehaviour = "silent"\n'
    short = "[liveness]\nbound_ms = 60000\n"
    manifest = network(short + silent.format(0) + silent.format(1), seconds=5)
    outcome = execute(manifest, 1)
    assert outcome.verdict == "voided"
    assert outcome.voided == ("liveness: every relayer misbehaves",)
    assert outcome.finding is not None
    assert outcome.finding.checker == "liveness"
    assert "is not settled" in outcome.finding.detail
