"""The figure and the metric in docs/adding.md work as shown there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.report import load
from normbench.report.figures import FIGURES
from normbench.report.grid import build
from normbench.report.metrics import METRICS, listed
from normbench.report.study import studies

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding.md"


def run_block(heading: str) -> dict[str, Any]:
    """Run the Python block under a heading of the page; return its names."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_documented_figure_draws_the_mean_steps(mixed_store: Path) -> None:
    (study,) = studies(load(mixed_store))
    (drawing,) = run_block("A figure")["figures"](build(study, METRICS["test_acc"]))
    (line,) = drawing.figure.axes[0].lines
    steps = study.runs.groupby("column")["steps"].mean()
    np.testing.assert_allclose(line.get_ydata(), steps)
    assert "batch" in FIGURES


def test_documented_metric_is_derived_from_others(
    mixed_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "loss_gap", METRICS["val_acc"])  # so that it is removed again
    run_block("A metric")
    runs = load(mixed_store).runs
    values = METRICS["loss_gap"].derive({"val_loss": 1.5, "train_loss": 1.0})
    assert values == 0.5
    finished = runs[runs["status"] == "finished"]
    np.testing.assert_allclose(finished["loss_gap"], finished["val_loss"] - finished["train_loss"])
    assert METRICS["loss_gap"] in listed("report")
