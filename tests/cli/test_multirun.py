"""``normbench run --multirun``: Hydra's launchers train runs into the store."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

import pytest

from normbench.cli import main
from normbench.store.store import Store

SMALL = ("dataset=digits", "dataset.train_size=160", "arch=mlp_sigmoid", "epochs=1")


@pytest.fixture
def hydra_logging(monkeypatch):
    """Restore the logging that Hydra reconfigures, and keep pytest's files open.

    Hydra's setup closes every handler. The handler of absl, which Keras imports, then closes its
    stream unless that is the current ``sys.stderr``; here it may be pytest's own.
    """
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def protect() -> None:
        absl = sys.modules.get("absl.logging")
        if absl is not None:
            monkeypatch.setattr(absl.get_absl_handler().python_handler, "stream", sys.stderr)

    yield protect
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@pytest.fixture
def multirun(hydra_logging, tmp_store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str) -> int:
        hydra_logging()
        return main(["run", "--multirun", *SMALL, f"store={tmp_store}", *overrides])

    return call


def trained_runs(store):
    return {run.name.rpartition("-")[0]: run.status for run in Store(store).runs()}


def test_every_job_becomes_a_run_in_the_store(multirun, tmp_store, capfd):
    assert multirun("norm=bn,ln", "batch=16") == 0
    names = {f"digits-mlp_sigmoid-{norm}-b16-s0" for norm in ("bn", "ln")}
    assert trained_runs(tmp_store) == dict.fromkeys(names, "finished")
    assert Store(tmp_store).foreign() == []
    one = Store(tmp_store).find("digits-mlp_sigmoid-bn-b16")
    assert one.meta["command"][:2] == ["normbench", "run"]
    assert {"norm=bn", "batch=16"} <= set(one.meta["command"])
    capfd.readouterr()
    assert multirun("norm=bn,ln", "batch=16") == 0
    assert capfd.readouterr().out.count("nothing to train") == 2


def test_other_jobs_run_when_one_is_refused(multirun, tmp_store, capfd):
    assert multirun("norm=bn", "batch=161,32", "seed=0") == 2
    assert trained_runs(tmp_store) == {"digits-mlp_sigmoid-bn-b32-s0": "finished"}
    assert "batch=161 is larger than the training set" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["norm=bn,lm"], "unknown norm 'lm'"),
        (["norm=gn", "norm.group=4,8"], "did you mean 'norm.groups'?"),
        (["+experiment=quickstart"], "is for sweeps: normbench sweep takes it"),
        (["executor=local"], "is for sweeps: normbench sweep takes it"),
        (["norm=bn,ln", "hydra/launcher=nobody"], "Could not find 'hydra/launcher/nobody'"),
        (["norm=bn,ln", "--resume"], "--resume is for one run, --multirun for several"),
    ],
)
def test_user_errors_are_one_line_before_any_job_starts(
    multirun, tmp_store, capfd, overrides, says
):
    assert multirun(*overrides) == 2
    error = capfd.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert trained_runs(tmp_store) == {}


def test_user_config_groups_are_found(multirun, tmp_store, tmp_path):
    folder = tmp_path / "own" / "norm"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults:\n  - ln\n  - _self_\nname: mine\nepsilon: 0.5\n")
    assert multirun("norm=mine,none", "batch=32", "--config-dir", str(folder.parent)) == 0
    assert set(trained_runs(tmp_store)) == {
        f"digits-mlp_sigmoid-{n}-b32-s0" for n in ("mine", "none")
    }


@pytest.mark.skipif(
    find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed",
)
@pytest.mark.slow  # two further processes start TensorFlow
def test_joblib_launcher_runs_the_jobs(multirun, tmp_store):
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert multirun("norm=bn,ln", "batch=32", *joblib) == 0
    assert trained_runs(tmp_store) == {
        f"digits-mlp_sigmoid-{n}-b32-s0": "finished" for n in ("bn", "ln")
    }
