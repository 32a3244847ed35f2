"""Tuned keys in a report: :class:`CellTuning` has a cell's trials and the value chosen from them.

A sweep with ``--tune`` trains each value of a tuned key with tuning seeds, chooses one value for
each cell by validation, and trains the final seeds with it (:mod:`normbench.store.tuning`). Only
final runs are used in tables, figures and findings. A tuned key differs between cells by design;
:func:`marked` replaces its values so that it neither splits runs into studies nor counts as a
confound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normbench.formats import counted
from normbench.report import names as labels
from normbench.report.frames import Frames, chance
from normbench.report.metrics import METRICS, Metric
from normbench.store.differences import as_overrides
from normbench.store.tuning import Trial, TunedCell

TUNED = "tuned"
"""Replaces the value of a tuned key in comparisons if all cells were tuned by one protocol."""

NEAR = 0.01
"""Distance from the best that counts as near: one point for percentages, else relative."""


@dataclass(frozen=True)
class Tried:
    """A combination of values of the tuned keys, with its trials.

    Attributes:
        values: The value of each tuned key.
        trials: Its trials, one for each tuning seed.
    """

    values: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def scores(self) -> list[float]:
        """The metric of each finished trial."""
        return [t.metric for t in self.trials if t.status == "finished" and t.metric is not None]

    @property
    def diverged(self) -> int:
        """The number of trials that diverged."""
        return sum(trial.status == "diverged" for trial in self.trials)

    @property
    def mean(self) -> float:
        """The mean over tuning seeds; NaN if a trial has no score, which rules the value out."""
        scores = self.scores
        is_complete = len(scores) == len(self.trials) > 0
        return float(np.mean(scores)) if is_complete else math.nan


class NearRange(NamedTuple):
    """The range of values of a key around the best whose means are near the best.

    Attributes:
        low, high: The smallest and the largest value.
        open: Whether the range reaches an end of the values tried, so that it may be wider.
    """

    low: float
    high: float
    open: bool


@dataclass(frozen=True)
class CellTuning:
    """The trials of one row and column of a study.

    Attributes:
        row, column: Values of the factors.
        cell: The record of the cell.
        tried: The values tried, in ascending order.
        chance: The accuracy of guessing, at which a diverged trial counts.
        contradicted: Names of trials whose runs have a different metric value than the record.
    """

    row: Any
    column: Any
    cell: TunedCell
    tried: tuple[Tried, ...]
    chance: float = 0.0
    contradicted: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The validation metric by which values were chosen."""
        name = self.cell.metric
        higher = self.cell.higher_is_better
        return METRICS.get(name) or Metric(name, labels.plain(name), higher_is_better=higher)

    @property
    def sign(self) -> float:
        """1 if a larger metric is better, else -1."""
        return 1.0 if self.cell.higher_is_better else -1.0

    @cached_property
    def base(self) -> Mapping[str, Any] | None:
        """The chosen values; if none were chosen yet, those with the best mean so far."""
        if self.cell.chosen is not None:
            return self.cell.chosen
        candidates = [candidate for candidate in self.tried if not math.isnan(candidate.mean)]
        return (
            max(candidates, key=lambda candidate: self.sign * candidate.mean).values
            if candidates
            else None
        )

    @property
    def scattered(self) -> bool:
        """True if no two values tried differ in only one key, as with a sampler."""
        return self.cell.sampler is not None and len(self.cell.keys) > 1

    def along(self, key: str) -> list[Tried]:
        """Return the values tried of one key, with other tuned keys at their chosen values.

        Scattered values are all returned, sorted by this key; other keys vary with it.
        """
        other_keys = [other for other in self.cell.keys if other != key]
        if not other_keys:
            return list(self.tried)
        if self.scattered:
            return sorted(self.tried, key=lambda candidate: _order(candidate.values[key]))
        base = self.base
        if base is None:
            return []
        return [
            t for t in self.tried if all(t.values[other] == base[other] for other in other_keys)
        ]

    def near(self, key: str) -> NearRange | None:
        """Return the range of a numeric key within :data:`NEAR` of the best mean.

        The range consists of adjacent values tried; a value with a diverged trial ends it. None
        for scattered values, whose neighbors differ in other keys as well.
        """
        if self.scattered:
            return None
        candidates = self.along(key)
        means = np.array([self.sign * candidate.mean for candidate in candidates])
        if not len(means) or np.isnan(means).all():
            return None
        best = int(np.nanargmax(means))
        limit = means[best] - (NEAR if self.metric.unit == "%" else NEAR * abs(means[best]))
        low = high = best
        while low > 0 and means[low - 1] >= limit - 1e-12:
            low -= 1
        while high < len(means) - 1 and means[high + 1] >= limit - 1e-12:
            high += 1
        is_open = low == 0 or high == len(means) - 1
        return NearRange(
            float(candidates[low].values[key]), float(candidates[high].values[key]), is_open
        )

    def expected_best(self) -> list[float]:
        """Return the expected best mean after 1, 2, … values; empty before all trials ended.

        Also empty if a sampler used the results of earlier values: its values are not a random
        sample of the space, and would not have been proposed in another order.
        """
        if self.cell.sampler is not None and self.cell.sampler["name"] not in ("qmc", "random"):
            return []
        if any(
            t.status not in ("finished", "diverged")
            for candidate in self.tried
            for t in candidate.trials
        ):
            return []
        means = [candidate.mean for candidate in self.tried if not math.isnan(candidate.mean)]
        if not means:
            return []
        penalty = min(self.sign * value for value in means)
        if self.metric.worst == "chance":
            penalty = self.chance
        elif self.metric.worst:
            penalty = -(1.0 - self.chance)
        scores = [
            penalty if math.isnan(candidate.mean) else self.sign * candidate.mean
            for candidate in self.tried
        ]
        return [self.sign * value for value in expected_maximum(scores)]


def expected_maximum(scores: Sequence[float]) -> list[float]:
    """Return the expected maximum of n scores drawn without replacement, for n = 1 … N.
    With the scores v₁ ≤ … ≤ v_N in order, this is Σ_k C(k - 1, n - 1) / C(N, n) · v_k: the
    largest of n is v_k in C(k - 1, n - 1) of all C(N, n) choices. It is the expected validation
    performance of Dodge et al. (2019), who draw with replacement, in the unbiased form of Tang et
    al. (2020): each value of a list is tried once.
    """
    order = sorted(scores)
    total = len(order)
    return [
        sum(math.comb(k, n - 1) * value for k, value in enumerate(order)) / math.comb(total, n)
        for n in range(1, total + 1)
    ]


# --- from a store's records to the cells of a study -----------------------------------------------


def final_cells(frames: Frames) -> dict[str, TunedCell]:
    """Return the tuned cell of each final run, by run name."""
    return {name: cell for cell in frames.tuned for name in cell.final}


def is_trial(runs: pd.DataFrame) -> np.ndarray:
    """Return for each run whether it is a trial and not a final run of any sweep."""
    return _marked_in(runs, "trial")


def is_superseded(runs: pd.DataFrame) -> np.ndarray:
    """Return for each run whether it is a final run at values that were chosen earlier."""
    return _marked_in(runs, "superseded")


def is_aside(runs: pd.DataFrame) -> np.ndarray:
    """Return for each run whether it is not a result of its sweep: a trial, or superseded."""
    return is_trial(runs) | is_superseded(runs)


def with_superseded(frames: Frames) -> Frames:
    """Return the frames with superseded runs as ordinary, untuned ones."""
    attrs = frames.runs.attrs
    runs = frames.runs.drop(columns="superseded", errors="ignore")
    runs.attrs.update(attrs)
    return replace(frames, runs=runs)


_NAMED = 3  # maximum number of cells named in the note on superseded runs


def superseded_note(frames: Frames) -> list[str]:
    """Return a sentence on the superseded runs, which tables leave out, if there are any."""
    left_out = set(frames.runs["name"][is_superseded(frames.runs)])
    if not left_out or is_aside(frames.runs).all():
        return []
    cells = [
        (cell, choice)
        for cell in frames.tuned
        for choice in cell.superseded
        if left_out.intersection(choice.runs)
    ]
    texts = [
        f"{cell.described} {as_overrides(choice.values)}, now {as_overrides(cell.chosen or {})}"
        for cell, choice in cells[:_NAMED]
    ]
    rest = f"; and {len(cells) - _NAMED} more" if len(cells) > _NAMED else ""
    count = len(left_out)
    runs = (
        "1 final run is superseded and" if count == 1 else f"{count} final runs are superseded and"
    )
    return [
        f"{runs} left out, because a later sweep chose other values ({'; '.join(texts)}{rest}): "
        "--superseded shows them"
    ]


def phase(run: Mapping[str, Any]) -> str:
    """Return ``trial`` or ``superseded`` for a run that is not a result of its sweep, else ""."""
    return next((name for name in ("trial", "superseded") if run.get(name)), "")


def _marked_in(runs: pd.DataFrame, column: str) -> np.ndarray:
    return runs[column].to_numpy(bool) if column in runs else np.zeros(len(runs), bool)


def marked(runs: pd.DataFrame, frames: Frames, factors: Sequence[str]) -> pd.DataFrame:
    """Return the runs with :data:`TUNED` instead of the values of tuned keys.

    Runs tuned by different protocols (different values, seeds, epochs or metric) get different
    texts, since a larger budget may cause a difference. Keys that are factors of the report keep
    their values, as do requested superseded runs, whose column ``superseded`` was removed
    (:func:`with_superseded`).
    """
    if not frames.tuned:
        return runs
    trials = {trial.run: cell for cell in frames.tuned for trial in cell.trials}
    superseded_names = set(runs["name"][is_superseded(runs)])
    earlier_owners = {
        name: cell
        for cell in frames.tuned
        for choice in cell.superseded
        for name in superseded_names.intersection(choice.runs)
    }
    owners = trials | earlier_owners | final_cells(frames)
    cells = [owners.get(name) for name in runs["name"]]
    texts = _texts([cell for cell in cells if cell is not None])
    runs = runs.copy()
    for key in dict.fromkeys(key for cell in frames.tuned for key in cell.keys):
        columns = [c for c in runs.columns if c == key or c.startswith(f"{key}.")]
        for column in columns:
            if column in factors or key in factors:
                continue
            runs[column] = [
                texts[_protocol(cell)] if cell is not None and key in cell.keys else value
                for value, cell in zip(runs[column], cells, strict=True)
            ]
    return runs


def _protocol(cell: TunedCell) -> tuple[Any, ...]:
    """Return a key that is equal for cells tuned by the same protocol.

    For a sampler it includes the space, not the values proposed in each cell.
    """
    if cell.sampler is not None:
        space = json.dumps(cell.sampler, sort_keys=True)
        return cell.keys, (space,), cell.seeds, cell.trial_epochs, cell.metric
    initial_values = [value for value in cell.values if value not in cell.added]
    values = tuple(json.dumps(value, sort_keys=True) for value in initial_values)
    return cell.keys, values, cell.seeds, cell.trial_epochs, cell.metric


def _texts(cells: Sequence[TunedCell]) -> dict[tuple[Any, ...], str]:
    """Return a text for each protocol; :data:`TUNED` if there is only one."""
    protocols = {_protocol(cell): cell for cell in cells}
    if len(protocols) < 2:
        return dict.fromkeys(protocols, TUNED)
    texts: dict[tuple[Any, ...], str] = {}
    for protocol, cell in protocols.items():
        count = cell.sampler["trials"] if cell.sampler is not None else len(protocol[1])
        text = (
            f"{TUNED} over {counted(count, 'value')} with "
            f"{counted(len(cell.seeds), 'seed')} of {counted(cell.trial_epochs, 'epoch')}"
        )
        same_count = sum(other_text.startswith(text) for other_text in texts.values())
        texts[protocol] = f"{text} (protocol {same_count + 1})" if same_count else text
    return texts


def cell_tuning(cell: TunedCell, row: Any, column: Any, whole: pd.DataFrame) -> CellTuning:
    """Return the trials of a cell.

    A run's own status and metric are used, or those of the record if the run was removed.

    Args:
        cell: The record of the cell.
        row, column: Values of the factors.
        whole: All runs of the store.
    """
    names = {trial.run for trial in cell.trials}
    runs = whole[whole["name"].isin(names)]
    runs_by_name = {run["name"]: run for run in runs.to_dict("records")}
    contradictions = []
    trials_by_values: dict[str, tuple[Mapping[str, Any], list[Trial]]] = {}
    for trial in cell.trials:
        run = runs_by_name.get(trial.run)
        current_trial = trial
        if run is not None and run["status"] in ("finished", "diverged"):
            value = run.get(cell.metric)
            metric = None if value is None or value != value else float(value)
            status = trial.status if trial.status == "invalid" else str(run["status"])
            metric = metric if status == "finished" else None
            current_trial = Trial(trial.run, trial.values, trial.seed, status, metric)
            if trial.metric is not None and (
                metric is None or abs(metric - trial.metric) > 1e-9 * max(1.0, abs(trial.metric))
            ):
                contradictions.append(trial.run)
        key = json.dumps(trial.values, sort_keys=True)
        trials_by_values.setdefault(key, (trial.values, []))[1].append(current_trial)
    candidates = [Tried(values, tuple(trials)) for values, trials in trials_by_values.values()]
    candidates.sort(key=lambda candidate: [_order(candidate.values[key]) for key in cell.keys])
    classes = [run.get("classes") for run in runs_by_name.values()]
    guess = chance(cell.dataset, next((c for c in classes if c is not None and c == c), None))
    return CellTuning(row, column, cell, tuple(candidates), guess, tuple(contradictions))


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


# --- values of one key over the cells of a study --------------------------------------------------


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a boolean."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def tuned_keys(cells: Sequence[CellTuning]) -> list[str]:
    """Return the keys that were tuned in any of the cells."""
    return list(dict.fromkeys(key for cell in cells for key in cell.cell.keys))


def values_of(cells: Sequence[CellTuning], key: str) -> list[Any]:
    """Return the values of a key tried in any cell: sorted numbers, then sorted texts."""
    values_by_text: dict[str, Any] = {}
    for cell in cells:
        for candidate in cell.tried:
            if key in candidate.values:
                values_by_text.setdefault(json.dumps(candidate.values[key]), candidate.values[key])
    return sorted(values_by_text.values(), key=_order)


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers."""
    return bool(values) and all(map(is_number, values))


def on_log_scale(cells: Sequence[CellTuning], key: str) -> bool:
    """Return whether the values of a key were spaced or drawn on a log scale."""
    spaces = [cell.cell.sampler["space"].get(key, "") for cell in cells if cell.cell.sampler]
    if any(text.startswith(("log(", "interval(", "int(interval(")) for text in spaces):
        return all(text.startswith("log(") for text in spaces)
    return is_geometric(values_of(cells, key))


def is_geometric(values: Sequence[Any]) -> bool:
    """Return whether ascending numbers are spaced by ratios rather than differences."""
    if len(values) < 2 or not is_numeric(values) or values[0] <= 0:
        return False
    ratios = [after / before for before, after in pairwise(values)]
    steps = [after - before for before, after in pairwise(values)]
    return max(ratios) / min(ratios) <= max(steps) / min(steps)


def short(key: str) -> str:
    """Return the last part of a key, such as ``lr``."""
    return labels.plain(key.rpartition(".")[2])


def chosen_text(cell: TunedCell) -> str:
    """Return the chosen values as a remark, such as ``lr 0.4, the largest tried``."""
    if cell.chosen is None:
        return ""
    parts = [
        f"{short(key)} {value_text(cell.chosen[key])}"
        + (f", the {cell.edges[key]} tried" if key in cell.edges else "")
        for key in cell.keys
    ]
    return "; ".join(parts)


def value_text(value: Any) -> str:
    """Return a value of a tuned key as text."""
    return labels.plain(value) if isinstance(value, int | float | str) else json.dumps(value)
