"""The curves of two runs in the same axes, for ``normbench diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normbench.report import names as labels
from normbench.report.figures import style
from normbench.report.figures.curves import headed
from normbench.report.metrics import METRICS, Metric

if TYPE_CHECKING:
    from normbench.report.diff import Pair

_WIDE = 2  # panels in a row


@style.styled
def draw(pair: Pair) -> style.Drawing:
    """Draw the metrics of epochs of two runs, except those of probes, a panel for each metric."""
    panels = [metric for metric in METRICS.values() if metric.curve]
    tall = -(-len(panels) // _WIDE)
    figure, grid = style.new(style.page(), 1.95 * tall, tall, _WIDE)
    for axis in grid.ravel()[len(panels) :]:
        axis.set_visible(False)
    looks = _looks(pair)
    for axis, panel in zip(grid.ravel(), panels, strict=False):
        for curve, look in zip((pair.first_curve, pair.second_curve), looks, strict=True):
            _line(axis, curve, panel, look)
        axis.set_ylabel(headed(panel.axis))
        axis.set_xlabel("Epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if panel.curve == "log" and axis.lines:
            axis.set_yscale("log")
            style.plain_log(axis.yaxis, *axis.get_ylim())
    handles = [
        style.handle(look, name, marker=False)
        for look, name in zip(looks, _names(pair), strict=True)
    ]
    for dashes, label in (("-", "validation"), (style.DOTTED, "training")):
        handles.append(style.handle(style.Look(style.INK, "", dashes), label, marker=False))
    style.legend(figure, handles)
    caption = f"Curves of {pair.names[0]} and {pair.names[1]}."
    return style.Drawing("curves", caption, figure, wide=True)


def _line(axis: Axes, curve: dict[str, np.ndarray], curve_metric: Metric, look: style.Look) -> None:
    for metric, dashes, width in (
        (curve_metric, look.dashes, 1.2),
        (curve_metric.in_training, style.DOTTED, 0.9),
    ):
        column = metric.column if metric is not None else ""
        if column in curve and np.isfinite(curve[column].astype(float)).any():
            axis.plot(
                curve["epoch"].astype(float),
                curve[column].astype(float) * curve_metric.scale,
                color=look.color,
                linestyle=dashes,
                linewidth=width,
            )


def _looks(pair: Pair) -> list[style.Look]:
    """Return each run's look, by its norm; if the norms are equal, the second is black, dashed."""
    looks = [style.look("norm", row.get("norm")) for row in (pair.first, pair.second)]
    if looks[0].color == looks[1].color:
        looks[1] = style.Look(style.INK, looks[1].marker, (0, (4, 1.5)))
    return looks


def _names(pair: Pair) -> list[str]:
    """Return short names that distinguish the runs."""
    parts: list[list[str]] = [[], []]
    for key in ("dataset", "arch", "norm", "batch", "seed"):
        values: list[Any] = [row.get(key) for row in (pair.first, pair.second)]
        if values[0] != values[1] or key == "norm":
            for part, value in zip(parts, values, strict=True):
                text = labels.value(key, value)
                part.append(text if key in ("dataset", "arch", "norm") else f"{key} {text}")
    first, second = (", ".join(part) for part in parts)
    if first == second:
        return [f"first ({pair.first['signature']})", f"second ({pair.second['signature']})"]
    return [first, second]
