"""The default executor: a pool of worker processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normbench.config import Config
from normbench.engine import threads
from normbench.sweep.executors.base import Executor, Stop, SweepContext, int_option
from normbench.sweep.executors.pool import Dispatch, WorkerPool
from normbench.sweep.executors.slots import Gpu, Slot, fitting, on_cores, on_gpus, visible_gpus
from normbench.sweep.observer import SweepObserver
from normbench.sweep.plan import PlannedCell


class Local(Executor):
    """Trains on every GPU of this machine, or on all its cores if it has none.

    Args:
        workers: Largest number of cells at a time; None for one per core, or as many as the GPUs
            take.
        gpus: Number of GPUs to use, the first ones; None for all, 0 for none.
        jobs_per_gpu: Cells at a time on one GPU; None for as many as fit in its free memory, by an
            estimate of the cells' needs.
        retries: Number of times that a cell is tried again after its worker died.
        list_gpus: Returns the GPUs of this machine.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        gpus: int | None = None,
        jobs_per_gpu: int | None = None,
        retries: int = 1,
        list_gpus: Callable[[], list[Gpu]] = visible_gpus,
    ) -> None:
        self._most = int_option("workers", workers, 1, optional=True)
        gpu_count = int_option("gpus", gpus, 0, optional=True)
        self._jobs_per_gpu = int_option("jobs_per_gpu", jobs_per_gpu, 1, optional=True)
        self._retries = int_option("retries", retries, 0)
        self._gpus = list_gpus()[:gpu_count] if gpu_count != 0 else []
        self._slots: list[Slot] = []
        self._pool = WorkerPool()

    def allocate(self, count: int) -> list[str]:
        cores = threads.core_ids()
        if self._gpus:
            per_gpu = [self._jobs_per_gpu or 1] * len(self._gpus)
            self._slots = on_gpus(self._gpus, per_gpu, min(count, self._most or count), cores)
        else:
            self._slots = on_cores(cores, min(count, self._most or len(cores)))
        return [slot.name for slot in self._slots]

    def check(self, configs: Sequence[Config]) -> list[str]:
        answers = self._pool.ask(self._slots, "check", configs, _building_failed)
        if not self._gpus:
            return answers
        return [
            f"devices={config.devices}: executor=local trains a run on one GPU; executor=inline "
            "trains on several"
            if config.devices > 1
            else answer
            for config, answer in zip(configs, answers, strict=True)
        ]

    def check_for_elsewhere(self, configs: Sequence[Config]) -> list[str]:
        """Check configs as :meth:`check` does, but without regard to this machine's memory."""
        return self._pool.ask(self._slots, "build", configs, _building_failed)

    def run(
        self,
        cells: Sequence[PlannedCell],
        context: SweepContext,
        observer: SweepObserver,
        stop: Stop,
    ) -> None:
        if not cells:
            return
        self._pool.logs = context.logs
        if self._gpus and self._jobs_per_gpu is None:
            self._fill_gpus(cells, observer)
        Dispatch(cells, self._slots, self._pool, context, observer, stop, self._retries).run()

    def _fill_gpus(self, cells: Sequence[PlannedCell], observer: SweepObserver) -> None:
        """Allocate as many slots on each GPU as the largest cell fits in its free memory."""
        programs = {cell.program: cell.config for cell in cells}
        needs = self._pool.ask(self._slots, "memory", list(programs.values()), lambda death: None)
        need = max((need for need in needs if need), default=None)
        if need is None:
            return
        cores_per_gpu = max(1, threads.cores() // len(self._gpus))
        per_gpu = [fitting(gpu, need, cores_per_gpu) for gpu in self._gpus]
        limit = min(len(cells), self._most or len(cells))
        self._slots = on_gpus(self._gpus, per_gpu, limit, threads.core_ids())
        for name, worker in list(self._pool.items()):
            if worker.slot not in self._slots:  # it uses more cores than its slot has now
                self._pool.end(name)
        observer.note(f"about {need / 2**30:.1f} GiB per run: {max(per_gpu)} at a time on each GPU")

    def close(self) -> None:
        self._pool.close()


def _building_failed(death: str) -> str:
    return f"the process that built the network {death}"
