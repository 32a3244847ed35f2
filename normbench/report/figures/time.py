"""The figures of a metric against training time, and of throughput."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from normbench.report import names as labels
from normbench.report.figures import batch, style
from normbench.report.grid import Grid, GridCell, build
from normbench.report.metrics import METRICS
from normbench.report.statistics import Sample


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the metric against training time, and throughput, if they were measured."""
    drawings = []
    seconds = build(grid.study, METRICS["train_seconds"])
    has_times = any(cell.sample.n for cell in seconds.cells.values())
    if has_times and grid.metric.name != "train_seconds":
        drawings.append(draw(grid, seconds))
    if grid.study.runs["images_per_s"].notna().any() and grid.metric.name != "images_per_s":
        throughput = build(grid.study, METRICS["images_per_s"])
        drawings.append(batch.draw(throughput, zero=True))
    return drawings


@style.styled
def draw(grid: Grid, seconds: Grid) -> style.Drawing:
    """Draw each cell at its mean training time and its mean metric, with 95 % intervals.

    Args:
        grid: The metric.
        seconds: ``train_seconds`` of the same study.
    """
    study, metric = grid.study, grid.metric
    figure, axes = style.new(
        style.column(), 2.4 + style.legend_height([study.row(row) for row in study.rows])
    )
    axis = axes[0, 0]
    points, times, heights, handles, ends = [], [], [], [], []
    for row in study.rows:
        look = style.look(study.row_factor, row, study.rows)
        pairs = [_pair(grid, seconds, row, column) for column in study.columns]
        complete_pairs = [pair for pair in pairs if pair is not None]
        if not complete_pairs:
            continue
        x = [time.sample.mean for _, time in complete_pairs]
        y = [cell.sample.mean * metric.scale for cell, _ in complete_pairs]
        if study.numeric_columns:
            axis.plot(x, y, color=look.color, linewidth=0.7, alpha=0.5)
        axis.errorbar(
            x,
            y,
            xerr=_bars([time.sample for _, time in complete_pairs]),
            yerr=metric.scale * _bars([cell.sample for cell, _ in complete_pairs]),
            color=look.color,
            linestyle="none",
            elinewidth=0.6,
            **style.mark(look),
        )
        handles.append(style.handle(look, study.row(row), line=False))
        times += x
        heights += y
        for (cell, time), across, up in zip(complete_pairs, x, y, strict=True):
            text = f"{batch.hover(grid, cell)}, {time.sample.mean:.1f} s of training"
            points.append(style.Point(axis, across, up, text, (row, cell.column)))
        if study.column_factor and len(complete_pairs) > 1:
            names = labels.shortened([study.column(cell.column) for cell, _ in complete_pairs], 14)
            ends += [(x[i], y[i], names[i], look.color, 3.0 if i == 0 else -7.5) for i in (0, -1)]
    if times and max(times) > 4 * min(times):
        axis.set_xscale("log")
        style.plain_log(axis.xaxis, min(times), max(times))
    # The margin of the axes must not extend below 0, where there are no values.
    if times and axis.get_xlim()[0] < 0:
        axis.set_xlim(left=0)
    if heights and min(heights) >= 0 and axis.get_ylim()[0] < 0:
        axis.set_ylim(bottom=0)
    _label(axis, ends)
    is_cut = metric.unit == "%" and bool(heights) and axis.get_ylim()[0] > 0
    cut_note = style.mark_cut(axis) if is_cut else ""
    axis.set_xlabel("Training time (s)")
    axis.set_ylabel(metric.axis)
    style.legend(figure, handles, title=study.legend_title)
    is_joined = study.column_factor and study.numeric_columns
    factor = labels.factor(study.column_factor).lower() if is_joined else ""
    order = (
        f" Points are joined in order of {factor}; the ends are labeled if there is room."
        if factor
        else ""
    )
    return style.Drawing(
        f"{metric.slug}-by-time",
        f"{metric.label} against training time, evaluation left out: {study.heading}. Bars: 95 % t "
        f"intervals.{order} Cells with diverged runs are left out.{cut_note}",
        figure,
        points,
    )


def _label(axis: Axes, ends: list[tuple[float, float, str, str, float]]) -> None:
    """Write the column next to the ends of each row, unless labels would overlap."""
    axis.autoscale_view()
    places: list[tuple[float, float]] = []
    for x, y, text, color, lift in ends:
        across, up = axis.transData.transform((x, y))
        if any(abs(across - a) < 16 and abs(up - b) < 9 for a, b in places):
            continue
        places.append((across, up))
        axis.annotate(
            text,
            (x, y),
            xytext=(3.0, lift),
            textcoords="offset points",
            fontsize=style.points(5.5),
            color=color,
            path_effects=[withStroke(linewidth=1.2, foreground=style.PAPER)],
        )


def _bars(samples: Sequence[Sample]) -> np.ndarray:
    """Return the lengths of intervals below and above their means, 0 if there is none."""
    ends = [(sample.mean - sample.low, sample.high - sample.mean) for sample in samples]
    return np.maximum(np.nan_to_num(np.array(ends).T), 0.0)


def _pair(
    grid: Grid, seconds: Grid, row: object, column: object
) -> tuple[GridCell, GridCell] | None:
    cell, time = grid.get(row, column), seconds.get(row, column)
    if cell is None or time is None or cell.diverged or not cell.sample.n or not time.sample.n:
        return None
    return cell, time
