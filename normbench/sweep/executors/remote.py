"""What executors share that hand runs to somebody else's queue: what runs is seen in the store."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError
from normbench.store.store import Store
from normbench.sweep.cell import CellResult, train_cell
from normbench.sweep.executors.base import Executor, Job, Stop, SweepContext, SweepObserver
from normbench.sweep.executors.pool import mark_failed
from normbench.sweep.preflight import refusal

#: Seconds between two looks at the store.
LOOK = 1.0


class Remote(Executor):
    """Hands all jobs over at once, and asks for each until it has ended.

    Which of them run, where and how far they are is read from the store, which all machines must
    share; so is what became of a job whose machine cannot tell any more.
    """

    @abstractmethod
    def submit(self, jobs: Sequence[Job], task: SweepContext) -> list[Any]:
        """Hand jobs over; return a handle of each."""

    @abstractmethod
    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Return those of ``handles`` that have ended, after ``seconds`` at the latest."""

    @abstractmethod
    def result(self, handle: Any) -> CellResult:
        """Say how the job of a handle ended that :meth:`wait` returned.

        A job that did not end by itself is "failed" with the cause "died", or "interrupted" where
        it was withdrawn.
        """

    @abstractmethod
    def withdraw(self, handles: Sequence[Any], at_once: bool) -> None:
        """Take jobs back: those that run are to write a checkpoint, or to end ``at_once``."""

    def run(
        self, jobs: Sequence[Job], task: SweepContext, watch: SweepObserver, stop: Stop
    ) -> None:
        waiting = dict(zip(self.submit(jobs, task), jobs, strict=True)) if jobs else {}
        running: dict[str, float] = {}
        heeded, looked = 0, 0.0
        while waiting:
            for handle in self.wait(list(waiting), LOOK / 4):
                job = waiting.pop(handle)
                self._end(job, self.result(handle), running, task, watch, stop)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                for job in waiting.values():
                    _look(job, running, task, watch)
            if stop.requests > heeded:
                heeded = stop.requests
                self.withdraw(list(waiting), at_once=heeded > 1)
            watch.idle()

    def _end(
        self,
        job: Job,
        ending: CellResult,
        running: dict[str, float],
        task: SweepContext,
        watch: SweepObserver,
        stop: Stop,
    ) -> None:
        began = running.pop(job.name, None)
        run = task.store.run(job.name)
        try:
            status = run.status
        except NormbenchError:
            status = "unreadable"
        if ending.result == "interrupted" and began is None and status == "missing":
            return  # withdrawn before it was begun
        if began is None:
            watch.started(job, "")
        if ending.cause == "died":
            if status in ("finished", "diverged"):  # it died after the last file was written
                ending = CellResult("diverged" if status == "diverged" else "trained")
            elif stop.requests:
                ending = CellResult("interrupted")
            else:
                mark_failed(run, ending.error, task.command)
        seconds = 0.0 if began is None else time.monotonic() - began
        fields = {**ending.to_dict(), "seconds": ending.seconds or seconds}
        watch.ended(job, CellResult.from_dict(fields))


def _look(job: Job, running: dict[str, float], task: SweepContext, watch: SweepObserver) -> None:
    """Tell what the store shows of a job that was handed over."""
    run = task.store.run(job.name)
    try:
        if run.status != "running":
            return
        meta, last = run.meta or {}, run.last_metrics() or {}
    except NormbenchError:  # said when the job has ended
        return
    if job.name not in running:
        running[job.name] = time.monotonic()
        watch.started(job, str(meta.get("host")))
    watch.progress(
        job,
        {
            "epoch": last.get("epoch", 0),
            "epochs": job.config.epochs,
            "loss": last.get("train_loss"),
            "val_acc": last.get("val_acc"),
            "images_per_s": last.get("images_per_s"),
        },
    )


# --- the function that runs on the other machine --------------------------------------------------
# What a process keeps between two runs (:class:`WarmState`) lives here, so that a
# worker process that Ray uses again has it.

_warm = WarmState()
_built: dict[str, str] = {}


def remote_cell(
    tree: Mapping[str, Any], store: str, command: Sequence[str], replace_damaged: bool
) -> dict[str, Any]:
    """Train a run, or what is left of it; see :func:`normbench.sweep.cell.train_cell`.

    Args:
        tree: Of the config.
        store: The folder of runs, as this machine sees it.
        command: What the record names as the command.
        replace_damaged: Begin anew where the run's files are damaged.

    Returns:
        The ending, as :meth:`normbench.sweep.cell.CellResult.to_dict` gives it.
    """
    ending = train_cell(
        Config.from_dict(tree),
        Store(store),
        observer=Observer(),
        command=command,
        warm=_warm,
        replace_damaged=replace_damaged,
    )
    return ending.to_dict()


def remote_refusals(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each config why it cannot be trained; an empty text where it can."""
    return [refusal(Config.from_dict(tree), _warm, _built) for tree in trees]
