"""One style for all figures: sizes, fonts, and a colour and marker that belong to a norm's name.

Colours are those of Okabe & Ito (2008), and of Tol's "muted" set beyond them, both chosen to be
told apart by colour-blind readers. A norm has the same colour and marker in every figure of every
store: known names by a table, others by a checksum of the name, never by the order of appearance.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

COLUMN = 3.4
"""Width of a column of a two-column paper, inches."""

PAGE = 7.0
"""Width of both columns, inches."""

KINDS = ("png", "svg", "pdf")
"""Files written of each figure."""

INK, GRID, PAPER = "#1c1c1e", "#d9dadc", "#fefefe"
"""Text and axes, grid lines, background; the page exchanges them in a dark setting."""

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, ORANGE, GREY, WINE = "#56b4e9", "#e69f00", "#6b6b70", "#882255"
INDIGO, OLIVE, TEAL, SAND = "#4b4bb0", "#999933", "#44aa99", "#b8a13a"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, GREY, WINE, INDIGO, OLIVE, TEAL, SAND)
_HANDLE, _LETTER = 0.42, 0.06  # inches of a legend's entry, and of a letter in it

MARKERS = ("o", "s", "^", "D", "v", "P", "8", "*", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))

_KNOWN = {
    "bn": (BLUE, "o"),
    "gn": (VERMILION, "s"),
    "gn_ws": (GREEN, "^"),
    "bn_ws": (SKY, "D"),
    "ln": (PURPLE, "v"),
    "in": (ORANGE, "P"),
    "none": (GREY, "h"),
    "rms": (WINE, "<"),
    "brn": (INDIGO, ">"),
    "frn": (OLIVE, "p"),
    "xbn": (TEAL, "*"),
    "bcn": (SAND, "8"),
    "ln_ws": (PURPLE, "^"),
    "in_ws": (ORANGE, "^"),
    "bn_center": (BLUE, "<"),
    "bn_noaffine": (BLUE, "s"),
    "ghost_bn": (SKY, "o"),
    "sync_bn": (BLUE, "D"),
    "precise_bn": (BLUE, "P"),
    "pn": (OLIVE, "v"),
    "evonorm_s0": (WINE, "s"),
    "evonorm_b0": (WINE, "o"),
    "switchable": (TEAL, "s"),
    "iternorm": (INDIGO, "D"),
    "dyt": (SAND, "v"),
    "lrn": (GREY, "s"),
    "minmax": (INDIGO, "s"),
    "minmax_channel": (INDIGO, "^"),
    "minmax_image": (INDIGO, "o"),
    "minmax_max_first": (INDIGO, "v"),
    "minmax_reshape": (INDIGO, "<"),
    "gn_tfa": (VERMILION, "o"),
    "in_tfa": (ORANGE, "o"),
    "frn_tfa": (OLIVE, "o"),
    "gn_ws_regularizer": (VERMILION, "<"),
    "gn_ws_assign": (VERMILION, "D"),
    "scaled_ws": (GREEN, "D"),
    "none_ws": (GREEN, "o"),
    "none_scaled_ws": (GREEN, "D"),
}

_RC: Any = {
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "normbench",
    "path.simplify": True,
}

P = ParamSpec("P")
R = TypeVar("R")


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    marker: str
    dashes: Any = "-"


class Point(NamedTuple):
    """A value of a figure that the page names when the pointer is over it.

    ``key`` is the (row, column) of the study's cell; ``x`` and ``y`` are in data coordinates.
    """

    axes: Axes
    x: float
    y: float
    text: str
    key: tuple[Any, Any]


class Hit(NamedTuple):
    """A point by its place in the figure: fractions of the width from left, height from top."""

    x: float
    y: float
    text: str
    key: tuple[Any, Any]


@dataclass
class Drawing:
    """A figure with its file name, its caption and its values."""

    slug: str
    caption: str
    figure: Figure
    points: list[Point] = field(default_factory=list)
    wide: bool = False
    _svg: str = ""
    _settled: bool = False

    def settle(self) -> None:
        """Make the layout, once: every file and the page then agree on it."""
        if not self._settled:
            with mpl.rc_context(_RC):
                self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
            self._settled = True

    def svg(self) -> str:
        """Return the figure as an SVG document."""
        if not self._svg:
            self.settle()
            raw = StringIO()
            with mpl.rc_context(_RC):
                self.figure.savefig(raw, format="svg", metadata={"Date": None})
            self._svg = raw.getvalue()
        return self._svg

    def hits(self) -> list[Hit]:
        """Return where the points lie, after the layout is made."""
        self.settle()
        width, height = self.figure.get_size_inches() * self.figure.dpi
        found = []
        for point in self.points:
            x, y = point.axes.transData.transform((point.x, point.y))
            found.append(Hit(x / width, 1 - y / height, point.text, point.key))
        return found


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in this style."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return inner


def look(factor: str, value: Any, values: Sequence[Any] = ()) -> Look:
    """Return how a value of a factor is drawn, the same in every figure.

    Numbers are ordered, so they get a scale of colours by their place among ``values``.
    """
    if isinstance(value, int | float) and len(values) > 1:
        place = list(values).index(value)
        red, green, blue, _ = mpl.colormaps["viridis"](0.9 * place / (len(values) - 1))
        colour = f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
        return Look(colour, MARKERS[place % len(MARKERS)])
    name = str(value)
    if factor == "norm" and name in _KNOWN:
        return Look(*_KNOWN[name])
    number = zlib.crc32(name.encode())
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
    return Look(colour, marker, DASHES[1 + number // 144 % 3])


def new(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Return a figure and its axes in an array of ``rows`` × ``columns``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def log2_axis(axes: Axes, values: Sequence[float]) -> None:
    """Put a log₂ axis of x with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > 1:
        axes.set_xlim(min(values) / 2**0.3, max(values) * 2**0.3)
    if len(values) > 8:
        axes.tick_params(axis="x", labelrotation=45)


def mark(look: Look) -> dict[str, Any]:
    """Return how a marker is drawn: with a thin rim of paper, crosses a little larger."""
    size = 5.4 if look.marker in "P*" else 4.2
    rim = {"markeredgecolor": PAPER, "markeredgewidth": 0.3}
    return {"marker": look.marker, "markersize": size, **rim}


def legend(figure: Figure, handles: Sequence[Any], width: int = 4, title: str = "") -> None:
    """Put a legend below the whole figure, where it hides nothing, to be read line by line."""
    if not handles:
        return
    names = [str(handle.get_label()) for handle in handles]
    columns = _legend_columns(names, figure.get_size_inches()[0], width)
    # Matplotlib fills a legend column by column.
    order = [handles[i] for start in range(columns) for i in range(start, len(handles), columns)]
    figure.legend(handles=order, loc="outside lower center", ncols=columns, title=title or None)


def handle(look: Look, label: str, *, line: bool = True, marker: bool = True) -> Line2D:
    """Return an entry of a legend."""
    drawn = mark(look) if marker else {}
    return Line2D(
        [], [], color=look.colour, linestyle=look.dashes if line else "none", label=label, **drawn
    )


def plain_log(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers: decades, and 2 and 5 in a short range."""
    short = high < 50 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_height(names: Sequence[str], inches: float = COLUMN, width: int = 4) -> float:
    """Return the inches of height that a legend of these names takes in a figure so wide."""
    return 0.16 * -(-len(names) // _legend_columns(names, inches, width)) + 0.08


def _legend_columns(names: Sequence[str], inches: float, width: int) -> int:
    """Return the number of columns, at most ``width``, of a legend that fits into the figure."""
    for lines in range(1, len(names) + 1):
        columns = -(-len(names) // lines)
        needed = sum(
            _HANDLE + _LETTER * max(map(len, names[first::columns])) for first in range(columns)
        )
        if columns <= width and needed <= inches:
            return columns
    return 1


def minus(text: str) -> str:
    """Return a text with true minus signs."""
    return text.replace("-", "−")


@styled
def save(drawing: Drawing, folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write a drawing: PNG at 300 dots an inch, SVG, PDF; the same input gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    drawing.settle()
    written = []
    for kind in kinds:
        path = folder / f"{drawing.slug}.{kind}"
        if kind == "svg":
            path.write_text(drawing.svg(), encoding="utf-8")
        else:
            metadata = {"Software": None} if kind == "png" else {"CreationDate": None}
            drawing.figure.savefig(path, dpi=300, metadata=metadata)
        written.append(path)
    return written
