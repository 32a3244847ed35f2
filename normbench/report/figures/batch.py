"""The figure of a metric against batch size (or another column factor), as in Wu & He 2018."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from normbench.report import names as labels
from normbench.report.figures import style
from normbench.report.grid import Grid, GridCell, build
from normbench.report.references import Reference, matching


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the metric, and the error where the metric is an accuracy."""
    shown, study = grid.metric, grid.study
    references = matching(study.runs) if shown.name in ("test_acc", "test_err") else []
    drawings = [draw(grid, references)]
    if shown.complement is not None:
        drawings.append(draw(build(study, shown.complement), references))
    return drawings


@style.styled
def draw(grid: Grid, references: Sequence[Reference] = (), *, zero: bool = False) -> style.Drawing:
    """Draw the mean of each row against the columns, with the 95 % interval as a band.

    A cell with diverged runs whose mean is outside the range of the others is a cross at the
    edge. With ``zero`` the y axis starts at 0. Published results of the same configuration are
    hollow stars with a dotted line.
    """
    study, shown = grid.study, grid.metric
    names = _ticks(grid)
    height = 2.3 + style.legend_height([study.row(row) for row in study.rows])
    height += 0.3 * bool(references) + (names.height if names else 0.0)
    figure, axes = style.new(style.COLUMN, height)
    axis = axes[0, 0]
    place = _places(grid)
    low, high = _limits(grid, references)
    low = 0.0 if zero else low
    points, handles, crossed = [], [], False
    for row in study.rows:
        look = style.look(study.row_factor, row, study.rows)
        cells = [grid.get(row, column) for column in study.columns]
        x = np.array([place[column] for column in study.columns])
        mean, lower, upper = _lines(cells, shown.scale)
        outside = ~((mean >= low) & (mean <= high))
        inside = np.where(outside, np.nan, mean)
        if study.numeric_columns:
            axis.fill_between(
                x,
                np.where(outside, np.nan, lower),
                np.where(outside, np.nan, upper),
                facecolor=to_rgba(look.color, 0.13 if len(study.rows) < 5 else 0.08),
                edgecolor=to_rgba(look.color, 0.45),
                linewidth=0.4,
            )
        else:  # there is nothing between names: bars, side by side
            x = x + _aside(study.rows.index(row), len(study.rows))
            axis.vlines(x, lower, upper, color=look.color, linewidth=0.8)
        axis.plot(
            x,
            inside,
            color=look.color,
            linestyle=look.dashes if study.numeric_columns else "none",
            **style.mark(look),
        )
        if _any(cells):
            handles.append(style.handle(look, study.row(row), line=study.numeric_columns))
        edge = low if shown.higher_is_better is not False else high
        for where, cell, away in zip(x, cells, outside, strict=True):
            if cell is None or not (cell.sample.n or cell.all_diverged):
                continue
            y = edge if away else cell.sample.mean * shown.scale
            if away and shown.worst is None:
                continue
            if away:
                crossed = True
                axis.plot(where, y, marker="x", color=look.color, clip_on=False, zorder=5)
                axis.annotate(
                    "div.",
                    (where, y),
                    xytext=(0.0, 4.0 if y == low else -9.5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=5.5,
                    color=look.color,
                )
            points.append(style.Point(axis, float(where), y, hover(grid, cell), (row, cell.column)))
    _draw_references(axis, references, shown.scale, shown.name)
    if math.isfinite(low) and high > low:
        axis.set_ylim(low, high)
    _column_axis(axis, grid, names)
    axis.set_ylabel(shown.axis)
    handles += [_published(known) for known in references[:1]]
    style.legend(figure, handles, title=study.legend_title)
    factor = labels.factor(study.column_factor).lower() if study.column_factor else "all runs"
    return style.Drawing(
        f"{shown.slug}-by-{study.column_factor or 'all'}",
        f"{shown.label} against {factor}: {study.heading}. {_band(grid)}"
        + (" Cross (div.): beyond the axis, with diverged runs." if crossed else "")
        + "".join(f" Star: {known.text}." for known in references),
        figure,
        points,
    )


def hover(grid: Grid, cell: GridCell) -> str:
    """Return the text of a cell under the pointer: names, mean, interval, number of seeds."""
    study, shown = grid.study, grid.metric
    where = f"{labels.factor(study.column_factor).lower()} " if study.column_factor else ""
    text = f"{study.row(cell.row)}, {where}{study.column(cell.column)}: "
    if cell.all_diverged:
        return text + "all runs diverged"
    unit = f" {shown.unit}" if shown.unit else ""
    text += shown.estimate(cell.sample)
    seeds = f"{cell.sample.n} seeds" if cell.sample.n > 1 else "1 seed"
    diverged = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{text}{unit} ({seeds}{diverged})"


def _aside(place: int, count: int) -> float:
    """Return the offset of a row's points from the middle of a column."""
    return 0.0 if count < 2 else 0.5 * (place / (count - 1) - 0.5)


def _any(cells: Sequence[GridCell | None]) -> bool:
    return any(cell is not None and cell.sample.n for cell in cells)


def _places(grid: Grid) -> dict[object, float]:
    columns = grid.study.columns
    if grid.study.numeric_columns:
        return {column: float(column) for column in columns}
    return {column: float(place) for place, column in enumerate(columns)}


def _ticks(grid: Grid) -> style.NameTicks | None:
    """Return the ticks of columns that are names; None for numbers."""
    columns = grid.study.columns
    if grid.study.numeric_columns:
        return None
    return style.name_ticks([grid.study.column(c) for c in columns], 2.6 / len(columns))


def _column_axis(axis: Axes, grid: Grid, names: style.NameTicks | None) -> None:
    study = grid.study
    if study.numeric_columns and all(column > 0 for column in study.columns):
        style.log2_axis(axis, study.columns)
    elif names is not None:
        axis.set_xticks(range(len(study.columns)), names.names, rotation=names.rotation)
        axis.set_xlim(-0.4, len(study.columns) - 0.6)
    if study.column_factor:
        factor = labels.factor(study.column_factor)
        factor += " (images per step)" if study.column_factor == "batch" else ""
        axis.set_xlabel(style.wrap(factor, 2.6))


def _lines(
    cells: Sequence[GridCell | None], scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [(c.sample.mean, c.sample.low, c.sample.high) if c else (math.nan,) * 3 for c in cells]
    mean, low, high = (scale * np.array(values) for values in zip(*found, strict=True))
    return mean, low, high


def _limits(grid: Grid, references: Sequence[Reference]) -> tuple[float, float]:
    """Return y limits that show all cells without diverged runs and cut wide intervals."""
    every = [cell for cell in grid.cells.values() if cell.sample.n and not cell.all_diverged]
    clean = [cell for cell in every if not cell.diverged] or every
    if not clean:
        return math.nan, math.nan
    scale = grid.metric.scale
    means = [scale * cell.sample.mean for cell in clean]
    means += [scale * _value(known, grid.metric.name) for known in references]
    span = (max(means) - min(means)) or 0.05 * abs(means[0]) or 1.0
    ends = [scale * e for c in clean for e in (c.sample.low, c.sample.high) if math.isfinite(e)]
    low = max(min([*means, *ends]), min(means) - 0.6 * span) - 0.06 * span
    high = min(max([*means, *ends]), max(means) + 0.6 * span) + 0.06 * span
    if grid.metric.unit == "%":
        low, high = max(low, 0.0), min(high, 100.0 + 0.02 * span)
    return low, high


def _draw_references(axis: Axes, references: Sequence[Reference], scale: float, name: str) -> None:
    for known in references:
        y = scale * _value(known, name)
        axis.axhline(y, color=style.INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
        star = _published(known)
        star.set_data([known.batch], [y])
        star.set_zorder(6)
        axis.add_line(star)


def _published(known: Reference) -> Line2D:
    return Line2D(
        [],
        [],
        marker="*",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor=style.INK,
        linestyle="none",
        label=f"published ({labels.norm(known.norm)})",
    )


def _value(known: Reference, name: str) -> float:
    return known.test_err if name.endswith("err") else 1.0 - known.test_err


def _band(grid: Grid) -> str:
    if all(cell.sample.n < 2 for cell in grid.cells.values()):
        return "One seed: no interval."
    return f"Mean and 95 % t interval over seeds (n = {grid.seeds})."
