"""Which runs belong together: a study is what differs in its rows, its columns and its seeds only.

A store may hold several networks, data sets or learning rates. Averaging over them would compare
what is not comparable, so runs are parted into studies by every config key that varies and that
neither the rows nor the columns decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normbench.errors import UserError, unknown
from normbench.report import labels
from normbench.report.frame import Frames
from normbench.report.rows import GROUPS, is_config

_FREE = ("seed", "store", "label", "eval_batch")  # may differ in a cell: none is what is compared
_FIRST = ("dataset", "arch", "epochs", "optimizer", "schedule")


class Group(NamedTuple):
    """The runs of one row and column, ordered by seed.

    Attributes:
        places: Their places in ``Study.runs``.
        mixed: Whether those that ended come from more than one commit or set of versions.
    """

    places: np.ndarray
    mixed: bool


@dataclass(frozen=True)
class Study:
    """Runs that differ in ``by`` and their seeds only.

    Attributes:
        by: The factors, one or two: rows, then columns.
        context: What parts this study from the others of the store, by config key; the data set
            and the architecture always, unless they are factors.
        rows, columns: Values of the factors, in the order of tables. With one factor
            ``columns`` is ``[""]``.
        runs: Their rows of the runs frame, in every state, with ``row`` and ``column`` added.
        curves: Their rows of the curves frame.
        title: What the study is about, as ``resnet8 on Digits, optimizer.lr 0.1``; different for
            every study of a store, as is the slug.
        slug: The name of the study's folders in a report.
    """

    by: tuple[str, ...]
    context: dict[str, Any]
    rows: list[Any]
    columns: list[Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    title: str
    slug: str

    @cached_property
    def groups(self) -> dict[tuple[Any, Any], Group]:
        """The runs of each row and column that has any."""
        ended = self.runs["status"].isin(["finished", "diverged"]).to_numpy()
        origin = self.runs.groupby(_origin(self.runs), dropna=False).ngroup().to_numpy()
        order = self.runs.sort_values(["seed", "name"], kind="stable")
        found = {}
        for key, part in order.groupby(["row", "column"], sort=False):
            places = part.index.to_numpy()
            mixed = len(set(origin[places[ended[places]]])) > 1
            found[_value(key[0]), _value(key[1])] = Group(places, mixed)
        return found

    @cached_property
    def columns_of_runs(self) -> dict[str, np.ndarray]:
        """The columns of ``runs`` that each cell asks for, as arrays."""
        names = ("name", "status", "seed", "dataset", "classes")
        return {name: self.runs[name].to_numpy() for name in names}

    @property
    def row_factor(self) -> str:
        """The factor that tells rows apart."""
        return self.by[0]

    @property
    def column_factor(self) -> str:
        """The factor that tells columns apart; empty with one factor."""
        return self.by[1] if len(self.by) > 1 else ""

    @cached_property
    def _names(self) -> tuple[dict[Any, str], dict[Any, str]]:
        """The printed names of the rows and of the columns, different for different values."""
        return (
            labels.distinct(self.row_factor, self.rows),
            labels.distinct(self.column_factor, self.columns),
        )

    def row(self, value: Any) -> str:
        """Return a row's printed name."""
        return self._names[0].get(value) or labels.value(self.row_factor, value)

    def in_words(self, value: Any) -> str:
        """Return a row's name as it stands in a sentence: a number with its factor."""
        if isinstance(value, int | float):
            return f"{labels.factor(self.row_factor).lower()} {self.row(value)}"
        return self.row(value)

    @property
    def legend_title(self) -> str:
        """What a legend of the rows needs above it: the factor, where the rows are numbers."""
        numbers = any(isinstance(row, int | float) for row in self.rows)
        return labels.factor(self.row_factor) if numbers else ""

    def column(self, value: Any) -> str:
        """Return a column's printed name."""
        if not self.column_factor:
            return "all"
        return self._names[1].get(value) or labels.value(self.column_factor, value)

    @property
    def numeric_columns(self) -> bool:
        """Whether the columns lie on an axis of numbers."""
        return all(isinstance(column, int | float) for column in self.columns)


def studies(frames: Frames, by: Sequence[str] = ("norm", "batch")) -> list[Study]:
    """Part the runs into studies, the largest first.

    Raises:
        UserError: ``by`` names no column of the config, or one twice.
    """
    factors = list(parse_by(by))
    offered = [column for column in frames.runs.columns if is_config(column) and column != "seed"]
    if not factors:
        raise UserError("--by needs at least one column, as --by norm,batch")
    for place, name in enumerate(factors):
        if name not in offered:
            raise unknown("column in --by", name, offered)
        if name in factors[:place]:
            raise UserError(f"--by names {name!r} twice")
    if frames.runs.empty:
        return []
    first, second = factors[0], factors[1] if len(factors) > 1 else ""
    runs = frames.runs.copy()
    runs["row"] = _variants(runs, first)
    runs["column"] = _variants(runs, second) if second else ""
    keys = _context(runs, factors)
    found = []
    parts = runs.groupby(keys, dropna=False, sort=True) if keys else [((), runs)]
    for values, part in parts:
        curves = frames.curves[frames.curves["run"].isin(part["name"])]
        found.append(
            Study(
                tuple(factors[:2]),
                dict(zip(keys, map(_value, values), strict=True)),
                labels.ordered(first, map(_value, part["row"].unique())),
                labels.ordered(second, map(_value, part["column"].unique())),
                part.reset_index(drop=True),
                curves.reset_index(drop=True),
                title="",
                slug="",
            )
        )
    found.sort(key=lambda study: -len(study.runs))
    return _named(found)


def _named(found: Sequence[Study]) -> list[Study]:
    """Give each study its title and its slug; no two share either."""
    texts = ["-".join(map(labels.plain, study.context.values())) for study in found]
    slugs = labels.slugs(texts, [repr(study.context) for study in found])
    titles = [_title(study.context) for study in found]
    counts = Counter(titles)
    return [
        replace(study, title=title if counts[title] == 1 else f"{title} ({slug})", slug=slug)
        for study, title, slug in zip(found, titles, slugs, strict=True)
    ]


def _title(context: Mapping[str, Any]) -> str:
    arch, dataset = context.get("arch"), context.get("dataset")
    parts = [labels.plain(arch)] if arch else []
    if dataset:
        name = labels.value("dataset", dataset)
        parts = [f"{labels.plain(arch)} on {name}" if arch else name]
    parts += [
        f"{labels.plain(key)} {labels.plain(value)}"
        for key, value in context.items()
        if key not in ("dataset", "arch")
    ]
    return ", ".join(parts) or "all runs"


def parse_by(text: str | Sequence[str]) -> tuple[str, ...]:
    """Read ``norm,batch``."""
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(part.strip() for part in parts if part.strip())


def _variants(runs: pd.DataFrame, factor: str) -> pd.Series:
    """Return the values of a factor; a group's options are added where one name has several."""
    values = runs[factor]
    if factor not in GROUPS:
        missing = values.isna()
        return values.astype(object).where(~missing, "–") if missing.any() else values
    result = values.astype(object)
    options = [column for column in runs.columns if column.startswith(f"{factor}.")]
    for name, part in runs.groupby(factor):
        varying = [column for column in options if part[column].nunique(dropna=False) > 1]
        if factor == "norm" and "norm.weight.name" in varying:
            varying.remove("norm.weight.name")
        if varying:
            result.loc[part.index] = [
                f"{name} ({', '.join(_option(factor, row, c) for c in varying)})"
                for _, row in part[varying].iterrows()
            ]
    return result


def _option(factor: str, row: pd.Series, column: str) -> str:
    return f"{column.removeprefix(factor + '.')}={labels.plain(row[column])}"


def _context(runs: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """Return the keys that part the runs: those that vary while rows and columns stay the same."""
    inside = tuple(f"{name}." for name in by[:2] if name in GROUPS)
    config = [
        column
        for column in runs.columns
        if is_config(column)
        and column not in (*by[:2], *_FREE, "row", "column")
        and not column.startswith(inside or ("\0",))
    ]
    keys = [key for key in ("dataset", "arch") if key in config]
    keys += [name for name in by[2:] if name not in keys]
    rest = sorted(config, key=lambda c: (_FIRST.index(c) if c in _FIRST else len(_FIRST), "." in c))
    for column in rest:
        if column in keys or runs[column].nunique(dropna=False) < 2:
            continue
        if column.endswith("seed") and not _varies(runs, ["seed"], column):
            continue
        if _varies(runs, ["row", "column", *keys], column):
            keys.append(column)
    return keys


def _origin(runs: pd.DataFrame) -> list[str]:
    """Return the columns that say which code made a run."""
    return [c for c in runs.columns if c in ("commit", "dirty") or c.startswith("version.")]


def _varies(runs: pd.DataFrame, given: list[str], column: str) -> bool:
    """Whether a column takes several values where all of ``given`` are the same."""
    pairs = runs[[*given, column]].drop_duplicates()
    return bool(pairs.duplicated(given).any())


def _value(raw: Any) -> Any:
    """Return a plain Python value of a NumPy one; whole floats become integers."""
    raw = raw.item() if hasattr(raw, "item") else raw
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw
