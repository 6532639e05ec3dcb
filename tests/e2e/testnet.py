"""A whole testnet under test: `gtx testnet up` as a person starts it, on ports of its own."""

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from gridtokenx.core.gridtime import GridClock
from gridtokenx.host.chains import read_chain
from gridtokenx.lab.manifest import load_manifest
from gridtokenx.lab.ports import LOOPBACK, free_ports
from gridtokenx.lab.testnet.layout import Layout

GTX = (sys.executable, "-m", "gridtokenx.lab.cli")
COMMAND_S = 180.0
"""How soon a command ends is not the question."""
POLL_S = 0.2
NETWORKS = 2
"""Whole networks at a time: each takes between a third and a half of a core."""
STOP_S = 10.0
"""What is promised; half a second is usual."""
_LOGGED = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z (debug|info|warning) ")
"""A line of a process's log: what a node says before it knows that it cannot go on."""
Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """A finished command."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Assert that it was refused with one line, besides its log, that has these words."""
        lines = [line for line in self.err.splitlines() if not _LOGGED.match(line)]
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), lines
        for word in words:
            assert word in lines[0], lines


def gtx(*arguments: str | Path, timeout_s: float = COMMAND_S, **environment: str) -> Said:
    """Run a `gtx` command to its end."""
    done = subprocess.run(
        [*GTX, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )
    return Said(done.returncode, done.stdout, done.stderr)


class Commands:
    """Runs many `gtx` commands, each in a process of its own that the fork server makes quickly."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "said"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "gridtokenx.lab.testnet.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._next(COMMAND_S) == {"event": "ready"}

    def run(self, *arguments: str | Path, timeout_s: float = 30.0, **environment: str) -> Said:
        """Like `gtx`, but what it prints goes all to `err`."""
        assert self._server.stdin is not None
        self._log.unlink(missing_ok=True)
        request = {
            "name": "command",
            "argv": list(map(str, arguments)),
            "environment": environment,
            "log": str(self._log),
        }
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        started = self._next(timeout_s)
        try:
            ended = self._next(timeout_s)
        except TimeoutError:
            os.kill(started["pid"], signal.SIGKILL)
            self._next(timeout_s)
            raise AssertionError(f"{arguments} goes on:\n{self._log.read_text()}") from None
        return Said(ended["status"], "", self._log.read_text(errors="replace"))

    def close(self) -> None:
        """End the fork server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(STOP_S)
        self._server.stdout.close()

    def _next(self, timeout_s: float) -> dict[str, Any]:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], timeout_s)[0]:
            raise TimeoutError
        return dict(json.loads(self._server.stdout.readline()))


class Network:
    """One testnet's home, manifest and processes."""

    def __init__(self, directory: Path, manifest: str = "") -> None:
        self.directory = directory
        self.home = directory / "home"
        self.manifest_path = directory / "manifest.toml"
        base = free_base()
        ports = f"[ports]\ngateway = {base}\nbase = {base + 1}\n"
        self.manifest_path.write_text(f'name = "e2e"\n{manifest}\n{ports}', encoding="utf-8")
        self.layout = Layout(self.home, load_manifest(self.manifest_path))
        self.log_path = directory / "up.log"

    # -- life --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def up(self, *flags: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """`gtx testnet up`; whatever happens, nothing of it is left afterwards."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [*GTX, "testnet", "up", "--home", str(self.home), *map(str, flags)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            self._clear(process)

    def fresh(
        self, *flags: str | Path
    ) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """`up` of a new network."""
        return self.up("--manifest", self.manifest_path, "--fresh", *flags)

    def stopped(self, process: subprocess.Popen[bytes], timeout_s: float) -> int:
        """The exit code of the supervisor, which left no process behind."""
        pids = self.pids()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"up did not end within {timeout_s} s:\n{self.said()}") from None
        assert not [name for name, pid in pids.items() if is_alive(pid)]
        return code

    def said(self) -> str:
        """What `up` printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _clear(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            return
        pids = self.pids()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
        for pid in filter(is_alive, pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- processes ---------------------------------------------------------------------------------

    def pid(self, name: str) -> int | None:
        """The process id of a process of the network, if it runs."""
        try:
            return int((self.layout.directory(name) / "pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def pids(self) -> dict[str, int]:
        """All that run, by name."""
        found = ((member.name, self.pid(member.name)) for member in self.layout.members)
        return {name: pid for name, pid in found if pid is not None}

    def all_started(self) -> bool:
        """Whether every process was forked."""
        return len(self.pids()) == len(self.layout.members)

    def signal(self, name: str, signum: int) -> int:
        """Send a signal to a process; returns the process id that it had."""
        pid = self.pid(name)
        assert pid is not None, f"{name} does not run"
        os.kill(pid, signum)
        return pid

    # -- looking -----------------------------------------------------------------------------------

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float) -> float:
        """Wait until something holds; returns how long it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.said()[-4000:]}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def get(self, name: str, path: str) -> tuple[int, bytes]:
        """An HTTP answer of a process; status 0 if there is none."""
        url = f"http://{LOOPBACK}:{self.layout.member(name).http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def is_ready(self, name: str) -> bool:
        """Whether a process says that it does its work."""
        return self.get(name, "/ready")[0] == 200

    def status(self) -> Status | None:
        """The gateway's status."""
        code, body = self.get("gateway", "/api/v1/status")
        return json.loads(body) if code == 200 else None

    def finalized(self) -> dict[str, int]:
        """Final heights as the gateway verified them; empty while it does not answer."""
        status = self.status()
        return {} if status is None else {k: v["finalized"] for k, v in status["chains"].items()}

    def finalises(self) -> bool:
        """Whether each chain has a final block beyond genesis."""
        heights = self.finalized()
        return bool(heights) and all(height > 0 for height in heights.values())

    def chain_ids(self) -> dict[str, str]:
        """Chain ids by name."""
        facts = json.loads(self.layout.network_path.read_text(encoding="utf-8"))
        return {name: chain["chain_id"] for name, chain in facts["chains"].items()}

    def tracebacks(self) -> dict[str, str]:
        """By process: the end of a log in which something unexpected is told."""
        logs = ((m.name, self.layout.log_path(m.name)) for m in self.layout.members)
        texts = {name: path.read_text(errors="replace") for name, path in logs if path.exists()}
        return {name: text[-3000:] for name, text in texts.items() if "Traceback" in text}

    def network_ms(self) -> int:
        """Network time now, by the heartbeat that the supervisor writes."""
        path = self.layout.heartbeat_path
        beat_ms, written_ns = int(path.read_text(encoding="ascii")), path.stat().st_mtime_ns
        return beat_ms + (time.time_ns() - written_ns) // 1_000_000

    def clock(self) -> GridClock:
        """The map from network time to grid time."""
        return read_chain("oracle", self.layout.genesis_path("oracle")).clock

    def node_homes(self) -> list[Path]:
        """The homes of all nodes of all chains."""
        return [self.layout.directory(m.name) for m in self.layout.members if m.chain]

    def verify(self) -> None:
        """Assert that `gtx verify` agrees with every node's disk."""
        homes = self.node_homes()
        said = gtx("verify", *(part for home in homes for part in ("--home", home)), timeout_s=600)
        assert said.code == 0, said
        assert said.out.count("everything agrees") == len(homes), said.out


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run."""
    return dict(json.loads(path.read_bytes()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(") ")[2][:1] not in ("Z", "X")


def free_base() -> int:
    """The first of a hundred ports that nobody else takes."""
    return free_ports(100)[0]


@contextlib.contextmanager
def room_for_a_network() -> Iterator[None]:
    """So many whole networks at a time as there are places, whatever other test processes run."""
    with contextlib.ExitStack() as stack:
        stem = Path(tempfile.gettempdir()) / f"gridtokenx-testnet-{os.getuid()}"
        places = [
            stack.enter_context(stem.with_name(f"{stem.name}-{number}.lock").open("w"))
            for number in range(NETWORKS)
        ]
        while not any(map(_locks, places)):
            time.sleep(POLL_S)
        yield


def _locks(place: TextIO) -> bool:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def whole_network() -> Iterator[None]:
    """`room_for_a_network` while a test lasts. The wait is no part of a test's time (`func_only`)."""
    with room_for_a_network():
        yield
