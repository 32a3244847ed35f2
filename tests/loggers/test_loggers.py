"""Rows reach TensorBoard, MLflow and W&B exactly once, even if a run is interrupted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

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
    """Train an epoch, stop as if by Ctrl-C, and resume; return the run."""

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


@pytest.fixture
def wandb():
    return pytest.importorskip("wandb", reason="W&B is missing: pip install 'normbench[wandb]'")


def test_tensorboard_shows_every_epoch_once(tensorboard, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_in_two_sessions(config(tmp_path, "logger=tensorboard"))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    rows = run.metrics()
    assert len(rows) == EPOCHS
    for tag, key in (("loss/train", "train_loss"), ("acc/val", "val_acc"), ("lr", "lr")):
        scalars = events.Scalars(tag)
        assert [event.step for event in scalars] == [row["step"] for row in rows]
        for event, row in zip(scalars, rows, strict=True):
            assert math.isclose(event.value, row[key], rel_tol=1e-6)
    (last,) = events.Scalars("acc/test")
    assert math.isclose(last.value, run.summary["test_acc"], rel_tol=1e-6)


def test_hparams_page_of_tensorboard_compares_runs(tensorboard, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    settings = config(tmp_path, "logger=tensorboard", "label=x")
    run = train_in_two_sessions(settings)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    content = {
        tag: events.SummaryMetadata(tag).plugin_data.content
        for tag in (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    }
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == run.name
    assert start.hparams["norm.name"].string_value == "bn"
    assert start.hparams["batch"].number_value == 16
    assert start.hparams["norm.center"].bool_value is True
    assert start.hparams["arch.units"].number_value == 4
    assert not {"store", "label", "norm._target_"} & set(start.hparams)
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_tensorboard_logger_works_without_tensorflow(tensorboard, tmp_path):
    program = f"""
import sys
from types import SimpleNamespace
from pathlib import Path
sys.modules["tensorflow"] = None  # as where it is not installed
from normbench.config import compose
from normbench.loggers.tensorboard import TensorBoard
logger = TensorBoard()
run = SimpleNamespace(path=Path({str(tmp_path)!r}), name="r")
row = {{"step": 1, "epoch": 1, "time": "2026-01-01T00:00:00Z", "train_loss": 0.5}}
logger.start(run, compose(["dataset=digits"]), [row])
logger.end({{"status": "finished", "steps": 1, "test_acc": 0.5}})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"_hparams_/session_end_info" in file.read_bytes()


def records_of_wandb(folder):
    """Return the content of a W&B file by type of record."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (file,) = folder.glob("run-*.wandb")
    reader, records = DataStore(), {}
    reader.open_for_scan(str(file))
    while (data := reader.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        records.setdefault(kind, []).append(getattr(record, kind))
    return records


def test_wandb_has_one_run_with_every_epoch_once(wandb, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    run = train_in_two_sessions(
        config(tmp_path / "runs", "logger=wandb", "logger.wandb.mode=offline")
    )
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    records = records_of_wandb(folder)
    (header,) = records["run"]
    assert (header.run_id, header.display_name, header.project) == (run.name, run.name, "normbench")
    assert header.run_group == "digits-mlp_sigmoid-bn-b16"
    values = {item.key: json.loads(item.value_json) for item in header.config.update}
    assert values["batch"] == 16
    assert values["norm"]["name"] == "bn"
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in records["history"]
    ]
    assert [(row["_step"], row["val_acc"]) for row in rows] == [
        (row["step"], row["val_acc"]) for row in run.metrics()
    ]
    assert [end.exit_code for end in records["exit"]] == [0]
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records["summary"] for item in record.update
    }  # fmt: skip
    assert summary["test_acc"] == run.summary["test_acc"]
    assert summary["status"] == "finished"
    assert not list(home.rglob("*"))


def no_network(*arguments, **options):
    raise AssertionError("a network call")


def test_wandb_writes_to_the_configured_path(wandb, tmp_path):
    settings = config(tmp_path / "runs", "logger=wandb", "logger.wandb.mode=offline",
                      f"logger.wandb.path={tmp_path / 'out'}", "epochs=1")  # fmt: skip
    run = train(settings).run
    assert not (run.path / "wandb").exists()
    (folder,) = (tmp_path / "out" / "wandb").glob(f"offline-run-*-{run.name}")
    assert records_of_wandb(folder)["history"]


def test_wandb_mistakes_are_refused(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.api", SimpleNamespace(api_key=None))
    with pytest.raises(UserError, match="nobody is logged in to W&B: run `wandb login`"):
        compose_and_make("logger=wandb")
    with pytest.raises(UserError, match=r"unknown logger.wandb.mode 'ofline': did you mean 'off"):
        compose_and_make("logger=wandb", "logger.wandb.mode=ofline")
    with pytest.raises(UserError, match=r"logger.wandb.project must be a non-empty string, got ''"):
        compose_and_make("logger=wandb", "logger.wandb.project=''")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'normbench\[wandb\]'"):
        compose_and_make("logger=wandb", "logger.wandb.mode=offline")


def test_mlflow_has_one_run_with_every_epoch_once(mlflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train_in_two_sessions(config(tmp_path / "runs", "logger=mlflow"))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("normbench")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == run.name
    assert logged.info.status == "FINISHED"
    assert logged.data.params["batch"] == str(config("x").batch)
    assert logged.data.params["norm.name"] == "bn"
    history = client.get_metric_history(logged.info.run_id, "val_acc")
    assert [(metric.step, metric.value) for metric in history] == [
        (row["step"], row["val_acc"]) for row in run.metrics()
    ]
    assert logged.data.metrics["test_acc"] == run.summary["test_acc"]


def test_loggers_change_neither_weights_nor_signature(tensorboard, tmp_path):
    plain = config(tmp_path / "plain")
    logged = config(tmp_path / "logged", "logger=tensorboard")
    assert plain.signature == logged.signature
    one, other = (train(settings).summary["weights_sha256"] for settings in (plain, logged))
    assert one == other


def test_failing_logger_is_disabled_and_the_run_continues(tmp_path, monkeypatch):
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
    assert "logger=broken failed and is disabled: OSError: the server is down" in log


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


def test_numbers_keeps_only_measured_values():
    row = {"loss": 0.5, "epoch": 3, "time": "now", "val_acc": None, "trained": True}
    assert numbers(row) == {"loss": 0.5, "epoch": 3.0}
