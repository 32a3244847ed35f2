"""The figures over all columns at once (Agarwal et al. 2021): profiles and improvements."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import to_rgba

from normbench.report import names as labels
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.statistics import Profile


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the comparisons over all columns: improvements, then profiles."""
    is_multiple = len(grid.study.columns) > 1
    drawings = [draw_improvements(grid)] if is_multiple and grid.improvements else []
    return drawings + ([draw_profiles(grid)] if grid.profiles else [])


@style.styled
def draw_profiles(grid: Grid) -> style.Drawing:
    """Draw the share of runs better than each value, with the 95 % bootstrap band."""
    study, metric, profiles = grid.study, grid.metric, grid.profiles
    sign = 1.0 if metric.higher_is_better else -1.0
    figure, axes = style.new(
        style.column(), 2.3 + style.legend_height([study.row(row) for row in profiles])
    )
    axis = axes[0, 0]
    handles = []
    for place, (row, profile) in enumerate(profiles.items()):
        look = style.look(study.row_factor, row, study.rows)
        x = sign * profile.thresholds * metric.scale
        axis.fill_between(
            x,
            100 * profile.low,
            100 * profile.high,
            step="post",
            facecolor=to_rgba(look.color, 0.13),
            linewidth=0,
        )
        axis.plot(
            x,
            100 * profile.share,
            color=look.color,
            linestyle=look.dashes,
            drawstyle="steps-post",
            **style.sparse_mark(look, len(x), place),
        )
        handles.append(style.handle(look, study.row(row)))
    middle = _middle(profiles, any(cell.diverged for cell in grid.cells.values()))
    if middle is not None:
        low, high = sorted(sign * metric.scale * end for end in middle)
        axis.set_xlim(low, high)
    if sign < 0:
        axis.invert_xaxis()
    axis.set_ylim(-2, 102)
    axis.set_xlabel(f"{metric.label} τ" + (f" ({metric.unit})" if metric.unit else ""))
    axis.set_ylabel("Runs better than τ (%)")
    style.legend(figure, handles, title=study.legend_title)
    return style.Drawing(
        f"{metric.slug}-profiles",
        f"Performance profiles over {_tasks(grid)}: {study.heading}. Share of runs whose "
        f"{metric.label.lower()} is better than τ, the mean over tasks, with 95 % bands from a "
        f"stratified bootstrap (Agarwal et al. 2021).{_absent(grid, profiles)}",
        figure,
    )


@style.styled
def draw_improvements(grid: Grid) -> style.Drawing:
    """Draw each row's probability of doing better than the baseline, with its 95 % interval."""
    study, improvements = grid.study, grid.improvements
    base = study.in_words(grid.baseline)
    names = style.wrapped([_named(grid, row, improvements[row].tasks) for row in improvements], 1.1)
    label = style.wrap(f"Probability of a better run than {base}'s", 1.9, size=7.5)
    tall = max(0.24, 0.08 + style.LINE + style.more_lines(names))
    height = 0.75 + tall * len(improvements) + style.more_lines([label])
    figure, axes = style.new(style.column(), height)
    axis = axes[0, 0]
    points = []
    for place, (row, result) in enumerate(improvements.items()):
        look = style.look(study.row_factor, row, study.rows)
        if np.isfinite(result.low):
            ends = [result.low, result.high]
            axis.plot(ends, [place, place], color=look.color, linewidth=2.0, solid_capstyle="butt")
        axis.plot(
            result.probability,
            place,
            color=look.color,
            **style.mark(look),
        )
        text = f"{study.row(row)}: {result.probability:.2f}"
        if np.isfinite(result.low):
            text += f" ({result.low:.2f} to {result.high:.2f})"
        points.append(style.Point(axis, result.probability, place, text, (row, None)))
    axis.axvline(0.5, color=style.INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    axis.set_yticks(range(len(improvements)), names)
    axis.set_ylabel(study.legend_title)
    axis.set_ylim(len(improvements) - 0.5, -0.5)
    axis.set_xlim(-0.03, 1.03)
    axis.grid(False, axis="y")
    axis.set_xlabel(label)
    return style.Drawing(
        f"{grid.metric.slug}-improvement",
        f"Probability that a run does better in {grid.metric.label.lower()} than one of {base}, "
        f"over {_tasks(grid)}: {study.heading}. Bars: 95 % stratified bootstrap intervals; dashed: "
        "an even chance. In brackets: tasks shared with the baseline, if not all.",
        figure,
        points,
    )


def _absent(grid: Grid, profiles: dict[Any, Profile]) -> str:
    """Name the rows without a profile."""
    names = [grid.study.row(row) for row in grid.study.rows if row not in profiles]
    return f" Left out, since they lack runs: {', '.join(names)}." if names else ""


def _named(grid: Grid, row: Any, tasks: int) -> str:
    """Return a row's name, with the number of tasks if it is not all of them."""
    count = len(grid.study.columns)
    return grid.study.row(row) + (f" ({tasks} of {count})" if tasks < count else "")


def _tasks(grid: Grid) -> str:
    if not grid.study.column_factor:
        return "one task"
    return labels.several(grid.study.column_factor, len(grid.study.columns))


def _middle(profiles: dict[Any, Profile], has_diverged: bool) -> tuple[float, float] | None:
    """Return the range of thresholds at which shares other than 0 and 1 occur.

    Diverged runs are disregarded.
    """
    thresholds = [p.thresholds[(p.share > 0.0) & (p.share < 1.0)] for p in profiles.values()]
    all_thresholds = np.concatenate(thresholds) if thresholds else np.array([])
    if not len(all_thresholds):
        return None
    low, high = float(all_thresholds.min()), float(all_thresholds.max())
    # Runs below a gap of a quarter of the range are taken to be diverged runs at chance level.
    steps = np.concatenate([p.thresholds[1:][np.diff(p.share) != 0] for p in profiles.values()])
    steps = np.sort(steps)
    gaps = np.diff(steps)
    if has_diverged and len(gaps) and gaps.max() > 0.25 * (high - low):
        low = float(steps[int(gaps.argmax()) + 1])
    margin = 0.03 * (high - low) or 1e-3
    return low - margin, high + margin
