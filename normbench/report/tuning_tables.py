"""The tables of tuned keys: chosen values, how forgiving each row is, and the cost of tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from normbench.formats import capitalized, counted
from normbench.report import names as labels
from normbench.report import tuning
from normbench.report.caveats import words
from normbench.report.grid import build
from normbench.report.metrics import METRICS, Metric
from normbench.report.statistics import sample
from normbench.report.study import Study
from normbench.report.table import (
    EMPTY,
    Table,
    TableEntry,
    ends_note,
    entry,
    number,
    usual_count,
)
from normbench.report.tuning import CellTuning, NearRange
from normbench.store.tuning import space_of

_DECADES = 1000  # ratio of the largest to the smallest value above which ranges are in decades


def tables(study: Study) -> list[Table]:
    """Return the tables of tuned keys; none if no key was tuned."""
    if not study.tuned:
        return []
    keys = tuning.tuned_keys(study.tuned)
    ranges = [near_best(study, key) for key in keys]
    return [chosen(study), *(table for table in ranges if table is not None), cost(study)]


def with_chosen(table: Table, study: Study) -> Table:
    """Return a table of rows × columns with the chosen values in the remarks of its entries."""
    cells = [cell.cell for cell in study.tuned]
    if not cells:
        return table

    def named(entry: TableEntry) -> TableEntry:
        cell = next((c for c in cells if set(entry.runs) & set(c.final)), None)
        remarks = [entry.remark, "" if cell is None else tuning.chosen_text(cell)]
        return replace(entry, remark=", ".join(filter(None, remarks)))

    rows = [[row[0], *map(named, row[1:])] for row in table.rows]
    return replace(table, rows=rows)


def ordered(study: Study) -> list[CellTuning]:
    """Return the tuned cells in the order of tables."""
    rows, columns = rows_of(study), columns_of(study)
    return sorted(study.tuned, key=lambda c: (rows.index(c.row), columns.index(c.column)))


def rows_of(study: Study) -> list[Any]:
    """Return the rows that were tuned, including those without final runs."""
    return labels.ordered(study.row_factor, {cell.row for cell in study.tuned})


def columns_of(study: Study) -> list[Any]:
    """Return the columns that were tuned, including those without final runs."""
    return labels.ordered(study.column_factor, {cell.column for cell in study.tuned})


def chosen(study: Study) -> Table:
    """Return for each cell the values tried, the one chosen, and its metric."""
    keys = tuning.tuned_keys(study.tuned)
    cells = ordered(study)
    final_grid = build(study, METRICS["test_acc"])
    usual = usual_count(final_grid)
    rows, data = [], []
    for cell in cells:
        record, metric = cell.cell, cell.metric
        best = next(
            (candidate for candidate in cell.tried if candidate.values == record.chosen), None
        )
        scores = sample(best.scores if best is not None else [])
        score_text = metric.estimate(scores) if scores.n else "–"
        result = final_grid.get(cell.row, cell.column)
        rows.append(
            [
                TableEntry(study.row(cell.row)),
                TableEntry(study.column(cell.column), number(cell.column)),
                *(_chosen(cell, key) for key in keys),
                TableEntry(score_text, scores.mean if scores.n else None),
                # Marks belong in the table of results, which compares columns.
                replace(entry(result, final_grid.metric, usual), best=False, tied=False),
                TableEntry(_tried(cell), len(cell.tried), remark=_added(cell)),
                _trials(cell),
            ]
        )
        data += _chosen_data(study, cell)
    common_metric = _one_metric(cells)
    return Table(
        "tuning",
        f"Values chosen by validation, and the results at them: {study.title}",
        [
            labels.factor(study.row_factor),
            labels.factor(study.column_factor) if study.column_factor else "",
            *(capitalized(words(key)) for key in keys),
            f"{common_metric.axis if common_metric else 'Metric'} of trials",
            "Test (%)",
            "Values tried",
            "Trials",
        ],
        rows,
        [*study.notes, *rules(study), *ends_note(rows)],
        pd.DataFrame(data),
        keys=2,
    )


def rules(study: Study) -> list[str]:
    """Return a sentence for each protocol on how values were chosen."""
    texts = []
    for cell in study.tuned:
        record = cell.cell
        sampler = record.sampler
        proposal = ""
        if sampler is not None:
            proposal = (
                f" Values proposed by the sampler {sampler['name']} of Optuna "
                f"{sampler['optuna']} with seed {sampler['seed']}, "
                f"{counted(sampler['trials'], 'value')} in each cell, from {space_of(sampler)}."
            )
        seeds = f"{counted(len(record.seeds), 'tuning seed')} ({', '.join(map(str, record.seeds))})"
        direction = "highest" if record.higher_is_better else "lowest"
        length = f"{counted(record.trial_epochs, 'epoch')} each, "
        length += (
            "as many as final runs have"
            if record.trial_epochs == record.epochs
            else f"where final runs have {record.epochs}"
        )
        texts.append(
            f"Chosen: the value with the {direction} mean {cell.metric.label.lower()} over "
            f"{seeds}, in trials of {length}. A value with a diverged trial is not "
            f"chosen.{proposal}"
        )
    return list(dict.fromkeys(texts))


def _chosen(cell: CellTuning, key: str) -> TableEntry:
    record = cell.cell
    if key not in record.keys:
        return TableEntry("–", remark="not tuned")
    if record.chosen is None:
        return TableEntry("–", remark=record.problem or "not chosen yet")
    value = record.chosen[key]
    edge = f"the {record.edges[key]} tried" if key in record.edges else ""
    return TableEntry(tuning.value_text(value), number(value), remark=edge, runs=())


def _tried(cell: CellTuning) -> str:
    key, *other_keys = cell.cell.keys
    if other_keys:
        return counted(len(cell.tried), "combination")
    values = [candidate.values[key] for candidate in cell.tried]
    texts = [tuning.value_text(value) for value in values]
    if not tuning.is_numeric(values) or len(values) < 3:
        return ", ".join(texts)
    return f"{len(values)}: {texts[0]} to {texts[-1]}"


def _added(cell: CellTuning) -> str:
    added = len(cell.cell.added)
    return f"{added} added" if added else ""


def _trials(cell: CellTuning) -> TableEntry:
    states = [trial.status for candidate in cell.tried for trial in candidate.trials]
    remarks = [
        f"{states.count(status)} {status}"
        for status in dict.fromkeys(states)
        if status != "finished"
    ]
    return TableEntry(str(len(states)), len(states), remark=", ".join(remarks))


def _chosen_data(study: Study, cell: CellTuning) -> list[dict[str, Any]]:
    lines = []
    for candidate in cell.tried:
        line: dict[str, Any] = {study.row_factor: cell.row}
        if study.column_factor:
            line[study.column_factor] = cell.column
        line |= {key: tuning.value_text(value) for key, value in candidate.values.items()}
        line |= {
            "metric": cell.cell.metric,
            "mean": candidate.mean,
            "trials": len(candidate.trials),
        }
        line |= {"diverged": candidate.diverged, "chosen": candidate.values == cell.cell.chosen}
        lines.append(line | {"added": candidate.values in cell.cell.added})
    return lines


# --- how forgiving --------------------------------------------------------------------------------


def near_best(study: Study, key: str) -> Table | None:
    """Return rows × columns of the width of the range of a key's values near the best.

    None if the values are not numbers, or no cell has a mean.
    """
    cells = [cell for cell in study.tuned if key in cell.cell.keys]
    values = tuning.values_of(cells, key)
    if not tuning.is_numeric(values):
        return None
    ranges_by_cell = {(cell.row, cell.column): (cell, cell.near(key)) for cell in cells}
    ranges_by_cell = {place: pair for place, pair in ranges_by_cell.items() if pair[1] is not None}
    if not ranges_by_cell:
        return None
    log = tuning.on_log_scale(cells, key)
    decades = log and values[-1] >= _DECADES * values[0]
    unit = "decades" if decades else "factors of two" if log else f"units of {tuning.short(key)}"
    columns = columns_of(study)
    rows, data = [], []
    for row in rows_of(study):
        entries = []
        for column in columns:
            cell, span = ranges_by_cell.get((row, column), (None, None))
            if cell is None or span is None:
                entries.append(EMPTY)
                continue
            width = _width(span, log, decades)
            entries.append(_range(cell, span, width))
            data.append(
                {
                    study.row_factor: row,
                    **({study.column_factor: column} if study.column_factor else {}),
                    "key": key,
                    **span._asdict(),
                    "width": width,
                    "unit": unit,
                }
            )
        rows.append([TableEntry(study.row(row)), *entries])
    metric = cells[0].metric
    margin = "1 point" if metric.unit == "%" else "1 %"
    has_other_keys = len(tuning.tuned_keys(study.tuned)) > 1
    notes = [
        f"Width of the range of adjacent values tried whose mean {metric.label.lower()} is within "
        f"{margin} of the cell's best, in {unit}, with the range in brackets. The true range may "
        "extend up to the next value tried on either side. ≥: the range reaches the end of the "
        "list, so it may be wider.",
    ]
    if has_other_keys:
        notes.append("Other tuned keys have their chosen values.")
    return Table(
        "tuning-range" + (f"-{tuning.short(key)}" if has_other_keys else ""),
        f"How forgiving: range of the {words(key)} within {margin} of the best, in {unit}: "
        f"{study.title}",
        [labels.factor(study.row_factor), *map(study.column, columns)],
        rows,
        notes,
        pd.DataFrame(data),
        labels.factor(study.column_factor) if study.column_factor else "",
    )


def _width(span: NearRange, log: bool, decades: bool) -> float:
    if not log:
        return span.high - span.low
    return math.log10(span.high / span.low) if decades else math.log2(span.high / span.low)


def _range(cell: CellTuning, span: NearRange, width: float) -> TableEntry:
    low, high = tuning.value_text(span.low), tuning.value_text(span.high)
    text = f"{width:.1f}" if width < 100 else f"{width:.0f}"
    if 0 < width < 0.05:
        text = f"{width:.2g}"
    interval = f"{low} to {high}" if low != high else f"{low} alone"
    runs = cell.cell.final
    return TableEntry(("≥ " if span.open else "") + text, width, remark=interval, runs=runs)


# --- cost -----------------------------------------------------------------------------------------

_PHASES = ("tuning", "final")


def cost(study: Study) -> Table:
    """Return runs, images and hours of the trials and of the final runs of each row."""
    owner = {t.run: cell.row for cell in study.tuned for t in cell.cell.trials}
    trials = study.trials.assign(row=[owner.get(name) for name in study.trials["name"]])
    phases = {"tuning": trials, "final": study.runs}
    names = labels.ordered(study.row_factor, {*study.rows, *rows_of(study)})
    lines = [
        (study.row(row), {p: runs[runs["row"] == row] for p, runs in phases.items()})
        for row in names
    ]
    lines.append(("All", phases))
    rows, data = [], []
    for name, parts in lines:
        sums = {phase: _sums(runs) for phase, runs in parts.items()}
        hours = {phase: costs[2] for phase, costs in sums.items()}
        total = sum(hours.values())
        share = hours["tuning"] / total if total else math.nan
        rows.append(
            [
                TableEntry(name),
                *(_amount(value, place) for p in _PHASES for place, value in enumerate(sums[p])),
                EMPTY if math.isnan(share) else TableEntry(f"{100 * share:.0f}", share),
            ]
        )
        data += [
            {"row": name, "phase": phase, "runs": costs[0], "images": costs[1], "hours": costs[2]}
            for phase, costs in sums.items()
        ]
    missing_count = len(owner) - len(trials)
    notes = [
        "Images: training images seen. Hours: total wall time of the runs that ended; concurrent "
        "runs on one machine take less time together."
    ]
    if missing_count:
        subject = "trial is" if missing_count == 1 else "trials are"
        notes.append(f"{missing_count} {subject} not in the store, and so not counted.")
    heads = [
        f"{quantity}, {phase}" for phase in _PHASES for quantity in ("Runs", "Images (M)", "Hours")
    ]
    return Table(
        "tuning-cost",
        f"Cost of tuning and of the final runs: {study.title}",
        [labels.factor(study.row_factor), *heads, "Tuning (% of hours)"],
        rows,
        notes,
        pd.DataFrame(data),
    )


def _sums(runs: pd.DataFrame) -> tuple[int, float, float]:
    """Return the number of runs, the images they saw, and their hours."""
    if runs.empty:
        return 0, 0.0, 0.0
    seconds = runs["wall_seconds"].fillna(runs["train_seconds"])
    return len(runs), float(np.nansum(runs["images_seen"])), float(np.nansum(seconds)) / 3600


def _amount(value: float, place: int) -> TableEntry:
    if place == 0:
        return TableEntry(f"{value:,}", float(value))
    amount = value / 1e6 if place == 1 else value
    text = f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
    if 0 < amount < 0.001:
        text = "< 0.001"
    return TableEntry(text, value)


def heading(cells: Sequence[CellTuning]) -> str:
    """Return the axis label, with unit, of the metric by which values were chosen."""
    common_metric = _one_metric(cells)
    return common_metric.axis if common_metric else "Metric of trials"


def _one_metric(cells: Sequence[CellTuning]) -> Metric | None:
    """Return the metric by which values were chosen in all cells; None if there are several."""
    metrics = {cell.metric.name: cell.metric for cell in cells}
    return next(iter(metrics.values())) if len(metrics) == 1 else None
