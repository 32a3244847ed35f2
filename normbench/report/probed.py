"""The tables of what probes measured."""

from __future__ import annotations

import math

import pandas as pd

from normbench.report import labels
from normbench.report.bands import joined
from normbench.report.statistics import Sample, sample
from normbench.report.study import Study
from normbench.report.table import Entry, Table, number

_PREFIX = "probe/estimation_shift/"
_SHOWN = {
    "population_acc": ("Kept (%)", 100.0, 2),
    "recomputed_acc": ("Recomputed (%)", 100.0, 2),
    "mini_batch_acc": ("Mini-batch (%)", 100.0, 2),
    "mean_shift_average": ("Shift of the mean", 1.0, 3),
    "std_shift_average": ("Shift of the deviation", 1.0, 3),
    "std_shift_slope": ("Its slope over depth", 1.0, 3),
}
"""By key of the probe: heading, factor and digits."""


def estimation_shift(study: Study) -> Table | None:
    """Return validation accuracy with three kinds of statistics, and the shift, a line a cell.

    Of the last epoch that each run has them for. None where no run has the probe
    ``estimation_shift``.
    """
    curves = joined(study)
    measured = [name for name in curves.columns if name.startswith(_PREFIX)]
    known = curves[curves[measured].notna().any(axis=1)] if measured else curves.iloc[:0]
    if known.empty:
        return None
    last = known.sort_values("epoch").groupby("run", sort=False).tail(1)
    rows, data = [], []
    for row in study.rows:
        for column in study.columns:
            own = last[(last["row"] == row) & (last["column"] == column)]
            if own.empty:
                continue
            found = {key: _sample(own, key) for key in _SHOWN}
            rows.append(
                [
                    Entry(study.row(row), number(row)),
                    Entry(study.column(column), number(column)),
                    Entry(str(len(own)), len(own)),
                    *(_entry(found[key], key, tuple(own["run"])) for key in _SHOWN),
                ]
            )
            data += [
                {"row": row, "column": column, "value": key, **vars(each)}
                for key, each in found.items()
            ]
    epochs = sorted({int(epoch) for epoch in last["epoch"]})
    when = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
    return Table(
        "estimation-shift",
        "Validation accuracy with the statistics kept for inference, recomputed ones and those of "
        f"mini-batches, {when}: {study.title}",
        [
            labels.factor(study.row_factor),
            labels.factor(study.column_factor) if study.column_factor else "",
            "n",
            *(heading for heading, _, _ in _SHOWN.values()),
        ],
        rows,
        [
            "Mean over seeds ± half of the 95 % t interval. Recomputed: from training images, all "
            "layers normalizing with large mini-batches meanwhile (Wu & Johnson 2021). Mini-batch: "
            "statistics of validation mini-batches of the training's size. Shift: distance of what "
            "layers keep from what their inputs have in inference, over the norm of the inputs' "
            "deviation, mean over layers (after Huang et al. 2022); slope: from the first layer to "
            "the last. A dash: no layer keeps statistics."
        ],
        pd.DataFrame(data),
    )


def _sample(runs: pd.DataFrame, key: str) -> Sample:
    name = f"{_PREFIX}{key}"
    values = runs[name].dropna().to_numpy(float) if name in runs else []
    return sample(values)


def _entry(found: Sample, key: str, runs: tuple[str, ...]) -> Entry:
    _, scale, digits = _SHOWN[key]
    if not found.n:
        return Entry("–", runs=runs)
    text = f"{found.mean * scale:.{digits}f}"
    if not math.isnan(found.half_width):
        text += f" ± {found.half_width * scale:.{digits}f}"
    return Entry(text, found.mean, runs=runs)
