"""The figure of a metric against batch size (or another column factor), as in Wu & He 2018."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from normbench.report import names as labels
from normbench.report.bands import FEW
from normbench.report.figures import style
from normbench.report.grid import Grid, GridCell
from normbench.report.references import Reference, matching


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the metric, with published results of a test accuracy or error."""
    has_references = grid.metric.name in ("test_acc", "test_err")
    return [draw(grid, matching(grid.study.runs) if has_references else [])]


@style.styled
def draw(grid: Grid, references: Sequence[Reference] = (), *, zero: bool = False) -> style.Drawing:
    """Draw the mean of each row against the columns, with the 95 % interval as a band.

    If no cell has more than a few runs, each run is a dot instead of the interval. If there are
    many rows, each has its own panel, with the others in gray behind.

    A cell with diverged runs whose mean is outside the range of the others is shown as a cross at
    the edge. With ``zero`` the y axis starts at 0. Published results of the same configuration are
    hollow stars with a dotted line.
    """
    study, metric = grid.study, grid.metric
    low, high = _limits(grid, references)
    limits = (0.0 if zero else low, high)
    rows_with_runs = [row for row in study.rows if _any([grid.get(row, c) for c in study.columns])]
    panels = (
        [[row] for row in rows_with_runs] if len(rows_with_runs) >= style.MANY else [study.rows]
    )
    wide = style.panels_beside(len(panels))
    tall = -(-len(panels) // wide)
    room = 2.6 if wide == 1 else style.page() / wide - 0.4
    names = _ticks(grid, room)
    figure, axes, handles = _figure(grid, panels, wide, tall, names, bool(references))
    points, has_cross = [], False
    for axis, rows in zip(axes.ravel(), panels, strict=False):
        if len(panels) > 1:
            _draw_others(axis, grid, [row for row in rows_with_runs if row not in rows])
            axis.set_title(style.wrap(study.row(rows[0]), style.page() / wide - 0.3, size=7.5))
        for row in rows:
            row_points, is_away = _draw_row(
                axis, grid, row, limits, len(rows) if len(rows) > 1 else 1
            )
            points += row_points
            has_cross |= is_away
        _draw_references(axis, references, metric.scale, metric.name)
        if math.isfinite(limits[0]) and limits[1] > limits[0]:
            axis.set_ylim(*limits)
        _column_axis(axis, grid, names, room)
    is_cut = metric.unit == "%" and limits[0] > 0
    outer = style.outer(axes, len(panels), cut=is_cut)
    for axis in outer.left:
        axis.set_ylabel(metric.axis if tall == 1 else style.wrap(metric.axis, 1.3, size=7.5))
    handles += [_published(reference) for reference in references[:1]]
    style.legend(figure, handles, title=study.legend_title if len(panels) == 1 else "")
    factor = labels.factor(study.column_factor).lower() if study.column_factor else "all runs"
    return style.Drawing(
        f"{metric.slug}-by-{study.column_factor or 'all'}",
        f"{metric.label} against {factor}: {study.heading}. {_band(grid)}"
        + (" Gray: the other rows." if len(panels) > 1 else "")
        + (" Cross (div.): with diverged runs, beyond the axis." if has_cross else "")
        + outer.caption
        + "".join(f" Star: {reference.text}." for reference in references),
        figure,
        points,
        wide=len(panels) > 1,
    )


def _figure(
    grid: Grid,
    panels: Sequence[Sequence[Any]],
    wide: int,
    tall: int,
    names: style.NameTicks | None,
    has_references: bool,
) -> tuple[Any, Any, list[Line2D]]:
    """Return a figure with room for its legend, its axes, and the legend entries."""
    study = grid.study
    below = names.height if names else 0.0
    if len(panels) > 1:
        height = 1.3 * tall + 0.5 + below + 0.3 * has_references
        figure, axes = style.new(style.page(), height, tall, wide, sharex=True, sharey=True)
        return figure, axes, []
    height = 2.3 + style.legend_height([study.row(row) for row in study.rows])
    figure, axes = style.new(style.column(), height + 0.3 * has_references + below)
    handles = [
        style.handle(
            style.look(study.row_factor, row, study.rows),
            study.row(row),
            line=study.numeric_columns,
        )
        for row in study.rows
        if _any([grid.get(row, column) for column in study.columns])
    ]
    return figure, axes, handles


def _draw_others(axis: Axes, grid: Grid, rows: Sequence[Any]) -> None:
    """Draw the means of other rows in gray, behind the row of the panel."""
    place = _places(grid)
    for row in rows:
        mean, _, _ = _lines([grid.get(row, c) for c in grid.study.columns], grid.metric.scale)
        x = [place[column] for column in grid.study.columns]
        axis.plot(x, mean, color=style.GRAY, linewidth=0.5, alpha=0.35, zorder=1.5)


def _draw_row(
    axis: Axes, grid: Grid, row: Any, limits: tuple[float, float], count: int
) -> tuple[list[style.Point], bool]:
    """Draw one row; return its points for the page, and whether a cell is a cross at the edge.

    Args:
        axis: The axes.
        grid: The metric.
        row: The row.
        limits: The y limits.
        count: Number of rows in the axes.
    """
    study, metric = grid.study, grid.metric
    low, high = limits
    place = _places(grid)
    look = style.look(study.row_factor, row, study.rows)
    cells = [grid.get(row, column) for column in study.columns]
    x = np.array([place[column] for column in study.columns])
    mean, lower, upper = _lines(cells, metric.scale)
    is_outside = ~((mean >= low) & (mean <= high))
    mean_in_range = np.where(is_outside, np.nan, mean)
    if not study.numeric_columns:  # nothing lies between names, so place rows side by side
        x = x + _aside(study.rows.index(row) if count > 1 else 0, count)
    if _is_few(grid):
        positions = x
        if study.numeric_columns and all(column > 0 for column in study.columns):
            # Place the dots of rows side by side, a small fraction of an octave apart.
            positions = x * 2 ** (0.3 * _aside(study.rows.index(row) if count > 1 else 0, count))
        for where, cell in zip(positions, cells, strict=True):
            values = [] if cell is None else [metric.scale * v for v in cell.values.values()]
            values = [value for value in values if low <= value <= high]
            if len(values) > 1:
                axis.plot(
                    [where] * len(values),
                    values,
                    color=look.color,
                    alpha=0.55,
                    marker=".",
                    markersize=3.6,
                    markeredgewidth=0,
                    linestyle="none",
                    zorder=1.9,
                )
    elif study.numeric_columns:
        axis.fill_between(
            x,
            np.where(is_outside, np.nan, lower),
            np.where(is_outside, np.nan, upper),
            facecolor=to_rgba(look.color, 0.13 if count < 5 else 0.08),
            edgecolor=to_rgba(look.color, 0.45),
            linewidth=0.4,
        )
    else:
        axis.vlines(x, lower, upper, color=look.color, linewidth=0.8)
    dashes = look.dashes if study.numeric_columns else "none"
    axis.plot(x, mean_in_range, color=look.color, linestyle=dashes, **style.mark(look))
    points, has_cross = [], False
    edge = low if metric.higher_is_better is not False else high
    for where, cell, is_away in zip(x, cells, is_outside, strict=True):
        if cell is None or not (cell.sample.n or cell.all_diverged):
            continue
        y = edge if is_away else cell.sample.mean * metric.scale
        if is_away and metric.worst is None:
            continue
        if is_away:
            has_cross = True
            axis.plot(where, y, marker="x", color=look.color, clip_on=False, zorder=5)
            axis.annotate(
                "div.",
                (where, y),
                xytext=(0.0, 4.0 if y == low else -9.5),
                textcoords="offset points",
                ha="center",
                fontsize=style.points(5.5),
                color=look.color,
            )
        points.append(style.Point(axis, float(where), y, hover(grid, cell), (row, cell.column)))
    return points, has_cross


def hover(grid: Grid, cell: GridCell) -> str:
    """Return the tooltip of a cell: names, mean, interval, number of seeds."""
    study, metric = grid.study, grid.metric
    where = f"{labels.factor(study.column_factor).lower()} " if study.column_factor else ""
    text = f"{study.row(cell.row)}, {where}{study.column(cell.column)}: "
    if cell.all_diverged:
        return text + "all runs diverged"
    unit = f" {metric.unit}" if metric.unit else ""
    text += metric.estimate(cell.sample)
    seeds = f"{cell.sample.n} seeds" if cell.sample.n > 1 else "1 seed"
    note = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{text}{unit} ({seeds}{note})"


def _aside(place: int, count: int) -> float:
    """Return the offset of a row's points from the center of a column."""
    return 0.0 if count < 2 else 0.5 * (place / (count - 1) - 0.5)


def _any(cells: Sequence[GridCell | None]) -> bool:
    return any(cell is not None and cell.sample.n for cell in cells)


def _places(grid: Grid) -> dict[object, float]:
    columns = grid.study.columns
    if grid.study.numeric_columns:
        return {column: float(column) for column in columns}
    return {column: float(place) for place, column in enumerate(columns)}


def _ticks(grid: Grid, room: float) -> style.NameTicks | None:
    """Return the ticks of non-numeric columns, in ``room`` inches; None for numbers."""
    columns = grid.study.columns
    if grid.study.numeric_columns:
        return None
    return style.name_ticks([grid.study.column(c) for c in columns], room / len(columns))


def _column_axis(axis: Axes, grid: Grid, names: style.NameTicks | None, room: float) -> None:
    """Set ticks and label of the horizontal axis, whose label has ``room`` inches."""
    study = grid.study
    if study.numeric_columns and all(column > 0 for column in study.columns):
        style.log2_axis(axis, study.columns)
    elif names is not None:
        axis.set_xticks(range(len(study.columns)), names.names, rotation=names.rotation)
        axis.set_xlim(-0.4, len(study.columns) - 0.6)
    if study.column_factor:
        factor = labels.factor(study.column_factor)
        factor += " (images per step)" if study.column_factor == "batch" else ""
        axis.set_xlabel(style.wrap(factor, room, size=7.5))


def _lines(
    cells: Sequence[GridCell | None], scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    estimates = [
        (c.sample.mean, c.sample.low, c.sample.high) if c else (math.nan,) * 3 for c in cells
    ]
    mean, low, high = (scale * np.array(values) for values in zip(*estimates, strict=True))
    return mean, low, high


def _limits(grid: Grid, references: Sequence[Reference]) -> tuple[float, float]:
    """Return y limits that include all cells without diverged runs but may cut wide intervals."""
    cells = [cell for cell in grid.cells.values() if cell.sample.n and not cell.all_diverged]
    clean_cells = [cell for cell in cells if not cell.diverged] or cells
    if not clean_cells:
        return math.nan, math.nan
    scale = grid.metric.scale
    means = [scale * cell.sample.mean for cell in clean_cells]
    means += [scale * _value(reference, grid.metric.name) for reference in references]
    span = (max(means) - min(means)) or 0.05 * abs(means[0]) or 1.0
    if _is_few(grid):
        ends = [scale * value for cell in clean_cells for value in cell.values.values()]
    else:
        ends = [
            scale * e
            for c in clean_cells
            for e in (c.sample.low, c.sample.high)
            if math.isfinite(e)
        ]
    low = max(min([*means, *ends]), min(means) - 0.6 * span) - 0.06 * span
    high = min(max([*means, *ends]), max(means) + 0.6 * span) + 0.06 * span
    if grid.metric.unit == "%":
        low, high = max(low, 0.0), min(high, 100.0 + 0.02 * span)
    return low, high


def _draw_references(axis: Axes, references: Sequence[Reference], scale: float, name: str) -> None:
    for reference in references:
        y = scale * _value(reference, name)
        axis.axhline(y, color=style.INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
        star = _published(reference)
        star.set_data([reference.batch], [y])
        star.set_zorder(6)
        axis.add_line(star)


def _published(reference: Reference) -> Line2D:
    return Line2D(
        [],
        [],
        marker="*",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor=style.INK,
        linestyle="none",
        label=f"published ({labels.norm(reference.norm)})",
    )


def _value(reference: Reference, name: str) -> float:
    return reference.test_err if name.endswith("err") else 1.0 - reference.test_err


def _is_few(grid: Grid) -> bool:
    """Return whether all cells have so few runs that each is shown instead of an interval."""
    return all(cell.sample.n <= FEW for cell in grid.cells.values())


def _band(grid: Grid) -> str:
    if all(cell.sample.n < 2 for cell in grid.cells.values()):
        return "One seed: no interval."
    if _is_few(grid):
        return f"Mean over seeds (n = {grid.seeds}); dots: single seeds."
    return f"Mean and 95 % t interval over seeds (n = {grid.seeds})."
