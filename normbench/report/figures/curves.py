"""Curves against epochs or images seen: small multiples, one panel a batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from normbench.report import labels
from normbench.report.figures import style
from normbench.report.metrics import METRICS, Metric
from normbench.report.statistics import CONFIDENCE
from normbench.report.study import Study

PANELS = 3  # in a row of the page
_DOTTED = (0, (1, 1.2))
_HOVERED = 10  # epochs of a curve that the page names

_OTHER = {
    "lr": Metric("lr", "Learning rate", digits=4),
    "grad_norm": Metric("grad_norm", "Gradient norm", digits=3),
}
_X = {"epoch": ("Epoch", 1.0), "images_seen": ("Images seen (thousands)", 1e-3)}


@style.styled
def draw(
    study: Study, name: str, second: str = "", x: str = "epoch", *, log: bool = False
) -> style.Drawing:
    """Draw a curve of each row, mean and 95 % interval over seeds, a panel for each column.

    Args:
        study: Its finished and diverged runs are drawn.
        name: A column of the curves frame, drawn solid with the interval as a band.
        second: One drawn thin and dotted without a band, as ``train_acc`` beside ``val_acc``.
        x: ``epoch`` or ``images_seen``.
        log: Whether y is logarithmic.
    """
    shown = METRICS.get(name) or _OTHER[name]
    curves = joined(study)
    panels = [column for column in study.columns if (curves["column"] == column).any()]
    count = max(len(panels), 1)
    wide = min(count, PANELS)
    tall = -(-count // wide)
    width = style.COLUMN if count == 1 else style.PAGE
    figure, grid = style.new(width, 1.75 * tall + 0.5, tall, wide, sharex=True, sharey=True)
    axes = grid.ravel()
    points = []
    for axis, column in zip(axes, panels, strict=False):
        inside = curves[curves["column"] == column]
        for row in study.rows:
            own = inside[inside["row"] == row]
            points += _series(axis, study, row, column, own, (shown, name, second, x))
        if study.column_factor:
            factor = labels.factor(study.column_factor)
            axis.set_title(f"{factor} {study.column(column)}")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _scale(axes[: len(panels)], curves, name, second, shown, log)
    for place, axis in enumerate(axes[: len(panels)]):
        if place % wide == 0:
            axis.set_ylabel(shown.axis.replace("Validation ", "").capitalize())
        if place + wide >= len(panels):
            axis.set_xlabel(_X[x][0])
            axis.tick_params(labelbottom=True)
    present = set(curves["row"])
    rows = [row for row in study.rows if row in present]
    style.legend(figure, _handles(study, rows, second), 8 if count > 1 else 4)
    pair = "validation (solid) and training (dotted)" if second else ""
    what = f"{shown.label.replace('Validation ', '').capitalize()} {pair}".strip()
    return style.Drawing(
        f"{name}-curves",
        f"{what} against {_X[x][0].lower()}: {study.title}. Mean and 95 % t interval over seeds; "
        "a diverged run counts until it diverges.",
        figure,
        points,
        wide=count > 1,
    )


def joined(study: Study) -> pd.DataFrame:
    """Return the epochs of the ended runs with their row, column and seed."""
    ended = study.runs[study.runs["status"].isin(["finished", "diverged"])]
    places = ended[["name", "row", "column", "seed"]].rename(columns={"name": "run"})
    return study.curves.merge(places, on="run")


def mean_and_band(own: pd.DataFrame, name: str, x: str = "epoch") -> pd.DataFrame:
    """Return ``mean``, ``low`` and ``high`` of a column by ``x``, over the runs that have it."""
    grouped = own.groupby(x)[name].agg(["mean", "std", "count"])
    grouped = grouped[grouped["count"] > 0]
    n = grouped["count"].to_numpy(float)
    with np.errstate(invalid="ignore"):
        factor = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(n - 1, np.nan_to_num(n > 1)))
        half = np.where(n > 1, factor * grouped["std"] / np.sqrt(n), np.nan)
    return grouped.assign(low=grouped["mean"] - half, high=grouped["mean"] + half)


def _series(
    axis: Axes, study: Study, row: Any, column: Any, own: pd.DataFrame, how: tuple
) -> list[style.Point]:
    shown, name, second, x = how
    if own.empty:
        return []
    look = style.look(study.row_factor, row, study.rows)
    band = mean_and_band(own, name, x)
    along = band.index.to_numpy(float) * _X[x][1]
    scale = shown.scale
    axis.fill_between(
        along,
        band["low"] * scale,
        band["high"] * scale,
        facecolor=to_rgba(look.colour, 0.15),
        linewidth=0,
    )
    axis.plot(along, band["mean"] * scale, color=look.colour, linestyle=look.dashes, linewidth=1.0)
    if second:
        thin = mean_and_band(own, second, x)
        axis.plot(
            thin.index.to_numpy(float) * _X[x][1],
            thin["mean"] * scale,
            color=look.colour,
            linestyle=_DOTTED,
            linewidth=0.8,
        )
    if band.empty:
        return []
    picked = np.unique(np.linspace(0, len(band) - 1, _HOVERED).round().astype(int))
    return [
        style.Point(
            axis,
            float(along[place]),
            float(band["mean"].iloc[place] * scale),
            _hover(study, row, column, shown, band, place, x),
            (row, column),
        )
        for place in picked
    ]


def _hover(
    study: Study, row: Any, column: Any, shown: Metric, band: pd.DataFrame, place: int, x: str
) -> str:
    found = band.iloc[place]
    unit = f" {shown.unit}" if shown.unit else ""
    half = (found["high"] - found["low"]) / 2
    spread = f" ± {shown.show(half)}" if half >= 0 else ""
    where = f", {study.column(column)}" if study.column_factor else ""
    at = f"{x.replace('_', ' ')} {band.index[place]:g}"
    return f"{study.row(row)}{where}, {at}: {shown.show(found['mean'])}{spread}{unit}"


def _scale(
    axes: Any, curves: pd.DataFrame, name: str, second: str, shown: Metric, log: bool
) -> None:
    """Choose the range of y: an accuracy from where the curves are after a third of the way."""
    if log:
        for axis in axes:
            axis.set_yscale("log")
            style.plain_log(axis.yaxis)
        return
    if shown.unit != "%" or curves.empty:
        return
    late = curves[curves["epoch"] >= 0.3 * curves["epoch"].max()]
    columns = [column for column in (name, second) if column]
    means = late.groupby(["row", "column", "epoch"])[columns].mean() * shown.scale
    low, high = means.min().min(), means.max().max()
    if np.isfinite(low) and high > low:
        margin = 0.06 * (high - low)
        for axis in axes:
            axis.set_ylim(max(low - margin, 0), min(high + margin, 101))


def _handles(study: Study, rows: list[Any], second: str) -> list[Line2D]:
    handles = []
    for row in rows:
        look = style.look(study.row_factor, row, study.rows)
        handles.append(style.handle(look, study.row(row), marker=False))
    if second:
        for dashes, label in (("-", "validation"), (_DOTTED, "training")):
            handles.append(style.handle(style.Look(style.INK, "", dashes), label, marker=False))
    return handles
