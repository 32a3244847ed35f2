"""Figures: they draw the computed values, and nothing is cut off or hidden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

from normbench.config import group_options
from normbench.report import Frames, figures, load
from normbench.report.bands import bands, joined
from normbench.report.figures import batch, curves, heatmap, profile, rate, style, time
from normbench.report.frames import planned
from normbench.report.grid import Grid, build
from normbench.report.metrics import METRICS
from normbench.report.references import REFERENCES
from normbench.report.statistics import sample
from normbench.report.study import Study, studies
from normbench.sweep.experiment import load as load_experiment
from normbench.sweep.grid import expand
from tests.marks import slow


@pytest.fixture(scope="module")
def study(mixed_store: Path) -> Study:
    (study,) = studies(load(mixed_store))
    return study


@pytest.fixture(scope="module")
def grid(study: Study) -> Grid:
    return build(study, METRICS["test_acc"], "bn")


def test_points_lie_at_the_means(grid: Grid) -> None:
    drawing = batch.draw(grid)
    axis = drawing.figure.axes[0]
    lines = {tuple(line.get_xdata()): line for line in axis.lines if len(line.get_xdata()) == 6}
    drawn = [line.get_ydata() for line in axis.lines if len(line.get_xdata()) == 6]
    assert lines
    expected = [100 * grid.cells["gn", column].sample.mean for column in grid.study.columns]
    assert any(np.allclose(y, expected) for y in drawn)
    assert axis.get_xscale() == "log"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        "16",
        "32",
        "64",
        "128",
        "256",
        "512",
    ]
    assert axis.get_ylabel() == "Test accuracy (%)"


def test_diverged_cells_are_marked_at_the_edge_and_explained(grid: Grid) -> None:
    drawing = batch.draw(grid)
    axis = drawing.figure.axes[0]
    low = axis.get_ylim()[0]
    assert low > 80
    texts = {point.key: point for point in drawing.points}
    assert texts["none", 16].y == low
    assert "1 diverged" in texts["none", 16].text
    assert [text.get_text() for text in axis.texts] == ["div.", "div."]
    assert "Cross (div.)" in drawing.caption
    names = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert sorted(names) == sorted(["No norm", "BN", "GN", "GN+WS", "LN"])
    hits = drawing.hits()
    assert all(0 <= hit.x <= 1 and 0 <= hit.y <= 1 for hit in hits)


def test_throughput_starts_at_zero_and_has_no_crosses(study: Study) -> None:
    drawing = batch.draw(build(study, METRICS["images_per_s"]), zero=True)
    assert drawing.figure.axes[0].get_ylim()[0] == 0
    assert ("none", 512) not in {point.key for point in drawing.points}


def test_curves_of_one_epoch_are_points(mixed_store: Path) -> None:
    frames = load(mixed_store)
    curves_of_one = frames.curves[frames.curves["epoch"] == 1].reset_index(drop=True)
    (short,) = studies(replace(frames, curves=curves_of_one))
    drawing = curves.draw(short, METRICS["val_acc"])
    axis = drawing.figure.axes[0]
    rows = [style.look("norm", row, short.rows) for row in short.rows]
    assert axis.lines
    assert {line.get_marker() for line in axis.lines} <= {look.marker for look in rows}
    assert list(axis.get_xticks()) == [1]


def test_no_row_uses_the_line_style_of_training_values() -> None:
    looks = [style.look("label", f"name {number}") for number in range(1000)]
    assert style.DOTTED not in style.DASHES
    assert {look.dashes for look in looks} == set(style.DASHES[1:])
    assert all(dashes[1][0] >= 4 for dashes in style.DASHES[1:])  # dashes, not dots


def test_published_results_are_marked_with_their_source(grid: Grid) -> None:
    drawing = batch.draw(grid, REFERENCES[:1])
    assert "He et al. 2016" in drawing.caption
    assert "8.75 % error" in drawing.caption
    names = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert "published (BN)" in names
    stars = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "*"]
    assert [float(star.get_ydata()[0]) for star in stars] == [pytest.approx(91.25)]


def test_bands_are_t_intervals_of_each_epoch(study: Study) -> None:
    band = bands(joined(study), "val_acc")["gn", 64]
    names = study.runs[(study.runs["row"] == "gn") & (study.runs["column"] == 64)]["name"]
    cell_curves = study.curves[study.curves["run"].isin(names)]
    for index, epoch in enumerate(band.x):
        expected = sample(cell_curves[cell_curves["epoch"] == epoch]["val_acc"].to_numpy())
        assert band.mean[index] == pytest.approx(expected.mean)
        assert band.low[index] == pytest.approx(expected.low)
        assert band.high[index] == pytest.approx(expected.high)


def test_logarithmic_band_is_the_interval_of_the_logarithm(study: Study) -> None:
    band = bands(joined(study), "val_loss", log=True)["gn", 64]
    names = study.runs[(study.runs["row"] == "gn") & (study.runs["column"] == 64)]["name"]
    cell_curves = study.curves[study.curves["run"].isin(names)]
    expected = sample(np.log(cell_curves[cell_curves["epoch"] == 7]["val_loss"].to_numpy()))
    index = list(band.x).index(7)
    assert band.mean[index] == pytest.approx(np.exp(expected.mean))
    assert band.low[index] == pytest.approx(np.exp(expected.low))
    assert (band.low > 0).all()


def test_diverged_run_counts_until_it_diverges(study: Study) -> None:
    band = bands(joined(study), "val_acc")["none", 512]
    assert list(band.x) == [1]


def test_curves_have_a_panel_for_each_batch_size(study: Study) -> None:
    drawing = curves.draw(study, METRICS["val_acc"])
    titles = [axis.get_title() for axis in drawing.figure.axes if axis.get_visible()]
    assert titles == [f"Batch size {b}" for b in (16, 32, 64, 128, 256, 512)]
    against = curves.draw(study, METRICS["val_loss"], x="images_seen")
    assert against.figure.axes[0].get_yscale() == "log"
    assert against.figure.axes[-1].get_xlabel() == "Images seen (thousands)"
    assert max(max(line.get_xdata()) for line in against.figure.axes[0].lines) == pytest.approx(24)


def test_shared_schedule_has_one_line_per_batch_size(
    study: Study, grid: Grid, synth: SimpleNamespace, tmp_store: Path
) -> None:
    drawing = rate.draw(study)
    assert len(drawing.figure.axes) == 1
    assert len(drawing.figure.axes[0].lines) == 6
    # A norm with its own rate: one panel per norm.
    path = synth.write_run(tmp_store, synth.config("bn", 16, 0, epochs=4)) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"lr": 0', '"lr": 1'))
    synth.write_run(tmp_store, synth.config("gn", 16, 0, epochs=4))
    (other,) = studies(load(tmp_store))
    assert len(rate.draw(other).figure.axes[0].lines) == 2


def test_heat_map_shows_differences_and_omits_empty_rows(grid: Grid) -> None:
    drawing = heatmap.draw(grid)
    axis = drawing.figure.axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["No norm", "GN", "GN+WS", "LN"]
    texts = [text.get_text().removesuffix("*") for text in axis.texts]
    expected = f"{100 * grid.cells['gn', 16].baseline.mean:+.1f}"
    assert expected in texts
    assert texts.count("div.") == 2


def test_time_figure_omits_diverged_cells(study: Study, grid: Grid) -> None:
    drawing = time.draw(grid, build(study, METRICS["train_seconds"]))
    rows = {point.key[0] for point in drawing.points}
    assert rows == {"bn", "gn", "gn_ws", "ln"}
    assert "s of training" in drawing.points[0].text


def test_time_and_accuracy_axes_do_not_extend_below_zero(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    root = synth.write_grid(tmp_store, ("bn", "gn"), (16, 64), 2, 3)
    # Two seeds with such different values give a wide interval.
    for seed, run in enumerate(sorted(root.glob("*-b16-*"))):
        path = run / "summary.json"
        summary = json.loads(path.read_text())
        summary |= {"train_seconds": 30.0 + 20 * (seed % 2), "test_acc": 0.2 + 0.3 * (seed % 2)}
        path.write_text(json.dumps(summary))
    (study,) = studies(load(root))
    seconds = build(study, METRICS["train_seconds"])
    axis = time.draw(build(study, METRICS["test_acc"], "bn"), seconds).figure.axes[0]
    assert seconds.cells["bn", 16].sample.half_width > 100
    assert axis.get_xlim()[0] >= 0
    assert axis.get_ylim()[0] == 0


def test_profiles_and_improvements(grid: Grid) -> None:
    assert set(grid.profiles) == {"bn", "gn", "gn_ws"}
    drawing = profile.draw_profiles(grid)
    assert "Left out, since they lack runs: No norm, LN, IN." in drawing.caption
    drawing = profile.draw_improvements(grid)
    names = [tick.get_text() for tick in drawing.figure.axes[0].get_yticklabels()]
    assert names == ["No norm (2 of 6)", "GN", "GN+WS", "LN (1 of 6)"]


@pytest.mark.parametrize("norms", [("bn",), ("bn", "gn", "gn_ws", "ln", "in", "none", "bn_ws")])
def test_nothing_is_cut_off_at_the_edges(
    grid: Grid, norms: tuple[str, ...], synth: SimpleNamespace, tmp_store: Path
) -> None:
    root = synth.write_grid(tmp_store, norms, (16, 128, 1024), 2, 4)
    if "gn" in norms:
        synth.write_grid(root, ("gn",), (16, 128), 2, 4, norm__groups=4)
    (study,) = studies(load(root))
    full_grid = build(study, METRICS["test_acc"], "bn")
    drawings = [
        batch.draw(grid),
        heatmap.draw(grid),
        *([heatmap.draw(full_grid)] if len(study.rows) > 1 else []),
        batch.draw(full_grid),
        curves.draw(study, METRICS["val_acc"]),
        rate.draw(study),
        time.draw(full_grid, build(study, METRICS["train_seconds"])),
    ]
    for drawing in drawings:
        drawing.settle()
        figure = drawing.figure
        inside = style.styled(figure.get_tightbbox)()
        width, height = figure.get_size_inches()
        assert inside.x0 >= -0.02
        assert inside.y0 >= -0.02
        assert inside.x1 <= width + 0.02
        assert inside.y1 <= height + 0.02


def test_non_numeric_columns_are_labeled_by_name(
    grid: Grid, synth: SimpleNamespace, tmp_store: Path
) -> None:
    root = tmp_store
    for dataset in ("digits", "mnist"):
        synth.write_grid(root, ("bn", "gn"), (64,), 2, 3, dataset=dataset)
    (study,) = studies(load(root), ("norm", "dataset"))
    drawing = batch.draw(build(study, METRICS["test_acc"], "bn"))
    ticks = [tick.get_text() for tick in drawing.figure.axes[0].get_xticklabels()]
    assert ticks == ["Digits", "MNIST"]


LONG = tuple("a_rather_long_label_that_goes_on_and_on_" * 3 + end for end in "xyz")
HOSTILE = (r"$\bn$ plain", "costs $5 and $6", "_hidden", "<b> & --> x", "a\nb\x1b[31m")


def load_labeled(synth: SimpleNamespace, root: Path, names: tuple[str, ...]) -> Frames:
    for index, name in enumerate(names):  # labels do not change the signature; rates do
        rate = 0.1 + index / 100
        synth.write_grid(root, ("bn", "gn"), (16, 64), 2, 4, label=name, optimizer__lr=rate)
    return load(root)


def draw_figures(study: Study, baseline: str) -> list[style.Drawing]:
    grid = build(study, METRICS["test_acc"], baseline)
    return figures.draw(grid)


@pytest.mark.parametrize("by", [slow(("label", "batch")), ("batch", "label")])
def test_long_names_leave_room_for_the_values(
    by: tuple[str, str], synth: SimpleNamespace, tmp_store: Path
) -> None:
    study = studies(load_labeled(synth, tmp_store, LONG), by)[0]
    drawings = draw_figures(study, study.rows[0])
    assert len(drawings) >= 8
    for drawing in drawings:
        drawing.settle()
        figure = drawing.figure
        inside = style.styled(figure.get_tightbbox)()
        width, height = figure.get_size_inches()
        assert -0.02 <= inside.x0 <= inside.x1 <= width + 0.02, drawing.slug
        assert -0.02 <= inside.y0 <= inside.y1 <= height + 0.02, drawing.slug
        for axis in figure.axes:
            box = axis.get_window_extent()
            if axis.get_label() != "<colorbar>":
                assert box.width > 0.7 * figure.dpi, drawing.slug
            assert box.height > 0.3 * figure.dpi, drawing.slug
        for legend in figure.legends:
            names = [text.get_text() for text in legend.get_texts()]
            assert len(set(names)) == len(names)


def test_names_in_figures_are_drawn_literally(
    synth: SimpleNamespace, tmp_store: Path, tmp_path: Path
) -> None:
    study = studies(load_labeled(synth, tmp_store, HOSTILE), ("label", "batch"))[0]
    for drawing in draw_figures(study, HOSTILE[0]):
        # As SVG: it parses math like the other formats, in a quarter of the time.
        style.save(drawing, tmp_path, ["svg"])
        assert not any(text.get_parse_math() for text in drawing.figure.findobj(Text))
        if drawing.figure.legends and drawing.slug != "lr-curves":
            legend = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
            assert legend >= {*HOSTILE[:4], r"a\nb\x1b[31m"}, drawing.slug


def study_of(root: Path) -> Study:
    (study,) = studies(load(root))
    return study


def test_few_seeds_are_dots_and_several_are_bands(
    study: Study, grid: Grid, synth: SimpleNamespace, tmp_store: Path
) -> None:
    few = batch.draw(grid)
    assert not few.figure.axes[0].collections
    dots = [line for line in few.figure.axes[0].lines if line.get_marker() == "."]
    values = sorted(100 * value for value in grid.cells["gn", 64].values.values())
    assert any(sorted(line.get_ydata()) == pytest.approx(values) for line in dots)
    assert "dots: single seeds" in few.caption
    drawing = curves.draw(study, METRICS["val_acc"])
    axis = drawing.figure.axes[0]
    assert {runs.get_label() for runs in axis.collections} == {"_run"}
    assert [len(runs.get_segments()) for runs in axis.collections] == [3] * 4  # four rows
    assert "thin: single runs" in drawing.caption
    root = synth.write_grid(tmp_store, ("bn", "gn"), (16, 64), 4, 4)
    four = study_of(root)
    many = batch.draw(build(four, METRICS["test_acc"], "bn"))
    assert len(many.figure.axes[0].collections) == 2
    assert "95 % t interval" in many.caption
    drawing = curves.draw(four, METRICS["val_acc"])
    assert len(drawing.figure.axes[0].collections) == 2
    assert "_run" not in {band.get_label() for band in drawing.figure.axes[0].collections}


EIGHT = ("bn", "bn_ws", "gn", "gn_ws", "ln", "in", "none", "frn")


def test_many_rows_get_a_panel_each(synth: SimpleNamespace, tmp_store: Path) -> None:
    synth.write_grid(tmp_store, EIGHT, (16, 64), 2, 4)
    crowd = study_of(tmp_store)
    names = [crowd.row(row) for row in crowd.rows]
    drawing = batch.draw(build(crowd, METRICS["test_acc"], "bn"))
    shown = [axis for axis in drawing.figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == names
    assert not drawing.figure.legends
    assert {point.key for point in drawing.points} == set(build(crowd, METRICS["test_acc"]).cells)
    gray = [line for line in shown[1].lines if line.get_color() == style.GRAY]
    assert len(gray) == 7
    drawing = curves.draw(crowd, METRICS["val_acc"])
    shown = [axis for axis in drawing.figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == names
    entries = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert entries == ["16", "64", "validation", "training"]
    for key in {point.key for point in drawing.points}:
        assert key in crowd.groups


def test_truncated_vertical_axis_is_marked(study: Study, grid: Grid) -> None:
    for drawing in (batch.draw(grid), curves.draw(study, METRICS["val_acc"])):
        axis = drawing.figure.axes[0]
        assert axis.get_ylim()[0] > 0
        assert [patch.get_label() for patch in axis.patches] == ["_cut"]
        assert drawing.caption.count("The vertical axis does not start at 0.") == 1
    throughput = batch.draw(build(study, METRICS["images_per_s"]), zero=True)
    assert "does not start at 0" not in throughput.caption


def test_heat_maps_color_only_significant_differences(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    root = synth.write_grid(tmp_store, ("bn", "gn"), (16, 64), 6, 2)
    for seed in range(6):  # far worse at 16, the same except for noise at 64
        for run in root.glob(f"*-gn-b16-s{seed}-*"):
            synth.set_result(run, "test_acc", 0.3 + 0.001 * seed)
    found = build(study_of(root), METRICS["test_acc"], "bn")
    significant = {key for key, c in found.cells.items() if c.baseline and c.baseline.significant}
    assert ("gn", 16) in significant
    assert ("gn", 64) not in significant
    neutral, colored = heatmap.draw(found).figure.axes[0].collections
    assert list(np.ma.getmaskarray(colored.get_array()).ravel()) == [False, True]
    assert list(np.ma.getmaskarray(neutral.get_array()).ravel()) == [True, False]


def test_no_figure_repeats_another(grid: Grid) -> None:
    drawings = figures.draw(grid)
    slugs = [drawing.slug for drawing in drawings]
    assert len(set(slugs)) == len(slugs)
    for metric in METRICS.values():
        if metric.complement is not None:
            pair = {f"{metric.slug}-by-batch", f"{metric.complement.slug}-by-batch"}
            assert not pair <= set(slugs)


@pytest.mark.parametrize("name", group_options()["experiment"])
def test_rows_of_experiments_are_distinguishable_without_color(name: str) -> None:
    by = load_experiment(name).report.get("by", "norm,batch")
    frames = planned(config.to_dict() for config in expand([f"+experiment={name}"]))
    for study in studies(frames, by):
        looks = [style.look(study.row_factor, row, study.rows) for row in study.rows]
        assert len({(look.color, look.marker, look.dashes) for look in looks}) == len(looks)
        assert len({(look.marker, look.dashes) for look in looks}) == len(looks), study.rows
