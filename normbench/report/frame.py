"""A store as data frames: one row a run, and one row an epoch of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from normbench.errors import UserError
from normbench.report.rows import (
    CURVE_NUMBERS,
    FINAL,
    GROUPS,
    LEADING,
    RESULTS,
    columns,
    is_config,
    is_provenance,
    read,
)
from normbench.store import Store


@dataclass(frozen=True)
class LeftOut:
    """Something in the store that is no run, or a run with a damaged file: not reported."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclass(frozen=True)
class Frames:
    """What a store holds. Unpacks as ``runs, curves = load(store)``.

    Attributes:
        root: The store's folder.
        runs: A row a run, sorted by name: ``name``, ``status``, the config (a group's name under
            the group's, its options as ``norm.groups``), the final metrics (accuracies are
            fractions 0..1, times in seconds), the provenance. ``attrs["config"]`` and
            ``attrs["provenance"]`` list the columns of each kind.
        curves: A row an epoch: ``run`` and the keys of ``metrics.jsonl``, ordered by run, epoch.
        left_out: Foreign and unreadable folders, each with its reason.
        unfiltered: The runs frame that these runs were selected from; None where it is ``runs``.
    """

    root: Path
    runs: pd.DataFrame
    curves: pd.DataFrame
    left_out: tuple[LeftOut, ...] = field(default=())
    unfiltered: pd.DataFrame | None = None

    @property
    def whole(self) -> pd.DataFrame:
        """The runs frame of the whole store, without what :meth:`select` took away."""
        return self.runs if self.unfiltered is None else self.unfiltered

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return iter((self.runs, self.curves))

    def select(self, kept: pd.Series) -> Frames:
        """Keep the runs for which ``kept`` (a boolean per row of ``runs``) is true."""
        runs = self.runs[kept].reset_index(drop=True)
        curves = self.curves[self.curves["run"].isin(runs["name"])].reset_index(drop=True)
        return Frames(self.root, runs, curves, self.left_out, self.whole)

    def write(self, folder: Path) -> list[Path]:
        """Write both frames to ``folder`` as Parquet and as CSV; return the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, frame in (("runs", self.runs), ("curves", self.curves)):
            for suffix in ("parquet", "csv"):
                path = folder / f"{name}.{suffix}"
                if suffix == "parquet":
                    frame.to_parquet(path, index=False)
                else:
                    # Arrow's writer is ten times as fast as that of pandas.
                    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)
                written.append(path)
        return written


def load(store: Store | Path | str) -> Frames:
    """Read a store into data frames.

    Args:
        store: The store, or its folder.

    Raises:
        UserError: The folder does not exist.
    """
    store = as_store(store)
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    left_out = [LeftOut(path, reason) for path, reason in store.foreign()]
    rows: list[dict[str, Any]] = []
    pieces: list[dict[str, np.ndarray]] = []
    for run in store.runs():
        row, epochs, problem = read(run)
        if row is None:
            left_out.append(LeftOut(run.path, problem or "it cannot be read"))
            continue
        rows.append(row)
        pieces.append(columns(run.name, epochs))
    runs, curves = _typed(*_frames(rows, pieces))
    runs.attrs["config"] = [column for column in runs.columns if is_config(column)]
    runs.attrs["provenance"] = [column for column in runs.columns if is_provenance(column)]
    return Frames(store.root, runs, curves, tuple(left_out))


def as_store(store: Store | Path | str) -> Store:
    """Return the store itself, or the one in that folder."""
    return store if isinstance(store, Store) else Store(Path(store))


def _frames(
    rows: list[dict[str, Any]], pieces: list[dict[str, np.ndarray]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = pd.DataFrame(rows)
    for column in ("name", "status", "norm", "batch", "seed", "dataset", "classes", *FINAL):
        if column not in runs:
            runs[column] = None
    keys: dict[str, None] = dict.fromkeys(("run", *CURVE_NUMBERS))
    for piece in pieces:
        keys.update(dict.fromkeys(piece))
    return runs, pd.DataFrame({key: _joined(key, pieces) for key in keys})


def _joined(key: str, pieces: list[dict[str, np.ndarray]]) -> np.ndarray:
    if not pieces:
        return np.array([], object if key == "run" else float)
    return np.concatenate(
        [piece[key] if key in piece else np.full(len(piece["run"]), np.nan) for piece in pieces]
    )


def _typed(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the columns of both frames their types, and those of the runs their order."""
    runs = runs[sorted(runs.columns, key=_place)]
    for column in RESULTS:
        if column in runs:
            runs[column] = pd.to_numeric(runs[column], errors="coerce").astype(float)
    for frame in (runs, curves):
        for column in frame.columns:
            if frame[column].dtype == object:
                frame[column] = _plain(frame[column])
    return runs, curves


def _plain(column: pd.Series) -> pd.Series:
    """Give a column of mixed values the one type that Parquet can hold."""
    values = [None if _missing(value) else value for value in column]
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return pd.Series(values, index=column.index, dtype="boolean")
    if present and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present):
        return pd.Series([np.nan if v is None else v for v in values], index=column.index).astype(
            float
        )
    texts = [None if value is None else str(value) for value in values]
    return pd.Series(texts, index=column.index, dtype="str")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _place(column: str) -> tuple[int, int, str]:
    """Sort key of a column: name, status, config by group, results, the rest."""
    if column in LEADING:
        return 0, LEADING.index(column), ""
    if is_config(column):
        group = column.partition(".")[0]
        return 1, GROUPS.index(group) if group in GROUPS else len(GROUPS), column
    if column in RESULTS:
        return 2, RESULTS.index(column), ""
    return 3, is_provenance(column), column
