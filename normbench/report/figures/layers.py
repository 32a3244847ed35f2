"""The heat maps of layer values over training, layers × epochs."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from normbench.report import names as labels
from normbench.report.bands import joined
from normbench.report.figures import style
from normbench.report.grid import Grid
from normbench.report.study import Study

_LAYER = re.compile(r"^probe/(?P<probe>[^/]+)/(?P<layer>[^/]+)/(?P<quantity>[^/]+)$")
_ELSEWHERE = {
    "activations": re.compile(r"mean|std|p\d+"),
    "estimation_shift": re.compile(r".*"),
}
"""Quantities of layers that other figures draw, by probe."""

_WIDE, _TALL = 4, 4  # panels of a figure
_NAMED = 14  # maximum number of layers named next to a panel
_HOVERED = 4  # epochs of a layer with tooltips on the page
_SPAN = 30.0  # ratio of largest to smallest value above which colors are logarithmic
_DECADES = 6  # maximum length of a color scale
Key = tuple[Any, Any]


class _Quantity(NamedTuple):
    """The quantity of a figure: its label and its color scale."""

    probe: str
    name: str
    label: str
    log: bool
    percent: bool = False


_KNOWN = {
    ("gradients", "gradient_norm"): ("Gradient norm", True, False),
    ("gradients", "weight_norm"): ("Weight norm", True, False),
    ("gradients", "relative_update"): ("Relative update ‖Δw‖/‖w‖", True, False),
    ("gradients", "effective_rate"): ("Effective rate η/‖w‖²", True, False),
    ("gradients", "angle"): ("Angle between updates (°)", False, False),
    ("activations", "dead"): ("Dead units (%)", False, True),
    ("activations", "collapsed"): ("Collapsed units (%)", False, True),
    ("activations", "saturated"): ("Saturated outputs (%)", False, True),
}
"""By probe and quantity: label, whether its color scale is logarithmic, whether it is a share."""


def figures(grid: Grid) -> list[style.Drawing]:
    """Draw the figures of the study; see :func:`draw`."""
    return draw(grid.study)


@style.styled
def draw(study: Study) -> list[style.Drawing]:
    """Draw each quantity that a probe measured in each layer, a panel for each row and column.

    This draws every column ``probe/<probe>/<layer>/<quantity>`` of the curves that no other figure
    draws and that at least two layers have. Values are means over seeds, or geometric means if the
    color scale is logarithmic; all panels share one scale.
    """
    curves = joined(study)
    columns_by_quantity: dict[tuple[str, str], dict[str, str]] = {}
    for column in curves.columns:
        match = _LAYER.match(column)
        if match and curves[column].notna().any():
            pattern = _ELSEWHERE.get(match["probe"])
            if pattern is None or not pattern.fullmatch(match["quantity"]):
                names = columns_by_quantity.setdefault((match["probe"], match["quantity"]), {})
                names[match["layer"]] = column
    known_keys = [key for key in _KNOWN if key in columns_by_quantity]
    drawings = []
    for key in [*known_keys, *(key for key in columns_by_quantity if key not in known_keys)]:
        if len(columns_by_quantity[key]) > 1:
            drawings += _drawings(study, curves, key, columns_by_quantity[key])
    return drawings


def _drawings(
    study: Study, curves: pd.DataFrame, key: tuple[str, str], columns: dict[str, str]
) -> list[style.Drawing]:
    """Draw one quantity, in several figures if there are too many panels for one."""
    quantity = _quantity(curves, key, columns)
    grids = _grids(curves, quantity, columns)
    all_values = [value for values, _ in grids.values() for value in values.ravel()]
    norm, is_cut = _scale(np.array(all_values)[np.isfinite(all_values)], quantity)
    rows = [row for row in study.rows if any((row, c) in grids for c in study.columns)]
    study_columns = [
        column for column in study.columns if any((row, column) in grids for row in rows)
    ]
    if len(study_columns) == 1:  # panels side by side
        lines: list[list[Key]] = [
            [(row, study_columns[0]) for row in rows[start : start + _WIDE]]
            for start in range(0, len(rows), _WIDE)
        ]
    else:
        lines = [
            [(row, column) for column in study_columns[start : start + _WIDE]]
            for start in range(0, len(study_columns), _WIDE)
            for row in rows
        ]
    parts = [lines[start : start + _TALL] for start in range(0, len(lines), _TALL)]
    return [
        _drawing(
            study,
            quantity,
            list(columns),
            {key: grids[key] for line in part for key in line if key in grids},
            part,
            (norm, is_cut),
            f"-{number}" if len(parts) > 1 else "",
        )
        for number, part in enumerate(parts, start=1)
    ]


def _quantity(curves: pd.DataFrame, key: tuple[str, str], columns: dict[str, str]) -> _Quantity:
    if key in _KNOWN:
        return _Quantity(*key, *_KNOWN[key])
    values = curves[list(columns.values())].to_numpy(float)
    values = values[np.isfinite(values)]
    log = bool(len(values)) and values.min() > 0 and values.max() > _SPAN * values.min()
    return _Quantity(*key, f"{key[0]}: {key[1].replace('_', ' ')}", log)


def _grids(
    curves: pd.DataFrame, quantity: _Quantity, columns: dict[str, str]
) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
    """Return for each row and column the means over seeds, (layers, epochs), and the epochs."""
    names = list(columns.values())
    values = curves[["row", "column", "epoch", *names]].dropna(subset=names, how="all")
    if quantity.log:
        values[names] = np.log(values[names].where(values[names] > 0))
    means = values.groupby(["row", "column", "epoch"], sort=True)[names].mean()
    grids = {}
    for key, part in means.groupby(level=["row", "column"], sort=False):
        table = part.to_numpy(float).T
        if quantity.log:
            table = np.exp(table)
        epochs = part.index.get_level_values("epoch").to_numpy(float)
        grids[_plain(key[0]), _plain(key[1])] = (table * (100 if quantity.percent else 1), epochs)
    return grids


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _scale(values: np.ndarray, quantity: _Quantity) -> tuple[Normalize, bool]:
    """Return the color scale, and whether any values are below its lower end."""
    high = float(values.max()) if len(values) else 1.0
    if not quantity.log:
        return Normalize(0.0, high or 1.0), False
    low = max(float(values.min()), high / 10**_DECADES) if len(values) else 0.1
    return LogNorm(low, high if high > low else 10 * low), bool((values < low).any())


def _drawing(
    study: Study,
    quantity: _Quantity,
    layers: list[str],
    grids: dict[Key, tuple[np.ndarray, np.ndarray]],
    lines: list[list[Key]],
    scale: tuple[Normalize, bool],
    number: str,
) -> style.Drawing:
    wide, tall = max(map(len, lines)), len(lines)
    width = style.column() if wide == 1 else style.page()
    panel_height = min(max(0.085 * len(layers) + 0.35, 1.0), 2.0)
    keys = [key for line in lines for key in line]
    room = (width - 1.0) / wide - 0.2
    titles = dict(
        zip(keys, style.wrapped([_title(study, key) for key in keys], room, size=7.5), strict=True)
    )
    height = (panel_height + style.more_lines(titles.values())) * tall + 0.35
    figure, axes = style.new(width, height, tall, wide, sharex=True, sharey=True)
    names = style.wrapped([layer.replace("_", " ") for layer in layers], 1.1, 1, 5.5)
    image, points = None, []
    for place, line in enumerate(lines):
        for index, axis in enumerate(axes[place]):
            key = line[index] if index < len(line) else None
            if key is None or key not in grids:
                axis.set_visible(False)
                continue
            image = _panel(axis, *grids[key], scale[0])
            axis.set_title(titles[key])
            below = place + 1 == tall or not _filled(lines[place + 1], index, grids)
            axis.tick_params(labelbottom=below)
            if below:
                axis.set_xlabel("Epoch")
            points += _points(axis, study, key, quantity, layers, *grids[key])
        places = np.arange(0, len(layers), -(-len(layers) // _NAMED))
        axes[place][0].set_yticks(places + 0.5, [names[i] for i in places])
        axes[place][0].tick_params(axis="y", labelsize=style.points(5.5))
    assert image is not None
    axes[0][0].invert_yaxis()
    bar = figure.colorbar(
        image, ax=axes, fraction=0.04, pad=0.015, aspect=min(30, 14 * tall), shrink=0.95,
        extend="min" if scale[1] else "neither",
    )  # fmt: skip
    bar.outline.set_visible(False)  # pyright: ignore
    bar.set_label(style.wrap(quantity.label, 0.9 * height, size=7.5))
    if quantity.log:
        is_short = scale[0].vmax < 50 * scale[0].vmin  # pyright: ignore
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    mean = "geometric mean" if quantity.log else "mean"
    slug = f"layers-{quantity.probe}-{quantity.name}{number}".lower()
    return style.Drawing(
        re.sub(r"[^a-z0-9]+", "-", slug),
        f"{quantity.label} of each layer against epochs: {study.heading}. Layers from the images "
        f"(top) to the logits; {mean} over seeds; one color scale for all panels"
        f"{f', limited to {_DECADES} decades' if scale[1] else ''}; gray: no value.",
        figure,
        points,
        wide=wide > 1,
    )


def _title(study: Study, key: Key) -> str:
    title = study.row(key[0])
    if study.column_factor and len(study.columns) > 1:
        title += f", {labels.factor(study.column_factor).lower()} {study.column(key[1])}"
    return title


def _filled(line: list[Key], index: int, grids: dict[Key, Any]) -> bool:
    return index < len(line) and line[index] in grids


def _panel(axis: Axes, values: np.ndarray, epochs: np.ndarray, norm: Normalize) -> Any:
    """Draw one panel; each epoch extends halfway to its neighbors."""
    middles = (epochs[1:] + epochs[:-1]) / 2
    first = epochs[0] - (middles[0] - epochs[0] if len(middles) else 0.5)
    last = epochs[-1] + (epochs[-1] - middles[-1] if len(middles) else 0.5)
    edges = np.concatenate([[first], middles, [last]])
    colors = mpl.colormaps["viridis"].with_extremes(bad=style.GRID)
    image = axis.pcolormesh(
        edges,
        np.arange(len(values) + 1),
        np.ma.masked_invalid(values),
        cmap=colors,
        norm=norm,
        rasterized=values.size > 2000,
    )
    axis.grid(False)
    axis.tick_params(length=0, axis="y")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image


def _points(
    axis: Axes,
    study: Study,
    key: Key,
    quantity: _Quantity,
    layers: list[str],
    values: np.ndarray,
    epochs: np.ndarray,
) -> list[style.Point]:
    title = _title(study, key)
    places = np.unique(np.linspace(0, len(epochs) - 1, _HOVERED).round().astype(int))
    return [
        style.Point(
            axis,
            float(epochs[place]),
            layer + 0.5,
            f"{title}, {layers[layer]}, epoch {epochs[place]:g}: {values[layer, place]:.3g}",
            key,
        )
        for layer in range(len(layers))
        for place in places
        if np.isfinite(values[layer, place])
    ]
