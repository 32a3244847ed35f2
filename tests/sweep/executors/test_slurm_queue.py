"""States of jobs in Slurm's queue."""

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


def test_job_missing_twice_is_lost(clock):
    queue = SlurmQueue(lambda: {"5_1"})
    clock.now += 11
    assert queue.lost(["5_0", "5_1"]) == set()
    clock.now += 11
    assert queue.lost(["5_0", "5_1"]) == {"5_0"}


def test_controller_is_queried_rarely(clock):
    queries = []
    queue = SlurmQueue(lambda: queries.append(1) or set())
    for _ in range(30):
        clock.now += 1
        queue.lost(["5_0"])
    assert len(queries) == 2 or len(queries) == 3


def test_job_that_reappears_is_not_lost(clock):
    answers = iter([set(), {"5_0"}, set(), {"5_0"}])
    queue = SlurmQueue(lambda: next(answers))
    for _ in range(4):
        clock.now += 11
        assert queue.lost(["5_0"]) == set()


def test_missing_answer_is_ignored(clock):
    answers = iter([set(), None, set(), set()])
    queue = SlurmQueue(lambda: next(answers))
    lost = []
    for _ in range(4):
        clock.now += 11
        lost.append(queue.lost(["5_0"]))
    assert lost[:2] == [set(), set()]
    assert lost[-1] == {"5_0"}


def test_machine_without_slurm_gives_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurmqueue._queued() is None
    slurmqueue.stop_softly(["5_0"])  # raises no error


def test_waiting_jobs_are_canceled_and_running_jobs_interrupted(monkeypatch):
    calls = []
    monkeypatch.setattr(slurmqueue, "_call", calls.append)
    slurmqueue.stop_softly(["5_0", "5_1"])
    assert calls == [
        ["scancel", "--state=PENDING", "5_0", "5_1"],
        ["scancel", "--state=RUNNING", "--signal=INT", "5_0", "5_1"],
    ]
    slurmqueue.stop_softly([])
    assert len(calls) == 2
