"""The style of all figures: sizes, fonts, colors and markers, layout helpers, and files.

Figures are laid out in inches and points for the default venue, in which labels have 7.5 points;
:func:`new` and :func:`points` scale them for the venue that :func:`made_for` sets. A figure for
slides, with 14-point labels, is as wide as the slide and proportionally taller, but its panels
shrink if it does not fit.

Colors are those of Okabe & Ito (2008) and of Tol's "muted" set, both designed for color-blind
readers. A norm has the same color and marker in every figure of every store: known names have them
from :data:`normbench.report.names.NORMS`, others from a checksum of the name, never from the order
of appearance.
"""

from __future__ import annotations

import contextlib
import functools
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MarkPath
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from normbench.report import names as labels
from normbench.report.study import Study
from normbench.report.venues import DEFAULT, VENUES, Venue

LEAST = 6.0
"""Minimum printed size of any text, in points."""

INK, GRID, PAPER = "#1c1c1e", "#d9dadc", "#fefefe"
"""Colors of text and axes, grid lines, and background; a dark page replaces them."""

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, ORANGE, GRAY, WINE = "#56b4e9", "#e69f00", "#6b6b70", "#882255"
INDIGO, OLIVE, TEAL, SAND = "#4b4bb0", "#999933", "#44aa99", "#b8a13a"
PALETTE = {
    "blue": BLUE,
    "vermilion": VERMILION,
    "green": GREEN,
    "purple": PURPLE,
    "sky": SKY,
    "orange": ORANGE,
    "gray": GRAY,
    "wine": WINE,
    "indigo": INDIGO,
    "olive": OLIVE,
    "teal": TEAL,
    "sand": SAND,
}
"""Colors of series, by the names used in :data:`normbench.report.names.NORMS`."""

COLORS = tuple(PALETTE.values())
_HANDLE = 0.46  # inches of a legend entry without its name
_SPACE = 0.12  # inches between the columns of a legend
LINE = 0.13
"""Height of a line of text, inches."""

MANY = 8
"""Minimum number of rows for which a figure has a panel for each."""

LINES = 3
"""Maximum number of lines of a name in a figure; the middle of a longer name is left out."""

MARKERS = ("o", "s", "^", "D", "v", "P", "8", "*", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (8, 1.5)), (0, (5, 1, 1, 1)))
DOTTED = (0, (1, 1.2))
"""Dashes of training curves drawn next to validation curves; no row has a dotted line."""

_SIZE = VENUES[DEFAULT].size  # label size in points for which figures are laid out
_RC: dict[str, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.titleweight": "bold",
    "text.parse_math": False,  # a name with dollar signs is not a formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
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
_SCALED: dict[str, float] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "figure.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3.5,
    "ytick.major.size": 3.5,
    "xtick.minor.size": 2.0,
    "ytick.minor.size": 2.0,
    "xtick.major.pad": 3.5,
    "ytick.major.pad": 3.5,
    "axes.labelpad": 4.0,
    "axes.titlepad": 6.0,
    "grid.linewidth": 0.5,
}
"""Settings in points, for 7.5-point labels. :class:`Drawing` scales the strokes of series."""

_venue = VENUES[DEFAULT]


def venue() -> Venue:
    """Return the venue for which figures are currently drawn."""
    return _venue


@contextlib.contextmanager
def made_for(chosen: Venue) -> Iterator[None]:
    """Context manager: draw figures for a venue."""
    global _venue
    before, _venue = _venue, chosen
    try:
        yield
    finally:
        _venue = before


def column() -> float:
    """Return the width of a narrow figure, in inches."""
    return _venue.column / _scale()


def page() -> float:
    """Return the width of a figure with panels side by side, in inches."""
    return _venue.page / _scale()


def points(size: float) -> float:
    """Scale a font size chosen for 7.5-point labels to the printed size."""
    return max(LEAST, _scale() * size)


def _scale() -> float:
    return _venue.size / _SIZE


def _settings(target_venue: Venue) -> Any:
    """Return Matplotlib's settings for a venue."""
    scale = target_venue.size / _SIZE
    sizes = {name: scale * value for name, value in _SCALED.items()}
    return {**_RC, **sizes, "font.family": [_family(target_venue)]}


@functools.lru_cache(maxsize=len(VENUES))
def _family(target_venue: Venue) -> str:
    """Return the first of a venue's font families that is installed."""
    return next(family for family in target_venue.fonts if family in _entries())


P = ParamSpec("P")
R = TypeVar("R")


class Look(NamedTuple):
    """Color, marker and dashes of a series."""

    color: str
    marker: str
    dashes: Any = "-"


class Point(NamedTuple):
    """A value in a figure that the page shows as a tooltip.

    ``key`` is the (row, column) of the study's cell; ``x`` and ``y`` are in data coordinates.
    """

    axes: Axes
    x: float
    y: float
    text: str
    key: tuple[Any, Any]


class Hit(NamedTuple):
    """A point in the figure, as fractions of its width from the left and height from the top."""

    x: float
    y: float
    text: str
    key: tuple[Any, Any]


@dataclass
class Drawing:
    """A figure with its file name, caption and tooltip values."""

    slug: str
    caption: str
    figure: Figure
    points: list[Point] = field(default_factory=list)
    wide: bool = False
    venue: Venue = field(default_factory=venue)
    _svg: str = ""
    _settled: bool = False

    def __post_init__(self) -> None:
        scale = self.venue.size / _SIZE
        if scale == 1:
            return
        for axes in self.figure.axes:
            _thicken([*axes.lines, *axes.collections, *axes.patches], scale)
        for legend in self.figure.legends:
            _thicken(legend.legend_handles, scale)

    @functools.cached_property
    def texts(self) -> list[Text]:
        """The texts of the figure, each with the fonts that it needs.

        Tick labels may still be empty: Matplotlib fills them in while drawing, with digits that the
        style's own font has.
        """
        settings = _settings(self.venue)
        with mpl.rc_context(settings):  # finding texts creates ticks, in the current style
            texts = [text for text in self.figure.findobj(Text) if isinstance(text, Text)]
        for text in texts:
            if families := _further_fonts(text.get_text(), _family(self.venue)):
                text.set_fontfamily([_family(self.venue), *families])
        return texts

    def settle(self) -> None:
        """Compute the layout once, so that it is the same in every file and on the page."""
        if self._settled:
            return
        with self._drawing():
            if (engine := self.figure.get_layout_engine()) is not None:
                engine.execute(self.figure)
            # With any layout engine set, even one that does nothing, Matplotlib would draw the
            # figure once more before writing each file.
            self.figure.set_layout_engine(None)
        self._settled = True

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Apply the venue's Matplotlib settings while the figure is drawn or saved.

        Warnings about characters that no installed font has, which are drawn as boxes, are
        suppressed: :func:`lacking` reports them.
        """
        rc = _settings(self.venue)
        if any(_further_fonts(text.get_text(), _family(self.venue)) for text in self.texts):
            rc["pdf.fonttype"] = 3  # embed outlines, since not every font is TrueType
        with mpl.rc_context(rc), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            yield

    def svg(self) -> str:
        """Return the figure as an SVG document."""
        if not self._svg:
            buffer = StringIO()
            self._save(buffer, format="svg", metadata={"Date": None})
            self._svg = buffer.getvalue()
        return self._svg

    def write(self, path: Path, dpi: int = 300) -> None:
        """Write the figure to a file, in the format of its suffix; ``dpi`` applies to PNG."""
        kind = path.suffix.lower()
        if kind == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        else:
            metadata = {"Software": None} if kind == ".png" else {"CreationDate": None}
            self._save(path, dpi=dpi, metadata=metadata)

    def _save(self, target: Path | StringIO, **options: Any) -> None:
        self.settle()
        with self._drawing():
            self.figure.savefig(target, **options)

    def hits(self) -> list[Hit]:
        """Return the positions of the points in the figure."""
        self.settle()
        width, height = self.figure.get_size_inches() * self.figure.dpi
        hits = []
        for point in self.points:
            x, y = point.axes.transData.transform((point.x, point.y))
            hits.append(Hit(x / width, 1 - y / height, point.text, point.key))
        return hits


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function so that it uses this style."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_settings(_venue)):
            return draw(*args, **kwargs)

    return inner


def lacking(drawings: Iterable[Drawing]) -> str:
    """Return a sentence on the characters that no installed font has; empty if there are none."""
    letters = {
        (letter, _family(drawing.venue))
        for drawing in drawings
        for text in drawing.texts
        for letter in text.get_text()
    }
    boxes = {
        letter
        for letter, family in letters
        if not _is_in(letter, family) and not _fonts_with(letter)
    }
    if not boxes:
        return ""
    listing = " ".join(sorted(boxes))
    return f"figures show boxes for {listing}: no installed font has these characters"


def _thicken(artists: Iterable[Any], scale: float) -> None:
    """Scale the strokes and markers of series."""
    for artist in artists:
        if isinstance(artist, Line2D):
            artist.set_linewidth(scale * artist.get_linewidth())
            artist.set_markersize(scale * artist.get_markersize())
            artist.set_markeredgewidth(scale * artist.get_markeredgewidth())
        elif hasattr(artist, "set_linewidth"):
            artist.set_linewidth(scale * np.asarray(artist.get_linewidth()))


@functools.lru_cache(maxsize=4096)
def _further_fonts(text: str, family: str) -> tuple[str, ...]:
    """Return the installed font families that have the characters of a text ``family`` lacks."""
    families: list[str] = []
    letters = {c for c in text if not _is_in(c, family)}
    while letters:
        counts = Counter(family for c in sorted(letters) for family in _fonts_with(c))
        if not counts:
            break
        best = max(counts, key=lambda family: (counts[family], "sans" in family.lower()))
        families.append(best)
        letters = {c for c in letters if best not in _fonts_with(c)}
    return tuple(families)


@functools.lru_cache(maxsize=4096)
def _is_in(character: str, family: str) -> bool:
    """Return whether a font family has a character, or the character needs no glyph."""
    if character.isspace() or _has(_entries()[family], character):
        return True
    return unicodedata.category(character) in ("Cf", "Mn", "Me")  # combining marks and formats


@functools.lru_cache(maxsize=4096)
def _fonts_with(character: str) -> tuple[str, ...]:
    """Return the font families that have a character."""
    return tuple(family for family, entry in _entries().items() if _has(entry, character))


@functools.lru_cache(maxsize=1)
def _entries() -> dict[str, FontEntry]:
    """Return the upright regular font of each installed family, by name."""
    entries: dict[str, FontEntry] = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if entry.style == "normal" and entry.name != "Last Resort High-Efficiency":
            other_entry = entries.get(entry.name)
            if other_entry is None or _heaviness(entry) < _heaviness(other_entry):
                entries[entry.name] = entry
    return entries


def _heaviness(entry: FontEntry) -> int:
    weight = entry.weight
    return abs((font_manager.weight_dict[weight] if isinstance(weight, str) else weight) - 400)


@functools.lru_cache(maxsize=512)
def _opened(path: str) -> FT2Font | None:
    try:
        return font_manager.get_font(path)
    except (OSError, RuntimeError):
        return None


def _has(entry: FontEntry, character: str) -> bool:
    font = _opened(entry.fname)
    return font is not None and font.get_char_index(ord(character)) != 0


def look(factor: str, value: Any, values: Sequence[Any] = ()) -> Look:
    """Return the look of a value of a factor.

    Numbers are colored on a scale by their position in ``values``; all other values have the color
    and marker of their name, in every figure. If two of ``values`` could not be distinguished
    without color, one gets different dashes, or a different marker if all dashes are taken.
    """
    if isinstance(value, int | float) and len(values) > 1:
        place = list(values).index(value)
        red, green, blue, _ = mpl.colormaps["viridis"](0.9 * place / (len(values) - 1))
        color = f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
        round_, marker = divmod(place, len(MARKERS))
        return Look(color, MARKERS[marker], DASHES[round_ % len(DASHES)])
    names = tuple(sorted({str(other) for other in values if not isinstance(other, int | float)}))
    return _looks(factor, names).get(str(value)) or _look(factor, str(value))


@functools.lru_cache(maxsize=256)
def _looks(factor: str, names: tuple[str, ...]) -> dict[str, Look]:
    """Return the look of each name; no two share both marker and dashes."""
    looks: dict[str, Look] = {}
    pairs: set[tuple[str, Any]] = set()
    for name in names:
        default = _look(factor, name)
        first = MARKERS.index(default.marker)
        markers = MARKERS[first:] + MARKERS[:first]
        options = [
            Look(default.color, marker, dashes)
            for marker in markers
            for dashes in (default.dashes, *DASHES)
            if (marker, dashes) not in pairs
        ]
        # With more than 48 names some must look alike.
        looks[name] = options[0] if options else default
        pairs.add((looks[name].marker, looks[name].dashes))
    return looks


def _look(factor: str, name: str) -> Look:
    """Return the look of a single name; norms of one color have different dashes."""
    entry = labels.NORMS.get(name) or labels.UNNORMALIZED.get(name)
    if factor == "norm" and entry is not None and entry.color:
        family = [key for key, norm in labels.NORMS.items() if norm.color == entry.color]
        place = family.index(name) if name in family else len(family)
        return Look(PALETTE[entry.color], entry.marker, DASHES[place % len(DASHES)])
    number = zlib.crc32(name.encode())
    color = COLORS[number % len(COLORS)]
    marker = MARKERS[number // len(COLORS) % len(MARKERS)]
    return Look(color, marker, DASHES[1 + number // 144 % 3])


def new(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Return a figure and its axes in an array of ``rows`` × ``columns``."""
    inches = height * _scale()
    if inches > _venue.tallest:
        inches = max(_venue.tallest, 0.75 * inches)
    figure = Figure(figsize=(width * _scale(), inches), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def log2_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis log₂, with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(values) > 1:
        axes.set_xlim(min(values) / 2**0.3, max(values) * 2**0.3)
    if len(values) > 8:
        axes.tick_params(axis="x", labelrotation=45)


def mark(look: Look) -> dict[str, Any]:
    """Return marker options: a thin rim in the background color; crosses are larger."""
    size = 5.4 if look.marker in "P*" else 4.2
    rim = {"markeredgecolor": PAPER, "markeredgewidth": 0.3}
    return {"marker": look.marker, "markersize": size, **rim}


def sparse_mark(look: Look, values: int, place: int) -> dict[str, Any]:
    """Return marker options for a curve: about five markers, staggered between rows.

    Args:
        look: The look of the row.
        values: Number of values of the curve.
        place: Number of the row in the figure.
    """
    step = max(1, values // 5)
    small = mark(look)
    small["markersize"] *= 0.8
    return {**small, "markevery": (place % step, step)}


def mark_cut(axes: Axes) -> str:
    """Mark a vertical axis that does not start at 0 with two strokes; return a sentence on it."""
    strokes = MarkPath(
        [(-0.018, 0.0), (0.018, 0.03), (-0.018, 0.015), (0.018, 0.045)],
        [MarkPath.MOVETO, MarkPath.LINETO] * 2,
    )
    look = {"facecolor": "none", "edgecolor": INK, "linewidth": 0.6, "zorder": 7}
    axes.add_patch(
        PathPatch(strokes, transform=axes.transAxes, clip_on=False, label="_cut", **look)
    )
    return " The vertical axis does not start at 0."


def panels_beside(count: int) -> int:
    """Return the number of small panels per row: three or four, whichever leaves fewer gaps."""
    return min(count, 4 if -count % 4 <= -count % 3 else 3)


class Outer(NamedTuple):
    """The leftmost axes of a figure of panels, and a sentence on its vertical axis."""

    left: list[Axes]
    caption: str


def outer(axes: Any, count: int, *, cut: bool = False) -> Outer:
    """Label the outer axes of panels that share axes, and hide those beyond the last panel.

    Args:
        axes: The axes, an array of rows × columns.
        count: Number of panels.
        cut: Whether to mark the vertical axis as not starting at 0.
    """
    wide = axes.shape[1]
    left_axes, caption = [], ""
    for place, axis in enumerate(axes.ravel()):
        axis.set_visible(place < count)
        if place >= count:
            continue
        below = place + wide >= count
        axis.tick_params(labelbottom=below)
        if not below:
            axis.set_xlabel("")
        if place % wide == 0:
            left_axes.append(axis)
            if cut:
                caption = mark_cut(axis)
    return Outer(left_axes, caption)


def spread(
    axes: Axes,
    x: Any,
    low: Any,
    high: Any,
    color: str,
    singles: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> None:
    """Draw the spread around a mean curve: a band, or a thin line for each run if there are few."""
    if singles:
        lines = [np.column_stack(line) for line in singles]
        collection = LineCollection(
            lines, colors=to_rgba(color, 0.45), linewidths=0.4, label="_run"
        )
        axes.add_collection(collection, autolim=False)
        axes.update_datalim(np.concatenate(lines))
    else:
        # fill_between() would recompute the limits of all panels that share an axis for each band.
        places = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
        parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        below, above = np.column_stack([x, low]), np.column_stack([x, high])
        shapes = [np.concatenate([below[part], above[part[::-1]]]) for part in parts if len(part)]
        face = to_rgba(color, 0.15)
        axes.add_collection(PolyCollection(shapes, facecolor=face, linewidth=0), autolim=False)
        axes.update_datalim(np.concatenate([below[places], above[places]]))


def text_width(text: str, size: float = 7.0) -> float:
    """Return the width in inches of a line of text at a font size in points."""
    return width_in(text, points(size), _family(_venue)) / _scale()


def width_in(text: str, size: float, family: str) -> float:
    """Return the printed width in inches of a line of text in a font family."""
    return _measured(text, size, (family, *_further_fonts(text, family)))


@functools.lru_cache(maxsize=8192)
def _measured(text: str, size: float, families: tuple[str, ...]) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        properties = FontProperties(family=list(families), size=size)
        width, _, _ = text_to_path.get_text_width_height_descent(text, properties, False)
    return width / 72


def wrapped(
    names: Sequence[str], inches: float, lines: int = LINES, size: float = 7.0
) -> list[str]:
    """Wrap names to a width; the middle of names that need more lines is left out.

    Different names stay different.

    Args:
        names: The names.
        inches: The width of a line, in inches.
        lines: Maximum number of lines per name.
        size: Font size, in points.
    """
    length = max(map(len, names), default=0)
    while True:
        short_names = labels.shortened(names, length)
        wrapped_names = [_wrap(name, inches, size) for name in short_names]
        if length <= 8 or all(len(name) <= lines for name in wrapped_names):
            return ["\n".join(name) for name in wrapped_names]
        too_many = max(map(len, wrapped_names))
        length = max(8, min(length - 1, int(length * (lines + 0.5) / too_many)))


def wrap(text: str, inches: float, lines: int = LINES, size: float = 7.0) -> str:
    """Wrap one text as :func:`wrapped` does."""
    return wrapped([text], inches, lines, size)[0]


def more_lines(texts: Iterable[str]) -> float:
    """Return the height in inches that the tallest wrapped text needs beyond one line."""
    return LINE * max((text.count("\n") for text in texts), default=0)


def _wrap(text: str, inches: float, size: float) -> list[str]:
    """Break a text after spaces and separators, and within words if necessary."""
    if text_width(text, size) <= inches:
        return [text]
    lines = [""]
    for word in re.findall(r"[^-_/=,;+\s]*[-_/=,;+\s]*", text):
        if text_width(f"{lines[-1]}{word}".rstrip(), size) <= inches:
            lines[-1] += word
            continue
        if lines[-1] and text_width(word.rstrip(), size) <= inches:
            lines.append(word)
            continue
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size) > inches:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()]


class NameTicks(NamedTuple):
    """Wrapped names below an x axis, their rotation, and the height that they need."""

    names: list[str]
    rotation: float
    height: float


def name_ticks(names: Sequence[str], inches: float) -> NameTicks:
    """Fit names below an axis with ``inches`` for each; ``height`` excludes the first line."""
    short_names = [name for name in names if text_width(name) <= inches]
    if len(short_names) == len(names):
        return NameTicks(list(names), 0.0, 0.0)
    words = [word for name in names for word in re.split(r"\s+", name)]
    level = wrapped(names, inches)
    if max(map(text_width, words)) <= inches and "…" not in "".join(level):
        return NameTicks(level, 0.0, more_lines(level))
    turned_names = wrapped(names, 1.2, max(1, min(LINES, int(inches / LINE))))
    height = max(text_width(line) for name in turned_names for line in name.split("\n"))
    return NameTicks(turned_names, 90.0, height)


def legend(figure: Figure, handles: Sequence[Any], width: int = 4, title: str = "") -> None:
    """Put a legend below the figure, with entries ordered row by row."""
    if not handles:
        return
    inches = figure.get_size_inches()[0] / _scale()
    columns, names = _legend_layout([str(handle.get_label()) for handle in handles], inches, width)
    for handle, name in zip(handles, names, strict=True):
        handle.set_label(name)
    # Matplotlib fills a legend column by column.
    order = [handles[i] for start in range(columns) for i in range(start, len(handles), columns)]
    head = wrap(title, inches - _SPACE) if title else None
    figure.legend(handles=order, loc="outside lower center", ncols=columns, title=head)


def handle(look: Look, label: str, *, line: bool = True, marker: bool = True) -> Line2D:
    """Return a legend entry."""
    options = mark(look) if marker else {}
    return Line2D(
        [], [], color=look.color, linestyle=look.dashes if line else "none", label=label, **options
    )


def row_handles(study: Study, rows: Sequence[Any]) -> list[Line2D]:
    """Return legend entries for rows of a study, each a line with a marker."""
    return [handle(look(study.row_factor, row, study.rows), study.row(row)) for row in rows]


def plain_log(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers: decades, plus 2 and 5 in a short range."""
    is_short = high < 50 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_height(names: Sequence[str], inches: float = 0.0, width: int = 4) -> float:
    """Return the height in inches of a legend of these names.

    Args:
        names: The names.
        inches: Width of the figure; 0 for a narrow one.
        width: Maximum number of columns of the legend.
    """
    inches = inches or column()
    columns, legend_names = _legend_layout(names, inches, width)
    rows = [legend_names[first : first + columns] for first in range(0, len(legend_names), columns)]
    return 0.08 + sum(0.16 + more_lines(row) for row in rows)


def _legend_layout(names: Sequence[str], inches: float, width: int) -> tuple[int, list[str]]:
    """Return the number of columns (at most ``width``) of a legend that fits, and its names."""
    widths = [text_width(name) + _HANDLE for name in names]
    for lines in range(1, len(names) + 1):
        columns = -(-len(names) // lines)
        total = sum(max(widths[first::columns]) + _SPACE for first in range(columns)) - _SPACE
        if columns <= width and total <= inches:
            return columns, list(names)
    return 1, wrapped(names, inches - _HANDLE - _SPACE)


def minus(text: str) -> str:
    """Replace hyphens by true minus signs."""
    return text.replace("-", "−")


def save(drawing: Drawing, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write a drawing in each format, PNG at 300 dpi; the same input gives the same bytes.

    The figure is laid out once and rendered separately for each format. An SVG has the outlines of
    letters, so that it looks the same everywhere; a PDF has searchable text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{drawing.slug}.{kind}" for kind in kinds]
    for path in files:
        drawing.write(path)
    return files
