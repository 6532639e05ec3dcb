"""The images, as `scripts/images` builds them: how large they are, and as whom they run."""

import pytest
from tests.e2e.docker import ROLES, docker, tag

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1_200)]

VALIDATOR_MB = 60
"""What a validator's image may add to its base."""
COMPILERS = ("gcc", "cc", "pip", "pip3")


def test_a_validator_adds_little_to_its_base(images: dict[str, int]) -> None:
    assert images["validator"] <= VALIDATOR_MB * 1_000_000, images
    assert images["validator"] < images["full"]


@pytest.mark.parametrize("role", ROLES)
def test_it_runs_as_nobody_and_says_what_it_can_do(images: dict[str, int], role: str) -> None:
    once = ("run", "--rm", "--network=none", "--read-only")
    assert "Usage: gtx" in docker(*once, tag(role), "--help")
    shell = (*once, "--entrypoint", "sh", tag(role), "-c")
    assert docker(*shell, "id -u") != "0"
    found = docker(*shell, "; ".join(f"command -v {name}" for name in COMPILERS) + "; true")
    assert found == "", "tools that only building needs"


def test_a_validator_has_no_scientific_stack(images: dict[str, int]) -> None:
    program = (
        "import importlib.util as u; print(*filter(u.find_spec, ('numpy', 'pandas', 'pvlib')))"
    )
    python = ("run", "--rm", "--network=none", "--entrypoint", "/opt/gridtokenx/bin/python")
    assert docker(*python, tag("validator"), "-c", program) == ""
    assert docker(*python, tag("full"), "-c", program) == "numpy pandas pvlib"
