"""The live page in a real browser: it shows what the gateway verified, and nothing is missing."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from tests.e2e.test_gateway_process import Home, home  # noqa: F401 - a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None, reason="browser: chromium is not installed (Debian: apt install chromium)"
    ),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip


async def rendered(url: str, profile: Path) -> str:
    """The page's document after its scripts have run."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(60):
        document, _ = await browser.communicate()
    return document.decode()


async def test_a_browser_shows_the_three_chains(
    tmp_path: Path,
    home: Home,  # noqa: F811 - pytest's way to ask for the fixture
) -> None:
    async with home.running():
        status = await home.heights(3)
        document = await rendered(f"http://127.0.0.1:{home.port}/", tmp_path / "profile")
    text = re.sub(r"<(script|style)[^>]*>.*?</\1>", " ", document, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", text)
    for name, chain in status["chains"].items():
        assert name in text
        assert str(chain["finalized"]) in text
    assert "connection lost" not in text.lower()
    assert not re.search(r"\b(undefined|NaN|null)\b", text)
