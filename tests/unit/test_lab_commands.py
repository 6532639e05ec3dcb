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


def test_a_container_without_a_place_for_files_begins() -> None:
    """Its first program loads, and helps, where nothing can be written, temporary files neither."""
    told = (
        "import sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere'];"
        "from gridtokenx.lab.deploy import entry; sys.argv[1:] = ['--help']; entry.main()"
    )
    asked = [sys.executable, "-c", told]
    ran = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert "Usage: gtx" in ran.stdout, ran.stderr


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
