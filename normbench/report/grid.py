"""One metric over a study: :func:`build` makes a cell for each row and column.

Finished runs count with their value, diverged runs according to :data:`DIVERGED_RULE`. Failed,
running and interrupted runs are only counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from normbench.errors import unknown
from normbench.report.frames import chance
from normbench.report.metrics import Metric
from normbench.report.statistics import (
    ALPHA,
    Difference,
    Improvement,
    Profile,
    Sample,
    holm,
    paired,
    performance_profile,
    probability_of_improvement,
    sample,
)
from normbench.report.study import Study

DIVERGED_RULE = (
    "In accuracies and errors a diverged run counts at chance level (1/classes; 0 if the number "
    "of classes is unknown), in means and in the bootstraps, so that a method is not rewarded for "
    "losing its bad runs. A cell with such a run gets no t interval and takes part in no t test, "
    "since its values are far from normal. In losses, times and gaps a diverged run has no value "
    "and is left out. Either way it is reported next to the cell."
)

_THRESHOLDS = 121  # number of thresholds of a performance profile


@dataclass(frozen=True)
class GridCell:
    """The runs of one row and column.

    Attributes:
        row, column: Values of the factors.
        values: Value by seed of the runs that count.
        runs: Names of all runs of the cell, whatever their status, ordered by seed.
        diverged: Number of runs that diverged.
        pending: Number of runs that failed, were interrupted or are still running.
        unvalued: Number of runs that ended without a value (target not reached, or diverged).
        sample: Mean, standard deviation and interval of ``values``.
        best: Whether the mean is the best of its column.
        tied: Whether it was tested against the best and is not significantly worse.
        baseline: The difference from the baseline's cell in the same column, paired by seed.
        mixed: Whether the runs come from more than one commit or set of versions.
        looks: Number of declared looks at its runs (:mod:`normbench.report.sequential`).
    """

    row: Any
    column: Any
    values: Mapping[int, float]
    runs: tuple[str, ...]
    diverged: int
    pending: int
    unvalued: int
    sample: Sample
    mixed: bool
    looks: int = 1
    best: bool = False
    tied: bool = False
    baseline: Difference | None = None

    @property
    def all_diverged(self) -> bool:
        """Whether every run that ended has diverged."""
        return self.diverged > 0 and self.diverged >= self.sample.n + self.unvalued


@dataclass(frozen=True)
class Grid:
    """The cells of a study for one metric, by (row, column); cells without runs are absent."""

    study: Study
    metric: Metric
    baseline: Any
    cells: dict[tuple[Any, Any], GridCell] = field(default_factory=dict)

    def get(self, row: Any, column: Any) -> GridCell | None:
        """Return a cell, or None if it has no runs."""
        return self.cells.get((row, column))

    @property
    def seeds(self) -> str:
        """The number of runs per cell, as ``3`` or ``1 to 3``."""
        counts = {cell.sample.n for cell in self.cells.values() if cell.sample.n}
        if not counts:
            return "0"
        return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"

    @cached_property
    def improvements(self) -> dict[Any, Improvement]:
        """For each row, the probability of doing better than the baseline over all columns.

        A column in which both rows have runs is a task; rows that share none are left out. Times
        have no such probability, since the machine's load decides which run is faster.
        """
        if self.baseline is None or self.metric.higher_is_better is None or self.metric.timed:
            return {}
        improvements = {}
        base = self._scores(self.baseline)
        for row in self.study.rows:
            scores = self._scores(row)
            tasks = [column for column in scores if column in base and row != self.baseline]
            if tasks:
                improvements[row] = probability_of_improvement(
                    [scores[column] for column in tasks], [base[column] for column in tasks]
                )
        return improvements

    @cached_property
    def profiles(self) -> dict[Any, Profile]:
        """For each row with runs in all columns, the performance profile over the columns.

        Thresholds span all scores, in stored units; losses and times are negated, so that higher
        is always better.
        """
        if self.metric.higher_is_better is None:
            return {}
        scores = {row: self._scores(row) for row in self.study.rows}
        columns = {column for tasks in scores.values() for column in tasks}
        scores = {row: tasks for row, tasks in scores.items() if set(tasks) == columns}
        if len(scores) < 2 or not columns:
            return {}
        all_scores = np.concatenate([task for tasks in scores.values() for task in tasks.values()])
        margin = 0.02 * (all_scores.max() - all_scores.min()) or 1e-9
        thresholds = np.linspace(all_scores.min() - margin, all_scores.max() + margin, _THRESHOLDS)
        return {
            row: performance_profile(list(tasks.values()), thresholds)
            for row, tasks in scores.items()
        }

    def _scores(self, row: Any) -> dict[Any, np.ndarray]:
        """Return the runs' scores in each column in which the row has runs; higher is better."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        cells = {column: self.get(row, column) for column in self.study.columns}
        return {
            column: sign * np.array(list(cell.values.values()), float)
            for column, cell in cells.items()
            if cell is not None and cell.values
        }


def build(study: Study, metric: Metric, baseline: Any = None) -> Grid:
    """Describe each cell, mark the best of each column, and compare each with the baseline.

    P-values against the baseline are corrected over all cells of the study, those against the best
    of a column within that column.

    Raises:
        UserError: The study has no row of that name.
    """
    if baseline is not None and baseline not in study.rows:
        raise unknown("baseline", str(baseline), map(str, study.rows))
    values = pd.to_numeric(study.runs[metric.name], errors="coerce").to_numpy(float)
    cells = {
        (row, column): _cell(study, row, column, values, metric)
        for row in study.rows
        for column in study.columns
        if (row, column) in study.groups
    }
    for column in study.columns:
        _mark(cells, column, metric)
    if baseline is not None:
        _compare(cells, baseline, metric)
    return Grid(study, metric, baseline, cells)


def default_baseline(study: Study, asked: str | None) -> Any:
    """Return the requested row, else ``bn`` if there is one, else None.

    For stores and commits the default is the first: the store named first, or the oldest commit.

    Raises:
        UserError: The study has no row of that name.
    """
    rows_by_name = {str(row): row for row in study.rows}
    if asked is None and study.row_factor in ("store", "commit") and len(study.rows) > 1:
        return study.rows[0]
    if asked is None:
        return rows_by_name.get("bn")
    if asked not in rows_by_name:
        raise unknown("baseline", asked, rows_by_name)
    return rows_by_name[asked]


def _cell(study: Study, row: Any, column: Any, run_values: np.ndarray, metric: Metric) -> GridCell:
    places, is_mixed = study.groups[row, column]
    runs = study.columns_of_runs
    status = runs["status"][places]
    values: dict[int, float] = {}
    for place, state in zip(places, status, strict=True):
        value = float(run_values[place]) if state == "finished" else math.nan
        if state == "diverged" and metric.worst:
            guess = chance(str(runs["dataset"][place]), float(runs["classes"][place]))
            value = guess if metric.worst == "chance" else 1.0 - guess
        if not math.isnan(value):
            values[int(runs["seed"][place])] = value
    diverged_count = int((status == "diverged").sum())
    ended_count = int((status == "finished").sum()) + diverged_count
    return GridCell(
        row,
        column,
        values,
        tuple(runs["name"][places]),
        diverged_count,
        len(places) - ended_count,
        ended_count - len(values),
        _sample(values, metric, diverged_count),
        is_mixed,
        _looks(study, places),
    )


def _looks(study: Study, places: np.ndarray) -> int:
    """Return the largest number of looks declared for any of these runs; 1 if there are none."""
    if "looks" not in study.runs:
        return 1
    texts = study.runs["looks"].to_numpy(object)[places]
    return max((len(text.split()) for text in texts if isinstance(text, str)), default=1) or 1


def _sample(values: Mapping[int, float], metric: Metric, diverged_count: int) -> Sample:
    """Describe the values; there is no t interval if a run counts at chance level."""
    estimate = sample(list(values.values()))
    if diverged_count and metric.worst:
        return replace(estimate, low=math.nan, high=math.nan)
    return metric.within(estimate)


def _paired(first: GridCell, second: GridCell, metric: Metric) -> Difference:
    """Compare two cells, paired by seed.

    There is no interval and no test if a run counts at chance level. Times are not tested: they
    vary with the machine's load, which differs even for the same seed.
    """
    difference = paired(first.values, second.values, max(first.looks, second.looks))
    if metric.timed:
        return replace(difference, effect=math.nan, p=math.nan)
    if metric.worst and (first.diverged or second.diverged):
        nan = math.nan
        return Difference(difference.n, difference.mean, nan, nan, nan, nan, looks=difference.looks)
    return difference


def _mark(cells: dict[tuple[Any, Any], GridCell], column: Any, metric: Metric) -> None:
    """Mark the best cell of a column, and the cells that are not significantly worse."""
    # Only complete cells compete: a mean over only the runs that have a value would be biased.
    candidates = [
        cell
        for cell in cells.values()
        if cell.column == column and cell.sample.n and not cell.unvalued and not cell.all_diverged
    ]
    if metric.higher_is_better is None or len(candidates) < 2:
        return
    sign = 1.0 if metric.higher_is_better else -1.0
    top = max(candidates, key=lambda cell: sign * cell.sample.mean)
    other_cells = [cell for cell in candidates if cell is not top]
    differences = [_paired(top, cell, metric) for cell in other_cells]
    p_values = holm([difference.p for difference in differences])
    for cell, p in zip(other_cells, p_values, strict=True):
        is_equal = cell.sample.mean == top.sample.mean
        is_tied = not is_equal and p >= ALPHA  # False without a test: p is NaN
        cells[cell.row, column] = replace(cell, best=is_equal, tied=is_tied)
    cells[top.row, column] = replace(top, best=True)


def _compare(cells: dict[tuple[Any, Any], GridCell], baseline: Any, metric: Metric) -> None:
    """Compare each cell with the baseline in its column; Holm's correction covers all cells."""
    keys = [key for key in cells if key[0] != baseline and (baseline, key[1]) in cells]
    differences = [_paired(cells[key], cells[baseline, key[1]], metric) for key in keys]
    p_values = holm([difference.p for difference in differences])
    for key, difference, p in zip(keys, differences, p_values, strict=True):
        cells[key] = replace(cells[key], baseline=replace(difference, p_corrected=p))
