"""The commands of the researcher's guide do what it says, with fewer seeds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/researcher-guide.md").read_text(encoding="utf-8")
EXAMPLE = GUIDE[GUIDE.index("## A worked example") : GUIDE.index("## A manifest")]
COMMANDS = [
    line.split("  #")[0].strip().replace("0..19", "0..1")
    for block in re.findall(r"```sh\n(.*?)```", EXAMPLE, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith(("./scripts/", "export "))
]


@pytest.mark.slow
def test_the_worked_example_works(tmp_path: Path) -> None:
    (tmp_path / "compose").symlink_to(ROOT / "compose")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(COMMANDS)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(COMMANDS) == 6
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"figure.svg", "report.html", "all.json", "runs.jsonl", "hasty.toml", "results"}
    assert "p50" in done.stdout
