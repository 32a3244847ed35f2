"""The figures of metrics against epochs or images seen, a panel for each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from normbench.formats import capitalized
from normbench.report import names as labels
from normbench.report.bands import Band, bands, joined
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.metrics import Metric
from normbench.report.study import Study

PANELS = 3  # in a row of the page
_LATE = 0.3  # share of training after which values decide an accuracy's range
_LABEL = 1.7  # inches: about the height of a panel, along which its label runs
_HOVERED = 10  # epochs of a curve that the page names


class _How(NamedTuple):
    """The metric that is drawn, and the column of the x axis."""

    shown: Metric
    x: str


_X = {"epoch": ("Epoch", 1.0), "images_seen": ("Images seen (thousands)", 1e-3)}


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw each metric of epochs that any run recorded; the learning rate is ``rate``'s.

    The metric that is compared is drawn too, if it is taken from a number of each epoch.
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

    Args:
        study: Its finished and diverged runs are drawn.
        shown: A metric of epochs, drawn solid with the interval as a band. Beside one of
            validation images the same of training images is thin and dotted, without a band.
        x: ``epoch`` or ``images_seen``.
    """
    log, second = shown.curve == "log", shown.in_training
    how = _How(shown, x)
    curves = joined(study)
    found = bands(curves, shown.column, x, log=log)
    thin = bands(curves, second.column, x, log=log) if second else {}
    panels = [c for c in study.columns if any(column == c for _, column in found)]
    count = max(len(panels), 1)
    wide = min(count, PANELS)
    tall = -(-count // wide)
    width = style.COLUMN if count == 1 else style.PAGE
    factor = labels.factor(study.column_factor) if study.column_factor else ""
    titles = [f"{factor} {study.column(column)}" if factor else "" for column in panels]
    titles = style.wrapped(titles, width / wide - 0.45, size=7.5)
    present = {row for row, _ in found}
    rows = [row for row in study.rows if row in present]
    height = (1.75 + style.more_lines(titles)) * tall + 0.5
    handles = _handles(study, rows, second is not None)
    named = [str(handle.get_label()) for handle in handles]
    height += max(0.0, style.legend_height(named, width, 8) - 0.4)
    figure, grid = style.new(width, height, tall, wide, sharex=True, sharey=True)
    axes = grid.ravel()
    points = []
    for axis, column, title in zip(axes, panels, titles, strict=False):
        for row in study.rows:
            key = (row, column)
            if key in found:
                points += _series(axis, study, key, found[key], thin.get(key), how)
        if title:
            axis.set_title(title)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    ends = {float(band.x[place]) * _X[x][1] for band in found.values() for place in (0, -1)}
    if len(ends) == 1:
        middle = ends.pop()
        axes[0].set_xlim(0.5 * middle, 1.5 * middle)  # of all panels: they share the axis
        axes[0].xaxis.set_major_locator(FixedLocator([middle]))
    _scale(axes[: len(panels)], [*found.values(), *thin.values()], shown, log)
    for place, axis in enumerate(axes[: len(panels)]):
        if place % wide == 0:
            axis.set_ylabel(style.wrap(headed(shown.axis), _LABEL, size=8))
        if place + wide >= len(panels):
            axis.set_xlabel(_X[x][0])
            axis.tick_params(labelbottom=True)
    style.legend(figure, handles, 8, study.legend_title)
    what = headed(shown.label)
    what += " on validation (solid) and training (dotted) images" if second else ""
    return style.Drawing(
        f"{shown.slug}-curves",
        f"{what} against {_X[x][0].lower()}: {study.heading}. Mean and 95 % t interval over seeds"
        f"{' of the logarithm' if log else ''}; a diverged run counts until it diverges.",
        figure,
        points,
        wide=count > 1,
    )


def headed(words: str) -> str:
    """Return words for an axis of validation and training values, with a capital."""
    return capitalized(words.replace("Validation ", ""))


def _series(
    axis: Axes, study: Study, key: tuple[Any, Any], band: Band, thin: Band | None, how: _How
) -> list[style.Point]:
    """Draw one curve; return the points whose values the page names."""
    look = style.look(study.row_factor, key[0], study.rows)
    factor, scale = _X[how.x][1], how.shown.scale
    low = np.maximum(band.low, how.shown.low) * scale
    high = np.minimum(band.high, how.shown.high) * scale
    line = {"color": look.color, "linewidth": 1.0}
    if len(band.x) == 1:  # a line or a band of one epoch would be invisible
        line |= {"marker": "o", "markersize": 3.0}
        axis.vlines(band.x * factor, low, high, colors=[to_rgba(look.color, 0.4)], linewidth=0.8)
    else:
        face = to_rgba(look.color, 0.15)
        axis.fill_between(band.x * factor, low, high, facecolor=face, linewidth=0)
    axis.plot(band.x * factor, band.mean * scale, linestyle=look.dashes, **line)
    if thin is not None:
        line |= {"linewidth": 0.8, "markerfacecolor": "none"}
        axis.plot(thin.x * factor, thin.mean * scale, linestyle=style.DOTTED, **line)
    picked = np.unique(np.linspace(0, len(band.x) - 1, _HOVERED).round().astype(int))
    where = f", {study.column(key[1])}" if study.column_factor else ""
    named = f"{study.row(key[0])}{where}, {how.x.replace('_', ' ')}"
    points = []
    for place in picked:
        x, mean = float(band.x[place]), float(band.mean[place])
        half = float(band.high[place] - band.low[place]) / 2
        text = f"{named} {x:g}: {how.shown.around(mean, half)} {how.shown.unit}".rstrip()
        points.append(style.Point(axis, x * factor, mean * scale, text, key))
    return points


def _scale(axes: Any, drawn: Sequence[Band], shown: Metric, log: bool) -> None:
    """Set the y range: from the means, for accuracies from the later part of the curves."""
    if not drawn or not (log or shown.worst):  # only an accuracy has a worst value
        return
    means = np.concatenate([band.mean for band in drawn]) * shown.scale
    if log:
        low, high = means.min() / 1.25, means.max() * 1.25
    else:
        start = _LATE * max(band.x.max() for band in drawn)
        late = np.concatenate([band.mean[band.x >= start] for band in drawn]) * shown.scale
        last = min(band.mean[-1] for band in drawn if band.x[-1] >= start) * shown.scale
        low, high = min(np.quantile(late, 0.05), last), late.max()
        # Leave half of the range again below, for the early epochs and the worst curves.
        span = high - low
        low, high = max(low - 0.5 * span, 0.0), min(high + 0.06 * span, 101.0)
    for axis in axes:
        if log:
            axis.set_yscale("log")
            style.plain_log(axis.yaxis, low, high)
        if high > low:
            axis.set_ylim(low, high)


def _handles(study: Study, rows: list[Any], training: bool) -> list[Line2D]:
    handles = []
    for row in rows:
        look = style.look(study.row_factor, row, study.rows)
        handles.append(style.handle(look, study.row(row), marker=False))
    if training:
        for dashes, label in (("-", "validation"), (style.DOTTED, "training")):
            handles.append(style.handle(style.Look(style.INK, "", dashes), label, marker=False))
    return handles
