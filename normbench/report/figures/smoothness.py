"""The figure of the loss along the gradient over training, as in Santurkar et al. 2018."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator

from normbench.report import names as labels
from normbench.report.bands import FEW, Band, bands, joined, singles
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study

_PREFIX = "probe/smoothness/"
_MOST = 4  # maximum number of study rows in a figure, so that bands can be distinguished
_TALL = 4  # maximum number of study columns in a figure, each a line of panels
_HOVERED = 10
Key = tuple[Any, Any]


class _Panel(NamedTuple):
    """A panel: a band from ``low`` to ``high``, or a curve if they are the same column."""

    label: str
    low: str
    high: str


PANELS = (
    _Panel("Loss along the gradient", "loss_low", "loss_high"),
    _Panel("Change of the gradient", "change_low", "change_high"),
    _Panel("Effective β-smoothness", "beta", "beta"),
)
"""The panels a, b, c of figure 4 of the paper."""


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the figures of the study; see :func:`draw`."""
    return draw(grid.study)


@style.styled
def draw(study: Study) -> list[style.Drawing]:
    """Draw ranges of loss and gradient change, and β, against steps; a line of panels per column.

    A filled band extends from the smallest to the largest value over the step sizes, both geometric
    means over seeds; the paler rim adds their 95 % intervals if there are more than a few runs. The
    list is empty if no run has the probe ``smoothness``.
    """
    curves = joined(study)
    names = {name for panel in PANELS for name in (panel.low, panel.high)}
    names = {name for name in names if f"{_PREFIX}{name}" in curves.columns}
    name_bands = {
        name: bands(curves, f"{_PREFIX}{name}", "step", log=True) for name in sorted(names)
    }
    single_cells = {key for name in names for key in singles(curves, f"{_PREFIX}{name}", "step")}
    keys = {key for cell_bands in name_bands.values() for key in cell_bands}
    rows = [row for row in study.rows if any(key[0] == row for key in keys)]
    columns = [column for column in study.columns if any(key[1] == column for key in keys)]
    parts = [
        (rows[i : i + _MOST], columns[j : j + _TALL])
        for i in range(0, len(rows), _MOST)
        for j in range(0, len(columns), _TALL)
    ]
    return [
        _drawing(study, name_bands, single_cells, *part, f"-{number}" if len(parts) > 1 else "")
        for number, part in enumerate(parts, start=1)
    ]


def _drawing(
    study: Study,
    name_bands: dict[str, dict[Key, Band]],
    single_cells: set[Key],
    rows: list[Any],
    columns: list[Any],
    number: str,
) -> style.Drawing:
    keys = {key for cell_bands in name_bands.values() for key in cell_bands}
    height = 1.65 * len(columns) + 0.3
    height += style.legend_height([study.row(row) for row in rows], style.page(), 8)
    figure, grid = style.new(style.page(), height, len(columns), len(PANELS), sharex="row")
    points = []
    for index, panel in enumerate(PANELS):
        curves = []
        for line, column in enumerate(columns):
            axis = grid[line][index]
            for row in rows:
                key = (row, column)
                if all(key in name_bands.get(name, {}) for name in (panel.low, panel.high)):
                    low, high = _shared(name_bands[panel.low][key], name_bands[panel.high][key])
                    curves += [low.mean, high.mean]
                    points += _series(
                        axis, study, key, panel, low, high, rim=key not in single_cells
                    )
        _ranges([line[index] for line in grid], curves)
        grid[0][index].set_title(panel.label)
    for line, column in enumerate(columns):
        if study.column_factor:
            factor = labels.factor(study.column_factor)
            grid[line][0].set_ylabel(style.wrap(f"{factor} {study.column(column)}", 1.3, size=7.5))
    for axis in grid[-1]:
        axis.set_xlabel("Step")
    handles = style.row_handles(study, rows)
    style.legend(figure, handles, 8, study.legend_title)
    return style.Drawing(
        f"smoothness{number}",
        "Range of the loss and of the change of the gradient over steps of several sizes along "
        "the gradient of a training mini-batch, and effective β-smoothness, the largest change of "
        f"the gradient over the distance moved, against steps of training: {study.heading}. As in "
        "figure 4 of Santurkar et al. 2018. Geometric means over seeds"
        + (", paler: 95 % t intervals of the logarithm." if keys - single_cells else ".")
        + (f" Cells with up to {FEW} runs have no interval." if single_cells else ""),
        figure,
        points,
        wide=True,
    )


def _shared(low: Band, high: Band) -> tuple[Band, Band]:
    """Return both bands, restricted to the steps that both have."""
    steps = np.intersect1d(low.x, high.x)
    masks = [np.isin(band.x, steps) for band in (low, high)]
    first, second = (
        Band(*(values[places] for values in band))
        for band, places in zip((low, high), masks, strict=True)
    )
    return first, second


def _series(
    axis: Axes, study: Study, key: Key, panel: _Panel, low: Band, high: Band, *, rim: bool
) -> list[style.Point]:
    look = style.look(study.row_factor, key[0], study.rows)
    if rim:
        bottom = np.where(np.isfinite(low.low), low.low, low.mean)
        top = np.where(np.isfinite(high.high), high.high, high.mean)
        axis.fill_between(low.x, bottom, top, facecolor=to_rgba(look.color, 0.10), linewidth=0)
    markers = style.sparse_mark(look, len(low.x), study.rows.index(key[0]))
    if panel.low == panel.high:
        axis.plot(
            low.x, low.mean, color=look.color, linestyle=look.dashes, linewidth=1.0, **markers
        )
    else:
        axis.fill_between(
            low.x, low.mean, high.mean, facecolor=to_rgba(look.color, 0.17), linewidth=0
        )
        for band in (low, high):
            axis.plot(
                band.x,
                band.mean,
                color=look.color,
                linestyle=look.dashes,
                linewidth=0.8,
                **markers,
            )
    places = np.unique(np.linspace(0, len(low.x) - 1, _HOVERED).round().astype(int))
    points = []
    for place in places:
        x, least, most = (float(v[place]) for v in (low.x, low.mean, high.mean))
        values = f"{least:.3g}" if panel.low == panel.high else f"{least:.3g} to {most:.3g}"
        text = f"{study.cell(key)}, step {x:g}: {panel.label.lower()} {values}"
        points.append(style.Point(axis, x, float(np.sqrt(least * most)), text, key))
    return points


def _ranges(axes: list[Axes], curves: list[np.ndarray]) -> None:
    """Set one logarithmic range for a quantity in all columns of the study."""
    values = np.concatenate(curves) if curves else np.array([])
    values = values[np.isfinite(values) & (values > 0)]
    for axis in axes:
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if len(values):
            low, high = values.min() / 1.3, values.max() * 1.3
            style.plain_log(axis.yaxis, low, high)
            axis.set_ylim(low, high)
