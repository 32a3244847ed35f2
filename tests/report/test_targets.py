"""Steps, epochs and seconds to an accuracy, checked against the run files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from normbench.errors import UserError
from normbench.report import load
from normbench.report.tables import add_target


def test_first_epoch_that_reaches_the_target_counts(mixed_store: Path) -> None:
    found = add_target(load(mixed_store), 0.93).runs.set_index("name")
    reached = 0
    for name, row in found.iterrows():
        lines = (mixed_store / str(name) / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in lines if line.endswith("}")]
        seconds = 0.0
        for epoch in epochs:
            seconds += epoch["train_seconds"]
            if epoch["val_acc"] is not None and epoch["val_acc"] >= 0.93:
                assert row["steps_to_target"] == epoch["step"]
                assert row["epochs_to_target"] == epoch["epoch"]
                assert row["seconds_to_target"] == pytest.approx(seconds)
                reached += 1
                break
        else:
            assert math.isnan(row["steps_to_target"])
    assert 0 < reached < len(found)


def test_percentage_is_refused_with_the_fraction_to_use(mixed_store: Path) -> None:
    with pytest.raises(UserError, match=r"write 0\.9 for 90 %"):
        add_target(load(mixed_store), 90)
    with pytest.raises(UserError, match="above 0"):
        add_target(load(mixed_store), 0)
