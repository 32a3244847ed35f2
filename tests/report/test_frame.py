"""Reading a store into frames, and the cache that must never be older than the files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.errors import NormbenchError
from normbench.report import cache, frame, load
from normbench.report.rows import config_columns
from normbench.store import Run


@pytest.fixture
def small(grid: Callable[..., Path], synth: SimpleNamespace) -> Path:
    root = grid(norms=("bn", "gn_ws"), batches=(16, 64), seeds=2, epochs=5)
    synth.settle(root)
    return root


@pytest.fixture
def read_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are read from their files, as they are read."""
    names: list[str] = []
    whole = frame.read

    def spy(run: Run) -> object:
        names.append(run.name)
        return whole(run)

    monkeypatch.setattr(frame, "read", spy)
    return names


def test_a_row_a_run_and_a_row_an_epoch(small: Path) -> None:
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
    own = curves[curves["run"] == runs["name"][3]]
    assert list(own["val_loss"]) == [json.loads(line)["val_loss"] for line in lines]
    assert not any("_target_" in column for column in runs.columns)
    assert set(runs.attrs["config"]) >= {"norm", "batch", "seed", "optimizer.lr", "norm.groups"}
    assert set(runs.attrs["provenance"]) >= {"commit", "version.keras", "engine.threads"}


def test_every_state_is_there_and_the_rest_is_named(motley: Path) -> None:
    found = load(motley)
    states = found.runs["status"].value_counts().to_dict()
    assert states == {"finished": 57, "diverged": 3, "failed": 1, "interrupted": 2}
    reasons = {item.path.name: item.reason for item in found.left_out}
    assert len(reasons) == 4
    assert "holiday-pictures" in reasons
    assert "notes.txt" in reasons
    assert sum("meta.json" in reason and "JSON" in reason for reason in reasons.values()) == 1
    assert all("\n" not in str(item) for item in found.left_out)
    torn = found.runs[(found.runs["norm"] == "in") & (found.runs["batch"] == 16)].iloc[0]
    assert torn["epochs_done"] == 5
    failed = found.runs[found.runs["status"] == "failed"].iloc[0]
    assert failed["error_type"] == "ResourceExhaustedError"


def test_a_run_whose_curves_are_broken_keeps_its_results(small: Path) -> None:
    name = load(small).runs["name"][0]
    path = small / name / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:30], *lines[1:]]) + "\n")
    found = load(small)
    assert found.runs.set_index("name")["test_acc"].notna().all()
    assert name not in set(found.curves["run"])
    assert [item.path.name for item in found.left_out] == [name]
    assert [item.path.name for item in load(small).left_out] == [name]


def test_the_cache_gives_the_same_frames(small: Path, read_runs: list[str]) -> None:
    first = load(small)
    assert len(read_runs) == 8
    second = load(small)
    assert len(read_runs) == 8
    pd.testing.assert_frame_equal(first.runs, second.runs)
    pd.testing.assert_frame_equal(first.curves, second.curves)


def test_only_what_changed_is_read_again(small: Path, read_runs: list[str]) -> None:
    name = load(small).runs["name"][2]
    read_runs.clear()
    path = small / name / "summary.json"
    changed = json.loads(path.read_text()) | {"test_acc": 0.125}
    path.write_text(json.dumps(changed))
    found = load(small)
    assert read_runs == [name]
    assert found.runs.set_index("name").loc[name, "test_acc"] == 0.125
    assert list(found.runs["name"]) == sorted(found.runs["name"])
    assert found.curves.groupby("run", sort=False).size().eq(5).all()


def test_a_change_of_equal_size_and_time_is_seen(small: Path, synth: SimpleNamespace) -> None:
    name = load(small).runs["name"][0]
    path = small / name / "summary.json"
    before = path.stat()
    text = path.read_text()
    value = json.loads(text)["parameters"]
    path.write_text(text.replace(str(value), str(value + 1)))

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load(small).runs.set_index("name").loc[name, "parameters"] == value + 1


def test_a_file_written_just_now_is_not_cached(
    grid: Callable[..., Path], read_runs: list[str]
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1)
    load(root)
    load(root)
    assert len(read_runs) == 2


def test_runs_come_and_go(small: Path, synth: SimpleNamespace) -> None:
    names = list(load(small).runs["name"])
    synth.write_run(small, synth.config("ln", 32, 0, epochs=3))
    for path in sorted((small / names[0]).iterdir()):
        path.unlink()
    (small / names[0]).rmdir()
    found = load(small)
    assert len(found.runs) == 8
    assert names[0] not in set(found.curves["run"])
    assert (found.curves["run"].str.contains("-ln-")).sum() == 3


def test_a_lock_let_go_is_seen_without_any_file_changing(
    grid: Callable[..., Path], synth: SimpleNamespace, read_runs: list[str]
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1)
    folder = synth.write_run(root, synth.config("gn", 16, 0), status="running", stop=3)
    run = Run(folder)
    with run.lock(["normbench", "run"]):
        synth.settle(root)
        before = load(root).runs.set_index("name").loc[folder.name, "status"]
    read_runs.clear()
    after = load(root).runs.set_index("name").loc[folder.name, "status"]
    assert (before, after) == ("running", "interrupted")
    assert read_runs == []


@pytest.mark.parametrize("damage", ["truncate", "other", "remove", "folder"])
def test_a_damaged_cache_is_passed_over(small: Path, own_cache: Path, damage: str) -> None:
    whole = load(small)
    (folder,) = (own_cache / "normbench" / "report").iterdir()
    target = folder / "curves.parquet"
    if damage == "truncate":
        target.write_bytes(target.read_bytes()[:100])
    elif damage == "other":
        whole.curves.iloc[:3].to_parquet(target)
    elif damage == "remove":
        target.unlink()
    else:
        target.unlink()
        target.mkdir()
    pd.testing.assert_frame_equal(load(small).curves, whole.curves)


def test_no_cache_folder_is_no_obstacle(
    small: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.write_text("a file where the folder should be")
    assert len(load(small).runs) == 8


def test_frames_are_written_and_read_back(small: Path, tmp_path: Path) -> None:
    found = load(small)
    files = found.write(tmp_path / "data")
    assert {path.name for path in files} == {
        "runs.parquet",
        "runs.csv",
        "curves.parquet",
        "curves.csv",
    }
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "data/curves.parquet"), found.curves)
    back = pd.read_csv(tmp_path / "data/runs.csv")
    assert list(back["test_acc"]) == list(found.runs["test_acc"])
    assert list(back.columns) == list(found.runs.columns)


def test_an_empty_store_and_a_missing_one(tmp_store: Path, tmp_path: Path) -> None:
    found = load(tmp_store)
    assert len(found.runs) == 0
    assert len(found.curves) == 0
    with pytest.raises(NormbenchError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_config_of_nested_groups_is_flattened() -> None:
    flat = config_columns({"norm": {"name": "xbn", "_target_": "x", "bfn": {"name": "gn"}}})
    assert flat == {"norm": "xbn", "norm.bfn.name": "gn"}


def test_two_hundred_runs_load_fast(grid: Callable[..., Path], synth: SimpleNamespace) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32, 64, 128, 256), seeds=20, epochs=10)
    synth.settle(root)
    start = time.process_time()
    load(root)
    assert time.process_time() - start < 3.0


@pytest.mark.slow
def test_two_thousand_runs_of_a_hundred_epochs(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(
        norms=("bn", "gn", "gn_ws", "ln"), batches=(16, 32, 64, 128, 256), seeds=100, epochs=100
    )
    synth.settle(root)
    start = time.process_time()
    first = load(root)
    middle = time.process_time()
    second = load(root)
    end = time.process_time()
    assert len(first.curves) == 200_000
    pd.testing.assert_frame_equal(first.curves, second.curves)
    assert middle - start < 5.0
    assert end - middle < 1.0


def test_the_report_imports_no_framework() -> None:
    code = (
        "import sys, normbench.report.commands, normbench.report.page.build\n"
        "from normbench.report.figures import batch, curves, heatmap, overlay, profile, rate\n"
        "print([m for m in ('tensorflow', 'keras', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stamps_tell_any_file(small: Path) -> None:
    folder = next(path for path in sorted(small.iterdir()) if path.is_dir())
    before = cache.stamps([folder])
    (folder / "metrics.jsonl").write_text("")
    assert cache.stamps([folder]) != before
