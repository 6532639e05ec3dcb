"""What keeps a testnet's processes alive, on two light ones: lost fork servers, hopeless processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gridtokenx.lab.cli import main
from gridtokenx.lab.ports import free_ports
from gridtokenx.lab.testnet import processes as supervised
from gridtokenx.lab.testnet.processes import Processes, ProcessSpec, is_running

pytestmark = pytest.mark.e2e
WITHIN_S = 60.0


class Supervised:
    """Two price sources and whatever else a test wants, under a supervisor."""

    def __init__(self, directory: Path, *others: tuple[str, ...]) -> None:
        self.said: list[str] = []
        specs = [
            _source(directory, f"source-{index}", port) for index, port in enumerate(free_ports(2))
        ]
        specs += [
            ProcessSpec(f"other-{index}", argv, directory / f"other-{index}" / "log")
            for index, argv in enumerate(others)
        ]
        for spec in specs:
            spec.log.parent.mkdir()
        self.processes = Processes(specs, {}, self.said.append)

    def pids(self) -> dict[str, int]:
        return {n: w.pid for n, w in self.processes.watched.items() if w.pid is not None}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():  # noqa: ASYNC110 - processes tell no event
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, int]]:
        await self.processes.start()
        try:
            await self.until(lambda: len(self.pids()) >= 2)
            yield self.pids()
        finally:
            await self.processes.stop()
            assert not [pid for pid in self.pids().values() if is_running(pid)]


def _source(directory: Path, name: str, port: int) -> ProcessSpec:
    argv = ("market-data", "--listen", f"127.0.0.1:{port}", "--network-genesis-ms", "0",
            "--grid-epoch-ms", "0")  # fmt: skip
    return ProcessSpec(name, argv, directory / name / "log")


def zygote_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_children_that_are_told_to_stop_as_soon_as_they_are_born_do(tmp_path: Path) -> None:
    """They had the fork server's own handler for a moment, and then no end until it lost patience."""
    specs = [_source(tmp_path, f"source-{index}", port) for index, port in enumerate(free_ports(8))]
    requests = [
        {"name": s.name, "argv": s.argv, "environment": {}, "log": str(tmp_path / s.name)}
        for s in specs
    ]
    told = subprocess.run(
        [sys.executable, "-m", "gridtokenx.lab.testnet.zygote"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    ended = [event for event in map(json.loads, told.splitlines()) if event["event"] == "exited"]
    assert len(ended) == len(specs)
    assert not [event for event in ended if event["status"] == -signal.SIGKILL]


async def test_another_fork_server_starts_again_what_the_lost_one_had(tmp_path: Path) -> None:
    network = Supervised(tmp_path)
    async with network.running() as before:
        lost = zygote_of(before["source-0"])
        os.kill(lost, signal.SIGKILL)
        await network.until(lambda: not set(before.values()) & set(network.pids().values()))
        await network.until(lambda: len(network.pids()) == 2)
        assert not any(map(is_running, before.values())), "the old lives ended first"
        again = network.pids()
        assert zygote_of(again["source-0"]) == zygote_of(again["source-1"]) != lost
        os.kill(again["source-1"], signal.SIGKILL)
        await network.until(
            lambda: network.pids().get("source-1", again["source-1"]) != again["source-1"]
        )
        assert network.pids()["source-0"] == again["source-0"]
    assert network.processes.failed == []
    assert sum("the fork server ended" in line for line in network.said) == 1
    assert {w.restarts for w in network.processes.watched.values()} == {1, 2}


async def test_a_fork_server_that_keeps_ending_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "GIVE_UP_AFTER", 2)
    network = Supervised(tmp_path)
    async with network.running() as before:
        os.kill(zygote_of(before["source-0"]), signal.SIGKILL)
        await network.until(lambda: len(set(network.pids().values()) - set(before.values())) == 2)
        os.kill(zygote_of(network.pids()["source-0"]), signal.SIGKILL)
        await network.until(lambda: len(network.processes.failed) == 2)
    assert "keeps ending" in network.said[-1]


async def test_a_process_that_is_given_up_does_not_stop_the_others(tmp_path: Path) -> None:
    network = Supervised(tmp_path, ("market-data", "--no-such-flag"))
    async with network.running():
        await network.until(lambda: network.processes.failed)
        assert network.processes.failed == ["other-0"]
        await network.until(lambda: len(network.pids()) == 2)
        sources = network.pids()
        await asyncio.sleep(0.5)
        assert network.pids() == sources
        os.kill(sources["source-0"], signal.SIGKILL)
        await network.until(
            lambda: network.pids().get("source-0") not in (None, sources["source-0"])
        )
        assert network.pids()["source-1"] == sources["source-1"], "and those are still kept alive"
    assert any("given up" in line for line in network.said)


async def test_ending_at_once_does_not_wait_for_who_hangs(tmp_path: Path) -> None:
    network = Supervised(tmp_path)
    async with network.running() as pids:
        os.kill(pids["source-0"], signal.SIGSTOP)
        stopping = asyncio.create_task(network.processes.stop())
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        network.processes.end_at_once()
        await stopping
        assert time.monotonic() - began_s < 5


# -- gtx testnet down ------------------------------------------------------------------------------

HOLDER = """
import signal, sys
from pathlib import Path
from gridtokenx.lab.testnet.up import supervisor_lock
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with supervisor_lock(Path(sys.argv[1])):
    print("held", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(("kind", "said"), [("suspended", "stopped"), ("deaf", "was killed")])
def test_down_stops_a_supervisor_that_was_suspended_or_hangs(
    kind: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "gridtokenx.lab.commands.testnet.DOWN_S", 20.0 if said == "stopped" else 1.0
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), kind], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if kind == "suspended":
            holder.send_signal(signal.SIGSTOP)
        with pytest.raises(SystemExit) as ended:
            main(["testnet", "down", "--home", str(tmp_path)])
        holder.wait(10)
    assert ended.value.code == 0
    assert said in capsys.readouterr().out
