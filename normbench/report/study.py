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
        has_ended = self.runs["status"].isin(ENDED).to_numpy()
        origin = self.runs.groupby(_origin(self.runs), dropna=False).ngroup().to_numpy()
        order = self.runs.sort_values(["seed", "name"], kind="stable")
        groups = {}
        for key, part in order.groupby(["row", "column"], sort=False):
            places = part.index.to_numpy()
            is_mixed = len(set(origin[places[has_ended[places]]])) > 1
            groups[plain_value(key[0]), plain_value(key[1])] = Group(places, is_mixed)
        return groups

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
        runs = self.runs[(self.runs["status"] == "finished") & self.runs["best_val_epoch"].notna()]
        is_last = runs["best_val_epoch"] >= runs["epochs_done"]
        finished_counts = {row: int((runs["row"] == row).sum()) for row in self.rows}
        best_counts = {row: int((runs.loc[is_last, "row"] == row).sum()) for row in self.rows}
        return Training(best_counts, finished_counts, self.rates)

    @cached_property
    def notes(self) -> list[str]:
        """The notes under each table: conditions in which rows or columns differ, unequal seeds."""
        notes = []
        if self.confounds:
            notes.append(
                f"Confounded: rows also differ in {self._with_values(self.confounds)}. Differences "
                f"between rows cannot be attributed to the {self.compared} alone."
            )
        rows = [condition for condition in self.conditions if condition.rows]
        intended_conditions = [condition for condition in rows if condition.intended]
        if intended_conditions:
            notes.append(
                f"Rows also differ in {self._with_values(intended_conditions)}, as intended."
            )
        rounding = [c for c in rows if not c.intended and not c.confounds]
        if rounding:
            notes.append(
                f"Rows also differ in {self._with_values(rounding)}, which only affects rounding."
            )
        columns = [c for c in self.conditions if c.columns and not c.rows]
        if columns:
            notes.append(f"Columns also differ in {self._with_values(columns)}.")
        return notes + self._tuning() + self._seeds()

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
            matches = [condition for condition in self.conditions if condition.rows == by_row]
            if not matches:
                continue
            text = self._with_values(matches)
            if len(text) > _CAPTION:  # the notes below tables have the values
                text = join_names([condition.words for condition in matches])
            parts.append(f"{name} also differ in {text}")
        if self.tuned:
            keys = join_names([words(key) for key in tuning.tuned_keys(self.tuned)])
            parts.append(f"{keys} tuned for each cell")
        return "; ".join(parts)

    def _with_values(self, selection: Sequence[Condition]) -> str:
        """Return conditions with their values by row, or by column if rows do not differ."""
        return join_names(
            [f"{c.words} ({describe_values(self._values(c, c.rows))})" for c in selection]
        )

    def _values(self, condition: Condition, by_row: bool) -> dict[str, list[str]]:
        keys = self.runs["row" if by_row else "column"].map(plain_value).to_numpy()
        has_ended = self.runs["status"].isin(ENDED).to_numpy()
        names = {
            key: self.row(key) if by_row else self.column(key)
            for key in (self.rows if by_row else self.columns)
        }
        return {
            name: _distinct(condition.values[has_ended & (keys == key)])
            for key, name in names.items()
        }

    def differing(
        self, row: Any, other: Any, columns: Iterable[Any]
    ) -> list[tuple[Condition, str]]:
        """Return the conditions in which paired runs of two rows differ, each with its values.

        Runs are paired by column and seed, as in the comparisons. The text is as
        ``learning rate (BN 0.1, GN 0.02)``, ``other`` first.
        """
        columns = list(columns)
        result = []
        for condition in self.conditions:
            values = {name: [] for name in (other, row)}
            is_different = False
            for column in columns:
                pair = [self._by_seed(condition, name, column) for name in (other, row)]
                is_different |= any(
                    pair[0][seed] != pair[1][seed] for seed in pair[0].keys() & pair[1]
                )
                for name, by_seed in zip((other, row), pair, strict=True):
                    values[name] += by_seed.values()
            if is_different:
                texts_by_row = {self.row(name): _distinct(texts) for name, texts in values.items()}
                result.append((condition, f"{condition.words} ({describe_values(texts_by_row)})"))
        return result

    def _by_seed(self, condition: Condition, row: Any, column: Any) -> dict[int, str]:
        if (row, column) not in self.groups:
            return {}
        places = self.groups[row, column].places
        columns = self.columns_of_runs
        return {
            int(columns["seed"][place]): str(condition.values[place])
            for place in places
            if columns["status"][place] in ENDED and condition.values[place] is not None
        }

    def _seeds(self) -> list[str]:
        """Note that rows have runs of different seeds, if they do."""
        ended_runs = self.runs[self.runs["status"].isin(ENDED)]
        seeds_by_row = {
            row: set(ended_runs.loc[ended_runs["row"] == row, "seed"]) for row in self.rows
        }
        seeds_by_row = {row: seeds for row, seeds in seeds_by_row.items() if seeds}
        if len({frozenset(seeds) for seeds in seeds_by_row.values()}) < 2:
            return []
        texts = {self.row(row): [ranges(map(int, seeds))] for row, seeds in seeds_by_row.items()}
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
    options = [column for column in frames.runs.columns if is_config(column) and column != "seed"]
    options += [column for column in ("commit",) if column in frames.runs.columns]
    if not factors:
        raise UserError("--by needs at least one column, as --by norm,batch")
    for place, name in enumerate(factors):
        if name not in options:
            raise unknown("column in --by", name, options)
        if name in factors[:place]:
            raise UserError(f"--by names {name!r} twice")
    check_allowed(allowed, frames.runs)
    if frames.runs.empty:
        return []
    first, second = factors[0], factors[1] if len(factors) > 1 else ""
    runs, is_aside = frames.runs.copy(), tuning.is_aside(frames.runs)
    runs.attrs = {}  # pandas copies these at every step
    order = {}
    if frames.stores:
        order["store"] = [store.name for store in frames.stores]
    if "commit" in factors:
        runs["commit"] = commits(runs)
        order["commit"] = by_age(runs)
    has_tuning = bool(frames.tuned) and not is_aside.all()  # trials alone are ordinary runs
    marked_runs = tuning.marked(runs, frames, factors) if has_tuning else runs
    row, column = _variants(marked_runs, first), _variants(marked_runs, second) if second else ""
    for frame in (runs, marked_runs):
        frame["row"], frame["column"] = row, column
    results = marked_runs[~is_aside] if has_tuning else marked_runs
    keys = _context(results, factors)
    rates = _rates(runs, frames.whole, factors[:2])
    study_list = []
    parts = results.groupby(keys, dropna=False, sort=True) if keys else [((), results)]
    for values, part in parts:
        marked_part = part.reset_index(drop=True)
        part = runs.loc[part.index]
        curves = frames.curves[frames.curves["run"].isin(part["name"])]
        study_list.append(
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
                marked=marked_part if has_tuning else None,
                metrics=frames.metrics,
            )
        )
    study_list.sort(key=lambda study: -len(study.runs))
    return _named(_with_tuning(study_list, frames, marked_runs) if has_tuning else study_list)


def _with_tuning(
    study_list: Sequence[Study], frames: Frames, marked_runs: pd.DataFrame
) -> list[Study]:
    """Give each study the tuned cells of its runs, and matching cells without final runs.

    A cell has no final runs while its trials are running, or if all of them diverged. It belongs to
    the first study whose context its trials share.
    """
    names = {name: place for place, study in enumerate(study_list) for name in study.runs["name"]}
    stored_names = set(frames.whole["name"])
    records = {record["name"]: record for record in marked_runs.to_dict("records")}
    cells: list[list[CellTuning]] = [[] for _ in study_list]
    for cell in frames.tuned:
        final_names = [name for name in cell.final if name in names]
        if final_names:
            place = names[final_names[0]]
            record = records[final_names[0]]
        elif stored_names.intersection(cell.final):  # the report's filter leaves the cell out
            continue
        else:
            trials = [records[trial.run] for trial in cell.trials if trial.run in records]
            places = [i for i, study in enumerate(study_list) if _is_of(study, cell, trials)]
            if not places:
                continue
            place, record = places[0], trials[0]
        row, column = plain_value(record["row"]), plain_value(record["column"])
        cells[place].append(tuning.cell_tuning(cell, row, column, frames.whole))
    all_runs = frames.whole
    return [
        replace(
            study,
            tuned=tuple(cell_tunings),
            trials=all_runs[
                all_runs["name"].isin({t.run for c in cell_tunings for t in c.cell.trials})
            ],
        )
        for study, cell_tunings in zip(study_list, cells, strict=True)
    ]


def _is_of(study: Study, cell: TunedCell, trials: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a cell without final runs has the values that all runs of a study share."""
    if not trials:
        return False
    values = {key: plain_value(trials[0].get(key)) for key in study.context}
    if "epochs" in values:
        values["epochs"] = cell.epochs
    return all(values[key] == value for key, value in study.context.items())


def _named(study_list: Sequence[Study]) -> list[Study]:
    """Give each study a unique title and slug."""
    texts = ["-".join(map(labels.plain, study.context.values())) for study in study_list]
    slugs = labels.slugs(texts, [repr(study.context) for study in study_list])
    titles = [_title(study.context) for study in study_list]
    counts = Counter(titles)
    return [
        replace(study, title=title if counts[title] == 1 else f"{title} ({slug})", slug=slug)
        for study, title, slug in zip(study_list, titles, slugs, strict=True)
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
        is_missing = values.isna()
        return values.astype(object).where(~is_missing, "–") if is_missing.any() else values
    result = values.astype(object)
    options = [column for column in runs.columns if column.startswith(f"{factor}.")]
    for name, part in runs.groupby(factor):
        varying_columns = [column for column in options if part[column].nunique(dropna=False) > 1]
        if factor == "norm" and "norm.weight.name" in varying_columns:
            varying_columns.remove("norm.weight.name")
        if varying_columns:
            result.loc[part.index] = [
                f"{name} ({', '.join(_option(factor, row, c) for c in varying_columns)})"
                for _, row in part[varying_columns].iterrows()
            ]
    return result


def _option(factor: str, row: pd.Series, column: str) -> str:
    return f"{column.removeprefix(factor + '.')}={labels.plain(row[column])}"


def commits(runs: pd.DataFrame) -> pd.Series:
    """Return the printed commit of each run: ten digits, and whether there were changes.

    Code with uncommitted changes differs from its commit, so it has its own name.
    """
    has_commit = runs["commit"].notna()
    names = runs["commit"].astype(object).map(lambda commit: str(commit)[:10])
    is_dirty = runs["dirty"].fillna(False).astype(bool) if "dirty" in runs else ~has_commit
    return names.where(~is_dirty, names + " with changes").where(has_commit, "–")


def by_age(runs: pd.DataFrame) -> list[str]:
    """Return the printed commits of runs, in the order in which they first trained."""
    first = runs["started"].fillna("").groupby(runs["commit"]).min()
    return list(first.sort_values(kind="stable").index)


def _ordered(name: str, values: pd.Series, orders: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return the values of a factor in the order of tables, which ``orders`` may set."""
    ordered_values = labels.ordered(name, map(plain_value, values.unique()))
    places = {value: place for place, value in enumerate(orders.get(name, ()))}
    return sorted(ordered_values, key=lambda value: places.get(value, len(places)))


def _context(runs: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """Return the keys that split the runs: those that vary within a cell."""
    prefixes = tuple(f"{name}." for name in by[:2] if name in GROUPS)
    config = [
        column
        for column in runs.columns
        if is_config(column)
        and column not in (*by[:2], *_FREE, "row", "column")
        and not column.startswith(prefixes or ("\0",))
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


def _rates(runs: pd.DataFrame, all_runs: pd.DataFrame, factors: Sequence[str]) -> dict[str, int]:
    """Return by run name the number of learning rates at which the store has runs of its cell.

    Here, runs of a cell share factors, data set, architecture, optimizer and batch size, but not
    the number of epochs: a rate may have been chosen in shorter runs. ``all_runs`` is the store
    before filtering.
    """
    if "optimizer.lr" not in all_runs:
        return dict.fromkeys(runs["name"], 0)
    prefixes = tuple(f"{name}." for name in factors if name in GROUPS)
    keys = [
        column
        for column in all_runs.columns
        if column != "optimizer.lr"
        and (
            column in (*factors, "dataset", "arch", "optimizer", "batch")
            or column.startswith(prefixes or "\0")
        )
    ]
    cells = {
        name: tuple(map(str, values))
        for name, values in zip(all_runs["name"], all_runs[keys].to_numpy(object), strict=True)
    }
    rates: dict[tuple[str, ...], set[float]] = {}
    ended_runs = all_runs[all_runs["status"].isin(ENDED)]
    for name, rate in zip(ended_runs["name"], ended_runs["optimizer.lr"], strict=True):
        rates.setdefault(cells[name], set()).add(rate)
    return {name: len(rates.get(cells[name], ())) for name in runs["name"]}


def _by_row(runs: pd.DataFrame, rates: Mapping[str, int]) -> dict[Any, int]:
    """Return the largest number of learning rates among the runs of each row."""
    counts: dict[Any, int] = {}
    for name, row in zip(runs["name"], map(plain_value, runs["row"]), strict=True):
        counts[row] = max(counts.get(row, 0), rates[name])
    return counts


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
