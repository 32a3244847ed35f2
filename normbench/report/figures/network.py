"""The drawing of a network: blocks from top to bottom, their layers from left to right.

:func:`save` draws to a file; :func:`arrange` makes the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from normbench.errors import UserError, nearest
from normbench.formats import printable
from normbench.report.figures import style
from normbench.report.network import Network, by, norm_styles, placed, rows, short

if TYPE_CHECKING:  # imports Keras
    from normbench.network import LayerCost

KINDS = (".png", ".svg", ".pdf")
COLORS = {
    "BatchNormalization": style.BLUE,
    "GroupNormalization": style.VERMILION,
    "LayerNormalization": style.PURPLE,
    "InstanceNormalization": style.WINE,
}
"""Colors of common kinds of normalizations, as in the report's figures."""
OTHERS = (style.GREEN, style.INDIGO, style.GRAY, style.TEAL)
"""Colors of other kinds, in order of appearance."""
MAPPED = "#ffe9ad"
"""Color of layers with a weight parametrization."""

# Inches.
_HEIGHT, _GAP = 0.40, 0.20  # height of a cell, gap between columns
_LANE, _WIRES = 0.52, 0.18  # height of a lane, and of a lane with only a wire
_TITLE, _SAYS = 1.35, 1.4  # text to the left of the first column, and to the right of the last
_PAD, _BETWEEN = 0.12, 0.26  # padding above and below within a row, gap between rows
_WEIGHTS, _FEW, _JOIN, _OTHER = 0.86, 0.52, 0.26, 0.72  # widths of cells

_LINE, _SHADE, _WEIGHT = "#55565a", "#f3f4f6", "#ffffff"
_JOINS = {"Add": "+", "Multiply": "×"}
_SHORT = {
    "AveragePooling2D": "avg pool",
    "Concatenate": "concat",
    "Conv2D": "conv",
    "Dense": "linear",
    "DepthwiseConv2D": "depthwise",
    "Dropout": "dropout",
    "Flatten": "flatten",
    "GlobalAveragePooling2D": "global\navg pool",
    "GlobalMaxPooling2D": "global\nmax pool",
    "InputLayer": "images",
    "MaxPooling2D": "max pool",
    "ReLU": "ReLU",
    "ZeroPadding2D": "pad",
}


class _Place(NamedTuple):
    """The position of a cell: its center and its width."""

    x: float
    y: float
    width: float


def check_file(path: str | Path) -> Path:
    """Check and return the file to draw to.

    Raises:
        UserError: The suffix is not one of ``KINDS``, or the folder does not exist.
    """
    file = Path(path)
    if file.suffix.lower() not in KINDS:
        suffix = nearest(file.suffix.lower(), KINDS) if file.suffix else None
        hint = f": did you mean {suffix!r}?" if suffix else ""
        raise UserError(f"--plot {str(path)!r} must end in {', '.join(KINDS)}{hint}")
    if not file.parent.is_dir():
        raise UserError(f"--plot {str(path)!r}: there is no folder {str(file.parent)!r}")
    return file


@style.styled
def save(network: Network, path: str | Path, say: Callable[[str], None] | None = None) -> Path:
    """Draw a network to a file in the format of its suffix; return the file.

    Args:
        network: The network.
        path: The file.
        say: Called with a note on characters that no installed font has.

    Raises:
        UserError: See :func:`check_file`.
    """
    file = check_file(path)
    drawing = style.Drawing("network", "", draw(network))
    drawing.write(file, dpi=150)
    if say is not None and (boxes := style.lacking([drawing])):
        say(f"note: {boxes}")
    return file


@style.styled
def draw(network: Network) -> Figure:
    """Draw a network.

    A row is a block, with its name on the left, and its output shape, parameters and multiply-adds
    on the right. Each kind of normalization has a color and is labeled with its place; layers with
    a weight parametrization also have a color.
    """
    block_rows = arrange(network.layers)
    colors = norm_styles(network.layers, OTHERS, COLORS)
    widths = [_widths(row) for row in block_rows]
    inner = max(sum(columns) + _GAP * len(columns) for columns in widths)
    legend = _legend(network, colors)
    top = 0.62 + 0.2 * len(legend)
    width = _TITLE + 2 * _GAP + inner + _SAYS
    lanes = [_lanes(row) for row in block_rows]
    heights = [edges[-1] + 2 * _PAD for edges in lanes]
    height = top + sum(heights) + _BETWEEN * len(heights)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _head(axes, network, legend)
    y = top
    end: tuple[float, float] | None = None
    for row, columns, edges, tall in zip(block_rows, widths, lanes, heights, strict=True):
        axes.add_patch(_box(0.08, y, width - 0.16, tall, _SHADE, "none", 0.08))
        middles = [y + _PAD + (above + below) / 2 for above, below in pairwise(edges)]
        places = _places(row, columns, middles)
        start = (_TITLE, middles[0])
        if end is not None and not row.origins:
            middle = y - _BETWEEN / 2
            right = _TITLE + _GAP + inner + 0.12
            turns = [end, (right, end[1]), (right, middle), (start[0], middle), start]
            _line(axes, turns, arrow=False, color="#a9abb0")
        for wire in row.wires:
            _wire(axes, row, places, wire, start, middles)
        for cell, place in zip(row.cells, places, strict=True):
            _cell(axes, cell.layer, place, colors)
        _words(axes, row, y, tall, width)
        end = (places[-1].x + places[-1].width / 2, places[-1].y)
        y += tall + _BETWEEN
    return figure


def _lanes(row: Row) -> list[float]:
    """Return the edges of the lanes, starting with the upper edge of the first."""
    cell_lanes = {cell.lane for cell in row.cells}
    edges = [0.0]
    for lane in range(row.lanes):
        edges.append(edges[-1] + (_LANE if lane in cell_lanes else _WIRES))
    return edges


def _widths(row: Row) -> list[float]:
    """Return the width of each column, which is that of its widest cell."""
    widths = [0.0] * (1 + max(cell.column for cell in row.cells))
    for cell in row.cells:
        widths[cell.column] = max(widths[cell.column], _width(cell.layer))
    return widths


def _width(layer: LayerCost) -> float:
    if layer.kind in _JOINS:
        return _JOIN
    if layer.kind in ("ReLU", "Activation", "ZeroPadding2D"):
        return _FEW
    return _WEIGHTS if layer.multiply_adds or layer.place else _OTHER


def _places(row: Row, columns: Sequence[float], middles: Sequence[float]) -> list[_Place]:
    left_edges, x = [], _TITLE + _GAP
    for width in columns:
        left_edges.append(x)
        x += width + _GAP
    return [
        _Place(
            left_edges[cell.column] + columns[cell.column] / 2,
            middles[cell.lane],
            _width(cell.layer),
        )
        for cell in row.cells
    ]


def _wire(
    axes: Any,
    row: Row,
    places: Sequence[_Place],
    wire: Wire,
    start: tuple[float, float],
    middles: Sequence[float],
) -> None:
    """Draw the path of a tensor: along its lane, then into the goal from the left or below."""
    goal, lane = places[wire.goal], middles[wire.lane]
    if wire.source is None:
        turns = [start, (start[0], lane)]
    else:
        source = places[wire.source]
        turns = [(source.x + source.width / 2, source.y)]
        if wire.lane != row.cells[wire.source].lane:
            turn = turns[0][0] + _GAP / 2
            turns += [(turn, source.y), (turn, lane)]
    if wire.lane == row.cells[wire.goal].lane:
        turns.append((goal.x - goal.width / 2, lane))
    else:
        side = _HEIGHT if row.cells[wire.goal].layer.kind not in _JOINS else _JOIN
        turns += [(goal.x, lane), (goal.x, goal.y + side / 2)]
    _line(axes, turns)


def _line(
    axes: Any, turns: Sequence[tuple[float, float]], arrow: bool = True, color: str = _LINE
) -> None:
    xs, ys = zip(*turns, strict=True)
    axes.plot(xs, ys, color=color, linewidth=0.8, solid_capstyle="round", zorder=1)
    if arrow:
        axes.annotate(
            "",
            turns[-1],
            turns[-2],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.18,head_length=0.36",
                "color": color,
                "linewidth": 0,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=1,
        )


def _cell(axes: Any, layer: LayerCost, place: _Place, colors: Mapping[str, str]) -> None:
    if layer.kind in _JOINS:
        axes.add_patch(
            Circle((place.x, place.y), _JOIN / 2, facecolor=style.INK, edgecolor="none", zorder=2)
        )
        _text(axes, place.x, place.y, _JOINS[layer.kind], 10, "white", weight="bold")
        return
    fill, edge = MAPPED if layer.parametrization else _WEIGHT, "#9a9ca1"
    if layer.place:
        fill = edge = colors[layer.kind]
    elif not layer.multiply_adds:
        fill, edge = "#e6e7ea", "none"
    x, y = place.x - place.width / 2, place.y - _HEIGHT / 2
    axes.add_patch(_box(x, y, place.width, _HEIGHT, fill, edge, 0.05))
    dark = sum(part * w for part, w in zip(to_rgb(fill), (0.30, 0.59, 0.11), strict=True)) < 0.6
    lines = [
        style.wrap(printable(line), place.width + _GAP, 1, 6.5)
        for line in _label(layer).split("\n")
    ]
    _text(axes, place.x, place.y, "\n".join(lines), 6.5, "white" if dark else style.INK)


def _label(layer: LayerCost) -> str:
    """Return the text of a layer's cell, one or two lines."""
    if layer.kind == "Activation":
        return layer.about
    name = layer.kind.removeprefix("Parametrized")
    name = _SHORT.get(name, name.removesuffix("2D"))
    if layer.place:
        name = name.removesuffix("Normalization").replace("normalization", "norm")
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
        return f"{_fitting(words)}\n{layer.place}"
    if layer.kind == "InputLayer":
        return f"{name}\n{by(layer.output_shape)}"
    if layer.multiply_adds:
        channels = str(layer.output_shape[-1])
        about = layer.about.replace(" groups", " gr.")
        return f"{_fitting(name, 10)} {channels}\n{about}" if about else f"{name}\n{channels}"
    if layer.kind == "Dropout":
        return f"{name}\n{layer.about.removeprefix('rate ')}"
    if layer.kind == "ReLU":
        return f"ReLU{layer.about.removeprefix('at most ')}"
    return f"{name}\n{layer.about}" if layer.about else _fitting(name)


def _fitting(name: str, most: int = 14) -> str:
    return name if max(map(len, name.split("\n"))) <= most else f"{name[: most - 1]}…"


def _words(axes: Any, row: Row, y: float, tall: float, width: float) -> None:
    """Write the name of a row to its left and its costs to its right."""
    count = max(len(row.names), 1)
    middle = y + tall / 2
    room = _TITLE - 0.3
    title = style.wrap(printable(row.title), room, 1, 8.5)
    lines = [(title, 8.0, "bold", style.INK)] if row.title else []
    if count > 1:
        lines.append((f"× {count}", 7.5, "normal", style.INK))
    if row.origins:
        origins = printable(f"from {', '.join(row.origins)}")
        lines.append((style.wrap(origins, room, 1, 6.5), 6.5, "normal", style.GRAY))
    _lines(axes, 0.18, middle, lines)
    lines = [(by(row.cells[-1].layer.output_shape), 7.5, "normal", style.INK)]
    for total, unit in (
        (sum(cell.layer.parameters for cell in row.cells), "parameters"),
        (sum(cell.layer.multiply_adds for cell in row.cells), "mult.-adds"),
    ):
        if total:
            times = f"{count} × " if count > 1 else ""
            lines.append((f"{times}{short(total)} {unit}", 6.2, "normal", style.GRAY))
    _lines(axes, width - _SAYS + 0.14, middle, lines)


def _lines(
    axes: Any, x: float, middle: float, lines: Sequence[tuple[str, float, str, str]]
) -> None:
    for index, (text, points, weight, color) in enumerate(lines):
        y = middle + 0.14 * (index - (len(lines) - 1) / 2)
        _text(axes, x, y, text, points, color, weight=weight, align="left")


def _head(axes: Any, network: Network, legend: Sequence[tuple[str, str]]) -> None:
    """Write the title, the totals and the legend."""
    total = rows(network)[-1]
    right = axes.get_xlim()[1]
    name = style.wrap(printable(network.name), right - 0.3, 1, 11.0)
    _text(axes, 0.14, 0.2, name, 10, style.INK, weight="bold", align="left")
    totals = (
        f"{by(network.images)} images, {network.classes:,} classes  ·  "
        f"{short(total['parameters'])} parameters  ·  {short(total['multiply_adds'])} multiply-adds"
    )
    _text(axes, 0.14, 0.42, totals, 7.5, style.GRAY, align="left")
    for index, (text, color) in enumerate(legend):
        y = 0.64 + 0.2 * index
        axes.add_patch(_box(0.16, y - 0.06, 0.24, 0.12, color, color, 0.03))
        label = style.wrap(printable(text), right - 0.6, 1, 7.5)
        _text(axes, 0.48, y, label, 7.5, style.INK, align="left")


def _legend(network: Network, colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the texts of the legend with their colors."""
    legend = list(zip(placed(network.layers), colors.values(), strict=True)) if colors else []
    names = dict.fromkeys(layer.parametrization for layer in network.layers)
    return [*legend, *((f"kernels: {name}", MAPPED) for name in names if name)]


def _box(
    x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float
) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={radius}",
        facecolor=fill,
        edgecolor=edge,
        linewidth=0.7,
        zorder=0.5 if fill == _SHADE else 2,
    )


def _text(
    axes: Any,
    x: float,
    y: float,
    text: str,
    points: float,
    color: str,
    *,
    weight: str = "normal",
    align: str = "center",
) -> None:
    axes.text(
        x,
        y,
        text,
        fontsize=points,
        color=color,
        fontweight=weight,
        ha=align,
        va="center",
        linespacing=1.05,
        zorder=3,
    )


# --- the layout: a row a block, a column a step, a lane a branch --------------------------------
# It uses only the layers and costs of :func:`normbench.network.layer_costs`; layers belong to a
# block by their names.

_BLOCK = re.compile(r"(.*?block\d+|[^_]+)(?:_|$)")


@dataclass(frozen=True)
class PlacedLayer:
    """A layer, its column and its lane within the row, both from 0."""

    layer: LayerCost
    column: int
    lane: int


@dataclass(frozen=True)
class Wire:
    """The path of a tensor from a cell (None: the start of the row) to another, along ``lane``.

    ``source`` and ``goal`` are positions in the row's cells.
    """

    source: int | None
    goal: int
    lane: int


@dataclass(frozen=True)
class Row:
    """One block, or several identical consecutive ones.

    Attributes:
        names: Names of the blocks; empty for layers that do not belong to a block.
        cells: The layers.
        wires: The connections of the layers.
        origins: Names of the rows that the input comes from, if it is not the row above.
    """

    names: tuple[str, ...]
    cells: tuple[PlacedLayer, ...]
    wires: tuple[Wire, ...]
    origins: tuple[str, ...]

    @property
    def lanes(self) -> int:
        """The number of lanes."""
        return 1 + max(item.lane for item in (*self.cells, *self.wires))

    @property
    def title(self) -> str:
        """The blocks' names: ``stage1 block2–3``."""
        if not self.names:
            return ""
        first, last = (self.names[at].replace("_", " ") for at in (0, -1))
        if first == last:
            return first
        number = re.search(r"\d+$", last)
        return f"{first}–{number[0]}" if number else f"{first} – {last}"


def arrange(layers: Sequence[LayerCost]) -> list[Row]:
    """Arrange a network's layers, in the order of ``layer_costs``, in rows from top to bottom.

    Layers whose names share a prefix, up to ``blockN`` or else the first underscore, form a block;
    consecutive blocks with the same structure share a row.
    """
    blocks = _blocks(layers)
    home = {layer.name: index for index, (_, members) in enumerate(blocks) for layer in members}
    rows: list[Row] = []
    for index, (name, members) in enumerate(blocks):
        names = {layer.name for layer in members}
        origins = {home[name] for layer in members for name in layer.inputs if name not in names}
        row = _row(members)
        row = Row(
            (name,) if name else (),
            row.cells,
            row.wires,
            tuple(blocks[at][0] or blocks[at][1][-1].name for at in sorted(origins))
            if origins - {index - 1}
            else (),
        )
        if rows and name and _alike(rows[-1], row):
            rows[-1] = Row((*rows[-1].names, name), row.cells, row.wires, row.origins)
        else:
            rows.append(row)
    return rows


def _blocks(layers: Sequence[LayerCost]) -> list[tuple[str, list[LayerCost]]]:
    """Split the layers into blocks, the first of which starts with the images.

    Single layers share a block with an empty name, or start the next block if they have no weights.
    """

    def name_of(layer: LayerCost) -> str:
        match = _BLOCK.match(layer.name)
        return match[1] if match else layer.name

    blocks: list[tuple[str, list[LayerCost]]] = []
    single_layers = [layer for layer in layers if not layer.inputs]
    for name, group in groupby((layer for layer in layers if layer.inputs), name_of):
        members = list(group)
        if len(members) == 1:
            single_layers += members
        elif any(layer.parameters for layer in single_layers):
            blocks += [("", single_layers), (name, members)]
            single_layers = []
        else:
            blocks.append((name, single_layers + members))
            single_layers = []
    return [*blocks, ("", single_layers)] if single_layers else blocks


def _row(layers: Sequence[LayerCost]) -> Row:
    cells: list[PlacedLayer] = []
    at: dict[str, int] = {}
    predecessors: set[str] = set()  # layers whose lane a later layer has taken over
    lanes = 0
    for layer in layers:
        inputs = [name for name in layer.inputs if name in at]
        column = 1 + max((cells[at[name]].column for name in inputs), default=-1)
        if inputs and inputs[0] not in predecessors:
            lane = cells[at[inputs[0]]].lane
            predecessors.add(inputs[0])
        else:
            lane, lanes = lanes, lanes + 1
        at[layer.name] = len(cells)
        cells.append(PlacedLayer(layer, column, lane))
    return Row((), tuple(cells), tuple(_wires(cells, at, lanes)), ())


def _wires(cells: Sequence[PlacedLayer], at: dict[str, int], lanes: int) -> list[Wire]:
    wires = []
    for goal, cell in enumerate(cells):
        for name in dict.fromkeys(source if source in at else None for source in cell.layer.inputs):
            source = None if name is None else at[name]
            column = -1 if source is None else cells[source].column
            lane = cell.lane if source is None else cells[source].lane
            if column + 1 < cell.column and not _free(cells, lane, column, cell.column):
                lane, lanes = lanes, lanes + 1
            elif column + 1 == cell.column and not _joins(cells, lane, cell):
                lane = cell.lane
            wires.append(Wire(source, goal, lane))
    return wires


def _free(cells: Sequence[PlacedLayer], lane: int, after: int, before: int) -> bool:
    """Return whether a lane is empty between two columns."""
    return not any(cell.lane == lane and after < cell.column < before for cell in cells)


def _joins(cells: Sequence[PlacedLayer], lane: int, goal: PlacedLayer) -> bool:
    """Return whether a branch in ``lane`` ends in ``goal``, which is in another lane."""
    return lane > goal.lane


def _alike(row: Row, other: Row) -> bool:
    def form(row: Row) -> tuple[object, ...]:
        return tuple(
            (
                cell.layer.kind,
                cell.layer.about,
                cell.layer.place,
                cell.layer.parametrization,
                cell.layer.output_shape,
                cell.layer.parameters,
                cell.column,
                cell.lane,
            )
            for cell in row.cells
        )

    return form(row) == form(other) and row.wires == other.wires and not other.origins
