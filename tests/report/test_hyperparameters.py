"""The hyperparameters of a store: those that all runs share, and those that differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.cli import main
from normbench.report import report as commands
from normbench.report.frames import load
from normbench.report.hyperparameters import tables


def test_shared_keys_are_listed_and_varying_keys_are_columns(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=3, epochs=3)
    shared, varying = tables(load(root))
    values = dict(zip(shared.data["hyperparameter"], shared.data["value"], strict=True))
    assert values["epochs"] == "3"
    assert "norm" not in values
    assert not {"seed", "store", "label", "init", "status", "test_acc"} & set(values)
    assert {"norm", "batch"} <= set(varying.headers)
    assert len(varying.rows) == 4
    assert set(varying.data["seeds"]) == {"0–2"}


def test_identical_configs_give_one_table(grid: Callable[..., Path]) -> None:
    [shared] = tables(load(grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)))
    assert "norm" in list(shared.data["hyperparameter"])


def test_trials_of_tuning_are_left_out(synth: SimpleNamespace, tmp_path: Path) -> None:
    synth.write_tuned(tmp_path)
    frames = load(tmp_path)
    assert frames.runs["trial"].any()
    _, varying = tables(frames)
    final = frames.runs[~frames.runs["trial"]]
    assert len(varying.rows) == len(final[["norm", "batch", "optimizer.lr"]].drop_duplicates())


@pytest.mark.parametrize("kind", ["md", "tex", "csv", "parquet"])
def test_export_writes_both_tables(grid: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    path = tmp_path / f"table.{kind}"
    assert main(["export", str(root), "--hyperparameters", "--out", str(path)]) == 0
    if kind in ("md", "tex"):
        text = path.read_text()
        assert "all runs share" in text
        assert "differ among the runs" in text
        assert text.count("label{") == (2 if kind == "tex" else 0)
    else:
        read = pd.read_csv if kind == "csv" else pd.read_parquet
        assert list(read(path)["norm"]) == ["bn", "gn"]
        shared = read(tmp_path / f"table-shared.{kind}").set_index("hyperparameter")["value"]
        assert int(shared["epochs"]) == 3
        assert shared.index.is_unique
        assert not set(shared.index) & set(read(path).columns)


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_exported_text_has_each_key_in_one_of_the_tables(
    grid: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    path = tmp_path / f"table.{kind}"
    assert main(["export", str(root), "--hyperparameters", "--out", str(path)]) == 0
    shared, varying = path.read_text().split("differ among the runs")
    assert shared.count("optimizer.lr ") == 1
    assert "optimizer.lr" not in varying
    assert "norm.groups" in varying
    assert "norm.groups" not in shared


def test_export_writes_one_file_where_nothing_differs(
    grid: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    path = tmp_path / "table.csv"
    assert main(["export", str(root), "--hyperparameters", "--out", str(path)]) == 0
    assert [file.name for file in tmp_path.glob("*.csv")] == ["table.csv"]
    assert "hyperparameters)" in capsys.readouterr().out


def test_hyperparameters_cannot_be_combined_with_model(
    grid: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", "RUN", "--model", "m.keras", "--hyperparameters"]) == 2
    assert "--hyperparameters is a table" in capsys.readouterr().err


def test_export_prints_the_tables_without_a_file(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    lines: list[str] = []
    assert commands.export(root, hyperparameters=True, say=lines.append) is None
    assert "| norm" in "\n".join(lines)
