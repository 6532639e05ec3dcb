"""Network time: an offset from the settings, from a file, or both."""

from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.clock import NetworkClock, read_clock_file, wall_ms
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import ProcessSettings


def test_never_runs_backwards():
    wall = iter([1_000, 900, 1_100])
    clock = NetworkClock(-100, lambda: next(wall))
    assert [clock.now_ms() for _ in range(3)] == [900, 900, 1_000]


def test_a_clock_file_adds_to_the_setting(tmp_path: Path):
    path = tmp_path / "offset"
    path.write_text("-3600000", encoding="ascii")
    role = open_role(ProcessSettings(clock_offset_ms=600_000, clock_file=path), "test")
    assert abs(role.clock.now_ms() - (wall_ms() - 3_000_000)) < 60_000


@pytest.mark.parametrize("content", [None, "", "soon", "1.5"])
def test_an_unusable_clock_file_is_named(tmp_path: Path, content: str | None):
    path = tmp_path / "offset"
    if content is not None:
        path.write_text(content, encoding="ascii")
    with pytest.raises(LocalFault, match=f"clock_file {path}: holds no offset"):
        read_clock_file(path)
