"""Terminal output: tables that fit the width, and lines that are redrawn.

A listing is a list of rows. :func:`print_rows` shows it as a table on a terminal and as
tab-separated text in a pipe. :func:`fitted_table` leaves out columns that do not fit.
:class:`LiveRegion` keeps the last few lines of a terminal up to date.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from normbench.cli.notebook import NotebookConsole, NotebookLive
from normbench.formats import printable

STATUS_STYLE = {
    "finished": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "unreadable": "red",
    "missing": "dim",
}
"""Style of each status of a run."""

FRAME = 0.25
"""Seconds between two frames of a live region."""

_WRAP_WIDTH = 28


def as_text(value: Any, style: str = "") -> Text:
    """Return a value as rich text that is shown literally: no markup, no terminal escapes."""
    return Text(printable(str(value)), style)


def print_rows(
    rows: Callable[[], Sequence[Mapping[str, Any]]], page: Callable[[], RenderableType]
) -> None:
    """Print a page on a terminal, or the rows behind it as tab-separated text in a pipe."""
    if sys.stdout.isatty():
        Console().print(page())
    else:  # a pipe has no width
        print(tsv(rows()), end="")


def tsv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as tab-separated text with a header line; None is empty."""

    def cell(value: Any) -> str:
        return "" if value is None else printable(" ".join(str(value).split()))

    names = list(rows[0]) if rows else []
    lines = [names, *([cell(row[name]) for name in names] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines if names)


# --- tables ---------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of a table that fits the terminal.

    Attributes:
        heading: Text at the top; line breaks split it.
        write: Returns the text for a row.
        right: Whether the text is right-aligned.
        spare: If the table is too wide, the column with the highest number is dropped first; one
            with 0 is never dropped.
        gives_way: Whether the column may be narrowed further, with its text truncated.
        wraps: Minimum width to which the column shrinks by wrapping its text over several lines;
            0 never wraps. An empty column that wraps is left out.
    """

    heading: str
    write: Callable[[Any], str]
    right: bool = True
    spare: int = 0
    gives_way: bool = False
    wraps: int = 0


def wrapping(heading: str, write: Callable[[Any], str]) -> Column:
    """Return a left-aligned column whose long texts are wrapped."""
    return Column(heading, write, right=False, wraps=_WRAP_WIDTH)


def fitted_table(
    columns: Sequence[Column],
    rows: Sequence[Any],
    width: int | None = None,
    style: Callable[[Any, str], str] = lambda row, heading: "",
) -> Table:
    """Return a table that fits the terminal.

    Args:
        columns: All columns, from left to right.
        rows: The rows, as accepted by the columns' ``write``.
        width: Width in characters; that of the terminal by default.
        style: Returns the style of a cell from its row and heading.
    """
    width = Console().width if width is None else width
    texts = {
        column.heading: [column.heading, *(printable(column.write(row)) for row in rows)]
        for column in columns
    }
    visible = [column for column in columns if not column.wraps or any(texts[column.heading][1:])]
    # The minimum width of each column; a wrapping column leaves its extra width to the others.
    widths = {
        column.heading: max(cell_len(line) for text in texts[column.heading]
                            for line in text.split("\n"))
        for column in visible
    }  # fmt: skip
    for column in visible:
        if column.wraps:
            widths[column.heading] = min(widths[column.heading], column.wraps)
    gap = 2 if sum(widths.values()) + 2 * (len(visible) - 1) <= width else 1
    while sum(widths[column.heading] + gap for column in visible) - gap > width:
        spare_column = max(visible, key=lambda column: column.spare)
        if not spare_column.spare:
            break
        visible.remove(spare_column)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for column in visible:
        table.add_column(
            Text(column.heading),
            justify="right" if column.right else "left",
            # If the table is still too wide, rich narrows the columns that may wrap.
            no_wrap=not (column.gives_way or column.wraps),
        )
    for index, row in enumerate(rows, start=1):
        table.add_row(
            *(
                Text(
                    texts[column.heading][index],
                    style(row, column.heading),
                    no_wrap=not column.wraps,
                    overflow="fold" if column.wraps else "ellipsis",
                )
                for column in visible
            )
        )
    return table


def facts_table(facts: Sequence[tuple[str, Any]]) -> Table:
    """Return names and values as two columns without a heading; long values are wrapped."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(as_text(name), value if isinstance(value, Text) else as_text(value))
    return table


# --- lines that are redrawn -----------------------------------------------------------------------


def can_redraw(console: Console) -> bool:
    """Return whether a console can overwrite its output.

    A notebook's ``!command`` runs on a pseudo-terminal but shows everything ever written to it,
    each frame below the previous one. ``FORCE_COLOR``, which notebooks and CI services set, only
    asks for colors and does not mean that the output can be redrawn.
    """
    if isinstance(console, NotebookConsole):  # the kernel itself, which can
        return True
    if "JPY_PARENT_PID" in os.environ:  # set by Jupyter for a kernel and all its children
        return False
    if os.environ.get("FORCE_COLOR") and not console.file.isatty():
        return False
    return console.is_interactive and console.is_terminal and not console.is_dumb_terminal


class LiveRegion:
    """A region at the end of a terminal that is redrawn a few times a second, and lines above it.

    rich prints lines and refreshes frames from two threads. Each decides how far to move the cursor
    back before the other has written, which leaves remnants of frames behind. Here a lock
    serializes the two.

    Args:
        content: The renderable to draw.
        console: The console to draw on.
        transient: Whether the region is erased at the end.
    """

    def __init__(self, content: RenderableType, console: Console, transient: bool = False) -> None:
        self._live = (
            NotebookLive(content, console, transient)
            if isinstance(console, NotebookConsole)
            else Live(content, console=console, auto_refresh=False, transient=transient)
        )
        self._turn = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)

    def start(self) -> None:
        """Draw the first frame and start redrawing."""
        self._live.start(refresh=True)
        self._thread.start()

    def stop(self) -> None:
        """Draw the last frame and restore the terminal."""
        self._over.set()
        try:
            if self._thread.is_alive():
                self._thread.join()
        finally:  # also if another Ctrl-C interrupts the join
            self._live.stop()

    def print(self, text: Text) -> None:
        """Write a line above the region, unwrapped: the terminal wraps it."""
        with self._turn:
            self._live.console.print(text, soft_wrap=True, highlight=False)

    def _redraw(self) -> None:
        while not self._over.wait(FRAME):
            with self._turn:
                self._live.refresh()
