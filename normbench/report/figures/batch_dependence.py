"""The figure of the dependence of logits on the mini-batch, against the mini-batch size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from normbench.report import names as labels
from normbench.report.bands import Band, Singles, around, bands, last_measured, singles
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study

PANELS = 4  # per row of the page
_DIFFERENCE = re.compile(
    r"^probe/batch_dependence/(?P<mode>training|inference)_size(?P<size>\d+)_mean$"
)


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the figures of the study; see :func:`draw`."""
    return draw(grid.study)


@style.styled
def draw(study: Study) -> list[style.Drawing]:
    """Draw the differences of logits against the size of mini-batches, a panel for each column.

    Each row has a solid line for training mode and, unless it is 0 throughout, a dotted line for
    inference mode. Values are from the last epoch that the probe ``batch_dependence`` measured in
    each run, with mean and 95 % interval over seeds. The list is empty if no run has the probe.
    """
    values = over_sizes(study)
    modes = {mode: values[values["mode"] == mode] for mode in ("training", "inference")}
    mode_bands = {mode: bands(part, "value", "size") for mode, part in modes.items()}
    runs = {mode: singles(part, "value", "size") for mode, part in modes.items()}
    if not mode_bands["training"]:
        return []
    columns = [c for c in study.columns if any(key[1] == c for key in mode_bands["training"])]
    parts = [columns[start : start + PANELS] for start in range(0, len(columns), PANELS)]
    return [
        _drawing(study, mode_bands, runs, part, f"-{number}" if len(parts) > 1 else "")
        for number, part in enumerate(parts, start=1)
    ]


def over_sizes(study: Study) -> pd.DataFrame:
    """Return the values of the probe by size, in the last epoch measured in each run.

    Returns:
        Columns ``run``, ``row``, ``column``, ``mode``, ``size``, and ``value``: the mean absolute
        difference of logits from those in the largest mini-batch.
    """
    epochs, columns = last_measured(study, _DIFFERENCE.match)
    lines = epochs.melt(["run", "row", "column"], columns, "name", "value").dropna(subset="value")
    lines = lines.drop(columns="name").join(lines["name"].str.extract(_DIFFERENCE))
    return lines.assign(size=lines["size"].astype(float))


def _drawing(
    study: Study,
    mode_bands: dict[str, dict[tuple[Any, Any], Band]],
    runs: dict[str, Singles],
    columns: list[Any],
    number: str,
) -> style.Drawing:
    rows = [row for row in study.rows if any(key[0] == row for key in mode_bands["training"])]
    varying_keys = {key for key, band in mode_bands["inference"].items() if np.any(band.mean > 0)}
    wide = len(columns) > 1
    width = style.page() if wide else style.column()
    titles = [f"{labels.factor(study.column_factor)} {study.column(c)}" for c in columns]
    titles = style.wrapped(titles, width / len(columns) - 0.45, size=7.5)
    handles = style.row_handles(study, rows)
    if varying_keys:
        for dashes, label in (("-", "training mode"), (style.DOTTED, "inference mode")):
            handles.append(style.handle(style.Look(style.INK, "", dashes), label, marker=False))
    names = [str(handle.get_label()) for handle in handles]
    height = 2.0 + style.legend_height(names, width, 8) + style.more_lines(titles)
    figure, grid = style.new(width, height, 1, len(columns), sharex=True, sharey=True)
    points = []
    sizes = sorted({float(x) for band in mode_bands["training"].values() for x in band.x})
    for axis, column, title in zip(grid.ravel(), columns, titles, strict=True):
        for row in rows:
            key = (row, column)
            for mode, keys in (("training", mode_bands["training"]), ("inference", varying_keys)):
                if key in keys:
                    single_runs = runs[mode].get(key, [])
                    points += _line(axis, study, key, mode_bands[mode][key], mode, single_runs)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        if len(sizes) == 1:
            axis.set_xlim(sizes[0] / 2, sizes[0] * 2)
        axis.set_xlabel("Images per mini-batch")
        axis.set_ylim(bottom=0)
        if study.column_factor:
            axis.set_title(title)
    grid.ravel()[0].set_ylabel("Mean difference of logits")
    style.legend(figure, handles, 8, study.legend_title)
    exact_rows = [study.row(row) for row in rows if all(
        not np.any(band.mean > 0) for key, band in mode_bands["training"].items() if key[0] == row
    )]  # fmt: skip
    note = f" {', '.join(exact_rows)}: exactly 0." if exact_rows else ""
    return style.Drawing(
        f"batch-dependence{number}",
        "Change of an image's logits when the rest of its mini-batch changes, in the last epoch "
        f"measured: {study.heading}. Mean absolute difference from the logits in the largest "
        f"mini-batch, on validation images. {around(mode_bands.values(), runs.values())}{note}",
        figure,
        points,
        wide=wide,
    )


def _line(
    axis: Axes,
    study: Study,
    key: tuple[Any, Any],
    band: Band,
    mode: str,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[style.Point]:
    look = style.look(study.row_factor, key[0], study.rows)
    style.spread(axis, band.x, np.maximum(band.low, 0.0), band.high, look.color, runs)
    dashes = look.dashes if mode == "training" else style.DOTTED
    axis.plot(
        band.x, band.mean, color=look.color, linestyle=dashes, linewidth=1.0, **style.mark(look)
    )
    return [
        style.Point(
            axis,
            float(x),
            float(mean),
            f"{study.cell(key)}, {x:g} images, {mode} mode: {mean:.3g}",
            key,
        )
        for x, mean in zip(band.x, band.mean, strict=True)
    ]
