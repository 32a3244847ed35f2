"""How long a run takes to reach an accuracy: the Batch Normalization paper's kind of table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from normbench.errors import UserError
from normbench.report.frame import Frames


def check(target: float) -> None:
    """Refuse a target that is no accuracy.

    Raises:
        UserError: It is not a fraction in (0, 1].
    """
    if not 0 < target <= 1:
        hint = f" (write {target / 100:g} for {target:g} %)" if 1 < target <= 100 else ""
        raise UserError(f"--target must be an accuracy above 0 and up to 1, got {target:g}{hint}")


def add(frames: Frames, target: float) -> Frames:
    """Return the frames with steps, epochs and seconds to a validation accuracy added to runs.

    Counted is the first epoch at whose end the validation accuracy is at least ``target``; the
    resolution is an epoch. A run that never gets there has no value.

    Args:
        frames: What a store holds.
        target: Accuracy, a fraction in (0, 1].

    Raises:
        UserError: ``target`` is no such fraction.
    """
    check(target)
    curves = frames.curves.assign(seconds=frames.curves.groupby("run")["train_seconds"].cumsum())
    reached = curves[curves["val_acc"] >= target].drop_duplicates("run").set_index("run")
    runs = frames.runs.copy()
    attrs = frames.runs.attrs
    for column, source in (
        ("steps_to_target", "step"),
        ("epochs_to_target", "epoch"),
        ("seconds_to_target", "seconds"),
    ):
        runs[column] = runs["name"].map(reached[source]).astype(np.float64)
    runs.attrs = attrs
    return replace(frames, runs=pd.DataFrame(runs))
