"""The figures of tuned keys: sensitivity to their values, and the benefit of more trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from normbench.formats import capitalized
from normbench.report import names as labels
from normbench.report import tuning
from normbench.report.caveats import join_names, words
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study
from normbench.report.tuning import CellTuning, Tried
from normbench.report.tuning_tables import columns_of, heading, rows_of

PANELS = 3  # per row of the page
_LABELED = 6  # maximum number of labeled ticks on an axis of values
_STRIP = 0.055  # height of a row of crosses, as a fraction of the axes
_RANGE = 4.0  # the worst means are cut off beyond this multiple of the better half's range


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the sensitivity to each tuned key, and the expected best of n trials."""
    study = grid.study
    if not study.tuned:
        return []
    candidates = [sensitivity(study, key) for key in tuning.tuned_keys(study.tuned)]
    drawings = [drawing for drawing in candidates if drawing is not None]
    if any(len(cell.expected_best()) > 1 for cell in study.tuned):
        drawings.append(expected(study))
    return drawings


class _Panels(NamedTuple):
    """The axes of a figure with a panel for each column.

    Attributes:
        figure: The figure.
        axes: An axes for each column with tuned cells.
        cells: The cells of each axes.
        wide: The number of panels per row.
    """

    figure: Any
    axes: list[Axes]
    cells: list[list[CellTuning]]
    wide: int


def _panels(study: Study, names: Sequence[str]) -> _Panels:
    """Make a panel for each column, with room for a legend of ``names``."""
    columns = columns_of(study)
    count = len(columns)
    wide = 2 if count == 4 else min(count, PANELS)
    tall = -(-count // wide)
    width = style.column() if count == 1 else style.page()
    factor = labels.factor(study.column_factor) if study.column_factor else ""
    titles = [f"{factor} {study.column(column)}" if factor else "" for column in columns]
    titles = style.wrapped(titles, width / wide - 0.45, size=7.5)
    height = (1.95 + style.more_lines(titles)) * tall + 0.3
    height += style.legend_height(names, width, 8)
    figure, grid = style.new(width, height, tall, wide, sharex=True, sharey=True)
    axes = list(grid.ravel())
    for axis in axes[count:]:
        axis.set_visible(False)
    cells = []
    for axis, column, title in zip(axes, columns, titles, strict=False):
        if title:
            axis.set_title(title)
        order = rows_of(study)
        column_cells = [cell for cell in study.tuned if cell.column == column]
        cells.append(sorted(column_cells, key=lambda cell: order.index(cell.row)))
    return _Panels(figure, axes[:count], cells, wide)


def _labeled(panels: _Panels, x: str, y: str, unit: str) -> str:
    """Label the outer axes; return a sentence if the vertical one is cut."""
    count = len(panels.axes)
    is_cut = unit == "%" and panels.axes[0].get_ylim()[0] > 0
    note = ""
    for place, axis in enumerate(panels.axes):
        if place % panels.wide == 0:
            axis.set_ylabel(y)
            note = style.mark_cut(axis) if is_cut else ""
        if place + panels.wide >= count:
            axis.set_xlabel(x)
            axis.tick_params(labelbottom=True)
    return note


# --- sensitivity ----------------------------------------------------------------------------------


@style.styled
def sensitivity(study: Study, key: str) -> style.Drawing | None:
    """Draw the metric of trials against the values of a key, a line for each row.

    Chosen values have a ring; diverged trials are crosses at the bottom. Other tuned keys have
    their chosen values. Points are not joined if the values are not numbers, or if a sampler
    proposed values of several keys, because the other keys then vary as well. None if no trial has
    ended.
    """
    cells = [cell for cell in study.tuned if key in cell.cell.keys and cell.along(key)]
    values = tuning.values_of(cells, key)
    if not any(
        candidate.scores or candidate.diverged for cell in cells for candidate in cell.along(key)
    ):
        return None
    numeric, log = tuning.is_numeric(values), tuning.on_log_scale(cells, key)
    is_sampled = numeric and any(cell.cell.sampler is not None for cell in cells)
    where: Callable[[Any], float] = float if numeric else values.index
    rows = rows_of(study)
    is_scattered = any(cell.scattered for cell in cells)
    is_joined = numeric and not is_scattered
    handles = [
        style.handle(style.look(study.row_factor, row, rows), study.row(row), line=is_joined)
        for row in rows
    ]
    handles.append(_ring(label="chosen"))
    has_diverged = any(candidate.diverged for cell in cells for candidate in cell.along(key))
    if has_diverged:
        cross = Line2D([], [], color=style.INK, marker="x", markersize=4, linestyle="none")
        cross.set_label("diverged trial")
        handles.append(cross)
    panels = _panels(study, [str(handle.get_label()) for handle in handles])
    scores = [
        score for cell in cells for candidate in cell.along(key) for score in candidate.scores
    ]
    higher, scale = cells[0].cell.higher_is_better, cells[0].metric.scale
    limits = _limits([score * scale for score in scores], higher)
    low, high, _ = limits
    crossing = max(
        (sum(_diverges(c, key) for c in panel_cells) for panel_cells in panels.cells), default=0
    )
    points = []
    for axis, panel_cells in zip(panels.axes, panels.cells, strict=True):
        place = 0
        for cell in panel_cells:
            if key not in cell.cell.keys:
                continue
            look = style.look(study.row_factor, cell.row, rows)
            points += _means(axis, study, cell, key, look, where, is_joined)
            if _diverges(cell, key):
                x = [
                    where(candidate.values[key])
                    for candidate in cell.along(key)
                    if candidate.diverged
                ]
                height = _STRIP * (crossing - place - 0.3)
                _crosses(axis, x, height, look)
                place += 1
    if high > low:
        room = _STRIP * crossing
        low -= room / (1 - room) * (high - low)
        panels.axes[0].set_ylim(low, high)
    ticks = [where(value) for value in values]
    if log:
        panels.axes[0].set_xscale("log")
        panels.axes[0].set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    elif len(ticks) > 1:
        margin = 0.06 * (ticks[-1] - ticks[0])
        panels.axes[0].set_xlim(ticks[0] - margin, ticks[-1] + margin)
    for axis in panels.axes:
        if not is_sampled:
            _ticks(axis, ticks, [tuning.value_text(value) for value in values])
        elif log:  # values may lie anywhere, so use the ticks of the scale
            style.plain_log(axis.xaxis, ticks[0], ticks[-1])
    cut_note = _labeled(panels, capitalized(words(key)), heading(cells), cells[0].metric.unit)
    style.legend(panels.figure, handles, 8, study.legend_title)
    seeds = max(len(candidate.trials) for cell in cells for candidate in cell.tried)
    description = (
        "Mean over tuning seeds, with a point for each seed" if seeds > 1 else "One tuning seed"
    )
    other_keys = [words(other) for other in tuning.tuned_keys(study.tuned) if other != key]
    variation = "varied with it" if is_scattered else "as chosen"
    condition = f", {join_names(other_keys)} {variation}" if other_keys else ""
    return style.Drawing(
        "sensitivity" + (f"-{tuning.short(key)}" if other_keys else ""),
        f"{cells[0].metric.label} of trials against {words(key)}{condition}: {study.heading}. "
        f"{description}. Ring: chosen.{' Cross: diverged.' if has_diverged else ''}"
        f"{_left(limits, higher, is_joined)}{cut_note}",
        panels.figure,
        points,
        wide=len(panels.axes) > 1,
    )


def _means(
    axis: Axes,
    study: Study,
    cell: CellTuning,
    key: str,
    look: style.Look,
    where: Callable[[Any], float],
    is_joined: bool,
) -> list[style.Point]:
    """Draw the means of a cell, a point for each seed, and the ring; return points for the page."""
    candidates, scale = cell.along(key), cell.metric.scale
    x = np.array([where(candidate.values[key]) for candidate in candidates])
    means = np.array([_mean(candidate) for candidate in candidates]) * scale
    dashes = look.dashes if is_joined else "none"
    axis.plot(x, means, color=look.color, linestyle=dashes, linewidth=1.0, **style.mark(look))
    points = []
    for candidate, across, mean in zip(candidates, x, means, strict=True):
        if len(candidate.trials) > 1:
            scores = np.array(candidate.scores) * scale
            axis.plot(
                np.full(len(scores), across),
                scores,
                color=look.color,
                linestyle="none",
                marker=".",
                markersize=3.5,
                markeredgewidth=0,
                alpha=0.6,
                zorder=1.9,
            )
        if math.isnan(mean):
            continue
        if candidate.values == cell.cell.chosen:
            ring = _ring(look.color)
            ring.set_data([across], [mean])
            axis.add_line(ring)
        text = (
            f"{study.row(cell.row)}, {tuning.short(key)} "
            f"{tuning.value_text(candidate.values[key])}: "
        )
        text += f"{cell.metric.show(mean / scale)} {cell.metric.unit}".rstrip()
        if len(candidate.trials) > 1:
            text += f" ({len(candidate.scores)} of {len(candidate.trials)} seeds)"
        points.append(style.Point(axis, float(across), float(mean), text, (cell.row, cell.column)))
    return points


def _mean(candidate: Tried) -> float:
    """Return the mean of the trials that finished; NaN if none did."""
    return float(np.mean(candidate.scores)) if candidate.scores else math.nan


def _diverges(cell: CellTuning, key: str) -> bool:
    return key in cell.cell.keys and any(candidate.diverged for candidate in cell.along(key))


def _ring(color: str = style.INK, label: str = "") -> Line2D:
    return Line2D(
        [],
        [],
        marker="o",
        markersize=8.5,
        markerfacecolor="none",
        markeredgecolor=color,
        markeredgewidth=1.1,
        linestyle="none",
        label=label,
        zorder=6,
    )


def _crosses(axis: Axes, x: Sequence[float], height: float, look: style.Look) -> None:
    """Draw crosses at the given height of the panel, one row of crosses for each line."""
    axis.plot(
        x,
        [height] * len(x),
        color=look.color,
        marker="x",
        markersize=4,
        linestyle="none",
        transform=axis.get_xaxis_transform(),
        zorder=5,
    )


class _Limits(NamedTuple):
    """The y limits; ``cut`` is True if the worst values are left out."""

    low: float
    high: float
    cut: bool


def _limits(values: Sequence[float], higher_is_better: bool) -> _Limits:
    """Return y limits that make differences near the best visible."""
    if not values:
        return _Limits(math.nan, math.nan, False)
    low, high, median = min(values), max(values), float(np.median(values))
    spread = high - median if higher_is_better else median - low
    is_cut = spread > 0 and high - low > _RANGE * spread
    if is_cut and higher_is_better:
        low = high - _RANGE * spread
    elif is_cut:
        high = low + _RANGE * spread
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return _Limits(low - margin, high + margin, is_cut)


def _left(limits: _Limits, higher_is_better: bool, is_joined: bool = True) -> str:
    """Return a caption's sentence on lines or points outside the panels."""
    side = "below" if higher_is_better else "above"
    if not limits.cut:
        return ""
    if not is_joined:
        return f" Points {side} the panels are left out."
    return f" Lines that leave a panel continue {side} it."


def _ticks(axis: Axes, ticks: Sequence[float], names: Sequence[str]) -> None:
    """Label the values tried, or every second or third if there are many."""
    step = -(-len(ticks) // _LABELED)
    names_by_tick = dict(zip(ticks[::step], names[::step], strict=True))
    axis.xaxis.set_major_locator(FixedLocator(list(names_by_tick)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _nearest(names_by_tick, value)))
    axis.xaxis.set_minor_locator(FixedLocator(list(ticks)) if step > 1 else NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _nearest(names_by_tick: dict[float, str], value: float) -> str:
    """Return the name of the nearest tick; Matplotlib's position may have a rounding error."""
    return names_by_tick[min(names_by_tick, key=lambda tick: abs(tick - value))]


# --- the expected best of n trials ----------------------------------------------------------------


@style.styled
def expected(study: Study) -> style.Drawing:
    """Draw the expected best validation metric against the number of values tried."""
    rows = rows_of(study)
    rows_with_best = [
        row for row in rows if any(c.row == row and c.expected_best() for c in study.tuned)
    ]
    handles = [
        style.handle(style.look(study.row_factor, row, rows), study.row(row))
        for row in rows_with_best
    ]
    panels = _panels(study, [str(handle.get_label()) for handle in handles])
    points, all_values = [], []
    has_diverged = False
    for axis, panel_cells in zip(panels.axes, panels.cells, strict=True):
        for cell in panel_cells:
            best = cell.expected_best()
            if not best:
                continue
            has_diverged |= any(candidate.diverged for candidate in cell.tried)
            look = style.look(study.row_factor, cell.row, rows)
            counts = np.arange(1, len(best) + 1)
            heights = np.array(best) * cell.metric.scale
            all_values += list(heights)
            line = {"color": look.color, "linestyle": look.dashes, "linewidth": 1.0}
            axis.plot(counts, heights, **line, **style.mark(look))
            for n, value, y in zip(counts, best, heights, strict=True):
                text = f"{study.row(cell.row)}, best of {n}: {cell.metric.show(value)}"
                text = f"{text} {cell.metric.unit}".rstrip()
                key = (cell.row, cell.column)
                points.append(style.Point(axis, float(n), float(y), text, key))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    higher = study.tuned[0].cell.higher_is_better
    limits = _limits(all_values, higher)
    if limits.high > limits.low:
        panels.axes[0].set_ylim(limits.low, limits.high)
    label = heading(study.tuned)
    has_combinations = any(len(cell.cell.keys) > 1 for cell in study.tuned)
    x_label = "Combinations tried, n" if has_combinations else "Values tried, n"
    metric = study.tuned[0].metric
    cut_note = _labeled(panels, x_label, f"Best of n: {label[:1].lower()}{label[1:]}", metric.unit)
    style.legend(panels.figure, handles, 8, study.legend_title)
    substitute = "at chance level" if metric.worst else "as the worst other one"
    return style.Drawing(
        "expected-best",
        f"Expected best {metric.label.lower()} of n of the values tried, drawn at random without "
        f"replacement (Dodge et al. 2019, unbiased form of Tang et al. 2020): {study.heading}."
        + (f" A value with a diverged trial counts {substitute}." if has_diverged else "")
        + _left(limits, higher)
        + cut_note,
        panels.figure,
        points,
        wide=len(panels.axes) > 1,
    )
