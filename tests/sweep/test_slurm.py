"""The Slurm executor: on submitit's own processes here; tests/slurm has a real Slurm."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from normbench.errors import UserError
from normbench.store import Store

pytest.importorskip("submitit", reason="submitit is missing: pip install 'normbench[slurm]'")

from normbench.sweep.slurm import Slurm


@pytest.fixture
def fake_jobs(monkeypatch, faults):
    """Jobs are processes of this interpreter; they take the fake engine by a sitecustomize."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here / 'fakeraysite'}:{here.parents[1]}")
    monkeypatch.setenv("FAKE_ENGINE", "1")
    return faults


def test_jobs_end_as_they_end(grid, fake_jobs, carry_out, tmp_store):
    configs = grid("seed=range(0,3)")
    fake_jobs(configs[0].run_name, "raise")
    fake_jobs(configs[1].run_name, "kill", 9)
    seen = carry_out(Slurm(cluster="local"), configs)
    assert Counter(each.result for each in seen.endings.values()) == {"trained": 1, "failed": 2}
    assert seen.endings[configs[0].run_name].error == "RuntimeError: something broke"
    assert seen.endings[configs[1].run_name].cause == "died"
    store = Store(tmp_store)
    assert store.run(configs[1]).status == "failed"
    assert store.run(configs[2]).status == "finished"


def test_parameters_reach_submitit_by_slurms_names():
    parameters = Slurm(partition="gpu", gpus_per_run=2, memory_gb=16, minutes=5)._parameters
    assert parameters["slurm_partition"] == "gpu"
    assert parameters["gpus_per_node"] == 2
    assert parameters["mem_gb"] == 16
    assert parameters["timeout_min"] == 5


def test_options_are_checked():
    with pytest.raises(UserError, match=r"unknown executor.cluster 'slum': did you mean 'slurm'"):
        Slurm(cluster="slum")
    with pytest.raises(UserError, match="setup must be a list"):
        Slurm(setup="module load cuda")
