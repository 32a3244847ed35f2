"""The figure and the metric that docs/adding.md shows work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.report import load
from normbench.report.figures import FIGURES, curves
from normbench.report.grid import build
from normbench.report.metrics import METRICS
from normbench.report.study import studies

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding.md"


def run_block(heading: str) -> dict[str, Any]:
    """Run the Python block under a heading of the page; return its names."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_figure_draws_what_it_says(mixed_store: Path) -> None:
    (study,) = studies(load(mixed_store))
    (drawing,) = run_block("A figure")["figures"](build(study, METRICS["test_acc"]))
    (line,) = drawing.figure.axes[0].lines
    steps = study.runs.groupby("column")["steps"].mean()
    np.testing.assert_allclose(line.get_ydata(), steps)
    assert "batch" in FIGURES


def test_the_metric_is_drawn_against_epochs(
    mixed_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "ece", METRICS["val_acc"])  # so that it is taken out again
    run_block("A metric")
    metric = METRICS["ece"]
    assert metric.column == "probe/calibration/ece"
    (study,) = studies(load(mixed_store))
    study.curves[metric.column] = 0.25
    drawing = curves.draw(study, metric)
    assert drawing.figure.axes[0].get_ylabel() == "Calibration error (%)"
    assert np.allclose(drawing.figure.axes[0].lines[0].get_ydata(), 25)
