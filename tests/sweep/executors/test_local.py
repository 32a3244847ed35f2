"""The pool of worker processes: real processes and pipes, the fake engine."""

from __future__ import annotations

import os
import signal
from collections import Counter
from itertools import pairwise

import pytest

from normbench.engine import threads
from normbench.errors import UserError
from normbench.store.store import Store
from normbench.sweep.executors import pool
from normbench.sweep.executors.base import Stop
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.slots import Gpu
from tests.sweep.conftest import RecordingObserver


def on_cpu(**options):
    return Local(list_gpus=list, **options)


def statuses(store):
    return Counter(run.status for run in Store(store).runs())


def test_every_job_runs_once_on_reused_workers(grid, faults, run_on, tmp_store):
    observer = run_on(on_cpu(workers=2), grid("seed=range(0,6)"))
    assert Counter(result.result for result in observer.results.values()) == {"trained": 6}
    assert len(observer.ends) == 6
    assert {where for _, where in observer.starts} == {"cpu 0", "cpu 1"}
    assert observer.most_at_once == 2
    assert statuses(tmp_store) == {"finished": 6}
    epochs = (faults.folder / "epochs.log").read_text().split("\n")[:-1]
    assert len(epochs) == 6 * 3
    assert len({line.split()[2] for line in epochs}) == 2  # two processes in all
    assert {facts["epoch"] for facts in observer.facts} == {0, 1, 2, 3}
    assert all(result.seconds > 0 for result in observer.results.values())


def test_worker_is_pinned_to_its_share_of_the_cores(grid, faults, run_on, monkeypatch):
    available = threads.core_ids()
    executor = on_cpu(workers=2)
    executor.allocate(2)
    shares = [slot.cores for slot in executor._slots]
    assert sorted(core for share in shares for core in share) == available or len(available) == 1
    assert all(slot.environment["CUDA_VISIBLE_DEVICES"] == "-1" for slot in executor._slots)


def test_output_of_libraries_goes_to_the_log_not_the_pipe(grid, faults, run_on, tmp_path):
    (config,) = grid()
    faults(config.run_name, "print")
    observer = run_on(on_cpu(), [config])
    assert observer.results[config.run_name].result == "trained"
    log = (tmp_path / "worker-cpu0.log").read_text()
    assert "a library prints to standard output" in log
    assert "and so does native code" in log


def test_exception_fails_only_its_own_run(grid, faults, run_on, tmp_store):
    configs = grid("seed=range(0,4)")
    faults(configs[1].run_name, "raise")
    observer = run_on(on_cpu(workers=2), configs)
    failed = observer.results[configs[1].run_name]
    assert (failed.result, failed.cause, failed.tries) == ("failed", "error", 1)
    assert failed.error == "RuntimeError: something broke in two lines"
    assert any("in two lines" in line for line in failed.log)
    assert statuses(tmp_store) == {"finished": 3, "failed": 1}


@pytest.mark.parametrize(
    ("kind", "how"),
    [("abort", "SIGABRT"), ("kill", "SIGKILL")],
)
def test_run_whose_worker_dies_resumes_in_another_worker(
    grid, faults, run_on, tmp_store, kind, how
):
    configs = grid("seed=range(0,3)")
    faults(configs[0].run_name, kind)
    observer = run_on(on_cpu(workers=2), configs)
    assert {result.result for result in observer.results.values()} == {"trained"}
    assert observer.results[configs[0].run_name].tries == 2
    assert len(observer.retries) == 1
    assert how in observer.retries[0]
    sessions = Store(tmp_store).run(configs[0]).meta["sessions"]
    assert [session["from_epoch"] for session in sessions] == [0, 1]


def test_run_that_kills_every_worker_fails(grid, faults, run_on, tmp_store):
    configs = grid("seed=range(0,3)")
    name = configs[0].run_name
    faults(name, "abort", 9)
    observer = run_on(on_cpu(workers=1), configs)
    failed = observer.results[name]
    assert (failed.result, failed.cause, failed.tries) == ("failed", "died", 2)
    assert failed.error == "its worker was killed by SIGABRT"
    assert any("F0000 xla: a check failed" in line for line in failed.log)
    run = Store(tmp_store).run(name)
    assert run.status == "failed"
    assert "SIGABRT" in run.meta["error"]["message"]
    assert run.last_metrics()["epoch"] == 1
    assert statuses(tmp_store) == {"finished": 2, "failed": 1}


def test_run_that_ends_its_worker_before_writing_fails_without_a_folder(
    grid, faults, run_on, tmp_store
):
    (config,) = grid()
    faults(config.run_name, "exit", 9)
    observer = run_on(on_cpu(retries=0), [config])
    assert observer.results[config.run_name].error == "its worker ended with exit status 3"
    assert statuses(tmp_store) == {}


def test_worker_survives_a_refused_run(grid, faults, run_on):
    configs = grid("seed=range(0,3)")
    faults(configs[0].run_name, "refuse")
    observer = run_on(on_cpu(workers=1), configs)
    assert observer.results[configs[0].run_name].cause == "refused"
    lines = (faults.folder / "epochs.log").read_text().splitlines()
    assert len({line.split()[2] for line in lines}) == 1


def test_out_of_memory_reduces_concurrency_and_retries(grid, faults, run_on):
    configs = grid("seed=range(0,5)")
    faults(configs[0].run_name, "memory")
    observer = run_on(on_cpu(workers=2), configs)
    assert {result.result for result in observer.results.values()} == {"trained"}
    assert observer.retries == ["out of memory on cpu, which now takes 1 run at a time"]


def test_out_of_memory_twice_fails(grid, faults, run_on):
    configs = grid("seed=range(0,2)")
    faults(configs[0].run_name, "memory", 9)
    observer = run_on(on_cpu(workers=1), configs)
    ending = observer.results[configs[0].run_name]
    assert (ending.result, ending.cause, ending.tries) == ("failed", "memory", 2)
    assert observer.results[configs[1].run_name].result == "trained"


def test_full_disk_stops_new_runs(grid, faults, run_on):
    configs = grid("seed=range(0,4)")
    faults(configs[0].run_name, "disk")
    observer = run_on(on_cpu(workers=1), configs)
    assert list(observer.results) == [configs[0].run_name]
    assert observer.results[configs[0].run_name].cause == "disk"
    assert observer.notes == ["the disk is full: no more runs are started"]


class StopAfterFirstEpochs(RecordingObserver):
    """Requests a stop once two runs have completed an epoch."""

    def __init__(self, stop, requests):
        super().__init__()
        self.stop, self.requests = stop, requests
        self.going = set()

    def progress(self, cell, facts):
        super().progress(cell, facts)
        if facts["epoch"] >= 1:
            self.going.add(cell.name)
        if len(self.going) == 2 and not self.stop.requests:
            self.stop.requests = self.requests


@pytest.mark.parametrize("requests", [1, 2])
def test_stopped_runs_can_be_resumed(grid, faults, run_on, tmp_store, monkeypatch, requests):
    configs = grid("seed=range(0,4)", "epochs=12")
    stop = Stop()
    # Slow steps: no run can end while the other run's worker is still starting.
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    observer = run_on(on_cpu(workers=2), configs, StopAfterFirstEpochs(stop, requests), stop)
    assert {result.result for result in observer.results.values()} == {"interrupted"}
    assert len(observer.results) == 2
    assert statuses(tmp_store) == {"interrupted": 2}
    for run in Store(tmp_store).runs():
        _, info = run.load_checkpoint()
        assert info["epoch"] >= 1
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    again = run_on(on_cpu(workers=2), configs)
    assert {result.result for result in again.results.values()} == {"trained"}
    alone = Store(tmp_store.parent / "alone")
    tmp_store.rename(alone.root)
    run_on(on_cpu(workers=2), configs)
    for run in Store(tmp_store).runs():  # the same numbers as without the stop
        assert run.summary["weights_sha256"] == alone.run(run.name).summary["weights_sha256"]


def test_interrupted_worker_is_replaced(grid, faults, run_on):
    (config,) = grid("epochs=20")

    class Interrupting(RecordingObserver):
        def progress(self, cell, facts):
            super().progress(cell, facts)
            if facts["epoch"] == 2 and not self.retries:
                os.kill(executor._pool["cpu 0"].pid, signal.SIGINT)

    executor = on_cpu()
    observer = run_on(executor, [config], Interrupting())
    assert observer.results[config.run_name].result == "trained"
    assert observer.retries == ["its worker was interrupted"]


def test_worker_writes_a_checkpoint_and_ends_when_its_sweep_dies(grid, faults, tmp_store):
    from normbench.sweep.executors.pool import WorkerProcess
    from normbench.sweep.executors.slots import Slot

    (config,) = grid("epochs=500")
    worker = WorkerProcess(Slot("cpu 0", "cpu"))
    worker.send({"do": "train", "config": config.to_dict(), "store": str(tmp_store),
                 "command": [], "replace_damaged": False, "may_split": True})  # fmt: skip
    while not any(m.get("facts", {}).get("epoch", 0) > 1 for m in worker.read() or []):
        pass
    worker.close()  # as the kernel does when the sweep dies: close the other ends of the pipes
    run = Store(tmp_store).run(config)
    assert run.status == "interrupted"
    assert run.meta["status"] == "interrupted"  # recorded by the worker itself


def test_runs_of_the_same_program_share_a_worker(grid, faults, run_on):
    configs = grid("seed=range(0,3)", "norm=bn,gn", "norm.epsilon=0.001")  # seeds vary slowest
    observer = run_on(on_cpu(workers=2), configs)
    by_worker: dict[str, list[str]] = {}
    for name, where in observer.starts:
        by_worker.setdefault(where, []).append(name.split("-")[2])
    for norms in by_worker.values():  # at most one change, when a worker's own queue is empty
        assert sum(one != other for one, other in pairwise(norms)) <= 1
    assert {norms[0] for norms in by_worker.values()} == {"bn", "gn"}


def test_check_reports_refused_configs(grid, faults, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    configs = grid("seed=range(0,3)")
    with on_cpu(workers=2) as executor:
        executor.allocate(3)
        assert executor.check(configs) == ["", "seed 1 is refused", ""]


def test_gpus_get_one_run_each_and_more_if_memory_allows(grid, faults, run_on):
    gpus = [Gpu("0", 40 << 30), Gpu("3", 5 << 30)]
    configs = grid("seed=range(0,8)")
    most = 9 if threads.cores() >= 4 else None
    executor = Local(list_gpus=lambda: gpus, workers=most)
    observer = run_on(executor, configs)
    assert {result.result for result in observer.results.values()} == {"trained"}
    assert {"gpu 0", "gpu 3"} <= {where for _, where in observer.starts}
    assert not any(where.startswith("gpu 3.") for _, where in observer.starts)  # 4 GiB a run
    assert observer.notes[0].startswith("about 4.0 GiB per run")


def test_out_of_memory_on_a_gpu_reduces_its_runs_by_one(grid, faults, run_on):
    configs = grid("seed=range(0,6)")
    faults(configs[0].run_name, "gpu-memory")
    executor = Local(list_gpus=lambda: [Gpu("0", None)], jobs_per_gpu=3)
    observer = run_on(executor, configs)
    assert {result.result for result in observer.results.values()} == {"trained"}
    assert observer.retries == ["out of memory on gpu 0, which now takes 2 runs at a time"]


def test_batch_is_split_only_after_fewer_runs_did_not_help(grid, faults, run_on, monkeypatch):
    monkeypatch.setenv("FAKE_ROOM", "8")
    configs = grid("batch=16", "accumulate=auto,1", "seed=0")
    executor = Local(list_gpus=lambda: [Gpu("0", None)], jobs_per_gpu=2)
    observer = run_on(executor, configs)
    auto, unsplit = configs
    assert sorted(observer.retries) == [
        "out of memory on gpu 0, which now takes 1 run at a time",
        "out of memory on gpu 0, which now takes 1 run at a time",
    ]
    assert observer.results[unsplit.run_name].cause == "memory"
    assert observer.results[auto.run_name].result == "trained"
    run = Store(auto.store).run(auto)
    assert run.summary["micro_batches"] == 2
    assert run.meta["micro_batches"] == [{"epoch": 0, "count": 2}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "executor.workers must be a whole number of at least 1 or null, got 0"),
        ({"gpus": -1}, "executor.gpus"),
        ({"jobs_per_gpu": "two"}, "executor.jobs_per_gpu"),
        ({"retries": None}, "executor.retries must be a whole number of at least 0, got None"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        on_cpu(**options)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_check_reports_how_its_process_died(grid, monkeypatch, code, how):
    monkeypatch.setattr(pool, "WORKER", ["-c", code])
    with on_cpu(workers=1) as local:
        local.allocate(1)
        assert local.check(grid()) == [f"the process that built the network {how}"]
