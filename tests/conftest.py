"""Stages: what a plain `scripts/test` leaves out, and how to turn it on."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.stages import examples

STAGES = set(filter(None, os.environ.get("GTX_STAGES", "").split(",")))
STAGED = {"slow": "a long sweep", "docker": "it needs a container engine"}
"""Marks of tests that only run in a stage of the same name, or in `full`, with the reason."""

# No test is about time. CI draws the same examples each time, so that what lands is what was
# tested; every other run explores.
settings.register_profile(
    "project",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("project")


def pytest_configure() -> None:
    """Refuse a stage that there is not: its tests would be left out in silence."""
    if unknown := STAGES - {"full", *STAGED}:
        raise pytest.UsageError(f"GTX_STAGES: no stage {unknown}; there are full, slow, docker")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests, skip what belongs to a stage that is off, and say how it is turned on."""
    begin_with_waits(items, getattr(config, "workerinput", {}).get("workercount", 1))
    if "full" in STAGES:
        return
    for stage in STAGED.keys() - STAGES:
        reason = f"{stage}: {STAGED[stage]}; set GTX_STAGES={stage} (or full) to run it"
        for item in items:
            if item.get_closest_marker(stage) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def begin_with_waits(items: list[pytest.Item], workers: int) -> None:
    """Let tests that mostly wait begin where test processes begin, beside all that computes.

    Each process is given a share of the list to begin with, and others take from its end what is left.
    Whole networks last long, do little, and wait for each other's places (`whole_network`); real
    processes wait for time. At the end of a run they would keep the machine idle for minutes. What a
    module makes once for several tests also comes first, where nobody takes half of them away.
    """
    networks = [item for item in items if "whole_network" in getattr(item, "fixturenames", ())]
    real = [item for item in items if item.get_closest_marker("e2e") and item not in networks]
    files = list(dict.fromkeys(item.path for item in real))
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, item in enumerate(networks):
        heads[number % 2 % workers].append(item)
    for item in real:
        heads[(1 + files.index(item.path) % 2) % workers].append(item)
    waiting = {*networks, *real}
    sharing = [item for item in items if item not in waiting and shares_what_is_made(item)]
    heads[-1] += sharing
    first = {*waiting, *sharing}
    others = iter([item for item in items if item not in first])
    left, arranged = len(items), list[pytest.Item]()
    for number, head in enumerate(heads):
        share = left // (workers - number)
        arranged += [*head, *itertools.islice(others, max(0, share - len(head)))]
        left = len(items) - len(arranged)
    items[:] = [*arranged, *others]


def shares_what_is_made(item: pytest.Item) -> bool:
    """Whether a test uses what is made once for its module."""
    info = getattr(item, "_fixtureinfo", None)
    found = info.name2fixturedefs.values() if info is not None else ()
    return any(definitions[-1].scope == "module" for definitions in found)
