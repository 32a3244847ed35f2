"""Tables that list: the choice by validation, all cells of a study, all runs of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from normbench.report import labels
from normbench.report.frame import Frames
from normbench.report.grid import Cell, build
from normbench.report.metrics import METRICS, Metric, metric
from normbench.report.rows import is_config
from normbench.report.study import Study, plain_value, ranges
from normbench.report.table import EMPTY, Entry, Table, entry, number, usual_count


def selection(study: Study) -> Table | None:
    """For each row, the column that validation chooses, and what it has on test."""
    if not study.column_factor or len(study.columns) < 2:
        return None
    validation = build(study, metric("val_acc"))
    test, at_best = build(study, metric("test_acc")), build(study, metric("best_val_test_acc"))
    rows, data = [], []
    for row in study.rows:
        known = [c for c in validation.cells.values() if c.row == row and c.sample.n]
        known = [c for c in known if not c.all_diverged]
        if not known:
            continue
        chosen = max(known, key=lambda cell: cell.sample.mean)
        usual = usual_count(validation)
        place = (row, chosen.column)
        rows.append(
            [
                Entry(study.row(row)),
                Entry(study.column(chosen.column), number(chosen.column), runs=chosen.runs),
                entry(_unmarked(chosen), validation.metric, usual),
                entry(_unmarked(test.cells[place]), test.metric, usual),
                entry(_unmarked(at_best.cells[place]), at_best.metric, usual),
            ]
        )
        data.append(
            {
                "row": row,
                "column": chosen.column,
                "val_acc": chosen.sample.mean,
                "test_acc": test.cells[place].sample.mean,
                "best_val_test_acc": at_best.cells[place].sample.mean,
            }
        )
    if not rows:
        return None
    factor = labels.factor(study.column_factor)
    return Table(
        "selection",
        f"{factor} chosen by validation accuracy, and its test accuracy: {study.title}",
        [
            labels.factor(study.row_factor),
            f"{factor} chosen",
            "Validation (%)",
            "Test, final epoch (%)",
            "Test, best validation epoch (%)",
        ],
        rows,
        [*study.notes, "Chosen on validation images alone; test images had no part in it."],
        pd.DataFrame(data),
    )


_SUMMARY = {
    "test_acc": "Test (%)",
    "best_val_test_acc": "Test, best val. epoch (%)",
    "val_acc": "Val. (%)",
    "gap": "Gap (points)",
    "images_per_s": "Images/s",
    "train_seconds": "Training (s)",
}


def summary(*studies: Study) -> Table:
    """A line per cell, as for the appendix of a paper; several studies are told apart by columns.

    Keys that part the studies (the data set, the network, a learning rate) stand first in each
    line, then keys of the config that differ between the cells of a study.
    """
    several = len(studies) > 1
    keys = list(dict.fromkeys(key for study in studies for key in study.context)) if several else []
    keys = [key for key in keys if len({str(study.context.get(key)) for study in studies}) > 1]
    keys += dict.fromkeys(
        each.key
        for study in studies
        for each in study.conditions
        if is_config(each.key) and each.key not in keys
    )
    found = [_summary_lines(study, keys) for study in studies]
    lines = [line for rows, _ in found for line in rows]
    data = pd.DataFrame([values for _, part in found for values in part])
    first = studies[0]
    headers = [
        *map(labels.factor, keys),
        labels.factor(first.row_factor),
        labels.factor(first.column_factor) if first.column_factor else "",
        "Seeds",
        "Runs",
        *_SUMMARY.values(),
    ]
    place = headers.index("Runs")
    if all(set(line[place].text.split()[1::2]) == {"finished"} for line in lines):
        headers.pop(place)
        lines = [[*line[:place], *line[place + 1 :]] for line in lines]
    return Table(
        "summary",
        "All cells" if several else f"All cells: {first.title}",
        headers,
        lines,
        [
            *_notes(studies),
            "Mean over seeds ± half of the 95 % t interval; accuracies at the final epoch, test "
            "also at the epoch of best validation accuracy. The gap is training minus test "
            "accuracy; training accuracy is taken while the network trains, on augmented images "
            "where there are any.",
        ],
        data,
    )


def _notes(studies: Sequence[Study]) -> list[str]:
    """Return the notes of studies, each with the study's title where there are several."""
    if len(studies) == 1:
        return studies[0].notes
    return [f"{study.title}: {note}" for study in studies for note in study.notes]


def _summary_lines(study: Study, keys: list[str]) -> tuple[list[list[Entry]], list[dict]]:
    grids = {name: build(study, METRICS[name]) for name in _SUMMARY}
    rows, data = [], []
    for place, cell in grids["test_acc"].cells.items():
        inside = study.runs.iloc[study.groups[place].places]
        seeds = sorted(int(seed) for seed in inside["seed"])
        counts = inside["status"].value_counts()
        state = ", ".join(f"{count} {status}" for status, count in counts.items())
        cells = {name: grid.cells[place] for name, grid in grids.items()}
        usual = cell.sample.n
        known = {key: _shared(inside, key) for key in keys}
        rows.append(
            [
                *(Entry(labels.value(key, value), number(value)) for key, value in known.items()),
                Entry(study.row(place[0])),
                Entry(study.column(place[1]), number(place[1])),
                Entry(ranges(seeds), len(seeds), runs=cell.runs),
                Entry(state),
                *(entry(_unmarked(each), METRICS[name], usual) for name, each in cells.items()),
            ]
        )
        line: dict[str, Any] = dict(study.context) | known
        line[study.row_factor] = place[0]
        if study.column_factor:
            line[study.column_factor] = place[1]
        line |= {"seeds": " ".join(map(str, seeds)), "runs": len(inside), "status": state}
        for name, each in cells.items():
            line |= {f"{name}_{key}": getattr(each.sample, key) for key in _SAMPLE}
        data.append(line)
    return rows, data


_SAMPLE = ("n", "mean", "sd", "low", "high")


def _shared(runs: pd.DataFrame, key: str) -> Any:
    """Return the value of a key that all runs of a cell have; several as one text."""
    values = [] if key not in runs else [plain_value(each) for each in runs[key].unique()]
    return values[0] if len(values) == 1 else ", ".join(map(labels.plain, values))


def run_list(frames: Frames) -> Table:
    """A line a run, whatever its state."""
    columns = ["norm", "batch", "seed"]
    columns = [c for c in ("dataset", "arch") if frames.runs[c].nunique() > 1] + columns
    shown = ("test_acc", "best_val_test_acc", "val_acc", "train_acc")
    rows = []
    for record in frames.runs.to_dict("records"):
        values = [_numeric_metric(record.get(name), METRICS[name]) for name in shown]
        rows.append(
            [
                Entry(str(record["name"]), runs=(str(record["name"]),)),
                Entry(str(record["status"])),
                *(Entry(labels.value(c, record[c]), number(record[c])) for c in columns),
                Entry(f"{labels.plain(record.get('epochs_done'))}", number(record["epochs_done"])),
                *values,
                _numeric_metric(record.get("images_per_s"), METRICS["images_per_s"]),
                _numeric_metric(record.get("train_seconds"), METRICS["train_seconds"]),
            ]
        )
    return Table(
        "runs",
        "All runs",
        [
            "Run",
            "Status",
            *map(labels.factor, columns),
            "Epochs done",
            "Test (%)",
            "Test, best val. epoch (%)",
            "Val. (%)",
            "Train (%)",
            "Images/s",
            "Training (s)",
        ],
        rows,
        [],
        frames.runs,
    )


def _unmarked(cell: Cell) -> Cell:
    """Return the cell without marks, for tables whose columns hold different quantities."""
    return (
        cell
        if not (cell.best or cell.tied)
        else Cell(**{**vars(cell), "best": False, "tied": False})
    )


def _numeric_metric(value: Any, shown: Metric) -> Entry:
    found = number(value)
    return EMPTY if found is None else Entry(shown.show(found), found)
