"""What is learned from Slurm's queue."""

from __future__ import annotations

import pytest

from normbench.sweep.executors import slurm as slurmqueue
from normbench.sweep.executors.slurm import SlurmQueue


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(slurmqueue, "time", clock)
    return clock


def test_a_job_is_lost_that_is_missing_twice(clock):
    queue = SlurmQueue(lambda: {"5_1"})
    clock.now += 11
    assert queue.lost(["5_0", "5_1"]) == set()
    clock.now += 11
    assert queue.lost(["5_0", "5_1"]) == {"5_0"}


def test_the_controller_is_asked_seldom(clock):
    asked = []
    queue = SlurmQueue(lambda: asked.append(1) or set())
    for _ in range(30):
        clock.now += 1
        queue.lost(["5_0"])
    assert len(asked) == 2 or len(asked) == 3


def test_a_job_that_comes_back_is_not_lost(clock):
    answers = iter([set(), {"5_0"}, set(), {"5_0"}])
    queue = SlurmQueue(lambda: next(answers))
    for _ in range(4):
        clock.now += 11
        assert queue.lost(["5_0"]) == set()


def test_no_answer_says_nothing(clock):
    answers = iter([set(), None, set(), set()])
    queue = SlurmQueue(lambda: next(answers))
    observer = []
    for _ in range(4):
        clock.now += 11
        observer.append(queue.lost(["5_0"]))
    assert observer[:2] == [set(), set()]
    assert observer[-1] == {"5_0"}


def test_a_machine_without_slurm_has_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurmqueue._queued() is None
    slurmqueue.stop_softly(["5_0"])  # and no error


def test_waiting_jobs_are_taken_back_and_running_ones_interrupted(monkeypatch):
    calls = []
    monkeypatch.setattr(slurmqueue, "_call", calls.append)
    slurmqueue.stop_softly(["5_0", "5_1"])
    assert calls == [
        ["scancel", "--state=PENDING", "5_0", "5_1"],
        ["scancel", "--state=RUNNING", "--signal=INT", "5_0", "5_1"],
    ]
    slurmqueue.stop_softly([])
    assert len(calls) == 2
