"""A store written by an older version: current commands read it and show the recorded numbers.

``written_by_2e78b7c`` is the store of one sweep, trained at commit 2e78b7c by::

    normbench sweep arch=resnet8 arch.width=8 dataset=digits dataset.train_size=160 epochs=2
        norm=bn,gn_ws seed=0,1 batch=16 probe=batch_dependence executor=inline store=old

The sweep recorded a neutral host name. Removed afterwards: the lock files, the best checkpoints,
and every last checkpoint except that of norm=bn seed=0.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

from normbench.cli import main

WRITTEN = Path(__file__).with_name("written_by_2e78b7c")
ACCURACIES = {  # test_acc in summary.json
    "digits-resnet8-bn-b16-s0-756e7836": 0.5083333333333333,
    "digits-resnet8-bn-b16-s1-a86a9a45": 0.375,
    "digits-resnet8-gn_ws-b16-s0-db44ca14": 0.4361111111111111,
    "digits-resnet8-gn_ws-b16-s1-a3b12282": 0.38333333333333336,
}
WITH_CHECKPOINT = "digits-resnet8-bn-b16-s0-756e7836"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the older store, where commands take locks and add diagnoses but change no file."""
    copy = shutil.copytree(WRITTEN, tmp_path_factory.mktemp("older") / "runs")
    yield copy
    for path in (path for path in WRITTEN.rglob("*") if path.is_file()):
        assert (copy / path.relative_to(WRITTEN)).read_bytes() == path.read_bytes()


def test_runs_are_listed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--store", str(store)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["test_acc"] for name, row in rows.items()} == ACCURACIES
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert not any(row["problem"] for row in rows.values())


def test_run_is_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", WITH_CHECKPOINT, "--store", str(store)]) == 0
    page = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in page.splitlines()]
    for line in (
        "test_acc 50.83%",
        "train_loss 1.7982",
        "parameters 19,810",
        "2 8.52e-05 1.7982 57.50% 1.9209 47.00% 1,616 0.11 s",  # the last epoch
        "commit not a git checkout",
        "last after epoch 2, 174.1 KiB",  # the checkpoint
    ):
        assert line in lines


def test_sweep_is_complete(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sweep's record is read, and its configs still have the signatures of the runs."""
    assert main(["sweep", "status", "--store", str(store)]) == 0
    status = capsys.readouterr().out
    assert "complete" in status
    assert "4 runs: 4 finished" in status
    command = json.loads(next(store.glob("sweeps/*/sweep.json")).read_text())["command"]
    assert main([*command[1:-1], f"store={store}", "--dry-run"]) == 0
    assert "4 runs: 4 skipped" in capsys.readouterr().out


def test_runs_are_reported(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normbench.report.report.draw", lambda *_: [])  # figures take long
    out = tmp_path / "report"
    assert main(["report", str(store), "--out", str(out)]) == 0
    assert "4 complete runs have no checksums" in capsys.readouterr().err
    with (out / "tables" / "test_acc.csv").open() as file:
        means = {row["norm"]: float(row["mean"]) for row in csv.DictReader(file)}
    bn_0, bn_1, gn_ws_0, gn_ws_1 = ACCURACIES.values()
    assert means == {
        "bn": pytest.approx((bn_0 + bn_1) / 2),
        "gn_ws": pytest.approx((gn_ws_0 + gn_ws_1) / 2),
    }


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="recorded by TensorFlow")
def test_checkpoint_is_diagnosed(store: Path) -> None:
    """The checkpoint's weights give the values that the probe recorded inside the run."""
    command = ["diagnose", WITH_CHECKPOINT, "--probe", "batch_dependence", "--again"]
    assert main([*command, "--store", str(store)]) == 0
    folder = store / WITH_CHECKPOINT
    diagnosis = json.loads((folder / "diagnosis.jsonl").read_text())
    assert (diagnosis["checkpoint"], diagnosis["epoch"], diagnosis["step"]) == ("last", 2, 20)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    prefix = "probe/batch_dependence/"
    recorded = {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)}
    assert len(recorded) == 18
    # Other processors round differently: an accuracy may differ by an image or two.
    assert diagnosis["values"] == pytest.approx(recorded, rel=1e-3, abs=0.011)
