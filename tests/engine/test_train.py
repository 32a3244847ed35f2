"""Complete runs: the files they write, how they resume after interrupts, and how they fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from normbench.engine import threads
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from normbench.errors import UserError
from normbench.store.store import RunLocked, Store
from tests.engine.tinyloop import TINY, without_times
from tests.marks import slow, slow_except
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


class Interrupting(Observer):
    """Presses Ctrl-C once ``step`` steps of ``epoch`` are done, or the epoch is complete."""

    def __init__(self, epoch, step=None):
        self.epoch, self.step = epoch, step

    def on_progress(self, epoch, step, *others):
        if self.step is not None and epoch == self.epoch and step >= self.step:
            self.epoch = None
            raise KeyboardInterrupt

    def on_epoch(self, row):
        if self.step is None and row["epoch"] == self.epoch:
            self.epoch = None
            raise KeyboardInterrupt


def test_run_writes_all_record_files(small):
    config = small("arch=resnet8", "arch.width=4")
    outcome = train(config)
    run = outcome.run
    assert outcome.trained
    assert run.name == config.run_name
    assert run.status == "finished"
    recorded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert recorded.pop("signature") == config.signature
    assert recorded.pop("schema") == 1
    assert recorded == config.to_dict()
    meta = run.meta
    assert meta["engine"] == {
        "backend": "tensorflow",
        "precision": "float32",
        "jit_compile": False,
        "deterministic": True,
        "threads": threads.available(),
        "shards": threads.shards(threads.available()),
        "onednn": {"0": False, "1": True}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS", "")),
    }
    assert meta["devices"] == ["/device:CPU:0"]
    assert meta["sessions"][0]["from_epoch"] == 0
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [10, 20]
    assert [row["images_seen"] for row in rows] == [160, 320]
    summary = run.summary
    assert summary["parameters"] == 5142  # by hand: 44 + 304 + 944 + 3,680 + 170
    assert summary["train_loss"] == rows[-1]["train_loss"]
    for key in ("train_acc", "val_acc", "test_acc", "best_val_test_acc"):
        assert 0 <= summary[key] <= 1
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert summary["wall_seconds"] >= summary["train_seconds"] > 0


def test_same_command_twice_trains_once(small, warm):
    config = small()
    first = train(config, warm=warm)
    written = (first.run.path / "summary.json").stat().st_mtime_ns
    second = train(config)
    assert not second.trained
    recorded = json.loads((first.run.path / "summary.json").read_text())
    assert recorded.pop("checksums")
    assert second.summary == recorded
    assert (first.run.path / "summary.json").stat().st_mtime_ns == written


def test_rerun_is_bit_identical(small, tmp_path):
    config = small("norm=bn_ws")
    one = train(config)
    two = train(config, Store(tmp_path / "other"))
    assert one.summary["weights_sha256"] == two.summary["weights_sha256"]
    assert without_times(one.run.metrics()) == without_times(two.run.metrics())


@pytest.mark.parametrize(
    ("norm", "where"),
    [
        slow("bn", (1, 1)),
        ("bn", (2, 4)),
        slow("gn", (2, 9)),
        slow("gn_ws", (2, 4)),
        ("gn_ws", (1, None)),
    ],
)
def test_interrupted_run_resumes_to_the_same_bits(small, tmp_path, norm, where, monkeypatch):
    # Report progress after every step, so that the interrupt falls inside the epoch.
    monkeypatch.setattr("normbench.engine.train.CHUNK_SECONDS", 1e-9)
    config = small(f"norm={norm}")
    warm = WarmState()
    whole = train(config, Store(tmp_path / "whole"), warm=warm)
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Interrupting(*where), warm=warm)
    run = Store(config.store).run(config)
    assert run.status == "interrupted"
    outcome = train(config)  # with a new loop, as in another process
    assert outcome.trained
    assert outcome.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert without_times(outcome.run.metrics()) == without_times(whole.run.metrics())
    assert without_times([outcome.summary]) == without_times([whole.summary])
    assert len(outcome.run.meta["sessions"]) == 2


def start(config, *more):
    command = [sys.executable, "-m", "normbench", "run"]
    dataset = config.to_dict()["dataset"]
    return subprocess.Popen(
        [
            *command,
            "dataset=digits",
            f"dataset.train_size={dataset['train_size']}",
            f"dataset.validation={dataset['validation']}",
            *TINY,
            f"norm={config.norm_name}",
            f"batch={config.batch}",
            f"epochs={config.epochs}",
            f"store={config.store}",
            *more,
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("norm", slow_except(["bn_ws"], ["bn_ws", "bn", "gn", "gn_ws"]))
def test_killed_run_resumes_to_the_same_bits(small, tmp_path, norm):
    groups = ["norm.groups=2"] if norm[0] == "g" else []
    config = small(f"norm={norm}", "epochs=60")
    run = Store(config.store).run(config)
    process = start(config, *groups)
    try:
        wait_until(lambda: process.poll() is not None or len(run.metrics()) >= 3, seconds=120)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert run.status == "interrupted"
    assert run.summary is None
    killed_at = run.metrics()[-1]["epoch"]
    assert 3 <= killed_at < 60
    warm = WarmState()
    outcome = train(config, warm=warm)
    assert outcome.run.meta["sessions"][1]["from_epoch"] >= killed_at - 1
    whole = train(config, Store(tmp_path / "whole"), warm=warm)
    assert outcome.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert without_times(outcome.run.metrics()) == without_times(whole.run.metrics())


def test_two_processes_never_train_the_same_run(small):
    config = small("norm=bn", "epochs=2000")
    run = Store(config.store).run(config)
    process = start(config)
    try:
        wait_until(lambda: process.poll() is not None or run.status == "running", seconds=120)
        with pytest.raises(RunLocked, match=rf"{run.name}.*{process.pid}"):
            train(config)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert run.status == "interrupted"


def test_divergence_is_recorded_as_a_result(small):
    config = small("norm=none", "optimizer.lr=1e6", "epochs=3")
    outcome = train(config)
    assert outcome.run.status == "diverged"
    summary = outcome.summary
    assert summary["diverged_epoch"] == 1
    assert summary["test_acc"] is None
    rows = outcome.run.metrics()
    assert len(rows) == 1
    assert rows[0]["val_acc"] is None
    assert rows[0]["step"] == summary["diverged_step"] - 1
    assert not train(config).trained


def test_failed_run_is_recorded_and_can_be_resumed(small, warm, monkeypatch):
    config = small()

    def broken(self, split):
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr("normbench.engine.loop_tensorflow.TensorFlowLoop.evaluate", broken)
        with pytest.raises(RuntimeError):
            train(config, warm=warm)
    run = Store(config.store).run(config)
    assert run.status == "failed"
    assert run.meta["error"] == {"type": "RuntimeError", "message": "the device is gone"}
    assert "the device is gone" in run.log_path.read_text()
    assert train(config, warm=warm).run.status == "finished"
    assert run.meta["error"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=161", "batch=161 is larger than the training set of digits"),
        ("norm.groups=3", "groups=3 does not divide the 4 channels"),
        ("arch.halvings=2", r"arch.halvings must be in 0\.\.1"),
        ("dataset.validation=5000", "validation"),
        ("optimizer.momentum=1", "optimizer.momentum must be in"),
        ("optimizer.lr=0", "optimizer.lr must be above 0"),
        ("schedule.warmup=1", "schedule.warmup"),
    ],
)
def test_refused_config_leaves_no_folder(small, override, message):
    config = small(override)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Store(config.store).run(config).path.exists()


def test_resume_refuses_a_run_that_does_not_exist(small):
    with pytest.raises(UserError, match="to resume"):
        train(small(), must_exist=True)


@pytest.mark.parametrize(
    "precision", slow_except(["mixed_float16"], ["mixed_bfloat16", "mixed_float16"])
)
def test_half_precision_learns_and_resumes_to_the_same_bits(small, tmp_path, precision):
    config = small(f"precision={precision}", "epochs=3")
    warm = WarmState()
    whole = train(config, Store(tmp_path / "whole"), warm=warm)
    assert whole.summary["train_loss"] < whole.run.metrics()[0]["train_loss"]
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Interrupting(2), warm=warm)
    assert train(config).summary["weights_sha256"] == whole.summary["weights_sha256"]


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_without_native_support_is_noted(small, native, monkeypatch):
    monkeypatch.setattr("normbench.engine.train.is_native", lambda precision: native)
    observer = Notes()
    outcome = train(small("precision=mixed_bfloat16", "epochs=1"), observer=observer)
    note = (
        "this processor has no instructions for precision=mixed_bfloat16: it may take ten times as "
        "long as float32"
    )
    assert observer.notes == ([] if native else [note])
    assert (note in (outcome.run.path / "log.txt").read_text()) is not native


def test_best_epoch_is_tested_in_addition_to_the_last(small, warm):
    config = small("epochs=6", "optimizer.lr=0.8", "schedule=constant")
    outcome = train(config, warm=warm)
    rows = outcome.run.metrics()
    best = int(np.argmax([row["val_acc"] for row in rows])) + 1
    assert outcome.summary["best_val_epoch"] == best
    assert outcome.summary["best_val_acc"] == rows[best - 1]["val_acc"]


@pytest.mark.slow  # test_backends_agree.py compares the backends more closely
def test_jax_gives_the_same_training_curve(small, tmp_path):
    """Same initial weights and order of images: losses are equal up to rounding."""
    pytest.importorskip("jax")
    config = small("norm=bn_ws")
    reference = train(config).run.metrics()
    jax = small("norm=bn_ws", "backend=jax", f"store={tmp_path / 'jax'}")
    process = start(jax, "backend=jax")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    rows = Store(jax.store).run(jax).metrics()
    # Twenty steps: rounding differs by 1e-7 per step, and accumulates.
    for key in ("train_loss", "val_loss", "grad_norm"):
        np.testing.assert_allclose(
            [row[key] for row in rows], [row[key] for row in reference], rtol=2e-3
        )


def test_precise_bn_evaluates_with_statistics_of_the_training_set(small, tmp_path):
    """The stored statistics of the first layer equal those of all images through its kernel."""
    config = small("norm=precise_bn", "epochs=1", "norm.unbiased=false")
    whole = train(config, Store(tmp_path / "whole"))
    arrays, _ = whole.run.load_checkpoint()
    weights = {n.split("/", 2)[2]: v for n, v in arrays.items() if n.startswith("model/")}

    from normbench.components import target
    from normbench.data.split import load

    source = target(config.dataset["_target_"])()
    data = load(source, 100, config.dataset["split_seed"], 160)
    scaled = (data.train.images / 255.0 - data.mean) / data.std
    kernel = weights["stage1_conv1/kernel"].astype(np.float64)
    padded = np.pad(scaled, ((0, 0), (1, 1), (1, 1), (0, 0)))
    outputs = sum(
        padded[:, i : i + 8, j : j + 8, :] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(
        weights["stage1_norm1/moving_mean"], outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        weights["stage1_norm1/moving_variance"], outputs.var((0, 1, 2)), rtol=1e-4
    )


def test_adaptive_clipping_trains_a_network_without_normalization(small):
    outcome = train(small("norm=none_scaled_ws", "optimizer.agc=0.01", "epochs=3"))
    rows = outcome.run.metrics()
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
