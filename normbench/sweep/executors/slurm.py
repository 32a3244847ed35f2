"""The executor that hands runs to Slurm, through submitit."""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from normbench.config import Config
from normbench.errors import NormbenchError, UserError, unknown
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import Job, SweepContext, int_option
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.remote import Remote, remote_cell

CLUSTERS = ("slurm", "local", "debug")

#: How submitit says that it does not requeue a job any more.
OUT_OF_TIME = "timed-out too many times"


class Slurm(Remote):
    """One job array, a run a job. Queueing, placing and requeueing are Slurm's and submitit's.

    A job that is preempted or out of time is requeued, and goes on from the checkpoint of its
    last epoch: after a preemption always, when its time is over ``timeouts`` times. A run that
    needs still more time fails, and ``--retry-failed`` goes on from its checkpoint. The store must
    be a folder that all nodes see.

    Args:
        cluster: ``slurm``; or, for trying things out, submitit's ``local`` or ``debug``.
        partition: Of Slurm; None: its default.
        account: Likewise.
        minutes: Time limit of a job, each time that it runs.
        timeouts: Times that a job which ran out of time is requeued.
        cpus_per_run: Cores of a job.
        gpus_per_run: GPUs of a job.
        memory_gb: Of a job; None: Slurm's default.
        at_a_time: Jobs of the array that run at the same time.
        setup: Lines of the job's script that come before Python.

    Raises:
        NormbenchError: submitit is not installed.
    """

    def __init__(
        self,
        *,
        cluster: str = "slurm",
        partition: str | None = None,
        account: str | None = None,
        minutes: int = 240,
        timeouts: int = 3,
        cpus_per_run: int = 2,
        gpus_per_run: int = 0,
        memory_gb: int | None = None,
        at_a_time: int = 32,
        setup: Sequence[str] = (),
    ) -> None:
        if cluster not in CLUSTERS:
            raise unknown("executor.cluster", str(cluster), CLUSTERS)
        if isinstance(setup, str) or not all(isinstance(line, str) for line in setup):
            raise UserError(f"executor.setup must be a list of lines, got {setup!r}")
        self._cluster = cluster
        self._at_a_time = int_option("at_a_time", at_a_time, 1)
        self._timeouts = int_option("timeouts", timeouts, 0)
        self._parameters: dict[str, Any] = {
            "timeout_min": int_option("minutes", minutes, 1),
            "cpus_per_task": int_option("cpus_per_run", cpus_per_run, 1),
            "gpus_per_node": int_option("gpus_per_run", gpus_per_run, 0),
            "slurm_array_parallelism": self._at_a_time,
            "slurm_job_name": "normbench",
        }
        optional = {
            "mem_gb": int_option("memory_gb", memory_gb, 1, optional=True),
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_setup": list(setup) or None,
        }
        self._parameters |= {key: value for key, value in optional.items() if value is not None}
        try:
            import submitit
        except ModuleNotFoundError:
            raise NormbenchError(
                "executor=slurm needs submitit: pip install 'normbench[slurm]'"
            ) from None
        self._submitit: Any = submitit
        self._queue = SlurmQueue() if cluster == "slurm" else None
        self._lost: set[str] = set()

    def place(self, count: int) -> list[str]:
        return [f"{self._cluster} {index}" for index in range(min(count, self._at_a_time))]

    def check(self, configs: Sequence[Config]) -> list[str]:
        """Check on the machine that submits, which need not have a GPU."""
        here = Local(workers=1, gpus=0)
        with here:
            here.place(1)
            return here.check_for_elsewhere(configs)

    def submit(self, jobs: Sequence[Job], task: SweepContext) -> list[Any]:
        folder = (task.logs or task.store.root) / "submitit"
        executor = self._submitit.AutoExecutor(
            folder=folder,
            cluster=self._cluster,
            slurm_max_num_timeout=self._timeouts,
            local_max_num_timeout=self._timeouts,
        )
        executor.update_parameters(**self._parameters)
        store = str(task.store.root.resolve())
        with executor.batch():  # one array
            return [
                executor.submit(
                    Requeued(), job.config.to_dict(), store, list(task.command), job.replace_damaged
                )
                for job in jobs
            ]

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        if self._queue is not None:
            self._lost |= self._queue.lost(handle.job_id for handle in handles)
        done = [handle for handle in handles if handle.job_id in self._lost or handle.done()]
        if not done:
            time.sleep(seconds)
        return done

    def result(self, handle: Any) -> CellResult:
        if handle.job_id in self._lost and not handle.done():
            lines = (handle.stderr() or "").strip().splitlines()
            end = f": {lines[-1][:300]}" if lines else ""
            return CellResult("failed", "died", f"Slurm's job {handle.job_id} left no result{end}")
        try:
            ending = CellResult.from_dict(handle.result())
            # submitit raises this inside the run, which ends as if the error were its own.
            if OUT_OF_TIME in ending.error:
                return replace(ending, error=self._out_of_time(), log=())
            return ending
        except Exception as error:  # submitit's, and what the job raised
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            if any(OUT_OF_TIME in line for line in lines):
                return CellResult("failed", "died", self._out_of_time())
            how = f"{handle.state}: {lines[0][:300]}" if lines else str(handle.state)
            return CellResult("failed", "died", f"Slurm's job {handle.job_id} {how}")

    def _out_of_time(self) -> str:
        minutes = self._parameters["timeout_min"]
        return (
            f"out of time {self._timeouts + 1} times (executor.minutes={minutes}, "
            f"executor.timeouts={self._timeouts}); --retry-failed goes on from its checkpoint"
        )

    def withdraw(self, handles: Sequence[Any], at_once: bool) -> None:
        if self._queue is not None and not at_once:
            stop_softly(handle.job_id for handle in handles)
            return
        for handle in handles:
            handle.cancel(check=False)


class Requeued:
    """A job that submitit submits again when Slurm preempts it or its time is over."""

    def __call__(
        self, tree: Mapping[str, Any], store: str, command: Sequence[str], replace_damaged: bool
    ) -> dict[str, Any]:
        return remote_cell(tree, store, command, replace_damaged)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit calls before the job ends; the run's own checkpoint is in the store."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


# --- slurm's queue: which jobs left it without a word, and how running ones are told to stop ------

LOOK = 10.0
"""Seconds between two questions to the controller, which serves a whole cluster."""


class SlurmQueue:
    """Asks ``squeue`` for this user's jobs, all of them with one question.

    submitit learns of a job that Slurm killed from ``sacct``, at first within seconds and later
    within ten minutes; and never on a cluster that keeps no accounts.

    Args:
        ask: Returns the ids of the jobs that wait or run, or None where that is not to be had.
    """

    def __init__(self, ask: Callable[[], set[str] | None] | None = None) -> None:
        self._ask = _queued if ask is None else ask
        self._asked = time.monotonic()  # a job is not in the queue at the moment it is submitted
        self._missed: set[str] = set()

    def lost(self, ids: Iterable[str]) -> set[str]:
        """Return those of ``ids`` that were missing in two looks, one after the other.

        Two, since a job leaves the queue before all machines that share its folder see its result.
        """
        if time.monotonic() - self._asked < LOOK:
            return set()
        self._asked = time.monotonic()
        queued = self._ask()
        if queued is None:
            return set()
        missing = set(ids) - queued
        lost, self._missed = missing & self._missed, missing
        return lost


def _queued() -> set[str] | None:
    asked = _call(["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"])
    return None if asked is None else set(asked.split())


def stop_softly(ids: Iterable[str]) -> None:
    """Take waiting jobs back, and have running ones write a checkpoint and end.

    SIGINT, as from Ctrl-C: submitit's jobs ignore the SIGTERM of a plain ``scancel``, and are
    killed some 30 seconds after it.
    """
    ids = list(ids)
    if ids:
        _call(["scancel", "--state=PENDING", *ids])
        _call(["scancel", "--state=RUNNING", "--signal=INT", *ids])


def _call(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
