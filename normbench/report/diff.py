"""Two runs side by side: :func:`pair` reads them, :func:`tables` lists how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from normbench.errors import NormbenchError
from normbench.report import names as labels
from normbench.report.frames import columns, is_config, is_provenance, read
from normbench.report.metrics import listed
from normbench.report.table import EMPTY, Table, TableEntry, markdown, markdown_text, number
from normbench.report.venues import FORMATS

if TYPE_CHECKING:
    from normbench.report.figures.style import Drawing
    from normbench.store.store import Run

_ALSO = ("status", "epochs_done", "weights_sha256")


@dataclass(frozen=True)
class Pair:
    """Two runs: their rows of the runs frame, and their epochs as columns."""

    first: dict[str, Any]
    second: dict[str, Any]
    first_curve: dict[str, np.ndarray]
    second_curve: dict[str, np.ndarray]

    @property
    def names(self) -> tuple[str, str]:
        """The names of the runs."""
        return self.first["name"], self.second["name"]

    @property
    def verdict(self) -> str:
        """A sentence on whether the final weights are equal."""
        sums = [row.get("weights_sha256") for row in (self.first, self.second)]
        if sums[0] and sums[0] == sums[1]:
            return "The final weights are equal to the last bit."
        if sums[0] and sums[1]:
            return "The final weights differ. Two single runs cannot rule out chance."
        return "At least one of the runs has no final weights."


def pair(first: Run, second: Run) -> Pair:
    """Read two runs.

    Raises:
        NormbenchError: One of them cannot be read.
    """
    rows, curves = [], []
    for run in (first, second):
        row, epochs, problem = read(run)
        if row is None:
            raise NormbenchError(f"cannot read the run {run.name}: {problem}")
        rows.append(row)
        curves.append(columns(run.name, epochs))
    return Pair(rows[0], rows[1], curves[0], curves[1])


def tables(pair: Pair) -> list[Table]:
    """Return tables of the differences in config and origin, and of the results."""
    keys = [*dict.fromkeys((*pair.first, *pair.second))]
    config = [key for key in keys if is_config(key)]
    origin = [key for key in keys if is_provenance(key)]
    return [
        _texts(pair, "config", "What differs in the config", config),
        _texts(pair, "origin", "What differs in the origin", origin),
        _results(pair),
    ]


def _texts(pair: Pair, slug: str, title: str, keys: list[str]) -> Table:
    rows, data = [], []
    for key in keys:
        first, second = (_shown(row, key) for row in (pair.first, pair.second))
        if first != second:
            rows.append([TableEntry(labels.plain(key)), TableEntry(first), TableEntry(second)])
            data.append({"key": key, "first": first, "second": second})
    title = title if rows else title.replace("What", "Nothing")
    return Table(slug, title, ["Key", "First", "Second"], rows, [], pd.DataFrame(data))


def _results(pair: Pair) -> Table:
    rows, data = [], []
    for key in _ALSO:
        first, second = (_shown(row, key) for row in (pair.first, pair.second))
        rows.append([TableEntry(key), TableEntry(_cut(first)), TableEntry(_cut(second)), EMPTY])
        data.append({"key": key, "first": first, "second": second})
    for metric in listed("diff"):
        name = metric.name
        first, second = (number(row.get(name)) for row in (pair.first, pair.second))
        if first is None and second is None:
            continue
        entries = [EMPTY if v is None else TableEntry(metric.show(v), v) for v in (first, second)]
        change = EMPTY
        if first is not None and second is not None:
            text = f"{(second - first) * metric.scale:+.{metric.digits}f}"
            change = TableEntry(text, second - first)
        rows.append([TableEntry(metric.axis), *entries, change])
        data.append({"key": name, "first": first, "second": second})
    headers = ["Result", "First", "Second", "Second − first"]
    return Table("results", "Results", headers, rows, [pair.verdict], pd.DataFrame(data))


def write(pair: Pair, drawing: Drawing, out: Path) -> list[Path]:
    """Write the tables of a pair and the drawing of its curves to a folder; return the files."""
    from normbench.report.figures import style

    out.mkdir(parents=True, exist_ok=True)
    files = style.save(drawing, out, FORMATS)
    escape = markdown_text
    lines = ["# Two runs", "", *(f"- {escape(name)}" for name in named(pair)), ""]
    lines += [markdown(table) for table in tables(pair)]
    lines += [f"![{escape(drawing.caption)}]({drawing.slug}.png)", ""]
    page = out / "diff.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return [page, *files]


def named(pair: Pair) -> list[str]:
    """Return a line with the name of each run, with its path if both have the same name."""
    names = pair.names
    if names[0] == names[1]:
        names = str(pair.first["path"]), str(pair.second["path"])
    return [f"first: {names[0]}", f"second: {names[1]}"]


def _shown(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "–" if value is None or value == "" else labels.plain(value)


def _cut(text: str) -> str:
    """Shorten a checksum to its first characters."""
    return f"{text[:12]}…" if len(text) == 64 else text
