"""The executor that trains the cells of a sweep one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence

from normbench.config import Config
from normbench.engine.reuse import WarmState
from normbench.sweep.cell import CellResult, train_cell
from normbench.sweep.executors.base import Executor, Stop, SweepContext
from normbench.sweep.observer import ProgressObserver, SweepObserver
from normbench.sweep.plan import PlannedCell
from normbench.sweep.preflight import refusal


class Inline(Executor):
    """Trains without worker processes, so that a debugger can follow everything.

    A cell that aborts the process ends the sweep.
    """

    def __init__(self) -> None:
        self._warm = WarmState()
        self._built: dict[str, str] = {}

    def allocate(self, count: int) -> list[str]:
        return ["this process"]

    def check(self, configs: Sequence[Config]) -> list[str]:
        return [refusal(config, self._warm, self._built) for config in configs]

    def run(
        self,
        cells: Sequence[PlannedCell],
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
    ) -> None:
        for cell in cells:
            if stop.requests:
                return
            observer.started(cell, "this process")
            observer.ended(cell, self._train(cell, context, observer, stop))

    def _train(
        self, cell: PlannedCell, context: SweepContext, observer: SweepObserver, stop: Stop
    ) -> CellResult:
        progress = ProgressObserver(lambda facts: observer.progress(cell, facts))
        stop.raises = True
        try:
            return train_cell(context.order(cell), progress, self._warm)
        except KeyboardInterrupt:
            return CellResult("interrupted")
        finally:
            stop.raises = False

    def close(self) -> None:
        self._warm.drop_all()
