"""The executor that trains a sweep's cells one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence

from normbench.config import Config
from normbench.engine.reuse import Kept
from normbench.sweep.cell import Ending, Telling, train_cell
from normbench.sweep.executors.base import Executor, Job, Stop, Task, Watch
from normbench.sweep.preflight import refusal


class Inline(Executor):
    """No worker, no pipe: a debugger sees everything, and an abort of a run ends the sweep."""

    def __init__(self) -> None:
        self._kept = Kept()
        self._built: dict[str, str] = {}

    def check(self, configs: Sequence[Config]) -> list[str]:
        return [refusal(config, self._kept, self._built) for config in configs]

    def place(self, count: int) -> list[str]:
        return ["this process"]

    def run(self, jobs: Sequence[Job], task: Task, watch: Watch, stop: Stop) -> None:
        for job in jobs:
            if stop.requests:
                return
            watch.started(job, "this process")
            watch.ended(job, self._train(job, task, watch, stop))

    def _train(self, job: Job, task: Task, watch: Watch, stop: Stop) -> Ending:
        stop.raises = True
        try:
            return train_cell(
                job.config,
                task.store,
                observer=Telling(lambda facts: watch.progress(job, facts)),
                command=task.command,
                kept=self._kept,
                mend=job.mend,
            )
        except KeyboardInterrupt:
            return Ending("interrupted")
        finally:
            stop.raises = False

    def close(self) -> None:
        self._kept.forget()
