"""The figures of metrics against epochs or images seen, a panel for each batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from normbench.formats import capitalized
from normbench.report import names as labels
from normbench.report.bands import Band, Singles, around, bands, joined, singles
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.metrics import Metric
from normbench.report.study import Study

PANELS = 3  # per row of the page, if panels are columns of the study
_LATE = 0.3  # fraction of training after which values determine the y range of an accuracy
_LABEL = 1.7  # inches: about the height of a panel, which limits the length of its label
_HOVERED = 10  # epochs of a curve with tooltips on the page


class _How(NamedTuple):
    """The metric that is drawn, the column of the x axis, and the curves of each row and column.

    Attributes:
        shown: The metric.
        x: The column.
        found: Its mean and interval.
        thin: The same for training images.
        singles: The runs of cells with few runs.
    """

    shown: Metric
    x: str
    found: Mapping[tuple[Any, Any], Band]
    thin: Mapping[tuple[Any, Any], Band]
    singles: Singles


_X = {"epoch": ("Epoch", 1.0), "images_seen": ("Images seen (thousands)", 1e-3)}


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw each metric of epochs that any run recorded, except the learning rate (see ``rate``).

    The compared metric is drawn too, if it is a reduction over epochs.
    """
    study = grid.study
    curves = joined(study)
    return [
        draw(study, metric)
        for metric in study.metrics.values()
        if (metric.curve or metric.name == grid.metric.source)
        and metric.name != "lr"
        and is_recorded(curves, metric)
    ]


def is_recorded(curves: pd.DataFrame, metric: Metric) -> bool:
    """Return whether any epoch has a value of the metric."""
    return metric.column in curves and bool(curves[metric.column].notna().any())


@style.styled
def draw(study: Study, shown: Metric, x: str = "epoch") -> style.Drawing:
    """Draw a curve of each row, mean and 95 % interval over seeds, a panel for each column.

    Cells with few runs show each run as a thin line instead of the interval. If there are many
    rows, each has its own panel, with a curve for each column.

    Args:
        study: The study, whose finished and diverged runs are drawn.
        shown: A metric of epochs. For a validation metric, the training metric is drawn as well, as
            a thin dotted line without an interval.
        x: ``epoch`` or ``images_seen``.
    """
    log, second = shown.curve == "log", shown.in_training
    curves = joined(study)
    curve_bands = bands(curves, shown.column, x, log=log)
    training_bands = bands(curves, second.column, x, log=log) if second else {}
    how = _How(shown, x, curve_bands, training_bands, singles(curves, shown.column, x))
    band_rows = {row for row, _ in curve_bands}
    rows = [row for row in study.rows if row in band_rows]
    columns = [c for c in study.columns if any(column == c for _, column in curve_bands)]
    by_row = len(rows) >= style.MANY  # many rows in one panel would be indistinguishable
    panels = rows if by_row else columns
    count = max(len(panels), 1)
    wide = style.panels_beside(count) if by_row else 2 if count == 4 else min(count, PANELS)
    tall = -(-count // wide)
    width = style.column() if count == 1 else style.page()
    titles = [_title(study, panel, by_row) for panel in panels]
    titles = style.wrapped(titles, width / wide - 0.45, size=7.5)
    height = ((1.35 if by_row else 1.75) + style.more_lines(titles)) * tall + 0.5
    lines = columns if by_row else rows
    handles = _handles(study, lines, second is not None, by_row)
    names = [str(handle.get_label()) for handle in handles]
    height += max(0.0, style.legend_height(names, width, 8) - 0.4)
    figure, grid = style.new(width, height, tall, wide, sharex=True, sharey=True)
    axes = grid.ravel()[: len(panels)]
    points = []
    for axis, panel, title in zip(axes, panels, titles, strict=True):
        for place, line in enumerate(lines):
            key = (panel, line) if by_row else (line, panel)
            if key in curve_bands:
                points += _series(axis, study, key, how, _look(study, line, lines, by_row), place)
        if title:
            axis.set_title(title)
        axis.set_xlabel(_X[x][0])
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ends = {float(band.x[place]) * _X[x][1] for band in curve_bands.values() for place in (0, -1)}
    if len(ends) == 1:
        middle = ends.pop()
        axes[0].set_xlim(0.5 * middle, 1.5 * middle)  # applies to all panels, which share the axis
        axes[0].xaxis.set_major_locator(FixedLocator([middle]))
    _scale(axes, [*curve_bands.values(), *training_bands.values()], shown, log)
    is_cut = bool(len(axes)) and shown.worst is not None and axes[0].get_ylim()[0] > 0
    outer = style.outer(grid, len(panels), cut=is_cut)
    for axis in outer.left:
        axis.set_ylabel(style.wrap(headed(shown.axis), 1.3 if by_row else _LABEL, size=8))
    title = labels.factor(study.column_factor) if by_row else study.legend_title
    style.legend(figure, handles, 8, title)
    subject = headed(shown.label)
    subject += " on validation (solid or dashed) and training (dotted) images" if second else ""
    return style.Drawing(
        f"{shown.slug}-curves",
        f"{subject} against {_X[x][0].lower()}: {study.heading}. "
        f"{around([curve_bands], [how.singles], log=log)} A diverged run counts until it diverges."
        f"{outer.caption}",
        figure,
        points,
        wide=count > 1,
    )


def _title(study: Study, panel: Any, by_row: bool) -> str:
    if by_row:
        return study.row(panel)
    factor = labels.factor(study.column_factor) if study.column_factor else ""
    return f"{factor} {study.column(panel)}" if factor else ""


def _look(study: Study, line: Any, lines: Sequence[Any], by_row: bool) -> style.Look:
    """Return the look of a line: a row of the study, or a column if panels are rows."""
    if by_row:
        return style.look(study.column_factor, line, lines)
    return style.look(study.row_factor, line, study.rows)


def headed(words: str) -> str:
    """Return an axis label for validation and training values, capitalized."""
    return capitalized(words.replace("Validation ", ""))


def _series(
    axis: Axes, study: Study, key: tuple[Any, Any], how: _How, look: style.Look, place: int
) -> list[style.Point]:
    """Draw a curve, the ``place``-th of its panel; return its points for the page."""
    band, training_band = how.found[key], how.thin.get(key)
    factor, scale = _X[how.x][1], how.shown.scale
    low = np.maximum(band.low, how.shown.low) * scale
    high = np.minimum(band.high, how.shown.high) * scale
    line: dict[str, Any] = {"color": look.color, "linewidth": 1.0}
    markers = style.sparse_mark(look, len(band.x), place)
    runs = [(x * factor, values * scale) for x, values in how.singles.get(key, ())]
    if len(band.x) == 1:  # a line or a band of one epoch would be invisible
        axis.vlines(band.x * factor, low, high, colors=[to_rgba(look.color, 0.4)], linewidth=0.8)
    else:
        style.spread(axis, band.x * factor, low, high, look.color, runs)
    axis.plot(band.x * factor, band.mean * scale, linestyle=look.dashes, **line, **markers)
    if training_band is not None:
        line |= {"linewidth": 0.8}
        line |= {**markers, "markerfacecolor": "none"} if len(training_band.x) == 1 else {}
        axis.plot(
            training_band.x * factor, training_band.mean * scale, linestyle=style.DOTTED, **line
        )
    places = np.unique(np.linspace(0, len(band.x) - 1, _HOVERED).round().astype(int))
    prefix = f"{study.cell(key)}, {how.x.replace('_', ' ')}"
    points = []
    for place in places:
        x, mean = float(band.x[place]), float(band.mean[place])
        half = float(band.high[place] - band.low[place]) / 2
        text = f"{prefix} {x:g}: {how.shown.around(mean, half)} {how.shown.unit}".rstrip()
        points.append(style.Point(axis, x * factor, mean * scale, text, key))
    return points


def _scale(axes: Any, curve_bands: Sequence[Band], metric: Metric, log: bool) -> None:
    """Set the y range from the means; for accuracies, from the later part of the curves."""
    if not curve_bands or not (log or metric.worst):  # only an accuracy has a worst value
        return
    means = np.concatenate([band.mean for band in curve_bands]) * metric.scale
    if log:
        low, high = means.min() / 1.25, means.max() * 1.25
    else:
        start = _LATE * max(band.x.max() for band in curve_bands)
        late_means = (
            np.concatenate([band.mean[band.x >= start] for band in curve_bands]) * metric.scale
        )
        lowest_end = (
            min(band.mean[-1] for band in curve_bands if band.x[-1] >= start) * metric.scale
        )
        low, high = min(np.quantile(late_means, 0.05), lowest_end), late_means.max()
        # Extend the range by half below, for the early epochs and the worst curves.
        span = high - low
        low, high = max(low - 0.5 * span, 0.0), min(high + 0.06 * span, 101.0)
    for axis in axes:
        if log:
            axis.set_yscale("log")
            style.plain_log(axis.yaxis, low, high)
        if high > low:
            axis.set_ylim(low, high)


def _handles(study: Study, lines: Sequence[Any], training: bool, by_row: bool) -> list[Line2D]:
    name = study.column if by_row else study.row
    handles = []
    if not by_row or study.column_factor:
        handles = [
            style.handle(_look(study, line, lines, by_row), name(line), marker=True)
            for line in lines
        ]
    if training:
        for dashes, label in (("-", "validation"), (style.DOTTED, "training")):
            handles.append(style.handle(style.Look(style.INK, "", dashes), label, marker=False))
    return handles
