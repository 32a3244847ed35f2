"""Figures of probe measurements over layers, steps and epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from normbench.report.figures import batch_dependence, curves, draw, layers, smoothness
from normbench.report.frames import load
from normbench.report.grid import build
from normbench.report.sections import Request, sections
from normbench.report.study import Study, studies

LAYERS = ("stem_conv", "stage1_conv", "logits")
Values = Callable[[dict[str, Any], int, int, str], dict[str, Any]]


def write_store(grid: Callable[..., Path], values: Values, **options: Any) -> Path:
    """Write a store whose rows also have the result of ``values(row, seed, batch, norm)``."""
    chosen = {"norms": ("none", "bn"), "batches": (16, 32), "seeds": 2, "epochs": 3, **options}
    root = grid(**chosen)
    for file in root.glob("*/metrics.jsonl"):
        _, _, rest = file.parent.name.partition("resnet8-")
        norm, batch, seed = rest.rsplit("-", 1)[0].rsplit("-", 2)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row.update(values(row, int(seed[1:]), int(batch[1:]), norm))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def study_of(root: Path) -> Study:
    (study,) = studies(load(root), ("norm", "batch"))
    return study


def layer_values(row, seed, batch, norm):
    values = {}
    for depth, name in enumerate(LAYERS):
        size = 10.0 ** (depth - 2) * row["epoch"] * (4.0 if seed else 1.0) * batch
        values[f"probe/gradients/{name}/gradient_norm"] = size
        values[f"probe/mine/{name}/how_far"] = float(depth)
        values[f"probe/activations/{name}/mean"] = 1.0
    values["probe/activations/stem_conv/dead"] = 0.25
    values["probe/activations/stage1_conv/dead"] = None if norm == "none" else 0.5
    values["probe/gradients/gradient_norm"] = 1.0
    return values


@pytest.fixture
def mapped(grid: Callable[..., Path]) -> Study:
    return study_of(write_store(grid, layer_values))


def map_axes(drawing):
    return [axis for axis in drawing.figure.axes if axis.get_title() and axis.get_visible()]


def test_each_layer_quantity_has_a_map_with_a_panel_per_cell(mapped):
    drawings = {drawing.slug: drawing for drawing in layers.draw(mapped)}
    assert set(drawings) == {
        "layers-gradients-gradient-norm",
        "layers-activations-dead",
        "layers-mine-how-far",
    }
    titles = [axis.get_title() for axis in map_axes(drawings["layers-gradients-gradient-norm"])]
    assert titles == [
        "No norm, batch size 16",
        "No norm, batch size 32",
        "BN, batch size 16",
        "BN, batch size 32",
    ]


def test_cells_are_geometric_means_on_one_logarithmic_scale(mapped):
    drawing = next(d for d in layers.draw(mapped) if d.slug.endswith("gradient-norm"))
    scales = set()
    for axis in map_axes(drawing):
        batch = int(axis.get_title().rsplit(" ", 1)[1])
        (image,) = axis.collections
        expected = np.outer([0.01, 0.1, 1.0], [1, 2, 3]) * 2.0 * batch
        np.testing.assert_allclose(np.asarray(image.get_array()).reshape(3, 3), expected)
        assert isinstance(image.norm, LogNorm)
        scales.add((image.norm.vmin, image.norm.vmax))
        assert axis.get_ylim() == (3.0, 0.0)  # the first layer on top
    ((low, high),) = scales
    assert low == pytest.approx(0.01 * 2 * 16)
    assert high == pytest.approx(3 * 2 * 32)
    points = [point for point in drawing.points if point.key == ("bn", 32)]
    assert len(points) == 9
    assert points[0].text == "BN, batch size 32, stem_conv, epoch 1: 0.64"


def test_shares_are_percentages_from_zero_and_gaps_are_gray(mapped):
    drawing = next(d for d in layers.draw(mapped) if d.slug.endswith("dead"))
    for axis in map_axes(drawing):
        (image,) = axis.collections
        values = np.ma.asarray(image.get_array()).reshape(2, 3)
        assert list(values[0]) == [25.0] * 3
        if axis.get_title().startswith("No norm"):
            assert values.mask[1].all()
        else:
            assert list(values[1]) == [50.0] * 3
        assert (image.norm.vmin, image.norm.vmax) == (0.0, 50.0)


def test_scale_spans_at_most_six_decades(grid):
    def values(row, seed, batch, norm):
        return {
            f"probe/gradients/{name}/gradient_norm": size
            for name, size in zip(LAYERS, (1e-20, 0.0, 10.0), strict=True)
        }

    (drawing,) = layers.draw(study_of(write_store(grid, values)))
    (image,) = map_axes(drawing)[0].collections
    assert (image.norm.vmin, image.norm.vmax) == (pytest.approx(1e-5), pytest.approx(10.0))
    assert "6 decades" in drawing.caption


def test_map_covers_epochs_between_measurements(grid):
    def values(row, seed, batch, norm):
        measured = row["epoch"] in (2, 4, 5)
        return {f"probe/mine/{n}/size": 1.0 if measured else None for n in LAYERS}

    (drawing,) = layers.draw(study_of(write_store(grid, values, epochs=5)))
    (image,) = map_axes(drawing)[0].collections
    coordinates = image.get_coordinates()
    assert list(coordinates[0, :, 0]) == [1.0, 3.0, 4.5, 5.5]


def test_many_cells_are_split_into_figures(grid):
    root = write_store(grid, layer_values, norms=("none", "bn", "gn", "ln", "in"), seeds=1)
    parts = [d for d in layers.draw(study_of(root)) if "gradient-norm" in d.slug]
    assert [d.slug[-2:] for d in parts] == ["-1", "-2"]
    assert [len(map_axes(d)) for d in parts] == [8, 2]
    scales = {axis.collections[0].norm.vmax for d in parts for axis in map_axes(d)}
    assert len(scales) == 1


def network_values(row, seed, batch, norm):
    factor = 4.0 if seed else 1.0
    return {
        "probe/smoothness/loss_low": 0.5 * factor,
        "probe/smoothness/loss_high": 2.0 * factor,
        "probe/smoothness/change_low": 0.1 * factor,
        "probe/smoothness/change_high": None if row["epoch"] == 2 else 1.0 * factor,
        "probe/smoothness/beta": row["epoch"] * factor,
        "probe/sharpness/eigenvalue": 10.0 * factor if row["epoch"] == 3 else None,
        "probe/gradients/angle": 30.0 + seed,
    }


def test_smoothness_is_a_band_from_minimum_to_maximum(grid):
    study = study_of(write_store(grid, network_values))
    (drawing,) = smoothness.draw(study)
    axes = drawing.figure.axes
    assert len(axes) == 6
    assert [axis.get_title() for axis in axes[:3]] == [panel.label for panel in smoothness.PANELS]
    steps = sorted(study.curves.merge(study.runs, left_on="run", right_on="name")
                   .query("batch == 16")["step"].unique())  # fmt: skip
    low, high = axes[0].lines[:2]
    assert list(low.get_xdata()) == steps
    np.testing.assert_allclose(low.get_ydata(), [1.0] * 3)
    np.testing.assert_allclose(high.get_ydata(), [4.0] * 3)
    assert list(axes[1].lines[0].get_xdata()) == [steps[0], steps[2]]
    assert len(axes[2].lines) == 2
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), [2.0, 4.0, 6.0])
    assert {axis.get_yscale() for axis in axes} == {"log"}
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["Batch size 16", "Batch size 32"]
    assert "Santurkar" in drawing.caption


def test_whole_network_values_are_curves_in_the_report(grid):
    frames = load(write_store(grid, network_values))
    (section,), _ = sections(frames, Request())
    slugs = [drawing.slug for drawing in draw(section.grid)]
    assert {"sharpness-eigenvalue-curves", "gradients-angle-curves", "smoothness"} <= set(slugs)
    sharp = curves.draw(section.study, frames.metrics["probe/sharpness/eigenvalue"])
    assert list(sharp.figure.axes[0].lines[0].get_xdata()) == [3]
    assert sharp.figure.axes[0].get_ylabel().split() == ["Largest", "Hessian", "eigenvalue"]


def test_no_figures_without_probes(grid):
    study = study_of(grid(norms=("bn",), batches=(16,), seeds=1, epochs=2))
    assert layers.draw(study) == []
    assert smoothness.draw(study) == []
    assert batch_dependence.draw(study) == []


def batch_dependence_values(row, seed, batch, norm):
    """Return what ``batch_dependence`` and ``train_gap`` measure, every second epoch."""
    if row["epoch"] == 2:
        return {}
    depends = norm == "bn"
    sizes = {
        f"probe/batch_dependence/{mode}_size{size}_mean": depends * (mode == "training") / size
        for mode in ("training", "inference")
        for size in (4, 16)
    }
    changed = {"probe/batch_dependence/training_neighbours_changed": depends * 0.25}
    return {**sizes, **changed, "probe/train_gap/loss_gap": depends * 0.5 - 0.1 * seed}


def test_batch_dependence_is_drawn_against_batch_size(grid):
    study = study_of(write_store(grid, batch_dependence_values))
    (drawing,) = batch_dependence.draw(study)
    axes = drawing.figure.axes
    assert [axis.get_title() for axis in axes] == ["Batch size 16", "Batch size 32"]
    lines = {line.get_color(): line for line in axes[0].lines}
    assert len(axes[0].lines) == len(lines) == 2  # no line of inference mode, which is 0 throughout
    found = sorted(tuple(line.get_ydata()) for line in lines.values())
    assert found == [(0.0, 0.0), (1 / 4, 1 / 16)]
    assert all(list(line.get_xdata()) == [4.0, 16.0] for line in lines.values())
    assert drawing.caption.endswith("No norm: exactly 0.")


def test_mode_gap_and_changed_classes_are_curves(grid):
    study = study_of(write_store(grid, batch_dependence_values))
    drawn = {drawing.slug: drawing for drawing in draw(build(study, study.metrics["test_acc"]))}
    gap = drawn["train_gap-loss_gap-curves"].figure.axes[0]
    assert gap.get_ylabel().replace("\n", " ") == "Loss gap of inference to training mode"
    assert "\n" in gap.get_ylabel()  # the label is longer than the panel is tall
    assert gap.get_yscale() == "linear"
    assert list(gap.lines[0].get_xdata()) == [1, 3]
    changed = drawn["batch_dependence-training_neighbours_changed-curves"].figure.axes[0]
    assert max(max(line.get_ydata()) for line in changed.lines) == 25  # %
    assert changed.get_ylim()[1] > 25  # not cropped as early accuracies are
