"""Several cells in one job of a cluster: :class:`PackedJob` trains them, :class:`PackedCell` waits.

The job runs the local executor on its share of cells, so that they use the cores or GPUs of the job
as they would use a machine of their own. When a cell has ended, its result is written to a file in
a folder that all machines share. A requeued job skips the cells that have such a file, and the
others continue from their checkpoints.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.store.files import dumps, read_json, write_text
from normbench.store.store import Store
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Stop, SweepContext
from normbench.sweep.executors.local import Local
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell


@dataclass(frozen=True)
class PackedJob:
    """A job that trains several cells; submitit submits it again if it is preempted.

    Attributes:
        folder: Folder for the results of the cells and the output of the workers.
        workers: Largest number of cells at a time if there are no GPUs.
        gpus: Number of GPUs of the job.
    """

    folder: Path
    workers: int
    gpus: int

    def __call__(self, orders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Train the cells that have no result yet.

        Returns:
            The results of this session by run name, as plain JSON types.
        """
        cells = [self._cell(order) for order in orders]
        waiting_cells = [cell for cell in cells if not result_file(self.folder, cell.name).exists()]
        observer = ResultWriter(self.folder)
        stop = Stop()
        # Not SIGTERM: Slurm sends it before preempting a job, which is then requeued.
        handler = signal.signal(signal.SIGINT, lambda number, frame: stop.request())
        try:
            with Local(workers=None if self.gpus else self.workers, gpus=self.gpus) as local:
                local.allocate(len(waiting_cells))
                local.run(waiting_cells, self._context(orders), observer, stop)
        finally:
            signal.signal(signal.SIGINT, handler)
        return observer.results

    def checkpoint(self, orders: Sequence[Mapping[str, Any]]) -> Any:
        """Return the job to submit again: the same one, as results and checkpoints are files."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, orders)

    @staticmethod
    def _cell(order: Mapping[str, Any]) -> PlannedCell:
        config = Config.from_dict(order["config"])
        return PlannedCell(config, config.run_name)

    def _context(self, orders: Sequence[Mapping[str, Any]]) -> SweepContext:
        """Return the context from which the orders were made."""
        first = orders[0]
        return SweepContext(
            store=Store(first["store"]),
            command=first["command"],
            logs=self.folder,
            replace_damaged=first["replace_damaged"],
            tuned={
                self._cell(order).name: order["tuned"] for order in orders if order.get("tuned")
            },
        )


class ResultWriter(SweepObserver):
    """Writes the result of each cell to a file when the cell has ended.

    An interrupted cell gets no file: it continues when the job is submitted again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.results: dict[str, Any] = {}

    def ended(self, cell: PlannedCell, result: CellResult) -> None:
        self.results[cell.name] = result.to_dict()
        if result.result != "interrupted":
            write_text(result_file(self._folder, cell.name), dumps(result.to_dict()))

    def retrying(self, cell: PlannedCell, reason: str) -> None:
        self.note(f"{cell.name}: {reason}; trying again")

    def note(self, text: str) -> None:
        print(text, flush=True)  # to the job's output


def result_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


@dataclass(frozen=True, eq=False)
class PackedCell:
    """A cell of a packed job, with the interface of a submitit job for one cell.

    Attributes:
        job: The submitit job, which other cells share.
        folder: The folder to which the job writes results.
        name: The name of the run.
    """

    job: Any
    folder: Path
    name: str

    @property
    def job_id(self) -> str:
        return self.job.job_id

    @property
    def state(self) -> str:
        return self.job.state

    def done(self) -> bool:
        return result_file(self.folder, self.name).exists() or self.job.done()

    def result(self) -> dict[str, Any]:
        """Return the result of the cell; raise the job's error if it ended before the cell."""
        answer = read_json(result_file(self.folder, self.name)) or self.job.result().get(self.name)
        return CellResult("interrupted").to_dict() if answer is None else answer

    def stderr(self) -> str | None:
        return self.job.stderr()

    def cancel(self, check: bool = True) -> None:
        self.job.cancel(check=check)
