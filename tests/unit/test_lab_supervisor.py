"""What the supervisor shows and survives: full disks, stale answers, small terminals, linked homes."""

import errno
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gridtokenx.lab.cli import main
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.testnet import up as running
from gridtokenx.lab.testnet.heartbeat import write_beat
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.lab.testnet.processes import Processes, ProcessSpec
from gridtokenx.lab.testnet.status import Seen, one_line, screen

ROOT = Path(__file__).parents[2]
STATUS: dict[str, Any] = {
    "grid_time": "2026-04-22 09:00",
    "chains": {
        name: {"height": 9, "finalized": 8, "interval_p50_ms": 1_000, "leader": "x"}
        for name in ("public", "consortium", "oracle")
    },
    "readings": {"verified": 7, "rejected": 0},
    "market": {"price_uwatt_per_kwh": None, "auctions_cleared": 3, "last_auction": None},
    "settlements": {"intervals": 2, "trades": 5},
    "certificates": {"minted_wh": 1_000, "retired_wh": 0},
    "packets": {"oracle-consortium": {"sent": 1, "delivered": 1, "timed_out": 0}},
}


def processes() -> Processes:
    specs = [ProcessSpec(f"node-{i}", (), Path("log")) for i in range(19)]
    return Processes(specs, {}, lambda _line: None)


def shown(seen: Seen, width: int, height: int, notes: deque[str] | None = None) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(screen(seen, processes(), 61.0, "http://x", notes or deque(), height))
    return capture.get().splitlines()


# -- a full disk -----------------------------------------------------------------------------------


def test_a_full_disk_under_the_home_is_one_line_and_the_network_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path, Manifest())
    write_beat(layout.heartbeat_path, 5_000)
    supervisor = running._Supervisor(layout, fresh=True, open_page=False)
    said: list[str] = []
    monkeypatch.setattr(supervisor, "_report", said.append)

    def full(_path: Path, _ms: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gridtokenx.lab.testnet.heartbeat.write_beat", full)
    for _ in range(5):
        supervisor._beat()
    assert len(said) == 1
    assert "heartbeat: cannot be written: No space left on device; free the disk" in said[0]
    monkeypatch.undo()
    monkeypatch.setattr(supervisor, "_report", said.append)
    supervisor._beat()
    assert said[1:] == [f"{layout.heartbeat_path}: is written again"]


def test_a_process_id_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    spec = ProcessSpec("node", (), tmp_path / "absent" / "log")
    watched = Processes([spec], {}, said.append)
    watched._note({"event": "started", "name": "node", "pid": 4_000_000})
    assert watched.watched["node"].pid == 4_000_000
    assert "pid: cannot be written" in said[0]


# -- what is shown ---------------------------------------------------------------------------------


def test_a_stale_status_is_marked_everywhere() -> None:
    fresh, stale = Seen(STATUS, 1.0), Seen(STATUS, 12.0)
    assert "ago" not in one_line(fresh, processes(), 61.0)
    assert "as of 12 s ago" in one_line(stale, processes(), 61.0)
    for height in (10, 50):
        assert not any("ago" in line for line in shown(fresh, 120, height))
        assert any("as of 12 s ago" in line for line in shown(stale, 200, height))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 5), (100, 3)])
def test_a_small_terminal_shows_what_matters(width: int, height: int) -> None:
    notes = deque(f"note {index}" for index in range(8))
    lines = shown(Seen(STATUS, 0.0), width, height, notes)
    assert any("processes" in line for line in lines)
    if height < 24:
        assert sum(line.startswith("note") for line in lines) <= max(0, height - 4)
    assert all(len(line.rstrip()) <= width for line in lines)


def test_before_the_gateway_answers_there_is_a_line_too() -> None:
    assert "gateway not ready" in one_line(Seen(None, 99.0), processes(), 1.0)
    assert any("waiting for the gateway" in line for line in shown(Seen(None, 99.0), 100, 40))


# -- homes and scripts -----------------------------------------------------------------------------


def gtx(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return int(ended.value.code or 0)


def test_a_home_that_is_a_link_is_made_anew_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def initialise(layout: Layout, *_: object) -> None:
        layout.home.joinpath("manifest.toml").write_text("")
        layout.home.joinpath("network.json").write_text("{}")

    monkeypatch.setattr("gridtokenx.lab.testnet.initialise.initialise", initialise)
    place, link = tmp_path / "disk" / "place", tmp_path / "link"
    place.mkdir(parents=True)
    link.symlink_to(place)
    assert gtx("testnet", "init", "--home", link) == 0
    (place / "old").touch()
    assert gtx("testnet", "init", "--home", link, "--fresh") == 0
    assert link.is_symlink()
    assert not (place / "old").exists()
    assert (place / "network.json").exists()


def at_home(repository: Path, named: str) -> bool:
    programs = repository / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "gtx").write_text(f"#!{named}/bin/python3\nimport sys\n")
    script = f". {ROOT}/scripts/bootstrap.sh; is_at_home"
    return subprocess.run(["bash", "-c", script], cwd=repository, check=False).returncode == 0


def test_a_moved_clone_is_noticed(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert at_home(here, str(here / ".venv"))
    assert not at_home(here, str(there / ".venv"))
    link = tmp_path / "link"
    link.symlink_to(here)
    assert at_home(here, str(link / ".venv")), "another name of the same place"


def test_a_pip_that_wraps_long_paths_is_understood(tmp_path: Path) -> None:
    """Where a path has a space, pip writes a shell script that calls Python."""
    here = tmp_path / "with space"
    here.mkdir()
    (here / ".venv" / "bin").mkdir(parents=True)
    program = here / ".venv" / "bin" / "gtx"
    for where, expected in ((here, 0), (tmp_path / "elsewhere", 1)):
        program.write_text(
            f"#!/bin/sh\n'''exec' \"{where}/.venv/bin/python3\" \"$0\" \"$@\"\n' '''\n"
        )
        script = f". {ROOT}/scripts/bootstrap.sh; is_at_home"
        ended = subprocess.run(["bash", "-c", script], cwd=here, check=False)
        assert ended.returncode == expected


def test_scripts_run_gtx_where_one_stands(tmp_path: Path) -> None:
    clone, stand = tmp_path / "a clone", tmp_path / "stand"
    (clone / ".venv" / "bin").mkdir(parents=True)
    stand.mkdir()
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    for name in ("requirements.lock", "pyproject.toml"):
        (clone / name).write_text(name)
    program = clone / ".venv" / "bin" / "gtx"
    program.write_text('#!/bin/sh\necho "$PWD: $*"\n')
    program.chmod(0o755)
    stamp = (
        'echo "requirements.lock: $(cat requirements.lock pyproject.toml | cksum)" >.venv/.prepared'
    )
    subprocess.run(["bash", "-c", stamp], cwd=clone, check=True)
    for script, said in (("gtx", "sim run 'x y'"), ("up", "testnet up 'x y'")):
        arguments = ["sim", "run", "x y"] if script == "gtx" else ["x y"]
        command = [clone / "scripts" / script, *arguments]
        done = subprocess.run(command, cwd=stand, capture_output=True, text=True, check=True)
        assert done.stdout == f"{stand}: {said}\n".replace("'", "")
