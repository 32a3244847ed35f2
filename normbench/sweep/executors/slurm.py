"""The executor that submits the cells of a sweep to Slurm, through submitit."""

from __future__ import annotations

import getpass
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.errors import UserError, unknown
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import SweepContext, int_option
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.packed import PackedCell, PackedJob
from normbench.sweep.executors.remote import Remote, remote_cell
from normbench.sweep.plan import PlannedCell

CLUSTERS = ("slurm", "local", "debug")

#: Part of submitit's message that it no longer requeues a job.
OUT_OF_TIME = "timed-out too many times"

#: Seconds between two queries to Slurm's controller, which the entire cluster shares.
LOOK = 10.0


class Slurm(Remote):
    """Trains cells as the jobs of one job array; Slurm and submitit queue, place and requeue them.

    A preempted job is always requeued; one that ran out of time is requeued ``timeouts`` times.
    Both continue from the checkpoint of the last epoch. A cell that needs even more time fails, and
    ``--retry-failed`` continues from its checkpoint. All nodes must share the store's folder.

    With ``cells_per_job`` a job trains several cells, like the local executor, on the cores or GPUs
    of the job (:mod:`.packed`).

    Args:
        cluster: ``slurm``, or submitit's ``local`` or ``debug`` for trying things out.
        partition: Slurm partition; None for the default one.
        account: Account to charge; None for the default one.
        minutes: Time limit of a job, each time it runs.
        timeouts: Number of times that a job that ran out of time is requeued.
        cells_per_job: Cells per job. With more than one, the time limit and the following options
            apply to the job, not to each cell.
        cpus_per_run: Cores per job.
        gpus_per_run: GPUs per job.
        memory_gb: Memory per job in GB; None for Slurm's default.
        at_a_time: Largest number of jobs of the array that run at the same time.
        setup: Lines of the job's script before it starts Python.
        more: Further options of sbatch, by their long names: ``{"qos": "high"}``.
        srun: Options of the srun command that starts Python, such as those for a container.

    Raises:
        UserError: submitit is not installed.
    """

    def __init__(
        self,
        *,
        cluster: str = "slurm",
        partition: str | None = None,
        account: str | None = None,
        minutes: int = 240,
        timeouts: int = 3,
        cells_per_job: int = 1,
        cpus_per_run: int = 2,
        gpus_per_run: int = 0,
        memory_gb: int | None = None,
        at_a_time: int = 32,
        setup: Sequence[str] = (),
        more: Mapping[str, str | int] | None = None,
        srun: Sequence[str] = (),
    ) -> None:
        if cluster not in CLUSTERS:
            raise unknown("executor.cluster", str(cluster), CLUSTERS)
        for name, lines in (("setup", setup), ("srun", srun)):
            if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
                raise UserError(f"executor.{name} must be a list of strings, got {lines!r}")
        self._cluster = cluster
        self._at_a_time = int_option("at_a_time", at_a_time, 1)
        self._timeouts = int_option("timeouts", timeouts, 0)
        self._cells_per_job = int_option("cells_per_job", cells_per_job, 1)
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
            "slurm_additional_parameters": _options_of_sbatch(more or {}) or None,
            "slurm_srun_args": list(srun) or None,
        }
        self._parameters |= {key: value for key, value in optional.items() if value is not None}
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError(
                "executor=slurm needs submitit: pip install 'normbench[slurm]'"
            ) from None
        self._submitit: Any = submitit
        self._queue = SlurmQueue() if cluster == "slurm" else None
        self._lost: set[str] = set()

    def allocate(self, count: int) -> list[str]:
        cpus, gpus = self._parameters["cpus_per_task"], self._parameters["gpus_per_node"]
        in_a_job = self._cells_per_job if gpus else min(self._cells_per_job, cpus)
        slots = min(count, self._at_a_time * in_a_job)
        return [f"{self._cluster} {index}" for index in range(slots)]

    def check(self, configs: Sequence[Config]) -> list[str]:
        """Check on the submitting machine, which may have no GPU."""
        with Local(workers=1, gpus=0) as local:
            local.allocate(1)
            return local.check_for_elsewhere(configs)

    def submit(self, cells: Sequence[PlannedCell], context: SweepContext) -> list[Any]:
        folder = (context.logs or context.store.root) / "submitit"
        executor = self._submitit.AutoExecutor(
            folder=folder,
            cluster=self._cluster,
            slurm_max_num_timeout=self._timeouts,
            local_max_num_timeout=self._timeouts,
        )
        executor.update_parameters(**self._parameters)
        if self._cells_per_job > 1:
            return self._submit_packed(executor, cells, context, folder)
        with executor.batch():  # as one job array
            return [executor.submit(RequeuedCell(), context.order(cell)) for cell in cells]

    def _submit_packed(
        self, executor: Any, cells: Sequence[PlannedCell], context: SweepContext, folder: Path
    ) -> list[PackedCell]:
        """Submit jobs of several cells each, grouping neighbors in the grid."""
        size = self._cells_per_job
        cpus, gpus = self._parameters["cpus_per_task"], self._parameters["gpus_per_node"]
        shares = [cells[first : first + size] for first in range(0, len(cells), size)]
        # One folder per job, because a sweep may submit the same cell twice.
        folder = folder.resolve() / f"cells-{uuid.uuid4().hex[:8]}"
        folders = [folder / str(number) for number in range(len(shares))]
        jobs = []
        with executor.batch():  # as one job array
            for share, job_folder in zip(shares, folders, strict=True):
                job_folder.mkdir(parents=True)
                orders = [context.order(cell) for cell in share]
                jobs.append(executor.submit(PackedJob(job_folder, cpus, gpus), orders))
        return [
            PackedCell(job, job_folder, cell.name)
            for job, job_folder, share in zip(jobs, folders, shares, strict=True)
            for cell in share
        ]

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        if self._queue is not None:
            self._lost |= self._queue.lost(handle.job_id for handle in handles)
        done_handles = [
            handle for handle in handles if handle.job_id in self._lost or handle.done()
        ]
        if not done_handles:
            time.sleep(seconds)
        return done_handles

    def result(self, handle: Any) -> CellResult:
        if handle.job_id in self._lost and not handle.done():
            lines = (handle.stderr() or "").strip().splitlines()
            end = f": {lines[-1][:300]}" if lines else ""
            return CellResult("failed", "died", f"Slurm's job {handle.job_id} left no result{end}")
        try:
            result = CellResult.from_dict(handle.result())
            # submitit raises this error inside the run, which then fails because of it.
            if OUT_OF_TIME in result.error:
                return replace(result, error=self._out_of_time(), log=())
            return result
        except Exception as error:  # raised by submitit or by the job
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            if any(OUT_OF_TIME in line for line in lines):
                return CellResult("failed", "died", self._out_of_time())
            ending = f"{handle.state}: {lines[0][:300]}" if lines else str(handle.state)
            return CellResult("failed", "died", f"Slurm's job {handle.job_id} {ending}")

    def _out_of_time(self) -> str:
        minutes = self._parameters["timeout_min"]
        return (
            f"out of time {self._timeouts + 1} times (executor.minutes={minutes}, "
            f"executor.timeouts={self._timeouts}); --retry-failed continues from its checkpoint"
        )

    def withdraw(self, handles: Sequence[Any], at_once: bool) -> None:
        if self._queue is not None and not at_once:
            stop_softly({handle.job_id for handle in handles})
            return
        for handle in handles:
            handle.cancel(check=False)


_SET_BY_OTHERS = {
    "partition": "partition",
    "account": "account",
    "time": "minutes",
    "cpus-per-task": "cpus_per_run",
    "gpus-per-node": "gpus_per_run",
    "mem": "memory_gb",
    "array": "at_a_time",
}
"""Options of sbatch, with the options of the executor that set them."""


def _options_of_sbatch(more: Mapping[str, str | int]) -> dict[str, str | int]:
    """Check the options of ``executor.more``, and return them by sbatch's names.

    Raises:
        UserError: They are not a mapping of names to strings or numbers, or an option of the
            executor sets one of them.
    """
    if not isinstance(more, Mapping):
        raise UserError(
            f"executor.more must map options to values, such as {{qos: high}}, got {more!r}"
        )
    options = {str(name).strip("-").replace("_", "-"): value for name, value in more.items()}
    for name, value in options.items():
        if name in _SET_BY_OTHERS:
            raise UserError(
                f"executor.more sets {name}: use executor.{_SET_BY_OTHERS[name]} instead"
            )
        if not isinstance(value, str | int):
            raise UserError(f"executor.more: {name} must be a string or a number, got {value!r}")
    return options


class RequeuedCell:
    """A cell that submitit resubmits if Slurm preempts its job or the job runs out of time."""

    def __call__(self, order: Mapping[str, Any]) -> dict[str, Any]:
        return remote_cell(order)

    def checkpoint(self, order: Mapping[str, Any]) -> Any:
        """Return the job to submit again; the run's checkpoint is in the store."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, order)


class SlurmQueue:
    """Finds jobs that have left Slurm's queue, with one ``squeue`` call for all of them.

    submitit learns from ``sacct`` that Slurm killed a job: at first within seconds, later within
    ten minutes, and never on a cluster without accounting.

    Args:
        ask: Returns the ids of this user's waiting and running jobs, or None if Slurm does not
            answer.
    """

    def __init__(self, ask: Callable[[], set[str] | None] | None = None) -> None:
        self._ask = _queued if ask is None else ask
        self._asked = time.monotonic()  # a job appears in the queue a moment after its submission
        self._missed: set[str] = set()

    def lost(self, ids: Iterable[str]) -> set[str]:
        """Return those of ``ids`` that were missing from the queue in two successive answers.

        One answer is not enough, because a job may leave the queue before its result is visible on
        all machines.
        """
        if time.monotonic() - self._asked < LOOK:
            return set()
        self._asked = time.monotonic()
        queue = self._ask()
        if queue is None:
            return set()
        missing = set(ids) - queue
        lost, self._missed = missing & self._missed, missing
        return lost


def _queued() -> set[str] | None:
    user = f"--user={getpass.getuser()}"
    answer = _call(["squeue", "--noheader", "--array", "--format=%i", user])
    return None if answer is None else set(answer.split())


def stop_softly(ids: Iterable[str]) -> None:
    """Cancel waiting jobs, and make running ones write a checkpoint and end.

    Running jobs get SIGINT, as from Ctrl-C. They would ignore the SIGTERM of a plain ``scancel``,
    as submitit does, and be killed some 30 seconds later.
    """
    ids = list(ids)
    if ids:
        _call(["scancel", "--state=PENDING", *ids])
        _call(["scancel", "--state=RUNNING", "--signal=INT", *ids])


def _call(command: list[str]) -> str | None:
    """Return the output of a command, or None if it fails."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout if process.returncode == 0 else None
