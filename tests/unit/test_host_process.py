"""What surrounds a process: exit codes, one-line errors, signals, logs, numbers and health."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import click
import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.crashpoints import arm_crash_points
from gridtokenx.host.http import HttpServer, add_health, new_application
from gridtokenx.host.logs import make_logger
from gridtokenx.host.metrics import MAX_SERIES, Metrics
from gridtokenx.host.process import run_command
from gridtokenx.host.readiness import Readiness

PROGRAM = """
import asyncio, sys, time
from gridtokenx.host import process
from gridtokenx.core.errors import LocalFault
from gridtokenx.host.driver import MachineHalted
from gridtokenx.host.process import serve

async def forever():
    print("started", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)

async def local(): raise LocalFault("keys/x.key: is damaged\\nand more")
async def halted(): raise MachineHalted("Replica halted during Start: KeyError: 1")
async def bug(): raise ValueError("oops")
async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(local())
async def done(): pass
async def forks():
    if process.threading.active_count() > 1: raise ValueError("a fork would copy locks")
    await asyncio.sleep(0.05)
    if process.threading.active_count() < 2: raise ValueError("nobody watches the time")
async def busy():
    # closes slowly, without the loop
    try:
        await forever()
    finally:
        print("closing", flush=True)
        time.sleep(float(sys.argv[2]))
async def deaf():
    # does not let itself be cancelled
    print("started", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("closed\\nclosing", flush=True)
async def stuck():
    # keeps the loop for itself
    print("started", flush=True)
    print("closed\\nclosing", flush=True)
    while True:
        pass
if len(sys.argv) > 3:
    process.DRAIN_S = float(sys.argv[3])

sys.exit(serve(globals()[sys.argv[1]]))
"""


HALTED = (
    "fatal: Replica halted during Start: KeyError: 1; nothing more was sent;"
    " start again to resume from the last commit"
)


def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "code", "last_line"),
    [
        ("done", 0, None),
        ("forks", 0, None),
        ("local", 2, "error: keys/x.key: is damaged and more"),
        ("grouped", 2, "error: keys/x.key: is damaged and more"),
        ("halted", 70, HALTED),
        ("bug", 1, "fatal: unexpected ValueError: oops"),
    ],
)
def test_how_a_process_ends(name: str, code: int, last_line: str | None) -> None:
    ended = run(name)
    assert ended.returncode == code
    lines = ended.stderr.splitlines()
    assert (lines[-1] if lines else None) == last_line
    if code in (0, 2):
        assert len(lines) == (code == 2)  # one line, no traceback


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_gracefully(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "forever"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    assert process.stdout.read() == "closed\n"
    assert process.wait(10) == 0
    process.stdout.close()


def stopping(*arguments: str) -> subprocess.Popen[str]:
    """A program that was asked to stop, and is about it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "closed\n"
    assert process.stdout.readline() == "closing\n"
    return process


@pytest.mark.parametrize("kind", ["busy", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals, kind: str) -> None:
    with stopping(kind, "60") as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "asked again to stop: ending at once; nothing acknowledged is lost\n"


@pytest.mark.parametrize("kind", ["busy", "deaf", "stuck"])
def test_stopping_is_bounded(kind: str) -> None:
    with stopping(kind, "60", "0.3") as process:
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.startswith("not stopped within 0 s: ending at once")


def test_what_stops_in_time_is_left_to_it() -> None:
    with stopping("busy", "0.5", "15") as process:
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")


def test_an_unknown_crash_point_is_refused() -> None:
    ended = run("done", GTX_CRASH_AT="storage.sometimes")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: GTX_CRASH_AT=storage.sometimes: no such crash point")
    assert run("done", GTX_CRASH_AT="node.ready:0").returncode == 2
    arm_crash_points()  # nothing is armed in this process


def test_command_line_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group()
    def cli() -> None:
        """Commands."""

    @cli.command()
    @click.option("--number", type=int)
    def go(number: int | None) -> int:
        if number == 7:
            raise LocalFault("seven is taken")
        return 3 if number == 3 else 0

    for arguments, code, words in [
        (["go"], 0, ""),
        (["go", "--number", "3"], 3, ""),
        (["go", "--number", "7"], 2, "error: seven is taken\n"),
        (["go", "--number", "x"], 2, "error: Invalid value for '--number': 'x' is not a valid"),
        (["gone"], 2, "error: No such command 'gone'"),
        (["go", "--bad"], 2, "error: No such option '--bad'"),
        (["--help"], 0, ""),
    ]:
        assert run_command(cli, arguments) == code
        errors = capsys.readouterr().err
        assert errors.count("\n") == (1 if words else 0), errors
        assert errors.startswith(words)


def test_logs_as_text_and_as_json() -> None:
    text, jsons = io.StringIO(), io.StringIO()
    make_logger("text", "info", text, role="consortium-0").warning(
        "link down", peer=b"\x01\x02", why="two words", n=3
    )
    line = text.getvalue()
    assert line.endswith("warning link down  role=consortium-0 peer=0102 why='two words' n=3\n")
    logger = make_logger("json", "warning", jsons, role="x")
    logger.info("not written")
    logger.error("written", detail={"a"}, long="y" * 5000)
    record = json.loads(jsons.getvalue())
    assert (record["event"], record["level"], record["role"]) == ("written", "error", "x")
    assert len(record["long"]) < 2100


def test_numbers_have_bounded_series_and_prometheus_form() -> None:
    metrics = Metrics(role="r")
    metrics.describe("faults", "What went wrong.")
    for number in range(MAX_SERIES + 50):
        metrics.count("faults", reason=str(number))
    assert metrics.value("faults") == MAX_SERIES + 50
    assert metrics.by_label("faults", "reason")["other"] == 50
    small = Metrics(role="r")
    small.describe("faults", "What went wrong.")
    small.count("faults", 2, reason="a")
    small.gauge("height", lambda: 7)
    small.observe("lag", 0.2)
    text = small.render().decode()
    assert "# HELP gtx_faults_total What went wrong.\n" in text
    assert 'gtx_faults_total{reason="a",role="r"} 2.0' in text or (
        'gtx_faults_total{role="r",reason="a"} 2.0' in text
    )
    assert 'gtx_height{role="r"} 7.0' in text
    assert 'gtx_lag_seconds_bucket{le="0.25",role="r"} 1.0' in text or (
        'gtx_lag_seconds_bucket{role="r",le="0.25"} 1.0' in text
    )


async def test_health_readiness_and_numbers_over_http() -> None:
    metrics, state = Metrics(role="r"), {"reasons": ["nothing final", "no links"]}
    metrics.count("things")
    application = new_application()
    add_health(
        application, metrics, lambda: Readiness.unless(state["reasons"]), lambda: {"height": 5}
    )
    server = HttpServer(application, HostPort("127.0.0.1", 0))
    await server.start()
    taken = HttpServer(new_application(), HostPort("127.0.0.1", server.port))
    with pytest.raises(LocalFault, match="cannot listen on 127"):
        await taken.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        async with session.get("/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok", "height": 5})
        async with session.get("/ready") as response:
            found = {"ready": False, "reasons": ["nothing final", "no links"], "height": 5}
            assert (response.status, await response.json()) == (503, found)
        state["reasons"].clear()
        async with session.get("/ready") as response:
            found = {"ready": True, "reasons": [], "height": 5}
            assert (response.status, await response.json()) == (200, found)
        async with session.get("/metrics") as response:
            assert 'gtx_things_total{role="r"} 1.0' in await response.text()
    await server.close()


async def test_what_is_no_http_is_counted_and_not_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = Metrics()
    server = HttpServer(new_application(), HostPort("127.0.0.1", 0), metrics)
    await server.start()
    for noise in (
        b"\x16\x03\x01\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(noise)
        assert b" 400 " in await reader.read()
        writer.close()
        await writer.wait_closed()
    await server.close()
    counted = metrics.by_label("http_malformed", "reason")
    assert sum(counted.values()) == 2, counted
    assert counted["LineTooLong"] == 1
    assert capsys.readouterr().err == ""


def test_the_path_of_a_node_imports_nothing_heavy() -> None:
    """A validator's memory is mostly imports: numpy, pandas, aiohttp and rich are not for it."""
    code = (
        "import sys, gridtokenx.host.chain_node, gridtokenx.host.process, gridtokenx.host.config;"
        "print([m for m in ('numpy', 'pandas', 'aiohttp', 'rich', 'prometheus_client', 'structlog',"
        " 'aiomqtt', 'yaml', 'pvlib') if m in sys.modules])"
    )
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "[]\n"
    assert time.monotonic() - began < 30


def test_a_store_in_use_is_told_in_one_line_with_code_two(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from gridtokenx.host.process import serve\nfrom gridtokenx.host.storage import Store\n"
        "async def work(): Store.open(Path(sys.argv[1]))\n"
        "sys.exit(serve(work))"
    )
    from gridtokenx.host.storage import Store

    store = Store.open(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    store.close()
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path}: in use by another process")
    assert ended.stderr.count("\n") == 1
