"""Stages count each nanosecond once, and nothing is wrapped unless somebody asks."""

import time

import pytest

from gridtokenx.core.state_tree import StateTree
from gridtokenx.host import stages as stages_module
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.stages import LOOP, STAGES, Stages, count_stages


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_stage_stands_still_while_another_runs_inside_it() -> None:
    stages = Stages()
    stages.enter("execution")
    burn(0.02)
    stages.enter("state tree")
    burn(0.03)
    stages.leave()
    stages.leave()
    assert stages.seconds("execution") == pytest.approx(0.02, abs=0.008)
    assert stages.seconds("state tree") == pytest.approx(0.03, abs=0.008)


def test_all_stages_of_the_loops_thread_add_up_to_its_time() -> None:
    stages = Stages()
    stages.enter("signatures")
    burn(0.01)
    stages.leave()
    told = sum(stages.seconds(name) for name in (*STAGES, "collector"))
    assert told == pytest.approx(time.thread_time(), abs=0.005)


def test_a_wrapped_method_does_what_it_did_and_is_counted() -> None:
    class Worker:
        def work(self, seconds: float) -> str:
            burn(seconds)
            return "done"

        @staticmethod
        def fail() -> None:
            raise ValueError("as before")

    stages = Stages()
    stages.wrap(Worker, "work", "disk")
    stages.wrap(Worker, "fail", "disk")
    assert Worker().work(0.02) == "done"
    with pytest.raises(ValueError, match="as before"):
        Worker().fail()
    assert stages.seconds("disk") == pytest.approx(0.02, abs=0.008)
    assert stages.seconds("execution") == 0


def test_every_method_that_is_counted_exists() -> None:
    for methods in STAGES.values():
        for owner, names in methods:
            assert all(name in owner.__dict__ for name in names), owner


def test_without_the_variable_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stages_module.VARIABLE, raising=False)
    before = StateTree.update
    metrics = Metrics()
    count_stages(metrics)
    assert StateTree.update is before
    assert b"stage_seconds" not in metrics.render()
    assert LOOP in STAGES
