"""Rows reach TensorBoard and MLflow, each once, whatever happens to the run."""

from __future__ import annotations

import math

import pytest

from normbench.config import compose
from normbench.engine.observer import Logger, Observer, make_loggers, numbers
from normbench.engine.train import train
from normbench.errors import NormbenchError, UserError
from normbench.store.store import Store

EPOCHS = 3


def config(store, *overrides):
    return compose(
        [
            "dataset=digits",
            "dataset.train_size=160",
            "dataset.validation=100",
            "arch=mlp_sigmoid",
            "arch.units=4",
            "norm=bn",
            "batch=16",
            f"epochs={EPOCHS}",
            f"store={store}",
            *overrides,
        ]
    )


def train_in_two_sessions(settings):
    """Train an epoch, stop as by Ctrl-C, and go on; return the run."""

    class Stop(Observer):
        def on_epoch(self, row):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, observer=Stop())
    return train(settings).run


@pytest.fixture
def tensorboard():
    return pytest.importorskip(
        "tensorboard", reason="TensorBoard is missing: pip install 'normbench[tensorboard]'"
    )


@pytest.fixture
def mlflow():
    return pytest.importorskip(
        "mlflow", reason="MLflow is missing: pip install 'normbench[mlflow]'"
    )


def test_tensorboard_shows_every_epoch_once(tensorboard, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_in_two_sessions(config(tmp_path, "logger=tensorboard"))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    rows = run.metrics()
    assert len(rows) == EPOCHS
    for tag, key in (("loss/train", "train_loss"), ("acc/val", "val_acc"), ("lr", "lr")):
        seen = events.Scalars(tag)
        assert [each.step for each in seen] == [row["step"] for row in rows]
        for each, row in zip(seen, rows, strict=True):
            assert math.isclose(each.value, row[key], rel_tol=1e-6)
    (last,) = events.Scalars("acc/test")
    assert math.isclose(last.value, run.summary["test_acc"], rel_tol=1e-6)


def test_mlflow_has_one_run_with_every_epoch_once(mlflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train_in_two_sessions(config(tmp_path / "runs", "logger=mlflow"))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("normbench")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == run.name
    assert kept.info.status == "FINISHED"
    assert kept.data.params["batch"] == str(config("x").batch)
    assert kept.data.params["norm.name"] == "bn"
    history = client.get_metric_history(kept.info.run_id, "val_acc")
    assert [(each.step, each.value) for each in history] == [
        (row["step"], row["val_acc"]) for row in run.metrics()
    ]
    assert kept.data.metrics["test_acc"] == run.summary["test_acc"]


def test_loggers_change_no_number_and_no_signature(tensorboard, tmp_path):
    plain = config(tmp_path / "plain")
    logged = config(tmp_path / "logged", "logger=tensorboard")
    assert plain.signature == logged.signature
    one, other = (train(each).summary["weights_sha256"] for each in (plain, logged))
    assert one == other


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch):
    class Broken(Logger):
        name = "broken"
        calls = 0

        def start(self, run, config, rows):
            pass

        def row(self, row):
            self.calls += 1
            raise OSError("the server is down")

        def end(self, summary):
            raise AssertionError("it was left out")

    broken = Broken()
    monkeypatch.setattr("normbench.engine.train.make_loggers", lambda groups: [broken])
    outcome = train(config(tmp_path))
    assert outcome.summary["status"] == "finished"
    assert broken.calls == 1
    log = outcome.run.log_path.read_text()
    assert "logger=broken failed and is left out: OSError: the server is down" in log


def test_mistakes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="uri"):
        compose_and_make("logger=mlflow", "logger.mlflow.uri=''")
    with pytest.raises(UserError, match="tensorboard"):
        compose(["logger=tensorbord"])
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(NormbenchError, match=r"pip install 'normbench\[tensorboard\]'"):
        train(config(tmp_path / "runs", "logger=tensorboard"))
    assert not Store(tmp_path / "runs").runs()


def compose_and_make(*overrides):
    return make_loggers(compose(list(overrides)).logger)


def test_only_what_was_measured_is_a_number():
    row = {"loss": 0.5, "epoch": 3, "time": "now", "val_acc": None, "trained": True}
    assert numbers(row) == {"loss": 0.5, "epoch": 3.0}
