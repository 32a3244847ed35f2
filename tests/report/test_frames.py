"""Reading a store into frames."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.errors import NormbenchError
from normbench.report import load
from normbench.report.frames import config_columns
from normbench.store.store import Run


@pytest.fixture
def small(grid: Callable[..., Path], synth: SimpleNamespace) -> Path:
    return grid(norms=("bn", "gn_ws"), batches=(16, 64), seeds=2, epochs=5)


def test_one_row_per_run_and_one_row_per_epoch(small: Path) -> None:
    runs, curves = load(small)
    assert len(runs) == 8
    assert len(curves) == 40
    assert list(runs["name"]) == sorted(runs["name"])
    assert set(runs["norm"]) == {"bn", "gn_ws"}
    assert set(runs["norm.weight.name"]) == {"none", "ws"}
    assert runs["norm.groups"].dropna().unique() == [8]
    summary = json.loads((small / runs["name"][0] / "summary.json").read_text())
    assert runs["test_acc"][0] == summary["test_acc"]
    assert runs["test_err"][0] == pytest.approx(1 - summary["test_acc"])
    assert runs["gap"][0] == pytest.approx(summary["train_acc"] - summary["test_acc"])
    lines = (small / runs["name"][3] / "metrics.jsonl").read_text().splitlines()
    run_curves = curves[curves["run"] == runs["name"][3]]
    assert list(run_curves["val_loss"]) == [json.loads(line)["val_loss"] for line in lines]
    assert not any("_target_" in column for column in runs.columns)
    assert set(runs.attrs["config"]) >= {"norm", "batch", "seed", "optimizer.lr", "norm.groups"}
    assert set(runs.attrs["provenance"]) >= {"commit", "version.keras", "engine.threads"}


def test_runs_in_every_state_are_loaded_and_the_rest_is_named(mixed_store: Path) -> None:
    frames = load(mixed_store)
    states = frames.runs["status"].value_counts().to_dict()
    assert states == {"finished": 57, "diverged": 3, "failed": 1, "interrupted": 2}
    reasons = {item.path.name: item.reason for item in frames.left_out}
    assert len(reasons) == 4
    assert "holiday-pictures" in reasons
    assert "notes.txt" in reasons
    assert sum("meta.json" in reason and "JSON" in reason for reason in reasons.values()) == 1
    assert all("\n" not in str(item) for item in frames.left_out)
    torn = frames.runs[(frames.runs["norm"] == "in") & (frames.runs["batch"] == 16)].iloc[0]
    assert torn["epochs_done"] == 5
    failed = frames.runs[frames.runs["status"] == "failed"].iloc[0]
    assert failed["error_type"] == "ResourceExhaustedError"


def change_meta(folder: Path, **changes: object) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_summary(folder: Path, **changes: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_lines(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def write_diagnosis(folder: Path, **changes: object) -> None:
    line = {"checkpoint": "last", "epoch": 5, "step": 9, "probe": "sharpness", "options": {}}
    line |= {"values": {"top": 1.0}, "time": "2026-11-01T10:00:00Z", "commit": None, **changes}
    (folder / "diagnosis.jsonl").write_text(json.dumps(line) + "\n")


def read_config(folder: Path) -> str:
    return (folder / "config.yaml").read_text()


DAMAGE = {
    "an accuracy below 0": (
        lambda f: change_summary(f, test_acc=-1),
        "summary.json: test_acc is -1",
    ),
    "an accuracy above 1": (lambda f: change_summary(f, test_acc=9.61), "summary.json: test_acc"),
    "no result": (lambda f: change_summary(f, test_acc=None), "summary.json: test_acc is None"),
    "a loss that is text": (lambda f: change_summary(f, val_loss="x"), "summary.json: val_loss"),
    "a time below 0": (
        lambda f: change_summary(f, train_seconds=-1.0),
        "summary.json: train_seconds",
    ),
    "a count below 0": (lambda f: change_summary(f, parameters=-4), "summary.json: parameters"),
    "more epochs than lines": (
        lambda f: change_summary(f, epochs=6),
        "metrics.jsonl: its last epoch",
    ),
    "an infinite loss": (
        lambda f: change_lines(f, lambda r: [r[0].replace('"lr": ', '"lr": 1e999, "x": '), *r[1:]]),
        "metrics.jsonl: line 1: lr is inf",
    ),
    "no first epoch": (lambda f: change_lines(f, lambda r: r[1:]), "line 1 has epoch 2, not 1"),
    "no third epoch": (lambda f: change_lines(f, lambda r: r[:2] + r[3:]), "line 3 has epoch 4"),
    "no last epoch": (
        lambda f: change_lines(f, lambda r: r[:-1]),
        "metrics.jsonl: its last epoch is 4",
    ),
    "an epoch twice": (lambda f: change_lines(f, lambda r: r[:3] + r[2:]), "line 4 has epoch 3"),
    "a broken line": (
        lambda f: change_lines(f, lambda r: [r[0][:30] + "\n", *r[1:]]),
        "line 1 is not",
    ),
    "an edited config": (
        lambda f: (f / "config.yaml").write_text(read_config(f).replace("\nseed: 0", "\nseed: 7")),
        "config.yaml: changed since the run began",
    ),
    "a foreign config": (
        lambda f: (f / "config.yaml").write_text(
            re.sub("signature: .+", "signature: 0badc0de", read_config(f))
        ),
        "config.yaml: its signature is '0badc0de'",
    ),
    "micro-batches that are text": (
        lambda f: change_meta(f, micro_batches="x"),
        "meta.json: micro_batches is 'x', not a list",
    ),
    "versions that are a list": (
        lambda f: change_meta(f, versions=[1]),
        "meta.json: versions is [1]",
    ),
    "a lone surrogate": (
        lambda f: change_meta(f, host="\ud800"),
        "meta.json: host is '\\ud800', not valid Unicode text",
    ),
    "measured values that are a list": (
        lambda f: write_diagnosis(f, values=[1.0]),
        "diagnosis.jsonl: line 1: values is [1.0], not a mapping",
    ),
    "a measured value that is text": (
        lambda f: write_diagnosis(f, values={"top": "x"}),
        "diagnosis.jsonl: line 1: values.top",
    ),
    "no probe": (
        lambda f: write_diagnosis(f, probe=None),
        "diagnosis.jsonl: line 1: probe is None",
    ),
    "deep nesting": (
        lambda f: (f / "meta.json").write_text('{"a": ' + "[" * 99_999),
        "meta.json: not JSON (nested too deeply)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_run_with_a_damaged_file_is_named_and_left_out(small: Path, kind: str) -> None:
    """Folders without checksums, as earlier versions wrote them: ranges and consistency decide."""
    damage, reason = DAMAGE[kind]
    folder = next(path for path in sorted(small.iterdir()) if "-s0-" in path.name)
    damage(folder)
    frames = load(small)
    assert folder.name not in set(frames.runs["name"])
    assert folder.name not in set(frames.curves["run"])
    assert len(frames.runs) == 7
    (item,) = frames.left_out
    assert item.path == folder
    assert reason in item.reason
    assert "\n" not in item.reason
    assert "Error" not in item.reason


def test_valid_diagnosis_leaves_nothing_out(small: Path) -> None:
    folder = next(path for path in sorted(small.iterdir()) if "-s0-" in path.name)
    write_diagnosis(folder)
    assert load(small).left_out == ()


def test_added_and_removed_runs_are_noticed(small: Path, synth: SimpleNamespace) -> None:
    names = list(load(small).runs["name"])
    synth.write_run(small, synth.config("ln", 32, 0, epochs=3))
    for path in sorted((small / names[0]).iterdir()):
        path.unlink()
    (small / names[0]).rmdir()
    frames = load(small)
    assert len(frames.runs) == 8
    assert names[0] not in set(frames.curves["run"])
    assert (frames.curves["run"].str.contains("-ln-")).sum() == 3


def test_missing_keys_have_defaults_and_init_is_shown_by_signature(
    tmp_store: Path, synth: SimpleNamespace
) -> None:
    starts = [{}, {"init": "runs/a-0123abcd"}, {"init": "other/b-0123abcd", "init_head": "new"}]
    for seed, start in enumerate(starts):
        synth.write_run(tmp_store, synth.config("bn", 16, seed, epochs=3, **start))
    runs = load(tmp_store).runs.sort_values("seed")
    assert list(runs["init"]) == ["", "0123abcd", "0123abcd"]
    assert list(runs["init_head"]) == ["trained", "trained", "new"]
    assert list(runs["dataset.cutout"]) == [0, 0, 0]
    assert list(runs["dataset.erasing"]) == [0.0, 0.0, 0.0]


def test_released_lock_is_noticed_without_any_file_change(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1)
    folder = synth.write_run(root, synth.config("gn", 16, 0), status="running", stop=3)
    with Run(folder).lock(["normbench", "run"]):
        before = load(root).runs.set_index("name").loc[folder.name, "status"]
    after = load(root).runs.set_index("name").loc[folder.name, "status"]
    assert (before, after) == ("running", "interrupted")


def test_frames_are_written_and_read_back(small: Path, tmp_path: Path) -> None:
    frames = load(small)
    files = frames.write(tmp_path / "data")
    assert {path.name for path in files} == {
        "runs.parquet",
        "runs.csv",
        "curves.parquet",
        "curves.csv",
    }
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "data/curves.parquet"), frames.curves)
    back = pd.read_csv(tmp_path / "data/runs.csv")
    assert list(back["test_acc"]) == list(frames.runs["test_acc"])
    assert list(back.columns) == list(frames.runs.columns)


def test_empty_store_is_loaded_and_missing_store_is_refused(
    tmp_store: Path, tmp_path: Path
) -> None:
    frames = load(tmp_store)
    assert len(frames.runs) == 0
    assert len(frames.curves) == 0
    with pytest.raises(NormbenchError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_config_of_nested_groups_is_flattened() -> None:
    flat = config_columns({"norm": {"name": "xbn", "_target_": "x", "bfn": {"name": "gn"}}})
    assert flat == {"norm": "xbn", "norm.bfn.name": "gn"}


def test_two_hundred_runs_load_fast(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32, 64, 128, 256), seeds=20, epochs=10)
    start = time.process_time()
    load(root)
    assert time.process_time() - start < 3.0


@pytest.mark.slow
def test_two_thousand_runs_of_a_hundred_epochs(grid: Callable[..., Path]) -> None:
    root = grid(
        norms=("bn", "gn", "gn_ws", "ln"), batches=(16, 32, 64, 128, 256), seeds=100, epochs=100
    )
    start = time.process_time()
    assert len(load(root).curves) == 200_000
    assert time.process_time() - start < 20.0


def test_report_imports_no_framework() -> None:
    code = (
        "import sys, normbench.report.report, normbench.report.page.build\n"
        "from normbench.report.figures import batch, curves, heatmap, overlay, profile, rate\n"
        "print([m for m in ('tensorflow', 'keras', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
