"""The tables of a report: norm × batch matrices, differences, time, targets, lists of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from normbench.report import labels
from normbench.report.bootstrap import Improvement
from normbench.report.grid import Cell, Grid
from normbench.report.metrics import Metric
from normbench.report.statistics import ALPHA
from normbench.report.table import EMPTY, Entry, Table, entry, number, usual_count


def matrix(grid: Grid, slug: str = "") -> Table:
    """Rows × columns of one metric: mean ± half the 95 % interval, with the marks."""
    usual = usual_count(grid)
    rows = [
        [
            Entry(grid.study.row(row)),
            *(entry(grid.get(row, column), grid.metric, usual) for column in grid.study.columns),
        ]
        for row in grid.study.rows
    ]
    title = f"{grid.metric.axis}: {grid.study.title}"
    return Table(
        slug or grid.metric.name,
        title,
        [labels.factor(grid.study.row_factor), *map(grid.study.column, grid.study.columns)],
        rows,
        _matrix_notes(grid, usual),
        cells_data(grid),
        labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
    )


def differences(grid: Grid) -> Table:
    """Rows × columns of the paired difference to the baseline, significant ones starred."""
    base = grid.study.in_words(grid.baseline)
    rows = []
    for row in grid.study.rows:
        if row == grid.baseline:
            continue
        entries = [_difference(grid.get(row, column), grid.metric) for column in grid.study.columns]
        rows.append([Entry(grid.study.row(row)), *entries])
    unit = grid.metric.difference_unit
    what = f"{grid.metric.label}, difference to {base}" + (f" ({unit})" if unit else "")
    notes = [
        *grid.study.notes,
        "Mean of the differences paired by seed ± half of their 95 % t interval.",
        *_tests(grid),
    ]
    return Table(
        f"{grid.metric.name}-differences",
        f"{what}: {grid.study.title}",
        [labels.factor(grid.study.row_factor), *map(grid.study.column, grid.study.columns)],
        rows,
        notes,
        differences_data(grid),
        labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
    )


def comparisons(grid: Grid) -> Table:
    """Each comparison with the baseline in a line: interval, effect size, p-values."""
    unit = grid.metric.difference_unit
    rows = []
    for (row, column), cell in grid.cells.items():
        found = cell.baseline
        if found is None or not found.n:
            continue
        show = grid.metric.show
        untold = math.isnan(found.low)
        interval = "–" if untold else f"{show(found.low)} to {show(found.high)}"
        rows.append(
            [
                Entry(grid.study.row(row)),
                Entry(grid.study.column(column), number(column)),
                Entry(str(found.n), found.n),
                Entry(
                    f"{found.mean * grid.metric.scale:+.{grid.metric.digits}f}",
                    found.mean,
                    runs=cell.runs,
                ),
                Entry(interval, None if untold else found.low),
                _numeric(found.effect, "+.2f"),
                Entry(p_text(found.p), number(found.p)),
                Entry(p_text(found.p_corrected), number(found.p_corrected), best=found.significant),
            ]
        )
    base = grid.study.in_words(grid.baseline)
    return Table(
        f"{grid.metric.name}-comparisons",
        f"{grid.metric.label} against {base}, paired by seed: {grid.study.title}",
        [
            labels.factor(grid.study.row_factor),
            labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
            "n",
            f"Difference ({unit})" if unit else "Difference",
            "95 % interval",
            "Effect size",
            "p",
            "p (Holm)",
        ],
        rows,
        [
            *grid.study.notes,
            TIMED
            if grid.metric.timed
            else "Effect size: Cohen's d of the paired differences with Hedges's correction, from "
            "three seeds on. p: two-sided paired t test; Holm's correction covers all "
            "comparisons of this table. A dash: one seed, a diverged run, or differences "
            "without spread.",
        ],
        differences_data(grid),
    )


def improvement(grid: Grid, found: Mapping[Any, Improvement]) -> Table:
    """The probability that a run does better than one of the baseline, over all columns."""
    rows = []
    for row, result in found.items():
        interval = f"{result.low:.2f} to {result.high:.2f}"
        if math.isnan(result.low):
            interval = "– (a task has 1 run)"
        elif result.probability in (0.0, 1.0):
            interval = "– (all pairs agree)"
        rows.append(
            [
                Entry(grid.study.row(row)),
                Entry(f"{result.probability:.2f}", result.probability),
                Entry(interval, number(result.low)),
                Entry(str(result.tasks), result.tasks),
            ]
        )
    base = grid.study.in_words(grid.baseline)
    data = pd.DataFrame([{"row": row, **vars(result)} for row, result in found.items()])
    return Table(
        f"{grid.metric.name}-improvement",
        f"{grid.metric.label}, probability of improvement over {base}: {grid.study.title}",
        [labels.factor(grid.study.row_factor), f"P(better than {base})", "95 % interval", "Tasks"],
        rows,
        [
            *grid.study.notes,
            "Probability that a run drawn at random does better than one of the baseline, averaged "
            "over tasks (columns that both have); stratified bootstrap with 2,000 samples and "
            "percentile intervals (Agarwal et al. 2021), not corrected for the number of rows. "
            "With few seeds such intervals are too narrow.",
        ],
        data,
    )


def cells_data(grid: Grid) -> pd.DataFrame:
    """Return the cells of a grid in long form, unrounded, in stored units."""
    lines = [
        {
            grid.study.row_factor: cell.row,
            **({grid.study.column_factor: cell.column} if grid.study.column_factor else {}),
            "metric": grid.metric.name,
            "n": cell.sample.n,
            "mean": cell.sample.mean,
            "sd": cell.sample.sd,
            "low": cell.sample.low,
            "high": cell.sample.high,
            "best": cell.best,
            "not_significantly_worse": cell.tied,
            "diverged": cell.diverged,
            "not_ended": cell.pending,
            "mixed_versions": cell.mixed,
        }
        for cell in grid.cells.values()
    ]
    return pd.DataFrame(lines)


def differences_data(grid: Grid) -> pd.DataFrame:
    """Return the comparisons with the baseline in long form, unrounded, in stored units."""
    lines = [
        {
            grid.study.row_factor: cell.row,
            **({grid.study.column_factor: cell.column} if grid.study.column_factor else {}),
            "metric": grid.metric.name,
            "baseline": grid.baseline,
            **vars(cell.baseline),
        }
        for cell in grid.cells.values()
        if cell.baseline is not None
    ]
    return pd.DataFrame(lines)


TIMED = "Times and throughput depend on the machine and its load, so no test is made."
"""The note under comparisons of metrics that have ``timed``."""


def p_text(p: float) -> str:
    """Return a p-value as it is printed in a table; a dash where there is none."""
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
    text = f"{p:.3f}"
    return f"< {text}" if p < ALPHA <= float(text) else text  # 0.04996 is no 0.050


def p_words(p: float) -> str:
    """Return a p-value as it stands in a sentence: ``p = 0.012``, ``p < 0.001``."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _difference(cell: Cell | None, shown: Metric) -> Entry:
    if cell is None or cell.baseline is None or not cell.baseline.n:
        return EMPTY
    found = cell.baseline
    text = f"{found.mean * shown.scale:+.{shown.digits}f}"
    if found.half_width >= 0:
        text += f" ± {shown.show(found.half_width)}"
    remark = "1 seed" if found.n == 1 else ""
    if cell.diverged:
        remark = f"{cell.diverged} of {cell.sample.n + cell.unvalued} diverged"
    return Entry(
        text + (" *" if found.significant else ""), found.mean, remark=remark, runs=cell.runs
    )


def _matrix_notes(grid: Grid, usual: int) -> list[str]:
    notes = list(grid.study.notes)
    if usual > 1:
        notes.append(f"Mean ± half of the 95 % t interval over {usual} seeds unless noted.")
    elif usual == 1:
        notes.append("One seed per cell: there is no interval, and differences cannot be tested.")
    marked = list(grid.cells.values())
    cut = [cell for cell in marked if grid.metric.cuts(cell.sample)]
    if cut and grid.metric.unit == "%":
        notes.append("An interval that passes 0 or 100 % ends there.")
    elif cut:
        notes.append("[low, high]: an interval that would pass 0, cut there.")
    if grid.metric.timed:
        notes.append(TIMED)
    if any(cell.best for cell in marked):
        direction = "highest" if grid.metric.higher_is_better else "lowest"
        notes.append(f"Bold: {direction} mean of its column.")
    if any(cell.tied for cell in marked):
        notes.append(
            "†: not significantly worse than the best of its column (paired t test by seed, Holm "
            "within the column, 0.05). Few seeds find few differences: † is no proof of equality."
        )
    if any(cell.diverged for cell in marked):
        notes.append(
            "Diverged runs count at chance level; such cells have no interval and are not tested."
            if grid.metric.worst
            else "Diverged runs have no value here and are left out of the mean."
        )
    if any(cell.mixed for cell in marked):
        notes.append("Mixed versions: the runs of the cell come from different code or libraries.")
    return notes


def _tests(grid: Grid) -> list[str]:
    """Return notes on which differences were tested, and why others were not."""
    if grid.metric.timed:
        return [TIMED]
    compared = [c.baseline for c in grid.cells.values() if c.baseline and c.baseline.n]
    tested = sum(difference.tested for difference in compared)
    untested = len(compared) - tested
    notes = []
    if tested:
        over = (
            f", corrected by Holm's method over the {tested} comparisons of this table that can be "
            "tested"
        )
        notes.append(f"* p < 0.05, two-sided paired t test{over if tested > 1 else ''}.")
    if untested:
        which = f"{untested} more" if tested else f"{untested}" if untested > 1 else "The one"
        word = "comparison" if untested == 1 else "comparisons"
        notes.append(f"{which} {word} cannot be tested: one seed, a diverged run, or no spread.")
    return notes


def _numeric(value: float, form: str) -> Entry:
    return EMPTY if math.isnan(value) else Entry(format(value, form), value)
