"""Cells: which runs enter, what is marked, and how diverged runs count."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from normbench.errors import UserError
from normbench.report import load
from normbench.report.grid import Grid, build
from normbench.report.metrics import METRICS
from normbench.report.statistics import holm
from normbench.report.study import studies


def build_grid(root: Path, name: str = "test_acc", baseline: str | None = "bn") -> Grid:
    (study,) = studies(load(root))
    return build(study, METRICS[name], baseline)


def test_cells_hold_the_values_of_their_runs(mixed_store: Path) -> None:
    grid = build_grid(mixed_store)
    runs = load(mixed_store).runs
    cell_runs = runs[(runs["norm"] == "gn") & (runs["batch"] == 64)].sort_values("seed")
    cell = grid.cells["gn", 64]
    assert list(cell.values.values()) == list(cell_runs["test_acc"])
    assert cell.runs == tuple(cell_runs["name"])
    assert cell.sample.mean == pytest.approx(cell_runs["test_acc"].mean())


def test_differences_are_paired_and_corrected_over_the_study(mixed_store: Path) -> None:
    grid = build_grid(mixed_store)
    places = [p for p, c in grid.cells.items() if c.baseline is not None and c.baseline.tested]
    known = []
    for row, column in places:
        ours, base = grid.cells[row, column].values, grid.cells["bn", column].values
        known.append(stats.ttest_rel(list(ours.values()), list(base.values())).pvalue)
        assert grid.cells[row, column].baseline.p == pytest.approx(known[-1])
    corrected = [grid.cells[place].baseline.p_corrected for place in places]
    assert corrected == pytest.approx(holm(known))
    assert len(places) == 12
    assert all(grid.cells["bn", column].baseline is None for column in grid.study.columns)


def test_diverged_runs_count_at_chance_and_rule_out_a_t_test(mixed_store: Path) -> None:
    grid = build_grid(mixed_store)
    cell = grid.cells["none", 16]
    assert cell.diverged == 1
    assert cell.values[0] == pytest.approx(0.1)
    assert cell.sample.mean == pytest.approx(np.mean(list(cell.values.values())))
    assert math.isnan(cell.sample.low)
    assert not cell.baseline.tested
    assert cell.baseline.mean < 0
    assert not cell.tied
    assert build_grid(mixed_store, "test_err").cells["none", 16].values[0] == pytest.approx(0.9)
    assert grid.cells["none", 512].all_diverged
    assert not grid.cells["none", 512].best


def test_diverged_runs_have_no_loss_and_no_time(mixed_store: Path) -> None:
    for name in ("test_loss", "train_seconds", "gap"):
        cell = build_grid(mixed_store, name).cells["none", 16]
        assert cell.sample.n == 2
        assert cell.unvalued == 1


def test_unfinished_runs_are_only_counted(mixed_store: Path) -> None:
    cell = build_grid(mixed_store).cells["ln", 128]
    assert (cell.sample.n, cell.pending, cell.unvalued) == (0, 1, 0)


def test_one_seed_has_no_interval_and_no_mark(mixed_store: Path) -> None:
    cell = build_grid(mixed_store).cells["ln", 64]
    assert cell.sample.n == 1
    assert math.isnan(cell.sample.low)
    assert not cell.tied
    assert cell.baseline.n == 1
    assert not cell.baseline.tested


@pytest.mark.parametrize("name", ["test_acc", "test_loss"])
def test_best_of_a_column_and_its_ties_are_marked(mixed_store: Path, name: str) -> None:
    grid = build_grid(mixed_store, name)
    for column in grid.study.columns:
        inside = [c for c in grid.cells.values() if c.column == column and c.sample.n > 1]
        inside = [c for c in inside if not c.diverged]
        means = {cell.row: cell.sample.mean for cell in inside}
        top = (max if name == "test_acc" else min)(means, key=means.__getitem__)
        assert [cell.row for cell in inside if cell.best] == [top]
        others = [cell for cell in inside if cell.row != top]
        p = [
            stats.ttest_rel(
                list(grid.cells[top, column].values.values()), list(cell.values.values())
            ).pvalue
            for cell in others
        ]
        assert [cell.tied for cell in others] == [value >= 0.05 for value in holm(p)]


def test_mean_over_only_some_runs_is_never_best(mixed_store: Path) -> None:
    assert not build_grid(mixed_store, "images_per_s").cells["none", 16].best


def test_mixed_code_versions_are_detected(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16, 32), seeds=2, epochs=3)
    synth.write_run(root, synth.config("bn", 16, 2, epochs=3), commit="0" * 40)
    found = build_grid(root)
    assert found.cells["bn", 16].mixed
    assert not found.cells["bn", 32].mixed


def test_diverged_run_on_an_unknown_data_set_counts_as_zero(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=3, dataset="leaves")
    synth.write_run(
        root, synth.config("bn", 16, 1, epochs=3, dataset="leaves"), status="diverged", stop=2
    )
    assert build_grid(root).cells["bn", 16].values[1] == 0.0


def test_unknown_baseline_is_refused(mixed_store: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'gn_ws'"):
        build_grid(mixed_store, baseline="gnws")
