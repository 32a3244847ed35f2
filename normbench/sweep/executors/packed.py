"""Several cells in one job of a cluster: :class:`PackedJob` trains them, :class:`PackedCell` waits.

The job runs the local executor over its share of cells, so that these fill the cores or the GPUs of
the job as they would fill a machine of their own. The result of each cell is written to a file in
the folder that all machines see, as soon as the cell has ended. A job that is requeued leaves out
the cells that have such a file, and the others go on from their checkpoints.
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
        folder: Where the results of the cells are written, and the output of the workers.
        workers: Largest number of cells at a time on cores.
        gpus: GPUs of the job; 0: none.
    """

    folder: Path
    workers: int
    gpus: int

    def __call__(self, orders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Train the cells that have no result yet.

        Returns:
            The results of this session by the names of the runs, as plain JSON types.
        """
        cells = [self._cell(order) for order in orders]
        waiting = [cell for cell in cells if not result_file(self.folder, cell.name).exists()]
        observer = ResultWriter(self.folder)
        stop = Stop()
        # Not SIGTERM: Slurm sends it before it preempts a job, which is then requeued.
        handler = signal.signal(signal.SIGINT, lambda number, frame: stop.request())
        try:
            with Local(workers=None if self.gpus else self.workers, gpus=self.gpus) as local:
                local.allocate(len(waiting))
                local.run(waiting, self._context(orders), observer, stop)
        finally:
            signal.signal(signal.SIGINT, handler)
        return observer.results

    def checkpoint(self, orders: Sequence[Mapping[str, Any]]) -> Any:
        """Return what is to be submitted again: the same, as results and checkpoints are files."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, orders)

    @staticmethod
    def _cell(order: Mapping[str, Any]) -> PlannedCell:
        config = Config.from_dict(order["config"])
        return PlannedCell(config, config.run_name)

    def _context(self, orders: Sequence[Mapping[str, Any]]) -> SweepContext:
        """Return the context that the orders were made of."""
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

    A cell that was interrupted gets no file: it goes on when the job is submitted again.
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
    """A cell of a packed job, as the sweep waits for it: a job of submitit's with one cell.

    Attributes:
        job: The job of submitit, which other cells share.
        folder: Where the job writes results.
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
        """Return the result of the cell; an error of the job if the job ended before the cell."""
        found = read_json(result_file(self.folder, self.name)) or self.job.result().get(self.name)
        return CellResult("interrupted").to_dict() if found is None else found

    def stderr(self) -> str | None:
        return self.job.stderr()

    def cancel(self, check: bool = True) -> None:
        self.job.cancel(check=check)
