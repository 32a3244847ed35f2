"""Tables as text: what stands in them, and that each form escapes what it must."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.report import load, render, tables
from normbench.report.commands import text
from normbench.report.grid import Grid, build
from normbench.report.improvement import improvements
from normbench.report.lists import run_list, selection, summary
from normbench.report.metrics import METRICS
from normbench.report.statistics import sample
from normbench.report.study import studies
from normbench.report.table import Entry, Table


@pytest.fixture(scope="module")
def grid(motley: Path) -> Grid:
    (study,) = studies(load(motley))
    return build(study, METRICS["test_acc"], "bn")


def cell_of(markdown: str, row: str, place: int) -> str:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {row} "))
    return line.split("|")[place + 1].strip()


def test_matrix_in_markdown(grid: Grid) -> None:
    found = render.markdown(tables.matrix(grid))
    sample = grid.cells["gn_ws", 16].sample
    assert cell_of(found, "GN+WS", 1) == (
        f"**{100 * sample.mean:.2f} ± {100 * sample.half_width:.2f}**"
    )
    assert cell_of(found, "No norm", 1) == "63.06 (1 of 3 diverged)"
    assert cell_of(found, "No norm", 6) == "diverged (all 2 runs)"
    assert cell_of(found, "LN", 3).endswith("(1 seed)")
    assert cell_of(found, "LN", 4) == "– (1 not ended)"
    assert cell_of(found, "LN", 1) == "–"
    assert "†" in cell_of(found, "BN", 4)
    assert "over 3 seeds" in found
    assert "chance level" in found


def test_differences_show_sign_and_star(grid: Grid) -> None:
    found = render.markdown(tables.differences(grid))
    difference = grid.cells["gn", 16].baseline
    assert cell_of(found, "GN", 1).startswith(f"{100 * difference.mean:+.2f} ± ")
    assert "Holm" in found
    assert "over the 12 comparisons of this table that can be tested" in found
    assert "3 more comparisons cannot be tested" in found


def test_a_table_without_a_test_claims_none(
    grid: Grid, synth: SimpleNamespace, tmp_store: Path
) -> None:
    for norm in ("bn", "gn"):
        synth.write_run(tmp_store, synth.config(norm, 16, 0, epochs=3))
    (study,) = studies(load(tmp_store))
    found = render.markdown(tables.differences(build(study, METRICS["test_acc"], "bn")))
    assert "p < 0.05" not in found
    assert "The one comparison cannot be tested: one seed, a diverged run, or no spread." in found
    synth.write_run(tmp_store, synth.config("ln", 16, 0, epochs=3))
    (study,) = studies(load(tmp_store))
    found = render.markdown(tables.differences(build(study, METRICS["test_acc"], "bn")))
    assert "2 comparisons cannot be tested" in found


def test_times_carry_no_mark_of_a_test(grid: Grid) -> None:
    for name in ("images_per_s", "train_seconds"):
        timed = build(grid.study, METRICS[name], "bn")
        for table in (tables.matrix(timed), tables.differences(timed), tables.comparisons(timed)):
            found = render.markdown(table)
            assert "†" not in found
            assert "p < 0.05" not in found
            assert "no test is made" in found
        assert not any(cell.baseline.tested for cell in timed.cells.values() if cell.baseline)
        assert any(cell.best for cell in timed.cells.values())  # a plain description


def test_an_interval_ends_where_values_end() -> None:
    steps, accuracy = METRICS["steps_to_target"], METRICS["test_acc"]
    cut = steps.within(sample([10.0, 20.0, 120.0]))
    assert cut.mean == 50.0
    assert cut.low == 0.0
    assert cut.high == pytest.approx(50 + cut.half_width)
    assert steps.estimate(cut) == f"50 [0, {cut.high:.0f}]"
    assert steps.estimate(steps.within(sample([49.0, 51.0, 50.0]))) == "50 ± 2"
    high = accuracy.within(sample([0.99, 1.0, 0.98]))
    assert high.high == 1.0
    assert accuracy.estimate(high) == f"99.00 ± {100 * high.half_width:.2f}"


def test_a_cut_interval_is_explained(grid: Grid) -> None:
    runs = grid.study.runs
    places = runs.index[(runs["norm"] == "bn") & (runs["batch"] == 16)]
    study = replace(grid.study, runs=runs.assign(steps_to_target=50.0))
    study.runs.loc[places, "steps_to_target"] = [10.0, 20.0, 120.0]
    found = render.markdown(tables.matrix(build(study, METRICS["steps_to_target"])))
    assert r"50 \[0, 201\]" in found
    assert "an interval that would pass 0, cut there" in found


def test_csv_holds_the_unrounded_numbers(grid: Grid) -> None:
    lines = list(csv.DictReader(io.StringIO(render.csv(tables.matrix(grid)))))
    line = next(one for one in lines if one["norm"] == "gn" and one["batch"] == "64")
    assert float(line["mean"]) == grid.cells["gn", 64].sample.mean
    assert float(line["sd"]) == grid.cells["gn", 64].sample.sd
    assert line["n"] == "3"


def test_comparisons_list_every_pair(grid: Grid) -> None:
    found = tables.comparisons(grid)
    assert len(found.rows) == 15
    assert list(found.data["p"].dropna()) == [
        c.baseline.p for c in grid.cells.values() if c.baseline is not None and c.baseline.tested
    ]


def test_improvement_says_what_cannot_be_resampled(grid: Grid) -> None:
    found = render.markdown(tables.improvement(grid, improvements(grid)))
    assert cell_of(found, "LN", 2) == "– (a task has 1 run)"
    assert cell_of(found, "No norm", 2) == "– (all pairs agree)"
    assert cell_of(found, "GN", 3) == "6"


def test_selection_is_by_validation_alone(grid: Grid) -> None:
    found = selection(grid.study)
    assert found is not None
    runs = grid.study.runs
    for line in found.data.itertuples():
        own = runs[(runs["norm"] == line.row) & (runs["status"] == "finished")]
        means = own.groupby("batch")["val_acc"].mean()
        if line.row != "none":
            assert line.column == means.idxmax()
            assert line.test_acc == pytest.approx(
                own[own["batch"] == line.column]["test_acc"].mean()
            )


def test_summary_and_run_list_name_everything(grid: Grid, motley: Path) -> None:
    whole = summary(grid.study)
    assert len(whole.rows) == len(grid.cells)
    assert set(whole.data["runs"]) == {1, 2, 3}
    listed = run_list(load(motley))
    assert len(listed.rows) == 63


def test_latex_is_balanced_and_escaped() -> None:
    awkward = Table(
        "a_b",
        "50 % of R&D_x",
        ["Norm", "x_1", "<2>"],
        [
            [Entry("bn #1"), Entry("-1.50 ± 0.20", -1.5, best=True), Entry("3", 3.0)],
            [Entry("gn ~ {x}"), Entry("2", 2.0, tied=True, remark="1 seed"), Entry("^", None)],
        ],
        ["Costs $5."],
        pd.DataFrame(),
        "Batch",
    )
    found = render.latex(awkward)
    assert r"\textbf{$-$1.50 $\pm$ 0.20}" in found
    assert r"50 \% of R\&D\_x" in found
    assert r"bn \#1" in found
    assert r"gn \textasciitilde{} \{x\}" in found
    assert r"2\textsuperscript{\dag}\textsuperscript{a}" in found
    assert r"\textsuperscript{a} 1 seed." in found
    assert r"Costs \$5." in found
    assert r"\multicolumn{2}{c}{Batch}" in found
    assert found.count(r"\begin{") == found.count(r"\end{")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert found.count(f"\\{rule}") == 1
    assert all(
        line.count("&") == 2
        for line in found.splitlines()
        if line.endswith(r"} \\") and "multicolumn" not in line
    )


def test_markdown_is_escaped() -> None:
    found = render.markdown(Table("x", "T", ["a|b", "c"], [[Entry("_x_"), Entry("<i>")]]))
    assert r"a\|b" in found
    assert r"\_x\_" in found
    assert r"\<i\>" in found


def test_terminal_fits_eighty_columns(grid: Grid) -> None:
    shown = text(render.terminal(tables.matrix(grid)), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "95.93±1.05" in shown
    assert "94.07±0.40†" in shown
