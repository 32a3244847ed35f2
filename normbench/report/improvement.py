"""Every row against the baseline over all columns at once, as in Agarwal et al. 2021."""

from __future__ import annotations

from typing import Any

import numpy as np

from normbench.report.bootstrap import (
    Improvement,
    Profile,
    performance_profile,
    probability_of_improvement,
)
from normbench.report.grid import Grid


def improvements(grid: Grid) -> dict[Any, Improvement]:
    """Return for each row the probability of doing better than the baseline.

    A column counts as a task where both have runs; rows that share none are left out. Of a time
    there is none, since the machine's load decides which run is faster.
    """
    if grid.baseline is None or grid.metric.higher_is_better is None or grid.metric.timed:
        return {}
    found = {}
    for row in grid.study.rows:
        shared = [
            column
            for column in grid.study.columns
            if row != grid.baseline
            and len(_scores(grid, row, column))
            and len(_scores(grid, grid.baseline, column))
        ]
        if shared:
            found[row] = probability_of_improvement(
                [_scores(grid, row, column) for column in shared],
                [_scores(grid, grid.baseline, column) for column in shared],
            )
    return found


def profiles(grid: Grid, points: int = 121) -> dict[Any, Profile]:
    """Return the performance profile, over all columns, of each row that has runs in all of them.

    Thresholds run over all scores seen, in stored units; a loss or a time is negated, so that a
    higher score is better throughout.
    """
    if grid.metric.higher_is_better is None:
        return {}
    columns = [
        column
        for column in grid.study.columns
        if any(len(_scores(grid, row, column)) for row in grid.study.rows)
    ]
    scores = {row: [_scores(grid, row, column) for column in columns] for row in grid.study.rows}
    scores = {row: tasks for row, tasks in scores.items() if all(map(len, tasks))}
    if len(scores) < 2 or not columns:
        return {}
    every = np.concatenate([task for tasks in scores.values() for task in tasks])
    margin = 0.02 * (every.max() - every.min()) or 1e-9
    thresholds = np.linspace(every.min() - margin, every.max() + margin, points)
    return {row: performance_profile(tasks, thresholds) for row, tasks in scores.items()}


def _scores(grid: Grid, row: Any, column: Any) -> np.ndarray:
    cell = grid.get(row, column)
    sign = 1.0 if grid.metric.higher_is_better else -1.0
    return sign * np.array(list(cell.values.values()) if cell else [], float)
