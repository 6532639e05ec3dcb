"""Coroutines in virtual time: waits, kills, pauses, connections; and how networks stand in manifests."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import KeyedHashVerifier, sha256
from gridtokenx.lab.faults import Crash, Partition
from gridtokenx.lab.sim.manifest import dump, load, parse
from gridtokenx.lab.sim.network import Drop
from gridtokenx.lab.sim.testnet.broker import matches
from gridtokenx.lab.sim.testnet.naming import names
from gridtokenx.lab.sim.testnet.network import NetworkWorld
from gridtokenx.lab.sim.testnet.processes import End, Idle, Life, Process, Wires
from gridtokenx.lab.sim.world import START_MS

MANIFESTS = Path(__file__).parents[2] / "compose" / "manifests"
Main = Callable[[Life], Coroutine[Any, Any, None]]
ONE, OTHER = sha256(b"one"), sha256(b"other")


class Pair:
    """Two processes of a network."""

    def __init__(self, one: Main, other: Main | None = None) -> None:
        self.world = NetworkWorld(1, KeyedHashVerifier())
        self.wires = Wires(self.world, START_MS)
        self.world.processes = self.wires.processes
        self.one = self._process("one", ONE, one)
        self.other = self._process("other", OTHER, other)
        self.world.start()

    def _process(self, name: str, id_: bytes, main: Main | None) -> Process:
        def begin(life: Life, _reader: object) -> Idle:
            if main is not None:
                life.spawn(main(life), "main")
            return Idle()

        return Process(self.wires, name, id_, begin, name)

    def run(self, ms: int) -> None:
        self.world.run_for(ms)

    def close(self) -> None:
        for process in (self.one, self.other):
            for life in process.lives:
                life.bury()


def ticking(heard: list[float]) -> Main:
    async def main(life: Life) -> None:
        while True:
            await asyncio.sleep(0.25)
            heard.append(life.loop.time())

    return main


def test_waits_take_virtual_time_alone() -> None:
    heard: list[float] = []
    pair = Pair(ticking(heard))
    pair.run(1_000)
    assert heard == [0.25, 0.5, 0.75, 1.0]
    pair.close()


def test_a_wait_too_short_to_tell_is_a_millisecond() -> None:
    """Else a loop that waits for the rest of a float never lets time pass."""
    turns = 0

    async def main(life: Life) -> None:
        nonlocal turns
        while life.loop.time() < 0.01:
            turns += 1
            await asyncio.sleep(1e-12)

    pair = Pair(main)
    pair.run(20)
    assert turns == 10
    pair.close()


def test_timeouts_and_threads_work() -> None:
    heard: list[object] = []

    async def main(_life: Life) -> None:
        heard.append(await asyncio.to_thread(lambda: 7))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()
        heard.append(asyncio.get_running_loop().time())

    pair = Pair(main)
    pair.run(1_000)
    assert heard == [7, 0.1]
    pair.close()


def test_a_killed_process_does_nothing_more_and_starts_anew() -> None:
    heard: list[float] = []
    pair = Pair(ticking(heard))
    pair.run(300)
    pair.world.crash(ONE)
    pair.run(300)
    assert heard == [0.25]
    pair.world.start(ONE)
    pair.run(300)
    assert heard == [0.25, 0.85]
    assert len(pair.one.lives) == 2
    pair.close()


def test_a_paused_process_goes_on_when_the_pause_is_over() -> None:
    heard: list[float] = []
    pair = Pair(ticking(heard))
    pair.run(100)
    pair.world.pause(ONE)
    pair.run(1_000)
    assert heard == []
    pair.world.resume(ONE)
    pair.run(300)
    assert heard == [1.1, 1.35]
    pair.close()


def test_an_error_that_nobody_awaits_is_told() -> None:
    async def main(_life: Life) -> None:
        raise ValueError("a bug")

    told: list[BaseException] = []
    pair = Pair(main)
    pair.wires.on_failure = lambda _life, error: told.append(error)
    pair.run(1)
    assert [str(error) for error in told] == ["a bug"]
    pair.close()


# -- connections -----------------------------------------------------------------------------------


class Talk:
    """One dials the other, says something every 50 ms, and the other listens."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = ""
        self.pair = Pair(self.dial, self.listen)

    async def listen(self, life: Life) -> None:
        def accept(end: End) -> None:
            end.on_frame = self.heard.append

        life.listeners["talk"] = accept

    async def dial(self, life: Life) -> None:
        await asyncio.sleep(0.01)
        end = await life.wires.dial(life, OTHER, "talk")
        end.on_closed = lambda reason: setattr(self, "ended", reason)
        for number in range(100):
            end.send(bytes((number,)))
            await asyncio.sleep(0.05)


def test_frames_arrive_in_order_though_many_are_lost() -> None:
    talk = Talk()
    draw = talk.pair.world.draw
    talk.pair.world.network.rules.append(lambda _e: Drop() if draw.random() < 0.4 else None)
    talk.pair.run(20_000)
    assert talk.heard == [bytes((number,)) for number in range(100)]
    talk.pair.close()


def test_who_is_killed_ends_its_connections() -> None:
    talk = Talk()
    talk.pair.run(1_000)
    talk.pair.world.crash(OTHER)
    talk.pair.run(20)
    assert talk.ended == "the other end closed it"
    talk.pair.close()


def test_a_partition_ends_a_connection_only_after_a_while() -> None:
    talk = Talk()
    talk.pair.run(1_000)
    talk.pair.world.network.partition((ONE,), (OTHER,))
    talk.pair.run(10_000)
    assert talk.ended == ""
    talk.pair.run(30_000)
    assert talk.ended == "the other end cannot be reached"
    talk.pair.close()


def test_nobody_listens_where_nobody_is() -> None:
    faults: list[RemoteFault] = []

    async def main(life: Life) -> None:
        try:
            await life.wires.dial(life, OTHER, "talk")
        except RemoteFault as fault:
            faults.append(fault)

    pair = Pair(main)
    pair.run(100)
    assert [fault.reason for fault in faults] == ["unreachable"]
    pair.close()


@pytest.mark.parametrize(
    ("filter_", "topic", "does"),
    [
        ("gtx/v1/+/+/reading", "gtx/v1/0/ab/reading", True),
        ("gtx/v1/+/+/reading", "gtx/v1/0/ab/announce", False),
        ("gtx/v1/watermark/ab", "gtx/v1/watermark/ab", True),
        ("gtx/v1/concentrator/#", "gtx/v1/concentrator/ab/readings", True),
        ("gtx/v1/+", "gtx/v1", False),
        ("gtx/v1", "gtx/v1/more", False),
    ],
)
def test_filters_match_topics_as_mqtt_says(filter_: str, topic: str, does: bool) -> None:
    assert matches(filter_, topic) is does


# -- manifests -------------------------------------------------------------------------------------


def test_a_testnets_manifest_is_a_grid_day_of_it() -> None:
    manifest = load(MANIFESTS / "local.toml")
    assert manifest.testnet is not None
    assert manifest.safety.duration_ms == 24 * 3_600_000 // 60
    assert parse(dump(manifest)) == manifest
    assert names(manifest.testnet)[-6:] == [
        "relayer-0", "relayer-1", "broker", "market-data", "devices", "agents",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["sim-testnet-relayer", "sim-testnet-storm", "sim-testnet-traitors"]
)
def test_manifests_of_networks_are_told_again_alone(name: str) -> None:
    manifest = load(MANIFESTS / f"{name}.toml")
    written = dump(manifest)
    assert parse(written) == manifest
    assert '"relayer-0"' in written, "processes are named"


def test_faults_name_processes() -> None:
    manifest = parse("""
[testnet.public]
validators = 5
[[fault]]
kind = "crash"
nodes = ["public-4", "consortium-0", 1, "leader"]
[[fault]]
kind = "partition"
shape = "sides"
sides = [["public-0", "agents"], ["oracle-3"]]
""")
    crash, cut = manifest.fault
    assert isinstance(crash, Crash)
    assert crash.nodes == (4, 5, 1, "leader")
    assert isinstance(cut, Partition)
    assert cut.sides == ((0, 18), (12,))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('testnet = "nowhere.toml"', "write the network out"),
        ("[testnet]\n[chain]\nreplicas = 7", "[chain] is about one chain"),
        ("[testnet]\n[byzzfuzz]", "[byzzfuzz] is about one chain"),
        ("[testnet.devises]\nhouseholds = 3", "did you mean 'devices'?"),
        ('[testnet]\n[[fault]]\nkind = "crash"\nnodes = ["oracle-9"]', "oracle-9"),
        ('[testnet]\n[[fault]]\nkind = "crash"\nnodes = [99]', "node 99 does not exist"),
        (
            '[testnet]\n[[fault]]\nkind = "behave"\nnode = "public-0"\nbehaviour = "amnesia"',
            "public-0 may be silent",
        ),
        (
            '[testnet]\n[[fault]]\nkind = "behave"\nnode = "agents"\nbehaviour = "twin"',
            "may be silent",
        ),
        ("[testnet.devices]\nbattery_percent = 90", "a battery stores what panels make"),
    ],
)
def test_a_slip_is_answered(text: str, complaint: str) -> None:
    with pytest.raises(LocalFault) as refused:
        parse(text)
    assert complaint in str(refused.value)
