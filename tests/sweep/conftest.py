"""Grids of small runs on the fake engine (:mod:`tests.sweep.fakeengine`)."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from normbench.store.store import Store
from normbench.sweep.cell import CellResult
from normbench.sweep.executors import pool
from normbench.sweep.executors.base import Executor, Stop, SweepContext
from normbench.sweep.grid import expand
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell
from tests.waiting import wait_until

FAKE = Path(__file__).with_name("fakeengine.py")


@pytest.fixture
def run_killed(tmp_store):
    """Run a command that is killed midway, and wait until its workers have ended."""

    def run(command, environment):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        # Workers end on their own.
        wait_until(lambda: not any(run.status == "running" for run in Store(tmp_store).runs()))

    return run


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
                *([] if any(text.startswith("norm=") for text in overrides) else ["norm=bn"]),
                "batch=16",
                "epochs=3",
                f"store={tmp_store}",
                *overrides,
            ]
        )

    return make


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Have workers run the fake engine; return a function that injects a fault into a run."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setattr(pool, "WORKER", [str(FAKE)])
    monkeypatch.setenv("FAKE_FAULTS", str(folder))

    def fault(name: str, kind: str, count: int = 1) -> None:
        (folder / name).write_text(f"{kind} {count}")

    fault.folder = folder
    return fault


class RecordingObserver(SweepObserver):
    """Records every report of an executor."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, str]] = []
        self.results: dict[str, CellResult] = {}
        self.ends: list[str] = []
        self.retries: list[str] = []
        self.notes: list[str] = []
        self.facts: list[dict] = []
        self.most_at_once = 0
        self._running: set[str] = set()

    def started(self, cell, where):
        self.starts.append((cell.name, where))
        self._running.add(cell.name)
        self.most_at_once = max(self.most_at_once, len(self._running))

    def progress(self, cell, facts):
        self.facts.append(dict(facts))

    def ended(self, cell, result):
        self.ends.append(cell.name)
        self.results[cell.name] = result
        self._running.discard(cell.name)

    def retrying(self, cell, reason):
        self.retries.append(reason)
        self._running.discard(cell.name)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def run_on(tmp_store, tmp_path):
    """Have an executor train configs, and return the observer."""

    def run(executor: Executor, configs, observer=None, stop: Stop | None = None):
        from normbench.store.store import Store

        observer = RecordingObserver() if observer is None else observer
        cells = [PlannedCell(config, config.run_name) for config in configs]
        with executor:
            executor.allocate(len(cells))
            context = SweepContext(Store(tmp_store), ["normbench", "sweep"], tmp_path)
            executor.run(cells, context, observer, stop or Stop())
        return observer

    return run
