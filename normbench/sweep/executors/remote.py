"""Base class of executors that submit cells to a cluster, and the functions that run there."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from normbench.config import Config
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError
from normbench.sweep.cell import CellResult, train_cell
from normbench.sweep.executors.base import Executor, Stop, SweepContext
from normbench.sweep.executors.pool import mark_failed
from normbench.sweep.observer import SweepObserver, stored_progress
from normbench.sweep.plan import PlannedCell
from normbench.sweep.preflight import refusal

#: Seconds between two checks of the store.
LOOK = 1.0


class Remote(Executor):
    """Submits all cells at once as jobs, and waits until each has ended.

    The progress of a job is read from the store, a folder shared by all machines, and so is the
    result of a job whose machine can no longer report it.
    """

    @abstractmethod
    def submit(self, cells: Sequence[PlannedCell], context: SweepContext) -> list[Any]:
        """Submit a job for each cell and return a handle for each job."""

    @abstractmethod
    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Return those of ``handles`` whose jobs have ended, after at most ``seconds``."""

    @abstractmethod
    def result(self, handle: Any) -> CellResult:
        """Return the result of a job that :meth:`wait` returned.

        The result of a job that did not end by itself is ``failed`` with the cause ``died``, or
        ``interrupted`` if the job was withdrawn.
        """

    @abstractmethod
    def withdraw(self, handles: Sequence[Any], at_once: bool) -> None:
        """Cancel jobs. Running ones write a checkpoint first unless ``at_once`` is true."""

    def run(
        self,
        cells: Sequence[PlannedCell],
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
    ) -> None:
        waiting_cells = dict(zip(self.submit(cells, context), cells, strict=True)) if cells else {}
        start_times: dict[str, float] = {}  # when each running cell was first seen, by name
        stops_passed_on, last_look = 0, 0.0
        while waiting_cells:
            for handle in self.wait(list(waiting_cells), LOOK / 4):
                self._end(waiting_cells.pop(handle), handle, start_times, context, observer, stop)
            if time.monotonic() - last_look > LOOK:
                last_look = time.monotonic()
                for cell in waiting_cells.values():
                    _look(cell, start_times, context, observer)
            if stop.requests > stops_passed_on:
                stops_passed_on = stop.requests
                self.withdraw(list(waiting_cells), at_once=stop.requests > 1)
            observer.idle()

    def _end(
        self,
        cell: PlannedCell,
        handle: Any,
        start_times: dict[str, float],
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
    ) -> None:
        """Report the end of a cell whose job has ended."""
        result = self.result(handle)
        start = start_times.pop(cell.name, None)
        run = context.store.run(cell.name)
        try:
            status = run.status
        except NormbenchError:
            status = "unreadable"
        if result.result == "interrupted" and start is None and status == "missing":
            return  # withdrawn before it was started
        if start is None:
            observer.started(cell, "")
        if result.cause == "died":
            if status in ("finished", "diverged"):  # it died after writing the last file
                result = CellResult("diverged" if status == "diverged" else "trained")
            elif stop.requests:
                result = CellResult("interrupted")
            else:
                mark_failed(run, result.error, context.command)
        if not result.seconds and start is not None:
            result = replace(result, seconds=time.monotonic() - start)
        observer.ended(cell, result)


def _look(
    cell: PlannedCell, start_times: dict[str, float], context: SweepContext, observer: SweepObserver
) -> None:
    """Report the progress of a submitted cell, as read from the store."""
    run = context.store.run(cell.name)
    try:
        if run.status != "running":
            return
        host, facts = (run.meta or {}).get("host"), stored_progress(run, cell.config.epochs)
    except NormbenchError:  # reported when the job has ended
        return
    if cell.name not in start_times:
        start_times[cell.name] = time.monotonic()
        observer.started(cell, str(host))
    observer.progress(cell, facts)


# State of the process on the remote machine. Ray may use a worker process for several cells.
_warm = WarmState()
_built: dict[str, str] = {}


def remote_cell(order: Mapping[str, Any]) -> dict[str, Any]:
    """Train a cell on the machine where this function runs; see :func:`.cell.train_cell`.

    Returns:
        The result, as from :meth:`.CellResult.to_dict`.
    """
    return train_cell(order, Observer(), _warm).to_dict()


def remote_refusals(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for each config, the reason why it cannot be trained, or an empty string."""
    return [refusal(Config.from_dict(tree), _warm, _built) for tree in trees]
