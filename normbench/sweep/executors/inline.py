"""The executor that trains a sweep's cells one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence

from normbench.config import Config
from normbench.engine.reuse import WarmState
from normbench.sweep.cell import CellResult, ProgressObserver, train_cell
from normbench.sweep.executors.base import Executor, Job, Stop, SweepContext, SweepObserver
from normbench.sweep.preflight import refusal


class Inline(Executor):
    """No worker, no pipe: a debugger sees everything, and an abort of a run ends the sweep."""

    def __init__(self) -> None:
        self._warm = WarmState()
        self._built: dict[str, str] = {}

    def check(self, configs: Sequence[Config]) -> list[str]:
        return [refusal(config, self._warm, self._built) for config in configs]

    def place(self, count: int) -> list[str]:
        return ["this process"]

    def run(
        self, jobs: Sequence[Job], task: SweepContext, watch: SweepObserver, stop: Stop
    ) -> None:
        for job in jobs:
            if stop.requests:
                return
            watch.started(job, "this process")
            watch.ended(job, self._train(job, task, watch, stop))

    def _train(self, job: Job, task: SweepContext, watch: SweepObserver, stop: Stop) -> CellResult:
        stop.raises = True
        try:
            return train_cell(
                job.config,
                task.store,
                observer=ProgressObserver(lambda facts: watch.progress(job, facts)),
                command=task.command,
                warm=self._warm,
                replace_damaged=job.replace_damaged,
            )
        except KeyboardInterrupt:
            return CellResult("interrupted")
        finally:
            stop.raises = False

    def close(self) -> None:
        self._warm.drop_all()
