"""The executor that keeps a pool of worker processes on this machine: the default."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.engine import threads
from normbench.sweep.executors.base import (
    Executor,
    Job,
    Stop,
    SweepContext,
    SweepObserver,
    int_option,
)
from normbench.sweep.executors.pool import LOOK, Dispatch, WorkerProcess
from normbench.sweep.executors.slots import Gpu, Slot, fitting, on_cores, on_gpus, visible_gpus


class Local(Executor):
    """Trains on every GPU of this machine, or else on all its cores.

    Args:
        workers: Most runs at a time; None: one a core, or as many as the GPUs take.
        gpus: How many GPUs are used, the first ones; None: all; 0: none.
        jobs_per_gpu: Runs at a time on one GPU; None: what its free memory and an estimate of what
            the runs take allow.
        retries: Times a run is tried again after its worker died.
        list_gpus: Lists the GPUs of this machine.
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
        wanted = int_option("gpus", gpus, 0, optional=True)
        self._jobs_per_gpu = int_option("jobs_per_gpu", jobs_per_gpu, 1, optional=True)
        self._retries = int_option("retries", retries, 0)
        self._gpus = list_gpus()[:wanted] if wanted != 0 else []
        self._slots: list[Slot] = []
        self._workers: dict[str, WorkerProcess] = {}
        self._logs: Path | None = None

    def place(self, count: int) -> list[str]:
        if self._gpus:
            per = self._jobs_per_gpu or 1
            most = min(count, self._most or count)
            self._slots = on_gpus(self._gpus, [per] * len(self._gpus), most)
        else:
            available = threads.core_ids()
            self._slots = on_cores(available, min(count, self._most or len(available)))
        return [slot.name for slot in self._slots]

    def check(self, configs: Sequence[Config]) -> list[str]:
        return self._problems("check", configs)

    def check_for_elsewhere(self, configs: Sequence[Config]) -> list[str]:
        """Do as :meth:`check` for runs of another machine, which may have more memory."""
        return self._problems("build", configs)

    def _problems(self, what: str, configs: Sequence[Config]) -> list[str]:
        return self._ask_each(what, "problem", configs, _building_failed)

    def run(
        self, jobs: Sequence[Job], task: SweepContext, watch: SweepObserver, stop: Stop
    ) -> None:
        if not jobs:
            return
        self._logs = task.logs
        if self._gpus and self._jobs_per_gpu is None:
            self._fill_gpus(jobs, watch)
        Dispatch(
            jobs, self._slots, self._workers, self._spawn, task, watch, stop, self._retries
        ).run()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.interrupt()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _spawn(self, slot: Slot) -> WorkerProcess:
        log = (
            None if self._logs is None else self._logs / f"worker-{slot.name.replace(' ', '')}.log"
        )
        return WorkerProcess(slot, log)

    def _fill_gpus(self, jobs: Sequence[Job], watch: SweepObserver) -> None:
        """Lay out as many slots on each GPU as its free memory has room for the largest run."""
        each = {job.program: job.config for job in jobs}
        needs = self._ask_each("memory", "bytes", list(each.values()), lambda reason: None)
        need = max((need for need in needs if need), default=None)
        if need is None:
            return
        share = max(1, threads.cores() // len(self._gpus))
        per = [fitting(gpu, need, share) for gpu in self._gpus]
        self._slots = on_gpus(self._gpus, per, min(len(jobs), self._most or len(jobs)))
        watch.note(f"about {need / 2**30:.1f} GiB per run: {max(per)} at a time on each GPU")

    def _ask_each(
        self,
        what: str,
        answer: str,
        configs: Sequence[Config],
        if_died: Callable[[str], Any],
    ) -> list[Any]:
        """Ask workers the same of each config, and return their answers in order.

        Args:
            what: The order.
            answer: The key of the answer.
            configs: Asked about one by one, those of a backend together.
            if_died: Given how the worker died of the question, stands in for the answer.
        """
        waiting = sorted(range(len(configs)), key=lambda index: configs[index].backend)
        answers: list[Any] = [None] * len(configs)
        slots = self._slots[: len(configs)]
        asked: dict[str, int] = {}
        while waiting or asked:
            for slot in slots:
                if waiting and slot.name not in asked:
                    asked[slot.name] = waiting.pop(0)
                    self._ask(slot, what, configs[asked[slot.name]])
            with selectors.DefaultSelector() as selector:
                for name in asked:
                    selector.register(self._workers[name], selectors.EVENT_READ, name)
                ready = [key.data for key, _ in selector.select(LOOK)]
            for name in ready:
                messages = self._workers[name].read()
                if messages is None:
                    worker = self._workers.pop(name)
                    answers[asked.pop(name)] = if_died(worker.death())
                    worker.close()
                for message in messages or []:
                    answers[asked.pop(name)] = message[answer]
        return answers

    def _ask(self, slot: Slot, what: str, config: Config) -> None:
        worker = self._workers.get(slot.name)
        if worker is not None and worker.backend not in (None, config.backend):
            self._workers.pop(slot.name).close()
            worker = None
        if worker is None:
            worker = self._workers[slot.name] = self._spawn(slot)
        worker.backend = config.backend
        worker.send({"do": what, "config": config.to_dict()})


def _building_failed(death: str) -> str:
    how = f"was {death}" if death.startswith("killed") else death
    return f"the process that built the network {how}"
