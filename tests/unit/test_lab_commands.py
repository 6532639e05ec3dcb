"""Commands load what they run: a container of one role does not pay for the others."""

import subprocess
import sys

import pytest

LOADED = """
import sys
from gridtokenx.lab.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(*(each for each in ("aiohttp", "gridtokenx.public.machine", "gridtokenx.oracle.chain.ledger")
            if each in sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("node", "--help"), set()),
        (("node", "public", "--help"), {"gridtokenx.public.machine"}),
        (("node", "oracle", "--help"), {"aiohttp", "gridtokenx.oracle.chain.ledger"}),
    ],
)
def test_a_command_loads_its_own_role_only(words: tuple[str, ...], expected: set[str]) -> None:
    ran = [sys.executable, "-c", LOADED, *words]
    said = subprocess.run(ran, capture_output=True, text=True, timeout=60, check=True).stdout
    assert set(said.splitlines()[-1].split()) == expected
