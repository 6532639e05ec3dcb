"""Stages: what a plain `scripts/test` leaves out, and how to turn it on."""

import os

import pytest
from hypothesis import HealthCheck, settings

FULL = "full" in os.environ.get("GTX_STAGES", "").split(",")

# No test is about time. CI draws the same examples each time, so that what lands is what was
# tested; every other run explores.
settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip long sweeps, and say how they are turned on."""
    if FULL:
        return
    skipped = pytest.mark.skip(reason="slow: set GTX_STAGES=full to run it")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skipped)
