"""Grids of runs that take a moment, on the fake engine (:mod:`tests.sweep.fakeengine`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench.sweep.cell import CellResult
from normbench.sweep.executors import pool as workerprocess
from normbench.sweep.executors.base import Executor, Job, Stop, SweepContext, SweepObserver
from normbench.sweep.grid import expand

FAKE = Path(__file__).with_name("fakeengine.py")


@pytest.fixture
def grid(tmp_store):
    """Expand overrides of small runs into configs."""

    def make(*overrides: str):
        return expand(
            [
                "dataset=digits",
                "dataset.train_size=160",
                "arch=resnet8",
                "arch.width=4",
                *([] if any(each.startswith("norm=") for each in overrides) else ["norm=bn"]),
                "batch=16",
                "epochs=3",
                f"store={tmp_store}",
                *overrides,
            ]
        )

    return make


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Have workers run the fake engine, and return what sets a fault of a run."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setattr(workerprocess, "WORKER", [str(FAKE)])
    monkeypatch.setenv("FAKE_FAULTS", str(folder))

    def fault(name: str, kind: str, count: int = 1) -> None:
        (folder / name).write_text(f"{kind} {count}")

    fault.folder = folder
    return fault


class Seen(SweepObserver):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.endings: dict[str, CellResult] = {}
        self.ends: list[str] = []
        self.agains: list[str] = []
        self.notes: list[str] = []
        self.facts: list[dict] = []
        self.most = 0
        self._now: set[str] = set()

    def started(self, job, where):
        self.begun.append((job.name, where))
        self._now.add(job.name)
        self.most = max(self.most, len(self._now))

    def progress(self, job, facts):
        self.facts.append(dict(facts))

    def ended(self, job, ending):
        self.ends.append(job.name)
        self.endings[job.name] = ending
        self._now.discard(job.name)

    def again(self, job, reason):
        self.agains.append(reason)
        self._now.discard(job.name)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def carry_out(tmp_store, tmp_path):
    """Have an executor run configs, and return what it told."""

    def run(executor: Executor, configs, watch: Seen | None = None, stop: Stop | None = None):
        from normbench.store.store import Store

        watch = Seen() if watch is None else watch
        jobs = [Job(config, config.run_name) for config in configs]
        with executor:
            executor.place(len(jobs))
            task = SweepContext(Store(tmp_store), ["normbench", "sweep"], tmp_path)
            executor.run(jobs, task, watch, stop or Stop())
        return watch

    return run
