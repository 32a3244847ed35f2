"""The heat map of differences from the baseline, rows × columns."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap, Normalize

from normbench.report import names as labels
from normbench.report.figures import style
from normbench.report.grid import Grid

_LIGHT, _DARK = "#ffffff", "#000000"


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the heat map if any row can be compared with a baseline."""
    directed = grid.baseline is not None and grid.metric.higher_is_better is not None
    return [draw(grid)] if directed and any(_compared(grid, r) for r in grid.study.rows) else []


@style.styled
def draw(grid: Grid) -> style.Drawing:
    """Draw the paired differences from the baseline; green-blue is better, brown worse.

    Only significant differences (Holm) have a color and a star; others are gray. Cells with
    diverged runs read ``div.``; cells that cannot be compared are empty. The color scale ends at
    the largest difference between cells without diverged runs.
    """
    study, metric = grid.study, grid.metric
    rows = [row for row in study.rows if row != grid.baseline and _compared(grid, row)]
    values = np.full((len(rows), len(study.columns)), np.nan)
    clean_values = []
    for i, row in enumerate(rows):
        for j, column in enumerate(study.columns):
            cell = grid.get(row, column)
            if cell is not None and cell.baseline is not None and cell.baseline.n:
                values[i, j] = cell.baseline.mean * metric.scale
                if not cell.diverged:
                    clean_values.append(abs(values[i, j]))
    limit = max(clean_values, default=0.0) or 1.0
    width = style.column() if len(study.columns) <= 6 else style.page()
    unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
    names = style.wrapped([study.row(row) for row in rows], 1.1)
    ticks = style.name_ticks(
        [study.column(column) for column in study.columns],
        (width - 0.75 - _widest(names)) / len(study.columns),
    )
    # The label runs along the color bar, so its lines must not be longer than the bar.
    legend = style.wrap(f"Difference from {study.in_words(grid.baseline)}{unit}", 2.4, size=7.5)
    tall = max(0.27, 0.1 + style.LINE + style.more_lines(names))
    height = max(0.85 + tall * len(rows) + ticks.height, 0.5 + ticks.height + _widest([legend]))
    figure, axes = style.new(width, height)
    axis = axes[0, 0]
    colors = mpl.colormaps["BrBG" if metric.higher_is_better else "BrBG_r"]
    norm = Normalize(-limit, limit)
    colored_values = np.full_like(values, np.nan)
    neutral_values = np.full_like(values, np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(study.columns):
            cell = grid.get(row, column)
            is_significant = (
                cell is not None and cell.baseline is not None and cell.baseline.significant
            )
            (colored_values if is_significant else neutral_values)[i, j] = values[i, j]
    edges: dict[str, Any] = {"edgecolors": style.PAPER, "linewidth": 1.0}
    axis.pcolormesh(
        np.ma.masked_invalid(0 * neutral_values), cmap=ListedColormap([style.GRID]), **edges
    )
    image = axis.pcolormesh(np.ma.masked_invalid(colored_values), cmap=colors, norm=norm, **edges)
    points = []
    for i, row in enumerate(rows):
        for j, column in enumerate(study.columns):
            cell = grid.get(row, column)
            if math.isnan(values[i, j]) or cell is None or cell.baseline is None:
                continue
            text = f"{values[i, j]:+.{_digits(limit)}f}" + (
                "*" if cell.baseline.significant else ""
            )
            text = "div." if cell.diverged else text
            red, green, blue, _ = colors(norm(values[i, j]))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            axis.text(
                j + 0.5,
                i + 0.5,
                style.minus(text),
                ha="center",
                va="center",
                fontsize=style.points(6),
                color=style.INK if math.isnan(colored_values[i, j]) else _DARK if dark else _LIGHT,
            )
            tooltip = _hover(grid, row, column)
            points.append(style.Point(axis, j + 0.5, i + 0.5, tooltip, (row, column)))
    axis.set_yticks(np.arange(len(rows)) + 0.5, names)
    axis.set_xticks(np.arange(len(study.columns)) + 0.5, ticks.names, rotation=ticks.rotation)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.invert_yaxis()
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_ylabel(study.legend_title)
    if study.column_factor:
        axis.set_xlabel(style.wrap(labels.factor(study.column_factor), 2.0))
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(legend)
    return style.Drawing(
        f"{metric.slug}-heatmap",
        f"{metric.label}, difference from {study.in_words(grid.baseline)}{unit}: {study.heading}. "
        "Green-blue is better, brown worse, p < 0.05 after Holm's correction (*). Gray: not "
        "significant, or not tested; div.: with diverged runs.",
        figure,
        points,
        wide=width > style.column(),
    )


def _widest(names: list[str]) -> float:
    """Return the width in inches of the widest line of wrapped names."""
    lines = [line for name in names for line in name.split("\n")]
    return max((style.text_width(line, 7.5) for line in lines), default=0.0)


def _compared(grid: Grid, row: object) -> bool:
    """Return whether any cell of the row shares a seed with the baseline's."""
    cells = [grid.get(row, column) for column in grid.study.columns]
    return any(c is not None and c.baseline is not None and c.baseline.n for c in cells)


def _digits(limit: float) -> int:
    return max(0, min(3, 1 - math.floor(math.log10(limit)))) if limit < 10 else 1


def _hover(grid: Grid, row: object, column: object) -> str:
    cell = grid.cells[row, column]
    difference, metric = cell.baseline, grid.metric
    assert difference is not None
    text = f"{grid.study.row(row)} − {grid.study.in_words(grid.baseline)}"
    if grid.study.column_factor:
        text += f" at {grid.study.column(column)}"
    text += f": {metric.difference(difference)}"
    text += f" {metric.difference_unit}".rstrip()
    if difference.tested:
        text += f", p = {difference.p:.3g}, corrected {difference.p_corrected:.3g}"
    return text
