"""Tables that list: the choice by validation, all cells of a study, all runs of a store."""

from __future__ import annotations

from typing import Any

import pandas as pd

from normbench.report import labels
from normbench.report.frame import Frames
from normbench.report.grid import Cell, build
from normbench.report.metrics import METRICS, Metric, metric
from normbench.report.study import Study
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
        ["Chosen on validation images alone; test images had no part in it."],
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
    """A line a cell, as for the appendix of a paper; several studies are told apart by columns.

    What parts the studies (the data set, the network, a learning rate) stands first in each line.
    """
    several = len(studies) > 1
    keys = list(dict.fromkeys(key for study in studies for key in study.context)) if several else []
    keys = [key for key in keys if len({str(study.context.get(key)) for study in studies}) > 1]
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
            "Mean over seeds ± half of the 95 % t interval; accuracies at the final epoch, test "
            "also at the epoch of best validation accuracy. The gap is training minus test "
            "accuracy; training accuracy is taken while the network trains, on augmented images "
            "where there are any."
        ],
        data,
    )


def _summary_lines(study: Study, keys: list[str]) -> tuple[list[list[Entry]], list[dict]]:
    grids = {name: build(study, METRICS[name]) for name in _SUMMARY}
    context = [Entry(labels.value(key, study.context.get(key))) for key in keys]
    rows, data = [], []
    for place, cell in grids["test_acc"].cells.items():
        inside = study.runs.iloc[study.groups[place].places]
        seeds = sorted(int(seed) for seed in inside["seed"])
        counts = inside["status"].value_counts()
        state = ", ".join(f"{count} {status}" for status, count in counts.items())
        cells = {name: grid.cells[place] for name, grid in grids.items()}
        usual = cell.sample.n
        rows.append(
            [
                *context,
                Entry(study.row(place[0])),
                Entry(study.column(place[1]), number(place[1])),
                Entry(_ranges(seeds), len(seeds), runs=cell.runs),
                Entry(state),
                *(entry(_unmarked(each), METRICS[name], usual) for name, each in cells.items()),
            ]
        )
        line: dict[str, Any] = {key: study.context.get(key) for key in study.context}
        line[study.row_factor] = place[0]
        if study.column_factor:
            line[study.column_factor] = place[1]
        line |= {"seeds": " ".join(map(str, seeds)), "runs": len(inside), "status": state}
        for name, each in cells.items():
            line |= {f"{name}_{key}": getattr(each.sample, key) for key in _SAMPLE}
        data.append(line)
    return rows, data


_SAMPLE = ("n", "mean", "sd", "low", "high")


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


def _ranges(seeds: list[int]) -> str:
    """Write seeds as ``0–2, 5``."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)
