"""The Slurm executor on submitit's local processes; tests/slurm has tests on a real Slurm."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from normbench.errors import UserError
from normbench.store.store import Store

pytest.importorskip("submitit", reason="submitit is missing: pip install 'normbench[slurm]'")

from normbench.sweep.executors.base import SweepContext
from normbench.sweep.executors.packed import PackedJob
from normbench.sweep.executors.slurm import Slurm
from normbench.sweep.plan import PlannedCell
from tests.sweep.conftest import RecordingObserver


@pytest.fixture
def fake_jobs(monkeypatch, faults):
    """Run jobs as local processes, in which a sitecustomize module installs the fake engine."""
    here = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{here / 'fakeraysite'}:{here.parents[1]}")
    monkeypatch.setenv("FAKE_ENGINE", "1")
    return faults


def test_trained_failed_and_killed_jobs_are_reported(grid, fake_jobs, run_on, tmp_store):
    configs = grid("seed=range(0,3)")
    fake_jobs(configs[0].run_name, "raise")
    fake_jobs(configs[1].run_name, "kill", 9)
    observer = run_on(Slurm(cluster="local"), configs)
    assert Counter(result.result for result in observer.results.values()) == {
        "trained": 1,
        "failed": 2,
    }
    assert (
        observer.results[configs[0].run_name].error == "RuntimeError: something broke in two lines"
    )
    assert observer.results[configs[1].run_name].cause == "died"
    store = Store(tmp_store)
    assert store.run(configs[1]).status == "failed"
    assert store.run(configs[2]).status == "finished"


def test_packed_job_trains_each_of_its_cells(grid, fake_jobs, run_on, tmp_store, tmp_path):
    configs = grid("seed=range(0,5)")
    fake_jobs(configs[0].run_name, "raise")
    fake_jobs(configs[1].run_name, "kill", 9)
    observer = run_on(Slurm(cluster="local", cells_per_job=3, cpus_per_run=2), configs)
    results = [observer.results[config.run_name] for config in configs]
    assert [result.result for result in results] == ["failed", "failed", *3 * ["trained"]]
    assert results[0].error == "RuntimeError: something broke in two lines"
    assert (results[1].cause, results[1].error) == ("died", "its worker was killed by SIGKILL")
    assert results[1].tries == 2
    store = Store(tmp_store)
    assert store.run(configs[1]).status == "failed"
    assert {store.run(config).status for config in configs[2:]} == {"finished"}
    assert len(list((tmp_path / "submitit").glob("*_submitted.pkl"))) == 2  # two jobs
    assert list((tmp_path / "submitit").glob("cells-*/*/worker-cpu0.log"))


def test_packed_cells_train_on_the_debug_cluster(grid, fake_jobs, run_on, tmp_store):
    configs = grid("seed=range(0,2)")
    observer = run_on(Slurm(cluster="debug", cells_per_job=8), configs)
    assert Counter(result.result for result in observer.results.values()) == {"trained": 2}


def test_requeued_job_skips_cells_that_have_ended(grid, fake_jobs, tmp_store, tmp_path):
    configs = grid("seed=range(0,3)")
    fake_jobs(configs[0].run_name, "raise", 9)
    context = SweepContext(Store(tmp_store), ["normbench", "sweep"], tmp_path)
    orders = [context.order(PlannedCell(config, config.run_name)) for config in configs]
    job = PackedJob(tmp_path, workers=2, gpus=0)
    assert {result["result"] for result in job(orders[:2]).values()} == {"failed", "trained"}
    again = job.checkpoint(orders)  # the job that submitit would submit
    assert list(again.result()) == [configs[2].run_name]
    assert len(Store(tmp_store).run(configs[0]).meta["sessions"]) == 1


def test_preempted_packed_job_resumes_from_checkpoints(grid, fake_jobs, run_on, tmp_store):
    configs = grid("seed=0,1", "epochs=300")
    store, slurm = Store(tmp_store), Slurm(cluster="local", cells_per_job=2)
    handles, submit = [], slurm.submit
    slurm.submit = lambda *arguments: handles.extend(submit(*arguments)) or list(handles)

    class Preempting(RecordingObserver):
        """Sends the job Slurm's end-of-time signal once both cells are training."""

        sent = False

        def idle(self):
            last = [run.last_metrics() or {} for run in store.runs()]
            if not self.sent and sum(row.get("epoch", 0) > 3 for row in last) == 2:
                self.sent = True
                for process in psutil.Process(handles[0].job._process.pid).children(recursive=True):
                    process.send_signal(signal.SIGUSR2)

    observer = run_on(slurm, configs, Preempting())
    assert observer.sent
    assert Counter(result.result for result in observer.results.values()) == {"trained": 2}
    for config in configs:
        run = store.run(config)
        first, second = run.meta["sessions"]
        assert (first["from_epoch"], second["from_epoch"] > 2) == (0, True)
        assert [row["epoch"] for row in run.metrics()] == list(range(1, 301))


def test_slots_of_packed_jobs():
    options = {"cluster": "local", "at_a_time": 2, "cells_per_job": 4}
    assert len(Slurm(**options, cpus_per_run=3).allocate(100)) == 6
    assert len(Slurm(**options, gpus_per_run=1).allocate(100)) == 8
    assert len(Slurm(**options, gpus_per_run=1).allocate(5)) == 5


def test_parameters_reach_submitit_under_its_names():
    parameters = Slurm(partition="gpu", gpus_per_run=2, memory_gb=16, minutes=5)._parameters
    assert parameters["slurm_partition"] == "gpu"
    assert parameters["gpus_per_node"] == 2
    assert parameters["mem_gb"] == 16
    assert parameters["timeout_min"] == 5


def test_options_of_sbatch_and_srun_are_in_the_job_script():
    from submitit.slurm.slurm import _make_sbatch_string

    more = {"qos": "high", "mail_type": "END"}
    parameters = Slurm(more=more, srun=["--container-image=image.sqsh"])._parameters
    script = _make_sbatch_string(
        "python -m work",
        "folder",
        additional_parameters=parameters["slurm_additional_parameters"],
        srun_args=parameters["slurm_srun_args"],
    )
    assert "#SBATCH --qos=high\n" in script
    assert "#SBATCH --mail-type=END\n" in script
    assert "--container-image=image.sqsh python -m work" in script


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_timed_out_job_is_requeued_as_often_as_configured(cluster, monkeypatch, tmp_path):
    import submitit
    from submitit.slurm.slurm import SlurmExecutor

    timeouts_set = []
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    monkeypatch.setattr("submitit.slurm.slurm.shutil.which", lambda name: f"/usr/bin/{name}")

    class Executor(submitit.AutoExecutor):
        def __init__(self, **options):
            super().__init__(**options)
            timeouts_set.append(self._executor.max_num_timeout)

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    for timeouts in ({}, {"timeouts": 0}, {"timeouts": 7}):
        slurm = Slurm(cluster=cluster, **timeouts)
        slurm.submit([], SweepContext(Store(tmp_path), ["normbench", "sweep"], tmp_path))
    assert timeouts_set == [3, 0, 7]


def test_run_that_timed_out_too_often_says_what_to_do():
    from types import SimpleNamespace

    from normbench.sweep.cell import CellResult

    # submitit 1.5 raises this in the job; it is reported by the run or, if too late, by the job.
    message = "Job not requeued because: timed-out too many times."
    reported = CellResult("failed", "error", f"UncompletedJobError: {message}").to_dict()

    def raises():
        raise RuntimeError(f"Job 1_0 failed\n{message}")

    slurm = Slurm(cluster="local", minutes=5, timeouts=1)
    for result in (lambda: reported, raises):
        handle = SimpleNamespace(job_id="1_0", state="FAILED", result=result)
        assert slurm.result(handle).error == (
            "out of time 2 times (executor.minutes=5, executor.timeouts=1); "
            "--retry-failed continues from its checkpoint"
        )


def test_options_are_checked():
    with pytest.raises(UserError, match=r"unknown executor.cluster 'slum': did you mean 'slurm'"):
        Slurm(cluster="slum")
    with pytest.raises(UserError, match="setup must be a list"):
        Slurm(setup="module load cuda")
    with pytest.raises(UserError, match=r"executor.more sets time: use executor.minutes instead"):
        Slurm(more={"time": 5})
    with pytest.raises(UserError, match=r"executor.more: qos must be a string or a number"):
        Slurm(more={"qos": ["high"]})
    with pytest.raises(UserError, match=r"executor.more must map options to values"):
        Slurm(more=["qos"])
    with pytest.raises(UserError, match=r"executor.cells_per_job must be a whole number of at l"):
        Slurm(cells_per_job=0)
    with pytest.raises(UserError, match="srun must be a list"):
        Slurm(srun="--mpi=none")
    with pytest.raises(UserError, match=r"executor.timeouts must be a whole number of at least 0"):
        Slurm(timeouts=-1)


def test_trials_and_final_runs_are_jobs(fake_jobs, tmp_store, monkeypatch):
    from normbench.store.tuning import tuning_of
    from normbench.sweep.sweep import sweep
    from normbench.sweep.tune import TuneOptions

    # Check that trials are recorded when final runs start, not at the end of the sweep.
    monkeypatch.setattr("normbench.sweep.tuned_phases.name_trials", lambda *arguments: None)
    overrides = ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4",
                 "batch=16", "epochs=1", "norm=bn", "seed=0,1", f"store={tmp_store}",
                 "executor=slurm", "executor.cluster=local"]  # fmt: skip
    tune = TuneOptions(["optimizer.lr=0.1,0.2"])
    result = sweep(overrides, ["normbench", "sweep"], tune=tune)
    assert result.exit_code == 0
    store = Store(tmp_store)
    assert Counter(run.status for run in store.runs()) == {"finished": 4}
    (cell,) = tuning_of(store).cells
    for name in cell.final:
        assert store.run(name).meta["tuned"]["trials"] == [trial.run for trial in cell.trials]
