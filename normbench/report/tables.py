"""The tables of a report, as :class:`~normbench.report.table.Table`, one function each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from normbench.errors import UserError
from normbench.report import names as labels
from normbench.report import sequential
from normbench.report.bands import last_measured
from normbench.report.frames import Frames, is_config
from normbench.report.grid import Grid, GridCell, build
from normbench.report.metrics import METRICS, Metric, listed
from normbench.report.statistics import ALPHA, Sample, sample
from normbench.report.study import Study, plain_value, ranges
from normbench.report.table import (
    EMPTY,
    Table,
    TableEntry,
    ends_note,
    entry,
    number,
    usual_count,
)
from normbench.report.tuning import phase, tuned_keys


def matrix(grid: Grid, slug: str = "") -> Table:
    """Return rows × columns of one metric: mean ± half of the 95 % interval, with marks."""
    usual = usual_count(grid)
    rows = [
        [
            TableEntry(grid.study.row(row)),
            *(entry(grid.get(row, column), grid.metric, usual) for column in grid.study.columns),
        ]
        for row in grid.study.rows
    ]
    title = f"{grid.metric.axis}: {grid.study.title}"
    return Table(
        slug or grid.metric.slug,
        title,
        [labels.factor(grid.study.row_factor), *map(grid.study.column, grid.study.columns)],
        rows,
        _matrix_notes(grid, usual),
        cells_data(grid),
        labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
    )


def differences(grid: Grid) -> Table:
    """Return rows × columns of paired differences from the baseline, with stars if significant."""
    base = grid.study.in_words(grid.baseline)
    rows = []
    for row in grid.study.rows:
        if row == grid.baseline:
            continue
        entries = [_difference(grid.get(row, column), grid.metric) for column in grid.study.columns]
        rows.append([TableEntry(grid.study.row(row)), *entries])
    unit = grid.metric.difference_unit
    subject = f"{grid.metric.label}, difference from {base}" + (f" ({unit})" if unit else "")
    notes = [
        *grid.study.notes,
        "Mean of the differences paired by seed ± half of their 95 % t interval.",
        *_cut(grid),
        *_looks(grid),
        *_tests(grid),
    ]
    return Table(
        f"{grid.metric.slug}-differences",
        f"{subject}: {grid.study.title}",
        [labels.factor(grid.study.row_factor), *map(grid.study.column, grid.study.columns)],
        rows,
        notes,
        differences_data(grid),
        labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
    )


def comparisons(grid: Grid) -> Table:
    """Return a row for each comparison with the baseline: interval, effect size, p-values."""
    unit = grid.metric.difference_unit
    rows = []
    for (row, column), cell in grid.cells.items():
        difference = cell.baseline
        if difference is None or not difference.n:
            continue
        show = grid.metric.show
        is_single = math.isnan(difference.low)
        interval = "–" if is_single else " to ".join(map(show, grid.metric.ends(difference)))
        rows.append(
            [
                TableEntry(grid.study.row(row)),
                TableEntry(grid.study.column(column), number(column)),
                TableEntry(str(difference.n), difference.n),
                TableEntry(
                    f"{difference.mean * grid.metric.scale:+.{grid.metric.digits}f}",
                    difference.mean,
                    runs=cell.runs,
                ),
                TableEntry(interval, None if is_single else difference.low),
                _numeric(difference.effect, "+.2f"),
                TableEntry(p_text(difference.p), number(difference.p)),
                TableEntry(
                    p_text(difference.p_corrected),
                    number(difference.p_corrected),
                    best=difference.significant,
                ),
            ]
        )
    base = grid.study.in_words(grid.baseline)
    return Table(
        f"{grid.metric.slug}-comparisons",
        f"{grid.metric.label} against {base}, paired by seed: {grid.study.title}",
        [
            labels.factor(grid.study.row_factor),
            labels.factor(grid.study.column_factor) if grid.study.column_factor else "",
            "n",
            f"Difference ({unit})" if unit else "Difference",
            "95 % interval",
            "Effect size",
            "p",
            "p (Holm)",
        ],
        rows,
        [
            *grid.study.notes,
            TIMED
            if grid.metric.timed
            else "Effect size: Cohen's d of the paired differences with Hedges's correction, from "
            "three seeds on. p: two-sided paired t test; Holm's correction covers all "
            "comparisons of this table. A dash: one seed, a diverged run, or differences "
            "without spread.",
            *_cut(grid),
            *_looks(grid),
        ],
        differences_data(grid),
        keys=2,
    )


def improvement(grid: Grid) -> Table:
    """Return the probability that a run does better than one of the baseline, over all columns."""
    rows = []
    for row, result in grid.improvements.items():
        interval = f"{result.low:.2f} to {result.high:.2f}"
        if math.isnan(result.low):
            interval = "– (a task has 1 run)"
        elif result.probability in (0.0, 1.0):
            interval = "– (all pairs agree)"
        rows.append(
            [
                TableEntry(grid.study.row(row)),
                TableEntry(f"{result.probability:.2f}", result.probability),
                TableEntry(interval, number(result.low)),
                TableEntry(str(result.tasks), result.tasks),
            ]
        )
    base = grid.study.in_words(grid.baseline)
    data = pd.DataFrame([{"row": row, **vars(result)} for row, result in grid.improvements.items()])
    return Table(
        f"{grid.metric.slug}-improvement",
        f"{grid.metric.label}, probability of improvement over {base}: {grid.study.title}",
        [labels.factor(grid.study.row_factor), f"P(better than {base})", "95 % interval", "Tasks"],
        rows,
        [
            *grid.study.notes,
            "Probability that a run drawn at random does better than one of the baseline, averaged "
            "over tasks (columns that both have); stratified bootstrap with 2,000 samples and "
            "percentile intervals (Agarwal et al. 2021), not corrected for the number of rows. "
            "With few seeds such intervals are too narrow.",
        ],
        data,
    )


def cells_data(grid: Grid) -> pd.DataFrame:
    """Return the cells of a grid in long form, unrounded, in stored units."""
    lines = [
        {
            grid.study.row_factor: cell.row,
            **({grid.study.column_factor: cell.column} if grid.study.column_factor else {}),
            "metric": grid.metric.name,
            "n": cell.sample.n,
            "mean": cell.sample.mean,
            "sd": cell.sample.sd,
            "low": cell.sample.low,
            "high": cell.sample.high,
            "best": cell.best,
            "not_significantly_worse": cell.tied,
            "diverged": cell.diverged,
            "not_ended": cell.pending,
            "mixed_versions": cell.mixed,
        }
        for cell in grid.cells.values()
    ]
    return pd.DataFrame(lines)


def differences_data(grid: Grid) -> pd.DataFrame:
    """Return the comparisons with the baseline in long form, unrounded, in stored units."""
    lines = [
        {
            grid.study.row_factor: cell.row,
            **({grid.study.column_factor: cell.column} if grid.study.column_factor else {}),
            "metric": grid.metric.name,
            "baseline": grid.baseline,
            **vars(cell.baseline),
        }
        for cell in grid.cells.values()
        if cell.baseline is not None
    ]
    return pd.DataFrame(lines)


TIMED = "Times and throughput depend on the machine and its load, so no test is made."
"""The note below comparisons of timed metrics."""


def p_text(p: float) -> str:
    """Return a p-value as printed in a table; a dash if there is none."""
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
    text = f"{p:.3f}"
    return f"< {text}" if p < ALPHA <= float(text) else text  # 0.04996 is not printed as 0.050


def p_words(p: float) -> str:
    """Return a p-value for a sentence: ``p = 0.012``, ``p < 0.001``."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _difference(cell: GridCell | None, metric: Metric) -> TableEntry:
    if cell is None or cell.baseline is None or not cell.baseline.n:
        return EMPTY
    difference = cell.baseline
    text = metric.difference(difference)
    remark = "1 seed" if difference.n == 1 else ""
    if cell.diverged:
        remark = f"{cell.diverged} of {cell.sample.n + cell.unvalued} diverged"
    return TableEntry(
        text + (" *" if difference.significant else ""),
        difference.mean,
        remark=remark,
        runs=cell.runs,
    )


def _matrix_notes(grid: Grid, usual: int) -> list[str]:
    notes = list(grid.study.notes)
    if usual > 1:
        notes.append(f"Mean ± half of the 95 % t interval over {usual} seeds unless noted.")
    elif usual == 1:
        notes.append("One seed per cell: there is no interval, and differences cannot be tested.")
    cells = list(grid.cells.values())
    cut_cells = [cell for cell in cells if grid.metric.cuts(cell.sample)]
    if cut_cells and grid.metric.unit == "%":
        wide = any(
            grid.metric.by_ends(cell.sample.mean, cell.sample.half_width) for cell in cut_cells
        )
        remark = " [low, high]: an interval wider than the full scale." if wide else ""
        notes.append(f"Intervals are cut at 0 and 100 %.{remark}")
    elif cut_cells:
        limits = " or ".join(
            f"{limit * grid.metric.scale:g}"
            for limit in (grid.metric.low, grid.metric.high)
            if math.isfinite(limit)
        )
        notes.append(f"[low, high]: an interval that is cut at {limits}.")
    if grid.metric.timed:
        notes.append(TIMED)
    if any(cell.best for cell in cells):
        direction = "highest" if grid.metric.higher_is_better else "lowest"
        notes.append(f"Bold: {direction} mean of its column.")
    if any(cell.tied for cell in cells):
        notes.append(
            "†: not significantly worse than the best of its column (paired t test by seed, Holm "
            "within the column, 0.05). Few seeds detect few differences: † does not mean equal."
        )
    if any(cell.diverged for cell in cells):
        notes.append(
            "Diverged runs count at chance level; such cells have no interval and are not tested."
            if grid.metric.worst
            else "Diverged runs have no value here and are left out of the mean."
        )
    if any(cell.mixed for cell in cells):
        notes.append("Mixed versions: the runs of the cell come from different code or libraries.")
    return notes


def _cut(grid: Grid) -> list[str]:
    """Return the note on intervals that exceed the largest possible difference, if any do."""
    all_differences = [cell.baseline for cell in grid.cells.values() if cell.baseline]
    if all(grid.metric.ends(d) == (d.low, d.high) or math.isnan(d.low) for d in all_differences):
        return []
    limit = f"{(grid.metric.high - grid.metric.low) * grid.metric.scale:g}"
    return [f"Intervals are cut at ±{limit} {grid.metric.difference_unit}."]


def _looks(grid: Grid) -> list[str]:
    """Return the note on differences that may be examined several times, if there are any."""
    is_sequential = any(cell.baseline and cell.baseline.looks > 1 for cell in grid.cells.values())
    return [sequential.note(grid.study.looks)] if is_sequential and not grid.metric.timed else []


def _tests(grid: Grid) -> list[str]:
    """Return notes on the differences that were tested, and why others were not."""
    if grid.metric.timed:
        return [TIMED]
    all_differences = [c.baseline for c in grid.cells.values() if c.baseline and c.baseline.n]
    tests = sum(difference.tested for difference in all_differences)
    rest = len(all_differences) - tests
    notes = []
    if tests:
        correction = (
            f", corrected by Holm's method over the {tests} comparisons of this table that can be "
            "tested"
        )
        notes.append(f"* p < 0.05, two-sided paired t test{correction if tests > 1 else ''}.")
    if rest:
        subject = f"{rest} more" if tests else f"{rest}" if rest > 1 else "The one"
        word = "comparison" if rest == 1 else "comparisons"
        notes.append(f"{subject} {word} cannot be tested: one seed, a diverged run, or no spread.")
    return notes


def _numeric(value: float, form: str) -> TableEntry:
    return EMPTY if math.isnan(value) else TableEntry(format(value, form), value)


# --- lists: choice by validation, all cells of a study, all runs of a store -----------------------


def selection(study: Study) -> Table | None:
    """Return for each row the column with the best validation accuracy, and its test accuracy."""
    if not study.column_factor or len(study.columns) < 2:
        return None
    validation = build(study, METRICS["val_acc"])
    test, at_best = build(study, METRICS["test_acc"]), build(study, METRICS["best_val_test_acc"])
    rows, data = [], []
    for row in study.rows:
        cells = [c for c in validation.cells.values() if c.row == row and c.sample.n]
        cells = [c for c in cells if not c.all_diverged]
        if not cells:
            continue
        best_cell = max(cells, key=lambda cell: cell.sample.mean)
        usual = usual_count(validation)
        place = (row, best_cell.column)
        rows.append(
            [
                TableEntry(study.row(row)),
                TableEntry(
                    study.column(best_cell.column), number(best_cell.column), runs=best_cell.runs
                ),
                entry(_unmarked(best_cell), validation.metric, usual),
                entry(_unmarked(test.cells[place]), test.metric, usual),
                entry(_unmarked(at_best.cells[place]), at_best.metric, usual),
            ]
        )
        data.append(
            {
                "row": row,
                "column": best_cell.column,
                "val_acc": best_cell.sample.mean,
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
        [*study.notes, "Chosen on validation images alone; test images were not used."],
        pd.DataFrame(data),
    )


def summary(*studies: Study) -> Table:
    """Return a row for each cell of one or several studies, as for the appendix of a paper.

    The first columns are the keys that split the studies (the data set, the network, a learning
    rate), then the config keys that differ between the cells of a study.
    """
    is_multiple = len(studies) > 1
    keys = (
        list(dict.fromkeys(key for study in studies for key in study.context))
        if is_multiple
        else []
    )
    keys = [key for key in keys if len({str(study.context.get(key)) for study in studies}) > 1]
    keys += dict.fromkeys(
        condition.key
        for study in studies
        for condition in study.conditions
        if is_config(condition.key) and condition.key not in keys
    )
    keys = list(dict.fromkeys([*keys, *(k for s in studies for k in tuned_keys(s.tuned))]))
    summaries = [_summary_lines(study, keys) for study in studies]
    lines = [line for rows, _ in summaries for line in rows]
    data = pd.DataFrame([values for _, data in summaries for values in data])
    first = studies[0]
    headers = [
        *map(labels.factor, keys),
        labels.factor(first.row_factor),
        labels.factor(first.column_factor) if first.column_factor else "",
        "Seeds",
        "Runs",
        *(metric.heading for metric in listed("cells")),
    ]
    place = headers.index("Runs")
    if all(set(line[place].text.split()[1::2]) == {"finished"} for line in lines):
        headers.pop(place)
        lines = [[*line[:place], *line[place + 1 :]] for line in lines]
    return Table(
        "summary",
        "All cells" if is_multiple else f"All cells: {first.title}",
        headers,
        lines,
        [
            *_notes(studies),
            "Mean over seeds ± half of the 95 % t interval; accuracies at the final epoch, test "
            "also at the epoch of best validation accuracy. The gap is training minus test "
            "accuracy; training accuracy is measured during training, on augmented images if "
            "there are any.",
            *ends_note(lines),
        ],
        data,
        keys=len(keys) + 2,
    )


def _notes(studies: Sequence[Study]) -> list[str]:
    """Return the notes of studies, each with the study's title if there are several."""
    if len(studies) == 1:
        return studies[0].notes
    return [f"{study.title}: {note}" for study in studies for note in study.notes]


def _summary_lines(study: Study, keys: list[str]) -> tuple[list[list[TableEntry]], list[dict]]:
    grids = {metric.name: build(study, metric) for metric in listed("cells")}
    rows, data = [], []
    for place, cell in grids["test_acc"].cells.items():
        cell_runs = study.runs.iloc[study.groups[place].places]
        seeds = sorted(int(seed) for seed in cell_runs["seed"])
        counts = cell_runs["status"].value_counts()
        state = ", ".join(f"{count} {status}" for status, count in counts.items())
        cells = {name: grid.cells[place] for name, grid in grids.items()}
        usual = cell.sample.n
        key_values = {key: _shared(cell_runs, key) for key in keys}
        rows.append(
            [
                *(
                    TableEntry(labels.value(key, value), number(value))
                    for key, value in key_values.items()
                ),
                TableEntry(study.row(place[0])),
                TableEntry(study.column(place[1]), number(place[1])),
                TableEntry(ranges(seeds), len(seeds), runs=cell.runs),
                TableEntry(state),
                *(entry(_unmarked(cell), METRICS[name], usual) for name, cell in cells.items()),
            ]
        )
        line: dict[str, Any] = dict(study.context) | key_values
        line[study.row_factor] = place[0]
        if study.column_factor:
            line[study.column_factor] = place[1]
        line |= {"seeds": " ".join(map(str, seeds)), "runs": len(cell_runs), "status": state}
        for name, cell in cells.items():
            line |= {f"{name}_{key}": getattr(cell.sample, key) for key in _SAMPLE}
        data.append(line)
    return rows, data


_SAMPLE = ("n", "mean", "sd", "low", "high")


def _shared(runs: pd.DataFrame, key: str) -> Any:
    """Return the value of a key in the runs of a cell; several values are joined as text."""
    values = [] if key not in runs else [plain_value(value) for value in runs[key].unique()]
    return values[0] if len(values) == 1 else ", ".join(map(labels.plain, values))


def run_list(frames: Frames) -> Table:
    """Return a row for each run, whatever its status."""
    columns = ["norm", "batch", "seed"]
    columns = [c for c in ("dataset", "arch") if frames.runs[c].nunique() > 1] + columns
    metrics = listed("runs")
    rows = []
    for record in frames.runs.to_dict("records"):
        rows.append(
            [
                TableEntry(str(record["name"]), runs=(str(record["name"]),)),
                TableEntry(record["status"] + (f" ({phase(record)})" if phase(record) else "")),
                *(TableEntry(labels.value(c, record[c]), number(record[c])) for c in columns),
                TableEntry(
                    f"{labels.plain(record.get('epochs_done'))}", number(record["epochs_done"])
                ),
                *(_numeric_metric(record.get(metric.name), metric) for metric in metrics),
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
            *(metric.heading for metric in metrics),
        ],
        rows,
        [],
        frames.runs,
    )


def _unmarked(cell: GridCell) -> GridCell:
    """Return the cell without marks, for tables whose columns hold different quantities."""
    return (
        cell
        if not (cell.best or cell.tied)
        else GridCell(**{**vars(cell), "best": False, "tied": False})
    )


def _numeric_metric(value: Any, metric: Metric) -> TableEntry:
    measure = number(value)
    return EMPTY if measure is None else TableEntry(metric.show(measure), measure)


# --- values of probes -----------------------------------------------------------------------------

_PREFIX = "probe/estimation_shift/"
_SHOWN = {
    "population_acc": ("Kept (%)", 100.0, 2),
    "recomputed_acc": ("Recomputed (%)", 100.0, 2),
    "mini_batch_acc": ("Mini-batch (%)", 100.0, 2),
    "mean_shift_average": ("Shift of the mean", 1.0, 3),
    "std_shift_average": ("Shift of the deviation", 1.0, 3),
    "std_shift_slope": ("Its slope over depth", 1.0, 3),
}
"""Heading, factor and digits of each key of the probe."""


def estimation_shift(study: Study) -> Table | None:
    """Return validation accuracy with three kinds of statistics, and the shift, for each cell.

    Values are from the last epoch that the probe ``estimation_shift`` measured in each run. None if
    no run has this probe.
    """
    last_epochs, _ = last_measured(study, lambda name: name.startswith(_PREFIX))
    if last_epochs.empty:
        return None
    rows, data = [], []
    for row in study.rows:
        for column in study.columns:
            cell_epochs = last_epochs[
                (last_epochs["row"] == row) & (last_epochs["column"] == column)
            ]
            if cell_epochs.empty:
                continue
            samples = {key: _sample(cell_epochs, key) for key in _SHOWN}
            rows.append(
                [
                    TableEntry(study.row(row), number(row)),
                    TableEntry(study.column(column), number(column)),
                    TableEntry(str(len(cell_epochs)), len(cell_epochs)),
                    *(_entry(samples[key], key, tuple(cell_epochs["run"])) for key in _SHOWN),
                ]
            )
            data += [
                {"row": row, "column": column, "value": key, **vars(estimate)}
                for key, estimate in samples.items()
            ]
    epochs = sorted({int(epoch) for epoch in last_epochs["epoch"]})
    epoch_text = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
    return Table(
        "estimation-shift",
        "Validation accuracy with the statistics stored for inference, with recomputed ones and "
        f"with those of mini-batches, {epoch_text}: {study.title}",
        [
            labels.factor(study.row_factor),
            labels.factor(study.column_factor) if study.column_factor else "",
            "n",
            *(heading for heading, _, _ in _SHOWN.values()),
        ],
        rows,
        [
            "Mean over seeds ± half of the 95 % t interval. Recomputed: from training images, with "
            "all layers normalizing by large mini-batches (Wu & Johnson 2021). Mini-batch: "
            "statistics of validation mini-batches of the training batch size. Shift: distance "
            "between the statistics that layers store and those of their inputs in inference, over "
            "the norm of the inputs' deviation, mean over layers (after Huang et al. 2022); slope: "
            "from the first layer to the last. A dash: no layer stores statistics."
        ],
        pd.DataFrame(data),
        keys=2,
    )


def _sample(runs: pd.DataFrame, key: str) -> Sample:
    name = f"{_PREFIX}{key}"
    values = runs[name].dropna().to_numpy(float) if name in runs else []
    return sample(values)


def _entry(estimate: Sample, key: str, runs: tuple[str, ...]) -> TableEntry:
    _, scale, digits = _SHOWN[key]
    if not estimate.n:
        return TableEntry("–", runs=runs)
    if key.endswith("_acc"):
        return TableEntry(METRICS["val_acc"].estimate(estimate), estimate.mean, runs=runs)
    text = f"{estimate.mean * scale:.{digits}f}"
    if not math.isnan(estimate.half_width):
        text += f" ± {estimate.half_width * scale:.{digits}f}"
    return TableEntry(text, estimate.mean, runs=runs)


# --- steps and time to a target accuracy, as in the Batch Normalization paper ---------------------


def check_target(target: float) -> None:
    """Check that a target is a valid accuracy.

    Raises:
        UserError: It is not in (0, 1].
    """
    if not 0 < target <= 1:
        hint = f" (write {target / 100:g} for {target:g} %)" if 1 < target <= 100 else ""
        raise UserError(f"--target must be an accuracy above 0 and up to 1, got {target:g}{hint}")


def add_target(frames: Frames, target: float) -> Frames:
    """Add steps, epochs and seconds to a validation accuracy to the runs frame.

    They are counted to the end of the first epoch with a validation accuracy of at least
    ``target``; a run that never reaches it has no value.

    Args:
        frames: The frames of a store.
        target: Accuracy in (0, 1].

    Raises:
        UserError: ``target`` is not in (0, 1].
    """
    check_target(target)
    curves = frames.curves.assign(seconds=frames.curves.groupby("run")["train_seconds"].cumsum())
    first_epochs = curves[curves["val_acc"] >= target].drop_duplicates("run").set_index("run")
    runs = frames.runs.copy()
    attrs = frames.runs.attrs
    for column, source in (
        ("steps_to_target", "step"),
        ("epochs_to_target", "epoch"),
        ("seconds_to_target", "seconds"),
    ):
        runs[column] = runs["name"].map(first_epochs[source]).astype(np.float64)
    runs.attrs = attrs
    return replace(frames, runs=pd.DataFrame(runs))
