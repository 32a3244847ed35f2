"""A table before it is rendered: entries with a text, a value to sort by, marks, and their runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from normbench.report.grid import Cell, Grid
from normbench.report.metrics import Metric


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: What stands there, as plain text.
        value: What it sorts by; None sorts as text.
        best, tied: The marks: best of its column; not significantly worse than the best.
        remark: A short note in brackets behind the text, as ``1 of 3 diverged``.
        runs: Names of the runs it was made from.
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


EMPTY = Entry("–")


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        slug: Its file name without suffix.
        title: Its caption, a sentence without the full stop.
        headers: The heading of each column.
        rows: As many entries a row as there are headers.
        notes: What a reader must know to read it, sentences.
        data: The same numbers unrounded, in long form, for CSV.
        span: A heading over all columns but the first, as ``Batch size``.
    """

    slug: str
    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    notes: Sequence[str] = ()
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    span: str = ""


def entry(cell: Cell | None, metric: Metric, usual: int) -> Entry:
    """Return the entry of a cell, ``96.20 ± 0.41``, with what is unusual about it as a remark.

    Args:
        cell: The cell; None where there are no runs.
        metric: Gives unit and digits.
        usual: The number of seeds that needs no remark.
    """
    if cell is None:
        return EMPTY
    total = cell.sample.n + cell.unvalued
    if cell.all_diverged:
        return Entry("diverged", remark=_all_of(total), runs=cell.runs)
    n = cell.sample.n
    if n == 0:
        if cell.unvalued and metric.name.endswith("_to_target"):
            return Entry("not reached", remark=f"by {_all_of(total)}", runs=cell.runs)
        waiting = f"{cell.pending} not ended" if cell.pending else "no value"
        return Entry("–", remark=waiting, runs=cell.runs)
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
    return Entry(text, cell.sample.mean, cell.best, cell.tied, ", ".join(remarks), runs=cell.runs)


def _all_of(total: int) -> str:
    return f"all {total} runs" if total > 1 else "1 run"


def usual_count(grid: Grid) -> int:
    """Return the number of seeds that most cells have."""
    counts = [cell.sample.n for cell in grid.cells.values() if cell.sample.n]
    return max(set(counts), key=counts.count) if counts else 0


def number(value: Any) -> float | None:
    """Return a value to sort by, None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)
