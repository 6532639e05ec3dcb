"""Stages: what a plain `scripts/test` leaves out, and how to turn it on."""

import os

import pytest

FULL = "full" in os.environ.get("GTX_STAGES", "").split(",")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip long sweeps, and say how they are turned on."""
    if FULL:
        return
    skipped = pytest.mark.skip(reason="slow: set GTX_STAGES=full to run it")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skipped)
