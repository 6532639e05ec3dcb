"""`scripts/bench pbft` with real replicas: not how fast they are, but that what it tells adds up."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

OFFERED = 1_500


def test_a_short_load_is_told_with_its_stages() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gridtokenx.lab.bench", "pbft", "--part", "n4", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    told = done.stdout
    assert done.returncode == 0, told + done.stderr
    rate = float(found(r"committed of 1500 signed tx/s offered +([\d.]+) /s", told))
    assert 0 < rate <= 1_500
    stages = {
        name: float(s)
        for name, s in re.findall(r"^    ([a-z ]+?) +([\d.]+) +[\d.]+", told, re.MULTILINE)
    }
    whole = stages.pop("all")
    assert {"signatures", "ingress", "execution", "state tree", "consensus"} <= stages.keys()
    assert abs(sum(stages.values()) - whole) < 0.05 * whole
    per_transaction_us = float(found(r"^    signatures .* ([\d]+)$", told))
    committed = stages["signatures"] / 4 / per_transaction_us * 1e6
    assert 0 < committed < 1.1 * OFFERED


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match[1]
