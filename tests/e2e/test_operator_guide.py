"""The operator's guide, typed from top to bottom at a network of its own."""

import re
from pathlib import Path

import pytest
from tests.e2e.guide import Reader
from tests.e2e.testnet import free_base, whole_network

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1_500, func_only=True)]
__all__ = ["whole_network"]

GUIDE = Path(__file__).parents[2] / "docs" / "operator-guide.md"


@pytest.mark.usefixtures("whole_network")
def test_every_command_of_the_guide_works(tmp_path: Path) -> None:
    base = free_base()
    manifest = tmp_path / "local.toml"
    manifest.write_text(
        f"[ports]\ngateway = {base}\nbase = {base + 1}\n"
        "[public]\nslot_ms = 3000\nera_slots = 10\n"  # the guide waits for three elections
    )
    guide = GUIDE.read_text(encoding="utf-8")
    ports = sorted(set(re.findall(r"\b2[78]1\d\d\b", guide)))
    replacing = {port: str(base + 60 + index) for index, port in enumerate(ports)}
    replacing["18080"] = str(base)
    replacing["./scripts/up"] = f"gtx testnet up --manifest {manifest}"
    reader = Reader(tmp_path, replacing)
    try:
        reader.follow(guide)
    finally:
        reader.close()
