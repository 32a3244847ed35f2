"""The figure of a layer's inputs over training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from normbench.report.figures import percentiles
from normbench.report.frames import load
from normbench.report.study import studies


@pytest.fixture
def probed(grid: Callable[..., Path]) -> Path:
    """A store whose runs have the metrics of the probe ``activations``."""
    root = grid(norms=("none", "bn"), batches=(16, 32), seeds=2, epochs=3)
    for file in root.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            for name in ("", "unit0/"):
                for at in (15, 50, 85):
                    key = f"probe/activations/hidden3_sigmoid/{name}p{at}"
                    row[key] = at * row["epoch"] / 100
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_each_layer_and_unit_has_a_drawing_with_a_panel_per_cell(probed: Path) -> None:
    (study,) = studies(load(probed), ("norm", "batch"))
    drawings = percentiles.draw(study)
    assert {drawing.slug for drawing in drawings} == {
        "percentiles-hidden3-sigmoid-all",
        "percentiles-hidden3-sigmoid-0",
    }
    for drawing in drawings:
        panels = [axis for axis in drawing.figure.axes if axis.get_visible()]
        assert len(panels) == 4
        assert {axis.get_title() for axis in panels} >= {"BN, batch size 16"}
        for axis in panels:
            low, middle, high = (line.get_ydata() for line in axis.get_lines())
            assert list(low) == pytest.approx([0.15, 0.30, 0.45])
            assert list(middle) == pytest.approx([0.5, 1.0, 1.5])
            assert list(high) == pytest.approx([0.85, 1.7, 2.55])


def test_no_figure_without_the_probe(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=2)
    (study,) = studies(load(root), ("norm", "batch"))
    assert percentiles.draw(study) == []


def test_only_a_few_of_many_layers_are_drawn(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=2)
    for file in root.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row |= {
                f"probe/activations/relu{layer}/p{at}": 1.0
                for layer in range(10)
                for at in (15, 50, 85)
            }
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (study,) = studies(load(root), ("norm", "batch"))
    drawings = percentiles.draw(study)
    names = [drawing.slug.removeprefix("percentiles-") for drawing in drawings]
    assert names == ["relu0-all", "relu3-all", "relu6-all", "relu9-all"]
    assert "Of 10 layers measured, 4 are drawn" in drawings[0].caption
