"""``--sort KEY[,KEY...]``: sort runs in a list, and rows of a table, best first.

:func:`sort_runs` sorts the runs of a store, :func:`sort_rows` the rows of a study.
:func:`choose_rows` implements ``--rows``: it selects rows by name, in the order of the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from normbench.errors import unknown
from normbench.report.frames import Frames
from normbench.report.grid import build
from normbench.report.metrics import Metric
from normbench.report.study import Study, plain_value


def sort_runs(frames: Frames, keys: str) -> pd.DataFrame:
    """Return the runs frame sorted by keys.

    Args:
        frames: The runs.
        keys: Columns of the runs frame, separated by commas. Metrics for which higher is better
            are sorted in descending order, others in ascending order; missing values come last.

    Raises:
        UserError: There is no such column.
    """
    return _sorted(frames.runs, check_keys(keys, frames.runs), frames.metrics)


def sort_rows(
    study: Study, keys: str | None, reverse: bool = False, compared: Metric | None = None
) -> Study:
    """Return a study with its rows sorted by keys, in reverse order if ``reverse``.

    A row's value of a metric is the mean over its cells, restricted to columns in which all rows
    have runs, if there are any: a row must not come first because its hard columns are missing. Its
    value of a config key is the smallest of its runs.

    Args:
        study: The study.
        keys: Columns of the runs frame, as for :func:`sort_runs`; None keeps the order.
        reverse: Reverse the order.
        compared: The metric of the report, which may be a reduction over epochs.

    Raises:
        UserError: There is no such column.
    """
    rows = list(study.rows)
    if keys is not None:
        names = check_keys(keys, study.runs)
        metrics = {**study.metrics, **({compared.name: compared} if compared else {})}
        table = pd.DataFrame({name: _values(study, name, metrics.get(name)) for name in names})
        rows = [rows[place] for place in _sorted(table, names, metrics).index]
    return replace(study, rows=rows[::-1] if reverse else rows)


def parse_rows(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse ``gn_ws,bn``; commas in brackets, ``gn (groups=4, center=False)``, do not split."""
    names = re.split(r",(?![^(]*\))", text) if isinstance(text, str) else text
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def choose_rows(found: Sequence[Study], names: Sequence[str]) -> list[Study]:
    """Return studies with only the named rows, in this order; studies without any are left out.

    A name without options in brackets selects all its variants: ``gn`` selects ``gn (groups=4)``
    and ``gn (groups=8)``.

    Raises:
        UserError: No study has a row of one of the names.
    """
    row_names = dict.fromkeys(str(row) for study in found for row in study.rows)
    for name in names:
        if not any(_is_named(name, row) for row in row_names):
            raise unknown("row in --rows", name, row_names)
    selection = [_with_rows(study, names) for study in found]
    return [study for study in selection if study.rows]


def _is_named(name: str, row: str) -> bool:
    return row == name or row.startswith(f"{name} (")


def _with_rows(study: Study, names: Sequence[str]) -> Study:
    matches = (row for name in names for row in study.rows if _is_named(name, str(row)))
    rows = list(dict.fromkeys(matches))

    def inside(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["row"].map(plain_value).isin(rows)].reset_index(drop=True)

    runs = inside(study.runs)
    columns = set(map(plain_value, runs["column"]))
    tuned_cells = tuple(cell for cell in study.tuned if cell.row in rows)
    columns |= {cell.column for cell in tuned_cells}
    trials = {trial.run for cell in tuned_cells for trial in cell.cell.trials}
    return replace(
        study,
        rows=rows,
        columns=[column for column in study.columns if column in columns],
        runs=runs,
        curves=study.curves[study.curves["run"].isin(runs["name"])].reset_index(drop=True),
        marked=None if study.marked is None else inside(study.marked),
        tuned=tuned_cells,
        trials=study.trials[study.trials["name"].isin(trials)] if tuned_cells else study.trials[:0],
    )


def check_keys(keys: str, runs: pd.DataFrame) -> list[str]:
    """Parse the value of --sort.

    Raises:
        UserError: A key is not a column of the runs frame.
    """
    names = [key.strip() for key in keys.split(",")]
    for name in names:
        if name not in runs.columns:
            raise unknown("key in --sort", name, runs.columns)
    return names


def _sorted(
    table: pd.DataFrame, names: Sequence[str], metrics: Mapping[str, Metric]
) -> pd.DataFrame:
    rising = [name not in metrics or not metrics[name].higher_is_better for name in names]
    return table.sort_values(list(names), ascending=rising, kind="stable")


def _values(study: Study, name: str, metric: Metric | None) -> list[Any]:
    """Return the value of a column of the runs frame for each row of a study."""
    if metric is None:
        runs = study.runs.assign(row=study.runs["row"].map(plain_value))
        smallest = runs.groupby("row")[name].min()
        return [smallest.get(row) for row in study.rows]
    grid = build(study, metric)
    means = {
        row: {
            column: cell.sample.mean
            for column in study.columns
            if (cell := grid.get(row, column)) is not None and cell.sample.n
        }
        for row in study.rows
    }
    shared_columns = [
        c for c in study.columns if all(c in row_means for row_means in means.values())
    ]
    return [
        float(np.mean([row_means[column] for column in shared_columns or row_means]))
        if row_means
        else np.nan
        for row_means in means.values()
    ]
