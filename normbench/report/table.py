"""A table, and its rendering for a terminal and as Markdown and CSV.

:class:`Table` holds entries with a text, a value to sort by, marks and runs; :func:`terminal`,
:func:`markdown` and :func:`csv` render it, and :func:`normbench.report.latex.latex`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.cells import cell_len

from normbench.report.grid import Grid, GridCell
from normbench.report.metrics import Metric
from normbench.report.names import shortened

if TYPE_CHECKING:
    import rich.console


@dataclass(frozen=True)
class TableEntry:
    """One entry of a table.

    Attributes:
        text: The entry as plain text.
        value: The number to sort by; None sorts by text.
        best, tied: The marks: best of its column; not significantly worse than the best.
        remark: A short note in brackets after the text, such as ``1 of 3 diverged``.
        runs: Names of the runs that it was computed from.
    """

    text: str
    value: float | None = None
    best: bool = False
    tied: bool = False
    remark: str = ""
    runs: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The text with its remark."""
        return f"{self.text} ({self.remark})" if self.remark else self.text


EMPTY = TableEntry("–")


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        slug: File name without suffix.
        title: Caption, a sentence without the period.
        headers: The heading of each column.
        rows: The entries of each row, one for each header.
        notes: Sentences below the table.
        data: The same numbers unrounded, in long form, for CSV.
        span: A heading over all columns except the first, such as ``Batch size``.
        keys: Number of columns that identify a row, which each part of a split table repeats.
    """

    slug: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[TableEntry]]
    notes: Sequence[str] = ()
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    span: str = ""
    keys: int = 1


def entry(cell: GridCell | None, metric: Metric, usual: int) -> TableEntry:
    """Return the entry of a cell, ``96.20 ± 0.41``; a remark names anything unusual about it.

    Args:
        cell: The cell; None if there are no runs.
        metric: The metric of the cell.
        usual: The most common number of seeds, which needs no remark.
    """
    if cell is None:
        return EMPTY
    total = cell.sample.n + cell.unvalued
    if cell.all_diverged:
        return TableEntry("diverged", remark=_all_of(total), runs=cell.runs)
    n = cell.sample.n
    if n == 0:
        if cell.unvalued and metric.name.endswith("_to_target"):
            return TableEntry("not reached", remark=f"by {_all_of(total)}", runs=cell.runs)
        reason = f"{cell.pending} not ended" if cell.pending else "no value"
        return TableEntry("–", remark=reason, runs=cell.runs)
    text = metric.estimate(cell.sample)
    remarks = []
    if cell.diverged:
        remarks.append(f"{cell.diverged} of {total} diverged")
    if cell.unvalued > cell.diverged:
        remarks.append(f"{n} of {total} runs")
    elif n == 1:
        remarks.append("1 seed")
    elif n != usual and not cell.diverged:
        remarks.append(f"n = {n}")
    if cell.mixed:
        remarks.append("mixed versions")
    return TableEntry(
        text, cell.sample.mean, cell.best, cell.tied, ", ".join(remarks), runs=cell.runs
    )


def ends_note(rows: Sequence[Sequence[TableEntry]]) -> list[str]:
    """Return the note on intervals that are written by their ends, if a table has any."""
    if any("[" in entry.text for row in rows for entry in row[1:]):
        return ["[low, high]: an interval, cut at the limits of the metric."]
    return []


def _all_of(total: int) -> str:
    return f"all {total} runs" if total > 1 else "1 run"


def usual_count(grid: Grid) -> int:
    """Return the most common number of seeds of a cell."""
    counts = [cell.sample.n for cell in grid.cells.values() if cell.sample.n]
    return max(set(counts), key=counts.count) if counts else 0


def number(value: Any) -> float | None:
    """Return a value as a float to sort by; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


# --- rendering ------------------------------------------------------------------------------------


def terminal(table: Table) -> rich.console.RenderableType:
    """Return the table for a rich console: title, rows, notes.

    Six columns of values fit in 80 characters. The best of a column is bold, ties have a dagger,
    and remarks are on a separate line. Numbers are never truncated: long names are wrapped, and
    columns that do not fit are printed in blocks below each other.
    """
    return _Terminal(table)


_GAP = 1  # between columns
_NAME = 14  # width of names in a narrow terminal; longer names are wrapped
_TEXT = 20  # the same for texts in columns other than the first
_WORD = 12  # width of a word in a remark
_LONGEST = 120  # maximum length of a name


class _Terminal:
    """A renderable table, laid out when rich knows the width of the terminal."""

    def __init__(self, table: Table) -> None:
        self.table = table
        names = [row[0].text for row in table.rows]
        headers = shortened(list(table.headers), _LONGEST)
        columns = [shortened(names, _LONGEST), *([] for _ in headers[1:])]
        for place in range(1, len(headers)):
            columns[place] = [
                row[place].text.replace(" ± ", "±") + "†" * row[place].tied for row in table.rows
            ]
        self.headers, self.columns = headers, columns
        self.numeric = [is_numeric(table, place) for place in range(len(headers))]

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        from rich.text import Text

        yield Text(_titled(self.table), "bold")
        if self.table.rows:
            for places in self._blocks(options.max_width):
                yield self._block(places, options.max_width)
        for note in self.table.notes:
            yield Text(note, "dim")

    def _least(self, place: int) -> int:
        """Return the minimum width of a column."""
        widest = max(map(cell_len, self.columns[place]))
        if place == 0:
            return min(widest, _NAME)
        words = [word for row in self.table.rows for word in row[place].remark.split()]
        widest = max(widest, *(min(cell_len(word), _WORD) for word in words), 0)
        return widest if self.numeric[place] else min(widest, _TEXT)

    def _wanted(self, place: int) -> int:
        remarks = [row[place].remark for row in self.table.rows]
        return max(map(cell_len, [self.headers[place], *self.columns[place], *remarks]))

    def _blocks(self, width: int) -> list[list[int]]:
        """Split the columns into blocks that fit; each starts with the column of names."""
        blocks: list[list[int]] = [[0]]
        for place in range(1, len(self.headers)):
            if not self._fits([*blocks[-1], place], width) and len(blocks[-1]) > 1:
                blocks.append([0])
            blocks[-1].append(place)
        # Blocks with equal numbers of columns are easier to read, if they fit as well.
        size = -(-(len(self.headers) - 1) // len(blocks))
        places = range(1, len(self.headers))
        layout = [[0, *places[start : start + size]] for start in range(0, len(places), size or 1)]
        is_fitting = all(self._fits(block, width) for block in layout)
        return layout if layout and len(layout) == len(blocks) and is_fitting else blocks

    def _fits(self, places: list[int], width: int) -> bool:
        return sum(self._least(place) + _GAP for place in places) - _GAP <= width

    def _block(self, places: list[int], width: int) -> rich.console.RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        widths = {place: self._least(place) for place in places}
        widths[0] = max(4, min(widths[0], width - sum(widths[p] + _GAP for p in places[1:])))
        # Of the remaining width, names are served first; the other headers share the rest.
        room = width - sum(column + _GAP for column in widths.values()) + _GAP
        extra = max(0, min(room, self._wanted(0) - widths[0]))
        widths[0] += extra
        room -= extra
        while room > 0 and (narrow_places := [p for p in places if widths[p] < self._wanted(p)]):
            widths[min(narrow_places, key=lambda place: widths[place])] += 1
            room -= 1
        rich_table = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=0)
        for place in places:
            rich_table.add_column(
                Text(self.headers[place]),
                justify="right" if place and self.numeric[place] else "left",
                width=widths[place],
                overflow="fold",
            )
        for index, row in enumerate(self.table.rows):
            rich_table.add_row(
                *(
                    Text.assemble(
                        (self.columns[place][index], "bold green" if row[place].best else ""),
                        f"\n{row[place].remark}" if row[place].remark else "",
                        overflow="fold",
                    )
                    for place in places
                )
            )
        return rich_table


def _titled(table: Table) -> str:
    return f"{table.title} (columns: {table.span.lower()})" if table.span else table.title


def markdown(table: Table, heading: str = "##") -> str:
    """Return the table as GitHub-flavored Markdown under a heading, with the notes below."""
    lines = [f"{heading} {markdown_text(table.title)}", ""] if heading else []
    if not table.rows:
        return "\n".join([*lines, *map(markdown_text, table.notes), ""])
    if table.span:
        lines += [f"Columns: {markdown_text(table.span.lower())}.", ""]
    body = [[_markdown_entry(entry) for entry in row] for row in table.rows]
    headers = [markdown_text(header) for header in table.headers]
    widths = [max(map(len, column), default=3) for column in zip(headers, *body, strict=True)]
    widths = [max(width, 3) for width in widths]
    rule = [
        "-" * (width - 1) + ":" if place and is_numeric(table, place) else "-" * width
        for place, width in enumerate(widths)
    ]
    for cells in (headers, rule, *body):
        padded_cells = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"| {' | '.join(padded_cells)} |")
    if table.notes:
        lines += ["", *(f"{markdown_text(note)}  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_entry(entry: TableEntry) -> str:
    text = markdown_text(entry.plain)
    if entry.best:
        return f"**{text}**"
    return f"{text} †" if entry.tied else text


def markdown_text(text: str) -> str:
    """Escape text for Markdown: no emphasis, links, HTML, entities, math or emoji codes."""
    escaped_text = re.sub(r"([\\|_*`<>\[\]$~&])", r"\\\1", text)
    escaped_text = re.sub(r":(?=[\w+-]+:)", r"\:", escaped_text)
    # At the start of a line these would begin a list, a heading or a rule.
    escaped_text = re.sub(r"^([#+-]+)(?=\s|$)", r"\\\1", escaped_text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped_text)


def markdown_code(text: str) -> str:
    """Return text as a code span, delimited by more backticks than any run within it."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def is_numeric(table: Table, place: int) -> bool:
    """Return whether a column contains any numbers."""
    return any(row[place].value is not None for row in table.rows)


def csv(table: Table) -> str:
    """Return the table's numbers as CSV, in long form, unrounded, in stored units."""
    return table.data.to_csv(index=False)
