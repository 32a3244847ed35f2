"""The figure of the estimation shift of batch statistics against the depth of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normbench.report import names as labels
from normbench.report.bands import Band, Singles, around, bands, last_measured, singles
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study

PANELS = 4  # per row of the page
_SHIFT = re.compile(r"^probe/estimation_shift/(?P<layer>[^/]+)/(?P<quantity>[^/]+)$")
DRAWN = {"mean_shift": "Shift of the mean", "std_shift": "Shift of the deviation"}
"""Quantities of the probe ``estimation_shift`` that are drawn, each in a row of panels."""


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the figures of the study; see :func:`draw`."""
    return draw(grid.study)


@style.styled
def draw(study: Study) -> list[style.Drawing]:
    """Draw the shift of population statistics against depth, a panel for each column.

    Each row with such statistics has a line. Values are from the last epoch that the probe
    ``estimation_shift`` measured in each run, with mean and 95 % interval of the logarithm over
    seeds, or single runs if there are few. The list is empty if no run has the probe.
    """
    values = over_depth(study)
    parts = {quantity: values[values["quantity"] == quantity] for quantity in DRAWN}
    quantity_bands = {q: bands(part, "value", "depth", log=True) for q, part in parts.items()}
    runs = {q: singles(part, "value", "depth") for q, part in parts.items()}
    quantity_bands = {
        quantity: cell_bands for quantity, cell_bands in quantity_bands.items() if cell_bands
    }
    if not quantity_bands:
        return []
    keys = {key for cell_bands in quantity_bands.values() for key in cell_bands}
    columns = [column for column in study.columns if any(key[1] == column for key in keys)]
    rows = [row for row in study.rows if any(key[0] == row for key in keys)]
    pages = [columns[start : start + PANELS] for start in range(0, len(columns), PANELS)]
    return [
        _drawing(study, quantity_bands, runs, rows, page, f"-{number}" if len(pages) > 1 else "")
        for number, page in enumerate(pages, start=1)
    ]


def over_depth(study: Study) -> pd.DataFrame:
    """Return the values of the probe over depth, in the last epoch measured in each run.

    Returns:
        Columns ``run``, ``row``, ``column``, ``depth``, ``quantity``, ``value``: the mean over the
        layers if a run has several at one depth.
    """
    epochs, columns = last_measured(study, _SHIFT.match)
    lines = epochs.melt(["run", "row", "column"], columns, "name", "value").dropna(subset="value")
    parts = lines["name"].str.extract(_SHIFT)
    lines = lines.drop(columns="name").join(parts)
    depths = lines[lines["quantity"] == "depth"].rename(columns={"value": "depth"})
    values = lines[lines["quantity"] != "depth"]
    values = values.merge(depths[["run", "layer", "depth"]], on=["run", "layer"])
    keys = ["run", "row", "column", "depth", "quantity"]
    return values.groupby(keys, as_index=False, sort=False)["value"].mean()


def _drawing(
    study: Study,
    quantity_bands: dict[str, dict[tuple[Any, Any], Band]],
    runs: dict[str, Singles],
    rows: list[Any],
    columns: list[Any],
    number: str,
) -> style.Drawing:
    wide = len(columns) > 1
    names = [study.row(row) for row in rows]
    width = style.page() if wide else style.column()
    titles = [f"{labels.factor(study.column_factor)} {study.column(c)}" for c in columns]
    titles = style.wrapped(titles, width / len(columns) - 0.45, size=7.5)
    height = 1.7 * len(quantity_bands) + 0.35 + style.legend_height(names, width, 8)
    height += style.more_lines(titles)
    figure, grid = style.new(
        width, height, len(quantity_bands), len(columns), sharex=True, sharey="row"
    )
    points = []
    for place, (quantity, cell_bands) in enumerate(quantity_bands.items()):
        for axis, column in zip(grid[place], columns, strict=True):
            for row in rows:
                key = (row, column)
                if key in cell_bands:
                    single_runs = runs[quantity].get(key, [])
                    points += _line(axis, study, key, cell_bands[key], quantity, single_runs)
            axis.set_yscale("log")
        panel_bands = [
            cell_bands[row, column]
            for row in rows
            for column in columns
            if (row, column) in cell_bands
        ]
        single_values = [y for cell in runs[quantity].values() for _, y in cell if len(y)]
        values = np.concatenate([*(band.mean for band in panel_bands), *single_values])
        values = values[values > 0]
        low, high = values.min() / 1.3, values.max() * 1.3
        for axis in grid[place]:
            style.plain_log(axis.yaxis, low, high)
            axis.set_ylim(low, high)
        grid[place][0].set_ylabel(DRAWN[quantity])
    for axis, title in zip(grid[0], titles, strict=True):
        if study.column_factor:
            axis.set_title(title)
    for axis in grid[-1]:
        axis.set_xlabel("Depth (weighted layer)")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    handles = style.row_handles(study, rows)
    style.legend(figure, handles, 8, study.legend_title)
    absent_rows = [study.row(row) for row in study.rows if row not in rows]
    absent_note = (
        f" {', '.join(absent_rows)}: no such statistics, or not measured." if absent_rows else ""
    )
    return style.Drawing(
        f"estimation-shift{number}",
        "Estimation shift against depth, in the last epoch measured: "
        f"{study.heading}. Distance between the mean and deviation that a layer stores for "
        "inference and those of its input in inference on training images, over the norm of the "
        "input's deviation (after Huang et al. 2022). "
        f"{around(quantity_bands.values(), runs.values(), log=True)}{absent_note}",
        figure,
        points,
        wide=wide,
    )


def _line(
    axis: Axes,
    study: Study,
    key: tuple[Any, Any],
    band: Band,
    quantity: str,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[style.Point]:
    look = style.look(study.row_factor, key[0], study.rows)
    style.spread(axis, band.x, band.low, band.high, look.color, runs)
    small = style.mark(look)
    small["markersize"] *= 0.65  # a line has many layers
    axis.plot(band.x, band.mean, color=look.color, linestyle=look.dashes, linewidth=0.9, **small)
    name = DRAWN[quantity].lower()
    return [
        style.Point(
            axis,
            float(x),
            float(mean),
            f"{study.cell(key)}, depth {x:g}: {name} {mean:.3g}",
            key,
        )
        for x, mean in zip(band.x, band.mean, strict=True)
    ]
