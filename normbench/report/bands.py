"""Bands: mean and interval over seeds of each cell's curves, at every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normbench.report.statistics import CONFIDENCE, t_quantile
from normbench.report.study import Study


class Band(NamedTuple):
    """A mean curve with its interval; ``low`` and ``high`` are NaN for fewer than two runs."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def joined(study: Study) -> pd.DataFrame:
    """Return the epochs of the finished and diverged runs, with their row and column."""
    runs = study.runs[study.runs["status"].isin(["finished", "diverged"])]
    places = runs[["name", "row", "column"]].rename(columns={"name": "run"})
    return study.curves.merge(places, on="run")


def last_measured(study: Study, columns: Callable[[str], object]) -> tuple[pd.DataFrame, list[str]]:
    """Return the last epoch of each run that a probe measured, and the columns of its values.

    Args:
        study: The study; only its finished and diverged runs are used.
        columns: Returns whether a column of the curves frame belongs to the probe.
    """
    curves = joined(study)
    names = [name for name in curves.columns if columns(name)]
    epochs = curves[curves[names].notna().any(axis=1)] if names else curves.iloc[:0]
    return epochs.sort_values("epoch").groupby("run", sort=False).tail(1), names


FEW = 3
"""Up to this many runs of a cell are drawn individually: an interval over so few says little."""


Singles = dict[tuple[Any, Any], list[tuple[np.ndarray, np.ndarray]]]
"""For each (row, column) with few runs, x and values of each run."""


def singles(curves: pd.DataFrame, name: str, x: str = "epoch") -> Singles:
    """Return x and values of each run for each (row, column) with two to :data:`FEW` runs.

    Args:
        curves: As for :func:`bands`.
        name: A column of numbers.
        x: The column of the horizontal axis.
    """
    epochs = curves[curves[name].notna()]
    curves_by_cell = {}
    for key, cell in epochs.groupby(["row", "column"], sort=False):
        runs = [run for _, run in cell.sort_values(x).groupby("run", sort=False)]
        if 1 < len(runs) <= FEW:
            curves_by_cell[key] = [
                (run[x].to_numpy(float), run[name].to_numpy(float)) for run in runs
            ]
    return curves_by_cell


def around(
    found: Iterable[Mapping[Any, Band]], few: Iterable[Mapping[Any, Any]], *, log: bool = False
) -> str:
    """Return a caption's sentence on the lines of a figure and their bands.

    Args:
        found: Bands by row and column, a mapping for each panel or quantity.
        few: The same for cells whose runs are drawn individually.
        log: Whether the bands are of the logarithm.
    """
    cells = {key for panel in found for key in panel}
    single_cells = {key for panel in few for key in panel}
    interval = "95 % t interval" + (" of the logarithm" if log else "")
    if not single_cells:
        return f"Mean and {interval} over seeds."
    if single_cells >= cells:
        return "Mean over seeds; thin: single runs."
    return f"Mean over seeds; thin: single runs of cells with up to {FEW}, else the {interval}."


def bands(
    curves: pd.DataFrame, name: str, x: str = "epoch", *, log: bool = False
) -> dict[tuple[Any, Any], Band]:
    """Return the band of a column of the curves for each (row, column), with 95 % t intervals.

    Args:
        curves: The epochs, from :func:`joined`.
        name: A column of numbers.
        x: The column of the horizontal axis.
        log: Whether to use the mean and interval of the logarithm, as for a logarithmic axis: the
            mean is then geometric, and intervals stay above zero.
    """
    if log:
        positive = curves[name].where(curves[name] > 0)
        curves = curves.assign(**{name: np.log(positive)})
    table = curves.groupby(["row", "column", x], sort=True)[name].agg(["mean", "std", "count"])
    table = table[table["count"] > 0].reset_index()
    n = table["count"].to_numpy(float)
    factor = np.full(len(n), np.nan)
    mask = n > 1
    factor[mask] = t_quantile(0.5 + CONFIDENCE / 2, n[mask] - 1) / np.sqrt(n[mask])
    half = factor * table["std"].to_numpy(float)
    mean, positions = table["mean"].to_numpy(float), table[x].to_numpy(float)
    lines = [mean, mean - half, mean + half]
    if log:
        lines = [np.exp(line) for line in lines]
    return {
        (key[0], key[1]): Band(positions[places], *(line[places] for line in lines))
        for key, places in table.groupby(["row", "column"], sort=False).indices.items()
    }
