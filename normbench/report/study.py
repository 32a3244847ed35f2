"""Studies: :func:`studies` splits the runs of a store so that each mean is over runs of one config.

A store may contain several networks, data sets or learning rates. Runs are split into studies by
every config key that varies within a cell, that is, between runs of one row and column. A key that
is constant within each cell but differs between rows or columns does not split runs, since each row
or column would become a study; it is a condition of the study (:mod:`normbench.report.caveats`),
stated with every table, figure and finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normbench.errors import UserError, unknown
from normbench.report import names as labels
from normbench.report import tuning
from normbench.report.caveats import (
    ENDED,
    Condition,
    Training,
    check_allowed,
    conditions,
    describe_values,
    join_names,
    words,
)
from normbench.report.frames import GROUPS, Frames, is_config, is_origin
from normbench.report.metrics import METRICS, Metric
from normbench.report.tuning import CellTuning
from normbench.store.tuning import TunedCell

_FREE = ("seed", "store", "label", "eval_batch")  # may differ within a cell
_CAPTION = 200  # maximum length of the conditions in a caption
_FIRST = ("dataset", "arch", "epochs", "optimizer", "schedule")


class Group(NamedTuple):
    """The runs of one row and column, ordered by seed.

    Attributes:
        places: Row indices in ``Study.runs``.
        mixed: Whether the runs that ended come from more than one commit or set of versions.
    """

    places: np.ndarray
    mixed: bool


@dataclass(frozen=True)
class Study:
    """Runs in rows and columns; those of a cell differ only in their seeds.
    Attributes:
        by: The factors, one or two: rows, then columns.
        context: Values of the config keys that separate this study from the others; always includes
            the data set and the architecture, unless they are factors.
        rows, columns: Values of the factors, in the order of tables. With one factor
            ``columns`` is ``[""]``.
        runs: Rows of the runs frame, whatever their status, with ``row`` and ``column`` added;
            tuning trials and superseded runs are left out.
        curves: Rows of the curves frame.
        title: Such as ``resnet8 on Digits, optimizer.lr 0.1``; like the slug, it is unique among
            the studies of a store.
        slug: The name of the study's folders in a report.
        allowed: Keys, or groups of keys, in which rows may differ on purpose.
        rates: For each row, the number of learning rates with runs in the store.
        marked: ``runs`` with placeholders for the values of tuned keys
            (:func:`normbench.report.tuning.marked`); None if no key was tuned.
        tuned: The cells whose keys were tuned, including those without final runs.
        trials: The runs of the store that are trials of ``tuned``.
        metrics: All metrics by name, including those of the store's probes.
    """

    by: tuple[str, ...]
    context: dict[str, Any]
    rows: list[Any]
    columns: list[Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    title: str
    slug: str
    allowed: tuple[str, ...] = ()
    rates: Mapping[Any, int] = field(default_factory=dict)
    marked: pd.DataFrame | None = None
    tuned: tuple[CellTuning, ...] = ()
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)

    @cached_property
    def groups(self) -> dict[tuple[Any, Any], Group]:
        """The runs of each (row, column) that has any."""
        ended = self.runs["status"].isin(ENDED).to_numpy()
        origin = self.runs.groupby(_origin(self.runs), dropna=False).ngroup().to_numpy()
        order = self.runs.sort_values(["seed", "name"], kind="stable")
        found = {}
        for key, part in order.groupby(["row", "column"], sort=False):
            places = part.index.to_numpy()
            mixed = len(set(origin[places[ended[places]]])) > 1
            found[plain_value(key[0]), plain_value(key[1])] = Group(places, mixed)
        return found

    @cached_property
    def columns_of_runs(self) -> dict[str, np.ndarray]:
        """The columns of ``runs`` that cells are built from, as arrays."""
        names = ("name", "status", "seed", "dataset", "classes")
        return {name: self.runs[name].to_numpy() for name in names}

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """The longest schedule of the sweeps that added seeds (:mod:`.sequential`), if any did."""
        texts = self.runs["looks"].dropna().unique() if "looks" in self.runs else []
        return max((tuple(map(int, text.split())) for text in texts), key=len, default=())

    @cached_property
    def conditions(self) -> list[Condition]:
        """The keys other than the factors that differ between rows or columns."""
        runs = self.runs if self.marked is None else self.marked
        return conditions(runs, self.by, self.context, self.allowed)

    @property
    def confounds(self) -> list[Condition]:
        """The conditions that differ between rows and are not intended."""
        return [condition for condition in self.conditions if condition.confounds]

    @cached_property
    def training(self) -> Training:
        """How many runs had converged, and how many learning rates were tried."""
        known = self.runs[(self.runs["status"] == "finished") & self.runs["best_val_epoch"].notna()]
        last = known["best_val_epoch"] >= known["epochs_done"]
        finished = {row: int((known["row"] == row).sum()) for row in self.rows}
        best = {row: int((known.loc[last, "row"] == row).sum()) for row in self.rows}
        return Training(best, finished, self.rates)

    @cached_property
    def notes(self) -> list[str]:
        """The notes under each table: conditions in which rows or columns differ, unequal seeds."""
        found = []
        if self.confounds:
            found.append(
                f"Confounded: rows also differ in {self._with_values(self.confounds)}. Differences "
                f"between rows cannot be attributed to the {self.compared} alone."
            )
        rows = [condition for condition in self.conditions if condition.rows]
        intended = [condition for condition in rows if condition.intended]
        if intended:
            found.append(f"Rows also differ in {self._with_values(intended)}, as intended.")
        rounding = [c for c in rows if not c.intended and not c.confounds]
        if rounding:
            found.append(
                f"Rows also differ in {self._with_values(rounding)}, which only affects rounding."
            )
        columns = [c for c in self.conditions if c.columns and not c.rows]
        if columns:
            found.append(f"Columns also differ in {self._with_values(columns)}.")
        return found + self._tuning() + self._seeds()

    def _tuning(self) -> list[str]:
        """Note the keys that were tuned for each cell, and so may differ between cells."""
        keys = [words(key) for key in tuning.tuned_keys(self.tuned)]
        if not keys:
            return []
        return [
            f"Each cell has its own {join_names(keys)}, chosen in trials by validation alone. "
            "Trials are not included."
        ]

    @property
    def compared(self) -> str:
        """The factor of rows, as written in a sentence."""
        name = labels.factor(self.row_factor).lower()
        return "configuration" if self.row_factor == "label" else name

    @property
    def heading(self) -> str:
        """The title and the conditions, for the caption of a figure."""
        parts = [self.title]
        for by_row, name in ((True, "rows"), (False, "columns")):
            found = [condition for condition in self.conditions if condition.rows == by_row]
            if not found:
                continue
            text = self._with_values(found)
            if len(text) > _CAPTION:  # the notes below tables have the values
                text = join_names([condition.words for condition in found])
            parts.append(f"{name} also differ in {text}")
        if self.tuned:
            keys = join_names([words(key) for key in tuning.tuned_keys(self.tuned)])
            parts.append(f"{keys} tuned for each cell")
        return "; ".join(parts)

    def _with_values(self, found: Sequence[Condition]) -> str:
        """Return conditions with their values by row, or by column if rows do not differ."""
        return join_names(
            [f"{c.words} ({describe_values(self._values(c, c.rows))})" for c in found]
        )

    def _values(self, condition: Condition, by_row: bool) -> dict[str, list[str]]:
        keys = self.runs["row" if by_row else "column"].map(plain_value).to_numpy()
        ended = self.runs["status"].isin(ENDED).to_numpy()
        names = {
            key: self.row(key) if by_row else self.column(key)
            for key in (self.rows if by_row else self.columns)
        }
        return {
            name: _distinct(condition.values[ended & (keys == key)]) for key, name in names.items()
        }

    def differing(
        self, row: Any, other: Any, columns: Iterable[Any]
    ) -> list[tuple[Condition, str]]:
        """Return the conditions in which paired runs of two rows differ, each with its values.

        Runs are paired by column and seed, as in the comparisons. The text is as
        ``learning rate (BN 0.1, GN 0.02)``, ``other`` first.
        """
        columns = list(columns)
        found = []
        for condition in self.conditions:
            values = {name: [] for name in (other, row)}
            differs = False
            for column in columns:
                pair = [self._by_seed(condition, name, column) for name in (other, row)]
                differs |= any(pair[0][seed] != pair[1][seed] for seed in pair[0].keys() & pair[1])
                for name, known in zip((other, row), pair, strict=True):
                    values[name] += known.values()
            if differs:
                named = {self.row(name): _distinct(known) for name, known in values.items()}
                found.append((condition, f"{condition.words} ({describe_values(named)})"))
        return found

    def _by_seed(self, condition: Condition, row: Any, column: Any) -> dict[int, str]:
        if (row, column) not in self.groups:
            return {}
        places = self.groups[row, column].places
        known = self.columns_of_runs
        return {
            int(known["seed"][place]): str(condition.values[place])
            for place in places
            if known["status"][place] in ENDED and condition.values[place] is not None
        }

    def _seeds(self) -> list[str]:
        """Note that rows have runs of different seeds, if they do."""
        ended = self.runs[self.runs["status"].isin(ENDED)]
        found = {row: set(ended.loc[ended["row"] == row, "seed"]) for row in self.rows}
        found = {row: seeds for row, seeds in found.items() if seeds}
        if len({frozenset(seeds) for seeds in found.values()}) < 2:
            return []
        texts = {self.row(row): [ranges(map(int, seeds))] for row, seeds in found.items()}
        return [
            f"Rows have different seeds ({describe_values(texts)}): means are over all seeds of a "
            "cell, differences over the seeds that both cells have."
        ]

    @property
    def row_factor(self) -> str:
        """The factor of the rows."""
        return self.by[0]

    @property
    def column_factor(self) -> str:
        """The factor of the columns; empty with one factor."""
        return self.by[1] if len(self.by) > 1 else ""

    @cached_property
    def _names(self) -> tuple[dict[Any, str], dict[Any, str]]:
        """The printed names of the rows and of the columns, distinct for distinct values."""
        return (
            labels.distinct(self.row_factor, self.rows),
            labels.distinct(self.column_factor, self.columns),
        )

    def row(self, value: Any) -> str:
        """Return a row's printed name."""
        return self._names[0].get(value) or labels.value(self.row_factor, value)

    def in_words(self, value: Any) -> str:
        """Return a row's name for a sentence; a number is preceded by its factor."""
        if isinstance(value, int | float):
            return f"{labels.factor(self.row_factor).lower()} {self.row(value)}"
        return self.row(value)

    @property
    def legend_title(self) -> str:
        """The title of a legend of the rows: the factor, if the rows are numbers."""
        numbers = any(isinstance(row, int | float) for row in self.rows)
        return labels.factor(self.row_factor) if numbers else ""

    def column(self, value: Any) -> str:
        """Return a column's printed name."""
        if not self.column_factor:
            return "all"
        return self._names[1].get(value) or labels.value(self.column_factor, value)

    def cell(self, key: tuple[Any, Any]) -> str:
        """Return the printed name of a cell: its row and its column."""
        row, column = key
        return f"{self.row(row)}, {self.column(column)}" if self.column_factor else self.row(row)

    @property
    def numeric_columns(self) -> bool:
        """Whether all columns are numbers."""
        return all(isinstance(column, int | float) for column in self.columns)


def studies(
    frames: Frames, by: Sequence[str] = ("norm", "batch"), allowed: Sequence[str] = ()
) -> list[Study]:
    """Split the runs into studies, the largest first.

    Args:
        frames: The runs.
        by: Columns of the config, or ``commit``: for rows, for columns, and further ones that split
            studies.
        allowed: Keys, such as ``optimizer.lr``, or groups of keys in which rows may differ on
            purpose.

    Raises:
        UserError: ``by`` has an unknown or repeated column, or ``allowed`` an unknown key.
    """
    factors = list(parse_by(by))
    offered = [column for column in frames.runs.columns if is_config(column) and column != "seed"]
    offered += [column for column in ("commit",) if column in frames.runs.columns]
    if not factors:
        raise UserError("--by needs at least one column, as --by norm,batch")
    for place, name in enumerate(factors):
        if name not in offered:
            raise unknown("column in --by", name, offered)
        if name in factors[:place]:
            raise UserError(f"--by names {name!r} twice")
    check_allowed(allowed, frames.runs)
    if frames.runs.empty:
        return []
    first, second = factors[0], factors[1] if len(factors) > 1 else ""
    runs, aside = frames.runs.copy(), tuning.is_aside(frames.runs)
    runs.attrs = {}  # pandas copies these at every step
    order = {}
    if frames.stores:
        order["store"] = [store.name for store in frames.stores]
    if "commit" in factors:
        runs["commit"] = commits(runs)
        order["commit"] = by_age(runs)
    tuned = bool(frames.tuned) and not aside.all()  # trials alone are ordinary runs
    marked = tuning.marked(runs, frames, factors) if tuned else runs
    row, column = _variants(marked, first), _variants(marked, second) if second else ""
    for frame in (runs, marked):
        frame["row"], frame["column"] = row, column
    results = marked[~aside] if tuned else marked
    keys = _context(results, factors)
    rates = _rates(runs, frames.whole, factors[:2])
    found = []
    parts = results.groupby(keys, dropna=False, sort=True) if keys else [((), results)]
    for values, part in parts:
        shown = part.reset_index(drop=True)
        part = runs.loc[part.index]
        curves = frames.curves[frames.curves["run"].isin(part["name"])]
        found.append(
            Study(
                tuple(factors[:2]),
                dict(zip(keys, map(plain_value, values), strict=True)),
                _ordered(first, part["row"], order),
                _ordered(second, part["column"], order),
                part.reset_index(drop=True),
                curves.reset_index(drop=True),
                title="",
                slug="",
                allowed=tuple(allowed),
                rates=_by_row(part, rates),
                marked=shown if tuned else None,
                metrics=frames.metrics,
            )
        )
    found.sort(key=lambda study: -len(study.runs))
    return _named(_with_tuning(found, frames, marked) if tuned else found)


def _with_tuning(found: Sequence[Study], frames: Frames, marked: pd.DataFrame) -> list[Study]:
    """Give each study the tuned cells of its runs, and matching cells without final runs.

    A cell has no final runs while its trials are running, or if all of them diverged. It belongs to
    the first study whose context its trials share.
    """
    names = {name: place for place, study in enumerate(found) for name in study.runs["name"]}
    stored = set(frames.whole["name"])
    records = {record["name"]: record for record in marked.to_dict("records")}
    cells: list[list[CellTuning]] = [[] for _ in found]
    for cell in frames.tuned:
        known = [name for name in cell.final if name in names]
        if known:
            place = names[known[0]]
            record = records[known[0]]
        elif stored.intersection(cell.final):  # the report's filter leaves the cell out
            continue
        else:
            trials = [records[trial.run] for trial in cell.trials if trial.run in records]
            places = [i for i, study in enumerate(found) if _is_of(study, cell, trials)]
            if not places:
                continue
            place, record = places[0], trials[0]
        row, column = plain_value(record["row"]), plain_value(record["column"])
        cells[place].append(tuning.cell_tuning(cell, row, column, frames.whole))
    whole = frames.whole
    return [
        replace(
            study,
            tuned=tuple(tuned),
            trials=whole[whole["name"].isin({t.run for c in tuned for t in c.cell.trials})],
        )
        for study, tuned in zip(found, cells, strict=True)
    ]


def _is_of(study: Study, cell: TunedCell, trials: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a cell without final runs has the values that all runs of a study share."""
    if not trials:
        return False
    known = {key: plain_value(trials[0].get(key)) for key in study.context}
    if "epochs" in known:
        known["epochs"] = cell.epochs
    return all(known[key] == value for key, value in study.context.items())


def _named(found: Sequence[Study]) -> list[Study]:
    """Give each study a unique title and slug."""
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
    """Return the values of a factor; a group's options are added if they vary for one name."""
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


def commits(runs: pd.DataFrame) -> pd.Series:
    """Return the printed commit of each run: ten digits, and whether there were changes.

    Code with uncommitted changes differs from its commit, so it has its own name.
    """
    known = runs["commit"].notna()
    names = runs["commit"].astype(object).map(lambda commit: str(commit)[:10])
    dirty = runs["dirty"].fillna(False).astype(bool) if "dirty" in runs else ~known
    return names.where(~dirty, names + " with changes").where(known, "–")


def by_age(runs: pd.DataFrame) -> list[str]:
    """Return the printed commits of runs, in the order in which they first trained."""
    first = runs["started"].fillna("").groupby(runs["commit"]).min()
    return list(first.sort_values(kind="stable").index)


def _ordered(name: str, values: pd.Series, known: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return the values of a factor in the order of tables, which ``known`` may set."""
    found = labels.ordered(name, map(plain_value, values.unique()))
    places = {value: place for place, value in enumerate(known.get(name, ()))}
    return sorted(found, key=lambda value: places.get(value, len(places)))


def _context(runs: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """Return the keys that split the runs: those that vary within a cell."""
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
    candidates = sorted(
        config, key=lambda c: (_FIRST.index(c) if c in _FIRST else len(_FIRST), "." in c)
    )
    for column in candidates:
        if column in keys or runs[column].nunique(dropna=False) < 2:
            continue
        if column.endswith("seed") and not _varies(runs, ["seed"], column):
            continue
        if _varies(runs, ["row", "column", *keys], column):
            keys.append(column)
    return keys


def _origin(runs: pd.DataFrame) -> list[str]:
    """Return the columns that record the code and versions of a run."""
    return [column for column in runs.columns if is_origin(column)]


def _rates(runs: pd.DataFrame, whole: pd.DataFrame, factors: Sequence[str]) -> dict[str, int]:
    """Return by run name the number of learning rates at which the store has runs of its cell.

    Here, runs of a cell share factors, data set, architecture, optimizer and batch size, but not
    the number of epochs: a rate may have been chosen in shorter runs. ``whole`` is the store before
    filtering.
    """
    if "optimizer.lr" not in whole:
        return dict.fromkeys(runs["name"], 0)
    inside = tuple(f"{name}." for name in factors if name in GROUPS)
    keys = [
        column
        for column in whole.columns
        if column != "optimizer.lr"
        and (
            column in (*factors, "dataset", "arch", "optimizer", "batch")
            or column.startswith(inside or "\0")
        )
    ]
    cells = {
        name: tuple(map(str, values))
        for name, values in zip(whole["name"], whole[keys].to_numpy(object), strict=True)
    }
    found: dict[tuple[str, ...], set[float]] = {}
    ended = whole[whole["status"].isin(ENDED)]
    for name, rate in zip(ended["name"], ended["optimizer.lr"], strict=True):
        found.setdefault(cells[name], set()).add(rate)
    return {name: len(found.get(cells[name], ())) for name in runs["name"]}


def _by_row(runs: pd.DataFrame, rates: Mapping[str, int]) -> dict[Any, int]:
    """Return the largest number of learning rates among the runs of each row."""
    found: dict[Any, int] = {}
    for name, row in zip(runs["name"], map(plain_value, runs["row"]), strict=True):
        found[row] = max(found.get(row, 0), rates[name])
    return found


def _distinct(values: Iterable[str | None]) -> list[str]:
    """Return the distinct known values, in order."""
    return sorted({value for value in values if value is not None}, key=_natural)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def ranges(seeds: Iterable[int]) -> str:
    """Format seeds as ``0–2, 5``."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)


def _varies(runs: pd.DataFrame, keys: list[str], column: str) -> bool:
    """Return whether a column varies among runs that agree in all ``keys``."""
    pairs = runs[[*keys, column]].drop_duplicates()
    return bool(pairs.duplicated(keys).any())


def plain_value(raw: Any) -> Any:
    """Convert a NumPy value to a Python one; integral floats become integers."""
    raw = raw.item() if hasattr(raw, "item") else raw
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw
