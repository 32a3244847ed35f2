"""The distribution of layers' inputs over training: percentiles against steps."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator

from normbench.report import names as labels
from normbench.report.bands import bands, joined
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study

_MEDIAN = re.compile(r"^probe/activations/(?P<layer>.+?)(?:/unit(?P<unit>\d+))?/p50$")
_WIDE = 3  # panels in a row
_MOST = 12  # maximum number of panels in a figure
_LAYERS = 4  # maximum number of layers drawn


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the figures of the study; see :func:`draw`."""
    return draw(grid.study)


@style.styled
def draw(study: Study) -> list[style.Drawing]:
    """Draw the 15th, 50th and 85th percentiles of each layer and unit that a probe measured.

    Each layer and unit has a drawing with a panel for each cell of the study, as in figure 1 of
    Ioffe & Szegedy 2015; values are means over seeds. If there are many layers, a few are drawn,
    evenly spread over depth. The list is empty if no run has the probe ``activations``.
    """
    curves = joined(study)
    medians = [
        (column, match)
        for column in curves.columns
        if (match := _MEDIAN.match(column)) and curves[column].notna().any()
    ]
    layers = list(dict.fromkeys(match["layer"] for _, match in medians))
    spread = np.linspace(0, len(layers) - 1, min(_LAYERS, len(layers))).round().astype(int)
    selection = {layers[place] for place in spread}
    return [
        _drawing(study, curves, column.removesuffix("50"), match, len(layers))
        for column, match in medians
        if match["layer"] in selection
    ]


def _drawing(
    study: Study, curves: Any, prefix: str, match: re.Match[str], layer_count: int
) -> style.Drawing:
    low, middle, high = (bands(curves, f"{prefix}{at}", "step") for at in (15, 50, 85))
    order = [(row, column) for column in study.columns for row in study.rows]
    cells = [key for key in order if key in middle][:_MOST]
    wide = min(len(cells), _WIDE)
    tall = -(-len(cells) // wide)
    width = style.column() if len(cells) <= 2 else style.page()
    titles = [_title(study, key) for key in cells]
    wrapped_titles = style.wrapped(titles, width / wide - 0.45, size=7.5)
    height = (1.7 + style.more_lines(wrapped_titles)) * tall + 0.3
    figure, grid = style.new(width, height, tall, wide, sharex=True, sharey=True)
    points = []
    for place, (axis, key) in enumerate(zip(grid.ravel(), cells, strict=False)):
        look = style.look(study.row_factor, key[0], study.rows)
        x = middle[key].x
        axis.fill_between(
            x, low[key].mean, high[key].mean, facecolor=to_rgba(look.color, 0.18), linewidth=0
        )
        for band, weight in ((low[key], 0.6), (middle[key], 1.3), (high[key], 0.6)):
            axis.plot(x, band.mean, color=look.color, linewidth=weight)
        title = titles[place]
        axis.set_title(wrapped_titles[place])
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if place % wide == 0:
            axis.set_ylabel("Input")
        if place + wide >= len(cells):
            axis.set_xlabel("Step")
            axis.tick_params(labelbottom=True)
        ends = [float(band.mean[-1]) for band in (low[key], middle[key], high[key])]
        text = f"{title}, step {x[-1]:g}: {ends[0]:.3g} / {ends[1]:.3g} / {ends[2]:.3g}"
        points.append(style.Point(axis, float(x[-1]), ends[1], text, key))
    for axis in grid.ravel()[len(cells) :]:
        axis.set_visible(False)
    unit = match["unit"]
    note = (
        f" Of {layer_count} layers measured, {_LAYERS} are drawn, from the first to the last; the "
        "exported curves have all."
        if layer_count > _LAYERS
        else ""
    )
    units = f"unit {unit} of {match['layer']}" if unit else f"all units of {match['layer']}"
    return style.Drawing(
        re.sub(r"[^a-z0-9]+", "-", f"percentiles-{match['layer']}-{unit or 'all'}".lower()),
        f"15th, 50th and 85th percentiles of the input of {units} against steps: {study.heading}. "
        f"On validation images in inference mode; mean over seeds.{note}",
        figure,
        points,
        wide=len(cells) > 2,
    )


def _title(study: Study, key: tuple[Any, Any]) -> str:
    title = study.row(key[0])
    if study.column_factor and len(study.columns) > 1:
        title += f", {labels.factor(study.column_factor).lower()} {study.column(key[1])}"
    return title
