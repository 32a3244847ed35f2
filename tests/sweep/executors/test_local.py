"""The pool of worker processes: real processes and pipes, an engine without Keras."""

from __future__ import annotations

import os
import signal
from collections import Counter
from itertools import pairwise

import pytest

from normbench.engine import threads
from normbench.errors import UserError
from normbench.store.store import Store
from normbench.sweep.executors import pool as workerprocess
from normbench.sweep.executors.base import Stop
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.slots import Gpu
from tests.sweep.conftest import Seen


def none():
    return []


def pool(**options):
    return Local(list_gpus=none, **options)


def statuses(store):
    return Counter(run.status for run in Store(store).runs())


def test_every_job_is_carried_out_once_by_workers_that_are_kept(grid, faults, carry_out, tmp_store):
    seen = carry_out(pool(workers=2), grid("seed=range(0,6)"))
    assert Counter(ending.result for ending in seen.endings.values()) == {"trained": 6}
    assert len(seen.ends) == 6
    assert {where for _, where in seen.begun} == {"cpu 0", "cpu 1"}
    assert seen.most == 2
    assert statuses(tmp_store) == {"finished": 6}
    epochs = (faults.folder / "epochs.log").read_text().split("\n")[:-1]
    assert len(epochs) == 6 * 3
    assert len({line.split()[2] for line in epochs}) == 2  # two processes in all
    assert {facts["epoch"] for facts in seen.facts} == {0, 1, 2, 3}
    assert all(ending.seconds > 0 for ending in seen.endings.values())


def test_a_worker_is_pinned_to_its_share_of_the_cores(grid, faults, carry_out, monkeypatch):
    available = threads.core_ids()
    slots = pool(workers=2)
    slots.place(2)
    shares = [slot.cores for slot in slots._slots]
    assert sorted(core for share in shares for core in share) == available or len(available) == 1
    assert all(slot.environment["CUDA_VISIBLE_DEVICES"] == "-1" for slot in slots._slots)


def test_what_a_library_prints_does_not_reach_the_pipe(grid, faults, carry_out, tmp_path):
    (config,) = grid()
    faults(config.run_name, "print")
    seen = carry_out(pool(), [config])
    assert seen.endings[config.run_name].result == "trained"
    log = (tmp_path / "worker-cpu0.log").read_text()
    assert "a library prints to standard output" in log
    assert "and so does native code" in log


def test_an_exception_ends_its_run_only(grid, faults, carry_out, tmp_store):
    configs = grid("seed=range(0,4)")
    faults(configs[1].run_name, "raise")
    seen = carry_out(pool(workers=2), configs)
    failed = seen.endings[configs[1].run_name]
    assert (failed.result, failed.cause, failed.tries) == ("failed", "error", 1)
    assert failed.error == "RuntimeError: something broke in two lines"
    assert any("in two lines" in line for line in failed.log)
    assert statuses(tmp_store) == {"finished": 3, "failed": 1}


@pytest.mark.parametrize(
    ("kind", "how"),
    [("abort", "SIGABRT"), ("kill", "SIGKILL")],
)
def test_a_run_whose_worker_dies_goes_on_in_another(grid, faults, carry_out, tmp_store, kind, how):
    configs = grid("seed=range(0,3)")
    faults(configs[0].run_name, kind)
    seen = carry_out(pool(workers=2), configs)
    assert {ending.result for ending in seen.endings.values()} == {"trained"}
    assert seen.endings[configs[0].run_name].tries == 2
    assert len(seen.agains) == 1
    assert how in seen.agains[0]
    sessions = Store(tmp_store).run(configs[0]).meta["sessions"]
    assert [each["from_epoch"] for each in sessions] == [0, 1]


def test_a_run_that_kills_every_worker_fails_and_stays_failed(grid, faults, carry_out, tmp_store):
    configs = grid("seed=range(0,3)")
    name = configs[0].run_name
    faults(name, "abort", 9)
    seen = carry_out(pool(workers=1), configs)
    failed = seen.endings[name]
    assert (failed.result, failed.cause, failed.tries) == ("failed", "died", 2)
    assert failed.error == "its worker was killed by SIGABRT"
    assert any("F0000 xla: a check failed" in line for line in failed.log)
    run = Store(tmp_store).run(name)
    assert run.status == "failed"
    assert "SIGABRT" in run.meta["error"]["message"]
    assert run.last_metrics()["epoch"] == 1
    assert statuses(tmp_store) == {"finished": 2, "failed": 1}


def test_a_run_that_ends_its_worker_before_it_has_a_folder(grid, faults, carry_out, tmp_store):
    (config,) = grid()
    faults(config.run_name, "exit", 9)
    seen = carry_out(pool(retries=0), [config])
    assert seen.endings[config.run_name].error == "its worker ended with exit status 3"
    assert statuses(tmp_store) == {}


def test_a_refused_run_keeps_its_worker(grid, faults, carry_out):
    configs = grid("seed=range(0,3)")
    faults(configs[0].run_name, "refuse")
    seen = carry_out(pool(workers=1), configs)
    assert seen.endings[configs[0].run_name].cause == "refused"
    lines = (faults.folder / "epochs.log").read_text().splitlines()
    assert len({line.split()[2] for line in lines}) == 1


def test_no_memory_means_fewer_runs_and_once_more(grid, faults, carry_out):
    configs = grid("seed=range(0,5)")
    faults(configs[0].run_name, "memory")
    seen = carry_out(pool(workers=2), configs)
    assert {ending.result for ending in seen.endings.values()} == {"trained"}
    assert seen.agains == ["out of memory on cpu, which has 1 run at a time from now on"]


def test_no_memory_twice_is_a_failure(grid, faults, carry_out):
    configs = grid("seed=range(0,2)")
    faults(configs[0].run_name, "memory", 9)
    seen = carry_out(pool(workers=1), configs)
    ending = seen.endings[configs[0].run_name]
    assert (ending.result, ending.cause, ending.tries) == ("failed", "memory", 2)
    assert seen.endings[configs[1].run_name].result == "trained"


def test_a_full_disk_lets_nothing_more_begin(grid, faults, carry_out):
    configs = grid("seed=range(0,4)")
    faults(configs[0].run_name, "disk")
    seen = carry_out(pool(workers=1), configs)
    assert list(seen.endings) == [configs[0].run_name]
    assert seen.endings[configs[0].run_name].cause == "disk"
    assert seen.notes == ["the disk is full: no further run is started"]


class StoppingAt(Seen):
    """Asks for a stop once two runs have completed an epoch."""

    def __init__(self, stop, requests):
        super().__init__()
        self.stop, self.requests = stop, requests
        self.going = set()

    def progress(self, job, facts):
        super().progress(job, facts)
        if facts["epoch"] >= 1:
            self.going.add(job.name)
        if len(self.going) == 2 and not self.stop.requests:
            self.stop.requests = self.requests


@pytest.mark.parametrize("requests", [1, 2])
def test_a_stop_leaves_everything_resumable(grid, faults, carry_out, tmp_store, requests):
    configs = grid("seed=range(0,4)", "epochs=100")
    stop = Stop()
    seen = carry_out(pool(workers=2), configs, StoppingAt(stop, requests), stop)
    assert {ending.result for ending in seen.endings.values()} == {"interrupted"}
    assert len(seen.endings) == 2
    assert statuses(tmp_store) == {"interrupted": 2}
    for run in Store(tmp_store).runs():
        _, info = run.load_checkpoint()
        assert info["epoch"] >= 1
    again = carry_out(pool(workers=2), configs)
    assert {ending.result for ending in again.endings.values()} == {"trained"}
    alone = Store(tmp_store.parent / "alone")
    tmp_store.rename(alone.root)
    carry_out(pool(workers=2), configs)
    for run in Store(tmp_store).runs():  # the same numbers as without the stop
        assert run.summary["weights_sha256"] == alone.run(run.name).summary["weights_sha256"]


def test_a_worker_that_somebody_interrupts_is_replaced(grid, faults, carry_out):
    (config,) = grid("epochs=20")

    class Interrupting(Seen):
        def progress(self, job, facts):
            super().progress(job, facts)
            if facts["epoch"] == 2 and not self.agains:
                os.kill(executor._workers["cpu 0"].pid, signal.SIGINT)

    executor = pool()
    seen = carry_out(executor, [config], Interrupting())
    assert seen.endings[config.run_name].result == "trained"
    assert seen.agains == ["its worker was interrupted"]


def test_a_worker_ends_with_a_checkpoint_when_its_sweep_is_gone(grid, faults, tmp_store):
    from normbench.sweep.executors.pool import WorkerProcess
    from normbench.sweep.executors.slots import Slot

    (config,) = grid("epochs=500")
    worker = WorkerProcess(Slot("cpu 0", "cpu"))
    worker.send({"do": "train", "config": config.to_dict(), "store": str(tmp_store),
                 "command": [], "replace_damaged": False, "may_split": True})  # fmt: skip
    while not any(m.get("facts", {}).get("epoch", 0) > 1 for m in worker.read() or []):
        pass
    worker.close()  # as the kernel does when the sweep dies: the pipes' other ends are gone
    run = Store(tmp_store).run(config)
    assert run.status == "interrupted"
    assert run.meta["status"] == "interrupted"  # it said so itself


def test_runs_of_one_program_stay_together(grid, faults, carry_out):
    configs = grid("seed=range(0,3)", "norm=bn,gn", "norm.epsilon=0.001")  # seeds vary slowest
    seen = carry_out(pool(workers=2), configs)
    by_worker: dict[str, list[str]] = {}
    for name, where in seen.begun:
        by_worker.setdefault(where, []).append(name.split("-")[2])
    for norms in by_worker.values():  # at most one change, where one worker ran out of its own
        assert sum(one != other for one, other in pairwise(norms)) <= 1
    assert {norms[0] for norms in by_worker.values()} == {"bn", "gn"}


def test_check_asks_each_worker_and_survives_its_death(grid, faults, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    configs = grid("seed=range(0,3)")
    with pool(workers=2) as executor:
        executor.place(3)
        assert executor.check(configs) == ["", "seed 1 is refused", ""]


def test_gpus_get_one_run_each_and_more_where_memory_allows(grid, faults, carry_out):
    gpus = [Gpu("0", 40 << 30), Gpu("3", 5 << 30)]
    configs = grid("seed=range(0,8)")
    most = 9 if threads.cores() >= 4 else None
    executor = Local(list_gpus=lambda: gpus, workers=most)
    seen = carry_out(executor, configs)
    assert {ending.result for ending in seen.endings.values()} == {"trained"}
    assert {"gpu 0", "gpu 3"} <= {where for _, where in seen.begun}
    assert not any(where.startswith("gpu 3.") for _, where in seen.begun)  # 4 GiB a run
    assert seen.notes[0].startswith("about 4.0 GiB per run")


def test_no_memory_on_a_gpu_takes_one_run_off_that_gpu(grid, faults, carry_out):
    configs = grid("seed=range(0,6)")
    faults(configs[0].run_name, "gpu-memory")
    executor = Local(list_gpus=lambda: [Gpu("0", None)], jobs_per_gpu=3)
    seen = carry_out(executor, configs)
    assert {ending.result for ending in seen.endings.values()} == {"trained"}
    assert seen.agains == ["out of memory on gpu 0, which has 2 runs at a time from now on"]


def test_a_batch_is_split_only_where_fewer_runs_did_not_help(grid, faults, carry_out, monkeypatch):
    monkeypatch.setenv("FAKE_ROOM", "8")
    configs = grid("batch=16", "accumulate=auto,1", "seed=0")
    executor = Local(list_gpus=lambda: [Gpu("0", None)], jobs_per_gpu=2)
    seen = carry_out(executor, configs)
    auto, whole = configs
    assert sorted(seen.agains) == [
        "out of memory on gpu 0, which has 1 run at a time from now on",
        "out of memory on gpu 0, which has 1 run at a time from now on",
    ]
    assert seen.endings[whole.run_name].cause == "memory"
    assert seen.endings[auto.run_name].result == "trained"
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
def test_values_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        pool(**options)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_check_whose_process_dies_says_how(grid, monkeypatch, code, how):
    monkeypatch.setattr(workerprocess, "WORKER", ["-c", code])
    with pool(workers=1) as local:
        local.place(1)
        assert local.check(grid()) == [f"the process that built the network {how}"]
