"""Sweeps on a real Slurm: an array over two nodes, a preemption, a failure, an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normbench.sweep.grid import expand

pytestmark = pytest.mark.slurm

CELLS = [
    "dataset=digits",
    "dataset.train_size=320",
    "arch=resnet8",
    "arch.width=8",
    "norm=bn,gn",
    "batch=16",
]


def _sweep(store: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "normbench", "sweep", *CELLS, *more, f"store={store}"]
    slurm = ["executor=slurm", "executor.at_a_time=2", "executor.minutes=10"]
    return subprocess.Popen(
        [*command, *slurm],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=store.parent,
    )


def _metas(store: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in store.glob("*/meta.json")}


def _epochs(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []  # none before the first epoch
    return [json.loads(row)["epoch"] for row in rows]


def _jobs() -> dict[str, str]:
    """Return the states of jobs by their IDs, such as ``5_0``."""
    command = ["squeue", "-h", "-r", "-o", "%i %T"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def _wait_for_two_epochs(store: Path, runs: int, seconds: float = 120) -> None:
    """Wait until ``runs`` runs have a second row, hence a checkpoint of the first epoch."""
    for _ in range(int(seconds * 5)):
        written = [path.read_text().count("\n") for path in store.glob("*/metrics.jsonl")]
        if sum(rows >= 2 for rows in written) >= runs:
            return
        time.sleep(0.2)
    pytest.fail(f"{runs} runs did not come to the end of two epochs")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # passed on to the jobs
    return tmp_path / "runs"


def test_array_trains_all_cells_on_both_nodes(slurm, store):
    sweep = _sweep(store, "seed=0,1", "epochs=2")
    output, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, output
    metas = _metas(store)
    assert len(metas) == 4
    assert {meta["status"] for meta in metas.values()} == {"finished"}
    log = (slurm / "slurmctld.log").read_text()
    assert "NodeList=one" in log
    assert "NodeList=two" in log
    again = _sweep(store, "seed=0,1", "epochs=2")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert "4 skipped" in output
    assert all(len(meta["sessions"]) == 1 for meta in _metas(store).values())


def test_preempted_job_is_requeued_and_resumes(slurm, store):
    sweep = _sweep(store, "seed=0", "epochs=100")
    try:
        _wait_for_two_epochs(store, runs=2)
        running = [job for job, state in _jobs().items() if state == "RUNNING"]
        # Slurm sends this signal before it preempts a job or a job's time is over. A requeued job
        # waits for about two minutes.
        subprocess.run(["scancel", "--signal=USR2", running[-1]], check=True)
        output, _ = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, output
    metas = _metas(store)
    assert {meta["status"] for meta in metas.values()} == {"finished"}
    preempted = [meta["sessions"] for meta in metas.values() if len(meta["sessions"]) > 1]
    assert len(preempted) == 1, output
    assert preempted[0][-1]["from_epoch"] >= 1, "it goes on, and does not begin again"
    for name in metas:
        assert _epochs(store / name) == list(range(1, 101)), "no epoch twice, none left out"


def test_job_killed_by_slurm_fails_alone(slurm, store):
    sweep = _sweep(store, "seed=0", "epochs=100")
    try:
        _wait_for_two_epochs(store, runs=1)
        victim = next(job for job, state in _jobs().items() if state == "RUNNING")
        subprocess.run(["scancel", "--signal=KILL", victim], check=True)
        output, _ = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert sweep.returncode == 1, output
    assert sorted(meta["status"] for meta in _metas(store).values()) == ["failed", "finished"]
    assert "Slurm" in output
    again = _sweep(store, "seed=0", "epochs=100", "--retry-failed")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert {meta["status"] for meta in _metas(store).values()} == {"finished"}


def test_ctrl_c_cancels_jobs_and_leaves_runs_resumable(slurm, store):
    sweep = _sweep(store, "seed=0", "epochs=200")
    try:
        _wait_for_two_epochs(store, runs=1)
        os.kill(sweep.pid, signal.SIGINT)
        output, _ = sweep.communicate(timeout=120)
    finally:
        sweep.kill()
    assert sweep.returncode == 130, output
    for _ in range(100):
        if "RUNNING" not in _jobs().values():
            break
        time.sleep(0.2)
    assert "RUNNING" not in _jobs().values()
    statuses = [meta["status"] for meta in _metas(store).values()]
    assert "interrupted" in statuses, "what ran has written its checkpoint"
    configs = expand([*CELLS, "seed=0", "epochs=200", f"store={store}"])
    assert set(statuses) <= {"interrupted"}
    for config in configs:
        run = store / config.run_name
        if run.exists():
            assert _epochs(run) == list(range(1, len(_epochs(run)) + 1))
            assert not (run / "summary.json").exists()
